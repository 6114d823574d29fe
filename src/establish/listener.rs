//! Listening: strangers are heard out, a few bytes each. Those who hold no one-time secret get no
//! answer.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::board::{Arrival, Caller, Wants};
use super::door::Door;
use super::hub::{Expected, Hub};
use super::{Session, Shake, Until, Use, migration_id};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{Error, PeerError, Result};
use crate::lane::Lane;
use crate::trust::Trust;
use crate::wire::{Refusal, Role};

/// Waits at an address for the other end.
///
/// Clones are the same listener: several threads may wait at it at once, each for a migration of
/// another [`Config::migration_name`]. Sessions keep the address open until they end.
#[derive(Clone)]
pub struct Listener(Arc<Hub>);

/// Where it listens, as a dialler names it.
impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.door(|door| door.fmt(f))
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Listens at `ADDRESS:PORT` (`0.0.0.0:7800`, `[::]:7800`), `unix:PATH`, `vsock:CID:PORT` or
    /// `vsock:any:PORT`, or with a socket that was passed: `fd:N`, or `systemd` (socket
    /// activation).
    ///
    /// A unix socket's file has mode 0600 and goes with this; one that nobody listens at is
    /// replaced.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where that cannot be, [`Error::Config`] where it is no such address or
    /// the socket that was passed does not listen.
    pub fn bind(address: &str) -> Result<Self> {
        Hub::new(Door::bind(address)?).map(Self)
    }

    /// Connections that were accepted elsewhere, taken in their order, each once.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where one of them is no connected stream socket.
    pub fn sockets(sockets: Vec<OwnedFd>) -> Result<Self> {
        Hub::new(Door::sockets(sockets)?).map(Self)
    }

    /// Connections where both hosts dial: see [`super::Dial::rendezvous`]. This end only lets the
    /// other speak first.
    ///
    /// # Errors
    ///
    /// As [`super::Dial::rendezvous`]; [`Error::System`] where the port is not free.
    pub fn rendezvous(local: &str, remote: &str) -> Result<Self> {
        Hub::new(Door::rendezvous(local, remote)?).map(Self)
    }

    /// Says that somebody will wait here for migrations of this name for as long as what is
    /// returned lives: whoever comes for one while nobody does is kept until then, where else one
    /// who waits for another would refuse it.
    #[must_use]
    pub fn expect(&self, migration_name: &str) -> Expected {
        self.0.expect(migration_id(migration_name))
    }

    /// Closes what waits to be accepted, where this end can serve nobody now: a dialler need not
    /// wait to learn that.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where this end cannot go on.
    pub fn turn_away(&self) -> Result<()> {
        self.0.door(|door| {
            while door.accept()?.is_some() {}
            Ok(())
        })
    }

    /// The TCP address that it got.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where it listens elsewhere: its text (`Display`) says where.
    pub fn local_address(&self) -> Result<SocketAddr> {
        let address = self.0.door(|door| door.socket_address());
        address.ok_or_else(|| Error::Misuse(format!("{self} is no address of TCP")))
    }

    /// Waits for a peer that shows who it is and opens a session. Strangers do not end the wait,
    /// nor does a peer with another role or use, which is told so; only `cancel` does.
    /// `trust` is asked for each that may be the peer.
    ///
    /// # Errors
    ///
    /// As [`Shake::answer`], and what `trust` says; [`crate::Error::Cancelled`];
    /// [`Error::Misuse`] where somebody else waits for a migration of the same name.
    pub(crate) fn open(
        &self,
        role: Role,
        purpose: Use,
        trust: &dyn Fn() -> Result<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<(Session, Lane, Trust)> {
        config.check()?;
        let first = trust()?;
        first.check_unspent()?;
        first.check_listens()?;
        // What cannot be set for the connections is this end's error, not a stranger's silence.
        self.0.door(|door| door.tune(config))?;
        let migration_id = migration_id(&config.migration_name);
        let ticket = self.0.register(Wants::Open { migration_id }, &first)?;
        drop(first);
        loop {
            let arrival = ticket.next(config, cancel, Until::NEVER)?;
            let Some(arrival) = arrival else { continue };
            let Some((socket, caller)) = ticket.greet(arrival, trust, config)? else { continue };
            let shake = Shake::begin(role, purpose, config, cancel);
            let trust = caller.trust.clone();
            match shake.answer(socket, caller, Some(&self.0)) {
                Ok(Some((session, lane))) => return Ok((session, lane, trust)),
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

    /// Whether a session was opened here.
    pub(crate) fn serves(&self, session: &Session) -> bool {
        session.ticket.as_ref().is_some_and(|ticket| ticket.is_of(&self.0))
    }
}

/// Waits for one more lane of a session that was opened by a listener; none once it is over.
/// Whoever wants to open it again meanwhile is told that it cannot be now.
///
/// # Errors
///
/// As [`Shake::admit`]; [`crate::Error::Cancelled`].
pub fn join(
    session: &Session,
    trust: &Trust,
    shake: &Shake<'_>,
    until: Until<'_>,
    admits: impl Fn(u16) -> bool,
) -> Result<Option<Lane>> {
    let Some(ticket) = &session.ticket else {
        let text = "no listener: the session was opened over a socket that was handed over";
        return Err(Error::Misuse(text.to_owned()));
    };
    loop {
        let arrival = match ticket.next(shake.config, shake.cancel, until)? {
            None => return Ok(None),
            Some(Arrival::Join(socket, hello)) => {
                let now = Instant::now() + shake.config.handshake_timeout;
                let deadline = until.deadline.map_or(now, |at| at.min(now));
                let shake = Shake { deadline, ..*shake };
                match shake.admit(session, socket, &hello, &admits)? {
                    Some(lane) => return Ok(Some(lane)),
                    None => continue,
                }
            }
            Some(arrival) => arrival,
        };
        // Nobody who knocks can harm the session that goes on: not where this end's certificate
        // has run out meanwhile, either.
        let ours = || Ok(trust.clone());
        match ticket.greet(arrival, &ours, shake.config) {
            Ok(Some((mut socket, Caller { hello, proven, .. }))) => {
                let own = migration_id(&shake.config.migration_name);
                let is_own = hello.migration_id == own;
                let why = if is_own { Refusal::Busy } else { Refusal::MigrationId };
                if let Ok(reply) = proven.reply(&shake.refuse(&hello, why)) {
                    // The socket is new: so few bytes fit. Whoever is gone needs no answer.
                    let _ = std::io::Write::write_all(&mut socket, &reply.bytes);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "nobody new can be answered"),
        }
    }
}
