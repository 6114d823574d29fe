//! Which process made a handle.
//!
//! A page that the kernel wipes in the child of a fork (MADV_WIPEONFORK) holds the generation of
//! this process. It tells the child of any fork and of any clone(2) with memory of its own, also
//! one that runs no atfork handlers or has the parent's process id in a namespace of its own; and
//! to look costs a load, not a system call.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// The generation of this process and 0 in a child that has not made a handle yet. Mapped with the
/// first handle and never unmapped: handles may be looked at until the process ends.
static PAGE: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
/// The last generation that this process or one it comes from gave out.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The generation of this process, for a handle that it makes.
pub(crate) fn generation() -> u64 {
    PAGE.get_or_init(map).map_or_else(|| std::process::id().into(), generation_in)
}

/// What the page holds, and a new generation where it was wiped.
fn generation_in(page: &AtomicU64) -> u64 {
    match page.load(Ordering::Acquire) {
        0 => {
            let next = LAST.fetch_add(1, Ordering::AcqRel) + 1;
            // Another thread may have been faster.
            let set = page.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire);
            set.err().unwrap_or(next)
        }
        generation => generation,
    }
}

/// Whether this process made a handle of that generation, not one that it comes from.
pub(crate) fn is_ours(generation: u64) -> bool {
    match PAGE.get().copied().flatten() {
        Some(page) => page.load(Ordering::Acquire) == generation,
        None => u64::from(std::process::id()) == generation,
    }
}

/// None on a kernel without MADV_WIPEONFORK (before 4.14), where the process id has to do.
fn map() -> Option<&'static AtomicU64> {
    let bytes = NonZeroUsize::new(4096).expect("not 0");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping that nothing else uses.
    let page = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE) }.ok()?;
    // SAFETY: the mapping from above, still zeros: nothing is lost.
    unsafe { madvise(page, bytes.get(), MmapAdvise::MADV_WIPEONFORK) }.ok()?;
    // SAFETY: it is zeroed, aligned to a page, never unmapped, and nobody else writes to it.
    Some(unsafe { page.cast::<AtomicU64>().as_ref() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_stays_what_it_is_and_no_generation_comes_twice() {
        let ours = generation();
        assert!(ours > 0 && generation() == ours && is_ours(ours) && !is_ours(ours + 1));
        assert!(PAGE.get().unwrap().is_some(), "this kernel has MADV_WIPEONFORK");
        // As a child finds it, and a grandchild.
        let wiped = AtomicU64::new(0);
        let child = generation_in(&wiped);
        assert!(child > ours && generation_in(&wiped) == child);
        assert!(generation_in(&AtomicU64::new(0)) > child);
    }
}
