//! The end that speaks first: how it gets its connections.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr, bind,
    connect, getsockopt, setsockopt, socket, sockopt,
};

use super::address::{Address, Local, resolve};
use super::options::{
    check_connected, is_internet, local_address, peer_address, tune, tune_if_tcp,
};
use super::rendezvous::{Attempt, Rendezvous};
use super::unix::unix_address;
use super::{TICK, is_ready, wait};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::engine;
use crate::error::{ConfigError, Error, Result, SystemError};

/// How long a listener whose queue is full is left alone: poll(2) does not wait for it (AF_UNIX).
const QUEUE_REST: Duration = Duration::from_millis(5);

/// Where the end that speaks first gets its connections from. Clones share what they know.
///
/// ```
/// use sealane::Dial;
/// # fn main() -> sealane::Result<()> {
/// let plain = Dial::to("target.example:7800")?;
/// // From one address of this host, through a firewall that lets these ports out.
/// let narrow = Dial::to("target.example:7800")?.bind("192.0.2.7:49152-49215")?;
/// let local: Dial = "unix:/run/sealane.sock".parse()?;
/// // Both hosts dial: each firewall sees a connection that goes out.
/// let both = Dial::rendezvous("192.0.2.7:7800", "198.51.100.7:7800")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Dial {
    way: Way,
    session: Arc<Mutex<State>>,
}

#[derive(Clone)]
enum Way {
    To { address: Address, from: Local },
    Sockets(Arc<Passed>),
    Rendezvous(Arc<Rendezvous>),
}

struct Passed {
    count: usize,
    rest: Mutex<VecDeque<OwnedFd>>,
}

/// What the connections of a session have in common.
#[derive(Default)]
struct State {
    /// Which of a name's hosts answered.
    known: Option<Place>,
    connections: u16,
}

impl Dial {
    /// Connections to a listener at `HOST:PORT`, `[V6]:PORT`, `unix:PATH` or `vsock:CID:PORT`, or
    /// the one connection `fd:N` that the control plane passed. A name is looked up for the first
    /// connection of a session, and its addresses are tried in turn; all others go to the one that
    /// answered.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where it is no such address.
    pub fn to(address: &str) -> Result<Self> {
        let address: Address = address.parse()?;
        let listens = |remedy: &str| {
            let (found, remedy) = (address.to_string(), remedy.to_owned());
            let wanted = "an address of the other end".to_owned();
            Error::from(ConfigError { key: "address", found, wanted, remedy })
        };
        match &address {
            Address::Systemd => Err(listens("systemd passes sockets to the end that listens")),
            Address::Vsock { cid: None, .. } => Err(listens("name the CID of the other end")),
            Address::Net { port: 0, .. } => Err(listens("name the port that it listens at")),
            Address::Descriptor(number) => Self::sockets(passed_sockets(&[*number])?),
            _ => Ok(Self::by(Way::To { address, from: Local::default() })),
        }
    }

    /// Lets connections leave from `ADDRESS`, from `ADDRESS:PORT`, or from the ports of
    /// `ADDRESS:LOW-HIGH` or `:LOW-HIGH`, both included, for firewalls that tell connections by
    /// where they come from. ADDRESS is one of this host's, as a number. A session needs a port
    /// for each of its connections.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where it is no such thing, or this does not dial by TCP to a listener.
    pub fn bind(mut self, from: &str) -> Result<Self> {
        let local: Local = from.parse()?;
        match &mut self.way {
            Way::To { address: Address::Net { .. }, from } => *from = local,
            _ => {
                return Err(Error::Config(ConfigError {
                    key: "bind",
                    found: format!("{from} for connections to {self}"),
                    wanted: "connections to HOST:PORT".to_owned(),
                    remedy: "leave it out: other connections have no such address".to_owned(),
                }));
            }
        }
        Ok(self)
    }

    /// Connections where both hosts dial at once (simultaneous open, RFC 9293 3.5), from `local`
    /// (`ADDRESS:PORT` of this host) to `remote` (`HOST:PORT`), so that two firewalls which only
    /// let connections out are both content. The other end names the same two, exchanged, and
    /// listens by a rendezvous. The connections of a session take consecutive ports at both ends,
    /// beginning with these. Of several addresses the first of `local`'s family is meant.
    ///
    /// A session may follow another one at once: where one kernel remembers the closed connection
    /// (TIME_WAIT) the other end's try comes through, as long as TCP's timestamps are on.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where these are no such addresses, or the same one;
    /// [`Error::System`] where the name is not known.
    pub fn rendezvous(local: &str, remote: &str) -> Result<Self> {
        Ok(Self::by(Way::Rendezvous(Arc::new(Rendezvous::new(local, remote)?))))
    }

    /// Connections that somebody else made: connected stream sockets of any family, used in their
    /// order, each once. A session needs one for each lane or stream, a tunnel one more than the
    /// hypervisor has channels.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where one of them is no connected stream socket.
    pub fn sockets(sockets: Vec<OwnedFd>) -> Result<Self> {
        sockets.iter().try_for_each(check_connected)?;
        let passed = Passed { count: sockets.len(), rest: Mutex::new(sockets.into()) };
        Ok(Self::by(Way::Sockets(Arc::new(passed))))
    }

    /// The same for another session: its first connection is the next one.
    pub(crate) fn begin(&self) -> Self {
        Self::by(self.way.clone())
    }

    /// The next connection of the session, non-blocking, with its options set.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where nobody is there before the deadline; [`Error::Misuse`] where no
    /// socket is left; [`Error::Cancelled`].
    pub(crate) fn next(
        &self,
        config: &Config,
        deadline: Instant,
        cancel: &Canceller,
    ) -> Result<TcpStream> {
        cancel.check()?;
        let within = Within { config, deadline, cancel };
        match &self.way {
            Way::To { address, from } => self.connect(address, from, within),
            Way::Sockets(passed) => passed.next(config),
            Way::Rendezvous(rendezvous) => {
                let number = {
                    let mut state = self.state();
                    let number = state.connections;
                    state.connections = number.saturating_add(1);
                    number
                };
                meet(rendezvous, number, within)
            }
        }
    }

    fn connect(&self, address: &Address, from: &Local, within: Within<'_>) -> Result<TcpStream> {
        let known = self.state().known.clone();
        let places = match known {
            Some(place) => vec![place],
            None => places(address, from)?,
        };
        let mut last = None;
        for (at, place) in places.iter().enumerate() {
            within.cancel.check()?;
            let left = within.deadline.saturating_duration_since(Instant::now()).max(TICK);
            let share = left / (places.len() - at) as u32;
            let within = Within { deadline: Instant::now() + share, ..within };
            match place.connect_from(from, within) {
                Ok(socket) => {
                    self.state().known.get_or_insert_with(|| place.clone());
                    return Ok(TcpStream::from(socket));
                }
                Err(Error::System(error)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        let mut error = last.expect("there is a place");
        if error.operation == "connect" {
            error.subject = named(address, &places);
        }
        Err(error.into())
    }

    fn by(way: Way) -> Self {
        Self { way, session: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.session.lock().expect("no panic while it is held")
    }
}

impl FromStr for Dial {
    type Err = Error;

    fn from_str(address: &str) -> Result<Self> {
        Self::to(address)
    }
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::To { address, .. } => address.fmt(f),
            Way::Sockets(passed) => write!(f, "{} sockets", passed.count),
            Way::Rendezvous(rendezvous) => rendezvous.fmt(f),
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dial({self})")
    }
}

/// Descriptors of the sockets that were passed to this process under these numbers, which stay as
/// they are: for [`Dial::sockets`] and [`super::Listener::sockets`].
///
/// # Errors
///
/// [`Error::System`] where one is no descriptor of this process, [`Error::Config`] where it is no
/// connected stream socket.
pub fn passed_sockets(numbers: &[i32]) -> Result<Vec<OwnedFd>> {
    numbers.iter().map(|number| passed(*number, check_connected)).collect()
}

/// A duplicate of a descriptor that passes a check; errors name the number that was passed.
pub(super) fn passed(number: i32, check: fn(&OwnedFd) -> Result<()>) -> Result<OwnedFd> {
    let socket = engine::duplicate(number).map_err(|e| {
        let remedy = "name a descriptor that was passed to this process";
        SystemError::from_io("dup", format!("fd:{number}"), &e).remedy(remedy)
    })?;
    check(&socket).map_err(|error| match error {
        Error::Config(e) => {
            let own = format!("descriptor {}", socket.as_raw_fd());
            let found = e.found.replacen(&own, &format!("fd:{number}"), 1);
            ConfigError { found, ..e }.into()
        }
        error => error,
    })?;
    Ok(socket)
}

impl Passed {
    fn next(&self, config: &Config) -> Result<TcpStream> {
        let next = self.rest.lock().expect("no panic while it is held").pop_front();
        let socket = next.ok_or_else(|| none_left(self.count))?;
        tune_if_tcp(&socket, config)?;
        unblocked(socket)
    }
}

/// What whoever passed too few sockets is told.
pub(super) fn none_left(passed: usize) -> Error {
    Error::Misuse(format!(
        "{passed} connected sockets were passed and {} are wanted at least: pass one for each \
         connection of the session",
        passed + 1
    ))
}

pub(super) fn unblocked(socket: OwnedFd) -> Result<TcpStream> {
    let socket = TcpStream::from(socket);
    let failed = |e| SystemError::from_io("fcntl", "socket", &e);
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

#[derive(Clone, Copy)]
struct Within<'a> {
    config: &'a Config,
    deadline: Instant,
    cancel: &'a Canceller,
}

fn meet(rendezvous: &Rendezvous, number: u16, within: Within<'_>) -> Result<TcpStream> {
    let mut attempt = Attempt::begin(rendezvous, number, Some(within.config))?;
    loop {
        within.cancel.check()?;
        if let Some(socket) = attempt.step()? {
            tune(&socket, within.config)?;
            return Ok(TcpStream::from(socket));
        }
        if Instant::now() >= within.deadline {
            return Err(attempt.in_vain().into());
        }
        let retry_at = attempt.retry_at().unwrap_or(within.deadline);
        wait(&attempt.poll_fds(), Some(retry_at.min(within.deadline)));
    }
}

/// One place that may answer.
#[derive(Clone)]
enum Place {
    Net(SocketAddr),
    Unix(UnixAddr),
    Vsock(VsockAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(address) => address.fmt(f),
            Self::Unix(address) => write!(f, "unix:{address}"),
            Self::Vsock(address) => write!(f, "vsock:{}:{}", address.cid(), address.port()),
        }
    }
}

fn places(address: &Address, from: &Local) -> Result<Vec<Place>> {
    Ok(match address {
        Address::Net { host, port } => {
            let all = resolve(host, *port)?;
            let fits = |to: &&SocketAddr| from.address.is_none_or(|a| a.is_ipv4() == to.is_ipv4());
            let fit: Vec<_> = all.iter().filter(fits).copied().map(Place::Net).collect();
            if fit.is_empty() {
                let all: Vec<_> = all.iter().map(SocketAddr::to_string).collect();
                return Err(Error::Config(ConfigError {
                    key: "bind",
                    found: format!("{from} for connections to {}", all.join(", ")),
                    wanted: "an address of the same family".to_owned(),
                    remedy: format!("name one that reaches {address}"),
                }));
            }
            fit
        }
        Address::Unix(path) => vec![Place::Unix(unix_address(path)?)],
        Address::Vsock { cid, port } => {
            let cid = cid.expect("Dial::to asks for one");
            vec![Place::Vsock(VsockAddr::new(cid, *port))]
        }
        Address::Descriptor(_) | Address::Systemd => unreachable!("Dial::to takes neither"),
    })
}

/// What was dialled, and what that means where it does not say so itself.
fn named(address: &Address, places: &[Place]) -> String {
    let tried: Vec<_> = places.iter().map(Place::to_string).collect();
    let (address, tried) = (address.to_string(), tried.join(", "));
    if address == tried { address } else { format!("{address} ({tried})") }
}

impl Place {
    fn socket_address(&self) -> Box<dyn SockaddrLike> {
        match self {
            Self::Net(address) => Box::new(SockaddrStorage::from(*address)),
            Self::Unix(address) => Box::new(*address),
            Self::Vsock(address) => Box::new(*address),
        }
    }

    /// From each of the ports in turn, until one is free.
    fn connect_from(&self, from: &Local, within: Within<'_>) -> Result<OwnedFd> {
        let Self::Net(to) = self else { return self.connect(None, within) };
        let any = match to.ip() {
            IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let address = from.address.unwrap_or(any);
        let Some((low, high)) = from.ports else {
            return self.connect(from.address, within);
        };
        for port in low..=high {
            let mut here = address;
            here.set_port(port);
            match self.connect(Some(here), within) {
                Err(Error::System(e)) if port_is_taken(&e) => {}
                result => return result,
            }
        }
        let remedy = "all of these ports are in use: name more of them, or end what uses them";
        let error = SystemError::from_errno("bind", from.to_string(), Errno::EADDRINUSE as i32);
        Err(error.remedy(remedy).into())
    }

    fn connect(&self, from: Option<SocketAddr>, within: Within<'_>) -> Result<OwnedFd> {
        let failed =
            |operation, e: Errno| SystemError::from_errno(operation, self.to_string(), e as i32);
        let address = self.socket_address();
        let family = address.family().expect("it has one");
        let socket = open(family).map_err(|e| failed("socket", e))?;
        if is_internet(family) {
            tune(&socket, within.config)?;
        }
        if let Some(from) = from {
            bind_from(&socket, from)?;
        }
        loop {
            match connect(socket.as_raw_fd(), &*address) {
                Ok(()) => break,
                Err(Errno::EINPROGRESS | Errno::EINTR) => {
                    let ended = connected(&socket, within)?;
                    ended.map_err(|e| failed("connect", e))?;
                    break;
                }
                // AF_UNIX: the listener's queue is full.
                Err(Errno::EAGAIN) if family == AddressFamily::Unix => {
                    within.cancel.check()?;
                    if Instant::now() >= within.deadline {
                        let remedy = "it accepts nobody: look what it does";
                        return Err(failed("connect", Errno::EAGAIN).remedy(remedy).into());
                    }
                    std::thread::sleep(QUEUE_REST);
                }
                Err(e @ Errno::ENOENT) => {
                    let remedy = "start the other end first, and let it listen there";
                    return Err(failed("connect", e).remedy(remedy).into());
                }
                Err(e) => return Err(failed("connect", e).into()),
            }
        }
        if is_to_itself(&socket) {
            // Nobody listens at a port that the kernel chose for this end.
            return Err(failed("connect", Errno::ECONNREFUSED).into());
        }
        Ok(socket)
    }
}

/// A stream socket, not connected and non-blocking.
pub(super) fn open(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Stream, flags, None)
}

/// Whether a connection reached the socket that it came from.
pub(super) fn is_to_itself(socket: &OwnedFd) -> bool {
    local_address(socket).is_some_and(|local| peer_address(socket) == Some(local))
}

/// Waits for a connect that is under way: how it ended.
fn connected(socket: &OwnedFd, within: Within<'_>) -> Result<nix::Result<()>> {
    loop {
        within.cancel.check()?;
        if is_ready(socket.as_fd(), PollFlags::POLLOUT, within.deadline) {
            let error = getsockopt(socket, sockopt::SocketError).unwrap_or(libc::EIO);
            return Ok(if error == 0 { Ok(()) } else { Err(Errno::from_raw(error)) });
        }
        if Instant::now() >= within.deadline {
            return Ok(Err(Errno::ETIMEDOUT));
        }
    }
}

fn bind_from(socket: &OwnedFd, from: SocketAddr) -> Result<()> {
    let failed =
        |operation, e: Errno| SystemError::from_errno(operation, format!("bind {from}"), e as i32);
    // A port is free again right after its connection, for another peer; without a port, the
    // kernel chooses one when it knows the peer.
    let option = match from.port() {
        0 => setsockopt(socket, sockopt::IpBindAddressNoPort, &true),
        _ => setsockopt(socket, sockopt::ReuseAddr, &true),
    };
    option.map_err(|e| failed("setsockopt", e))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).map_err(|e| match e {
        Errno::EADDRNOTAVAIL => {
            failed("bind", e).remedy("name an address that this host has: see ip address").into()
        }
        e => failed("bind", e).into(),
    })
}

/// Whether another port may do: this one is bound, or has such a connection.
fn port_is_taken(error: &SystemError) -> bool {
    (error.operation == "bind" && error.errno == libc::EADDRINUSE)
        || (error.operation == "connect" && error.errno == libc::EADDRNOTAVAIL)
}
