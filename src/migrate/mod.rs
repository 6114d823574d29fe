//! Migrations as a caller sees them: sockets, threads and clocks around [`crate::session`].
//!
//! [`dial`] and [`crate::Listener::accept`] give authenticated lanes; [`Source`] and [`Target`]
//! drive them.
#![forbid(unsafe_code)]

mod lanes;
mod source;
mod source_lane;
mod target;
mod target_lane;

pub use lanes::{Lanes, dial};
pub use source::{RoundReport, Source, SourceReport};
pub use target::{Target, TargetReport};

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::cancel::{Canceller, spawn};
use crate::engine::{self, EngineStatistics};
use crate::error::{CancelledBy, Error, FirstError, PeerError, Result, SystemError, panicked};
use crate::lane::Lane;

/// How often a wait looks whether somebody cancelled.
const TICK: Duration = Duration::from_millis(100);
/// How often an idle end says that it is alive: some times in the shortest `peer_timeout`.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// What the other end may have said before the caller listens: an honest one says one thing and
/// waits.
const EVENTS: usize = 16;
/// How long a cancel may take to be sent before the connections are cut.
const GRACE: Duration = Duration::from_millis(500);

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
    error: FirstError,
    sockets: Vec<Arc<OwnedFd>>,
    cancel: Canceller,
    /// The source has let go: a cancel comes too late.
    let_go: AtomicBool,
    /// Everything was said: what goes wrong from here on is no failure.
    over: AtomicBool,
    progress: Progress,
}

/// How far an end is, to look at from any thread, also after the end is gone. Clones are the same
/// counters. They only grow; each is read by itself, so that together they may be of moments that
/// differ.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    data_pages: AtomicU64,
    zero_pages: AtomicU64,
    rounds: AtomicU64,
}

impl Progress {
    /// Pages of all rounds and lanes, zero pages too.
    pub fn pages(&self) -> u64 {
        self.data_pages() + self.zero_pages()
    }

    /// Those whose content was carried.
    pub fn data_pages(&self) -> u64 {
        self.0.data_pages.load(Ordering::Relaxed)
    }

    /// Those that were zero, of which only the number was carried.
    pub fn zero_pages(&self) -> u64 {
        self.0.zero_pages.load(Ordering::Relaxed)
    }

    /// Rounds whose pages the target has placed.
    pub fn rounds(&self) -> u64 {
        self.0.rounds.load(Ordering::Relaxed)
    }

    fn add(&self, data_pages: u64, zero_pages: u64) {
        self.0.data_pages.fetch_add(data_pages, Ordering::Relaxed);
        self.0.zero_pages.fetch_add(zero_pages, Ordering::Relaxed);
    }

    fn round_placed(&self) {
        self.0.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn new(lanes: &[Lane], cancel: &Canceller) -> Arc<Self> {
        Arc::new(Self {
            stop: AtomicBool::new(false),
            error: FirstError::default(),
            sockets: lanes.iter().map(|lane| Arc::clone(&lane.socket)).collect(),
            cancel: cancel.clone(),
            let_go: AtomicBool::new(false),
            over: AtomicBool::new(false),
            progress: Progress::default(),
        })
    }

    /// Looks whether somebody cancelled or a thread failed.
    fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() && !self.let_go.load(Ordering::Acquire) {
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
    /// that the other end gave up, and why stands behind what is still to be read. And a cancel of
    /// this end may cross a HANDOVER, which must be heard, or the guest would run nowhere. So the
    /// reader reads to the end then, for a while. `stopped_at` is the reader's own memory.
    fn reads_on(&self, stopped_at: &mut Option<Instant>) -> bool {
        if !self.stopped() {
            return true;
        }
        let since = stopped_at.get_or_insert_with(Instant::now).elapsed();
        since < GRACE && self.error.may_be_explained()
    }

    /// The first error is the one that is reported; everybody stops.
    fn fail(&self, error: Error) {
        self.note(error);
        self.stop.store(true, Ordering::Release);
    }

    /// Keeps an error without stopping anybody yet.
    fn note(&self, error: Error) {
        self.error.note(error);
    }

    fn reason(&self) -> String {
        self.error.reason()
    }

    fn take_error(&self) -> Error {
        self.error.take()
    }

    fn cut(&self) {
        self.sockets.iter().for_each(|socket| engine::shutdown(socket));
    }
}

/// Hands what the other end said to the caller's thread. A full queue is no place to wait at.
fn tell<T>(events: &crossbeam::channel::Sender<T>, event: T) -> Result<()> {
    match events.try_send(event) {
        Err(error) if error.is_full() => {
            Err(PeerError::Protocol("it talks and does not listen".to_owned()).into())
        }
        // Whoever does not listen any more has an error of its own.
        _ => Ok(()),
    }
}

/// Where the other threads of an end learn that this one panicked.
struct Alarm(Arc<Shared>);

/// The threads of one end. None outlives it, whichever way it ends.
struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<LaneStatistics>>,
    figures: Vec<LaneStatistics>,
}

impl Threads {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), handles: Vec::new(), figures: Vec::new() }
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() -> LaneStatistics + Send + 'static,
    ) -> Result<()> {
        let alarm = Alarm(Arc::clone(&self.shared));
        let run = move || {
            let _alarm = alarm;
            run()
        };
        let thread = spawn(name.clone(), run);
        self.handles.push(thread.map_err(|e| SystemError::from_io("clone", name, &e))?);
        Ok(())
    }

    /// Stops and joins them; their figures, in the order in which they were made.
    fn end(&mut self) -> Vec<LaneStatistics> {
        self.figures.extend(self.shared.end(std::mem::take(&mut self.handles)));
        self.figures.clone()
    }

    /// Whether the thread that was made first has ended: lane 0's.
    fn first_is_finished(&self) -> bool {
        self.handles.first().is_none_or(JoinHandle::is_finished)
    }

    /// The next thing that the other end said. It goes before what happened since, or happened
    /// elsewhere: HANDOVER counts though the connections ended behind it.
    fn hear<T>(&mut self, events: &Receiver<T>) -> Result<T> {
        loop {
            if let Ok(event) = events.try_recv() {
                return Ok(event);
            }
            if let Err(error) = self.shared.check() {
                self.end(); // the reader has read to the end then
                return events.try_recv().map_err(|_| error);
            }
            match events.recv_timeout(TICK) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {}
                // The reader ended: its error is on its way.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(panicked());
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::bounded;

    fn closed() -> Error {
        PeerError::Closed { lane: 1, phase: "in a test", frames: 0 }.into()
    }

    #[test]
    fn what_was_said_goes_before_a_lane_that_closed_or_a_cancel_that_crossed_it() {
        let cancelled = || Error::Cancelled { by: CancelledBy::Us };
        let failed = || Error::Misuse("a full disk".to_owned());
        for (error, heard) in [(closed(), true), (cancelled(), true), (failed(), false)] {
            let shared = Shared::new(&[], &Canceller::default());
            let mut threads = Threads::new(&shared);
            let (said, events) = bounded(EVENTS);
            let ours = Arc::clone(&shared);
            // As lane 0's reader: the session stops before HANDOVER is read here.
            threads
                .spawn("reader".to_owned(), move || {
                    while !ours.stopped() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    if ours.reads_on(&mut None) {
                        tell(&said, "HANDOVER").unwrap();
                    }
                    LaneStatistics::default()
                })
                .unwrap();
            let expected = error.to_string();
            shared.fail(error);
            assert_eq!(threads.hear(&events).is_ok(), heard, "{expected}");
            assert!(threads.hear(&events).is_err(), "after that the session is over");
            assert_eq!(shared.take_error().to_string(), expected);
        }
    }

    #[test]
    fn the_first_error_stays_unless_the_other_end_says_why_it_closed() {
        let shared = Shared::new(&[], &Canceller::default());
        shared.fail(closed());
        shared.fail(Error::Misuse("later".to_owned()));
        shared.fail(Error::Cancelled { by: CancelledBy::Peer });
        shared.fail(PeerError::Refused("later still".to_owned()).into());
        assert!(matches!(shared.take_error(), Error::Cancelled { by: CancelledBy::Peer }));
    }

    #[test]
    fn a_peer_that_talks_on_is_a_protocol_error_and_a_panic_stops_the_session() {
        let (said, events) = bounded(1);
        tell(&said, 1).unwrap();
        assert!(matches!(tell(&said, 2), Err(Error::Peer(PeerError::Protocol(_)))));
        drop(events);
        tell(&said, 3).unwrap();

        let shared = Shared::new(&[], &Canceller::default());
        let mut threads = Threads::new(&shared);
        threads.spawn("bug".to_owned(), || panic!("this test's own")).unwrap();
        while !shared.stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
        threads.end();
        assert!(shared.take_error().to_string().contains("a bug of this crate"));
    }
}
