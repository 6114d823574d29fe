//! Two hosts that dial each other at once: TCP's simultaneous open.
//!
//! ```text
//!  A: SYN ->|          firewall of B drops it: nothing went out to A yet
//!           |<- SYN :B firewall of A lets it in: it belongs to what A sent
//!  A: SYN+ACK ->       B's lets it in: it belongs to what B sent
//! ```
//!
//! A socket that dials and one that listens share each port. Where a host without a firewall is
//! between two tries, the other's SYN meets the one that listens. The same addresses and ports can
//! only become one connection, whichever way it came: the kernel refuses a second.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockaddrStorage, bind, connect, getsockopt, listen, setsockopt, sockopt,
};

use super::address::{Address, resolve};
use super::dial::{is_to_itself, open};
use super::door::accept;
use super::is_ready;
use super::options::{peer_address, tune};
use crate::config::Config;
use crate::error::{ConfigError, Error, Result, SystemError};

/// How long after a try that failed the next begins, and up to so much more, so that two ends do
/// not miss each other again and again.
const RETRY: Duration = Duration::from_millis(50);
const JITTER_MS: u32 = 100;
/// The same where the ports have a connection, which may last.
const RETRY_TAKEN: Duration = Duration::from_millis(500);
/// Connections that may wait at a port.
const BACKLOG: i32 = 8;

/// Both ends of the first connection; the others have the ports that follow.
pub(super) struct Rendezvous {
    local: SocketAddr,
    remote: SocketAddr,
}

impl Rendezvous {
    pub(super) fn new(local: &str, remote: &str) -> Result<Self> {
        let ours = numeric(local)?;
        let Address::Net { host, port } = remote.parse()? else {
            return Err(wrong(remote, "HOST:PORT of the other end", "a rendezvous is for TCP"));
        };
        let theirs = resolve(&host, port)?;
        let fits = theirs.iter().find(|to| to.is_ipv4() == ours.is_ipv4());
        let Some(&remote) = fits else {
            let found = format!("{remote}, which is {}", theirs[0]);
            let wanted = format!("an address of the same family as {local}");
            return Err(wrong(&found, &wanted, "name an address of this host that reaches it"));
        };
        if ours.port() == 0 || port == 0 {
            let found = format!("{local} and {remote}");
            return Err(wrong(&found, "ports that both ends know", "name both"));
        }
        let rendezvous = Self { local: ours, remote };
        if rendezvous.local == rendezvous.remote {
            return Err(rendezvous.is_with_itself());
        }
        Ok(rendezvous)
    }

    /// The addresses of the connection with this number.
    fn ends(&self, number: u16) -> Result<(SocketAddr, SocketAddr)> {
        let shifted = |address: SocketAddr| {
            let port = address.port().checked_add(number)?;
            Some(SocketAddr::new(address.ip(), port)).map(|mut shifted| {
                if let (SocketAddr::V6(to), SocketAddr::V6(from)) = (&mut shifted, address) {
                    to.set_scope_id(from.scope_id());
                }
                shifted
            })
        };
        shifted(self.local).zip(shifted(self.remote)).ok_or_else(|| {
            let found = format!("{self}, connection {number}");
            wrong(&found, "ports up to 65535", "name lower ports: each connection takes one more")
        })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    fn is_with_itself(&self) -> Error {
        let found = format!("{self}, the same socket");
        wrong(&found, "an address of the other end", "exchange the two addresses at one end")
    }
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rendezvous of {} with {}", self.local, self.remote)
    }
}

fn numeric(text: &str) -> Result<SocketAddr> {
    let wanted = "ADDRESS:PORT of this host";
    let remedy = "name it as a number: see ip address";
    let Address::Net { host, port } = text.parse()? else {
        return Err(wrong(text, wanted, remedy));
    };
    let is_numeric = host.contains(':') || host.parse::<std::net::IpAddr>().is_ok();
    match is_numeric {
        true => Ok(resolve(&host, port)?[0]),
        false => Err(wrong(text, wanted, remedy)),
    }
}

fn wrong(found: &str, wanted: &str, remedy: &str) -> Error {
    let (found, wanted, remedy) = (found.to_owned(), wanted.to_owned(), remedy.to_owned());
    ConfigError { key: "rendezvous", found, wanted, remedy }.into()
}

/// One connection that both ends try to make.
pub(super) struct Attempt {
    local: SocketAddr,
    remote: SocketAddr,
    config: Option<Config>,
    /// Catches the other end's try between two of ours.
    catcher: OwnedFd,
    trying: Option<OwnedFd>,
    /// When the next try begins.
    next: Instant,
    last: Errno,
}

impl Attempt {
    /// # Errors
    ///
    /// [`Error::System`] where the port is not free, or no descriptor is.
    pub(super) fn begin(of: &Rendezvous, number: u16, config: Option<&Config>) -> Result<Self> {
        let (local, remote) = of.ends(number)?;
        let catcher = bound(local, config)?;
        let backlog = Backlog::new(BACKLOG).expect("no larger than what listen(2) allows");
        listen(&catcher, backlog).map_err(|e| failed("listen", local, e))?;
        let (config, next) = (config.cloned(), Instant::now());
        Ok(Self { local, remote, config, catcher, trying: None, next, last: Errno::ETIMEDOUT })
    }

    /// Goes on as far as it can without waiting.
    pub(super) fn step(&mut self) -> Result<Option<OwnedFd>> {
        while let Some(socket) = accept(&self.catcher, &self.local.to_string())? {
            if peer_address(&socket) == Some(self.remote) {
                return Ok(Some(socket));
            }
            tracing::debug!("dropped a stranger: it is not from where the other end is");
        }
        if let Some(socket) = &self.trying
            && is_ready(socket.as_fd(), PollFlags::POLLOUT, Instant::now())
        {
            let socket = self.trying.take().expect("just seen");
            return match getsockopt(&socket, sockopt::SocketError).unwrap_or(libc::EIO) {
                0 => self.made(socket),
                errno => {
                    self.rest(Errno::from_raw(errno));
                    Ok(None)
                }
            };
        }
        if self.trying.is_some() || Instant::now() < self.next {
            return Ok(None);
        }
        let socket = bound(self.local, self.config.as_ref())?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(self.remote)) {
            Ok(()) => return self.made(socket),
            Err(Errno::EINPROGRESS | Errno::EINTR) => self.trying = Some(socket),
            Err(e) => self.rest(e),
        }
        Ok(None)
    }

    /// What [`Self::step`] waits for, beside [`Self::retry_at`].
    pub(super) fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let trying = self.trying.as_ref().map(|socket| (socket.as_fd(), PollFlags::POLLOUT));
        [(self.catcher.as_fd(), PollFlags::POLLIN)].into_iter().chain(trying).collect()
    }

    /// When the next try begins; none while one goes on.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.trying.is_none().then_some(self.next)
    }

    /// What is told where nobody came in time.
    pub(super) fn in_vain(&self) -> SystemError {
        let subject = format!("rendezvous of {} with {}", self.local, self.remote);
        let remedy = "start the other end too, with the same two addresses exchanged";
        SystemError::from_errno("connect", subject, self.last as i32).remedy(remedy)
    }

    /// Sets the options of the tries that follow.
    pub(super) fn tune(&mut self, config: &Config) -> Result<()> {
        tune(&self.catcher, config)?;
        self.config = Some(config.clone());
        Ok(())
    }

    fn made(&self, socket: OwnedFd) -> Result<Option<OwnedFd>> {
        if is_to_itself(&socket) {
            return Err(Rendezvous { local: self.local, remote: self.remote }.is_with_itself());
        }
        Ok(Some(socket))
    }

    fn rest(&mut self, why: Errno) {
        self.last = why;
        let jitter = getrandom::u32().unwrap_or(0) % JITTER_MS;
        let base = if why == Errno::EADDRNOTAVAIL { RETRY_TAKEN } else { RETRY };
        self.next = Instant::now() + base + Duration::from_millis(jitter.into());
    }
}

/// A socket at a port that it shares with others of this user.
pub(super) fn bound(local: SocketAddr, config: Option<&Config>) -> Result<OwnedFd> {
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = open(family).map_err(|e| failed("socket", local, e))?;
    if let Some(config) = config {
        tune(&socket, config)?;
    }
    setsockopt(&socket, sockopt::ReuseAddr, &true)
        .and_then(|()| setsockopt(&socket, sockopt::ReusePort, &true))
        .map_err(|e| failed("setsockopt", local, e))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local)).map_err(|e| match e {
        Errno::EADDRNOTAVAIL => {
            failed("bind", local, e).remedy("name an address that this host has: see ip address")
        }
        e => failed("bind", local, e),
    })?;
    Ok(socket)
}

fn failed(operation: &'static str, local: SocketAddr, e: Errno) -> SystemError {
    SystemError::from_errno(operation, format!("rendezvous at {local}"), e as i32)
}
