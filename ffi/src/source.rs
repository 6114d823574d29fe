//! The source of a migration.

use std::ffi::{c_int, c_void};

use sealane::memory::{DirtyBitmap, Run};
use sealane::{LaneStatistics, Role, Source};

use crate::error::undone;
use crate::fence::{
    Handle, Outcome, call, destroy, give, int, opaque, place, size_of_given, with, write_sized,
};
use crate::lanes::take;
use crate::progress::Driven;
use crate::region::regions;
use crate::streams::cancel;
use crate::{Failure, sealane_canceller, sealane_config, sealane_lanes, sealane_region};

/// Sends a guest: rounds, the commit, the handover. One thread at a time is in a call; another
/// waits for it. The canceller that it was started with ends a call from any thread.
pub struct sealane_source(Handle<Driven<Sending>>);
opaque!(sealane_source, Driven<Sending>);

/// A source, what it may do next, and the pages of its regions.
pub struct Sending {
    source: Option<Source>,
    committed: bool,
    pages: Vec<u64>,
    /// What ended the session: later calls return it again.
    failed: Option<Failure>,
}

/// Bytes of the structs in their first version.
const ROUND_FIRST: usize = 32;
pub(crate) const STATISTICS_FIRST: usize = 72;
/// Most bytes of device state.
const STATE_BYTES_MAX: usize = 64 << 20;

/// Consecutive pages of a region.
#[repr(C)]
pub struct sealane_run {
    /// Which region, by its place in the array that the source was started with.
    pub region: usize,
    /// Index of its first page.
    pub first_page: u64,
    /// How many pages.
    pub pages: u64,
}

/// What a round did. Set `size` to sizeof(struct sealane_round) before the call.
#[repr(C)]
pub struct sealane_round {
    /// Bytes of this struct, set by the caller.
    pub size: usize,
    /// Its number, from 0.
    pub round: u32,
    /// Pages that it carried, zero pages too.
    pub pages: u64,
    /// Microseconds from the call until the target had placed it all.
    pub elapsed_us: u64,
}

/// What an end of a migration did, all lanes together. Set `size` to
/// sizeof(struct sealane_statistics) before the call.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct sealane_statistics {
    /// Bytes of this struct, set by the caller.
    pub size: usize,
    /// Lanes.
    pub lanes: u64,
    /// Frames.
    pub frames: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Pages whose content was carried.
    pub data_pages: u64,
    /// Pages that were zero.
    pub zero_pages: u64,
    /// System calls that moved or waited for bytes.
    pub system_calls: u64,
    /// Sends of which the kernel reports that it did not copy them.
    pub zero_copy_kept: u64,
    /// Zero-copy sends that it copied after all.
    pub zero_copy_copied: u64,
}

/// Offers regions over lanes and waits until the target takes them. The lanes are taken unless
/// -EINVAL or -SEALANE_E_FORKED is returned.
///
/// `config` NULL: the defaults. `canceller` NULL: none.
///
/// Returns 0; -SEALANE_E_REFUSED with the target's reason; -SEALANE_E_MISUSE where two regions have
/// the same name; -EINVAL, -SEALANE_E_CANCELLED, -errno.
///
/// # Safety
///
/// The handles are alive, or null where that is allowed; `list` has `count` of them; `out` is null
/// or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_start(
    lanes: *const sealane_lanes,
    list: *const *const sealane_region,
    count: usize,
    config: *const sealane_config,
    canceller: *const sealane_canceller,
    out: *mut *mut sealane_source,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let (config, cancel) = unsafe { (crate::config::settings(config)?, cancel(canceller)?) };
        // SAFETY: as this function's.
        let regions = unsafe { regions(list, count) }?;
        let pages = regions.iter().map(|region| region.pages()).collect();
        // SAFETY: as this function's.
        let source =
            Source::start(unsafe { take(lanes, Role::Source) }?, regions, &config, &cancel)?;
        let progress = source.progress();
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Driven::new(Sending::new(source, pages), progress)) };
        Ok(0)
    }))
}

/// Sends all pages of all regions, as a first round does, and waits until the target has placed
/// them: a barrier. `report` may be NULL.
///
/// Returns 0; -EINVAL after the commit; what ended the session.
///
/// # Safety
///
/// `source` is alive; `report` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_send_all(
    source: *const sealane_source,
    report: *mut sealane_round,
) -> c_int {
    // SAFETY: as this function's.
    unsafe {
        round(source, report, |pages| Ok(pages.iter().map(|n| DirtyBitmap::all(*n)).collect()))
    }
}

/// Sends runs of pages and waits until the target has placed them: a barrier. Runs may come in any
/// order and overlap; `report` may be NULL.
///
/// Returns 0; -EINVAL where a run does not lie in its region, or after the commit; what ended the
/// session.
///
/// # Safety
///
/// `source` is alive; `runs` has `count` runs; `report` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_send_runs(
    source: *const sealane_source,
    runs: *const sealane_run,
    count: usize,
    report: *mut sealane_round,
) -> c_int {
    let bitmaps = |pages: &[u64]| {
        let mut bitmaps: Vec<_> = pages.iter().map(|n| DirtyBitmap::new(*n)).collect();
        let runs = match (runs.is_null(), count) {
            (_, 0) => &[],
            (true, _) => return Err(Failure::invalid("runs are wanted, NULL was given")),
            (_, count) if count > isize::MAX as usize / size_of::<sealane_run>() => {
                return Err(Failure::invalid(format!("{count} runs are no number of runs")));
            }
            // SAFETY: not null, so `count` runs by the caller's word.
            _ => unsafe { std::slice::from_raw_parts(runs, count) },
        };
        for run in runs {
            let (first, pages_wanted) = (run.first_page, run.pages);
            let fits = pages
                .get(run.region)
                .zip(first.checked_add(pages_wanted))
                .is_some_and(|(pages, end)| end <= *pages);
            if !fits {
                return Err(Failure::invalid(format!(
                    "{pages_wanted} pages from {first} do not lie in region {}",
                    run.region
                )));
            }
            if pages_wanted > 0 {
                bitmaps[run.region].set_run(Run { first_page: first, pages: pages_wanted });
            }
        }
        Ok(bitmaps)
    };
    // SAFETY: as this function's.
    unsafe { round(source, report, bitmaps) }
}

/// Sends the pages whose bits are set, one bitmap for each region in their order, as KVM's dirty
/// log gives them (a bit a page, 64 to a word, no bit past the last page), and waits until the
/// target has placed them: a barrier. `report` may be NULL.
///
/// Returns 0; -EINVAL where `count` is not that of the regions, where a bit past a region's end is
/// set, or after the commit; what ended the session.
///
/// # Safety
///
/// `source` is alive; `bitmaps` has `count` bitmaps, each of as many words as its region's pages
/// take; `report` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_send_bitmaps(
    source: *const sealane_source,
    bitmaps: *const *const u64,
    count: usize,
    report: *mut sealane_round,
) -> c_int {
    let taken = |pages: &[u64]| {
        if bitmaps.is_null() {
            return Err(Failure::invalid("bitmaps are wanted, NULL was given"));
        }
        if count != pages.len() {
            let text =
                format!("{count} bitmaps, one for each of {} regions is wanted", pages.len());
            return Err(Failure::invalid(text));
        }
        // SAFETY: `count` bitmaps by the caller's word, and so many are a list.
        let list = unsafe { std::slice::from_raw_parts(bitmaps, count) };
        let bitmap = |(words, pages): (&*const u64, &u64)| {
            if words.is_null() {
                return Err(Failure::invalid("a bitmap for each region is wanted, NULL was given"));
            }
            let count = pages.div_ceil(64) as usize;
            // SAFETY: as many words as the region's pages take, by the caller's word.
            let words = unsafe { std::slice::from_raw_parts(*words, count) }.to_vec();
            Ok(DirtyBitmap::from_words(words, *pages)?)
        };
        list.iter().zip(pages).map(bitmap).collect()
    };
    // SAFETY: as this function's.
    unsafe { round(source, report, taken) }
}

/// # Safety
///
/// As for [`with`]; `report` is null or as its `size` says.
unsafe fn round(
    source: *const sealane_source,
    report: *mut sealane_round,
    dirty: impl FnOnce(&[u64]) -> Outcome<Vec<DirtyBitmap>>,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(source, |sending| {
            let size = given(report, ROUND_FIRST)?;
            let mut sending = sending.lock()?;
            sending.may(false, "a round")?;
            let dirty = undone(dirty(&sending.pages))?;
            let done = sending.step(|source| source.send_round(&dirty))?;
            if let Some(size) = size {
                let (round, pages) = (done.round, done.pages);
                let elapsed_us = done.elapsed.as_micros() as u64;
                write_sized(report, size, &sealane_round { size, round, pages, elapsed_us });
            }
            Ok(0)
        })
    })
}

/// Sends the device state (at most 64 MiB), says that this was all, and waits until the target has
/// it and calls itself ready (sealane_target_ready). The guest stands still by now.
///
/// Returns 0; -EINVAL for more state, or after a commit; what ended the session.
///
/// # Safety
///
/// `source` is alive; `state` has `bytes` bytes, or is null where that is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_commit(
    source: *const sealane_source,
    state: *const c_void,
    bytes: usize,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(source, |sending| {
            let state: &[u8] = match (state.is_null(), bytes) {
                (_, 0) => &[],
                (true, _) => return Err(Failure::invalid("state is wanted, NULL was given")),
                _ if bytes > STATE_BYTES_MAX => {
                    let text = format!("{bytes} bytes of state, at most {STATE_BYTES_MAX}");
                    return Err(Failure::invalid(text));
                }
                _ => std::slice::from_raw_parts(state.cast(), bytes),
            };
            let mut sending = sending.lock()?;
            sending.may(false, "the commit")?;
            sending.step(|source| source.commit(state))?;
            sending.committed = true;
            Ok(0)
        })
    })
}

/// Lets go of the guest: after this call it must not run here any more, whatever is returned but
/// an error from before the handover. The source does nothing more. `statistics` may be NULL.
///
/// Returns 0 once the target has taken it; -SEALANE_E_IN_DOUBT where it does not confirm: look at
/// the target before anything is started again, and so after -SEALANE_E_PANIC;
/// -SEALANE_E_CANCELLED and others from before.
///
/// # Safety
///
/// `source` is alive; `statistics` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_hand_over(
    source: *const sealane_source,
    statistics: *mut sealane_statistics,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(source, |sending| {
            let size = given(statistics, STATISTICS_FIRST)?;
            let mut sending = sending.lock()?;
            sending.may(true, "the handover")?;
            let source = sending.source.take().ok_or_else(over)?;
            match source.hand_over() {
                Ok(report) => fill(statistics, size, &report.lanes),
                Err(error) => {
                    sending.failed = Some(Failure::from(error));
                    return Err(sending.failed.clone().expect("just put there"));
                }
            }
            Ok(0)
        })
    })
}

/// Destroys a source and nulls the pointer. Before the handover that cancels: the guest is this
/// end's, and the target is told. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `source` is null, or points to null or to a source that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_source_destroy(source: *mut *mut sealane_source) {
    // SAFETY: as this function's.
    unsafe { destroy(source) }
}

impl Sending {
    fn new(source: Source, pages: Vec<u64>) -> Self {
        Self { source: Some(source), committed: false, pages, failed: None }
    }

    /// Whether a step is due; asked before anything is done, so that a wrong call changes nothing.
    fn may(&self, after_commit: bool, what: &str) -> Outcome<()> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        match self.source.is_some() {
            true if self.committed == after_commit => Ok(()),
            true if after_commit => Err(Failure::invalid(format!("{what} before the commit"))),
            true => Err(Failure::invalid(format!("{what} after the commit"))),
            false => Err(over()),
        }
    }

    /// A step that ends the session where it fails.
    fn step<T>(&mut self, step: impl FnOnce(&mut Source) -> sealane::Result<T>) -> Outcome<T> {
        let source = self.source.as_mut().ok_or_else(over)?;
        step(source).map_err(|error| {
            self.source = None;
            self.failed.insert(Failure::from(error)).clone()
        })
    }
}

pub(crate) fn over() -> Failure {
    Failure::invalid("the migration is over: this end has nothing more to do")
}

/// The size of a struct where one was given.
///
/// # Safety
///
/// As for [`size_of_given`].
pub(crate) unsafe fn given<T>(out: *const T, first: usize) -> Outcome<Option<usize>> {
    match out.is_null() {
        true => Ok(None),
        // SAFETY: as this function's.
        false => unsafe { size_of_given(out, first) }.map(Some),
    }
}

/// # Safety
///
/// `statistics` has the size that [`given`] gave.
pub(crate) unsafe fn fill(
    statistics: *mut sealane_statistics,
    size: Option<usize>,
    lanes: &[LaneStatistics],
) {
    let Some(size) = size else { return };
    let mut own = sealane_statistics { size, lanes: lanes.len() as u64, ..Default::default() };
    for lane in lanes {
        own.frames += lane.frames;
        own.wire_bytes += lane.wire_bytes;
        own.data_pages += lane.data_pages;
        own.zero_pages += lane.zero_pages;
        own.system_calls += lane.engine.system_calls;
        own.zero_copy_kept += lane.engine.zero_copy_kept;
        own.zero_copy_copied += lane.engine.zero_copy_copied;
    }
    // SAFETY: as this function's.
    unsafe { write_sized(statistics, size, &own) }
}
