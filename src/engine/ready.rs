//! What a socket would do now, without doing it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Result, SystemError};

/// `SO_MEMINFO` (Linux 4.12): its words, by place (include/uapi/linux/sock_diag.h).
const SO_MEMINFO: libc::c_int = 55;
const SK_MEMINFO_WMEM_ALLOC: usize = 2;
const SK_MEMINFO_SNDBUF: usize = 3;
const SK_MEMINFO_WMEM_QUEUED: usize = 5;
const SK_MEMINFO_VARS: usize = 9;
/// What the kernel adds to bytes in its buffers, at the most: a part in eight, and a page for a
/// first packet's own bookkeeping.
const OVERHEAD_DIVISOR: usize = 8;
const OVERHEAD_BYTES: usize = 4096;

/// Bytes that a stream socket takes now without waiting, or none where poll(2) would not call it
/// writable. At least one where it would, so that whoever polls makes progress.
pub fn send_room_bytes(socket: &OwnedFd) -> usize {
    if !polled(socket, libc::POLLOUT) {
        return 0;
    }
    let mut info = [0u32; SK_MEMINFO_VARS];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` has room for the `length` bytes that it says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return 1;
    }
    // TCP counts what it queues, AF_UNIX what it allocated.
    let used = info[SK_MEMINFO_WMEM_QUEUED].max(info[SK_MEMINFO_WMEM_ALLOC]) as usize;
    let free = (info[SK_MEMINFO_SNDBUF] as usize).saturating_sub(used);
    (free - free / OVERHEAD_DIVISOR).saturating_sub(OVERHEAD_BYTES).max(1)
}

/// No limit for [`set_unsent_limit`].
pub const UNSENT_BYTES_MAX: u32 = u32::MAX;

/// Sets `TCP_NOTSENT_LOWAT` (tcp(7)) of a TCP socket: with a limit, the system's own for one, a
/// write that [`send_room_bytes`] has room for would wait.
///
/// # Errors
///
/// [`crate::Error::System`] where it is no TCP socket.
pub fn set_unsent_limit(socket: &impl AsFd, bytes: u32) -> Result<()> {
    // SAFETY: `bytes` has the four bytes that the length says.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(SystemError::from_io("setsockopt", "TCP_NOTSENT_LOWAT", &error).into())
}

/// Whether the events are there.
fn polled(socket: &OwnedFd, events: libc::c_short) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd, valid during the call, which does not wait.
    unsafe { libc::poll(&mut poll, 1, 0) };
    poll.revents & events != 0
}

/// A descriptor that is readable while its socket is, or while somebody holds it up: bytes that
/// were taken from the socket and wait in a slot do not show in the socket itself.
pub struct Level {
    epoll: Epoll,
    event: EventFd,
    raised: AtomicBool,
    _socket: Arc<OwnedFd>,
}

impl Level {
    /// Of a socket.
    ///
    /// # Errors
    ///
    /// [`crate::Error::System`] where there is no descriptor left.
    pub fn new(socket: &Arc<OwnedFd>) -> Result<Self> {
        let failed =
            |operation| move |e: nix::Error| SystemError::from_errno(operation, "stream", e as i32);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create1"))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).map_err(failed("eventfd"))?;
        let readable = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, 0);
        epoll.add(&**socket, readable).map_err(failed("epoll_ctl"))?;
        epoll.add(&event, readable).map_err(failed("epoll_ctl"))?;
        let raised = AtomicBool::new(false);
        Ok(Self { epoll, event, raised, _socket: Arc::clone(socket) })
    }

    /// Holds it up, or lets it go.
    pub fn hold(&self, up: bool) {
        if self.raised.swap(up, Ordering::AcqRel) == up {
            return;
        }
        // Neither can fail: the count goes from 0 to 1 and back.
        let _ = if up { self.event.write(1).map(drop) } else { self.event.read().map(drop) };
    }
}

impl AsFd for Level {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
