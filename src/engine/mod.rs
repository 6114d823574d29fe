//! Moving bytes: one engine serves one direction of one lane, from one thread at a time.
//!
//! An engine is made by the thread that uses it (io_uring's SINGLE_ISSUER holds it to that), but
//! for one whose [`Callers`] are any. A slot handed to it belongs to the kernel until it comes back
//! in a [`Done`], or, for sends, goes back to its pool by itself. The error of one operation comes
//! out of [`Engine::complete`], or of the next send, and leaves the others alone. Whoever shuts the
//! socket down wakes an engine that waits for it.

mod exit;
mod probe;
mod pulse;
mod ready;
mod syscalls;
mod uring;

use std::collections::VecDeque;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use crate::buffer::{Pool, Slot};
use crate::config::{EngineChoice, ZeroCopy};
use crate::error::{Error, Result, SystemError};

pub use exit::exit_status;
pub use probe::{MemoryLock, Operation, Probe, lane_locked_bytes};
pub use pulse::{Pulse, abort, duplicate, set_probe_interval_max};
pub use ready::{Level, UNSENT_BYTES_MAX, send_room_bytes, set_unsent_limit};

/// What an engine is made of.
#[derive(Clone)]
pub struct EngineSetup<'a> {
    /// Which engine.
    pub choice: EngineChoice,
    /// Zero-copy send.
    pub zero_copy: ZeroCopy,
    /// A kernel thread that polls the ring.
    pub sqpoll: bool,
    /// The slots it will see.
    pub pool: &'a Pool,
    /// Whether the slots are registered: files and zero-copy sends want that. Plain sends and
    /// receives are no faster for it, and registered memory counts as locked.
    pub register: bool,
    /// Who may call it.
    pub callers: Callers,
    /// Where it receives from.
    pub from: Endpoint,
    /// Where it sends to.
    pub to: Endpoint,
}

/// A stream socket and its name in messages.
#[derive(Clone)]
pub struct Endpoint {
    /// The socket.
    pub socket: Arc<OwnedFd>,
    /// Such as `lane 3`.
    pub name: Arc<str>,
    /// A reset is the end of what comes, and no error: see [`Self::of_hypervisor`].
    pub reset_is_end: bool,
}

impl Endpoint {
    /// The socket of a lane.
    pub fn of_lane(socket: Arc<OwnedFd>, lane: u16) -> Self {
        Self { socket, name: format!("lane {lane}").into(), reset_is_end: false }
    }

    /// A hypervisor's socket. One that it closes with bytes unread is reset, and all that it said
    /// came before (unix(7) tells of the reset behind it): QEMU 7.2 does so at the end of a
    /// migration, where a multifd channel has sent an empty packet behind its last one. What it had
    /// yet to be told is another matter: sending that fails.
    pub fn of_hypervisor(socket: Arc<OwnedFd>, name: Arc<str>) -> Self {
        Self { socket, name, reset_is_end: true }
    }
}

/// Which threads may call an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// The one that made it.
    One,
    /// Any, one at a time. What the kernel has when a call returns it finishes by itself.
    Any,
}

/// When a receive is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When its range is full or the stream ended.
    Full,
    /// When anything came or the stream ended.
    Some,
    /// At once, with what is there.
    Now,
}

/// A file known to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(u32);

/// A piece of a file and its place in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file.
    pub file_offset: u64,
    /// Where in the slot.
    pub slot_offset: usize,
    /// How much.
    pub bytes: usize,
}

/// An operation that ended well.
#[derive(Debug)]
pub enum Done {
    /// The kernel took all bytes of a send that it did not take at once; the next may follow.
    Sent,
    /// The receive is over: see [`Until`].
    Received {
        /// The slot.
        slot: Slot,
        /// Bytes that came: none, or fewer than [`Until::Full`] asked for, at the end of the
        /// stream.
        bytes: usize,
    },
    /// Nothing is there for a receive with [`Until::Now`].
    Empty {
        /// The slot.
        slot: Slot,
    },
    /// All extents were read.
    Read {
        /// The slot.
        slot: Slot,
        /// The caller's.
        token: u64,
    },
    /// All extents were written.
    Written {
        /// The slot.
        slot: Slot,
        /// The caller's.
        token: u64,
    },
}

/// What an engine did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStatistics {
    /// System calls that moved or waited for bytes.
    pub system_calls: u64,
    /// Sends of which the kernel reports that it did not copy them.
    pub zero_copy_kept: u64,
    /// Zero-copy sends that it copied after all.
    pub zero_copy_copied: u64,
}

/// One way to move bytes.
pub trait Engine: Send {
    /// Makes a file known. `subject` names it in errors.
    fn register_file(&mut self, file: Arc<OwnedFd>, subject: &str) -> Result<FileId>;

    /// Sends a range of a slot whole, without SIGPIPE. One at a time: see [`Self::can_send`].
    /// An error that waits to be told, of whatever operation, is told here.
    fn send(&mut self, slot: Slot, range: Range<usize>) -> Result<()>;

    /// Whether the last send was taken.
    fn can_send(&self) -> bool;

    /// Whether the sends that follow may keep their slots until the other end has the bytes, as
    /// zero-copy sends do. They may at first, as far as the setup says.
    fn allow_zero_copy(&mut self, allow: bool);

    /// Receives into a range, which is not empty. One at a time.
    fn recv(&mut self, slot: Slot, range: Range<usize>, until: Until) -> Result<()>;

    /// Reads extents of a file into a slot; a file that ends before is an error.
    fn read(&mut self, slot: Slot, file: FileId, extents: &[Extent], token: u64) -> Result<()>;

    /// Writes extents of a slot to a file.
    fn write(&mut self, slot: Slot, file: FileId, extents: &[Extent], token: u64) -> Result<()>;

    /// Waits for an operation to end; none where the deadline passes first, nothing is under way,
    /// or a zero-copy send gave its slot back. `deadline` none waits as long as it takes; one in
    /// the past does not wait.
    fn complete(&mut self, deadline: Option<Instant>) -> Result<Option<Done>>;

    /// What it did.
    fn statistics(&self) -> EngineStatistics;
}

/// Makes an engine for this thread.
///
/// # Errors
///
/// [`Error::System`] where the kernel refuses, with what it would take.
pub fn open(setup: &EngineSetup<'_>) -> Result<Box<dyn Engine>> {
    Ok(match setup.choice {
        EngineChoice::Uring => Box::new(uring::Uring::new(setup)?),
        EngineChoice::Syscalls => Box::new(syscalls::Syscalls::new(setup)),
    })
}

/// An engine whose slots only sends use: registered for zero-copy sends alone, which
/// [`ZeroCopy::Auto`] does without, and says so, where the limit of locked memory allows none.
/// Whether they are registered is decided here, whatever `setup.register` says.
///
/// # Errors
///
/// As [`open`].
pub fn open_for_sends(setup: &EngineSetup<'_>) -> Result<Box<dyn Engine>> {
    let with = |zero_copy| {
        let register = zero_copy != ZeroCopy::Off;
        open(&EngineSetup { zero_copy, register, ..setup.clone() })
    };
    match with(setup.zero_copy) {
        Err(Error::System(error))
            if setup.zero_copy == ZeroCopy::Auto && error.is_locked_memory() =>
        {
            tracing::warn!(%error, lane = &*setup.to.name, "sends are not zero-copy");
            with(ZeroCopy::Off)
        }
        result => result,
    }
}

/// Ends both directions of a socket: whoever waits for it wakes.
pub fn shutdown(socket: &OwnedFd) {
    shutdown_one(socket, Shutdown::Both);
}

/// Ends one direction of a socket, or both.
pub fn shutdown_one(socket: &OwnedFd, how: Shutdown) {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: shutdown on a descriptor that `socket` keeps open. An error says that it is not
    // connected any more, which is what was wanted.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

/// Takes the first error out of what waits to be told. Whoever sends again knows that the last
/// send was taken: without that the queue would grow where nobody asks.
fn first_error(done: &mut VecDeque<Result<Done>>) -> Result<()> {
    done.retain(|done| !matches!(done, Ok(Done::Sent)));
    match done.iter().position(Result::is_err) {
        Some(at) => done.remove(at).expect("just found").map(drop),
        None => Ok(()),
    }
}

fn socket_error(operation: &'static str, endpoint: &Endpoint, errno: i32) -> Error {
    SystemError::from_errno(operation, &*endpoint.name, errno).into()
}

fn file_error(write: bool, subject: &str, errno: i32) -> Error {
    SystemError::from_errno(if write { "write" } else { "read" }, subject, errno).into()
}

/// A read that met the end of its file, or a write that made no progress.
fn no_progress(write: bool, subject: &str, extent: Extent) -> Error {
    let operation = if write { "write" } else { "read" };
    SystemError::from_errno(
        operation,
        format!("{subject}: nothing at byte {}", extent.file_offset),
        0,
    )
    .remedy("the file shrank meanwhile: leave it alone until the migration has ended")
    .into()
}

#[cfg(test)]
mod tests;
