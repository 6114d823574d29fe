//! Migrations as a caller sees them: sockets, threads and clocks around [`crate::session`].
//!
//! `establish` makes authenticated lanes; [`Source`] and [`Target`] drive them.
#![forbid(unsafe_code)]

mod establish;
mod source;
mod source_lane;
mod target;
mod target_lane;

pub use establish::{Lanes, Listener, dial};
pub use source::{RoundReport, Source, SourceReport};
pub use target::{Target, TargetReport};

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::{self, EngineStatistics};
use crate::error::{CancelledBy, Error, PeerError, Result};
use crate::lane::Lane;

/// How often a wait looks whether somebody cancelled.
const TICK: Duration = Duration::from_millis(100);
/// How often an idle end says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a cancel may take to be sent before the connections are cut.
const GRACE: Duration = Duration::from_millis(500);

/// Ends a migration from any thread, at any time. Clones are the same handle.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Asks for the end: the call that is going on returns [`Error::Cancelled`] soon, and the
    /// other end learns of it. After the handover it comes too late and does nothing.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a lane did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStatistics {
    /// Frames on this lane.
    pub frames: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Pages whose content was carried.
    pub data_pages: u64,
    /// Pages that were zero.
    pub zero_pages: u64,
    /// Waits for the network (source) or the disk (target).
    pub stalls: u64,
    /// The key's epoch at the end.
    pub epoch: u64,
    /// The engine's figures.
    pub engine: EngineStatistics,
}

/// What all threads of one end share: whether to stop, and why.
struct Shared {
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
    sockets: Vec<Arc<OwnedFd>>,
    cancel: Canceller,
    /// Everything was said: what goes wrong from here on is no failure.
    over: AtomicBool,
    progress: Progress,
}

/// Pages carried so far, to look at from any thread. Clones are the same counter.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Pages of all rounds and lanes, zero pages too.
    pub fn pages(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, pages: u64) {
        self.0.fetch_add(pages, Ordering::Relaxed);
    }
}

impl Shared {
    fn new(lanes: &[Lane], cancel: &Canceller) -> Arc<Self> {
        Arc::new(Self {
            stop: AtomicBool::new(false),
            error: Mutex::new(None),
            sockets: lanes.iter().map(|lane| Arc::clone(&lane.socket)).collect(),
            cancel: cancel.clone(),
            over: AtomicBool::new(false),
            progress: Progress::default(),
        })
    }

    /// Looks whether somebody cancelled or a thread failed.
    fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            self.fail(Error::Cancelled { by: CancelledBy::Us });
        }
        if self.stopped() { Err(Error::Cancelled { by: CancelledBy::Us }) } else { Ok(()) }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Stops every thread, gives the cancel its time to leave, cuts, and collects.
    fn end(&self, threads: Vec<JoinHandle<LaneStatistics>>) -> Vec<LaneStatistics> {
        self.stop.store(true, Ordering::Release);
        let deadline = Instant::now() + GRACE;
        while !self.is_over()
            && Instant::now() < deadline
            && !threads.iter().all(JoinHandle::is_finished)
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.cut();
        let ended = threads.into_iter().map(JoinHandle::join);
        ended.map(|statistics| statistics.unwrap_or_default()).collect()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether the reader of lane 0 goes on. A lane that was closed may be the end of a session
    /// that the other end gave up, and why stands behind what is still to be read; so the reader
    /// reads to the end then, for a while. `stopped_at` is the reader's own memory.
    fn reads_on(&self, stopped_at: &mut Option<Instant>) -> bool {
        if !self.stopped() {
            return true;
        }
        let since = stopped_at.get_or_insert_with(Instant::now).elapsed();
        let error = self.error.lock().expect("no panic while it is held");
        since < GRACE && matches!(&*error, Some(Error::Peer(PeerError::Closed { .. })))
    }

    /// The first error is the one that is reported; everybody stops.
    fn fail(&self, error: Error) {
        self.note(error);
        self.stop.store(true, Ordering::Release);
    }

    /// Keeps an error without stopping anybody yet. The first one stays, but for a lane that was
    /// closed: what the other end said of it is the better answer, whichever thread was faster.
    fn note(&self, error: Error) {
        tracing::debug!(%error, "a part of the session failed");
        let mut first = self.error.lock().expect("no panic while it is held");
        let said = matches!(
            error,
            Error::Cancelled { by: CancelledBy::Peer } | Error::Peer(PeerError::Refused(_))
        );
        match &*first {
            Some(Error::Peer(PeerError::Closed { .. })) if said => *first = Some(error),
            Some(_) => {}
            None => *first = Some(error),
        }
    }

    /// What the other end is told where this one fails.
    fn reason(&self) -> String {
        match &*self.error.lock().expect("no panic while it is held") {
            Some(Error::Cancelled { .. }) | None => String::new(),
            // A peer that broke the rules or went away need not hear about it.
            Some(Error::Peer(_) | Error::Unseal { .. }) => "protocol error".to_owned(),
            Some(error) => error.to_string(),
        }
    }

    fn take_error(&self) -> Error {
        let error = self.error.lock().expect("no panic while it is held").take();
        error.unwrap_or(Error::Cancelled { by: CancelledBy::Us })
    }

    fn cut(&self) {
        self.sockets.iter().for_each(|socket| engine::shutdown(socket));
    }
}

/// A CANCEL or REFUSE of the other end, with its words.
fn ended_by_peer(payload: &[u8]) -> Error {
    if payload.is_empty() {
        return Error::Cancelled { by: CancelledBy::Peer };
    }
    let text: String =
        String::from_utf8_lossy(payload).chars().filter(|c| !c.is_control()).collect();
    PeerError::Refused(text).into()
}

/// The reason, cut to what a frame may carry.
fn reason_bytes(text: &str) -> &[u8] {
    let mut end = text.len().min(crate::wire::REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

/// A limit of bytes per second that several threads keep together.
struct Bandwidth {
    bytes_per_s: u64,
    free_at: Mutex<Instant>,
}

impl Bandwidth {
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, free_at: Mutex::new(Instant::now()) }
    }

    /// When so many bytes may be sent; none for now.
    fn reserve(&self, bytes: usize) -> Option<Instant> {
        if self.bytes_per_s == 0 {
            return None;
        }
        let mut free_at = self.free_at.lock().expect("no panic while it is held");
        let start = (*free_at).max(Instant::now());
        *free_at = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        Some(start)
    }
}
