//! The writing half of a stream.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Failure;
use crate::buffer::{Pool, Slot};
use crate::config::{Config, ZeroCopy};
use crate::engine::{
    self, Callers, Endpoint, EngineSetup, EngineStatistics, Pulse, send_room_bytes,
};
use crate::error::{ConfigError, Error, PeerError, Result, SystemError};
use crate::lane::{Sender, blame};
use crate::memory::LiveSlice;
use crate::seal::Sealer;
use crate::wire::{Control, HEADER_FIXED_BYTES, PREFIX_BYTES, TAG_BYTES, reason_bytes};

/// Bytes of a frame beside its payload.
const AROUND_BYTES: usize = PREFIX_BYTES + HEADER_FIXED_BYTES + 2 * TAG_BYTES;
/// A non-blocking write ends rather than to seal so little of what is left.
const PIECE_BYTES_MIN: usize = 4096;
/// How often a wait for the network looks whether the stream was shut down.
const TICK: Duration = Duration::from_millis(20);

pub(super) struct Writing {
    sender: Sender,
    lane: u16,
    socket: Arc<OwnedFd>,
    peer_timeout: Duration,
    bytes: u64,
    ended: bool,
    failed: Option<Failure>,
    requires_zero_copy: bool,
}

impl Writing {
    pub(super) fn new(
        config: &Config,
        frame_bytes: usize,
        socket: Arc<OwnedFd>,
        sealer: Sealer,
        lane: u16,
    ) -> Result<Self> {
        let pool = Pool::new(config.slots_per_lane, frame_bytes)?;
        let to = Endpoint::of_lane(Arc::clone(&socket), lane);
        let engine = engine::open_for_sends(&EngineSetup {
            choice: config.engine,
            zero_copy: config.zero_copy,
            sqpoll: false,
            pool: &pool,
            register: false,
            callers: Callers::Any,
            from: to.clone(),
            to,
        })?;
        let sender = Sender::new(engine, pool, sealer, lane);
        let requires_zero_copy = config.zero_copy == ZeroCopy::Require;
        Ok(Self {
            sender,
            lane,
            socket,
            peer_timeout: config.peer_timeout,
            bytes: 0,
            ended: false,
            failed: None,
            requires_zero_copy,
        })
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some(failure) => Err(failure.again()),
            None => Ok(()),
        }
    }

    pub(super) fn write(
        &mut self,
        socket: &OwnedFd,
        buffers: &[impl Bytes],
        now: bool,
        shut: &AtomicBool,
    ) -> io::Result<usize> {
        self.check()?;
        if self.ended {
            return Err(shut_down());
        }
        if now && self.requires_zero_copy {
            return Err(must_block());
        }
        // A slot that the network keeps would not show in poll(2).
        self.sender.allow_zero_copy(!now);
        let total: usize = buffers.iter().map(Bytes::bytes).sum();
        let mut cursor = Cursor { buffers, at: 0 };
        let mut written = 0;
        while written < total {
            let mut piece = (total - written).min(self.sender.frame_bytes());
            if now {
                piece = piece.min(self.room(socket));
                let no_slot = !self.reclaim().map_err(|e| self.fail(e, shut))?;
                if piece == 0
                    || no_slot
                    || (written > 0 && piece < PIECE_BYTES_MIN.min(total - written))
                {
                    break;
                }
            }
            let sent = self.send(piece, &mut cursor, shut);
            sent.map_err(|e| self.fail(e, shut))?;
            written += piece;
        }
        if written == 0 && total > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.drain(shut).map_err(|e| self.fail(e, shut))?;
        self.bytes += written as u64;
        Ok(written)
    }

    /// Says the end of the stream. `now` does not wait.
    pub(super) fn end(&mut self, socket: &OwnedFd, now: bool, shut: &AtomicBool) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.check()?;
        if now && self.room(socket) == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if now && !self.reclaim().map_err(|e| self.fail(e, shut))? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let end = Control::StreamEnd { frames: self.sender.frames(), bytes: self.bytes };
        self.say(end, &[], shut)
    }

    /// Gives the stream up, and says why where there is room for it.
    pub(super) fn cancel(&mut self, socket: &OwnedFd, reason: &str) {
        let reason = reason_bytes(reason);
        let can_say = !self.ended
            && self.failed.is_none()
            && self.room(socket) > reason.len()
            && self.reclaim().unwrap_or(false);
        if can_say {
            let cancel = Control::Cancel { payload_bytes: reason.len() };
            // Whoever does not hear it sees the connection end.
            let _ = self.say(cancel, reason, &AtomicBool::new(true));
        }
        self.ended = true;
    }

    /// The last word of this direction.
    fn say(&mut self, control: Control, payload: &[u8], shut: &AtomicBool) -> io::Result<()> {
        let said = self.slot(shut).and_then(|slot| {
            self.drain(shut)?;
            self.sender.send_control(slot, control, payload)?;
            self.drain(shut)
        });
        said.map_err(|e| self.fail(e, shut))?;
        self.ended = true;
        Ok(())
    }

    /// Whether the other host was found dead.
    pub(super) fn is_silent(&self) -> bool {
        self.failed.as_ref().is_some_and(Failure::is_silent)
    }

    pub(super) fn statistics(&self) -> (u64, u64, EngineStatistics) {
        let (.., engine) = self.sender.statistics();
        (self.bytes, self.sender.frames(), engine)
    }

    /// Payload bytes that the socket has room for.
    fn room(&self, socket: &OwnedFd) -> usize {
        let room = send_room_bytes(socket);
        if room == 0 { 0 } else { room.saturating_sub(AROUND_BYTES).max(1) }
    }

    /// Fills and seals one frame while the kernel may still take the one before, and sends it.
    fn send(
        &mut self,
        bytes: usize,
        from: &mut Cursor<'_, impl Bytes>,
        shut: &AtomicBool,
    ) -> Result<()> {
        let mut slot = self.slot(shut)?;
        from.copy(&mut slot.payload_mut()[..bytes]);
        let sealed = self.sender.seal_stream(slot, bytes)?;
        self.drain(shut)?;
        self.sender.send_sealed(sealed)
    }

    /// Whether a slot is free, after a look at what the network gave back.
    fn reclaim(&mut self) -> Result<bool> {
        match self.sender.take_slot() {
            Some(_) => Ok(true),
            None => {
                self.sender.step(Some(Instant::now()))?;
                Ok(self.sender.take_slot().is_some())
            }
        }
    }

    /// A free slot, as soon as the network gives one back. That no shutdown would wake.
    fn slot(&mut self, shut: &AtomicBool) -> Result<Slot> {
        let mut pulse = Pulse::new(self.peer_timeout);
        loop {
            if let Some(slot) = self.sender.take_slot() {
                return Ok(slot);
            }
            self.wait(shut, &mut pulse)?;
        }
    }

    /// Waits until the kernel has everything.
    fn drain(&mut self, shut: &AtomicBool) -> Result<()> {
        let mut pulse = Pulse::new(self.peer_timeout);
        while !self.sender.can_send() {
            self.wait(shut, &mut pulse)?;
        }
        Ok(())
    }

    /// Waits for the network; a shutdown ends that, also where poll(2) does not show it (AF_UNIX
    /// with one direction shut, a slot that the network holds), and so does a dead host.
    fn wait(&mut self, shut: &AtomicBool, pulse: &mut Pulse) -> Result<()> {
        if self.sender.step(Some(Instant::now() + TICK))?.is_some() {
            return Ok(());
        }
        if shut.load(Ordering::Acquire) {
            return Err(SystemError::from_errno("send", "stream", libc::EPIPE).into());
        }
        match pulse.is_dead(&*self.socket) {
            true => Err(super::silent(self.lane, self.peer_timeout)),
            false => Ok(()),
        }
    }

    fn fail(&mut self, error: Error, shut: &AtomicBool) -> io::Error {
        let error = blame(error, self.lane, self.sender.frames());
        let closed = matches!(error, Error::Peer(PeerError::Closed { .. }));
        // A writer knows a connection that ended as a socket's writer does.
        let kind = closed.then_some(io::ErrorKind::BrokenPipe);
        let error = if closed && shut.load(Ordering::Acquire) { was_shut_down() } else { error };
        Failure::keep(&mut self.failed, error, kind)
    }
}

/// A buffer to write.
pub(super) trait Bytes {
    fn bytes(&self) -> usize;
    fn copy_to(&self, at: usize, into: &mut [u8]);
}

impl Bytes for IoSlice<'_> {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn copy_to(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self[at..at + into.len()]);
    }
}

impl Bytes for LiveSlice<'_> {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn copy_to(&self, at: usize, into: &mut [u8]) {
        LiveSlice::copy_to(self, at, into);
    }
}

/// Walks over buffers.
struct Cursor<'a, B> {
    buffers: &'a [B],
    at: usize,
}

impl<B: Bytes> Cursor<'_, B> {
    fn copy(&mut self, mut into: &mut [u8]) {
        while !into.is_empty() {
            let first = &self.buffers[0];
            let bytes = (first.bytes() - self.at).min(into.len());
            let (front, back) = into.split_at_mut(bytes);
            first.copy_to(self.at, front);
            into = back;
            self.at += bytes;
            if self.at == first.bytes() {
                (self.buffers, self.at) = (&self.buffers[1..], 0);
            }
        }
    }
}

pub(super) fn shut_down() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, was_shut_down())
}

fn was_shut_down() -> Error {
    Error::Misuse("the stream was shut down at this end".to_owned())
}

fn must_block() -> io::Error {
    let error = ConfigError {
        key: "zero_copy = require",
        found: "a non-blocking stream".to_owned(),
        wanted: "a blocking one: poll(2) does not know what the network still holds".to_owned(),
        remedy: "zero_copy = auto, or blocking writes".to_owned(),
    };
    Error::from(error).into()
}
