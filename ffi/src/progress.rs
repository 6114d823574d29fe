//! How far a migration is, for a thread that is not the one in a call.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard};

use sealane::Progress;

use crate::fence::{Opaque, Outcome, int, poisoned, size_of_given, with, write_sized};
use crate::{sealane_source, sealane_target};

/// Bytes of `sealane_progress` in its first version.
const FIRST: usize = 32;

/// How far an end of a migration is. Set `size` to sizeof(struct sealane_progress) before the
/// call. The numbers only grow.
#[repr(C)]
pub struct sealane_progress {
    /// Bytes of this struct, set by the caller.
    pub size: usize,
    /// Pages whose content was carried, of all rounds.
    pub data_pages: u64,
    /// Pages that were zero, of all rounds.
    pub zero_pages: u64,
    /// Rounds whose pages the target has placed.
    pub rounds: u64,
}

/// One end: what a thread at a time drives, and what any thread may look at meanwhile.
pub struct Driven<T> {
    end: Mutex<T>,
    progress: Progress,
}

impl<T> Driven<T> {
    pub(crate) fn new(end: T, progress: Progress) -> Self {
        Self { end: Mutex::new(end), progress }
    }

    /// For one call. A thread that waited while another's panicked finds an end that is not whole.
    pub(crate) fn lock(&self) -> Outcome<MutexGuard<'_, T>> {
        self.end.lock().map_err(|_| poisoned())
    }
}

/// How far a source is. Any thread may ask while another is in a call, and after the end of the
/// migration; it waits for nobody.
///
/// Returns 0; -EINVAL where `size` is less than its first version's.
///
/// # Safety
///
/// `source` is alive; `progress` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_progress(
    source: *const sealane_source,
    progress: *mut sealane_progress,
) -> c_int {
    // SAFETY: as this function's.
    unsafe { look(source, progress) }
}

/// How far a target is. Any thread may ask while another is in a call, and after the end of the
/// migration; it waits for nobody.
///
/// Returns 0; -EINVAL where `size` is less than its first version's.
///
/// # Safety
///
/// `target` is alive; `progress` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_target_progress(
    target: *const sealane_target,
    progress: *mut sealane_progress,
) -> c_int {
    // SAFETY: as this function's.
    unsafe { look(target, progress) }
}

/// # Safety
///
/// As [`sealane_source_progress`].
unsafe fn look<T>(
    end: *const impl Opaque<Value = Driven<T>>,
    progress: *mut sealane_progress,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(end, |driven| {
            let size = size_of_given(progress, FIRST)?;
            let now = &driven.progress;
            let (data_pages, zero_pages) = (now.data_pages(), now.zero_pages());
            let rounds = now.rounds();
            let found = sealane_progress { size, data_pages, zero_pages, rounds };
            write_sized(progress, size, &found);
            Ok(0)
        })
    })
}
