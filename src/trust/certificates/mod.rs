//! Who the other end is, by X.509 certificates.
//!
//! Both ends speak TLS 1.3 with a certificate of one CA, and each names the other ([`PeerName`]).
//! Here is all of it that needs no socket: files, what is wrong with them, whom a certificate
//! belongs to, the two configurations of rustls and its errors in our words.

mod finding;
mod peer_name;

#[cfg(feature = "certificates")]
mod check;
#[cfg(feature = "certificates")]
mod explain;
#[cfg(feature = "certificates")]
mod facts;
#[cfg(feature = "certificates")]
mod files;
#[cfg(feature = "certificates")]
mod inspect;
#[cfg(feature = "certificates")]
mod lists;
#[cfg(feature = "certificates")]
mod load;
#[cfg(feature = "certificates")]
mod refusal;
#[cfg(feature = "certificates")]
mod tls;
#[cfg(feature = "certificates")]
mod verifier;

#[cfg(not(feature = "certificates"))]
mod left_out;

#[cfg(all(test, feature = "certificates"))]
mod tests;

use std::path::PathBuf;

pub use finding::{Finding, State};
#[cfg(feature = "certificates")]
pub use inspect::inspect;
#[cfg(not(feature = "certificates"))]
pub use left_out::{Certificates, inspect};
#[cfg(feature = "certificates")]
pub use load::Certificates;
pub use peer_name::PeerName;

/// Files of a host that has one certificate for both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate of the CA, or of several.
    pub ca: PathBuf,
    /// The certificate of this host, then those between it and the CA, if any.
    pub cert: PathBuf,
    /// The private key of this host.
    pub key: PathBuf,
    /// What the CA has revoked.
    pub crl: Option<PathBuf>,
}

/// The two ends of a connection, whichever of them is the source.
#[cfg(feature = "certificates")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It connects: TLS's client.
    Dials,
    /// It waits: TLS's server.
    Listens,
}
