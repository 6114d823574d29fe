//! Handshakes of streams for callers that may not wait: a thread of the library waits for them.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use sealane::Canceller;
use sealane::stream::{Stream, Streams};

use crate::error::undone;
use crate::fence::{Handle, Outcome, argument, call, destroy, give, int, opaque, place, with};
use crate::lanes::lock;
use crate::streams::{duplicate, role_of};
use crate::{Failure, sealane_config, sealane_stream, sealane_streams, sealane_trust};

/// A handshake under way. Any thread may use it.
pub struct sealane_handshake(Handle<Pending>);
opaque!(sealane_handshake, Pending);

/// This end connected the socket.
pub const SEALANE_SIDE_CONNECTED: c_int = 1;
/// This end accepted the connection.
pub const SEALANE_SIDE_ACCEPTED: c_int = 2;

type Made = Outcome<(Streams, Stream)>;

enum Step {
    UnderWay,
    Made(Box<Made>),
    Taken,
}

/// The thread that waits, and where it leaves what came.
pub struct Pending {
    cancel: Canceller,
    ready: Arc<EventFd>,
    made: Arc<Mutex<Step>>,
    thread: Option<JoinHandle<()>>,
}

impl Pending {
    fn start(run: impl FnOnce(&Canceller) -> Made + Send + 'static) -> Outcome<Self> {
        let ready = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| Failure(e as c_int, format!("eventfd: {e}")))?;
        let (cancel, ready) = (Canceller::default(), Arc::new(ready));
        let made = Arc::new(Mutex::new(Step::UnderWay));
        let (theirs, place, bell) = (cancel.clone(), Arc::clone(&made), Arc::clone(&ready));
        let thread = sealane::spawn("sealane hello".to_owned(), move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&theirs)));
            let bug = || {
                let text = "a bug of the library: the handshake's thread panicked";
                Err(Failure(crate::SEALANE_E_PANIC, text.to_owned()))
            };
            *lock(&place) = Step::Made(Box::new(done.unwrap_or_else(|_| bug())));
            let _ = bell.write(1); // its count is 0
        })?;
        Ok(Self { cancel, ready, made, thread: Some(thread) })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it cannot panic
        }
    }
}

/// As sealane_streams_open (`side` SEALANE_SIDE_CONNECTED) or sealane_streams_answer
/// (SEALANE_SIDE_ACCEPTED), and returns at once: see sealane_handshake_fd and
/// sealane_handshake_finish. A thread of the library waits meanwhile; it takes
/// no signals.
///
/// Returns 0; -EINVAL, -errno.
///
/// # Safety
///
/// The handles are alive, `config` may be null; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_handshake_start(
    side: c_int,
    fd: c_int,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    out: *mut *mut sealane_handshake,
) -> c_int {
    int(call(|| {
        place(out)?;
        let (side, role) = (side_of(side)?, role_of(role)?);
        // SAFETY: as this function's.
        let (trust, config) = unsafe { (argument(trust)?, crate::config::settings(config)?) };
        let (trust, socket) = (trust.clone(), duplicate(fd)?);
        let pending = Pending::start(move |cancel| {
            Ok(match side {
                Side::Connected => Streams::open(socket, role, &trust, &config, cancel),
                Side::Accepted => Streams::answer(socket, role, &trust, &config, cancel),
            }?)
        })?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, pending) };
        Ok(0)
    }))
}

/// As sealane_streams_join (SEALANE_SIDE_CONNECTED) or sealane_streams_admit
/// (SEALANE_SIDE_ACCEPTED), and returns at once, as sealane_handshake_start.
///
/// Returns 0; -EINVAL, -errno.
///
/// # Safety
///
/// `streams` is alive; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_handshake_join(
    side: c_int,
    streams: *const sealane_streams,
    fd: c_int,
    out: *mut *mut sealane_handshake,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(streams, |streams| {
            place(out)?;
            let (side, streams, socket) = (side_of(side)?, streams.clone(), duplicate(fd)?);
            let pending = Pending::start(move |cancel| {
                let stream = match side {
                    Side::Connected => streams.join(socket, cancel),
                    Side::Accepted => streams.admit(socket, cancel),
                };
                undone(stream).map(|stream| (streams, stream))
            })?;
            give(out, pending);
            Ok(0)
        })
    })
}

/// A descriptor that is readable (POLLIN) once the handshake is over, well or not. The handshake's:
/// do not close it.
///
/// Returns the descriptor, or -EINVAL.
///
/// # Safety
///
/// `handshake` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_handshake_fd(handshake: *const sealane_handshake) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(handshake, |pending| Ok(pending.ready.as_fd().as_raw_fd().into())) })
}

/// What the handshake came to. Both places get a handle of their own; `out_streams` may be NULL, as
/// for one that joined a session that is there.
///
/// Returns 0; -EINPROGRESS while it is under way; what sealane_streams_open and
/// sealane_streams_join return; -EINVAL where it was asked before and not under way.
///
/// # Safety
///
/// `handshake` is alive; `out_stream` may be written, `out_streams` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_handshake_finish(
    handshake: *const sealane_handshake,
    out_streams: *mut *mut sealane_streams,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(handshake, |pending| {
            place(out_stream)?;
            let mut step = lock(&pending.made);
            if matches!(*step, Step::UnderWay) {
                return Err(Failure(libc::EINPROGRESS, "the handshake is under way".to_owned()));
            }
            let Step::Made(made) = std::mem::replace(&mut *step, Step::Taken) else {
                return Err(Failure::invalid("the handshake was finished before"));
            };
            let (streams, stream) = (*made)?;
            if !out_streams.is_null() {
                give(out_streams, streams);
            }
            give(out_stream, stream);
            Ok(0)
        })
    })
}

/// Destroys a handshake and nulls the pointer; one that is under way is given up, which takes up to
/// 50 milliseconds. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `handshake` is null, or points to null or to a handshake that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_handshake_destroy(handshake: *mut *mut sealane_handshake) {
    // SAFETY: as this function's.
    unsafe { destroy(handshake) }
}

pub(crate) enum Side {
    Connected,
    Accepted,
}

pub(crate) fn side_of(side: c_int) -> Outcome<Side> {
    match side {
        SEALANE_SIDE_CONNECTED => Ok(Side::Connected),
        SEALANE_SIDE_ACCEPTED => Ok(Side::Accepted),
        _ => Err(Failure::invalid(format!("side {side}: SEALANE_SIDE_* is wanted"))),
    }
}
