//! What this system has for the engines: for `sealane doctor` and for error messages.

use io_uring::register;

use super::Callers;
use super::uring::{OPERATIONS, RING_ENTRIES, ring};
use crate::buffer::{HEAD_BYTES, TAIL_BYTES};

/// Whether io_uring and what a lane needs of it are there.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `uname -r`.
    pub kernel: String,
    /// `kernel.io_uring_disabled`, where the kernel has that setting.
    pub io_uring_disabled: Option<u32>,
    /// The errno of making a ring, 0 where it worked.
    pub setup_errno: i32,
    /// The operations of a lane.
    pub operations: Vec<Operation>,
    /// The limit of locked memory.
    pub lock: MemoryLock,
}

/// One io_uring operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its name without `IORING_OP_`.
    pub name: &'static str,
    /// Whether this kernel has it.
    pub supported: bool,
}

/// RLIMIT_MEMLOCK (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLock {
    /// The limit in force, in bytes; `u64::MAX` without one.
    pub soft_bytes: u64,
    /// How far it can be raised without privilege.
    pub hard_bytes: u64,
    /// CAP_IPC_LOCK: the limit does not hold.
    pub unlimited: bool,
}

impl Probe {
    /// Looks.
    pub fn run() -> Self {
        let made = ring(false, Callers::One);
        let setup_errno = made.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        let mut probe = register::Probe::new();
        let probed = made.is_ok_and(|ring| ring.submitter().register_probe(&mut probe).is_ok());
        let operations = OPERATIONS
            .iter()
            .map(|&(name, code)| Operation { name, supported: probed && probe.is_supported(code) })
            .collect();
        Self {
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            io_uring_disabled: io_uring_disabled(),
            setup_errno,
            operations,
            lock: MemoryLock::of_this_process(),
        }
    }
}

impl MemoryLock {
    /// The limit of this process.
    pub fn of_this_process() -> Self {
        use nix::sys::resource::{Resource, getrlimit};
        let (soft_bytes, hard_bytes) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((0, 0));
        Self { soft_bytes, hard_bytes, unlimited: has_ipc_lock() }
    }

    /// Whether so much can be locked.
    pub fn allows(&self, bytes: usize) -> bool {
        self.unlimited || bytes as u64 <= self.soft_bytes
    }
}

/// Bytes that the sending or receiving half of a lane locks: its slots and its ring (one page of
/// entries and one of each queue's bookkeeping, rounded up).
pub fn lane_locked_bytes(slots: usize, frame_bytes: usize) -> usize {
    let ring = (RING_ENTRIES as usize * (64 + 2 * 16)).next_multiple_of(4096) + 8192;
    slots * (HEAD_BYTES + frame_bytes + TAIL_BYTES) + ring
}

pub(super) fn io_uring_disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Bit 14 of the effective capabilities (capabilities(7)).
fn has_ipc_lock() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits >> 14 & 1 == 1)
}
