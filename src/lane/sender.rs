//! The sending half of a lane.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::buffer::{HEAD_BYTES, Pool, Slot};
use crate::engine::{Done, Engine, EngineStatistics, Extent, FileId, Until};
use crate::error::Result;
use crate::seal::Sealer;
use crate::wire::{
    Control, HEAD_BYTES_MAX, HEADER_FIXED_BYTES, PREFIX_BYTES, PageRun, Prefix, TAG_BYTES,
    encode_pages,
};

/// A frame that is ready to leave.
pub struct Sealed(Slot, Prefix);

/// Seals frames and sends them in their order.
pub struct Sender {
    engine: Box<dyn Engine>,
    pool: Pool,
    sealer: Sealer,
    lane: u16,
    stalls: u64,
    bytes: u64,
}

impl Sender {
    /// A half for the thread that calls this.
    pub fn new(engine: Box<dyn Engine>, pool: Pool, sealer: Sealer, lane: u16) -> Self {
        Self { engine, pool, sealer, lane, stalls: 0, bytes: 0 }
    }

    /// Most payload bytes of a frame.
    pub fn frame_bytes(&self) -> usize {
        self.pool.payload_bytes()
    }

    /// A free slot. None: call [`Self::wait`] and try again.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.pool.take()
    }

    /// Makes a file known, to read from it.
    pub fn register_file(&mut self, file: Arc<OwnedFd>, subject: &str) -> Result<FileId> {
        self.engine.register_file(file, subject)
    }

    /// Reads extents of a file into a slot; comes back from [`Self::wait`].
    pub fn read(&mut self, slot: Slot, file: FileId, extents: &[Extent], token: u64) -> Result<()> {
        self.engine.read(slot, file, extents, token)
    }

    /// Whether the next frame can be sent now.
    pub fn can_send(&self) -> bool {
        self.engine.can_send()
    }

    /// Seals and sends pages that lie back to back in the slot's payload. Only while
    /// [`Self::can_send`].
    pub fn send_pages(
        &mut self,
        mut slot: Slot,
        region: u16,
        round: u32,
        runs: &[PageRun],
        payload_bytes: usize,
    ) -> Result<()> {
        let mut header = [0; HEAD_BYTES_MAX];
        let header_bytes = encode_pages(&mut header, region, round, runs);
        let prefix = Prefix::new(header_bytes, payload_bytes);
        self.seal(slot.bytes_mut(), &header[..header_bytes], prefix)?;
        self.start(slot, prefix)
    }

    /// Seals and sends a control frame. Only while [`Self::can_send`].
    pub fn send_control(&mut self, mut slot: Slot, control: Control, payload: &[u8]) -> Result<()> {
        let mut header = [0; HEAD_BYTES_MAX];
        let prefix = control.encode(&mut header);
        slot.payload_mut()[..payload.len()].copy_from_slice(payload);
        self.seal(slot.bytes_mut(), &header[..prefix.header_bytes()], prefix)?;
        self.start(slot, prefix)
    }

    fn seal(&mut self, slot: &mut [u8], header: &[u8], prefix: Prefix) -> Result<()> {
        let from = HEAD_BYTES - prefix.head_bytes();
        let frame = &mut slot[from..from + PREFIX_BYTES + prefix.rest_bytes()];
        frame[PREFIX_BYTES..][..header.len()].copy_from_slice(header);
        self.sealer.seal(frame, prefix)?;
        Ok(())
    }

    fn start(&mut self, slot: Slot, prefix: Prefix) -> Result<()> {
        debug_assert!(prefix.head_bytes() <= HEAD_BYTES && prefix.head_bytes() > TAG_BYTES);
        let from = HEAD_BYTES - prefix.head_bytes();
        let range = from..from + PREFIX_BYTES + prefix.rest_bytes();
        self.bytes += range.len() as u64;
        let sent = self.engine.send(slot, range);
        sent.map_err(|e| super::blame(e, self.lane, self.sealer.frames()))
    }

    /// Seals a slot's first bytes as the next of a stream. It must be the next that is sent.
    pub fn seal_stream(&mut self, mut slot: Slot, payload_bytes: usize) -> Result<Sealed> {
        let mut header = [0; HEADER_FIXED_BYTES];
        let prefix = Control::Stream { payload_bytes }.encode(&mut header);
        self.seal(slot.bytes_mut(), &header, prefix)?;
        Ok(Sealed(slot, prefix))
    }

    /// Sends what was sealed. Only while [`Self::can_send`].
    pub fn send_sealed(&mut self, Sealed(slot, prefix): Sealed) -> Result<()> {
        self.start(slot, prefix)
    }

    /// Receives from the engine's other socket into a slot's payload, behind the first `used`
    /// bytes; comes back from [`Self::step`].
    pub fn fill(&mut self, slot: Slot, used: usize, until: Until) -> Result<()> {
        let room = HEAD_BYTES + used..HEAD_BYTES + self.frame_bytes();
        self.engine.recv(slot, room, until)
    }

    /// See [`Engine::allow_zero_copy`].
    pub fn allow_zero_copy(&mut self, allow: bool) {
        self.engine.allow_zero_copy(allow);
    }

    /// Waits until something ends or the deadline passes.
    pub fn step(&mut self, deadline: Option<Instant>) -> Result<Option<Done>> {
        if !self.engine.can_send() {
            self.stalls += 1;
        }
        self.engine.complete(deadline)
    }

    /// Waits until something ends or the deadline passes. Gives back what was read.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<(Slot, u64)>> {
        let done = self.step(deadline);
        match done.map_err(|e| super::blame(e, self.lane, self.sealer.frames()))? {
            Some(Done::Read { slot, token }) => Ok(Some((slot, token))),
            _ => Ok(None),
        }
    }

    /// Frames sealed so far.
    pub fn frames(&self) -> u64 {
        self.sealer.frames()
    }

    /// Bytes handed to the network, epoch, waits for it, and the engine's figures.
    pub fn statistics(&self) -> (u64, u64, u64, EngineStatistics) {
        (self.bytes, self.sealer.epoch(), self.stalls, self.engine.statistics())
    }
}
