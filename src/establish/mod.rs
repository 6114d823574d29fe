//! From addresses and sockets to authenticated lanes: connect or listen ([`Dial`], a door), shake
//! hands, join, CONFIRM. Migrations and streams are made of what leaves here.
//!
//! A lane leaves only after the other end's first sealed frame has verified on it, so nobody acts
//! on a peer that has not shown who it is. Each step is under a deadline.
#![forbid(unsafe_code)]

mod address;
mod arrival;
mod board;
mod dial;
mod door;
mod half_open;
mod hub;
mod listener;
mod negotiate;
mod options;
mod rendezvous;
mod shake;
#[cfg(test)]
mod tests;
mod tls;
mod unix;

pub use arrival::arrival;

pub use hub::Expected;

pub use dial::{Dial, passed_sockets};
pub use listener::{Listener, join};
pub use negotiate::Use;
pub use options::tune_if_tcp;
pub use shake::{Session, Shake};
pub use unix::{SocketFile, bind_unix, unix_address, unix_socket};

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sha2::{Digest, Sha256};

use crate::config::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, LANES_MAX, PAGE_BYTES};

/// How often a wait looks whether somebody cancelled.
const TICK: Duration = Duration::from_millis(50);

/// Waits until one of them is ready, the deadline passes or it is time to look for a cancel: which
/// are ready.
fn wait(fds: &[(BorrowedFd<'_>, PollFlags)], deadline: Option<Instant>) -> Vec<bool> {
    let left = deadline.map_or(TICK, |at| at.saturating_duration_since(Instant::now()).min(TICK));
    let mut fds: Vec<_> = fds.iter().map(|(fd, events)| PollFd::new(*fd, *events)).collect();
    // A millisecond more than is left, so that the wait does not spin. An error is looked at by
    // the operation that follows.
    let rounded = if left.is_zero() { left } else { left + Duration::from_millis(1) };
    let timeout = PollTimeout::try_from(rounded).unwrap_or(PollTimeout::ZERO);
    let _ = poll(&mut fds, timeout);
    fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
}

fn wait_one(socket: &impl AsFd, events: PollFlags, deadline: Instant) {
    wait(&[(socket.as_fd(), events)], Some(deadline));
}

/// How long a wait goes on.
#[derive(Clone, Copy)]
pub struct Until<'a> {
    /// When it ends.
    pub deadline: Option<Instant>,
    /// Somebody must come: where nobody can any more, that is an error and no reason to wait on.
    pub must_come: bool,
    /// Whether it ends before, looked at from time to time.
    pub over: &'a dyn Fn() -> bool,
}

impl Until<'_> {
    const NEVER: Until<'static> = Until { deadline: None, must_come: true, over: &|| false };

    fn is_over(&self) -> bool {
        (self.over)() || self.deadline.is_some_and(|at| Instant::now() >= at)
    }
}

/// W-38: a migration's name as the hello carries it.
fn migration_id(name: &str) -> [u8; 16] {
    if name.is_empty() {
        return [0; 16];
    }
    let hash = Sha256::new().chain_update(b"sealane1 migration name").chain_update(name).finalize();
    *hash.first_chunk().expect("16 of 32")
}

/// Whether it is ready, at once or before the deadline passes or it is time to look for a cancel.
fn is_ready(socket: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> bool {
    wait(&[(socket, events)], Some(deadline))[0]
}

/// Whether a migration may have so many lanes and such frames.
pub fn limits_are_allowed(lanes: u16, frame_bytes: usize) -> bool {
    (1..=LANES_MAX).contains(&lanes) && frame_is_allowed(frame_bytes)
}

/// Whether frames may have such a payload.
pub fn frame_is_allowed(frame_bytes: usize) -> bool {
    (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes)
        && frame_bytes.is_multiple_of(PAGE_BYTES)
}
