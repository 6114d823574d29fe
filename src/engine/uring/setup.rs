//! Making a ring, and saying why it cannot be made.

use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, register};

use super::super::probe::MemoryLock;
use super::super::{Callers, EngineSetup};
use crate::config::ZeroCopy;
use crate::error::{ConfigError, Error, REGISTER_BUFFERS, Result, SystemError};
use crate::wire::REGIONS_MAX;

/// Entries of a lane's submission queue.
pub(in super::super) const RING_ENTRIES: u32 = 64;
/// `IORING_SEND_ZC_REPORT_USAGE` (io_uring_enter(2), Linux 6.2).
pub(super) const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`: the kernel copied after all.
pub(super) const NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;

/// The operations that a lane uses; the last only for zero copy.
pub(in super::super) const OPERATIONS: [(&str, u8); 6] = [
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("SEND_ZC", opcode::SendZc::CODE),
];

/// A ring with pool, socket and room for files registered, every operation probed.
pub(super) fn for_lane(setup: &EngineSetup<'_>) -> Result<IoUring> {
    let ring =
        ring(setup.sqpoll, setup.callers).map_err(|e| refused("io_uring_setup", &e, setup))?;
    let submitter = ring.submitter();
    let mut probe = register::Probe::new();
    submitter
        .register_probe(&mut probe)
        .map_err(|e| refused("io_uring_register(PROBE)", &e, setup))?;
    for (name, code) in OPERATIONS {
        let needed = name != "SEND_ZC" || setup.zero_copy == ZeroCopy::Require;
        if needed && !probe.is_supported(code) {
            return Err(Error::Config(ConfigError {
                key: "engine = uring",
                found: format!("a kernel without IORING_OP_{name}"),
                wanted: "Linux 6.1 or newer".to_owned(),
                remedy: "update the kernel or name engine = syscalls".to_owned(),
            }));
        }
    }
    if setup.register {
        let slots: Vec<_> = (0..setup.pool.slots())
            .map(|index| libc::iovec {
                iov_base: setup.pool.address(index).cast(),
                iov_len: setup.pool.stride_bytes(),
            })
            .collect();
        // SAFETY: the pool's mapping; the kernel pins its pages, so they outlive the mapping too.
        unsafe { submitter.register_buffers(&slots) }
            .map_err(|e| refused(REGISTER_BUFFERS, &e, setup))?;
    }
    let sockets = [&setup.to, &setup.from].map(|endpoint| endpoint.socket.as_raw_fd());
    submitter
        .register_files_sparse(files_max())
        .and_then(|()| submitter.register_files_update(0, &sockets))
        .map_err(|e| refused("io_uring_register(FILES)", &e, setup))?;
    Ok(ring)
}

/// Room for both sockets and every region's file. The kernel refuses a table longer than
/// RLIMIT_NOFILE, and so many files cannot be open then anyway.
fn files_max() -> u32 {
    use nix::sys::resource::{Resource, getrlimit};
    let open_max = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    (REGIONS_MAX as u64 + 2).min(open_max.max(2)) as u32
}

/// A bare ring with the flags of a lane. One that any thread may enter defers nothing: what its
/// caller left with the kernel must go on while nobody enters it.
pub(in super::super) fn ring(sqpoll: bool, callers: Callers) -> std::io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if callers == Callers::One {
        builder.setup_single_issuer();
    }
    if sqpoll {
        builder.setup_sqpoll(1000);
    } else if callers == Callers::One {
        builder.setup_defer_taskrun();
    }
    builder.build(RING_ENTRIES)
}

fn refused(operation: &'static str, error: &std::io::Error, setup: &EngineSetup<'_>) -> Error {
    let needed = setup.pool.slots() * setup.pool.stride_bytes();
    let mut system = SystemError::from_io(operation, "io_uring", error);
    if error.raw_os_error() == Some(libc::ENOMEM) {
        system.subject = format!(
            "locked memory: {needed} bytes needed for {}, limit is {} for all lanes and \
             processes of this user together",
            setup.to.name,
            MemoryLock::of_this_process().soft_bytes
        );
    }
    with_remedy(system).into()
}

/// What helps where the kernel refuses io_uring or a part of it.
pub(super) fn with_remedy(error: SystemError) -> SystemError {
    match error.errno {
        libc::ENOMEM => error.remedy(
            "raise it with ulimit -l or LimitMEMLOCK=, use fewer lanes or smaller frames, or \
             name engine = syscalls, or for streams and tunnels zero_copy = off",
        ),
        libc::EPERM | libc::EACCES | libc::ENOSYS => {
            let who = match super::super::probe::io_uring_disabled() {
                Some(0) | None => {
                    "a seccomp filter of the container or service forbids it, or the kernel lacks \
                     it: allow io_uring_setup, io_uring_enter and io_uring_register"
                        .to_owned()
                }
                Some(value) => format!("sysctl kernel.io_uring_disabled is {value}: set it to 0"),
            };
            error.remedy(format!("{who}; or name engine = syscalls"))
        }
        libc::EINVAL => error.remedy(
            "Linux 6.1 or newer is wanted (IORING_SETUP_DEFER_TASKRUN): update the kernel or name \
             engine = syscalls",
        ),
        _ => error,
    }
}
