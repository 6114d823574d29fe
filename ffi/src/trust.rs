//! What an end shows who it is by: certificates, and trust, which is a secret, certificates, or
//! both.

use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};

use sealane::{CertificateFiles, Certificates, Error, PeerName, Trust};

use crate::fence::{
    Handle, Outcome, argument, call, destroy, give, int, opaque, place, text, with,
};
use crate::handshake::{Side, side_of};
use crate::{Failure, sealane_secret};

/// This host's certificates, its CA and the peer that is expected, as they were when they were
/// read. Any thread may use it, and it may be destroyed once the call that took it has returned.
pub struct sealane_certificates(Handle<Certificates>);
opaque!(sealane_certificates, Certificates);

/// What this end shows who it is by, and knows the other end by. Any thread may use it, and it may
/// be destroyed once the call that took it has returned.
pub struct sealane_trust(Handle<Trust>);
opaque!(sealane_trust, Trust);

/// Reads certificates from a directory as QEMU and libvirt lay it out: `ca-cert.pem`, `ca-crl.pem`
/// where there is one, `client-cert.pem` and `client-key.pem` for the end that connects,
/// `server-cert.pem` and `server-key.pem` for the end that accepts. One of the pairs suffices for
/// its end.
///
/// `peer` is the host that is expected at the other end, as its certificate names it: a DNS name or
/// an IP address of its subjectAltName, or `sha256:` and its fingerprint. Any host of the CA has a
/// certificate, so that one alone is no permission.
///
/// Returns 0; -SEALANE_E_CONFIG where a certificate is out of its time, of another CA, revoked,
/// without its key or not for its end, where others can read a key, where `peer` is no such name,
/// or where the library was built without certificates; -errno.
///
/// # Safety
///
/// `directory` and `peer` are null or strings; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_certificates_from_directory(
    directory: *const c_char,
    peer: *const c_char,
    out: *mut *mut sealane_certificates,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let (directory, peer) = unsafe { (text("a directory", directory)?, peer_name(peer)?) };
        let certificates = Certificates::from_directory(Path::new(directory), peer)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, certificates) };
        Ok(0)
    }))
}

/// Reads one certificate for both ends, as far as its extended key usage allows: the files of the
/// CA, of the certificate, of its key, and of what the CA has revoked, which may be NULL. As
/// sealane_certificates_from_directory.
///
/// # Safety
///
/// The texts are null or strings; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_certificates_from_files(
    ca: *const c_char,
    cert: *const c_char,
    key: *const c_char,
    crl: *const c_char,
    peer: *const c_char,
    out: *mut *mut sealane_certificates,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let path = |name, path| unsafe { text(name, path) }.map(PathBuf::from);
        let files = CertificateFiles {
            ca: path("a file of the CA", ca)?,
            cert: path("a file of the certificate", cert)?,
            key: path("a file of the key", key)?,
            crl: (!crl.is_null()).then(|| path("a list", crl)).transpose()?,
        };
        // SAFETY: as this function's.
        let certificates = Certificates::from_files(&files, unsafe { peer_name(peer) }?)?;
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, certificates) };
        Ok(0)
    }))
}

/// Whether they serve this end of a connection (SEALANE_SIDE_*), before there is one: a directory
/// may have a certificate for one end alone.
///
/// Returns 0; -SEALANE_E_CONFIG or -errno where they do not; -EINVAL.
///
/// # Safety
///
/// `certificates` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_certificates_check(
    certificates: *const sealane_certificates,
    side: c_int,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(certificates, |certificates| {
            match side_of(side)? {
                Side::Connected => certificates.check_dials()?,
                Side::Accepted => certificates.check_listens()?,
            }
            Ok(0)
        })
    })
}

/// # Safety
///
/// As [`text`].
unsafe fn peer_name(peer: *const c_char) -> Outcome<PeerName> {
    // SAFETY: as this function's.
    let peer = unsafe { text("the name of the peer that is expected", peer) }?;
    peer.parse().map_err(|error| Error::Config(error).into())
}

/// Destroys certificates and nulls the pointer. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `certificates` is null, or points to null or to certificates that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_certificates_destroy(
    certificates: *mut *mut sealane_certificates,
) {
    // SAFETY: as this function's.
    unsafe { destroy(certificates) }
}

/// Trust by a secret (`certificates` NULL), by certificates (`secret` NULL), or by both: then
/// whoever comes between must break both. The other end needs the same kind of trust.
///
/// Returns 0; -EINVAL where both are NULL.
///
/// # Safety
///
/// The handles are alive or null; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_trust_new(
    secret: *const sealane_secret,
    certificates: *const sealane_certificates,
    out: *mut *mut sealane_trust,
) -> c_int {
    int(call(|| {
        place(out)?;
        // SAFETY: as this function's.
        let secret = (!secret.is_null()).then(|| unsafe { argument(secret) }).transpose()?;
        let certificates = (!certificates.is_null())
            // SAFETY: as this function's.
            .then(|| unsafe { argument(certificates) })
            .transpose()?;
        let trust = match (secret, certificates) {
            (Some(secret), Some(certificates)) => Trust::both(secret.clone(), certificates.clone()),
            (Some(secret), None) => secret.into(),
            (None, Some(certificates)) => certificates.into(),
            (None, None) => {
                let text = "a secret, certificates or both are wanted, NULL and NULL were given";
                return Err(Failure::invalid(text));
            }
        };
        // SAFETY: not null, and may be written by the caller's word.
        unsafe { give(out, trust) };
        Ok(0)
    }))
}

/// Destroys trust and nulls the pointer. NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `trust` is null, or points to null or to trust that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_trust_destroy(trust: *mut *mut sealane_trust) {
    // SAFETY: as this function's.
    unsafe { destroy(trust) }
}
