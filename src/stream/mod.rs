//! Streams: plain ordered bytes over one sealed lane, in both directions.
//!
//! All streams of a migration are lanes of one session, [`Streams`]: its first connection shows
//! who is there, the others join with a key that comes from it.
//!
//! ```
//! use sealane::stream::Streams;
//! use sealane::{Canceller, Config, EngineChoice, OneTimeSecret, Role};
//! use std::io::{Read, Write};
//! use std::net::Shutdown;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let secret = OneTimeSecret::generate()?;
//! let mut config = Config::default();
//! config.engine = EngineChoice::Syscalls; // io_uring unless named otherwise
//! // Any connected stream socket will do.
//! let (near, far) = std::os::unix::net::UnixStream::pair()?;
//! let (theirs, other) = (secret.clone(), config.clone());
//! let target = std::thread::spawn(move || -> std::io::Result<String> {
//!     let cancel = Canceller::default();
//!     let (_, stream) = Streams::answer(far, Role::Target, &theirs, &other, &cancel)?;
//!     let mut text = String::new();
//!     (&stream).read_to_string(&mut text)?; // up to the end that the source said
//!     Ok(text)
//! });
//! let cancel = Canceller::default();
//! let (_, stream) = Streams::open(near, Role::Source, &secret, &config, &cancel)?;
//! (&stream).write_all(b"sealed")?;
//! stream.shutdown(Shutdown::Write)?;
//! assert_eq!(target.join().unwrap()?, "sealed");
//! # Ok(())
//! # }
//! ```
//!
//! # What is with the kernel
//!
//! A stream has no thread. When a write returns, every byte that it took is with the kernel,
//! whose work it is from then on: the calling thread may sleep, or end. A blocking write waits for
//! that; a non-blocking one takes only what the socket has room for. (Where the kernel, short of
//! memory, then takes less than it had room for, the write waits for the rest.)
//!
//! # The end
//!
//! Each direction ends with a sealed frame that says what it carried. A connection that ends
//! without it is an error, never an end of file: nobody can cut a stream short unseen. So a
//! stream that is dropped before [`Stream::shutdown`] is an error at the other end. Its kind is
//! [`io::ErrorKind::UnexpectedEof`], as `read_exact` of the standard library gives where a stream
//! ends well and too early; only an error of the connection has an [`Error`] inside.
#![forbid(unsafe_code)]

mod reading;
mod session;
mod writing;

pub use session::Streams;

pub use crate::wire::Asks;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::Duration;

use crate::config::Config;
use crate::engine::{self, EngineStatistics, Level};
use crate::error::{Error, PeerError, Result};
use crate::lane::Lane;
use crate::memory::LiveSlice;

use reading::{ReadShut, Reading};
use writing::Writing;

/// Ordered bytes, sealed, in both directions. One thread may read while another writes; any
/// thread may do either, and [`Self::shutdown`] from any thread wakes both.
pub struct Stream {
    number: u16,
    provider: &'static str,
    socket: Arc<OwnedFd>,
    writing: Mutex<Writing>,
    reading: Mutex<Reading>,
    nonblocking: AtomicBool,
    /// Threads in a write: who else holds its lock is done soon.
    writers: AtomicUsize,
    read_shut: ReadShut,
    write_shut: AtomicBool,
    level: OnceLock<Level>,
}

/// What a stream did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStatistics {
    /// Bytes that were written to it.
    pub sent_bytes: u64,
    /// Frames that left.
    pub sent_frames: u64,
    /// Bytes that were opened.
    pub received_bytes: u64,
    /// Frames that came.
    pub received_frames: u64,
    /// The engine's figures, both directions.
    pub engine: EngineStatistics,
}

impl Stream {
    fn new(
        lane: Lane,
        frame_bytes: usize,
        provider: &'static str,
        config: &Config,
    ) -> Result<Self> {
        let Lane { index, socket, sealer, opener } = lane;
        let writing = Writing::new(config, frame_bytes, Arc::clone(&socket), sealer, index)?;
        let reading = Reading::new(config, frame_bytes, Arc::clone(&socket), opener, index)?;
        Ok(Self {
            number: index,
            provider,
            socket,
            writing: Mutex::new(writing),
            reading: Mutex::new(reading),
            nonblocking: AtomicBool::new(false),
            writers: AtomicUsize::new(0),
            read_shut: ReadShut::default(),
            write_shut: AtomicBool::new(false),
            level: OnceLock::new(),
        })
    }

    /// Its place among the streams of its session, from 0.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Who seals it.
    pub fn provider(&self) -> &'static str {
        self.provider
    }

    /// Whether reads and writes return [`io::ErrorKind::WouldBlock`] where they would wait for the
    /// other end. A call that is waiting goes on waiting, and any call in the same direction from
    /// another thread waits for it. Off at first.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Release);
    }

    /// Reads what is there into the first buffers, as [`Read::read`] does.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] where the connection ended before the stream did,
    /// [`io::ErrorKind::InvalidData`] where a frame did not verify; the [`Error`] is inside
    /// ([`io::Error::get_ref`]). The stream reads nothing more after that.
    pub fn read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.reading(|reading, now, shut| {
            let wanted = buffers.iter().any(|buffer| !buffer.is_empty());
            if !wanted || !reading.has_bytes(now, shut)? {
                return Ok(0);
            }
            Ok(buffers.iter_mut().map(|buffer| reading.take(buffer)).sum())
        })
    }

    /// Copies the next bytes and leaves them for the next read: those that were opened and, up to
    /// 4096, those of whole frames that are there. 0 is the end of the stream; else at least one
    /// byte, for which it waits as a read does.
    ///
    /// # Errors
    ///
    /// As [`Self::read_vectored`].
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reading(|reading, now, shut| {
            if buffer.is_empty() || !reading.has_bytes(now, shut)? {
                return Ok(0);
            }
            Ok(reading.peek(buffer))
        })
    }

    /// Writes the buffers: whole frames are filled, sealed and sent while the kernel still takes
    /// the one before; what is left goes out at once. Blocking, all of it is taken.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::BrokenPipe`] after [`Self::shutdown`] or where the connection has ended.
    /// The stream takes nothing more after an error but [`io::ErrorKind::WouldBlock`].
    pub fn write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_any(buffers)
    }

    /// As [`Self::write_vectored`], of bytes that a guest may write to meanwhile: each is sent as
    /// it was at some moment of the call.
    ///
    /// # Errors
    ///
    /// As [`Self::write_vectored`].
    pub fn write_live(&self, buffers: &[LiveSlice<'_>]) -> io::Result<usize> {
        self.write_any(buffers)
    }

    fn write_any(&self, buffers: &[impl writing::Bytes]) -> io::Result<usize> {
        let _inside = Inside::new(&self.writers);
        let mut writing = lock(&self.writing);
        if self.write_shut.load(Ordering::Acquire) {
            return Err(writing::shut_down());
        }
        let now = self.nonblocking.load(Ordering::Acquire);
        writing.write(&self.socket, buffers, now, &self.write_shut)
    }

    /// Ends a direction, or both.
    ///
    /// `Write` says the end of the stream to the other end, which reads what was written before
    /// and then 0; waits, where the stream is blocking, until the kernel has it. `Read` lets reads
    /// return 0. `Both` does both and never waits: where the kernel has no room for the end, it is
    /// not said and the other end sees an error, so say `Write` first. While another thread
    /// is in a write, neither says the end: that thread wakes with an error, and the other end sees
    /// one too. A thread that waits in [`Self::read_vectored`] wakes and reads 0.
    ///
    /// # Errors
    ///
    /// What kept the end from being said; the direction has ended all the same. But `Write` on a
    /// non-blocking stream without room gives [`io::ErrorKind::WouldBlock`] and has changed
    /// nothing: call again when the socket is writable.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.read_shut.end();
        }
        let mut said = Ok(());
        if how != Shutdown::Read {
            said = match self.writing_unless_busy() {
                Some(mut writing) => {
                    let now = how == Shutdown::Both || self.nonblocking.load(Ordering::Acquire);
                    writing.end(&self.socket, now, &self.write_shut)
                }
                None => Err(writing::shut_down()),
            };
            let would_block = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
            if how == Shutdown::Write && said.as_ref().is_err_and(would_block) {
                return said;
            }
            self.write_shut.store(true, Ordering::Release);
        }
        engine::shutdown_one(&self.socket, how);
        said
    }

    /// Gives the stream up in both directions and never waits. The other end reads what was
    /// written before, then an error with this reason (up to 1024 bytes), where the kernel has room
    /// for it and no other thread is in a write; else that the connection ended. Reads at this end
    /// give [`Error::Cancelled`] ([`io::ErrorKind::ConnectionAborted`]), but where the end of the
    /// stream was read before.
    pub fn cancel(&self, reason: &str) {
        self.read_shut.cancel();
        if let Some(mut writing) = self.writing_unless_busy() {
            writing.cancel(&self.socket, reason);
        }
        self.write_shut.store(true, Ordering::Release);
        engine::shutdown_one(&self.socket, Shutdown::Both);
    }

    /// The writing half; none, and writes are shut, where a thread is in a write.
    fn writing_unless_busy(&self) -> Option<MutexGuard<'_, Writing>> {
        loop {
            match self.writing.try_lock() {
                Ok(writing) => return Some(writing),
                Err(TryLockError::Poisoned(half)) => return Some(half.into_inner()),
                Err(TryLockError::WouldBlock) if self.writers.load(Ordering::Acquire) > 0 => {
                    self.write_shut.store(true, Ordering::Release);
                    return None;
                }
                // Somebody looks at its figures.
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    /// A descriptor that poll(2) calls readable (POLLIN) whenever a read would not wait, for loops
    /// that look at levels. Bytes that were opened and wait here do not show in the socket. It may
    /// be readable with a part of a frame there, where the read gives
    /// [`io::ErrorKind::WouldBlock`]. Writability is the socket's own ([`Self::as_fd`], POLLOUT);
    /// after blocking writes with zero-copy sends the socket may be writable while a slot is still
    /// with the network, where a write gives `WouldBlock`. The first call waits for a read that is
    /// going on.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where there is no descriptor left.
    pub fn read_ready_fd(&self) -> Result<BorrowedFd<'_>> {
        if self.level.get().is_none() {
            let level = Level::new(&self.socket)?;
            let reading = lock(&self.reading);
            level.hold(reading.has_more());
            // Where another thread was faster its descriptor is the one.
            let _ = self.level.set(level);
        }
        Ok(self.level.get().expect("set above").as_fd())
    }

    /// What it did until now. Waits for a read and a write that are going on.
    pub fn statistics(&self) -> StreamStatistics {
        let (sent_bytes, sent_frames, out) = lock(&self.writing).statistics();
        let (received_bytes, received_frames, into) = lock(&self.reading).statistics();
        let engine = EngineStatistics {
            system_calls: out.system_calls + into.system_calls,
            zero_copy_kept: out.zero_copy_kept,
            zero_copy_copied: out.zero_copy_copied,
        };
        StreamStatistics { sent_bytes, sent_frames, received_bytes, received_frames, engine }
    }

    fn reading(
        &self,
        step: impl FnOnce(&mut Reading, bool, &ReadShut) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut reading = lock(&self.reading);
        let now = self.nonblocking.load(Ordering::Acquire);
        let result = step(&mut reading, now, &self.read_shut);
        if let Some(level) = self.level.get() {
            level.hold(reading.has_more());
        }
        result
    }
}

/// What a half that waits fails with where the other host is dead.
fn silent(lane: u16, peer_timeout: Duration) -> Error {
    let (phase, waited_s) = ("while bytes were on their way to it", peer_timeout.as_secs());
    PeerError::Silent { lane, phase, waited_s }.into()
}

/// A panic of ours in one half leaves it as it was; its next call fails by itself.
fn lock<T>(half: &Mutex<T>) -> MutexGuard<'_, T> {
    half.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Counts a thread for as long as it is inside.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn new(threads: &'a AtomicUsize) -> Self {
        threads.fetch_add(1, Ordering::AcqRel);
        Self(threads)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The connection ends with it, also where somebody holds another descriptor of the socket.
impl Drop for Stream {
    fn drop(&mut self) {
        if lock(&self.writing).is_silent() || lock(&self.reading).is_silent() {
            engine::abort(&self.socket);
        }
        engine::shutdown(&self.socket);
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The socket: writable (POLLOUT) when a write would take something. For reads, readable once
/// after each [`io::ErrorKind::WouldBlock`], as loops that look at edges want it; see
/// [`Stream::read_ready_fd`]. Its flags are to be left alone: O_NONBLOCK would make waits spin, see
/// [`Stream::set_nonblocking`].
impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Stream::read_vectored(self, &mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Stream::read_vectored(self, buffers)
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Stream::write_vectored(self, &[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        Stream::write_vectored(self, buffers)
    }

    /// Nothing waits here: see the head of this module.
    fn flush(&mut self) -> io::Result<()> {
        lock(&self.writing).check()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Stream::read_vectored(self, buffers)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&*self).write(buffer)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        Stream::write_vectored(self, buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

/// Why a half does nothing more.
struct Failure {
    kind: io::ErrorKind,
    error: Error,
}

impl Failure {
    fn again(&self) -> io::Error {
        io::Error::new(self.kind, self.error.clone())
    }

    fn is_silent(&self) -> bool {
        matches!(self.error, Error::Peer(PeerError::Silent { .. }))
    }

    /// Keeps an error that is given out now, to give it out again.
    fn keep(into: &mut Option<Self>, error: Error, kind: Option<io::ErrorKind>) -> io::Error {
        let kind = kind.unwrap_or_else(|| io::Error::from(error.clone()).kind());
        into.insert(Self { kind, error }).again()
    }
}

#[cfg(test)]
mod tests;
