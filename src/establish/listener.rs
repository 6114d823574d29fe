//! Listening: strangers are heard out, a few bytes each, and get no answer.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::PollFlags;

use super::options::tune;
use super::{Session, Shake, Use, wait};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{Error, PeerError, Result, SystemError};
use crate::lane::Lane;
use crate::trust::{self, OneTimeSecret};
use crate::wire::{DIALLER_HELLO_BYTES, DiallerHello, OpenReply, Refusal, Role};

/// Connections that a listener hears out at a time; the oldest gives way.
const HALF_OPEN_MAX: usize = 64;
/// First messages that a listener remembers to have answered.
const ANSWERED_MAX: usize = 1024;

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

/// How long a wait goes on.
#[derive(Clone, Copy)]
pub struct Until<'a> {
    /// When it ends.
    pub deadline: Option<Instant>,
    /// Whether it ends before, looked at from time to time.
    pub over: &'a dyn Fn() -> bool,
}

impl Until<'_> {
    const NEVER: Until<'static> = Until { deadline: None, over: &|| false };

    fn is_over(&self) -> bool {
        (self.over)() || self.deadline.is_some_and(|at| Instant::now() >= at)
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Listens at `address`, for example `0.0.0.0:7800` or `[::]:7800`.
    ///
    /// # Errors
    ///
    /// [`crate::Error::System`] where that cannot be.
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

    /// Waits for a peer that holds the secret and opens a session. Strangers get no answer, and a
    /// peer with another role or use is told so; neither ends the wait, only `cancel` does.
    /// `secret` is asked for each that may be the peer.
    ///
    /// # Errors
    ///
    /// As [`Shake::answer`], and what `secret` says; [`crate::Error::Cancelled`].
    pub(crate) fn open(
        &mut self,
        role: Role,
        purpose: Use,
        secret: &dyn Fn() -> Result<OneTimeSecret>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Session, Lane, OneTimeSecret)> {
        config.check()?;
        secret()?.check_unspent()?;
        // What cannot be set for the connections is this end's error, not a stranger's silence.
        tune(&self.socket, config)?;
        loop {
            let heard = self.next_hello(config, cancel, Until::NEVER)?;
            let Some((socket, message)) = heard else { continue };
            // Of a stranger nothing is logged but that there was one.
            let Ok(DiallerHello::Open(hello, clear, noise)) = DiallerHello::parse(&message) else {
                tracing::debug!("dropped a stranger: no first message of this protocol");
                continue;
            };
            let secret = secret()?;
            let Some(listener) = self.verified(&secret, &message, &clear, &noise) else { continue };
            let shake = Shake::begin(role, purpose, config, cancel);
            match shake.answer(socket, &hello, listener, &secret) {
                Ok(Some((session, lane))) => return Ok((session, lane, secret)),
                Ok(None) => {}
                // It was told so. It may be a message of somebody's mistake that was recorded and
                // is sent again: the peer may come yet.
                Err(error @ Error::Peer(PeerError::Refused(_))) => {
                    tracing::warn!(%error, "listening on");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for one more lane of a session; none once it is over. Whoever wants to
    /// open another session meanwhile is told that it cannot be now.
    ///
    /// # Errors
    ///
    /// As [`Shake::admit`]; [`crate::Error::Cancelled`].
    pub(crate) fn join(
        &mut self,
        session: &Session,
        secret: &OneTimeSecret,
        shake: &Shake<'_>,
        until: Until<'_>,
        admits: impl Fn(u16) -> bool,
    ) -> Result<Option<Lane>> {
        loop {
            let heard = self.next_hello(shake.config, shake.cancel, until)?;
            let Some((mut socket, message)) = heard else { return Ok(None) };
            match DiallerHello::parse(&message) {
                Ok(DiallerHello::Join(hello)) => {
                    let now = Instant::now() + shake.config.handshake_timeout;
                    let deadline = until.deadline.map_or(now, |at| at.min(now));
                    let shake = Shake { deadline, ..*shake };
                    if let Some(lane) = shake.admit(session, socket, &hello, &admits)? {
                        return Ok(Some(lane));
                    }
                }
                Ok(DiallerHello::Open(_, clear, noise)) => {
                    if let Some(peer) = self.verified(secret, &message, &clear, &noise) {
                        let (reply, _) = peer.reply(&OpenReply::Refused(Refusal::Busy))?;
                        // The socket is new: so few bytes fit. Whoever is gone needs no answer.
                        let _ = std::io::Write::write_all(&mut socket, &reply);
                    }
                }
                Err(_) => tracing::debug!("dropped a stranger: no message of this protocol"),
            }
        }
    }

    /// A first message that verifies and is new.
    fn verified(
        &mut self,
        secret: &OneTimeSecret,
        message: &[u8; DIALLER_HELLO_BYTES],
        clear: &[u8; crate::wire::OPEN_CLEAR_BYTES],
        noise: &[u8; crate::wire::NOISE_FIRST_BYTES],
    ) -> Option<trust::Listener> {
        if self.answered.contains(message) {
            tracing::debug!("dropped a first message that was answered before");
            return None;
        }
        let Ok(listener) = trust::Listener::new(secret, clear, noise) else {
            tracing::debug!("dropped a stranger: its first message does not verify");
            return None;
        };
        self.answered.truncate(ANSWERED_MAX - 1);
        self.answered.push_front(*message);
        Some(listener)
    }

    /// The next whole first message of anybody; none once it is over.
    fn next_hello(
        &mut self,
        config: &Config,
        cancel: &Canceller,
        until: Until<'_>,
    ) -> Result<Option<(TcpStream, [u8; DIALLER_HELLO_BYTES])>> {
        loop {
            cancel.check()?;
            if until.is_over() {
                return Ok(None);
            }
            match self.socket.accept() {
                Ok((socket, _)) => self.admit(socket, config),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let readable = |fd| (fd, PollFlags::POLLIN);
                    let peers = self.half_open.iter().map(|peer| readable(peer.socket.as_fd()));
                    let fds: Vec<_> =
                        std::iter::once(readable(self.socket.as_fd())).chain(peers).collect();
                    wait(&fds, until.deadline);
                }
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
                    return Ok(Some((peer.socket, peer.bytes)));
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
