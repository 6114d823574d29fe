//! From addresses to authenticated lanes: dial or listen, shake hands, join, CONFIRM.
//!
//! A lane leaves here only after the other end's first sealed frame has verified on it, so nobody
//! acts on a peer that does not hold the secret. All of it is under one deadline.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::Canceller;
use crate::config::{Config, FRAME_BYTES_MAX, FRAME_BYTES_MIN, LANES_MAX, PAGE_BYTES};
use crate::error::{CancelledBy, Error, PeerError, Result, SystemError};
use crate::lane::Lane;
use crate::seal::{CpuFeatures, Direction, KeyLimits, Opener, Provider, Sealer, SessionSecret};
use crate::trust::{self, Dialler, JoinRequest, Joined, OneTimeSecret, Spent};
use crate::wire::{
    Control, DIALLER_HELLO_BYTES, DiallerHello, HEADER_FIXED_BYTES, JOIN_REPLY_BYTES,
    OPEN_REPLY_BYTES, OpenHello, OpenReply, Opened, PREFIX_BYTES, Prefix, Refusal, Role, TAG_BYTES,
    VERSION, parse_header,
};

const CONFIRM_BYTES: usize = PREFIX_BYTES + HEADER_FIXED_BYTES + TAG_BYTES;
/// Connections that a listener hears out at a time; the oldest gives way.
const HALF_OPEN_MAX: usize = 64;
/// First messages that a listener remembers to have answered.
const ANSWERED_MAX: usize = 1024;
const POLL: Duration = Duration::from_millis(5);

/// Authenticated lanes and what was agreed about them.
pub struct Lanes {
    pub(super) lanes: Vec<Lane>,
    pub(super) frame_bytes: usize,
    pub(super) provider: Provider,
    pub(super) spent: Spent,
    /// A name of this migration that both ends know and nobody else.
    pub migration_id: [u8; 16],
}

impl Lanes {
    /// How many.
    pub fn count(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// The provider that seals them.
    pub fn provider(&self) -> &'static str {
        self.provider.name()
    }

    /// Bytes of a full frame's payload.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }
}

/// Connects to a listener and opens all lanes.
///
/// # Errors
///
/// [`Error::System`] where nothing listens there, [`PeerError::NotAuthenticated`] where what
/// listens does not hold the secret.
pub fn dial(
    address: &str,
    role: Role,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
) -> Result<Lanes> {
    config.check()?;
    secret.check_unspent()?;
    let provider = Provider::resolve(config.provider, &CpuFeatures::detect())?;
    let deadline = Instant::now() + config.handshake_timeout;
    let wire = Wire { deadline, cancel };
    let source = role == Role::Source;
    let hello = OpenHello {
        version: VERSION,
        role,
        lanes: if source { config.lanes } else { 0 },
        frame_bytes: if source { config.frame_bytes as u32 } else { 0 },
        migration_id: [0; 16],
    };
    let mut socket = connect(address, config, deadline)?;
    let (dialler, message) = Dialler::new(secret, &hello)?;
    wire.write(&mut socket, &message)?;
    let mut reply = [0; OPEN_REPLY_BYTES];
    wire.read(&mut socket, &mut reply)?;
    let (reply, session) = dialler.finish(&reply)?;
    let (lanes, frame_bytes) = match reply {
        OpenReply::Accepted { lanes, frame_bytes } => (lanes, frame_bytes as usize),
        OpenReply::Refused(why) => return Err(PeerError::Refused(why.text().to_owned()).into()),
    };
    if !limits_are_allowed(lanes, frame_bytes)
        || (source && (lanes, frame_bytes) != (config.lanes, config.frame_bytes))
    {
        let text = format!("{lanes} lanes with frames of {frame_bytes} bytes were not agreed on");
        return Err(PeerError::Protocol(text).into());
    }
    let keys = Keys { session: &session, role, provider };
    let mut opened = vec![wire.confirm(socket, keys.of(&Joined::first_lane()), 0)?];
    for lane in 1..lanes {
        let mut socket = connect(address, config, deadline)?;
        let (request, message) = JoinRequest::new(&session, lane)?;
        wire.write(&mut socket, &message)?;
        let mut reply = [0; JOIN_REPLY_BYTES];
        wire.read(&mut socket, &mut reply)?;
        let joined = request.finish(&session, &reply)?;
        opened.push(wire.confirm(socket, keys.of(&joined), lane)?);
    }
    let (spent, migration_id) = (secret.spent().clone(), session.migration_id());
    tracing::info!(%address, ?role, lanes, frame_bytes, provider = provider.name(), "lanes open");
    Ok(Lanes { lanes: opened, frame_bytes, provider, spent, migration_id })
}

/// Waits at an address for the other end.
pub struct Listener {
    socket: TcpListener,
    half_open: Vec<HalfOpen>,
    /// Authentic first messages that were answered: recorded and sent again they would keep the
    /// listener waiting for a CONFIRM. Only who holds the secret can add to it.
    answered: VecDeque<[u8; DIALLER_HELLO_BYTES]>,
}

/// A stranger: what came of its first message, and until when it is heard out.
struct HalfOpen {
    socket: TcpStream,
    bytes: [u8; DIALLER_HELLO_BYTES],
    filled: usize,
    deadline: Instant,
}

impl Listener {
    /// Listens at `address`, for example `0.0.0.0:7800` or `[::]:7800`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where that cannot be.
    pub fn bind(address: &str) -> Result<Self> {
        let failed = |operation, e: &std::io::Error| SystemError::from_io(operation, address, e);
        let socket = TcpListener::bind(address).map_err(|e| match e.raw_os_error() {
            Some(_) => failed("bind", &e),
            None => failed("bind", &e).remedy(format!("{e}: ADDRESS:PORT of this host is wanted")),
        })?;
        socket.set_nonblocking(true).map_err(|e| failed("fcntl", &e))?;
        Ok(Self { socket, half_open: Vec::new(), answered: VecDeque::new() })
    }

    /// The address that it got.
    pub fn local_address(&self) -> Result<SocketAddr> {
        let address = self.socket.local_addr();
        Ok(address.map_err(|e| SystemError::from_io("getsockname", "listener", &e))?)
    }

    /// Waits for a peer that holds the secret and opens all lanes. Strangers get no answer and do
    /// not end the wait; only `cancel` does.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::Config`], also where a completed migration has used the
    /// secret, and [`Error::System`] where this end cannot go on;
    /// [`PeerError::Refused`] where a peer with the secret had the wrong role or limits (it was
    /// told so).
    pub fn accept(
        &mut self,
        role: Role,
        secret: &OneTimeSecret,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Lanes> {
        config.check()?;
        secret.check_unspent()?;
        let provider = Provider::resolve(config.provider, &CpuFeatures::detect())?;
        // What cannot be set for the connections is this end's error, not a stranger's silence.
        tune(&self.socket, config)?;
        loop {
            let (mut socket, message) = self.next_hello(config, cancel, None)?;
            // Of a stranger nothing is logged but that there was one.
            let Ok(DiallerHello::Open(hello, clear, noise)) = DiallerHello::parse(&message) else {
                tracing::debug!("dropped a stranger: no first message of this protocol");
                continue;
            };
            if self.answered.contains(&message) {
                tracing::debug!("dropped a first message that was answered before");
                continue;
            }
            let Ok(listener) = trust::Listener::new(secret, &clear, &noise) else {
                tracing::debug!("dropped a stranger: its first message does not verify");
                continue;
            };
            self.answered.truncate(ANSWERED_MAX - 1);
            self.answered.push_front(message);
            let wire = Wire { deadline: Instant::now() + config.handshake_timeout, cancel };
            // Another listener of this process may have completed meanwhile.
            let unspent = secret.check_unspent();
            let answer = match &unspent {
                Ok(()) => answer(&hello, role, config),
                Err(_) => OpenReply::Refused(Refusal::SecretSpent),
            };
            let (reply, session) = listener.reply(&answer)?;
            if wire.write(&mut socket, &reply).is_err() {
                continue;
            }
            let (lanes, frame_bytes) = match answer {
                OpenReply::Accepted { lanes, frame_bytes } => (lanes, frame_bytes as usize),
                OpenReply::Refused(why) => {
                    unspent?;
                    let text = format!("we refused it: {}", why.text());
                    return Err(PeerError::Refused(text).into());
                }
            };
            let keys = Keys { session: &session, role, provider };
            // Whoever only replays a first message fails here, and we listen on.
            let first = match wire.confirm(socket, keys.of(&Joined::first_lane()), 0) {
                Ok(lane) => lane,
                Err(error @ Error::Cancelled { .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "no CONFIRM after a first message that verified");
                    continue;
                }
            };
            let lanes = self.joins(first, lanes, &keys, config, &wire)?;
            let migration_id = session.migration_id();
            let spent = secret.spent().clone();
            tracing::info!(?role, lanes = lanes.len(), frame_bytes, "lanes open");
            return Ok(Lanes { lanes, frame_bytes, provider, spent, migration_id });
        }
    }

    /// Lanes 1 and up; the dialler opens them one after another.
    fn joins(
        &mut self,
        first: Lane,
        count: u16,
        keys: &Keys<'_>,
        config: &Config,
        wire: &Wire<'_>,
    ) -> Result<Vec<Lane>> {
        let mut lanes = vec![first];
        while lanes.len() < usize::from(count) {
            let (mut socket, message) =
                self.next_hello(config, wire.cancel, Some(wire.deadline))?;
            let Ok(DiallerHello::Join(hello)) = DiallerHello::parse(&message) else { continue };
            let Ok((joined, reply)) = trust::answer_join(keys.session, &hello) else { continue };
            if usize::from(joined.lane) != lanes.len() || joined.generation != 0 {
                let text = format!("a join of lane {} after {} lanes", joined.lane, lanes.len());
                return Err(PeerError::Protocol(text).into());
            }
            wire.write(&mut socket, &reply)?;
            lanes.push(wire.confirm(socket, keys.of(&joined), joined.lane)?);
        }
        Ok(lanes)
    }

    /// The next whole first message of anybody.
    fn next_hello(
        &mut self,
        config: &Config,
        cancel: &Canceller,
        deadline: Option<Instant>,
    ) -> Result<(TcpStream, [u8; DIALLER_HELLO_BYTES])> {
        loop {
            check_cancel(cancel)?;
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Err(silent(config.handshake_timeout.as_secs()));
            }
            match self.socket.accept() {
                Ok((socket, _)) => self.admit(socket, config),
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(POLL),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                // Strangers may have taken them all: the oldest gives way.
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                        && !self.half_open.is_empty() =>
                {
                    drop(self.half_open.remove(0));
                }
                Err(e) => return Err(SystemError::from_io("accept", "listener", &e).into()),
            }
            let now = Instant::now();
            self.half_open.retain(|peer| now < peer.deadline);
            let mut at = 0;
            while at < self.half_open.len() {
                let peer = &mut self.half_open[at];
                match peer.socket.read(&mut peer.bytes[peer.filled..]) {
                    Ok(0) => drop(self.half_open.remove(at)),
                    Ok(bytes) => peer.filled += bytes,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => at += 1,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => drop(self.half_open.remove(at)),
                }
                if self.half_open.get(at).is_some_and(|p| p.filled == DIALLER_HELLO_BYTES) {
                    let peer = self.half_open.remove(at);
                    return Ok((peer.socket, peer.bytes));
                }
            }
        }
    }

    fn admit(&mut self, socket: TcpStream, config: &Config) {
        if socket.set_nonblocking(true).is_err() || tune(&socket, config).is_err() {
            return;
        }
        if self.half_open.len() == HALF_OPEN_MAX {
            self.half_open.remove(0);
        }
        let deadline = Instant::now() + config.handshake_timeout;
        let bytes = [0; DIALLER_HELLO_BYTES];
        self.half_open.push(HalfOpen { socket, bytes, filled: 0, deadline });
    }
}

fn answer(hello: &OpenHello, role: Role, config: &Config) -> OpenReply {
    if hello.version != VERSION {
        return OpenReply::Refused(Refusal::Version);
    }
    if hello.role == role {
        return OpenReply::Refused(Refusal::Role);
    }
    if hello.migration_id != [0; 16] {
        return OpenReply::Refused(Refusal::MigrationId);
    }
    let (lanes, frame_bytes) = match role {
        Role::Source => (config.lanes, config.frame_bytes as u32),
        Role::Target => (hello.lanes, hello.frame_bytes),
    };
    if !limits_are_allowed(lanes, frame_bytes as usize) {
        return OpenReply::Refused(Refusal::Limits);
    }
    OpenReply::Accepted { lanes, frame_bytes }
}

fn limits_are_allowed(lanes: u16, frame_bytes: usize) -> bool {
    (1..=LANES_MAX).contains(&lanes)
        && (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes)
        && frame_bytes.is_multiple_of(PAGE_BYTES)
}

/// How a session's secret becomes a lane's two keys.
struct Keys<'a> {
    session: &'a SessionSecret,
    role: Role,
    provider: Provider,
}

impl Keys<'_> {
    fn of(&self, joined: &Joined) -> (Sealer, Opener) {
        let secret = |direction| {
            let (ours, theirs) = (&joined.dialler_nonce, &joined.listener_nonce);
            self.session.lane_secret(direction, joined.lane, joined.generation, ours, theirs)
        };
        let (out, back) = match self.role {
            Role::Source => (Direction::FromSource, Direction::FromTarget),
            Role::Target => (Direction::FromTarget, Direction::FromSource),
        };
        let limits = KeyLimits::default();
        (
            Sealer::new(self.provider, secret(out), limits, joined.lane),
            Opener::new(self.provider, secret(back), limits, joined.lane),
        )
    }
}

/// Reading and writing under the handshake's deadline.
struct Wire<'a> {
    deadline: Instant,
    cancel: &'a Canceller,
}

impl Wire<'_> {
    /// Sends CONFIRM and waits for the other end's (W-27).
    fn confirm(&self, mut socket: TcpStream, keys: (Sealer, Opener), lane: u16) -> Result<Lane> {
        let (mut sealer, mut opener) = keys;
        let mut frame = [0; CONFIRM_BYTES];
        let prefix = Control::Confirm.encode(&mut frame[PREFIX_BYTES..]);
        sealer.seal(&mut frame, prefix)?;
        self.write(&mut socket, &frame)?;
        self.read(&mut socket, &mut frame)?;
        let reason = "its first sealed frame does not verify";
        let refused = || Error::from(PeerError::NotAuthenticated { reason });
        let prefix =
            Prefix::parse(*frame.first_chunk().expect("8 of 56"), 0).map_err(|_| refused())?;
        let header = opener.open_header(&mut frame, prefix).map_err(|_| refused())?;
        match parse_header(header, 0, &[]) {
            Ok(Opened::Control(Control::Confirm)) => {}
            _ => return Err(PeerError::Protocol("no CONFIRM first".to_owned()).into()),
        }
        let failed = |e| SystemError::from_io("fcntl", format!("lane {lane}"), &e);
        socket.set_nonblocking(false).map_err(failed)?;
        Ok(Lane { index: lane, socket: Arc::new(socket.into()), sealer, opener })
    }

    fn write(&self, socket: &mut TcpStream, bytes: &[u8]) -> Result<()> {
        self.each(bytes.len(), |from| socket.write(&bytes[from..]))
    }

    fn read(&self, socket: &mut TcpStream, bytes: &mut [u8]) -> Result<()> {
        self.each(bytes.len(), |from| socket.read(&mut bytes[from..]))
    }

    fn each(
        &self,
        bytes: usize,
        mut step: impl FnMut(usize) -> std::io::Result<usize>,
    ) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            check_cancel(self.cancel)?;
            match step(done) {
                Ok(0) => {
                    let reason = "it closed the connection during the handshake";
                    return Err(PeerError::NotAuthenticated { reason }.into());
                }
                Ok(moved) => done += moved,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= self.deadline {
                        let reason = "no answer in the time of the handshake";
                        return Err(PeerError::NotAuthenticated { reason }.into());
                    }
                    std::thread::sleep(POLL);
                }
                Err(_) => {
                    let reason = "it reset the connection during the handshake";
                    return Err(PeerError::NotAuthenticated { reason }.into());
                }
            }
        }
        Ok(())
    }
}

fn connect(address: &str, config: &Config, deadline: Instant) -> Result<TcpStream> {
    let failed = |operation, e: &std::io::Error| SystemError::from_io(operation, address, e);
    let mut last = None;
    let resolved = address.to_socket_addrs().map_err(|e| {
        failed("resolve", &e).remedy(format!("{e}: HOST:PORT is wanted, of a host that is known"))
    })?;
    for resolved in resolved {
        let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
        match TcpStream::connect_timeout(&resolved, left) {
            Ok(socket) => {
                tune(&socket, config)?;
                socket.set_nonblocking(true).map_err(|e| failed("fcntl", &e))?;
                return Ok(socket);
            }
            Err(e) => last = Some(failed("connect", &e)),
        }
    }
    Err(last
        .unwrap_or_else(|| SystemError::from_errno("resolve", address, 0).remedy("no address"))
        .into())
}

/// Options of a lane's socket (tcp(7)). Not TCP_USER_TIMEOUT: it ends connections whose window is
/// closed, as a target's is while its disk is busy; heartbeats tell the living from the dead.
fn tune(socket: &impl AsFd, config: &Config) -> Result<()> {
    let failed =
        |name, e: nix::Error| Error::from(SystemError::from_errno("setsockopt", name, e as i32));
    setsockopt(socket, sockopt::TcpNoDelay, &true).map_err(|e| failed("TCP_NODELAY", e))?;
    setsockopt(socket, sockopt::KeepAlive, &true).map_err(|e| failed("SO_KEEPALIVE", e))?;
    if config.socket_buffer_bytes > 0 {
        let bytes = config.socket_buffer_bytes;
        setsockopt(socket, sockopt::SndBuf, &bytes).map_err(|e| failed("SO_SNDBUF", e))?;
        setsockopt(socket, sockopt::RcvBuf, &bytes).map_err(|e| failed("SO_RCVBUF", e))?;
    }
    if let Some(name) = &config.congestion {
        setsockopt(socket, sockopt::TcpCongestion, &std::ffi::OsString::from(name)).map_err(
            |e| {
                Error::from(
                    SystemError::from_errno(
                        "setsockopt",
                        format!("TCP_CONGESTION {name}"),
                        e as i32,
                    )
                    .remedy("see sysctl net.ipv4.tcp_available_congestion_control"),
                )
            },
        )?;
    }
    Ok(())
}

fn check_cancel(cancel: &Canceller) -> Result<()> {
    if cancel.is_cancelled() {
        return Err(Error::Cancelled { by: CancelledBy::Us });
    }
    Ok(())
}

fn silent(waited_s: u64) -> Error {
    PeerError::Silent { lane: 0, phase: "while further lanes were to join", waited_s }.into()
}
