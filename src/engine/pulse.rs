//! Whether the host at the other end of a TCP connection still answers, while bytes are on their
//! way to it. Keepalive does not ask then.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Fewest questions without an answer that say something.
const UNANSWERED_MIN: u8 = 2;
/// `TCP_RTO_MAX_MS` (Linux 6.15, include/uapi/linux/tcp.h) and what it may be.
const TCP_RTO_MAX_MS: libc::c_int = 44;
const RTO_MAX_MS: std::ops::RangeInclusive<u128> = 1_000..=120_000;

/// Watches one blocked wait for a socket.
///
/// A host that lives answers retransmissions, and probes of a window that its program keeps
/// closed, so the kernel's counts of what is unanswered go back to 0; those of a dead host do not.
/// One probe may go unanswered by a host that lives: it answers two a second at most
/// (net.ipv4.tcp_invalid_ratelimit). And each is unanswered for a round trip, when the answer to
/// the one before may be old: so two must stay so for a while.
pub struct Pulse {
    peer_timeout: Duration,
    unanswered_since: Option<Instant>,
}

impl Pulse {
    /// Of a wait that begins now.
    pub fn new(peer_timeout: Duration) -> Self {
        Self { peer_timeout, unanswered_since: None }
    }

    /// Whether nothing came for `peer_timeout` though something was asked. To be called again and
    /// again during the wait. Never of a socket that is not TCP's.
    pub fn is_dead(&mut self, socket: &impl AsFd) -> bool {
        let Some(info) = tcp_info(socket.as_fd().as_raw_fd()) else { return false };
        if info.tcpi_retransmits.saturating_add(info.tcpi_probes) < UNANSWERED_MIN {
            self.unanswered_since = None;
            return false;
        }
        let since = *self.unanswered_since.get_or_insert_with(Instant::now);
        u128::from(info.tcpi_last_ack_recv) >= self.peer_timeout.as_millis()
            && since.elapsed() >= self.peer_timeout / 4
    }
}

fn tcp_info(socket: RawFd) -> Option<libc::tcp_info> {
    // SAFETY: it has integers only, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` has room for the `length` bytes that it says; the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    (result == 0).then_some(info)
}

/// How seldom at most the kernel asks a host that does not answer, or whose window is closed:
/// without a limit up to two minutes apart. Where the kernel has no such limit a dead host is
/// found later, by as much.
pub fn set_probe_interval_max(socket: &impl AsFd, interval: Duration) {
    let bounded = interval.as_millis().clamp(*RTO_MAX_MS.start(), *RTO_MAX_MS.end());
    let ms = bounded as libc::c_int;
    // SAFETY: `ms` has the bytes that the length says. An error says that this kernel is older.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const ms).cast(),
            size_of_val(&ms) as libc::socklen_t,
        )
    };
}

/// Ends a connection to a dead host, and gives back what the kernel keeps to send again: slots of
/// zero-copy sends too, for which an engine would wait when it is dropped.
pub fn abort(socket: &OwnedFd) {
    // SAFETY: it has integers only, for which zero is a value.
    let mut nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: `nobody` has the `length` bytes that it says. An error says that it has ended anyway.
    unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
}

/// A descriptor of our own for one that is known by its number alone, as it was passed on a
/// command line; closed on exec. That one stays open.
///
/// # Errors
///
/// EBADF where nothing is open there, EMFILE.
pub fn duplicate(number: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC changes nothing about `number`, whosever it is.
    let own = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel made it just now, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}
