//! What a connection that was accepted elsewhere asks for, before anything of it is read.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};

use super::wait_one;
use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{PeerError, Result};
use crate::wire::{Asks, FirstBytes};

/// How long a first message that has come in part is left alone: poll(2) would not wait for more.
const REST: Duration = Duration::from_millis(5);

/// Waits for the first bytes of a dialler and leaves them where they are, at most
/// `config.handshake_timeout`.
///
/// # Errors
///
/// [`PeerError::NotAuthenticated`] with what came instead of a first message of this protocol;
/// [`crate::Error::Cancelled`].
pub fn arrival(socket: BorrowedFd<'_>, config: &Config, cancel: &Canceller) -> Result<Asks> {
    let deadline = Instant::now() + config.handshake_timeout;
    let reason = loop {
        cancel.check()?;
        let mut bytes = [0; FirstBytes::BYTES];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(socket.as_raw_fd(), &mut bytes, flags) {
            Ok(0) => break "it closed the connection before it said anything",
            Ok(came) => match FirstBytes::parse(&bytes[..came]) {
                FirstBytes::Ours(asks) => return Ok(asks),
                FirstBytes::Foreign(reason) => break reason,
                FirstBytes::Partial if Instant::now() < deadline => std::thread::sleep(REST),
                FirstBytes::Partial => break "its first message did not come in time",
            },
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if Instant::now() < deadline => {
                wait_one(&socket, PollFlags::POLLIN, deadline);
            }
            Err(Errno::EAGAIN) => break "it said nothing in the time of the handshake",
            Err(_) => break "it reset the connection before it said anything",
        }
    };
    Err(PeerError::NotAuthenticated { reason }.into())
}
