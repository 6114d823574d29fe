//! One sealed connection: a sending half and a receiving half, each with its own engine, pool,
//! keys and thread.
#![forbid(unsafe_code)]

mod receiver;
mod sender;
mod stream_receiver;

pub use receiver::{Received, Receiver};
pub use sender::Sender;
pub use stream_receiver::{StreamEvent, StreamReceiver};

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{Error, PeerError};
use crate::seal::{Opener, Sealer};

/// A connection whose two ends have authenticated each other.
pub struct Lane {
    /// Its number.
    pub index: u16,
    /// Its socket.
    pub socket: Arc<OwnedFd>,
    /// Seals what leaves.
    pub sealer: Sealer,
    /// Opens what comes.
    pub opener: Opener,
}

/// A connection that broke is the peer's doing, whatever errno says so.
pub fn blame(error: Error, lane: u16, frames: u64) -> Error {
    match error {
        Error::System(e)
            if matches!(
                e.errno,
                libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ETIMEDOUT
            ) =>
        {
            closed(lane, frames)
        }
        error => error,
    }
}

fn closed(lane: u16, frames: u64) -> Error {
    PeerError::Closed { lane, phase: "before the session was over", frames }.into()
}
