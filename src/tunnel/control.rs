//! Lane 0 of a tunnel (W-35): the ends say that they are alive, that all is over, or why they give
//! up.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::GRACE;
use super::shared::{Shared, lock};
use crate::buffer::Pool;
use crate::config::{Config, PAGE_BYTES, ZeroCopy};
use crate::engine::{self, Callers, Endpoint, Engine, EngineSetup};
use crate::error::{Error, PeerError, Result, ended_by_peer};
use crate::lane::{Sender, StreamEvent, StreamReceiver};
use crate::seal::{Opener, Sealer};
use crate::wire::{Control, reason_bytes};

/// How often each end says that it is alive: some times in the shortest `peer_timeout`.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// What this end says. Any thread may speak.
pub(super) struct Voice(Mutex<Speaker>);

struct Speaker {
    sender: Sender,
    /// The last word was said.
    ended: bool,
}

impl Voice {
    pub(super) fn new(config: &Config, socket: Arc<OwnedFd>, sealer: Sealer) -> Result<Self> {
        let pool = Pool::new(2, PAGE_BYTES)?;
        let engine = engine(config, &pool, socket, Callers::Any)?;
        let sender = Sender::new(engine, pool, sealer, 0);
        Ok(Self(Mutex::new(Speaker { sender, ended: false })))
    }

    pub(super) fn heartbeat(&self) -> Result<()> {
        self.speaker().say(Control::Heartbeat, &[], Instant::now()).map(drop)
    }

    /// That every channel has ended well here.
    pub(super) fn end(&self) -> Result<()> {
        let mut speaker = self.speaker();
        let end = Control::StreamEnd { frames: speaker.sender.frames(), bytes: 0 };
        let said = speaker.say(end, &[], Instant::now() + GRACE)?;
        speaker.ended = true;
        // So little always fits the socket of an end that listens.
        let text = "it does not take the end of the tunnel";
        if said { Ok(()) } else { Err(PeerError::Protocol(text.to_owned()).into()) }
    }

    /// Why this end gives up. Whoever does not take it will see the connections end.
    pub(super) fn cancel(&self, reason: &str) {
        let mut speaker = self.speaker();
        let reason = reason_bytes(reason);
        let cancel = Control::Cancel { payload_bytes: reason.len() };
        let _ = speaker.say(cancel, reason, Instant::now() + GRACE);
        speaker.ended = true;
    }

    /// Whether the last word was said.
    fn has_ended(&self) -> bool {
        self.speaker().ended
    }

    fn speaker(&self) -> MutexGuard<'_, Speaker> {
        lock(&self.0)
    }
}

impl Speaker {
    /// Sends a frame where the kernel takes it until then; false where it does not.
    fn say(&mut self, control: Control, payload: &[u8], deadline: Instant) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let slot = loop {
            if self.sender.can_send()
                && let Some(slot) = self.sender.take_slot()
            {
                break slot;
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.sender.step(Some(deadline))?;
        };
        self.sender.send_control(slot, control, payload)?;
        while !self.sender.can_send() && Instant::now() < deadline {
            self.sender.step(Some(deadline))?;
        }
        Ok(self.sender.can_send())
    }
}

/// Hears the other end, and says that this one lives, until both have said their last word.
pub(super) fn hear(
    shared: &Shared,
    config: &Config,
    socket: Arc<OwnedFd>,
    opener: Opener,
) -> Result<()> {
    let pool = Pool::new(1, PAGE_BYTES)?;
    let engine = engine(config, &pool, socket, Callers::One)?;
    let mut receiver = StreamReceiver::new(engine, pool, opener, 0, PAGE_BYTES);
    let (mut said, mut heard) = (Instant::now(), Instant::now());
    loop {
        match receiver.next(false, Some(said + HEARTBEAT)) {
            // It has nothing more to say, and this end neither.
            _ if shared.is_over() => return Ok(()),
            Ok(StreamEvent::Nothing) => {}
            Ok(StreamEvent::Control(Control::Heartbeat)) => heard = Instant::now(),
            Ok(StreamEvent::Cancelled(reason)) => return Err(ended_by_peer(&reason)),
            Ok(StreamEvent::End) => {
                shared.set_peer_ended();
                if shared.voice.has_ended() {
                    return Ok(());
                }
                heard = Instant::now();
            }
            Ok(_) => return Err(protocol("no word of a tunnel on its lane 0")),
            Err(error) => return Err(error),
        }
        if said.elapsed() >= HEARTBEAT {
            shared.voice.heartbeat()?;
            said = Instant::now();
        }
        if heard.elapsed() > config.peer_timeout {
            let waited_s = config.peer_timeout.as_secs();
            let phase = "while the tunnel was open";
            return Err(PeerError::Silent { lane: 0, phase, waited_s }.into());
        }
    }
}

fn engine(
    config: &Config,
    pool: &Pool,
    socket: Arc<OwnedFd>,
    callers: Callers,
) -> Result<Box<dyn Engine>> {
    let to = Endpoint::of_lane(socket, 0);
    engine::open(&EngineSetup {
        choice: config.engine,
        zero_copy: ZeroCopy::Off,
        sqpoll: false,
        pool,
        register: false,
        callers,
        from: to.clone(),
        to,
    })
}

pub(super) fn protocol(text: &str) -> Error {
    PeerError::Protocol(text.to_owned()).into()
}
