//! Slots and pools: who owns which bytes, and when.
//!
//! A pool is one anonymous mapping; a slot is a fixed part of it, laid out as
//! `4096 head | payload | 4096 tail`, so that the payload is page-aligned, a frame's prefix and
//! header end where the payload begins, and its tag begins where the payload ends. Exactly one
//! [`Slot`] value exists for a part at a time: it lives with whoever fills it, then with the
//! engine while the kernel uses it, and goes back to the pool when it is dropped. The mapping
//! lives until the pool and its last slot are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::PAGE_BYTES;
use crate::error::{Error, Result, SystemError};

/// Bytes of a slot before its payload.
pub const HEAD_BYTES: usize = PAGE_BYTES;
/// Bytes of a slot after its payload.
pub const TAIL_BYTES: usize = PAGE_BYTES;
/// Most slots of a pool: the bits of its free set.
pub const SLOTS_MAX: usize = 64;

/// Equal slots in one mapping.
pub struct Pool(Arc<Shared>);

struct Shared {
    address: *mut u8,
    slots: usize,
    stride_bytes: usize,
    free: AtomicU64,
}

// SAFETY: the mapping is plain memory; the free set hands each part of it to one owner at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; `Shared` itself reads and writes nothing but the atomic free set.
unsafe impl Sync for Shared {}

impl Pool {
    /// `slots` (1 to 64) slots with `payload_bytes` (a multiple of 4096) each.
    ///
    /// A forked child does not inherit the mapping and a core dump does not hold it: it carries
    /// guest memory in the clear. Huge pages are not asked for: a registered huge page counts
    /// whole against `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where the memory cannot be had.
    pub fn new(slots: usize, payload_bytes: usize) -> Result<Self> {
        assert!((1..=SLOTS_MAX).contains(&slots), "{slots} slots");
        assert!(payload_bytes.is_multiple_of(PAGE_BYTES), "{payload_bytes} bytes of payload");
        let stride_bytes = HEAD_BYTES + payload_bytes + TAIL_BYTES;
        let bytes = slots * stride_bytes;
        let failed = |operation| {
            let error = std::io::Error::last_os_error();
            Error::System(SystemError::from_io(operation, format!("pool of {bytes} bytes"), &error))
        };
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(failed("mmap"));
        }
        let free = AtomicU64::new(u64::MAX >> (64 - slots));
        let shared = Shared { address: address.cast(), slots, stride_bytes, free };
        for (name, advice) in [
            ("madvise(MADV_DONTFORK)", libc::MADV_DONTFORK),
            ("madvise(MADV_DONTDUMP)", libc::MADV_DONTDUMP),
        ] {
            // SAFETY: the range is the mapping just made.
            if unsafe { libc::madvise(address, bytes, advice) } != 0 {
                return Err(failed(name));
            }
        }
        Ok(Self(Arc::new(shared)))
    }

    /// A free slot, or none while all are in use.
    pub fn take(&self) -> Option<Slot> {
        // Acquire pairs with the release in `Slot::drop`: what the last owner did is over.
        let mut free = self.0.free.load(Ordering::Acquire);
        while free != 0 {
            let index = free.trailing_zeros() as usize;
            let rest = free & (free - 1);
            match self.0.free.compare_exchange_weak(
                free,
                rest,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(Slot { pool: Arc::clone(&self.0), index }),
                Err(now) => free = now,
            }
        }
        None
    }

    /// Slots, free or not.
    pub fn slots(&self) -> usize {
        self.0.slots
    }

    /// Bytes of one slot: head, payload, tail.
    pub fn stride_bytes(&self) -> usize {
        self.0.stride_bytes
    }

    /// Bytes of a slot's payload.
    pub fn payload_bytes(&self) -> usize {
        self.0.stride_bytes - HEAD_BYTES - TAIL_BYTES
    }

    /// Address of a slot, to register it with the kernel.
    pub(crate) fn address(&self, index: usize) -> *mut u8 {
        assert!(index < self.0.slots);
        // SAFETY: inside the mapping by the check above.
        unsafe { self.0.address.add(index * self.0.stride_bytes) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping of `Pool::new`; no slot is left, each holds an `Arc` of this.
        unsafe { libc::munmap(self.address.cast(), self.slots * self.stride_bytes) };
    }
}

/// One slot: the only way to its bytes while it lives.
pub struct Slot {
    pool: Arc<Shared>,
    index: usize,
}

impl Slot {
    /// Its place in the pool: the index of its registered buffer.
    pub fn index(&self) -> usize {
        self.index
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the part belongs to this value alone, is initialised (anonymous memory is
        // zero) and lives as long as `pool`.
        unsafe { std::slice::from_raw_parts(self.address(), self.pool.stride_bytes) }
    }

    /// All of its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.pool.stride_bytes) }
    }

    /// The payload's room.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let end = self.pool.stride_bytes - TAIL_BYTES;
        &mut self.bytes_mut()[HEAD_BYTES..end]
    }

    /// How many they are.
    pub(crate) fn stride_bytes(&self) -> usize {
        self.pool.stride_bytes
    }

    pub(crate) fn address(&self) -> *mut u8 {
        // SAFETY: inside the mapping: `index < slots` for every slot that `take` made.
        unsafe { self.pool.address.add(self.index * self.pool.stride_bytes) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.free.fetch_or(1 << self.index, Ordering::Release);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_come_back() {
        let pool = Pool::new(3, 8192).unwrap();
        let mut slots: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(slots.len(), 3);
        for (n, slot) in slots.iter_mut().enumerate() {
            slot.bytes_mut().fill(n as u8 + 1);
        }
        for (n, slot) in slots.iter().enumerate() {
            assert!(slot.bytes().iter().all(|&byte| byte == n as u8 + 1));
            assert_eq!(slot.bytes().len(), HEAD_BYTES + 8192 + TAIL_BYTES);
            assert!((slot.address() as usize).is_multiple_of(PAGE_BYTES));
        }
        let freed = slots.swap_remove(1).index();
        assert_eq!(pool.take().unwrap().index(), freed);
    }

    #[test]
    fn a_slot_outlives_its_pool() {
        let pool = Pool::new(64, 4096).unwrap();
        let mut slot = pool.take().unwrap();
        drop(pool);
        slot.payload_mut().fill(7);
        assert_eq!(slot.bytes()[HEAD_BYTES + 4095], 7);
    }
}
