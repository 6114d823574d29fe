//! Guest memory.

use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::ptr::NonNull;

use sealane::memory::Region;

use crate::Failure;
use crate::error::undone;
use crate::fence::{Handle, Outcome, argument, call, destroy, give, int, opaque, place, text};
use crate::streams::duplicate;

/// Memory of a guest that both ends know by the same name. It may be destroyed once the call that
/// took it has returned; the memory behind it stays in use until the migration has ended. Any
/// thread may use it.
pub struct sealane_region(Handle<Region>);
opaque!(sealane_region, Region);

/// `bytes` of a file from `offset`: a memfd, or a file on tmpfs or disk. The descriptor is
/// duplicated. `offset` is a multiple of 4096. A memfd is sealed against shrinking
/// (F_SEAL_SHRINK, fcntl(2)) where that is still allowed, and then mapped.
///
/// Returns 0; -EINVAL where the range does not lie in the file; -errno.
///
/// # Safety
///
/// `name` is null or a string; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_region_from_fd(
    name: *const c_char,
    fd: c_int,
    offset: u64,
    bytes: u64,
    out: *mut *mut sealane_region,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: `name` as this function's.
        let name = unsafe { text("a name", name) }?;
        let file = File::from(duplicate(fd)?);
        let region = undone(Region::from_file(name, file, offset, bytes))?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, region) };
        Ok(0)
    }))
}

/// `bytes` of this process's memory at `address`, both multiples of 4096. It is mapped readable,
/// and at a target writable, and cannot be truncated, until the migration has ended and this is
/// destroyed; the guest may write to it at any time.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// As above; `name` is null or a string; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_region_from_memory(
    name: *const c_char,
    address: *mut c_void,
    bytes: usize,
    out: *mut *mut sealane_region,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: `name` as this function's.
        let name = unsafe { text("a name", name) }?;
        let address = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| Failure::invalid("an address is wanted, NULL was given"))?;
        // SAFETY: as this function's.
        let region = undone(unsafe { Region::from_mapping(name, address, bytes) })?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, region) };
        Ok(0)
    }))
}

/// Destroys a region and nulls the pointer. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `region` is null, or points to null or to a region that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_region_destroy(region: *mut *mut sealane_region) {
    // SAFETY: as this function's.
    unsafe { destroy(region) }
}

/// Most regions of a guest (docs/wire-format.md, W-13).
const REGIONS_MAX: usize = 1024;

/// The regions of an array of handles.
///
/// # Safety
///
/// `regions` is null or has `count` handles that are alive or null.
pub(crate) unsafe fn regions(
    regions: *const *const sealane_region,
    count: usize,
) -> Outcome<Vec<Region>> {
    if regions.is_null() || !(1..=REGIONS_MAX).contains(&count) {
        return Err(Failure::invalid(format!("{count} regions: 1 to {REGIONS_MAX} are wanted")));
    }
    // SAFETY: as this function's.
    let handles = unsafe { std::slice::from_raw_parts(regions, count) };
    // SAFETY: as this function's.
    handles.iter().map(|handle| unsafe { argument(*handle) }.cloned()).collect()
}
