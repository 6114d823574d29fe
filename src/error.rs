//! One error type, sorted by whose fault it is.
//!
//! A message names what was found, what was wanted and, where the reader can act, ends with the
//! remedy. Nothing a peer sent is repeated before the peer was authenticated.

use std::fmt;
use std::sync::{Mutex, MutexGuard};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed, sorted by blame.
#[non_exhaustive]
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The other end, or somebody between, broke the protocol or went away.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// The caller broke a rule of this crate.
    #[error("misuse: {0}")]
    Misuse(String),
    /// A frame did not verify: damaged, forged, replayed or out of order. Fatal to the session.
    #[error(
        "lane {lane}: frame {frame} did not verify: it was changed, replayed or reordered on its \
         way: look for a middlebox or an attacker between the hosts"
    )]
    Unseal {
        /// The lane that it came on.
        lane: u16,
        /// Its position in the lane, from 0.
        frame: u64,
    },
    /// The operating system refused.
    #[error("{0}")]
    System(#[from] SystemError),
    /// A setting that cannot be honoured as it stands.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A bug of this crate.
    #[error("a bug of this crate: {0}")]
    Bug(String),
    /// Somebody asked for the session to end.
    #[error("cancelled by the {by}")]
    Cancelled {
        /// The end that asked.
        by: CancelledBy,
    },
    /// The source let go of the guest and did not hear that the target took it.
    ///
    /// The guest runs on at most one host. Look at the target: where it reports success the guest
    /// is there; where it reports failure the source's memory is still whole.
    #[error(
        "handover in doubt: the source let go and the target did not confirm ({0}): look at the \
         target before anything is started again"
    )]
    InDoubt(Box<Error>),
}

/// Who asked for the end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelledBy {
    /// This end.
    Us,
    /// The other end.
    Peer,
}

impl fmt::Display for CancelledBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Us => "caller at this end",
            Self::Peer => "other end",
        })
    }
}

/// What the other end did wrong.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The other end could not show that it holds what it must hold.
    #[error(
        "peer not authenticated: {reason}: make sure that both ends use Sealane with the same \
         secret, or certificates at both, and that nothing else listens at that address"
    )]
    NotAuthenticated {
        /// What was missing.
        reason: &'static str,
    },
    /// A handshake by certificates failed: who is at the other end was not shown, or this end was
    /// refused there. The text says why and what helps.
    #[error("peer not authenticated: {0}")]
    Certificate(String),
    /// The connection ended before the session did.
    #[error("lane {lane}: the other end closed the connection {phase}, after {frames} frames")]
    Closed {
        /// The lane.
        lane: u16,
        /// What was going on.
        phase: &'static str,
        /// Frames received on the lane until then.
        frames: u64,
    },
    /// Nothing came for too long.
    #[error(
        "lane {lane}: nothing from the other end for {waited_s} s {phase}: look whether its \
         process is stopped or the path is cut, or raise peer_timeout"
    )]
    Silent {
        /// The lane.
        lane: u16,
        /// What was going on.
        phase: &'static str,
        /// Seconds waited.
        waited_s: u64,
    },
    /// Bytes that are no message of this protocol.
    #[error("malformed {what}: {field} at byte {offset}: wanted {wanted}, got {got}")]
    Malformed {
        /// The message.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its offset in the message.
        offset: usize,
        /// What is allowed.
        wanted: &'static str,
        /// What stood there.
        got: u64,
    },
    /// A message that is well formed and not allowed now.
    #[error("the other end broke the protocol: {0}")]
    Protocol(String),
    /// The other end refused, and said why. The text is authenticated.
    #[error("the other end refused to go on: {0}")]
    Refused(String),
}

/// The operation of [`SystemError`] that pins slots.
pub(crate) const REGISTER_BUFFERS: &str = "io_uring_register(BUFFERS)";

/// What the operating system refused, with what is needed instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemError {
    /// The operation, as its man page names it.
    pub operation: &'static str,
    /// On what, with figures.
    pub subject: String,
    /// The errno, 0 where there is none.
    pub errno: i32,
    /// What the reader can do, empty where nothing can be said.
    pub remedy: String,
}

impl SystemError {
    /// Whether memory that was to be registered exceeds the limit of locked memory.
    pub(crate) fn is_locked_memory(&self) -> bool {
        self.operation == REGISTER_BUFFERS && self.errno == libc::ENOMEM
    }

    /// An error of `operation` on `subject` from what the standard library reported.
    pub fn from_io(
        operation: &'static str,
        subject: impl Into<String>,
        e: &std::io::Error,
    ) -> Self {
        let errno = e.raw_os_error().unwrap_or(0);
        Self { operation, subject: subject.into(), errno, remedy: default_remedy(errno).to_owned() }
    }

    /// An error of `operation` on `subject` with this `errno`.
    pub fn from_errno(operation: &'static str, subject: impl Into<String>, errno: i32) -> Self {
        Self::from_io(operation, subject, &std::io::Error::from_raw_os_error(errno))
    }

    /// The same with this remedy.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.operation)?;
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.remedy.is_empty() {
            write!(f, ": {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for SystemError {}

/// What is known to help, by errno alone.
fn default_remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOSPC => "free space on that file system or choose another",
        libc::EDQUOT => "raise the quota or choose another file system",
        libc::EFBIG => {
            "raise the limit of file sizes with ulimit -f, or choose a file system without"
        }
        libc::EMFILE | libc::ENFILE => {
            "raise the limit of open files with ulimit -n or LimitNOFILE="
        }
        libc::EACCES | libc::EPERM => "look at who owns it and what may be opened",
        libc::ECONNREFUSED => "start the other end first and check address and port",
        libc::EHOSTUNREACH | libc::ENETUNREACH => "look at the route there, and at the firewalls",
        libc::ENOENT => "check the path",
        libc::EADDRINUSE => "choose another port or end what listens there",
        _ => "",
    }
}

/// A setting that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: found {found}, wanted {wanted}: {remedy}")]
pub struct ConfigError {
    /// The setting, as `Config` and the command name it.
    pub key: &'static str,
    /// What was found.
    pub found: String,
    /// What would do.
    pub wanted: String,
    /// What the reader can do.
    pub remedy: String,
}

impl Error {
    /// Whether the other end failed to show who it is.
    pub fn is_authentication(&self) -> bool {
        matches!(self, Self::Peer(PeerError::NotAuthenticated { .. } | PeerError::Certificate(_)))
    }

    /// Whether somebody asked for the end.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }
}

/// Why a session ends, collected from all of its threads.
#[derive(Debug, Default)]
pub(crate) struct FirstError(Mutex<Option<Error>>);

impl FirstError {
    /// Keeps an error. The first one stays, but for a lane that was closed: what the other end
    /// said of it is the better answer, whichever thread was faster.
    pub(crate) fn note(&self, error: Error) {
        tracing::debug!(%error, "a part of the session failed");
        let mut first = self.lock();
        match &*first {
            Some(Error::Peer(PeerError::Closed { .. })) if said(&error) => *first = Some(error),
            Some(_) => {}
            None => *first = Some(error),
        }
    }

    /// Whether it is what the other end said, which need not hear it again.
    pub(crate) fn is_said(&self) -> bool {
        self.lock().as_ref().is_some_and(said)
    }

    /// What the other end is told where this one fails.
    pub(crate) fn reason(&self) -> String {
        match &*self.lock() {
            Some(Error::Cancelled { .. }) | None => String::new(),
            Some(Error::Peer(PeerError::Silent { waited_s, .. })) => {
                format!("it heard nothing from this end for {waited_s} s")
            }
            // A peer that broke the rules or went away need not hear about it.
            Some(Error::Peer(_) | Error::Unseal { .. }) => "protocol error".to_owned(),
            // The caller's own words.
            Some(Error::Misuse(reason)) => reason.clone(),
            Some(error) => error.to_string(),
        }
    }

    /// Whether what the other end has to say of it may still come.
    pub(crate) fn may_be_explained(&self) -> bool {
        matches!(
            &*self.lock(),
            Some(Error::Peer(PeerError::Closed { .. }) | Error::Cancelled { by: CancelledBy::Us })
        )
    }

    /// The error; a cancel of this end where there is none.
    pub(crate) fn take(&self) -> Error {
        self.lock().take().unwrap_or(Error::Cancelled { by: CancelledBy::Us })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Error>> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// Whether it is the other end's word.
fn said(error: &Error) -> bool {
    matches!(error, Error::Cancelled { by: CancelledBy::Peer } | Error::Peer(PeerError::Refused(_)))
}

/// What a session fails with where one of its threads panicked.
pub(crate) fn panicked() -> Error {
    Error::Bug("a thread of the session panicked".to_owned())
}

/// A CANCEL or REFUSE of the other end, with its words.
pub(crate) fn ended_by_peer(payload: &[u8]) -> Error {
    if payload.is_empty() {
        return Error::Cancelled { by: CancelledBy::Peer };
    }
    PeerError::Refused(printable(&String::from_utf8_lossy(payload))).into()
}

/// A text of somebody else's without what a terminal would obey: control characters, marks that
/// turn the direction of text (Unicode Standard Annex 9), and what has no width.
pub fn printable(text: &str) -> String {
    const MARKS: [std::ops::RangeInclusive<char>; 5] = [
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
    ];
    let is_plain = |c: &char| !c.is_control() && !MARKS.iter().any(|marks| marks.contains(c));
    text.chars().filter(is_plain).collect()
}

/// What std's traits take: the [`Error`] is inside ([`std::io::Error::get_ref`]).
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match &error {
            Error::Peer(PeerError::NotAuthenticated { .. } | PeerError::Certificate(_)) => {
                ErrorKind::PermissionDenied
            }
            Error::Peer(PeerError::Closed { .. }) => ErrorKind::UnexpectedEof,
            Error::Peer(PeerError::Silent { .. }) => ErrorKind::TimedOut,
            Error::Peer(PeerError::Refused(_)) => ErrorKind::ConnectionAborted,
            Error::Peer(_) | Error::Unseal { .. } => ErrorKind::InvalidData,
            Error::Misuse(_) | Error::Config(_) => ErrorKind::InvalidInput,
            Error::System(e) => Self::from_raw_os_error(e.errno).kind(),
            Error::Cancelled { .. } => ErrorKind::ConnectionAborted,
            Error::InDoubt(_) | Error::Bug(_) => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_left_out() {
        let text = "a\u{1b}]0;b\u{7}\nc\u{202e}d\u{61c}\u{200b}\u{feff}\u{e9} \u{5d0}";
        assert_eq!(printable(text), "a]0;bcd\u{e9} \u{5d0}");
        assert_eq!(ended_by_peer(text.as_bytes()).to_string().matches('\u{1b}').count(), 0);
    }
}
