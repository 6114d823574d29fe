//! What the threads of one end of a tunnel share.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::GRACE;
use super::channel::Channel;
use super::control::Voice;
use crate::cancel::{Canceller, spawn};
use crate::engine;
use crate::error::{Error, FirstError, Result, SystemError, panicked};

pub(super) struct Shared {
    pub(super) voice: Voice,
    pub(super) cancel: Canceller,
    control: Arc<OwnedFd>,
    error: FirstError,
    stopped: AtomicBool,
    peer_ended: AtomicBool,
    /// Channels that the source's end has asked for.
    wanted: AtomicUsize,
    /// Readable since something happened that the serving thread waits for.
    changed: EventFd,
    channels: Mutex<Vec<Arc<Channel>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    pub(super) fn new(
        voice: Voice,
        control: Arc<OwnedFd>,
        cancel: &Canceller,
    ) -> Result<Arc<Self>> {
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| SystemError::from_errno("eventfd", "tunnel", e as i32))?;
        Ok(Arc::new(Self {
            voice,
            cancel: cancel.clone(),
            control,
            error: FirstError::default(),
            stopped: AtomicBool::new(false),
            peer_ended: AtomicBool::new(false),
            wanted: AtomicUsize::new(0),
            changed,
            channels: Mutex::default(),
            threads: Mutex::default(),
        }))
    }

    /// A thread of this end; its error ends the tunnel, a panic too.
    pub(super) fn spawn(
        self: &Arc<Self>,
        name: String,
        run: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let alarm = Alarm(Arc::clone(self));
        let run = move || {
            if let Err(error) = run(&alarm.0) {
                alarm.0.fail(error);
            }
            alarm.0.wake();
        };
        let thread = spawn(name.clone(), run);
        let thread = thread.map_err(|e| SystemError::from_io("clone", name, &e))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// One more channel; it is cut at once where the tunnel has failed meanwhile.
    pub(super) fn add(&self, channel: &Arc<Channel>) {
        lock(&self.channels).push(Arc::clone(channel));
        if self.is_stopped() {
            channel.cut();
        }
    }

    pub(super) fn channels(&self) -> Vec<Arc<Channel>> {
        lock(&self.channels).clone()
    }

    /// Ends the tunnel: both hypervisors see their channels end, and the other end hears why.
    pub(super) fn fail(&self, error: Error) {
        self.error.note(error);
        if self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        self.channels().iter().for_each(|channel| channel.cut());
        if !self.error.is_said() {
            self.voice.cancel(&self.error.reason());
        }
        self.wake();
    }

    /// Whether it still goes on; a cancel ends it.
    pub(super) fn check(&self) -> bool {
        if let Err(error) = self.cancel.check() {
            self.fail(error);
        }
        !self.is_stopped()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whether there were channels and none is open.
    pub(super) fn all_channels_ended(&self) -> bool {
        let channels = lock(&self.channels);
        !channels.is_empty() && channels.iter().all(|channel| channel.has_ended())
    }

    /// The other end has said its last word.
    pub(super) fn set_peer_ended(&self) {
        self.peer_ended.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn peer_ended(&self) -> bool {
        self.peer_ended.load(Ordering::Acquire)
    }

    /// The source's end wants so many channels, and wakes who dials.
    pub(super) fn want(&self, channels: u16) {
        self.wanted.fetch_max(channels.into(), Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn wanted(&self) -> usize {
        self.wanted.load(Ordering::Acquire)
    }

    /// All is well and both ends have said so.
    pub(super) fn is_agreed(&self) -> bool {
        self.peer_ended() && self.voice.has_ended() && !self.is_stopped()
    }

    /// Wakes the serving thread.
    pub(super) fn wake(&self) {
        let _ = self.changed.write(1); // it can only be readable already
    }

    /// What to poll, to be woken.
    pub(super) fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Sleeps no more for what happened until now.
    pub(super) fn heed(&self) {
        let _ = self.changed.read();
    }

    /// Joins every thread; the error where there was one.
    pub(super) fn end(&self) -> Result<()> {
        if self.is_stopped() {
            // What the other end says of it may be on its way: lane 0 is read on for a while.
            engine::shutdown_one(&self.control, Shutdown::Write);
            self.await_threads(|| self.error.may_be_explained());
        } else {
            // The dialler goes when it has the listener's last word, and says that it lives until
            // then. Closed with a heartbeat unread the connection would be reset, and a last word
            // that the network lost not be sent again.
            self.await_threads(|| true);
        }
        engine::shutdown(&self.control);
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            let _ = thread.join(); // its alarm has told
        }
        if self.is_stopped() { Err(self.error.take()) } else { Ok(()) }
    }

    /// Waits for a while that the threads end by themselves, as long as it is wanted.
    fn await_threads(&self, wanted: impl Fn() -> bool) {
        let deadline = Instant::now() + GRACE;
        while wanted()
            && Instant::now() < deadline
            && !lock(&self.threads).iter().all(JoinHandle::is_finished)
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Where the others learn that a thread panicked.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(panicked());
        }
    }
}

pub(super) fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
