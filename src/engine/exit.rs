//! How a process ended that another one waited for, by its pidfd.

use std::os::fd::{AsRawFd, OwnedFd};

/// The wait status (wait(2)) of a process that has ended and was waited for. None before that, and
/// where the kernel does not keep it (Linux before 6.15).
pub fn exit_status(pidfd: &OwnedFd) -> Option<i32> {
    // SAFETY: it has integers only, for which zero is a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = libc::PIDFD_INFO_EXIT.into();
    // SAFETY: the request has the size of `info`, which is valid during the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    let is_known = result == 0 && info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
    is_known.then_some(info.exit_code)
}
