//! Sessions of streams: handshakes and joins over connected sockets.

use std::ffi::{c_char, c_int};
use std::os::fd::{BorrowedFd, OwnedFd};

use sealane::stream::{Asks, Stream, Streams};
use sealane::{Canceller, Config, Role, Trust};

use crate::doctor::provider_name;
use crate::error::undone;
use crate::fence::{Handle, Outcome, argument, call, destroy, give, int, opaque, place, with};
use crate::lanes::lock;
use crate::{
    Failure, sealane_canceller, sealane_config, sealane_dialler, sealane_listener, sealane_stream,
    sealane_trust,
};

/// A session of streams: the first connection shows who is there, the others join it. Any
/// thread may use it; streams outlive it.
pub struct sealane_streams(Handle<Streams>);
opaque!(sealane_streams, Streams);

/// This end is the migration's source.
pub const SEALANE_ROLE_SOURCE: c_int = 1;
/// This end is the migration's target.
pub const SEALANE_ROLE_TARGET: c_int = 2;

/// The connection wants to open a session: sealane_streams_answer.
pub const SEALANE_ASKS_OPEN: c_int = 1;
/// The connection wants to join the session: sealane_streams_admit.
pub const SEALANE_ASKS_JOIN: c_int = 2;

/// Opens a session over a connected stream socket (TCP, AF_UNIX), as the end that connected it.
/// Waits until the other end has shown who it is, at most the settings'
/// handshake_timeout_ms. The descriptor is duplicated: close yours when you like, and leave the
/// socket's flags and options alone.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -SEALANE_E_NOT_AUTHENTICATED, -SEALANE_E_REFUSED, -SEALANE_E_CANCELLED,
/// -SEALANE_E_CONFIG, -errno. Nothing is made then.
///
/// # Safety
///
/// The handles are alive, or null where that is allowed; the places may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_open(
    fd: c_int,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out_streams: *mut *mut sealane_streams,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        begin(role, (trust, config, canceller), (out_streams, out_stream), |by| {
            Ok(Streams::open(duplicate(fd)?, by.role, by.trust, &by.config, &by.cancel)?)
        })
    }
}

/// As sealane_streams_open, as the end that accepted the connection.
///
/// # Safety
///
/// As sealane_streams_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_answer(
    fd: c_int,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out_streams: *mut *mut sealane_streams,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        begin(role, (trust, config, canceller), (out_streams, out_stream), |by| {
            Ok(Streams::answer(duplicate(fd)?, by.role, by.trust, &by.config, &by.cancel)?)
        })
    }
}

/// Opens a session over a connection that the dialler makes. As sealane_streams_open;
/// sealane_streams_dial_next makes the session's other streams.
///
/// Returns as sealane_streams_open; -SEALANE_E_MISUSE where no socket that was passed is left.
///
/// # Safety
///
/// As sealane_streams_open; `dialler` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_dial(
    dialler: *const sealane_dialler,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out_streams: *mut *mut sealane_streams,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        begin(role, (trust, config, canceller), (out_streams, out_stream), |by| {
            let dialler = lock(argument(dialler)?).clone();
            Ok(Streams::dial(&dialler, by.role, by.trust, &by.config, &by.cancel)?)
        })
    }
}

/// Opens a session over a connection that comes to a listener, and waits for it. Strangers do not
/// end the wait, nor does a peer with the wrong role, which is told so; only the canceller does.
/// sealane_streams_accept_next waits for the session's other streams.
///
/// Returns as sealane_lanes_accept.
///
/// # Safety
///
/// As sealane_streams_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_accept(
    listener: *const sealane_listener,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out_streams: *mut *mut sealane_streams,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        begin(role, (trust, config, canceller), (out_streams, out_stream), |by| {
            let listener = argument(listener)?;
            Ok(listener.accept_streams(by.role, by.trust, &by.config, &by.cancel)?)
        })
    }
}

/// Waits for the first bytes of a connection that this end accepted and leaves them there, for
/// who does not know which of the two comes. At most the settings' handshake_timeout_ms.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns SEALANE_ASKS_OPEN or SEALANE_ASKS_JOIN; -SEALANE_E_NOT_AUTHENTICATED where the other end
/// speaks something else, TLS for one; -SEALANE_E_CANCELLED, -errno.
///
/// # Safety
///
/// `config` and `canceller` are alive, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_asks(
    fd: c_int,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
) -> c_int {
    int(call(|| {
        // SAFETY: as this function's.
        let (config, cancel) = unsafe { (crate::config::settings(config)?, cancel(canceller)?) };
        Ok(match Streams::asks(duplicate(fd)?, &config, &cancel)? {
            Asks::Open => i64::from(SEALANE_ASKS_OPEN),
            Asks::Join => i64::from(SEALANE_ASKS_JOIN),
        })
    }))
}

type Given = (*const sealane_trust, *const sealane_config, *const sealane_canceller);
type Places = (*mut *mut sealane_streams, *mut *mut sealane_stream);

/// What a session is begun by.
struct By<'a> {
    role: Role,
    trust: &'a Trust,
    config: Config,
    cancel: Canceller,
}

/// # Safety
///
/// As [`sealane_streams_open`].
unsafe fn begin(
    role: c_int,
    (trust, config, canceller): Given,
    (out_streams, out_stream): Places,
    begin: impl FnOnce(By<'_>) -> Outcome<(Streams, Stream)>,
) -> c_int {
    int(call(|| {
        place(out_streams)?;
        place(out_stream)?;
        let role = role_of(role)?;
        // SAFETY: as this function's.
        let (trust, config) = unsafe { (argument(trust)?, crate::config::settings(config)?) };
        // SAFETY: as this function's.
        let cancel = unsafe { cancel(canceller) }?;
        let (streams, stream) = begin(By { role, trust, config, cancel })?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe {
            give(out_streams, streams);
            give(out_stream, stream);
        }
        Ok(0)
    }))
}

/// One more stream of the session over a connected socket, as the end that connected it. As
/// sealane_streams_open.
///
/// Returns 0; -SEALANE_E_CLOSED where the other end does not answer; -EINVAL after 4096 streams;
/// else as sealane_streams_open.
///
/// # Safety
///
/// As sealane_streams_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_join(
    streams: *const sealane_streams,
    fd: c_int,
    canceller: *const sealane_canceller,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        one_more(streams, canceller, out_stream, |streams, cancel| {
            undone(streams.join(duplicate(fd)?, cancel))
        })
    }
}

/// One more stream of the session over a connected socket, as the end that accepted it. As
/// sealane_streams_open; a stranger's connection is -SEALANE_E_NOT_AUTHENTICATED: close it and go
/// on.
///
/// # Safety
///
/// As sealane_streams_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_admit(
    streams: *const sealane_streams,
    fd: c_int,
    canceller: *const sealane_canceller,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        one_more(streams, canceller, out_stream, |streams, cancel| {
            undone(streams.admit(duplicate(fd)?, cancel))
        })
    }
}

/// One more stream of a session that sealane_streams_dial began, over one more connection of its
/// dialler's, to the host that the first one reached.
///
/// Returns as sealane_streams_join; -EINVAL where the session was not begun so, or no socket that
/// was passed is left.
///
/// # Safety
///
/// As sealane_streams_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_dial_next(
    streams: *const sealane_streams,
    canceller: *const sealane_canceller,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        one_more(streams, canceller, out_stream, |streams, cancel| {
            undone(streams.dial_next(cancel))
        })
    }
}

/// Waits for one more stream of a session that sealane_streams_accept began at this listener. Only
/// the canceller ends the wait.
///
/// Returns 0; -SEALANE_E_CANCELLED; -errno; -SEALANE_E_MISUSE where the session was begun
/// otherwise, or no socket that was passed is left.
///
/// # Safety
///
/// As sealane_streams_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_accept_next(
    streams: *const sealane_streams,
    listener: *const sealane_listener,
    canceller: *const sealane_canceller,
    out_stream: *mut *mut sealane_stream,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        one_more(streams, canceller, out_stream, |streams, cancel| {
            Ok(argument(listener)?.next_stream(streams, cancel)?)
        })
    }
}

/// # Safety
///
/// As [`sealane_streams_join`].
unsafe fn one_more(
    streams: *const sealane_streams,
    canceller: *const sealane_canceller,
    out_stream: *mut *mut sealane_stream,
    join: impl FnOnce(&Streams, &Canceller) -> Outcome<Stream>,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(streams, |streams| {
            place(out_stream)?;
            give(out_stream, join(streams, &cancel(canceller)?)?);
            Ok(0)
        })
    })
}

/// Says that the migration is complete: the secret opens no other session in this process.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `streams` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_complete(streams: *const sealane_streams) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(streams, |streams| {
            streams.complete();
            Ok(0)
        })
    })
}

/// Writes the 16 bytes of a name of this migration that both ends know and nobody else.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `streams` is alive; `id` has room for 16 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_migration_id(
    streams: *const sealane_streams,
    id: *mut u8,
) -> c_int {
    // SAFETY: `streams` as this function's.
    int(unsafe {
        with(streams, |streams| {
            if id.is_null() {
                return Err(Failure::invalid("room for 16 bytes is wanted, NULL was given"));
            }
            // SAFETY: room for 16 bytes by the caller's word.
            id.copy_from_nonoverlapping(streams.migration_id().as_ptr(), 16);
            Ok(0)
        })
    })
}

/// Who seals them, as sealane_doctor_provider names it. Valid for ever.
///
/// Returns the name; NULL for an error.
///
/// # Safety
///
/// `streams` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_provider(
    streams: *const sealane_streams,
) -> *const c_char {
    let mut name = std::ptr::null();
    // SAFETY: as this function's.
    unsafe {
        with(streams, |streams| {
            name = provider_name(streams.provider());
            Ok(0)
        })
    };
    name
}

/// Payload bytes of a full frame, as both ends agreed.
///
/// Returns them, or -EINVAL.
///
/// # Safety
///
/// `streams` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_frame_bytes(
    streams: *const sealane_streams,
) -> libc::ssize_t {
    // SAFETY: as this function's.
    unsafe { with(streams, |streams| Ok(streams.frame_bytes() as i64)) as libc::ssize_t }
}

/// Destroys a session and nulls the pointer; its streams go on. NULL, and a pointer to NULL, are no
/// error.
///
/// # Safety
///
/// `streams` is null, or points to null or to a session that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_streams_destroy(streams: *mut *mut sealane_streams) {
    // SAFETY: as this function's.
    unsafe { destroy(streams) }
}

pub(crate) fn role_of(role: c_int) -> Outcome<Role> {
    match role {
        SEALANE_ROLE_SOURCE => Ok(Role::Source),
        SEALANE_ROLE_TARGET => Ok(Role::Target),
        _ => Err(Failure::invalid(format!("role {role}: SEALANE_ROLE_* is wanted"))),
    }
}

/// The canceller, or one that nobody has for NULL.
///
/// # Safety
///
/// As for [`argument`].
pub(crate) unsafe fn cancel(canceller: *const sealane_canceller) -> Outcome<Canceller> {
    if canceller.is_null() {
        return Ok(Canceller::default());
    }
    // SAFETY: as this function's.
    unsafe { argument(canceller) }.cloned()
}

pub(crate) fn duplicate(fd: c_int) -> Outcome<OwnedFd> {
    if fd < 0 {
        return Err(Failure(libc::EBADF, format!("{fd} is no descriptor")));
    }
    // SAFETY: borrowed for the call alone, which is an error where nothing is open there.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}
