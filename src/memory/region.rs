//! One block of guest memory.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{AtomicBitmap, Run};
use crate::config::PAGE_BYTES;
use crate::error::{Error, Result, SystemError};

/// One block of guest memory, by file descriptor and range or by mapping, with a name and a size.
///
/// Clones are the same region. Both ends name the same regions with the same sizes.
#[derive(Clone, Debug)]
pub struct Region(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) mapping: Option<Mapping>,
    pub(super) file: Option<Backing>,
    /// Pages that may hold something else than a hole's zeros.
    pub(super) populated: AtomicBitmap,
}

/// Where a region lies in a file.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: Arc<OwnedFd>,
    pub(super) offset: u64,
    pub(super) writable: bool,
}

/// Memory of this process that holds a region.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
    /// Made here, and taken away here.
    ours: bool,
}

// SAFETY: the address stays valid while the value lives, and all access goes through raw copies
// that tolerate concurrent writers (the rules at the head of this module).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Region {
    /// `bytes` of `file` from `offset`: a memfd, or a file on tmpfs or disk.
    ///
    /// `offset` is a multiple of 4096; `bytes` need not be. A memfd is sealed against shrinking
    /// (`F_SEAL_SHRINK`) where that is still allowed, and then mapped; else all access goes
    /// through the descriptor. The descriptor's file offset may move. A file that is open
    /// read-only can only be sent.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where the range does not lie in the file; [`Error::System`] where the
    /// kernel refuses.
    pub fn from_file(name: &str, file: File, offset: u64, bytes: u64) -> Result<Self> {
        let system = |operation, e: &std::io::Error| SystemError::from_io(operation, name, e);
        let metadata = file.metadata().map_err(|e| system("fstat", &e))?;
        if !metadata.is_file() {
            return Err(Error::Misuse(format!("region {name}: not a regular file or memfd")));
        }
        if !offset.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Error::Misuse(format!(
                "region {name}: offset {offset} is not a multiple of {PAGE_BYTES}"
            )));
        }
        if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > metadata.len()) {
            return Err(Error::Misuse(format!(
                "region {name}: {bytes} bytes from {offset} of a file of {} bytes",
                metadata.len()
            )));
        }
        // SAFETY: fcntl with F_GETFL on a descriptor that `file` keeps open.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        let writable = flags & libc::O_ACCMODE == libc::O_RDWR;
        let mapping = match cannot_shrink(&file) {
            true => Some(Mapping::of_file(name, &file, offset, bytes, writable)?),
            false => None,
        };
        let backing = Backing { file: Arc::new(file.into()), offset, writable };
        let pages = bytes.div_ceil(PAGE_BYTES as u64);
        let populated = AtomicBitmap::for_region(name, pages)?;
        mark_data(&backing, bytes, &populated);
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            bytes,
            mapping,
            file: Some(backing),
            populated,
        })))
    }

    /// `bytes` of this process's memory at `address`.
    ///
    /// # Safety
    ///
    /// - `address` to `address + bytes` is mapped readable, and writable where pages are to be
    ///   placed, and stays so while any clone of the region lives.
    /// - What is mapped there cannot be truncated, or the caller handles SIGBUS.
    /// - No Rust reference to that memory is used meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where address or size is not a multiple of 4096, or the size is 0.
    pub unsafe fn from_mapping(name: &str, address: NonNull<u8>, bytes: usize) -> Result<Self> {
        let address = address.as_ptr();
        if bytes == 0
            || !bytes.is_multiple_of(PAGE_BYTES)
            || !(address as usize).is_multiple_of(PAGE_BYTES)
        {
            return Err(Error::Misuse(format!(
                "region {name}: {bytes} bytes at {address:p}: multiples of {PAGE_BYTES} are wanted"
            )));
        }
        let pages = (bytes / PAGE_BYTES) as u64;
        let populated = AtomicBitmap::for_region(name, pages)?;
        populated.set_run(Run { first_page: 0, pages });
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            bytes: bytes as u64,
            mapping: Some(Mapping { address, bytes, ours: false }),
            file: None,
            populated,
        })))
    }

    /// The name that both ends know it by.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Its size in pages; the last may be short.
    pub fn pages(&self) -> u64 {
        self.0.bytes.div_ceil(PAGE_BYTES as u64)
    }

    /// The file behind it, where there is one.
    pub(crate) fn file(&self) -> Option<&Arc<OwnedFd>> {
        self.0.file.as_ref().map(|backing| &backing.file)
    }

    /// Whether pages can be placed into it.
    pub(crate) fn is_writable(&self) -> bool {
        self.0.file.as_ref().is_none_or(|backing| backing.writable)
    }

    /// Where a run lies in the file: offset and bytes, less than whole pages at a short end.
    pub(crate) fn file_range(&self, run: Run) -> (u64, usize) {
        let backing = self.0.file.as_ref().expect("asked only where there is a file");
        let from = run.first_page * PAGE_BYTES as u64;
        let to = (run.end() * PAGE_BYTES as u64).min(self.0.bytes);
        (backing.offset + from, (to - from) as usize)
    }

    pub(super) fn check_run(&self, run: Run) {
        assert!(run.end() <= self.pages(), "{run:?} of {} pages", self.pages());
    }
}

impl Mapping {
    fn of_file(name: &str, file: &File, offset: u64, bytes: u64, writable: bool) -> Result<Self> {
        let bytes = bytes as usize;
        let protection =
            if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            return Err(SystemError::from_io(
                "mmap",
                format!("region {name} of {bytes} bytes"),
                &error,
            )
            .into());
        }
        // The whole last page is there, whatever the file's length says (mmap(2)).
        Ok(Self { address: address.cast(), bytes: bytes.next_multiple_of(PAGE_BYTES), ours: true })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.ours {
            // SAFETY: the mapping that `of_file` made; nothing points into it any more.
            unsafe { libc::munmap(self.address.cast(), self.bytes) };
        }
    }
}

/// Whether the file is a memfd that is, or from now on is, sealed against shrinking.
fn cannot_shrink(file: &File) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: fcntl with integer arguments on a descriptor that `file` keeps open.
    unsafe {
        let seals = libc::fcntl(fd, libc::F_GET_SEALS);
        seals >= 0
            && (seals & libc::F_SEAL_SHRINK != 0
                || libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) == 0)
    }
}

/// Marks the pages that are no hole. A file system that knows no holes reports all as data.
fn mark_data(backing: &Backing, bytes: u64, populated: &AtomicBitmap) {
    let page = PAGE_BYTES as u64;
    let end = backing.offset + bytes;
    let mut at = backing.offset;
    while let Some((from, to)) = next_data(&backing.file, at, end) {
        let first_page = (from - backing.offset) / page;
        let pages = (to - backing.offset).div_ceil(page) - first_page;
        populated.set_run(Run { first_page, pages });
        at = to;
    }
}

/// The next extent of data in `[at, end)` of a file (SEEK_DATA, lseek(2)).
pub(super) fn next_data(file: &OwnedFd, at: u64, end: u64) -> Option<(u64, u64)> {
    if at >= end {
        return None;
    }
    let seek = |from: u64, whence| {
        // SAFETY: lseek on a descriptor that `file` keeps open.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
        u64::try_from(found).ok()
    };
    match seek(at, libc::SEEK_DATA) {
        Some(from) if from < end => {
            let to = seek(from, libc::SEEK_HOLE).map_or(end, |to| to.min(end));
            Some((from, if to > from { to } else { end }))
        }
        Some(_) => None,
        // ENXIO: nothing but a hole from here. Anything else: take it for data, to be safe.
        None => match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::ENXIO) => None,
            _ => Some((at, end)),
        },
    }
}
