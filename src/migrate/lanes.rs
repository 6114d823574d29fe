//! The lanes of a migration: all of them are opened before the first page.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{Error, PeerError, Result};
use crate::establish::{Dial, Listener, Session, Shake, Until, Use, join};
use crate::lane::Lane;
use crate::seal::Provider;
use crate::trust::{Spent, Trust};
use crate::wire::Role;

/// Authenticated lanes and what was agreed about them.
pub struct Lanes {
    pub(super) lanes: Vec<Lane>,
    role: Role,
    pub(super) frame_bytes: usize,
    pub(super) provider: Provider,
    pub(super) spent: Spent,
    /// A name of this migration that both ends know and nobody else.
    pub migration_id: [u8; 16],
}

impl Lanes {
    fn new(lanes: Vec<Lane>, session: &Session, role: Role) -> Self {
        Self {
            lanes,
            role,
            frame_bytes: session.frame_bytes,
            provider: session.provider,
            spent: session.spent.clone(),
            migration_id: session.migration_id(),
        }
    }

    /// What this end was when they were opened.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Lanes of the other role would wait for what never comes.
    pub(super) fn check_role(&self, wanted: Role) -> Result<()> {
        match self.role == wanted {
            true => Ok(()),
            false => Err(Error::Misuse(format!(
                "the lanes were opened as those of a {:?}: a {wanted:?} is wanted",
                self.role
            ))),
        }
    }

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
/// [`Error::System`] where nothing listens there, [`Error::Misuse`] where fewer sockets were passed
/// than there are lanes, [`PeerError::NotAuthenticated`] where what
/// listens does not hold the secret.
pub fn dial(
    dial: &Dial,
    role: Role,
    trust: impl Into<Trust>,
    config: &Config,
    cancel: &Canceller,
) -> Result<Lanes> {
    config.check()?;
    let trust = trust.into();
    trust.check_unspent()?;
    trust.check_dials()?;
    let shake = Shake::begin(role, Use::Migration, config, cancel);
    let dial = dial.begin();
    let socket = dial.next(config, shake.deadline, cancel)?;
    let (session, first) = shake.open(socket, &trust)?;
    let mut lanes = vec![first];
    for lane in 1..session.lanes {
        let socket = dial.next(config, shake.deadline, cancel)?;
        lanes.push(shake.join(&session, socket, lane)?);
    }
    Ok(Lanes::new(lanes, &session, role))
}

impl Listener {
    /// Waits for a peer that holds the secret and opens all lanes. Strangers get no answer, and a
    /// peer with the wrong role, use or limits is told so; neither ends the wait, only `cancel`
    /// does.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::Config`], also where a completed migration has used the
    /// secret, and [`Error::System`] where this end cannot go on.
    pub fn accept(
        &self,
        role: Role,
        trust: impl Into<Trust>,
        config: &Config,
        cancel: &Canceller,
    ) -> Result<Lanes> {
        let trust = trust.into();
        let ours = || Ok(trust.clone());
        let (session, first, _) = self.open(role, Use::Migration, &ours, config, cancel)?;
        let shake = Shake::begin(role, Use::Migration, config, cancel);
        let mut lanes = vec![first];
        while lanes.len() < usize::from(session.lanes) {
            let next = |lane| usize::from(lane) == lanes.len();
            let is_gone = || is_closed(&lanes[0].socket);
            let until = Until { deadline: Some(shake.deadline), must_come: true, over: &is_gone };
            let joined = join(&session, &trust, &shake, until, next)?;
            lanes.push(joined.ok_or_else(|| missing(config, is_gone()))?);
        }
        Ok(Lanes::new(lanes, &session, role))
    }
}

/// Why further lanes do not come.
fn missing(config: &Config, is_gone: bool) -> Error {
    let (lane, phase) = (0, "while further lanes were to join");
    let waited_s = config.handshake_timeout.as_secs();
    match is_gone {
        true => PeerError::Closed { lane, phase, frames: 0 }.into(),
        false => PeerError::Silent { lane, phase, waited_s }.into(),
    }
}

/// Whether the other end has closed it.
fn is_closed(socket: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0], flags) {
        Ok(bytes) => bytes == 0,
        Err(e) => !matches!(e, Errno::EAGAIN | Errno::EINTR),
    }
}
