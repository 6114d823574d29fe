//! Negative numbers for C, and the message of this thread's last failure.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};

use sealane::error::{CancelledBy, Error, PeerError};

/// The other end does not hold the secret, or was not shown to be the host that was expected.
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
/// A wrong call that ended the session, or kept it from being made.
pub const SEALANE_E_MISUSE: c_int = 4109;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// What a call fails with: the number, positive, and the message.
#[derive(Clone)]
pub(crate) struct Failure(pub(crate) c_int, pub(crate) String);

impl Failure {
    /// A call that a caller must not make, and that has done nothing.
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

/// The result of a call that has done nothing where it failed.
pub(crate) fn undone<T>(result: Result<T, impl Into<Failure>>) -> Result<T, Failure> {
    result.map_err(|error| match error.into() {
        Failure(SEALANE_E_MISUSE, text) => Failure::invalid(text),
        failure => failure,
    })
}

/// Of a call that has done something: never -EINVAL.
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
            _ => error.raw_os_error().map_or(libc::EIO, of_kernel),
        };
        Self(code, error.to_string())
    }
}

fn code(error: &Error) -> c_int {
    match error {
        Error::Peer(PeerError::NotAuthenticated { .. } | PeerError::Certificate(_)) => {
            SEALANE_E_NOT_AUTHENTICATED
        }
        Error::Peer(PeerError::Closed { .. }) => SEALANE_E_CLOSED,
        Error::Peer(PeerError::Silent { .. }) => SEALANE_E_SILENT,
        Error::Peer(PeerError::Refused(_)) => SEALANE_E_REFUSED,
        Error::Peer(_) => SEALANE_E_PROTOCOL,
        Error::Unseal { .. } => SEALANE_E_UNSEAL,
        Error::Misuse(_) => SEALANE_E_MISUSE,
        Error::Bug(_) => SEALANE_E_PANIC,
        Error::System(e) => of_kernel(e.errno),
        Error::Config(_) => SEALANE_E_CONFIG,
        Error::Cancelled { by: CancelledBy::Us } => SEALANE_E_CANCELLED,
        Error::Cancelled { by: CancelledBy::Peer } => SEALANE_E_CANCELLED_BY_PEER,
        Error::InDoubt(_) => SEALANE_E_IN_DOUBT,
        _ => libc::EIO,
    }
}

/// EINVAL is for calls that have done nothing: what the kernel calls so is another number.
fn of_kernel(errno: c_int) -> c_int {
    match errno {
        libc::EINVAL => libc::EIO,
        1.. => errno,
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

#[cfg(test)]
mod tests {
    use std::io;

    use sealane::error::SystemError;

    use super::*;

    #[test]
    fn einval_says_that_nothing_was_done() {
        let system =
            |errno| Error::from(SystemError::from_errno("io_uring_setup", "lane 0", errno));
        let number = |error: &Error| Failure::from(error.clone()).0;
        assert_eq!(number(&system(libc::EINVAL)), libc::EIO);
        assert_eq!(number(&system(libc::ENOMEM)), libc::ENOMEM);
        assert_eq!(number(&system(0)), libc::EIO);
        assert!(Failure::from(system(libc::EINVAL)).1.contains("Invalid argument"));

        let refused = PeerError::Certificate("another host".to_owned());
        assert_eq!(number(&refused.clone().into()), SEALANE_E_NOT_AUTHENTICATED);
        let refused = io::Error::from(Error::from(refused));
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(Failure::from(refused).0, SEALANE_E_NOT_AUTHENTICATED);

        let misuse = Error::Misuse("twice".to_owned());
        assert_eq!(number(&misuse), SEALANE_E_MISUSE);
        assert_eq!(Failure::from(io::Error::from(misuse.clone())).0, SEALANE_E_MISUSE);
        let errno = |errno| Failure::from(io::Error::from_raw_os_error(errno)).0;
        assert_eq!((errno(libc::EINVAL), errno(libc::ENOSPC)), (libc::EIO, libc::ENOSPC));

        let refused = |error: Error| undone::<()>(Err(error)).err().map(|failure| failure.0);
        assert_eq!(refused(misuse), Some(libc::EINVAL));
        assert_eq!(refused(system(libc::EINVAL)), Some(libc::EIO));
    }
}
