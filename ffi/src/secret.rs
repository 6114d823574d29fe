//! One-time secrets, and cancelling.

use std::ffi::{c_char, c_int};
use std::path::Path;

use sealane::{Canceller, OneTimeSecret};

use crate::Failure;
use crate::fence::{Handle, call, destroy, give, int, opaque, place, text, with};

/// What both ends hold, for one migration. Any thread may use it, and it may be destroyed once
/// the call that took it has returned.
pub struct sealane_secret(Handle<OneTimeSecret>);
opaque!(sealane_secret, OneTimeSecret);

/// Ends waits of this library from another thread. Any thread may use it, and it may be
/// destroyed once the call that took it has returned.
pub struct sealane_canceller(Handle<Canceller>);
opaque!(sealane_canceller, Canceller);

/// Most bytes of a secret.
const SECRET_BYTES_MAX: usize = 64;

/// Makes a secret of 32 random bytes.
///
/// Returns 0 or a negative error.
///
/// # Safety
///
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_secret_generate(out: *mut *mut sealane_secret) -> c_int {
    int(call(|| {
        place(out)?;
        let secret = OneTimeSecret::generate()?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, secret) };
        Ok(0)
    }))
}

/// A secret of 32 to 64 bytes. They are copied; erase yours.
///
/// Returns 0; -SEALANE_E_CONFIG for another length.
///
/// # Safety
///
/// `out` is null or may be written; `bytes` is null or has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_secret_from_bytes(
    bytes: *const u8,
    length: usize,
    out: *mut *mut sealane_secret,
) -> c_int {
    int(call(|| {
        place(out)?;
        if length > SECRET_BYTES_MAX {
            let text = format!("a secret of {length} bytes, 32 to {SECRET_BYTES_MAX} are wanted");
            return Err(Failure(crate::SEALANE_E_CONFIG, text));
        }
        if bytes.is_null() {
            return Err(Failure::invalid("bytes of a secret are wanted, NULL was given"));
        }
        // SAFETY: not null, so of `length` bytes by the caller's word.
        let secret =
            OneTimeSecret::from_bytes(unsafe { std::slice::from_raw_parts(bytes, length) })?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, secret) };
        Ok(0)
    }))
}

/// Reads a secret from a file that nobody but its owner may read: hex digits, or a line
/// identity:hex as in QEMU's keys.psk.
///
/// Returns 0; -SEALANE_E_CONFIG where others may read it or it holds no secret; -errno.
///
/// # Safety
///
/// `out` is null or may be written; `path` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_secret_read(
    path: *const c_char,
    out: *mut *mut sealane_secret,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: `path` as this function's.
        let secret = OneTimeSecret::read(Path::new(unsafe { text("a path", path) }?))?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, secret) };
        Ok(0)
    }))
}

/// Reads the secret of one identity from such a file of several lines identity:hex.
///
/// Returns 0; -SEALANE_E_CONFIG where others may read it or it has not one line of that identity;
/// -errno.
///
/// # Safety
///
/// `out` is null or may be written; `path` and `identity` are null or strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_secret_read_identity(
    path: *const c_char,
    identity: *const c_char,
    out: *mut *mut sealane_secret,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: both as this function's.
        let (path, identity) = unsafe { (text("a path", path)?, text("an identity", identity)?) };
        let secret = OneTimeSecret::read_identity(Path::new(path), identity)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, secret) };
        Ok(0)
    }))
}

/// Writes a secret to a new file with mode 0600.
///
/// Returns 0; -EEXIST where there is a file; -errno.
///
/// # Safety
///
/// `secret` is alive; `path` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_secret_write_new(
    secret: *const sealane_secret,
    path: *const c_char,
) -> c_int {
    // SAFETY: `secret` as this function's, and so `path`.
    int(unsafe {
        with(secret, |secret| {
            secret.write_new(Path::new(text("a path", path)?))?;
            Ok(0)
        })
    })
}

/// Destroys a secret, erases its bytes and nulls the pointer. NULL, and a pointer to NULL, are no
/// error.
///
/// # Safety
///
/// `secret` is null, or points to null or to a secret that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_secret_destroy(secret: *mut *mut sealane_secret) {
    // SAFETY: as this function's.
    unsafe { destroy(secret) }
}

/// A new canceller.
///
/// Returns 0 or a negative error.
///
/// # Safety
///
/// `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_canceller_new(out: *mut *mut sealane_canceller) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, Canceller::default()) };
        Ok(0)
    }))
}

/// Ends every wait that was given this canceller, with -SEALANE_E_CANCELLED, and those to come. A
/// name lookup that is under way is not interrupted; after sealane_source_hand_over has let go, or
/// sealane_target_ready has returned, it does nothing.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `canceller` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_canceller_cancel(canceller: *const sealane_canceller) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(canceller, |canceller| {
            canceller.cancel();
            Ok(0)
        })
    })
}

/// Destroys a canceller and nulls the pointer; waits that were given it go on. NULL, and a pointer
/// to NULL, are no error.
///
/// # Safety
///
/// `canceller` is null, or points to null or to a canceller that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_canceller_destroy(canceller: *mut *mut sealane_canceller) {
    // SAFETY: as this function's.
    unsafe { destroy(canceller) }
}
