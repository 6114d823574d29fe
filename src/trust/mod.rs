//! Who is at the other end. Gives both ends the session secret. No I/O but the secret's file.
//!
//! One trust today: a one-time secret, `Noise_NNpsk0_25519_AESGCM_SHA256` (the Noise Protocol
//! Framework, revision 34). Certificates will stand beside `noise` and give the same
//! [`crate::seal::SessionSecret`]; joins and everything after them do not know the difference.
#![forbid(unsafe_code)]

mod join;
mod noise;
mod secret;

pub use join::{JoinRequest, Joined, answer_join};
pub use noise::{Dialler, Listener};
pub use secret::{OneTimeSecret, Spent};
