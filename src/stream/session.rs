//! A session of streams: the first connection authenticates, the others join it.

use std::collections::HashSet;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Stream;
use crate::cancel::Canceller;
use crate::config::{Config, STREAMS_MAX};
use crate::error::{Error, PeerError, Result, SystemError};
use crate::establish::{self, Dial, Listener, Session, Shake, Until, Use, tune_if_tcp};
use crate::lane::Lane;
use crate::trust::Trust;
use crate::wire::{Asks, DiallerHello, Role};

/// How long a door where something is wrong is left alone.
const REST: Duration = Duration::from_millis(500);

/// Streams that belong together. Clones are the same session.
///
/// One end dials its connections ([`Self::open`], [`Self::join`]), the other accepts them
/// ([`Self::answer`], [`Self::admit`]), whichever of them is source or target. Sockets are handed
/// over connected; [`Self::dial`], [`Self::dial_next`], [`Listener::accept_streams`] and
/// [`Listener::next_stream`] make them too.
#[derive(Clone)]
pub struct Streams(Arc<Shared>);

struct Shared {
    session: Session,
    trust: Trust,
    config: Config,
    numbers: Mutex<HashSet<u16>>,
    /// Where the next connection comes from, at the end that dials.
    dial: Option<Dial>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    /// Opens a session over a connected stream socket, as the end that dialled. Blocks until the
    /// other end has shown that it holds the secret, at most `config.handshake_timeout`.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`] where it does not, [`PeerError::Refused`] with its reason;
    /// [`Error::System`] where an engine cannot be made.
    pub fn open(
        socket: impl Into<OwnedFd>,
        role: Role,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Self, Stream)> {
        config.check()?;
        let shake = Shake::begin(role, Use::Streams, config, cancel);
        let trust = trust.into();
        let (session, lane) = shake.open(adopt(socket.into(), config)?, &trust)?;
        Self::new(session, trust, config, None).with(lane)
    }

    /// Opens a session over a connected stream socket, as the end that accepted it.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn answer(
        socket: impl Into<OwnedFd>,
        role: Role,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Self, Stream)> {
        config.check()?;
        let trust = trust.into();
        trust.check_unspent()?;
        let shake = Shake::begin(role, Use::Streams, config, cancel);
        let mut socket = adopt(socket.into(), config)?;
        let caller = shake.greet(&mut socket, &trust)?;
        match shake.answer(socket, caller, None)? {
            Some((session, lane)) => Self::new(session, trust, config, None).with(lane),
            None => Err(stranger("it went away during the handshake")),
        }
    }

    /// Waits for the first bytes of a connection that this end accepted and leaves them there:
    /// whether it wants [`Self::answer`] or [`Self::admit`], where either may come. At most
    /// `config.handshake_timeout`.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`] where it is no first message of this protocol, with what is
    /// known of it: TLS, a plain migration of QEMU's.
    pub fn asks(socket: impl AsFd, config: &Config, cancel: &Canceller) -> Result<Asks> {
        establish::arrival(socket.as_fd(), config, cancel)
    }

    /// One more stream over a connected socket, as the end that dialled.
    ///
    /// # Errors
    ///
    /// [`PeerError::Closed`] where the other end does not answer, [`PeerError::NotAuthenticated`]
    /// where somebody else does; [`Error::System`] where an engine cannot be made;
    /// [`Error::Misuse`] after 4096 streams.
    pub fn join(&self, socket: impl Into<OwnedFd>, cancel: &Canceller) -> Result<Stream> {
        let lane = self.join_lane(adopt(socket.into(), &self.0.config)?, cancel)?;
        self.stream(lane)
    }

    /// One more stream over a connected socket, as the end that accepted it.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn admit(&self, socket: impl Into<OwnedFd>, cancel: &Canceller) -> Result<Stream> {
        let shake = self.shake(cancel);
        let mut socket = adopt(socket.into(), &self.0.config)?;
        let message = shake.first_message(&mut socket)?;
        let Ok(DiallerHello::Join(hello)) = DiallerHello::parse(&message) else {
            return Err(stranger("its first message joins no session"));
        };
        let lane = shake.admit(&self.0.session, socket, &hello, |lane| self.number_is_new(lane))?;
        self.stream(lane.ok_or_else(|| {
            stranger("its request for a stream does not verify, or is an old one")
        })?)
    }

    /// Connects to a listener and opens a session.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; [`Error::System`] where nothing listens there.
    pub fn dial(
        dial: &Dial,
        role: Role,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Self, Stream)> {
        let (streams, lane) = Self::dial_lane(dial, role, Use::Streams, trust, config, cancel)?;
        streams.with(lane)
    }

    /// Connects to the listener once more: one more stream. It goes to the host that the first
    /// connection reached, whatever its name means by now.
    ///
    /// # Errors
    ///
    /// As [`Self::join`] and [`Self::dial`]; [`Error::Misuse`] where [`Self::dial`] did not make
    /// this session.
    pub fn dial_next(&self, cancel: &Canceller) -> Result<Stream> {
        self.dial_next_lane(cancel).and_then(|lane| self.stream(lane))
    }

    /// Says that the migration is complete: the secret opens no other session in this process.
    pub fn complete(&self) {
        self.0.session.spent.set();
    }

    /// A name of this migration that both ends know and nobody else.
    pub fn migration_id(&self) -> [u8; 16] {
        self.0.session.migration_id()
    }

    /// Bytes of a full frame's payload.
    pub fn frame_bytes(&self) -> usize {
        self.0.session.frame_bytes
    }

    /// Who seals.
    pub fn provider(&self) -> &'static str {
        self.0.session.provider.name()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// Whether this end dials further connections.
    pub(crate) fn dials(&self) -> bool {
        self.0.dial.is_some()
    }

    pub(crate) fn dial_lane(
        dial: &Dial,
        role: Role,
        purpose: Use,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Self, Lane)> {
        config.check()?;
        let trust = trust.into();
        trust.check_unspent()?;
        trust.check_dials()?;
        let shake = Shake::begin(role, purpose, config, cancel);
        let dial = dial.begin();
        let socket = dial.next(config, shake.deadline, cancel)?;
        let (session, lane) = shake.open(socket, &trust)?;
        Ok((Self::new(session, trust, config, Some(dial)), lane))
    }

    pub(crate) fn dial_next_lane(&self, cancel: &Canceller) -> Result<Lane> {
        let dial = self.0.dial.as_ref().ok_or_else(|| {
            Error::Misuse(
                "this session was not dialled from here: join with a connected socket".to_owned(),
            )
        })?;
        let socket = dial.next(&self.0.config, self.shake(cancel).deadline, cancel)?;
        self.join_lane(socket, cancel)
    }

    /// Why no lane will come any more to the listener that accepted the first, where that is so.
    pub(crate) fn none_left(&self) -> Option<Error> {
        self.0.session.ticket.as_ref().and_then(|ticket| ticket.none_left())
    }

    /// Waits for one more lane at the listener that accepted the first; none once it is over.
    pub(crate) fn next_lane_until(
        &self,
        cancel: &Canceller,
        over: impl Fn() -> bool,
    ) -> Result<Option<Lane>> {
        self.join_at_listener(cancel, Until { deadline: None, must_come: true, over: &over })
    }

    /// The same for a session that may have all the lanes it will have: what is wrong at the door
    /// harms nobody who is in.
    pub(crate) fn any_lane_until(
        &self,
        cancel: &Canceller,
        over: impl Fn() -> bool,
    ) -> Result<Option<Lane>> {
        let until = Until { deadline: None, must_come: false, over: &over };
        loop {
            match self.join_at_listener(cancel, until) {
                Err(Error::System(error)) if !over() => {
                    tracing::warn!(%error, "nobody new can come now");
                    std::thread::sleep(REST);
                }
                Err(Error::System(_)) => return Ok(None),
                joined => return joined,
            }
        }
    }

    fn join_at_listener(&self, cancel: &Canceller, until: Until<'_>) -> Result<Option<Lane>> {
        let Shared { session, trust, .. } = &*self.0;
        establish::join(session, trust, &self.shake(cancel), until, |lane| self.number_is_new(lane))
    }

    fn join_lane(&self, socket: TcpStream, cancel: &Canceller) -> Result<Lane> {
        let number = {
            let mut numbers = self.numbers();
            let unused = (numbers.len() as u16..STREAMS_MAX).find(|n| !numbers.contains(n));
            let number = unused.ok_or_else(|| {
                Error::Misuse(format!(
                    "{STREAMS_MAX} streams were opened in this session, the limit"
                ))
            })?;
            numbers.insert(number);
            number
        };
        self.shake(cancel).join(&self.0.session, socket, number)
    }

    fn new(session: Session, trust: Trust, config: &Config, dial: Option<Dial>) -> Self {
        let config = config.clone();
        let numbers = Mutex::new(HashSet::from([0]));
        Self(Arc::new(Shared { session, trust, config, numbers, dial }))
    }

    fn with(self, lane: Lane) -> Result<(Self, Stream)> {
        let stream = self.stream(lane)?;
        Ok((self, stream))
    }

    pub(crate) fn stream(&self, lane: Lane) -> Result<Stream> {
        Stream::new(lane, self.frame_bytes(), self.provider(), &self.0.config)
    }

    fn shake<'a>(&'a self, cancel: &'a Canceller) -> Shake<'a> {
        Shake::begin(self.0.session.role, Use::Streams, &self.0.config, cancel)
    }

    /// W-34: each number is joined once, in any order: joins may cross.
    fn number_is_new(&self, lane: u16) -> bool {
        lane < STREAMS_MAX && self.numbers().insert(lane)
    }

    fn numbers(&self) -> std::sync::MutexGuard<'_, HashSet<u16>> {
        self.0.numbers.lock().expect("no panic while it is held")
    }
}

impl Listener {
    /// Waits for a peer that holds the secret and opens a session of streams. Strangers get no
    /// answer and do not end the wait; only `cancel` does.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`].
    pub fn accept_streams(
        &self,
        role: Role,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Streams, Stream)> {
        let trust = trust.into();
        let (streams, lane) =
            self.accept_lane(role, Use::Streams, &|| Ok(trust.clone()), config, cancel)?;
        streams.with(lane)
    }

    /// Waits for one more stream of a session.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::System`] where this end cannot go on.
    pub fn next_stream(&self, streams: &Streams, cancel: &Canceller) -> Result<Stream> {
        if !self.serves(&streams.0.session) {
            let text = "the session was not opened by this listener";
            return Err(Error::Misuse(text.to_owned()));
        }
        let joined = streams.next_lane_until(cancel, || false)?;
        streams.stream(joined.expect("it waits without a limit"))
    }

    pub(crate) fn accept_lane(
        &self,
        role: Role,
        purpose: Use,
        trust: &dyn Fn() -> Result<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Streams, Lane)> {
        let (session, lane, trust) = self.open(role, purpose, trust, config, cancel)?;
        Ok((Streams::new(session, trust, config, None), lane))
    }
}

/// A socket that somebody else connected. `TcpStream` is only the type that reads and writes it:
/// both are recv(2) and send(2), whatever its family.
fn adopt(socket: OwnedFd, config: &Config) -> Result<TcpStream> {
    tune_if_tcp(&socket, config)?;
    let socket = TcpStream::from(socket);
    let failed = |e| SystemError::from_io("fcntl", "stream", &e);
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

fn stranger(reason: &'static str) -> Error {
    PeerError::NotAuthenticated { reason }.into()
}
