//! The handshake over a connected socket, from either side, and the joins of further lanes.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::board::{Caller, Wants};
use super::hub::{Hub, Ticket};
use super::negotiate::{Use, refused};
use super::{migration_id, tune_if_tcp, wait_one};
use crate::cancel::Canceller;
use crate::config::{Config, LANES_MAX, STREAMS_MAX};
use crate::error::{Error, PeerError, Result, SystemError};
use crate::lane::Lane;
use crate::seal::{CpuFeatures, Direction, KeyLimits, Opener, Provider, Sealer, SessionSecret};
use crate::trust::{self, JoinRequest, Joined, Opening, Replied, Spent, Trust};
use crate::wire::{
    Control, DIALLER_HELLO_BYTES, Features, HEADER_FIXED_BYTES, JOIN_REPLY_BYTES, JoinHello,
    OPEN_REPLY_BYTES, OpenHello, OpenReply, Opened, PREFIX_BYTES, Prefix, Refusal, Role, TAG_BYTES,
    VERSION, parse_header,
};

/// How long a listener waits for CONFIRM: a round trip, and some that were lost.
const CONFIRM_TIME: Duration = Duration::from_secs(4);
const CONFIRM_BYTES: usize = PREFIX_BYTES + HEADER_FIXED_BYTES + TAG_BYTES;

/// A session that both ends have agreed on: what further lanes are made from.
pub struct Session {
    secret: SessionSecret,
    /// This end's role.
    pub role: Role,
    /// Who seals.
    pub provider: Provider,
    /// Lanes of a migration; 0 for streams.
    pub lanes: u16,
    /// Bytes of a full frame's payload.
    pub frame_bytes: usize,
    /// The mark of the one-time secret.
    pub spent: Spent,
    /// Where its further lanes come to, at an end that listens.
    pub ticket: Option<Ticket>,
}

impl Session {
    /// A name of this migration that both ends know and nobody else.
    pub fn migration_id(&self) -> [u8; 16] {
        self.secret.migration_id()
    }

    fn keys(&self, joined: &Joined) -> (Sealer, Opener) {
        let secret = |direction| {
            let (ours, theirs) = (&joined.dialler_nonce, &joined.listener_nonce);
            self.secret.lane_secret(direction, joined.lane, joined.generation, ours, theirs)
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

/// One end's side of handshakes, under one deadline.
pub struct Shake<'a> {
    /// This end's role.
    pub role: Role,
    /// What the session is for.
    pub purpose: Use,
    /// The settings.
    pub config: &'a Config,
    /// When it must be over.
    pub deadline: Instant,
    /// Ends it.
    pub cancel: &'a Canceller,
}

impl<'a> Shake<'a> {
    /// A handshake that begins now.
    pub fn begin(role: Role, purpose: Use, config: &'a Config, cancel: &'a Canceller) -> Self {
        let deadline = Instant::now() + config.handshake_timeout;
        Self { role, purpose, config, deadline, cancel }
    }

    /// The dialler opens a session over a connected socket: its lane 0.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`], [`PeerError::Certificate`], [`PeerError::Refused`];
    /// [`Error::Config`] where this CPU has no fit provider.
    pub fn open(&self, mut socket: TcpStream, trust: &Trust) -> Result<(Session, Lane)> {
        trust.check_unspent()?;
        let provider = Provider::resolve(self.config.provider, &CpuFeatures::detect())?;
        let source = self.role == Role::Source;
        let hello = OpenHello {
            version: VERSION,
            role: self.role,
            trust: trust.kind(),
            required: self.purpose.features(),
            optional: Features::default(),
            lanes: if source && self.purpose == Use::Migration { self.config.lanes } else { 0 },
            frame_bytes: if source { self.config.frame_bytes as u32 } else { 0 },
            migration_id: migration_id(&self.config.migration_name),
        };
        let (opening, message) = Opening::new(trust, &hello)?;
        self.write(&mut socket, &message)?;
        let (reply, agreed) = match opening {
            Opening::Secret(dialler) => {
                let mut reply = [0; OPEN_REPLY_BYTES];
                self.read(&mut socket, &mut reply)?;
                dialler.finish(&reply)?
            }
            Opening::Tls(tls) => self.dial_tls(&mut socket, tls)?,
        };
        if let Some(why) = reply.refusal {
            return Err(PeerError::Refused(refused(&hello, &reply, why)).into());
        }
        let (lanes, frame_bytes) = (reply.lanes, reply.frame_bytes as usize);
        let asked = (hello.lanes, hello.frame_bytes as usize);
        let agrees = !source || (lanes, frame_bytes) == asked;
        if !agrees || !self.allows(lanes, frame_bytes) || !hello.required.has(reply.required) {
            let text = format!(
                "{lanes} lanes, frames of {frame_bytes} bytes and features {} were not agreed on",
                reply.required
            );
            return Err(PeerError::Protocol(text).into());
        }
        let session = self.session(agreed, provider, &reply, trust.spent(), None);
        let lane = self.confirm(socket, session.keys(&Joined::first_lane()), 0)?;
        Ok((session, lane))
    }

    /// The listener answers who has shown who it is. None where the dialler went away or only
    /// replayed a message: the listener listens on. `hub` is where further lanes will come to.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; a peer with another role or use was told so.
    pub fn answer(
        &self,
        mut socket: TcpStream,
        caller: Caller,
        hub: Option<&Arc<Hub>>,
    ) -> Result<Option<(Session, Lane)>> {
        let Caller { hello, proven, trust } = caller;
        if !self.retune(&socket) {
            return Ok(None);
        }
        let provider = Provider::resolve(self.config.provider, &CpuFeatures::detect())?;
        // Another listener of this process may have completed meanwhile.
        let unspent = trust.check_unspent();
        let answer = match &unspent {
            Ok(()) => self.decide(&hello),
            Err(_) => self.refuse(&hello, Refusal::SecretSpent),
        };
        let Replied { bytes, secret, tls } = proven.reply(&answer)?;
        let register = |hub: &Arc<Hub>| {
            let (session_id, migration_id) = (secret.id(), hello.migration_id);
            hub.register(Wants::Session { session_id, migration_id }, &trust)
        };
        // Before the answer leaves: lanes may come at once.
        let ticket = hub.map(register).transpose()?;
        let replied = self.write(&mut socket, &bytes).and_then(|()| match tls {
            Some(mut tls) => tls.end(&self.read_record(&mut socket)?),
            None => Ok(()),
        });
        if let Some(why) = answer.refusal {
            unspent?;
            let text = format!("we refused it: {}", refused(&hello, &answer, why));
            return Err(PeerError::Refused(text).into());
        }
        if let Err(error) = replied {
            tracing::debug!(%error, "the answer was not taken");
            return self.cancel.check().map(|()| None);
        }
        let session = self.session(secret, provider, &answer, trust.spent(), ticket);
        match self.soon().confirm(socket, session.keys(&Joined::first_lane()), 0) {
            Ok(lane) => Ok(Some((session, lane))),
            Err(error @ Error::Cancelled { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "no CONFIRM after a first message that verified");
                Ok(None)
            }
        }
    }

    /// The dialler joins one more lane.
    ///
    /// # Errors
    ///
    /// [`PeerError::Closed`] where it is not answered: the other end, which has shown who it is,
    /// may be giving up. [`PeerError::NotAuthenticated`] where somebody else answers.
    pub fn join(&self, session: &Session, mut socket: TcpStream, lane: u16) -> Result<Lane> {
        let (request, message) = JoinRequest::new(&session.secret, lane)?;
        let mut reply = [0; JOIN_REPLY_BYTES];
        self.write(&mut socket, &message)
            .and_then(|()| self.read(&mut socket, &mut reply))
            .map_err(|e| closed_in_join(e, lane))?;
        let joined = request.finish(&session.secret, &reply)?;
        self.confirm(socket, session.keys(&joined), lane).map_err(|e| closed_in_join(e, lane))
    }

    /// The listener answers a join. `admits` says whether the lane may come now; it is asked
    /// once the request has verified. None where the request does not verify, or the lane may not
    /// come: whoever saw a join can send it again. None too where the dialler does not go on: it
    /// knows itself what it lacks.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::System`] where this end cannot go on.
    pub fn admit(
        &self,
        session: &Session,
        mut socket: TcpStream,
        hello: &JoinHello,
        admits: impl FnOnce(u16) -> bool,
    ) -> Result<Option<Lane>> {
        let Ok((joined, reply)) = trust::answer_join(&session.secret, hello) else {
            return Ok(None);
        };
        if joined.generation != 0 || !admits(joined.lane) {
            tracing::debug!(lane = joined.lane, "dropped a join out of turn: sent twice?");
            return Ok(None);
        }
        if !self.retune(&socket) {
            return Ok(None);
        }
        let lane = self
            .write(&mut socket, &reply)
            .and_then(|()| self.soon().confirm(socket, session.keys(&joined), joined.lane));
        match lane {
            Ok(lane) => Ok(Some(lane)),
            Err(error @ (Error::Peer(_) | Error::Unseal { .. })) => {
                tracing::debug!(%error, lane = joined.lane, "no CONFIRM after a join");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets this end's options: whoever accepted the connection may have had others.
    fn retune(&self, socket: &TcpStream) -> bool {
        let tuned = tune_if_tcp(socket, self.config);
        if let Err(error) = &tuned {
            tracing::debug!(%error, "dropped a connection"); // it is gone, as a rule
        }
        tuned.is_ok()
    }

    fn session(
        &self,
        secret: SessionSecret,
        provider: Provider,
        reply: &OpenReply,
        spent: Spent,
        ticket: Option<Ticket>,
    ) -> Session {
        let (role, lanes, frame_bytes) = (self.role, reply.lanes, reply.frame_bytes as usize);
        tracing::info!(?role, lanes, frame_bytes, provider = provider.name(), "session open");
        Session { secret, role, provider, lanes, frame_bytes, spent, ticket }
    }

    /// The same, with the time that a dialler may take who has the answer in hand. Others wait at
    /// the listener meanwhile, and who has only recorded a first message has nothing to say.
    fn soon(&self) -> Self {
        Shake { deadline: self.deadline.min(Instant::now() + CONFIRM_TIME), ..*self }
    }

    /// Sends CONFIRM and waits for the other end's (W-27).
    fn confirm(&self, mut socket: TcpStream, keys: (Sealer, Opener), lane: u16) -> Result<Lane> {
        let (mut sealer, mut opener) = keys;
        let mut frame = [0; CONFIRM_BYTES];
        let prefix = Control::Confirm.encode(&mut frame[PREFIX_BYTES..]);
        sealer.seal(&mut frame, prefix)?;
        self.write(&mut socket, &frame)?;
        self.read(&mut socket, &mut frame)?;
        let reason = "its first sealed frame does not verify";
        // Whoever joins has shown before who it is.
        let refused = || match lane {
            0 => Error::from(PeerError::NotAuthenticated { reason }),
            _ => Error::Unseal { lane, frame: 0 },
        };
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

    pub(super) fn write(&self, socket: &mut TcpStream, bytes: &[u8]) -> Result<()> {
        self.each(socket, PollFlags::POLLOUT, bytes.len(), |socket, from| {
            socket.write(&bytes[from..])
        })
    }

    /// Reads until `bytes` is full.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`] where it closed the connection or says nothing in time.
    pub(super) fn read(&self, socket: &mut TcpStream, bytes: &mut [u8]) -> Result<()> {
        self.each(socket, PollFlags::POLLIN, bytes.len(), |socket, from| {
            socket.read(&mut bytes[from..])
        })
    }

    /// The first message of whoever dialled a socket that was accepted elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn first_message(&self, socket: &mut TcpStream) -> Result<[u8; DIALLER_HELLO_BYTES]> {
        let mut message = [0; DIALLER_HELLO_BYTES];
        self.read(socket, &mut message)?;
        Ok(message)
    }

    fn each(
        &self,
        socket: &mut TcpStream,
        events: PollFlags,
        bytes: usize,
        mut step: impl FnMut(&mut TcpStream, usize) -> std::io::Result<usize>,
    ) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            self.cancel.check()?;
            // Also where the other end always has something to say.
            if Instant::now() >= self.deadline {
                let reason = "no answer in the time of the handshake";
                return Err(PeerError::NotAuthenticated { reason }.into());
            }
            match step(socket, done) {
                Ok(0) => {
                    let reason = "it closed the connection during the handshake";
                    return Err(PeerError::NotAuthenticated { reason }.into());
                }
                Ok(moved) => done += moved,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    wait_one(socket, events, self.deadline);
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

/// A handshake that broke is no sign of a wrong secret in a session that is open.
fn closed_in_join(error: Error, lane: u16) -> Error {
    match error {
        Error::Peer(PeerError::NotAuthenticated { .. }) => {
            PeerError::Closed { lane, phase: "while it joined", frames: 0 }.into()
        }
        error => error,
    }
}

// A lane's number is 16 bits wide in keys and joins.
const _: () = assert!(LANES_MAX < STREAMS_MAX && STREAMS_MAX < u16::MAX);
