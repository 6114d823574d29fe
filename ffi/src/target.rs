//! The target of a migration.

use std::ffi::{c_char, c_int, c_void};

use sealane::error::Error;
use sealane::{Role, Target};

use crate::fence::{Handle, Outcome, call, destroy, give, int, opaque, place, text, with};
use crate::lanes::take;
use crate::progress::Driven;
use crate::region::regions;
use crate::source::{STATISTICS_FIRST, fill, given, over};
use crate::streams::cancel;
use crate::{
    Failure, sealane_canceller, sealane_config, sealane_lanes, sealane_region, sealane_statistics,
};

/// Receives a guest. One thread at a time is in a call; another waits for it. The canceller that
/// it was started with ends a call from any thread.
pub struct sealane_target(Handle<Driven<Receiving>>);
opaque!(sealane_target, Driven<Receiving>);

/// A target, how far it is, and the device state once it came.
pub struct Receiving {
    target: Option<Target>,
    phase: Phase,
    state: Option<Vec<u8>>,
    /// What ended the session: later calls return it again.
    failed: Option<Failure>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Offered,
    Accepted,
    Received,
    /// The guest is this end's.
    Ready,
}

/// Waits over lanes for the source's offer. The lanes are taken unless -EINVAL or
/// -SEALANE_E_FORKED is returned.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -EINVAL, -SEALANE_E_CANCELLED, -errno; what ended the session.
///
/// # Safety
///
/// The handles are alive, or null where that is allowed; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_start(
    lanes: *const sealane_lanes,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out: *mut *mut sealane_target,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let (config, cancel) = unsafe { (crate::config::settings(config)?, cancel(canceller)?) };
        // SAFETY: as this function's.
        let target = Target::start(unsafe { take(lanes, Role::Target) }?, &config, &cancel)?;
        let progress = target.progress();
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Driven::new(Receiving::new(target), progress)) };
        Ok(0)
    }))
}

/// How many regions the source offers.
///
/// Returns the number, or -EINVAL.
///
/// # Safety
///
/// `target` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_offers(target: *const sealane_target) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(target, |receiving| Ok(receiving.lock()?.target()?.offer().count() as i64)) })
}

/// A region that the source offers, by its place from 0: its size goes to `bytes`, its name with a
/// zero at its end to `name`, which has room for `name_size` bytes (256 are always enough). Either
/// may be NULL.
///
/// Returns the length of the name; -EINVAL where there is no such region; -ENAMETOOLONG where there
/// is no room for its name.
///
/// # Safety
///
/// `target` is alive; `name` is null or has room for `name_size` bytes; `bytes` is null or may be
/// written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_offer(
    target: *const sealane_target,
    index: usize,
    name: *mut c_char,
    name_size: usize,
    bytes: *mut u64,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(target, |receiving| {
            let mut receiving = receiving.lock()?;
            let offered = receiving.target()?.offer().nth(index);
            let (own, size) = offered
                .ok_or_else(|| Failure::invalid(format!("the offer has no region {index}")))?;
            if !name.is_null() {
                if own.len() >= name_size {
                    let text = format!("a name of {} bytes, room for {name_size}", own.len());
                    return Err(Failure(libc::ENAMETOOLONG, text));
                }
                name.copy_from_nonoverlapping(own.as_ptr().cast(), own.len());
                *name.add(own.len()) = 0;
            }
            if !bytes.is_null() {
                *bytes = size;
            }
            Ok(own.len() as i64)
        })
    })
}

/// Takes the offer: pages go into these regions, which are the offered ones in any order.
///
/// Returns 0; -EINVAL before anything is done; -SEALANE_E_MISUSE where one is missing, of another
/// size or read-only: the source is told so and the session has ended; what ended the session.
///
/// # Safety
///
/// `target` is alive; `list` has `count` regions that are alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_accept(
    target: *const sealane_target,
    list: *const *const sealane_region,
    count: usize,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(target, |receiving| {
            let regions = regions(list, count)?;
            let mut receiving = receiving.lock()?;
            receiving.may(Phase::Offered)?;
            receiving.step(Phase::Accepted, |target| target.accept(regions))?;
            Ok(0)
        })
    })
}

/// Refuses the offer, or gives up later: the source gets the reason (up to 1024 bytes of UTF-8) and
/// the session ends. Not after sealane_target_ready, when the guest is this end's.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `target` is alive; `reason` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_refuse(
    target: *const sealane_target,
    reason: *const c_char,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(target, |receiving| {
            let reason = text("a reason", reason)?;
            let mut receiving = receiving.lock()?;
            if let Some(failed) = &receiving.failed {
                return Err(failed.clone());
            }
            if receiving.phase == Phase::Ready {
                return Err(Failure::invalid("the source has let go: the guest is this end's"));
            }
            let mut target = receiving.target.take().ok_or_else(over)?;
            target.fail(Error::Misuse(reason.to_owned()));
            Ok(0)
        })
    })
}

/// Receives rounds until the source has sent everything.
///
/// Returns the bytes of the device state, which sealane_target_state copies; what ended the
/// session.
///
/// # Safety
///
/// `target` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_receive(target: *const sealane_target) -> libc::ssize_t {
    // SAFETY: as this function's.
    unsafe {
        with(target, |receiving| {
            let mut receiving = receiving.lock()?;
            receiving.may(Phase::Accepted)?;
            let state = receiving.step(Phase::Received, Target::receive)?;
            let bytes = state.len() as i64;
            receiving.state = Some(state);
            Ok(bytes)
        }) as libc::ssize_t
    }
}

/// Copies the device state, from its beginning, as much as there is room for.
///
/// Returns the bytes copied; -EINVAL before sealane_target_receive.
///
/// # Safety
///
/// `target` is alive; `state` has room for `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_state(
    target: *const sealane_target,
    state: *mut c_void,
    bytes: usize,
) -> libc::ssize_t {
    // SAFETY: as this function's.
    unsafe {
        with(target, |receiving| {
            let receiving = receiving.lock()?;
            let own = receiving.state.as_ref().ok_or_else(|| {
                Failure::invalid("no device state yet: sealane_target_receive first")
            })?;
            let bytes = bytes.min(own.len());
            if bytes > 0 {
                if state.is_null() {
                    return Err(Failure::invalid("room for the state is wanted, NULL was given"));
                }
                state.cast::<u8>().copy_from_nonoverlapping(own.as_ptr(), bytes);
            }
            Ok(bytes as i64)
        }) as libc::ssize_t
    }
}

/// Says that everything is placed and safe, and waits until the source has let go. Only after this
/// the guest may run here.
///
/// Returns 0; what ended the session: the guest is the source's then.
///
/// # Safety
///
/// `target` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_ready(target: *const sealane_target) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(target, |receiving| {
            let mut receiving = receiving.lock()?;
            receiving.may(Phase::Received)?;
            receiving.step(Phase::Ready, Target::ready)?;
            Ok(0)
        })
    })
}

/// Tells the source that the guest is taken. The target does nothing more. `statistics` may be
/// NULL.
///
/// Returns 0: the guest is this end's; -EINVAL where it is over already.
///
/// # Safety
///
/// `target` is alive; `statistics` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_done(
    target: *const sealane_target,
    statistics: *mut sealane_statistics,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(target, |receiving| {
            let size = given(statistics, STATISTICS_FIRST)?;
            let mut receiving = receiving.lock()?;
            receiving.may(Phase::Ready)?;
            let target = receiving.target.take().ok_or_else(over)?;
            fill(statistics, size, &target.done()?.lanes);
            Ok(0)
        })
    })
}

/// Destroys a target and nulls the pointer; before sealane_target_done that gives up, and between
/// sealane_target_ready and that it leaves the source in doubt, though the guest is this end's.
/// NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `target` is null, or points to null or to a target that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_destroy(target: *mut *mut sealane_target) {
    // SAFETY: as this function's.
    unsafe { destroy(target) }
}

impl Receiving {
    fn new(target: Target) -> Self {
        Self { target: Some(target), phase: Phase::Offered, state: None, failed: None }
    }

    /// Whether a step is due; asked before anything is done, so that a wrong call changes nothing.
    fn may(&self, wanted: Phase) -> Outcome<()> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.target.is_none() {
            return Err(over());
        }
        match self.phase == wanted {
            true => Ok(()),
            false => Err(Failure::invalid(format!(
                "out of order: the target is {:?}, and {wanted:?} is wanted for this call",
                self.phase
            ))),
        }
    }

    /// A step that ends the session where it fails.
    fn step<T>(
        &mut self,
        next: Phase,
        step: impl FnOnce(&mut Target) -> sealane::Result<T>,
    ) -> Outcome<T> {
        let target = self.target.as_mut().ok_or_else(over)?;
        match step(target) {
            Ok(value) => {
                self.phase = next;
                Ok(value)
            }
            Err(error) => {
                self.target = None;
                Err(self.failed.insert(Failure::from(error)).clone())
            }
        }
    }

    fn target(&mut self) -> Outcome<&mut Target> {
        self.target.as_mut().ok_or_else(over)
    }
}
