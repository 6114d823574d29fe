//! The connections of a migration.

use std::ffi::{c_char, c_int};
use std::sync::Mutex;

use sealane::{Lanes, Role, dial};

use crate::doctor::provider_name;
use crate::fence::{Handle, Outcome, argument, destroy, give, int, opaque, place, with};
use crate::streams::{cancel, role_of};
use crate::{
    Failure, sealane_canceller, sealane_config, sealane_dialler, sealane_listener, sealane_trust,
};

/// Authenticated connections of a migration, until a source or a target takes them. Any thread may
/// use it.
pub struct sealane_lanes(Handle<Mutex<Option<Lanes>>>);
opaque!(sealane_lanes, Mutex<Option<Lanes>>);

/// Connects as the dialler says and opens all lanes of a migration.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -SEALANE_E_NOT_AUTHENTICATED, -SEALANE_E_REFUSED, -SEALANE_E_CANCELLED,
/// -SEALANE_E_CONFIG, -errno; -SEALANE_E_MISUSE where fewer sockets were passed than there are
/// lanes.
///
/// # Safety
///
/// The handles are alive, or null where that is allowed; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_dial(
    dialler: *const sealane_dialler,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out: *mut *mut sealane_lanes,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(dialler, |dialler| {
            place(out)?;
            let (trust, config) = (argument(trust)?, crate::config::settings(config)?);
            let (role, cancel) = (role_of(role)?, cancel(canceller)?);
            let dialler = lock(dialler).clone();
            let lanes = dial(&dialler, role, trust, &config, &cancel)?;
            give(out, Mutex::new(Some(lanes)));
            Ok(0)
        })
    })
}

/// Waits for a peer that is trusted and opens all lanes of a migration. Strangers do not end the
/// wait, nor does a peer with the wrong role or limits, which is told so; only the canceller does.
/// Threads may wait at one listener beside each other, each for a migration of another name.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -SEALANE_E_CANCELLED, -SEALANE_E_CONFIG, -errno; -SEALANE_E_MISUSE where another
/// thread waits for a migration of the same name, or no socket that was passed is left.
///
/// # Safety
///
/// As sealane_lanes_dial.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_lanes_accept(
    listener: *const sealane_listener,
    role: c_int,
    trust: *const sealane_trust,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out: *mut *mut sealane_lanes,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(listener, |listener| {
            place(out)?;
            let (trust, config) = (argument(trust)?, crate::config::settings(config)?);
            let (role, cancel) = (role_of(role)?, cancel(canceller)?);
            let lanes = listener.accept(role, trust, &config, &cancel)?;
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
