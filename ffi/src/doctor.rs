//! What this machine has for Sealane, as data.

use std::ffi::{c_char, c_int};

use sealane::doctor::{CpuFeatures, Probe, Provider, lane_locked_bytes};
use sealane::{Config, ProviderChoice};

use crate::fence::{call, int, size_of_given, write_sized};

/// Bytes of `sealane_doctor` in its first version.
const FIRST: usize = 56;

/// What this machine has. Set `size` to sizeof(struct sealane_doctor) before the call.
#[repr(C)]
pub struct sealane_doctor {
    /// Bytes of this struct, set by the caller.
    pub size: usize,
    /// The errno of making a ring as a lane does; 0 where io_uring can be used.
    pub uring_errno: i32,
    /// sysctl kernel.io_uring_disabled; -1 where the kernel has no such setting.
    pub uring_disabled: i32,
    /// Operations of io_uring that are wanted and missing; without them the engine is `syscalls`.
    pub operations_missing: u32,
    /// 1 where zero-copy send (IORING_OP_SEND_ZC) is there.
    pub send_zc: u32,
    /// 1 where the CPU has what the default provider needs.
    pub aes: u32,
    /// 1 where the limit of locked memory does not hold for this process (CAP_IPC_LOCK).
    pub memlock_unlimited: u32,
    /// The limit of locked memory (RLIMIT_MEMLOCK), UINT64_MAX without one.
    pub memlock_bytes: u64,
    /// How far it can be raised without privilege.
    pub memlock_hard_bytes: u64,
    /// Locked memory that a lane takes with the default settings.
    pub lane_locked_bytes: u64,
}

/// Looks at this machine.
///
/// Returns 0; -EINVAL where `size` is less than its first version's.
///
/// # Safety
///
/// `doctor` is null or as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_doctor_run(doctor: *mut sealane_doctor) -> c_int {
    int(call(|| {
        // SAFETY: as this function's.
        let size = unsafe { size_of_given(doctor, FIRST) }?;
        let (probe, config) = (Probe::run(), Config::default());
        let missing = |optional: bool| {
            let wanted = probe.operations.iter().filter(|o| (o.name == "SEND_ZC") == optional);
            wanted.filter(|operation| !operation.supported).count() as u32
        };
        let provider = Provider::resolve(ProviderChoice::Auto, &CpuFeatures::detect());
        let found = sealane_doctor {
            size,
            uring_errno: probe.setup_errno,
            uring_disabled: probe.io_uring_disabled.map_or(-1, |value| value as i32),
            operations_missing: missing(false),
            send_zc: u32::from(missing(true) == 0),
            aes: u32::from(provider.is_ok()),
            memlock_unlimited: u32::from(probe.lock.unlimited),
            memlock_bytes: probe.lock.soft_bytes,
            memlock_hard_bytes: probe.lock.hard_bytes,
            lane_locked_bytes: lane_locked_bytes(config.slots_per_lane, config.frame_bytes) as u64,
        };
        // SAFETY: as this function's.
        unsafe { write_sized(doctor, size, &found) };
        Ok(0)
    }))
}

/// Who seals with the default settings, `aws-lc-rs` for one; "" on a CPU without AES instructions.
/// Valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sealane_doctor_provider() -> *const c_char {
    let provider = Provider::resolve(ProviderChoice::Auto, &CpuFeatures::detect());
    provider.map_or(c"".as_ptr(), |provider| provider_name(provider.name()))
}

/// The name of a provider as C has it.
pub(crate) fn provider_name(name: &'static str) -> *const c_char {
    let name = match name {
        "aws-lc-rs" => c"aws-lc-rs",
        "ring" => c"ring",
        _ => c"aes-gcm",
    };
    name.as_ptr()
}
