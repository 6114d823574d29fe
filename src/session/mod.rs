//! The order of a migration, fed by events: no socket, no thread, no clock (W-27 to W-33).
//!
//! ```text
//!  Rounds --begin_round--> InRound --ROUND_DONE--> Rounds --commit--> Committing
//!         --READY--> Ready --hand_over--> HandingOver --DONE--> Over
//! ```
#![forbid(unsafe_code)]

mod source;
mod target;

pub use source::{Source, SourceEvent};
pub use target::{Target, TargetEvent};

use crate::config::{PAGE_BYTES, STRIPE_BYTES};
use crate::error::{Error, PeerError};

/// The lane that a page of a region goes over, always the same one, so that an older copy can
/// never overtake a newer one (W-30).
pub fn lane_of(region: u16, page: u64, lanes: u16) -> u16 {
    let stripe = page / (STRIPE_BYTES / PAGE_BYTES) as u64;
    ((stripe + u64::from(region)) % u64::from(lanes)) as u16
}

fn protocol<T>(text: String) -> Result<T, Error> {
    Err(PeerError::Protocol(text).into())
}

#[cfg(test)]
mod tests;
