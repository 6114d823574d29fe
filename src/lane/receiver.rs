//! The receiving half of a lane.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::buffer::{HEAD_BYTES, Pool, Slot};
use crate::engine::{Done, Engine, EngineStatistics, Extent, FileId, Until};
use crate::error::Result;
use crate::seal::Opener;
use crate::wire::{PREFIX_BYTES, Prefix};

/// Receives frames into private slots and opens their headers.
pub struct Receiver {
    engine: Box<dyn Engine>,
    pool: Pool,
    opener: Opener,
    lane: u16,
    payload_bytes_max: usize,
    prefix: Option<Prefix>,
    receiving: bool,
    bytes: u64,
}

/// What ended.
pub enum Received {
    /// A frame is there, still sealed: open its header, then its payload.
    Frame(Slot, Prefix),
    /// A write ended.
    Written(Slot, u64),
    /// The deadline passed.
    Nothing,
}

impl Receiver {
    /// A half for the thread that calls this; no payload is longer than `payload_bytes_max`.
    pub fn new(
        engine: Box<dyn Engine>,
        pool: Pool,
        opener: Opener,
        lane: u16,
        payload_bytes_max: usize,
    ) -> Self {
        let (prefix, receiving) = (None, false);
        Self { engine, pool, opener, lane, payload_bytes_max, prefix, receiving, bytes: 0 }
    }

    /// Makes a file known, to write to it.
    pub fn register_file(&mut self, file: Arc<OwnedFd>, subject: &str) -> Result<FileId> {
        self.engine.register_file(file, subject)
    }

    /// Writes extents of a slot to a file; comes back as [`Received::Written`].
    pub fn write(
        &mut self,
        slot: Slot,
        file: FileId,
        extents: &[Extent],
        token: u64,
    ) -> Result<()> {
        self.engine.write(slot, file, extents, token)
    }

    /// The next frame, or a write that ended before it came.
    ///
    /// # Errors
    ///
    /// [`crate::error::PeerError::Closed`] where the connection ends, `Malformed` where a length
    /// is not allowed; nothing is received by a length before it was checked.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Received> {
        if !self.receiving
            && let Some(slot) = self.pool.take()
        {
            self.receiving = true;
            self.recv(slot, HEAD_BYTES - PREFIX_BYTES, PREFIX_BYTES)?;
        }
        loop {
            match self.complete(deadline)? {
                Some(Done::Received { slot, bytes }) => match self.prefix.take() {
                    None => self.prefix_came(slot, bytes)?,
                    Some(prefix) if bytes == prefix.rest_bytes() => {
                        self.receiving = false;
                        self.bytes += (PREFIX_BYTES + bytes) as u64;
                        return Ok(Received::Frame(slot, prefix));
                    }
                    Some(_) => return Err(super::closed(self.lane, self.opener.frames())),
                },
                Some(Done::Written { slot, token }) => return Ok(Received::Written(slot, token)),
                Some(_) => {}
                None => return Ok(Received::Nothing),
            }
        }
    }

    /// A write that ended, without receiving more.
    pub fn next_written(&mut self, deadline: Option<Instant>) -> Result<Received> {
        debug_assert!(!self.receiving, "between frames");
        Ok(match self.complete(deadline)? {
            Some(Done::Written { slot, token }) => Received::Written(slot, token),
            _ => Received::Nothing,
        })
    }

    fn prefix_came(&mut self, mut slot: Slot, bytes: usize) -> Result<()> {
        if bytes < PREFIX_BYTES {
            return Err(super::closed(self.lane, self.opener.frames()));
        }
        let raw = *slot.bytes()[HEAD_BYTES - PREFIX_BYTES..].first_chunk().expect("8 of a slot");
        let prefix = Prefix::parse(raw, self.payload_bytes_max)?;
        // The head ends where the payload begins, so that the payload lies on whole pages.
        let from = HEAD_BYTES - prefix.head_bytes();
        slot.bytes_mut()[from..from + PREFIX_BYTES].copy_from_slice(&raw);
        self.prefix = Some(prefix);
        self.recv(slot, from + PREFIX_BYTES, prefix.rest_bytes())
    }

    fn recv(&mut self, slot: Slot, from: usize, bytes: usize) -> Result<()> {
        let done = self.engine.recv(slot, from..from + bytes, Until::Full);
        done.map_err(|e| super::blame(e, self.lane, self.opener.frames()))
    }

    fn complete(&mut self, deadline: Option<Instant>) -> Result<Option<Done>> {
        let done = self.engine.complete(deadline);
        done.map_err(|e| super::blame(e, self.lane, self.opener.frames()))
    }

    /// Opens the header of a frame in its slot.
    pub fn open_header<'a>(&mut self, slot: &'a mut Slot, prefix: Prefix) -> Result<&'a [u8]> {
        let from = HEAD_BYTES - prefix.head_bytes();
        self.opener.open_header(&mut slot.bytes_mut()[from..HEAD_BYTES], prefix)
    }

    /// Opens the payload of the frame whose header was opened last.
    pub fn open_payload<'a>(&mut self, slot: &'a mut Slot, prefix: Prefix) -> Result<&'a [u8]> {
        if prefix.payload_bytes() > 0 {
            self.opener.open_payload(&mut slot.bytes_mut()[HEAD_BYTES..][..prefix.body_bytes()])?;
        }
        Ok(&slot.bytes()[HEAD_BYTES..][..prefix.payload_bytes()])
    }

    /// Frames opened so far.
    pub fn frames(&self) -> u64 {
        self.opener.frames()
    }

    /// Bytes from the network, epoch, and the engine's figures.
    pub fn statistics(&self) -> (u64, u64, EngineStatistics) {
        (self.bytes, self.opener.epoch(), self.engine.statistics())
    }
}
