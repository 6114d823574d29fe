//! Listening: strangers are heard out, a few bytes each. Those who hold no one-time secret get no
//! answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::door::Door;
use super::hub::{Arrival, Caller, Hub, Wants};
use super::{Session, Shake, Until, Use, migration_id, tune_if_tcp};
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
        Hub::new(Door::bind(address)?).map(Self)
    }

    /// The address that it got.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.0.door(Door::local_address)
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
        self.0.door(|door| {
            door.poll_fds().iter().try_for_each(|(socket, _)| tune_if_tcp(socket, config))
        })?;
        let ticket = self.0.register(Wants::Open {
            migration_id: migration_id(&config.migration_name),
            answers_tls: first.secret().is_none(),
        })?;
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
        let ours = || Ok(trust.clone());
        if let Some((mut socket, Caller { hello, proven, .. })) =
            ticket.greet(arrival, &ours, shake.config)?
        {
            let reply = proven.reply(&shake.refuse(&hello, Refusal::Busy))?;
            // The socket is new: so few bytes fit. Whoever is gone needs no answer.
            let _ = std::io::Write::write_all(&mut socket, &reply.bytes);
        }
    }
}
