//! Reading PEM files: certificates, keys and revocation lists.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::finding::unfit;
use crate::error::{Result, SystemError};

/// More than any chain or list of hosts needs.
const FILE_BYTES_MAX: u64 = 4 << 20;
const DOCS: &str = "docs/certificates.md says how to make one";

/// The certificates of a file, in its order; at least one.
///
/// # Errors
///
/// [`crate::Error::System`] where it cannot be read, [`crate::Error::Config`] where it holds none.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path, open(path)?)?;
    sections(path, CertificateDer::pem_slice_iter(&bytes), "-----BEGIN CERTIFICATE-----")
}

/// The revocation lists of a file; at least one.
///
/// # Errors
///
/// As [`certificates`].
pub(super) fn lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let bytes = read(path, open(path)?)?;
    let found = CertificateRevocationListDer::pem_slice_iter(&bytes);
    sections(path, found, "-----BEGIN X509 CRL-----")
}

/// The private key of a file that no stranger on this machine can read.
///
/// # Errors
///
/// As [`certificates`]; and where others may read it or it is encrypted.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let file = open(path)?;
    let mode = file.metadata().map_err(|e| system("stat", path, &e))?.mode();
    // Hypervisors share theirs with a group: root:qemu 0640.
    if mode & 0o007 != 0 {
        let shown = path.display();
        return Err(unfit(
            path,
            format_args!("mode {:04o}, so that every user here can read the key", mode & 0o7777),
            "a key that its owner, or its group too, can read (mode 0600 or 0640)",
            format!("have a new one issued if others use this machine; else chmod o= {shown}"),
        ));
    }
    let bytes = Zeroizing::new(read(path, file)?);
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if has(&bytes, "ENCRYPTED") => Err(unfit(
            path,
            "a key that is encrypted with a password",
            "one without, which its mode protects",
            format!("openssl pkey -in {} -out NEW, then chmod 600 NEW", path.display()),
        )),
        Err(pem::Error::NoItemsFound) => Err(unfit(
            path,
            "no private key in PEM",
            "a key in PKCS#8, PKCS#1 or SEC1 (-----BEGIN PRIVATE KEY-----, RSA or EC before it)",
            if has(&bytes, "BEGIN CERTIFICATE") {
                "this is a certificate: put the key that it was made with here".to_owned()
            } else {
                DOCS.to_owned()
            },
        )),
        // What is wrong in a key's text is not repeated.
        Err(_) => Err(damaged(path, "PEM that is damaged")),
    }
}

fn sections<T>(
    path: &Path,
    found: impl Iterator<Item = Result<T, pem::Error>>,
    wanted: &str,
) -> Result<Vec<T>> {
    let all = found.collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(unfit(path, "no such part of PEM in it", wanted, DOCS)),
        Err(e) => Err(damaged(path, &format!("PEM that is damaged ({e})"))),
    }
}

fn damaged(path: &Path, found: &str) -> crate::Error {
    unfit(path, found, "PEM from its BEGIN line to its END line", "copy it again, whole")
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn open(path: &Path) -> Result<File> {
    // A FIFO would wait for a writer in open(2).
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| {
        let error = system("open", path, &e);
        match e.kind() {
            std::io::ErrorKind::NotFound => error.remedy(DOCS),
            std::io::ErrorKind::PermissionDenied => error.remedy(
                "let the user that this runs as read it: a group of both and mode 0640 for a key",
            ),
            _ => error,
        }
    })?;
    // Of the open file and not of the path, which somebody could exchange in between.
    let metadata = file.metadata().map_err(|e| system("stat", path, &e))?;
    if !metadata.is_file() {
        return Err(unfit(path, "no regular file", "a file of PEM", "name the file itself"));
    }
    if metadata.len() > FILE_BYTES_MAX {
        let found = format_args!("{} bytes", metadata.len());
        let wanted = format!("at most {FILE_BYTES_MAX}");
        return Err(unfit(path, found, wanted, "look whether it is the file that you mean"));
    }
    Ok(file)
}

fn read(path: &Path, file: File) -> Result<Vec<u8>> {
    // One allocation, so that no part of a key stays behind where it was.
    let len_bytes = file.metadata().map_or(0, |metadata| metadata.len()) as usize;
    let mut bytes = Vec::with_capacity(len_bytes + 64);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| system("read", path, &e))?;
    Ok(bytes)
}

fn system(operation: &'static str, path: &Path, e: &std::io::Error) -> SystemError {
    SystemError::from_io(operation, path.display().to_string(), e)
}
