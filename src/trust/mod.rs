//! Who is at the other end. Gives both ends the session secret. No I/O but files.
//!
//! Three trusts, which all end in the same [`crate::seal::SessionSecret`]; joins and everything
//! after them do not know the difference:
//!
//! - a one-time secret: `Noise_NNpsk0_25519_AESGCM_SHA256` (the Noise Protocol Framework,
//!   revision 34);
//! - certificates: TLS 1.3 (RFC 8446), mutual, whose exporter gives the secret and which then ends;
//! - both: the exporter, extracted under the one-time secret.
#![forbid(unsafe_code)]

mod certificates;
mod join;
mod noise;
mod opening;
mod secret;
#[cfg(feature = "certificates")]
mod tls;
#[cfg(not(feature = "certificates"))]
#[path = "tls_absent.rs"]
mod tls;

pub use certificates::{CertificateFiles, Certificates, Finding, PeerName, State, inspect};
pub use join::{JoinRequest, Joined, answer_join};
pub use opening::{Greeted, Opening, Proven, Replied, greet};
pub use secret::{OneTimeSecret, Spent};
pub use tls::{RECORD_HEADER_BYTES, Step, TlsDialler, TlsListener, record_bytes};

use crate::error::{Error, PeerError, Result};
use crate::wire::TrustKind;

/// What an end shows who it is by, and knows the other end by.
#[derive(Clone, Debug)]
pub struct Trust(Of);

#[derive(Clone, Debug)]
enum Of {
    Secret(OneTimeSecret),
    Certificates(Certificates),
    Both(OneTimeSecret, Certificates),
}

impl Trust {
    /// A one-time secret and certificates: whoever comes between must break both.
    pub fn both(secret: OneTimeSecret, certificates: Certificates) -> Self {
        Self(Of::Both(secret, certificates))
    }

    /// The same for another migration, where the control plane says that the one-time secret
    /// serves several: what has spent it is forgotten.
    #[must_use]
    pub fn renewed(&self) -> Self {
        Self(match &self.0 {
            Of::Secret(secret) => Of::Secret(secret.renewed()),
            Of::Both(secret, certificates) => Of::Both(secret.renewed(), certificates.clone()),
            Of::Certificates(certificates) => Of::Certificates(certificates.clone()),
        })
    }

    /// The one-time secret, where one is part of it.
    pub fn secret(&self) -> Option<&OneTimeSecret> {
        match &self.0 {
            Of::Secret(secret) | Of::Both(secret, _) => Some(secret),
            Of::Certificates(_) => None,
        }
    }

    /// The certificates, where they are part of it.
    pub fn certificates(&self) -> Option<&Certificates> {
        match &self.0 {
            Of::Certificates(certificates) | Of::Both(_, certificates) => Some(certificates),
            Of::Secret(_) => None,
        }
    }

    pub(crate) fn kind(&self) -> TrustKind {
        match &self.0 {
            Of::Secret(_) => TrustKind::Secret,
            Of::Certificates(_) => TrustKind::Certificates,
            Of::Both(..) => TrustKind::Both,
        }
    }

    /// The mark that a completed migration sets; nobody's where there is no one-time secret.
    pub(crate) fn spent(&self) -> Spent {
        self.secret().map(|secret| secret.spent().clone()).unwrap_or_default()
    }

    /// Refuses certificates that do not serve an end that listens, before anybody is there.
    pub(crate) fn check_listens(&self) -> Result<()> {
        self.certificates().map_or(Ok(()), Certificates::check_listens)
    }

    /// The same of an end that dials, before it connects to anybody.
    pub(crate) fn check_dials(&self) -> Result<()> {
        #[cfg(feature = "certificates")]
        if let Some(certificates) = self.certificates() {
            certificates.client_config()?;
        }
        Ok(())
    }

    /// Refuses a one-time secret that was used.
    pub(crate) fn check_unspent(&self) -> Result<()> {
        self.secret().map_or(Ok(()), OneTimeSecret::check_unspent)
    }
}

/// What both ends know each other by, in words.
impl std::fmt::Display for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SECRET: &str = "one-time secret (Noise_NNpsk0_25519_AESGCM_SHA256)";
        const TLS: &str = "certificates (TLS 1.3, X25519MLKEM768, AES-256-GCM)";
        match &self.0 {
            Of::Secret(_) => f.write_str(SECRET),
            Of::Certificates(_) => f.write_str(TLS),
            Of::Both(..) => write!(f, "one-time secret and {TLS}"),
        }
    }
}

impl From<OneTimeSecret> for Trust {
    fn from(secret: OneTimeSecret) -> Self {
        Self(Of::Secret(secret))
    }
}

impl From<&OneTimeSecret> for Trust {
    fn from(secret: &OneTimeSecret) -> Self {
        secret.clone().into()
    }
}

impl From<Certificates> for Trust {
    fn from(certificates: Certificates) -> Self {
        Self(Of::Certificates(certificates))
    }
}

impl From<&Certificates> for Trust {
    fn from(certificates: &Certificates) -> Self {
        certificates.clone().into()
    }
}

impl From<&Trust> for Trust {
    fn from(trust: &Trust) -> Self {
        trust.clone()
    }
}

/// The listener's side of Noise alone, for tests of what it may answer.
#[cfg(test)]
pub fn noise_listener(
    secret: &OneTimeSecret,
    clear: &[u8; crate::wire::OPEN_CLEAR_BYTES],
    proof: &[u8; crate::wire::PROOF_BYTES],
) -> Result<noise::Listener> {
    noise::Listener::new(secret, clear, proof)
}

fn not_authenticated(reason: &'static str) -> Error {
    PeerError::NotAuthenticated { reason }.into()
}
