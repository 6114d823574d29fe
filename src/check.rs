//! Meeting the other end without moving a guest: what a migration would use, and what the way
//! between the hosts gives.
//!
//! ```text
//!  dialler                                       listener
//!    | -- facts --------------------------------> |
//!    | <---------------------------------- facts -|
//!    | -- ping, some times; pong <--------------- |  round-trip time
//!    | == 1 s of frames, each lane =============> |  throughput, then the other way
//! ```
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cancel::{Canceller, spawn};
use crate::config::Config;
use crate::error::{Error, PeerError, Result, SystemError, panicked};
use crate::establish::{Dial, Listener, Use};
use crate::stream::{Stream, Streams};
use crate::trust::Trust;
use crate::wire::{Role, VERSION};

/// Most bytes of what one end tells of itself.
pub const FACTS_BYTES_MAX: usize = 64 << 10;
const PINGS: usize = 20;
/// How long each direction is measured.
const MEASURED: Duration = Duration::from_secs(1);
const PIECE_BYTES: usize = 1 << 20;
/// How often it is looked whether somebody cancelled.
const TICK: Duration = Duration::from_millis(50);
/// Ends what is measured.
const END: u32 = u32::MAX;

/// What was found.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub struct CheckReport {
    /// What the other end told of itself, authenticated: the text that its caller gave.
    pub peer_facts: String,
    /// What both ends know each other by, in words.
    pub trust: String,
    /// Version of the protocol.
    pub protocol: u8,
    /// Who seals at this end.
    pub provider: &'static str,
    /// Lanes that were measured at once.
    pub lanes: u16,
    /// Bytes of a full frame's payload.
    pub frame_bytes: usize,
    /// Shortest of some round trips of a small message, sealed.
    pub round_trip: Duration,
    /// Sends of this end of which the kernel reports that it did not copy them.
    pub zero_copy_kept: u64,
    /// Zero-copy sends that it copied after all.
    pub zero_copy_copied: u64,
    /// Bytes per second from this end to the other, sealed, of all lanes.
    pub sent_bytes_per_s: f64,
    /// Bytes per second from the other end to this.
    pub received_bytes_per_s: f64,
}

/// Dials an end that waits in [`accept`]. `facts` is what that end is told of this one.
///
/// # Errors
///
/// As [`crate::dial`]; [`Error::Misuse`] where `facts` exceed [`FACTS_BYTES_MAX`].
pub fn dial(
    dial: &Dial,
    role: Role,
    trust: impl Into<Trust>,
    facts: &str,
    config: &Config,
    cancel: &Canceller,
) -> Result<CheckReport> {
    check_facts(facts)?;
    let trust = trust.into();
    let (streams, lane) = Streams::dial_lane(dial, role, Use::Check, &trust, config, cancel)?;
    let lanes = Lanes::new(streams.stream(lane)?, cancel)?;
    let run = || {
        let peer_facts = exchange(&lanes.first(), &with_lanes(facts, config.lanes), true)?;
        let (peer_facts, _) = lanes_of(&peer_facts)?;
        let round_trip = ping(&lanes.first())?;
        while lanes.count() < config.lanes {
            lanes.add(streams.dial_next(cancel)?);
        }
        let sent = lanes.each(send)?;
        let received = lanes.each(receive)?;
        lanes.finish()?;
        Ok(report(&streams, &trust, &lanes, peer_facts, round_trip, (sent, received)))
    };
    run().map_err(|error| lanes.blame(error))
}

/// Waits for one that dials. The dialler decides how many lanes are measured.
///
/// # Errors
///
/// As [`Listener::accept`]; what the check itself fails with.
pub fn accept(
    listener: &Listener,
    role: Role,
    trust: impl Into<Trust>,
    facts: &str,
    config: &Config,
    cancel: &Canceller,
) -> Result<CheckReport> {
    check_facts(facts)?;
    let trust = trust.into();
    let ours = || Ok(trust.clone());
    let (streams, lane) = listener.accept_lane(role, Use::Check, &ours, config, cancel)?;
    let lanes = Lanes::new(streams.stream(lane)?, cancel)?;
    let run = || {
        let peer_facts = exchange(&lanes.first(), &with_lanes(facts, config.lanes), false)?;
        let (peer_facts, count) = lanes_of(&peer_facts)?;
        let round_trip = pong(&lanes.first())?;
        let deadline = Instant::now() + config.handshake_timeout;
        while lanes.count() < count {
            let next = streams.next_lane_until(cancel, || Instant::now() >= deadline)?;
            let text = "further lanes did not come in the time of the handshake";
            let next = next.ok_or_else(|| PeerError::Protocol(text.to_owned()))?;
            lanes.add(streams.stream(next)?);
        }
        let received = lanes.each(receive)?;
        let sent = lanes.each(send)?;
        lanes.finish()?;
        Ok(report(&streams, &trust, &lanes, peer_facts, round_trip, (sent, received)))
    };
    run().map_err(|error| lanes.blame(error))
}

fn report(
    streams: &Streams,
    trust: &Trust,
    lanes: &Lanes,
    peer_facts: String,
    round_trip: Duration,
    (sent_bytes_per_s, received_bytes_per_s): (f64, f64),
) -> CheckReport {
    let engines = lanes.shared.streams().iter().map(|s| s.statistics().engine).collect::<Vec<_>>();
    CheckReport {
        peer_facts,
        trust: trust.to_string(),
        protocol: VERSION,
        provider: streams.provider(),
        lanes: lanes.count(),
        zero_copy_kept: engines.iter().map(|engine| engine.zero_copy_kept).sum(),
        zero_copy_copied: engines.iter().map(|engine| engine.zero_copy_copied).sum(),
        frame_bytes: streams.frame_bytes(),
        round_trip,
        sent_bytes_per_s,
        received_bytes_per_s,
    }
}

fn check_facts(facts: &str) -> Result<()> {
    match facts.len() <= FACTS_BYTES_MAX - 2 {
        true => Ok(()),
        false => Err(Error::Misuse(format!("facts of {} bytes, too many", facts.len()))),
    }
}

/// The number of lanes goes before the facts.
fn with_lanes(facts: &str, lanes: u16) -> Vec<u8> {
    [&lanes.to_le_bytes(), facts.as_bytes()].concat()
}

fn lanes_of(bytes: &[u8]) -> Result<(String, u16)> {
    let broken = || PeerError::Protocol("its facts are no text".to_owned());
    let (lanes, facts) = bytes.split_first_chunk().ok_or_else(broken)?;
    let lanes = u16::from_le_bytes(*lanes);
    let fits = (1..=crate::config::LANES_MAX).contains(&lanes);
    let text = String::from_utf8(facts.to_vec()).ok().filter(|_| fits).ok_or_else(broken)?;
    Ok((text, lanes))
}

/// Tells and hears `u32 bytes | bytes`.
fn exchange(stream: &Stream, ours: &[u8], first: bool) -> Result<Vec<u8>> {
    if first {
        tell(stream, ours)?;
    }
    let mut bytes = [0; 4];
    read(stream, &mut bytes)?;
    let bytes = u32::from_le_bytes(bytes) as usize;
    if bytes > FACTS_BYTES_MAX {
        return Err(PeerError::Protocol(format!("facts of {bytes} bytes")).into());
    }
    let mut theirs = vec![0; bytes];
    read(stream, &mut theirs)?;
    if !first {
        tell(stream, ours)?;
    }
    Ok(theirs)
}

fn tell(stream: &Stream, bytes: &[u8]) -> Result<()> {
    write(stream, &[&(bytes.len() as u32).to_le_bytes(), bytes].concat())
}

fn ping(stream: &Stream) -> Result<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..PINGS {
        let begin = Instant::now();
        write(stream, &[1])?;
        read(stream, &mut [0])?;
        shortest = shortest.min(begin.elapsed());
    }
    Ok(shortest)
}

/// Answers, and measures the answers to its answers.
fn pong(stream: &Stream) -> Result<Duration> {
    let mut shortest = Duration::MAX;
    let mut answered: Option<Instant> = None;
    for _ in 0..PINGS {
        read(stream, &mut [0])?;
        shortest = answered.map_or(shortest, |at| shortest.min(at.elapsed()));
        answered = Some(Instant::now());
        write(stream, &[1])?;
    }
    Ok(shortest)
}

/// A second of frames; their rate, once the other end has seen all come.
fn send(stream: &Stream) -> Result<f64> {
    let piece = vec![0xA5; PIECE_BYTES];
    let (begin, mut sent) = (Instant::now(), 0_u64);
    while begin.elapsed() < MEASURED {
        write(stream, &(PIECE_BYTES as u32).to_le_bytes())?;
        write(stream, &piece)?;
        sent += PIECE_BYTES as u64;
    }
    write(stream, &END.to_le_bytes())?;
    let mut came = [0; 8];
    read(stream, &mut came)?;
    if u64::from_le_bytes(came) != sent {
        return Err(PeerError::Protocol("it counts other bytes than were sent".to_owned()).into());
    }
    Ok(sent as f64 / begin.elapsed().as_secs_f64())
}

fn receive(stream: &Stream) -> Result<f64> {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut begin, mut came) = (None, 0_u64);
    loop {
        let mut bytes = [0; 4];
        read(stream, &mut bytes)?;
        let begin = begin.get_or_insert_with(Instant::now);
        match u32::from_le_bytes(bytes) {
            END => {
                let rate = came as f64 / begin.elapsed().as_secs_f64();
                write(stream, &came.to_le_bytes())?;
                return Ok(rate);
            }
            bytes if bytes as usize <= PIECE_BYTES => {
                read(stream, &mut piece[..bytes as usize])?;
                came += u64::from(bytes);
            }
            bytes => {
                return Err(PeerError::Protocol(format!("a piece of {bytes} bytes")).into());
            }
        }
    }
}

/// The lanes of a check, and a thread that cuts them where somebody cancels.
struct Lanes {
    shared: Arc<Shared>,
    watch: Option<JoinHandle<()>>,
}

struct Shared {
    streams: Mutex<Vec<Arc<Stream>>>,
    cancel: Canceller,
    over: AtomicBool,
}

impl Lanes {
    fn new(first: Stream, cancel: &Canceller) -> Result<Self> {
        let streams = Mutex::new(vec![Arc::new(first)]);
        let over = AtomicBool::new(false);
        let shared = Arc::new(Shared { streams, cancel: cancel.clone(), over });
        let watched = Arc::clone(&shared);
        let watch = move || {
            while !watched.over.load(Ordering::Acquire) {
                if watched.cancel.is_cancelled() {
                    watched.streams().iter().for_each(|stream| stream.cancel("cancelled"));
                    return;
                }
                std::thread::park_timeout(TICK);
            }
        };
        Ok(Self { shared, watch: Some(thread(watch)?) })
    }

    fn first(&self) -> Arc<Stream> {
        Arc::clone(&self.shared.streams()[0])
    }

    fn count(&self) -> u16 {
        self.shared.streams().len() as u16
    }

    fn add(&self, stream: Stream) {
        self.shared.streams().push(Arc::new(stream));
    }

    /// The same on every lane at once, a thread each; the sum of what they give.
    fn each(&self, run: fn(&Stream) -> Result<f64>) -> Result<f64> {
        let streams = self.shared.streams().clone();
        let begin = |stream: Arc<Stream>| thread(move || run(&stream));
        let threads: Vec<_> = streams.into_iter().map(begin).collect();
        let mut sum = Ok(0.0);
        for thread in threads {
            let rate = thread.and_then(|thread| thread.join().map_err(|_| panicked())?);
            sum = sum.and_then(|sum| Ok(sum + rate?));
        }
        sum
    }

    /// Both ends end every lane, so that nothing is cut.
    fn finish(&self) -> Result<()> {
        let streams = self.shared.streams().clone();
        for stream in &streams {
            stream.shutdown(Shutdown::Write).map_err(inner)?;
        }
        for stream in streams {
            let mut byte = [0];
            if stream.read_vectored(&mut [IoSliceMut::new(&mut byte)]).map_err(inner)? != 0 {
                return Err(PeerError::Protocol("it goes on after the check".to_owned()).into());
            }
        }
        Ok(())
    }

    /// What is said of an error: a cancel of this end breaks the lanes.
    fn blame(&self, error: Error) -> Error {
        self.shared.cancel.check().err().unwrap_or(error)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            let _ = watch.join(); // it has nothing to tell
        }
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, Vec<Arc<Stream>>> {
        self.streams.lock().expect("no panic while it is held")
    }
}

fn thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    const NAME: &str = "sealane-check";
    Ok(spawn(NAME.to_owned(), run).map_err(|e| SystemError::from_io("clone", NAME, &e))?)
}

fn read(stream: &Stream, mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        let came = stream.read_vectored(&mut [IoSliceMut::new(bytes)]).map_err(inner)?;
        if came == 0 {
            return Err(PeerError::Protocol("it ended the check too early".to_owned()).into());
        }
        bytes = &mut bytes[came..];
    }
    Ok(())
}

fn write(stream: &Stream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = stream.write_vectored(&[IoSlice::new(bytes)]).map_err(inner)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// The library's error inside std's.
fn inner(error: std::io::Error) -> Error {
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(error) => error.clone(),
        None => PeerError::Protocol(format!("the check ended too early: {error}")).into(),
    }
}
