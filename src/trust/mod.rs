//! Who is at the other end. Gives both ends the session secret. No I/O but the secret's file.
//!
//! A one-time secret, `Noise_NNpsk0_25519_AESGCM_SHA256` (the Noise Protocol Framework, revision
//! 34), and `certificates` beside it. Both give the same [`crate::seal::SessionSecret`]; joins and
//! everything after them do not know the difference.
#![forbid(unsafe_code)]

// Until the handshake over TLS uses what it offers to the crate.
#[allow(dead_code)]
mod certificates;
mod join;
mod noise;
mod secret;

pub use certificates::{CertificateFiles, Certificates, Finding, PeerName, State, inspect};
pub use join::{JoinRequest, Joined, answer_join};
pub use noise::{Dialler, Listener};
pub use secret::{OneTimeSecret, Spent};
