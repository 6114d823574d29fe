//! Where the end that connects gets its connections from.

use std::ffi::{c_char, c_int};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use sealane::Dial;

use crate::Failure;
use crate::fence::{Handle, Outcome, call, destroy, give, int, opaque, place, text, with};
use crate::lanes::lock;
use crate::streams::duplicate;

/// Where this end's connections go, or come from. Any thread may use it, for any number of
/// sessions, and it may be destroyed once the call that took it has returned.
pub struct sealane_dialler(Handle<Mutex<Dial>>);
opaque!(sealane_dialler, Mutex<Dial>);

/// Connections to a listener at `HOST:PORT`, `[V6]:PORT`, `unix:PATH` or `vsock:CID:PORT`, or the
/// one connected socket `fd:N`, which is duplicated. A name is looked up for the first connection
/// of a session, and its addresses are tried in turn; all others go to the one that answered.
///
/// Returns 0; -SEALANE_E_CONFIG where it is no such address; -errno.
///
/// # Safety
///
/// `address` is null or a string; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_dialler_new(
    address: *const c_char,
    out: *mut *mut sealane_dialler,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: `address` as this function's.
        let dial = Dial::to(unsafe { text("an address", address) }?)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Mutex::new(dial)) };
        Ok(0)
    }))
}

/// Connections where both hosts dial at once, so that two firewalls which only let connections
/// out are both content: from `local` (`ADDRESS:PORT` of this host) to `remote` (`HOST:PORT`). The
/// other end gives the same two, exchanged, to sealane_listener_rendezvous. The connections of a
/// session take consecutive ports at both ends, beginning with these. Another session may follow at
/// once, as long as TCP's timestamps are on.
///
/// Returns 0; -SEALANE_E_CONFIG where these are no such addresses, or the same one; -errno.
///
/// # Safety
///
/// `local` and `remote` are null or strings; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_dialler_rendezvous(
    local: *const c_char,
    remote: *const c_char,
    out: *mut *mut sealane_dialler,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let (local, remote) =
            unsafe { (text("an address here", local)?, text("one there", remote)?) };
        let dial = Dial::rendezvous(local, remote)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Mutex::new(dial)) };
        Ok(0)
    }))
}

/// Connections that somebody else made: connected stream sockets of any family, used in their
/// order, each once. A session needs one for each lane or stream; a call that finds none left
/// fails. The descriptors are duplicated: close yours when you like, and leave the sockets' flags
/// and options alone.
///
/// Returns 0; -EINVAL without any; -SEALANE_E_CONFIG where one is no connected stream socket;
/// -errno.
///
/// # Safety
///
/// `fds` is null or has `count` numbers; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_dialler_sockets(
    fds: *const c_int,
    count: usize,
    out: *mut *mut sealane_dialler,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let dial = Dial::sockets(unsafe { duplicates(fds, count) }?)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Mutex::new(dial)) };
        Ok(0)
    }))
}

/// Most sockets that are passed at once: as many as a session has streams.
const SOCKETS_MAX: usize = 4096;

/// Descriptors of our own for an array of the caller's.
///
/// # Safety
///
/// `fds` is null or has `count` numbers.
pub(crate) unsafe fn duplicates(fds: *const c_int, count: usize) -> Outcome<Vec<OwnedFd>> {
    if fds.is_null() || !(1..=SOCKETS_MAX).contains(&count) {
        return Err(Failure::invalid(format!("{count} sockets: 1 to {SOCKETS_MAX} are wanted")));
    }
    // SAFETY: not null, and of `count` numbers by the caller's word.
    unsafe { std::slice::from_raw_parts(fds, count) }.iter().copied().map(duplicate).collect()
}

/// Lets connections to HOST:PORT leave from `ADDRESS`, from `ADDRESS:PORT`, or from the ports of
/// `ADDRESS:LOW-HIGH` or `:LOW-HIGH`, both included, for firewalls that tell connections by where
/// they come from. ADDRESS is one of this host's, as a number. A session needs a port for each of
/// its connections. Concerns the sessions that are begun later.
///
/// Returns 0; -SEALANE_E_CONFIG where it is no such thing, or these connections have no such
/// address; nothing has changed then.
///
/// # Safety
///
/// `dialler` is alive; `from` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_dialler_bind(
    dialler: *mut sealane_dialler,
    from: *const c_char,
) -> c_int {
    // SAFETY: `dialler` as this function's, and so `from`.
    int(unsafe {
        with(dialler, |dialler| {
            let from = text("an address", from)?;
            let mut dialler = lock(dialler);
            *dialler = dialler.clone().bind(from)?;
            Ok(0)
        })
    })
}

/// Destroys a dialler and nulls the pointer; sessions that it began go on. NULL, and a pointer to
/// NULL, are no error.
///
/// # Safety
///
/// `dialler` is null, or points to null or to a dialler that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_dialler_destroy(dialler: *mut *mut sealane_dialler) {
    // SAFETY: as this function's.
    unsafe { destroy(dialler) }
}
