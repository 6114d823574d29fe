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
use crate::lane::{Sender, StreamEvent, StreamReceiver, blame};
use crate::seal::{Opener, Sealer};
use crate::wire::{Control, reason_bytes};

/// How often each end says that it is alive: some times in the shortest `peer_timeout`.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// What this end says. Any thread may speak.
pub(super) struct Voice(Mutex<Speaker>);

struct Speaker {
    sender: Sender,
    /// END or CANCEL was said. Heartbeats follow an END until the other end has said its own, and
    /// so may a CANCEL.
    ended: bool,
}

impl Voice {
    pub(super) fn new(config: &Config, socket: Arc<OwnedFd>, sealer: Sealer) -> Result<Self> {
        let pool = Pool::new(2, PAGE_BYTES)?;
        let engine = engine(config, &pool, socket, Callers::Any)?;
        let sender = Sender::new(engine, pool, sealer, 0);
        Ok(Self(Mutex::new(Speaker { sender, ended: false })))
    }

    /// That this end lives. Whether the connection does is for those to tell who read from it: they
    /// see what the other end said before it went.
    pub(super) fn heartbeat(&self) -> Result<()> {
        let said = self.speaker().say(Control::Heartbeat, &[], Instant::now());
        match said.map_err(|e| blame(e, 0, 0)) {
            Err(Error::Peer(PeerError::Closed { .. })) => Ok(()),
            said => said.map(drop),
        }
    }

    /// That every channel has ended well here.
    pub(super) fn end(&self) -> Result<()> {
        let mut speaker = self.speaker();
        let end = Control::StreamEnd { frames: speaker.sender.frames(), bytes: 0 };
        let said = speaker.say(end, &[], Instant::now() + GRACE)?;
        speaker.ended = true;
        // So little always fits the socket of an end that listens.
        if said { Ok(()) } else { Err(protocol("it does not take the end of the tunnel")) }
    }

    /// That so many channels are to be there: the other end dials.
    pub(super) fn want(&self, channels: u16) -> Result<()> {
        let said = self.speaker().say(Control::Want { channels }, &[], Instant::now() + GRACE)?;
        let text = "it does not take the wish for a channel";
        if said { Ok(()) } else { Err(protocol(text)) }
    }

    /// Why this end gives up. Whoever does not take it will see the connections end.
    pub(super) fn cancel(&self, reason: &str) {
        let mut speaker = self.speaker();
        let reason = reason_bytes(reason);
        let cancel = Control::Cancel { payload_bytes: reason.len() };
        let _ = speaker.say(cancel, reason, Instant::now() + GRACE);
        speaker.ended = true;
    }

    /// Whether END or CANCEL was said.
    pub(super) fn has_ended(&self) -> bool {
        self.speaker().ended
    }

    fn speaker(&self) -> MutexGuard<'_, Speaker> {
        lock(&self.0)
    }
}

impl Speaker {
    /// Sends a frame where the kernel takes it until then; false where it does not.
    fn say(&mut self, control: Control, payload: &[u8], deadline: Instant) -> Result<bool> {
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
/// `dials`: it is this one that dials where the other wants a channel.
pub(super) fn hear(
    shared: &Shared,
    config: &Config,
    dials: bool,
    socket: Arc<OwnedFd>,
    opener: Opener,
) -> Result<()> {
    let pool = Pool::new(1, PAGE_BYTES)?;
    let engine = engine(config, &pool, socket, Callers::One)?;
    let mut receiver = StreamReceiver::new(engine, pool, opener, 0, PAGE_BYTES);
    let (mut said, mut heard) = (Instant::now(), Instant::now());
    loop {
        match receiver.next(false, Some(said + HEARTBEAT)) {
            Ok(StreamEvent::Nothing) => {}
            Ok(StreamEvent::Control(Control::Heartbeat)) => heard = Instant::now(),
            Ok(StreamEvent::Control(Control::Want { channels })) if dials => shared.want(channels),
            // Both have said their last word: how the other end goes is no failure.
            _ if shared.is_agreed() => return Ok(()),
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
            if !shared.is_agreed() {
                shared.voice.heartbeat()?;
            }
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::cancel::Canceller;
    use crate::seal::{Direction, KeyLimits, Provider, SessionSecret};

    /// One end and the voice of the other, with what each is heard by.
    fn ends(config: &Config) -> (Arc<Shared>, Arc<OwnedFd>, Voice, Arc<OwnedFd>) {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, far): (Arc<OwnedFd>, Arc<OwnedFd>) =
            (Arc::new(near.into()), Arc::new(far.into()));
        let voice = |socket: &Arc<OwnedFd>, direction| {
            let secret = SessionSecret::new(b"a", b"b");
            let secret = secret.lane_secret(direction, 0, 0, &[0; 32], &[0; 32]);
            let sealer = Sealer::new(Provider::AwsLc, secret, KeyLimits::default(), 0);
            Voice::new(config, Arc::clone(socket), sealer).unwrap()
        };
        let voices = (voice(&near, Direction::FromTarget), voice(&far, Direction::FromSource));
        let shared = Shared::new(voices.0, Arc::clone(&near), &Canceller::default()).unwrap();
        (shared, near, voices.1, far)
    }

    fn opener() -> Opener {
        let secret = SessionSecret::new(b"a", b"b");
        let secret = secret.lane_secret(Direction::FromSource, 0, 0, &[0; 32], &[0; 32]);
        Opener::new(Provider::AwsLc, secret, KeyLimits::default(), 0)
    }

    #[test]
    fn an_end_that_goes_after_both_last_words_has_not_failed() {
        let config = Config::default();
        let (shared, near, peer, far) = ends(&config);
        let heard = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || hear(&shared, &Config::default(), false, near, opener())
        });
        peer.end().unwrap();
        while !shared.peer_ended() {
            std::thread::yield_now();
        }
        shared.voice.end().unwrap();
        // No more was done here when it goes.
        engine::shutdown(&far);
        heard.join().unwrap().unwrap();
    }

    #[test]
    fn heartbeats_and_a_cancel_follow_an_end() {
        let config = Config::default();
        let (_shared, near, peer, _far) = ends(&config);
        let pool = Pool::new(1, PAGE_BYTES).unwrap();
        let engine = engine(&config, &pool, near, Callers::One).unwrap();
        let mut receiver = StreamReceiver::new(engine, pool, opener(), 0, PAGE_BYTES);
        peer.end().unwrap();
        peer.heartbeat().unwrap();
        peer.cancel("a signal");
        let soon = Some(Instant::now() + Duration::from_secs(10));
        let mut next = || receiver.next(false, soon).unwrap();
        assert_eq!(next(), StreamEvent::End);
        let heartbeat = StreamEvent::Control(Control::Heartbeat);
        assert_eq!(next(), heartbeat);
        let cancelled = StreamEvent::Cancelled(b"a signal".to_vec());
        assert_eq!(next(), cancelled);
    }
}
