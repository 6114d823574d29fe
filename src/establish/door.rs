//! Where the end that listens gets its connections.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockaddrStorage, VsockAddr, bind, getpeername, getsockname, listen,
};
use rustix::net::{SocketFlags, accept_with};

use super::address::Address;
use super::dial::{none_left, open, passed, unblocked};
use super::options::{check_connected, check_listening, local_address, peer_address, tune_if_tcp};
use super::rendezvous::{Attempt, Rendezvous};
use super::unix::{SocketFile, bind_unix, remove_stale};
use crate::config::Config;
use crate::error::{ConfigError, Error, Result, SystemError};

/// Connections that may wait to be accepted: every lane may come at once, and strangers beside.
const BACKLOG: i32 = 1024;
/// How soon a port that could not be had is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// The first descriptor that systemd passes (sd_listen_fds(3)).
const SYSTEMD_FIRST: i32 = 3;

/// Who connected, for fairness between strangers: nothing of it is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerAddress {
    /// By TCP, from there.
    Ip(IpAddr),
    /// By vsock, the machine with this CID.
    Vsock(u32),
    /// By a unix socket, or unknown.
    Local,
}

impl PeerAddress {
    /// What one stranger has as a rule: of IPv6 that are 64 bits of network (RFC 6177).
    pub(super) fn network(self) -> Self {
        match self {
            Self::Ip(IpAddr::V6(address)) => {
                let network = u128::from(address) >> 64 << 64;
                Self::Ip(IpAddr::V6(network.into()))
            }
            other => other,
        }
    }
}

/// Where the end that listens gets its connections from.
pub struct Door(Way);

enum Way {
    Listening { socket: OwnedFd, address: String, _file: Option<SocketFile> },
    Sockets { passed: usize, rest: VecDeque<OwnedFd> },
    Rendezvous(Box<Meeting>),
}

/// The connections that a rendezvous waits for.
struct Meeting {
    rendezvous: Rendezvous,
    /// The session's next connection, and the first of another session, whose dialler may begin
    /// anew.
    attempts: Vec<(u16, Attempt)>,
    next: u16,
    config: Option<Config>,
    /// Why the next connection cannot be attempted, which matters to whoever needs one more; and
    /// when it is tried again.
    failed: Option<(Error, Instant)>,
}

impl Door {
    /// Listens at `ADDRESS:PORT`, `unix:PATH`, `vsock:CID:PORT` or `vsock:any:PORT`, or with a
    /// socket that was passed: `fd:N`, or `systemd` (socket activation).
    ///
    /// A unix socket's file has mode 0600 and goes with this; one that nobody listens at is
    /// replaced.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where that cannot be, [`Error::Config`] where it is no such address or
    /// the socket that was passed does not listen.
    pub fn bind(address: &str) -> Result<Self> {
        let parsed: Address = address.parse()?;
        let failed = |operation, e: &std::io::Error| SystemError::from_io(operation, address, e);
        let (socket, file) = match &parsed {
            Address::Net { host, port } => {
                let socket = TcpListener::bind((&**host, *port)).map_err(|e| {
                    let failed = failed("bind", &e);
                    match e.raw_os_error() {
                        Some(_) => failed,
                        None => failed.remedy(format!("{e}: ADDRESS:PORT of this host is wanted")),
                    }
                })?;
                let socket = socket.into();
                started(&socket, address)?; // again: std's backlog is short
                (socket, None)
            }
            Address::Unix(path) => {
                let (socket, file) = listen_unix(path)?;
                (socket, Some(file))
            }
            Address::Vsock { cid, port } => (listen_vsock(*cid, *port, address)?, None),
            Address::Descriptor(number) => (passed(*number, check_listening)?, None),
            Address::Systemd => (passed(systemd()?, check_listening)?, None),
        };
        let socket = TcpListener::from(socket);
        socket.set_nonblocking(true).map_err(|e| failed("fcntl", &e))?;
        let socket = OwnedFd::from(socket);
        let address = own_address(&socket).unwrap_or_else(|| address.to_owned());
        Ok(Self(Way::Listening { socket, address, _file: file }))
    }

    /// Connections that were accepted elsewhere, taken in their order, each once.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where one of them is no connected stream socket.
    pub fn sockets(sockets: Vec<OwnedFd>) -> Result<Self> {
        sockets.iter().try_for_each(check_connected)?;
        Ok(Self(Way::Sockets { passed: sockets.len(), rest: sockets.into() }))
    }

    /// Connections where both hosts dial: see [`super::Dial::rendezvous`]. This end only lets the
    /// other speak first.
    ///
    /// # Errors
    ///
    /// As [`super::Dial::rendezvous`]; [`Error::System`] where the port is not free.
    pub fn rendezvous(local: &str, remote: &str) -> Result<Self> {
        let rendezvous = Rendezvous::new(local, remote)?;
        let first = Attempt::begin(&rendezvous, 0, None)?;
        let attempts = vec![(0, first)];
        Ok(Self(Way::Rendezvous(Box::new(Meeting {
            rendezvous,
            attempts,
            next: 0,
            config: None,
            failed: None,
        }))))
    }

    /// Sets the options of what listens, which connections inherit where they are TCP.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where one cannot be set.
    pub fn tune(&mut self, config: &Config) -> Result<()> {
        match &mut self.0 {
            Way::Listening { socket, .. } => tune_if_tcp(socket, config),
            Way::Sockets { rest, .. } => {
                rest.iter().try_for_each(|socket| tune_if_tcp(socket, config))
            }
            Way::Rendezvous(meeting) => {
                meeting.config = Some(config.clone());
                meeting.attempts.iter_mut().try_for_each(|(_, attempt)| attempt.tune(config))
            }
        }
    }

    /// What to poll for until [`Self::accept`] may have something, beside [`Self::retry_at`].
    pub fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        match &self.0 {
            Way::Listening { socket, .. } => vec![(socket.as_fd(), PollFlags::POLLIN)],
            Way::Sockets { .. } => Vec::new(),
            Way::Rendezvous(meeting) => {
                meeting.attempts.iter().flat_map(|(_, attempt)| attempt.poll_fds()).collect()
            }
        }
    }

    /// When [`Self::accept`] wants to be called again though no descriptor is ready.
    pub fn retry_at(&self) -> Option<Instant> {
        match &self.0 {
            Way::Listening { .. } | Way::Sockets { .. } => None,
            Way::Rendezvous(meeting) => meeting.retry_at(),
        }
    }

    /// A connection, non-blocking, where one is there.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where this end cannot go on; EMFILE and ENFILE are among them.
    pub fn accept(&mut self) -> Result<Option<(TcpStream, PeerAddress)>> {
        let socket = match &mut self.0 {
            Way::Listening { socket, address, .. } => accept(socket, address)?,
            Way::Sockets { rest, .. } => rest.pop_front(),
            Way::Rendezvous(meeting) => meeting.accept()?,
        };
        let Some(socket) = socket else { return Ok(None) };
        let peer = peer(&socket);
        Ok(Some((unblocked(socket)?, peer)))
    }

    /// Why nobody will come any more: all sockets that were passed have been taken, or, of a
    /// `further` connection of a session, the next port of a rendezvous cannot be had.
    pub fn none_left(&self, further: bool) -> Option<Error> {
        match &self.0 {
            Way::Sockets { passed, rest } if rest.is_empty() => Some(none_left(*passed)),
            Way::Rendezvous(meeting) if further => {
                meeting.failed.as_ref().map(|(error, _)| error.clone())
            }
            _ => None,
        }
    }

    /// The address that a TCP socket got; none of another family.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Way::Listening { socket, .. } => local_address(socket),
            Way::Sockets { .. } => None,
            Way::Rendezvous(meeting) => Some(meeting.rendezvous.local()),
        }
    }
}

/// Where it listens, as a dialler names it.
impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Way::Listening { address, .. } => f.write_str(address),
            Way::Sockets { passed, .. } => write!(f, "{passed} sockets"),
            Way::Rendezvous(meeting) => meeting.rendezvous.fmt(f),
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({self})")
    }
}

impl Meeting {
    fn retry_at(&self) -> Option<Instant> {
        let begins = match &self.failed {
            Some((_, again)) => Some(*again),
            None if [0, self.next].iter().all(|number| self.is_attempted(*number)) => None,
            None => Some(Instant::now()),
        };
        let attempts = self.attempts.iter().filter_map(|(_, attempt)| attempt.retry_at());
        attempts.chain(begins).min()
    }

    fn is_attempted(&self, number: u16) -> bool {
        self.attempts.iter().any(|(of, _)| *of == number)
    }

    fn accept(&mut self) -> Result<Option<OwnedFd>> {
        for number in [0, self.next] {
            let waits = |(_, again): &(Error, Instant)| Instant::now() < *again;
            if self.is_attempted(number) || (number > 0 && self.failed.as_ref().is_some_and(waits))
            {
                continue;
            }
            match Attempt::begin(&self.rendezvous, number, self.config.as_ref()) {
                Ok(attempt) => {
                    self.attempts.push((number, attempt));
                    self.failed = None;
                }
                // The session may have all the connections that it wants.
                Err(error) if number > 0 => self.failed = Some((error, Instant::now() + AGAIN)),
                Err(error) => return Err(error),
            }
        }
        for at in 0..self.attempts.len() {
            let (number, attempt) = &mut self.attempts[at];
            let number = *number;
            if let Some(socket) = attempt.step()? {
                self.next = number + 1;
                // The first one's goes on: see `attempts`.
                self.attempts.retain(|(of, _)| *of == 0 && number != 0);
                return Ok(Some(socket));
            }
        }
        Ok(None)
    }
}

/// A connection of a socket that listens, whatever its family, where one waits.
pub(super) fn accept(socket: &impl AsFd, address: &str) -> Result<Option<OwnedFd>> {
    match accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(e) => match Errno::from_raw(e.raw_os_error()) {
            // Of the listener, or of a connection that is gone or broken already (accept(2)).
            Errno::EAGAIN
            | Errno::EINTR
            | Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH => Ok(None),
            e => Err(SystemError::from_errno("accept", address, e as i32).into()),
        },
    }
}

fn listen_unix(path: &Path) -> Result<(OwnedFd, SocketFile)> {
    remove_stale(path)?;
    let (socket, file) = bind_unix(path)?;
    started(&socket, &path.display().to_string())?;
    Ok((socket, file))
}

fn listen_vsock(cid: Option<u32>, port: u32, address: &str) -> Result<OwnedFd> {
    let failed = |operation, e: Errno| SystemError::from_errno(operation, address, e as i32);
    let socket = open(AddressFamily::Vsock).map_err(|e| {
        failed("socket", e).remedy("load a transport of vsock: modprobe vhost_vsock on a host")
    })?;
    let here = VsockAddr::new(cid.unwrap_or(libc::VMADDR_CID_ANY), port);
    bind(socket.as_raw_fd(), &here).map_err(|e| match e {
        Errno::EADDRNOTAVAIL => failed("bind", e).remedy("name this machine's own CID, or any"),
        e => failed("bind", e),
    })?;
    started(&socket, address)?;
    Ok(socket)
}

fn started(socket: &OwnedFd, address: &str) -> Result<()> {
    let backlog = Backlog::new(BACKLOG).expect("no larger than what listen(2) allows");
    listen(socket, backlog).map_err(|e| SystemError::from_errno("listen", address, e as i32).into())
}

/// sd_listen_fds(3): the first of the sockets that were passed.
fn systemd() -> Result<i32> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let (process, count) = (number("LISTEN_PID"), number("LISTEN_FDS"));
    if process == Some(std::process::id()) && count.is_some_and(|count| count >= 1) {
        return Ok(SYSTEMD_FIRST);
    }
    let shown = |number: Option<u32>| number.map_or_else(|| "unset".to_owned(), |n| n.to_string());
    Err(Error::Config(ConfigError {
        key: "systemd",
        found: format!("LISTEN_PID {}, LISTEN_FDS {}", shown(process), shown(count)),
        wanted: format!("LISTEN_PID {}, LISTEN_FDS 1", std::process::id()),
        remedy: "let a .socket unit of systemd start this, or name an address".to_owned(),
    }))
}

fn own_address(socket: &OwnedFd) -> Option<String> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    if let Some(unix) = name.as_unix_addr() {
        return unix.path().map(|path| format!("unix:{}", path.display()));
    }
    if let Some(vsock) = name.as_vsock_addr() {
        let port = vsock.port();
        let cid = Some(vsock.cid()).filter(|cid| *cid != libc::VMADDR_CID_ANY);
        return Some(Address::Vsock { cid, port }.to_string());
    }
    local_address(socket).map(|address| address.to_string())
}

fn peer(socket: &OwnedFd) -> PeerAddress {
    if let Some(address) = peer_address(socket) {
        return PeerAddress::Ip(address.ip().to_canonical());
    }
    let name = getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok();
    let vsock = name.as_ref().and_then(|name| name.as_vsock_addr());
    vsock.map_or(PeerAddress::Local, |vsock| PeerAddress::Vsock(vsock.cid()))
}
