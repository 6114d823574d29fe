//! Negative numbers for C, and the message of this thread's last failure.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};

use sealane::error::{CancelledBy, Error, PeerError};

/// The other end does not hold the secret.
pub const SEALANE_E_NOT_AUTHENTICATED: c_int = 4097;
/// The connection ended before the stream or the session did.
pub const SEALANE_E_CLOSED: c_int = 4098;
/// Nothing came from the other end for too long.
pub const SEALANE_E_SILENT: c_int = 4099;
/// The other end broke the protocol.
pub const SEALANE_E_PROTOCOL: c_int = 4100;
/// The other end refused, or gave up, and said why.
pub const SEALANE_E_REFUSED: c_int = 4101;
/// A frame did not verify: changed, replayed or reordered on its way.
pub const SEALANE_E_UNSEAL: c_int = 4102;
/// A setting that cannot be honoured as it stands.
pub const SEALANE_E_CONFIG: c_int = 4103;
/// This end cancelled.
pub const SEALANE_E_CANCELLED: c_int = 4104;
/// The other end cancelled.
pub const SEALANE_E_CANCELLED_BY_PEER: c_int = 4105;
/// The source let go and did not hear that the target took over: look at the target.
pub const SEALANE_E_IN_DOUBT: c_int = 4106;
/// A bug of the library, now or in an earlier call on this handle, which serves no more.
pub const SEALANE_E_PANIC: c_int = 4107;
/// The handle was made before a fork by the parent, whose it remains.
pub const SEALANE_E_FORKED: c_int = 4108;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// What a call fails with: the number, positive, and the message.
#[derive(Clone)]
pub(crate) struct Failure(pub(crate) c_int, pub(crate) String);

impl Failure {
    /// A call that a caller must not make.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self(libc::EINVAL, text.into())
    }

    /// Keeps the message and gives the number that C gets.
    pub(crate) fn tell(self) -> c_int {
        let text = self.1.replace('\0', " ");
        // A thread that is on its way out has no place for it any more.
        let text = CString::new(text).expect("no zero is left");
        let _ = LAST.try_with(|last| last.replace(text));
        -self.0
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(code(&error), error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let inside = error.get_ref().and_then(|inside| inside.downcast_ref::<Error>());
        let code = match (error.kind(), inside) {
            (ErrorKind::WouldBlock, _) => libc::EAGAIN,
            (ErrorKind::BrokenPipe, _) => libc::EPIPE,
            (_, Some(inside)) => code(inside),
            _ => error.raw_os_error().unwrap_or(libc::EIO),
        };
        Self(code, error.to_string())
    }
}

fn code(error: &Error) -> c_int {
    match error {
        Error::Peer(PeerError::NotAuthenticated { .. }) => SEALANE_E_NOT_AUTHENTICATED,
        Error::Peer(PeerError::Closed { .. }) => SEALANE_E_CLOSED,
        Error::Peer(PeerError::Silent { .. }) => SEALANE_E_SILENT,
        Error::Peer(PeerError::Refused(_)) => SEALANE_E_REFUSED,
        Error::Peer(_) => SEALANE_E_PROTOCOL,
        Error::Unseal { .. } => SEALANE_E_UNSEAL,
        Error::Misuse(_) => libc::EINVAL,
        Error::Bug(_) => SEALANE_E_PANIC,
        Error::System(e) if e.errno > 0 => e.errno,
        Error::System(_) => libc::EIO,
        Error::Config(_) => SEALANE_E_CONFIG,
        Error::Cancelled { by: CancelledBy::Us } => SEALANE_E_CANCELLED,
        Error::Cancelled { by: CancelledBy::Peer } => SEALANE_E_CANCELLED_BY_PEER,
        Error::InDoubt(_) => SEALANE_E_IN_DOUBT,
        _ => libc::EIO,
    }
}

/// What the last call of this thread that failed has to say: what was found, what was wanted, and
/// what can be done. UTF-8, one line; empty before the first failure. Valid until this thread's
/// next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn sealane_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
