//! Where the end that accepts gets its connections from.

use std::ffi::{c_char, c_int};

use sealane::Listener;

use crate::dialler::duplicates;
use crate::error::undone;
use crate::fence::{Handle, call, destroy, give, int, opaque, place, text, with};

/// Waits for the other end. Several threads may wait at once, each for a migration of another name
/// (sealane_config_set_migration_name). Sessions that it accepted go on without it.
pub struct sealane_listener(Handle<Listener>);
opaque!(sealane_listener, Listener);

/// Listens at `ADDRESS:PORT` (`0.0.0.0:7800`, `[::]:7800`; port 0 for any), `unix:PATH`,
/// `vsock:CID:PORT` or `vsock:any:PORT`, or with a listening socket that was passed to this
/// process: `fd:N`, which is duplicated, or `systemd` (socket activation).
///
/// A unix socket's file has mode 0600 and goes with the listener; one that nobody listens at is
/// replaced.
///
/// Returns 0; -SEALANE_E_CONFIG where it is no such address or the socket does not listen; -errno.
///
/// # Safety
///
/// `address` is null or a string; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_listener_bind(
    address: *const c_char,
    out: *mut *mut sealane_listener,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: `address` as this function's.
        let listener = Listener::bind(unsafe { text("an address", address) }?)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, listener) };
        Ok(0)
    }))
}

/// The end of sealane_dialler_rendezvous that lets the other speak first.
///
/// Returns 0; -SEALANE_E_CONFIG where these are no such addresses, or the same one; -errno.
///
/// # Safety
///
/// `local` and `remote` are null or strings; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_listener_rendezvous(
    local: *const c_char,
    remote: *const c_char,
    out: *mut *mut sealane_listener,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let (local, remote) =
            unsafe { (text("an address here", local)?, text("one there", remote)?) };
        let listener = Listener::rendezvous(local, remote)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, listener) };
        Ok(0)
    }))
}

/// Connections that were accepted elsewhere: connected stream sockets of any family, taken in
/// their order, each once. The descriptors are duplicated, as in sealane_dialler_sockets.
///
/// Returns 0; -EINVAL without any; -SEALANE_E_CONFIG where one is no connected stream socket;
/// -errno.
///
/// # Safety
///
/// `fds` is null or has `count` numbers; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_listener_sockets(
    fds: *const c_int,
    count: usize,
    out: *mut *mut sealane_listener,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let listener = Listener::sockets(unsafe { duplicates(fds, count) }?)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, listener) };
        Ok(0)
    }))
}

/// The TCP port that it got.
///
/// Returns it; -EINVAL where it does not listen by TCP.
///
/// # Safety
///
/// `listener` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_listener_port(listener: *const sealane_listener) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(listener, |listener| Ok(undone(listener.local_address())?.port().into())) })
}

/// Destroys a listener and nulls the pointer. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `listener` is null, or points to null or to a listener that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_listener_destroy(listener: *mut *mut sealane_listener) {
    // SAFETY: as this function's.
    unsafe { destroy(listener) }
}
