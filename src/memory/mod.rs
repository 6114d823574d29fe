//! Guest memory: regions, runs, dirty bitmaps; gathering pages at the source and placing them at
//! the target.
//!
//! # Rules for guest memory
//!
//! A guest, its devices and its hypervisor write to a region at any time. Therefore, in this
//! module and everywhere:
//!
//! - No reference (`&[u8]`, `&mut [u8]`) is ever formed over guest memory. Only raw pointers
//!   touch it, through the copies of `copy.rs`, that of [`LiveSlice`], and `ptr::write_bytes` over
//!   whole pages, which compile to plain or streaming loads and stores of the machine.
//! - Nothing is decided by looking at guest memory twice. A page is copied out once into a
//!   private slot, and what is asked of it (is it zero?) is asked of the words on their way there.
//! - A torn page is no harm: whoever wrote it while it was copied has set its dirty bit, and it
//!   is sent again.
//! - Memory behind a file descriptor is mapped only where it cannot be truncated under us (a memfd
//!   with `F_SEAL_SHRINK`, `fcntl(2)`), so that no access raises SIGBUS; anything else is read
//!   and written through the descriptor, where the kernel reports an error instead.

mod bitmap;
mod gather;
mod live;
mod place;
mod region;
mod zero;

internal!(copy);

pub use bitmap::{AtomicBitmap, DirtyBitmap, Runs};
pub use live::LiveSlice;
pub use region::Region;
pub use zero::is_zero_page;

pub(crate) use gather::{Residency, compact_zero_pages, push_run};
pub(crate) use place::Placement;

/// Consecutive pages of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first page.
    pub first_page: u64,
    /// How many, at least 1.
    pub pages: u64,
}

impl Run {
    /// One past the last page.
    pub fn end(&self) -> u64 {
        self.first_page + self.pages
    }

    /// Whether a page belongs to both.
    pub fn overlaps(&self, other: &Run) -> bool {
        self.first_page < other.end() && other.first_page < self.end()
    }
}
