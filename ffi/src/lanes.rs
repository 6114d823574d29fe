//! The connections of a migration.

use std::ffi::{c_char, c_int};
use std::sync::Mutex;

use sealane::{Lanes, Listener, Role, dial};

use crate::doctor::provider_name;
use crate::fence::{
    Handle, Outcome, argument, call, destroy, give, int, opaque, place, text, with,
};
use crate::streams::{cancel, role_of};
use crate::{Failure, sealane_canceller, sealane_config, sealane_secret};

/// Waits at an address for the other end. One thread at a time waits; another waits for it. Its
/// port can be asked for meanwhile.
pub struct sealane_listener(Handle<Listening>);
opaque!(sealane_listener, Listening);

/// A listener, and what can be known of it while a thread waits.
pub struct Listening {
    port: u16,
    listener: Mutex<Listener>,
}

/// Authenticated connections of a migration, until a source or a target takes them. Any thread may
/// use it.
pub struct sealane_lanes(Handle<Mutex<Option<Lanes>>>);
opaque!(sealane_lanes, Mutex<Option<Lanes>>);

/// Listens at ADDRESS:PORT, for example `0.0.0.0:7800` or `[::]:7800`; port 0 for any.
///
/// Returns 0 or -errno.
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
        let port = listener.local_address()?.port();
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Listening { port, listener: Mutex::new(listener) }) };
        Ok(0)
    }))
}

/// The port that it got.
///
/// Returns it, or a negative error.
///
/// # Safety
///
/// `listener` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_listener_port(listener: *const sealane_listener) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(listener, |listening| Ok(listening.port.into())) })
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

/// Connects to a listener at HOST:PORT, [V6]:PORT, unix:PATH or vsock:CID:PORT and opens all lanes
/// of a migration.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -SEALANE_E_NOT_AUTHENTICATED, -SEALANE_E_REFUSED, -SEALANE_E_CANCELLED,
/// -SEALANE_E_CONFIG, -errno.
///
/// # Safety
///
/// The handles are alive, or null where that is allowed; `address` is null or a string; `out` is
/// null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_dial(
    address: *const c_char,
    role: c_int,
    secret: *const sealane_secret,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out: *mut *mut sealane_lanes,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let (address, secret) = unsafe { (text("an address", address)?, argument(secret)?) };
        // SAFETY: as this function's.
        let (config, cancel) = unsafe { (crate::config::settings(config)?, cancel(canceller)?) };
        let lanes = dial(&address.parse()?, role_of(role)?, secret, &config, &cancel)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Mutex::new(Some(lanes))) };
        Ok(0)
    }))
}

/// Waits for a peer that holds the secret and opens all lanes of a migration. Strangers get no
/// answer, and a peer with the wrong role or limits is told so; neither ends the wait, only the
/// canceller does.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -SEALANE_E_CANCELLED, -SEALANE_E_CONFIG, -errno.
///
/// # Safety
///
/// As sealane_lanes_dial.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_accept(
    listener: *const sealane_listener,
    role: c_int,
    secret: *const sealane_secret,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out: *mut *mut sealane_lanes,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(listener, |listening| {
            place(out)?;
            let (secret, config) = (argument(secret)?, crate::config::settings(config)?);
            let (role, cancel) = (role_of(role)?, cancel(canceller)?);
            let lanes = lock(&listening.listener).accept(role, secret, &config, &cancel)?;
            give(out, Mutex::new(Some(lanes)));
            Ok(0)
        })
    })
}

/// How many lanes there are.
///
/// Returns the number; -EINVAL where a source or a target has taken them.
///
/// # Safety
///
/// `lanes` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_count(lanes: *const sealane_lanes) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(lanes, |lanes| {
            let count = lock(lanes).as_ref().map(Lanes::count);
            count.map(i64::from).ok_or_else(taken)
        })
    })
}

/// Who seals them, as sealane_doctor_provider names it. Valid for ever.
///
/// Returns the name; NULL where a source or a target has taken them, or for another error.
///
/// # Safety
///
/// `lanes` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_provider(lanes: *const sealane_lanes) -> *const c_char {
    let mut name = std::ptr::null();
    // SAFETY: as this function's.
    unsafe {
        with(lanes, |lanes| {
            name = provider_name(lock(lanes).as_ref().ok_or_else(taken)?.provider());
            Ok(0)
        })
    };
    name
}

/// Payload bytes of a full frame, as both ends agreed.
///
/// Returns them; -EINVAL where a source or a target has taken the lanes.
///
/// # Safety
///
/// `lanes` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_frame_bytes(lanes: *const sealane_lanes) -> libc::ssize_t {
    // SAFETY: as this function's.
    unsafe {
        with(lanes, |lanes| Ok(lock(lanes).as_ref().ok_or_else(taken)?.frame_bytes() as i64))
            as libc::ssize_t
    }
}

/// Destroys lanes and nulls the pointer; those that a source or a target took go on. NULL, and a
/// pointer to NULL, are no error.
///
/// # Safety
///
/// `lanes` is null, or points to null or to lanes that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_destroy(lanes: *mut *mut sealane_lanes) {
    // SAFETY: as this function's.
    unsafe { destroy(lanes) }
}

/// Takes the lanes out of their handle, where they are of that role.
///
/// # Safety
///
/// As for [`argument`].
pub(crate) unsafe fn take(lanes: *const sealane_lanes, role: Role) -> Outcome<Lanes> {
    // SAFETY: as this function's.
    let mut lanes = lock(unsafe { argument(lanes) }?);
    match &*lanes {
        Some(there) if there.role() != role => {
            let (theirs, call) = match role {
                Role::Source => ("target", "sealane_target_start"),
                Role::Target => ("source", "sealane_source_start"),
            };
            Err(Failure::invalid(format!("these are lanes of a {theirs}: {call} takes them")))
        }
        _ => lanes.take().ok_or_else(taken),
    }
}

fn taken() -> Failure {
    Failure::invalid("the lanes were taken by a source or a target")
}

pub(crate) fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
