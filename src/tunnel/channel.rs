//! One connection of a hypervisor, sealed: a thread for each direction.
//!
//! ```text
//!  out:   unix socket --recv--> slot, seal in place --send--> lane
//!  into:  lane --recv--> slot, open in place --send--> unix socket
//! ```
//!
//! Each thread has an engine with both sockets and a pool of its own. A byte is copied by the
//! kernel at each socket and by nobody else.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::ChannelStatistics;
use super::control::protocol;
use super::local::Process;
use super::shared::{Shared, lock};
use crate::buffer::{Pool, Slot};
use crate::config::{Config, FRAME_BYTES_MIN, ZeroCopy};
use crate::engine::{self, Callers, Done, Endpoint, EngineSetup, EngineStatistics, Until};
use crate::error::{Error, Result, SystemError, ended_by_peer};
use crate::lane::{Lane, Sender, StreamEvent, StreamReceiver, blame};
use crate::seal::{Opener, Sealer};
use crate::wire::{Control, Role};

/// How often a wait for the network looks whether the channel was cut.
const TICK: Duration = Duration::from_millis(20);

pub(super) struct Channel {
    number: u16,
    name: Arc<str>,
    /// The hypervisor's process, where it can be told.
    process: Option<Process>,
    /// The hypervisor's socket and the lane's, until both directions have ended.
    sockets: Mutex<Option<[Arc<OwnedFd>; 2]>>,
    is_cut: AtomicBool,
    out_bytes: AtomicU64,
    into_bytes: AtomicU64,
    open_halves: AtomicU8,
    /// Frames out and into, engines.
    figures: Mutex<(u64, u64, EngineStatistics)>,
}

impl Channel {
    /// Between `local` and a lane; `place` names the socket in messages.
    pub(super) fn open(
        shared: &Arc<Shared>,
        config: &Config,
        (role, frame_bytes): (Role, usize),
        lane: Lane,
        local: OwnedFd,
        place: &str,
    ) -> Result<()> {
        let Lane { index: number, socket, sealer, opener } = lane;
        let process = Process::behind(&local);
        let local = Arc::new(local);
        let channel = Arc::new(Self {
            number,
            name: format!("channel {number} at {place}").into(),
            process,
            sockets: Mutex::new(Some([Arc::clone(&local), Arc::clone(&socket)])),
            is_cut: AtomicBool::new(false),
            out_bytes: AtomicU64::new(0),
            into_bytes: AtomicU64::new(0),
            open_halves: AtomicU8::new(2),
            figures: Mutex::default(),
        });
        shared.add(&channel);
        let (ours, own) = (Arc::clone(&channel), config.clone());
        let sockets = (Arc::clone(&local), Arc::clone(&socket));
        shared.spawn(format!("seal {number}"), move |_| {
            ours.outbound(&own, role, frame_bytes, sealer, sockets)?;
            ours.half_ended();
            Ok(())
        })?;
        let own = config.clone();
        shared.spawn(format!("open {number}"), move |_| {
            channel.inbound(&own, frame_bytes, opener, (local, socket))?;
            channel.half_ended();
            Ok(())
        })
    }

    fn half_ended(&self) {
        if self.open_halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            lock(&self.sockets).take();
        }
    }

    /// The hypervisor's process, where it can be told.
    pub(super) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Whether both directions have ended well.
    pub(super) fn has_ended(&self) -> bool {
        self.open_halves.load(Ordering::Acquire) == 0
    }

    /// Ends both connections under its threads. The lane first: an end of the local socket that
    /// is our own doing must not be told as the hypervisor's.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        if let Some([local, lane]) = &*lock(&self.sockets) {
            engine::shutdown(lane);
            engine::shutdown(local);
        }
    }

    pub(super) fn statistics(&self) -> ChannelStatistics {
        let (sent_frames, received_frames, engine) = *lock(&self.figures);
        ChannelStatistics {
            number: self.number,
            is_open: !self.has_ended(),
            sent_bytes: self.out_bytes.load(Ordering::Relaxed),
            received_bytes: self.into_bytes.load(Ordering::Relaxed),
            sent_frames,
            received_frames,
            engine,
        }
    }

    /// What the hypervisor writes goes out, until it ends.
    fn outbound(
        &self,
        config: &Config,
        role: Role,
        frame_bytes: usize,
        sealer: Sealer,
        (local, lane): (Arc<OwnedFd>, Arc<OwnedFd>),
    ) -> Result<()> {
        // Memory goes from the source to the target. Back come a few bytes, and neither frames of
        // full size nor slots that the network holds on to are worth their locked memory there.
        let (zero_copy, slots, frame_bytes) = match role {
            Role::Source => (config.zero_copy, config.slots_per_lane, frame_bytes),
            Role::Target => (ZeroCopy::Off, 2, FRAME_BYTES_MIN),
        };
        let pool = Pool::new(slots, frame_bytes)?;
        let engine = engine::open_for_sends(&EngineSetup {
            choice: config.engine,
            zero_copy,
            sqpoll: false,
            pool: &pool,
            register: false,
            callers: Callers::One,
            from: self.local_endpoint(local),
            to: Endpoint::of_lane(lane, self.number),
        })?;
        let mut sender = Sender::new(engine, pool, sealer, self.number);
        let ended = self.seal_all(&mut sender);
        let (.., engine) = sender.statistics();
        self.note(sender.frames(), 0, engine);
        ended.map_err(|error| self.blame(error, sender.frames()))
    }

    fn seal_all(&self, sender: &mut Sender) -> Result<()> {
        let mut bytes = 0;
        let mut at_end = false;
        while !at_end {
            let slot = self.free_slot(sender)?;
            sender.fill(slot, 0, Until::Some)?;
            let (mut slot, mut used) = filled(sender)?;
            at_end = used == Some(0);
            let mut frame_bytes = used.unwrap_or(0);
            // What comes while the network is busy goes into the same frame; where nothing comes,
            // what is there need not wait for more.
            while !at_end && !sender.can_send() && frame_bytes < sender.frame_bytes() {
                sender.fill(slot, frame_bytes, Until::Now)?;
                (slot, used) = filled(sender)?;
                let Some(more) = used else { break };
                at_end = more == 0;
                frame_bytes += more;
            }
            if frame_bytes == 0 {
                break;
            }
            // Sealed while the kernel may still take the frame before.
            let sealed = sender.seal_stream(slot, frame_bytes)?;
            self.taken(sender)?;
            sender.send_sealed(sealed)?;
            bytes += frame_bytes as u64;
            self.out_bytes.store(bytes, Ordering::Relaxed);
        }
        // Sockets of a process that is killed end as those that it closes do.
        if let Some(process) = self.process.as_ref().filter(|process| process.died()) {
            return Err(died(&self.name, process.id()));
        }
        let slot = self.free_slot(sender)?;
        self.taken(sender)?;
        let frames = sender.frames();
        sender.send_control(slot, Control::StreamEnd { frames, bytes }, &[])?;
        self.taken(sender)
    }

    /// A free slot, as soon as the network gives one back.
    fn free_slot(&self, sender: &mut Sender) -> Result<Slot> {
        loop {
            match sender.take_slot() {
                Some(slot) => return Ok(slot),
                None => self.wait(sender)?,
            }
        }
    }

    /// Waits until the kernel has what was sent.
    fn taken(&self, sender: &mut Sender) -> Result<()> {
        while !sender.can_send() {
            self.wait(sender)?;
        }
        Ok(())
    }

    /// Waits for the network. A cut ends that: it does not wake a wait for the slots of zero-copy
    /// sends, which the kernel keeps for as long as it sends again to a host that hangs.
    fn wait(&self, sender: &mut Sender) -> Result<()> {
        let done = sender.step(Some(Instant::now() + TICK))?;
        if done.is_none() && self.is_cut.load(Ordering::Acquire) {
            let lane = format!("lane {}", self.number);
            return Err(SystemError::from_errno("send", lane, libc::EPIPE).into());
        }
        Ok(())
    }

    /// What the other hypervisor wrote goes to this one, until it ended.
    fn inbound(
        &self,
        config: &Config,
        frame_bytes: usize,
        opener: Opener,
        (local, lane): (Arc<OwnedFd>, Arc<OwnedFd>),
    ) -> Result<()> {
        let pool = Pool::new(config.slots_per_lane, frame_bytes)?;
        let engine = engine::open(&EngineSetup {
            choice: config.engine,
            zero_copy: ZeroCopy::Off,
            sqpoll: false,
            pool: &pool,
            register: false,
            callers: Callers::One,
            from: Endpoint::of_lane(lane, self.number),
            to: self.local_endpoint(Arc::clone(&local)),
        })?;
        let mut receiver = StreamReceiver::new(engine, pool, opener, self.number, frame_bytes);
        let ended = self.open_all(&mut receiver, &local);
        let (_, _, frames, engine) = receiver.statistics();
        self.note(0, frames, engine);
        ended.map_err(|error| self.blame(error, frames))
    }

    fn open_all(&self, receiver: &mut StreamReceiver, local: &OwnedFd) -> Result<()> {
        loop {
            match receiver.next(false, None)? {
                StreamEvent::Data(range) => {
                    let bytes = range.len() as u64;
                    let slot = loop {
                        receiver.wait_sent(None)?;
                        if let Some(slot) = receiver.take() {
                            break slot;
                        }
                    };
                    receiver.send(slot, range)?;
                    self.into_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                StreamEvent::End => {
                    receiver.wait_sent(None)?;
                    engine::shutdown_one(local, Shutdown::Write);
                    return Ok(());
                }
                StreamEvent::Sent | StreamEvent::Nothing => {}
                StreamEvent::Cancelled(reason) => return Err(ended_by_peer(&reason)),
                StreamEvent::Control(_) | StreamEvent::Closed => {
                    return Err(protocol("no word of a stream on a channel"));
                }
            }
        }
    }

    fn local_endpoint(&self, socket: Arc<OwnedFd>) -> Endpoint {
        Endpoint::of_hypervisor(socket, Arc::clone(&self.name))
    }

    fn note(&self, out: u64, into: u64, engine: EngineStatistics) {
        let (out_sum, into_sum, sum) = &mut *lock(&self.figures);
        *out_sum += out;
        *into_sum += into;
        sum.system_calls += engine.system_calls;
        sum.zero_copy_kept += engine.zero_copy_kept;
        sum.zero_copy_copied += engine.zero_copy_copied;
    }

    /// Whose fault a broken connection is: the other end's, or this hypervisor's.
    fn blame(&self, error: Error, frames: u64) -> Error {
        match error {
            Error::System(e) if e.subject == *self.name => {
                let gone = matches!(e.errno, libc::EPIPE | libc::ECONNRESET);
                let remedy = "the hypervisor closed it while bytes were still to pass: see its log";
                if gone { e.remedy(remedy).into() } else { e.into() }
            }
            error => blame(error, self.number, frames),
        }
    }
}

fn died(channel: &str, process: i32) -> Error {
    SystemError::from_errno("migrate", channel, 0)
        .remedy(format!(
            "the hypervisor there, process {process}, ended before its migration: see its log"
        ))
        .into()
}

/// What the last [`Sender::fill`] came to: bytes, 0 at the end; none where nothing was there.
fn filled(sender: &mut Sender) -> Result<(Slot, Option<usize>)> {
    loop {
        match sender.step(None)? {
            Some(Done::Received { slot, bytes }) => return Ok((slot, Some(bytes))),
            Some(Done::Empty { slot }) => return Ok((slot, None)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;
    use crate::config::EngineChoice;
    use crate::seal::{Direction, KeyLimits, Provider, SessionSecret};

    const FRAME_BYTES: usize = 64 << 10;

    fn sealer() -> Sealer {
        let secret = SessionSecret::new(b"a", b"b");
        let secret = secret.lane_secret(Direction::FromSource, 1, 0, &[0; 32], &[0; 32]);
        Sealer::new(Provider::AwsLc, secret, KeyLimits::default(), 1)
    }

    /// Fills a lane whose other end takes nothing, cuts it, and waits for a slot.
    fn cut_while_the_network_holds_all() -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        setsockopt(&listener, sockopt::RcvBuf, &4096).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        setsockopt(&near, sockopt::SndBuf, &(4 * FRAME_BYTES)).unwrap();
        let (far, _) = listener.accept().unwrap();
        let lane: Arc<OwnedFd> = Arc::new(near.into());
        let local: Arc<OwnedFd> = Arc::new(UnixStream::pair().unwrap().0.into());
        let channel = Channel {
            number: 1,
            name: "channel 1".into(),
            process: None,
            sockets: Mutex::new(Some([Arc::clone(&local), Arc::clone(&lane)])),
            is_cut: AtomicBool::new(false),
            out_bytes: AtomicU64::new(0),
            into_bytes: AtomicU64::new(0),
            open_halves: AtomicU8::new(2),
            figures: Mutex::default(),
        };
        let pool = Pool::new(2, FRAME_BYTES).unwrap();
        let engine = engine::open(&EngineSetup {
            choice: EngineChoice::Uring,
            zero_copy: ZeroCopy::Auto,
            sqpoll: false,
            pool: &pool,
            register: true,
            callers: Callers::One,
            from: channel.local_endpoint(local),
            to: Endpoint::of_lane(lane, 1),
        });
        let mut sender = Sender::new(engine.unwrap(), pool, sealer(), 1);
        for _ in 0..2 {
            let slot = channel.free_slot(&mut sender).unwrap();
            let sealed = sender.seal_stream(slot, FRAME_BYTES).unwrap();
            sender.send_sealed(sealed).unwrap();
            channel.taken(&mut sender).unwrap();
        }
        channel.cut();
        let error = channel.free_slot(&mut sender).err().unwrap();
        drop(far); // now they come back
        channel.blame(error, sender.frames())
    }

    #[test]
    fn a_cut_ends_a_wait_for_slots_that_the_network_holds() {
        let (told, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(cut_while_the_network_holds_all().to_string()));
        let error = ended.recv_timeout(Duration::from_secs(10)).expect("it waits");
        assert!(error.contains("lane 1: the other end closed the connection"), "{error}");
    }
}
