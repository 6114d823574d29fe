//! The receiving half of a lane that is a stream.
//!
//! ```text
//!  slot: | consumed | prefix head payload tag | first bytes of the next frame | free |
//!                    ^ start ............................................ end ^
//! ```
//!
//! A receive asks for a little more than a prefix, so that a small frame costs one system call
//! and a large one two. What came of the next frame stays in the slot, or moves to the next slot
//! where this one is handed on.

use std::ops::Range;
use std::time::Instant;

use crate::buffer::{Pool, Slot};
use crate::engine::{Done, Engine, EngineStatistics, Until};
use crate::error::{Error, PeerError, Result};
use crate::seal::Opener;
use crate::wire::{Control, Opened, PREFIX_BYTES, Prefix, parse_header};

/// Bytes that a receive asks for where it does not know yet how long the frame is.
const AHEAD_BYTES: usize = 4096;

/// Receives and opens the frames of a stream.
pub struct StreamReceiver {
    engine: Box<dyn Engine>,
    pool: Pool,
    opener: Opener,
    lane: u16,
    payload_bytes_max: usize,
    slot: Option<Slot>,
    start: usize,
    end: usize,
    receiving: bool,
    /// The other end said STREAM_END.
    ended: bool,
    stream_bytes: u64,
    wire_bytes: u64,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// A frame was opened: its payload is there, until the next call.
    Data(Range<usize>),
    /// No bytes follow; all that were sent came.
    End,
    /// The other end gave the stream up, with its reason.
    Cancelled(Vec<u8>),
    /// Something else of the session: a frame without payload.
    Control(Control),
    /// The connection ended, after the end of the stream.
    Closed,
    /// A send of this engine was taken.
    Sent,
    /// The deadline passed, or nothing is there.
    Nothing,
}

impl StreamReceiver {
    /// A half; no payload is longer than `payload_bytes_max`.
    pub fn new(
        engine: Box<dyn Engine>,
        pool: Pool,
        opener: Opener,
        lane: u16,
        payload_bytes_max: usize,
    ) -> Self {
        Self {
            engine,
            pool,
            opener,
            lane,
            payload_bytes_max,
            slot: None,
            start: 0,
            end: 0,
            receiving: false,
            ended: false,
            stream_bytes: 0,
            wire_bytes: 0,
        }
    }

    /// The next thing that happens. With `now` it does not wait.
    ///
    /// # Errors
    ///
    /// [`PeerError::Closed`] where the connection ends before the stream did; [`Error::Unseal`].
    pub fn next(&mut self, now: bool, deadline: Option<Instant>) -> Result<StreamEvent> {
        loop {
            if let Some(prefix) = self.frame_in_hand()? {
                return self.open(prefix);
            }
            if !self.receiving {
                self.receive(now)?;
            }
            match self.engine.complete(deadline).map_err(|e| self.blame(e))? {
                Some(Done::Received { bytes: 0, .. }) => return self.closed(),
                Some(Done::Received { slot, bytes }) => self.came(slot, bytes),
                Some(Done::Empty { slot }) => {
                    self.came(slot, 0);
                    return Ok(StreamEvent::Nothing);
                }
                Some(Done::Sent) => return Ok(StreamEvent::Sent),
                Some(_) => {}
                None => return Ok(StreamEvent::Nothing),
            }
        }
    }

    /// What the last [`StreamEvent::Data`] said.
    pub fn payload(&self, range: Range<usize>) -> &[u8] {
        &self.slot.as_ref().expect("it holds the payload").bytes()[range]
    }

    /// Takes the slot that holds the last [`StreamEvent::Data`], to send from it. None where no
    /// other slot is free for what follows: wait for [`StreamEvent::Sent`] and try again.
    pub fn take(&mut self) -> Option<Slot> {
        let next = self.pool.take()?;
        let slot = self.slot.replace(next)?;
        let rest = self.start..self.end;
        let into = self.slot.as_mut().expect("just put there").bytes_mut();
        into[..rest.len()].copy_from_slice(&slot.bytes()[rest.clone()]);
        (self.start, self.end) = (0, rest.len());
        Some(slot)
    }

    /// Sends a range of a slot to the engine's other socket. Only after [`Self::wait_sent`].
    pub fn send(&mut self, slot: Slot, range: Range<usize>) -> Result<()> {
        self.engine.send(slot, range)
    }

    /// Waits for a send of this engine, without receiving more.
    pub fn wait_sent(&mut self, deadline: Option<Instant>) -> Result<()> {
        while !self.engine.can_send() {
            match self.engine.complete(deadline)? {
                // An end of the stream is there to be found again.
                Some(Done::Received { slot, bytes }) => self.came(slot, bytes),
                Some(_) => {}
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the next event is there already, not in the socket.
    pub fn has_event(&self) -> bool {
        // A prefix that breaks a rule is an event too.
        self.frame_in_hand().map_or(true, |prefix| prefix.is_some())
    }

    /// Bytes of the stream that were opened, bytes from the network, frames, and the engine's
    /// figures.
    pub fn statistics(&self) -> (u64, u64, u64, EngineStatistics) {
        (self.stream_bytes, self.wire_bytes, self.opener.frames(), self.engine.statistics())
    }

    fn came(&mut self, slot: Slot, bytes: usize) {
        self.receiving = false;
        self.slot = Some(slot);
        self.end += bytes;
        self.wire_bytes += bytes as u64;
    }

    /// Asks the engine for more of the frame that begins at `start`.
    fn receive(&mut self, now: bool) -> Result<()> {
        let Some(mut slot) = self.slot.take().or_else(|| self.pool.take()) else { return Ok(()) };
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let known = self.prefix_in(&slot)?.map(|prefix| PREFIX_BYTES + prefix.rest_bytes());
        let frame_bytes = known.unwrap_or((self.end - self.start) + AHEAD_BYTES);
        if self.start + frame_bytes > slot.bytes().len() {
            slot.bytes_mut().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let until = match known {
            _ if now => Until::Now,
            Some(_) => Until::Full,
            None => Until::Some,
        };
        self.receiving = true;
        let range = self.end..self.start + frame_bytes;
        self.engine.recv(slot, range, until).map_err(|e| self.blame(e))
    }

    fn prefix_in(&self, slot: &Slot) -> Result<Option<Prefix>> {
        let in_hand = &slot.bytes()[self.start..self.end];
        let Some(first) = in_hand.first_chunk() else { return Ok(None) };
        Ok(Some(Prefix::parse(*first, self.payload_bytes_max)?))
    }

    /// The prefix of a frame that is there whole.
    fn frame_in_hand(&self) -> Result<Option<Prefix>> {
        let Some(slot) = &self.slot else { return Ok(None) };
        let prefix = self.prefix_in(slot)?;
        let whole = |p: &Prefix| PREFIX_BYTES + p.rest_bytes() <= self.end - self.start;
        Ok(prefix.filter(whole))
    }

    fn open(&mut self, prefix: Prefix) -> Result<StreamEvent> {
        let slot = self.slot.as_mut().expect("it holds the frame");
        let (head, body) = (self.start + prefix.head_bytes(), prefix.body_bytes());
        let header = self.opener.open_header(&mut slot.bytes_mut()[self.start..head], prefix)?;
        let Opened::Control(control) = parse_header(header, prefix.payload_bytes(), &[])? else {
            return Err(protocol("pages on a stream"));
        };
        if body > 0 {
            self.opener.open_payload(&mut slot.bytes_mut()[head..head + body])?;
        }
        self.start = head + body;
        let payload = head..head + prefix.payload_bytes();
        match control {
            Control::Cancel { .. } => Ok(StreamEvent::Cancelled(self.payload(payload).to_vec())),
            Control::Stream { .. } if !self.ended => {
                self.stream_bytes += payload.len() as u64;
                Ok(StreamEvent::Data(payload))
            }
            Control::StreamEnd { frames, bytes } if !self.ended => {
                // W-36
                let came = (self.opener.frames() - 1, self.stream_bytes);
                if (frames, bytes) != came {
                    return Err(protocol("STREAM_END with other totals than came"));
                }
                self.ended = true;
                Ok(StreamEvent::End)
            }
            Control::Stream { .. } | Control::StreamEnd { .. } => {
                Err(protocol("bytes of a stream after its end"))
            }
            control => Ok(StreamEvent::Control(control)),
        }
    }

    /// W-36: a connection that ends before STREAM_END is no end of the stream.
    fn closed(&self) -> Result<StreamEvent> {
        if self.ended && self.start == self.end {
            return Ok(StreamEvent::Closed);
        }
        let (lane, frames) = (self.lane, self.opener.frames());
        let phase = "before the end of the stream";
        Err(PeerError::Closed { lane, phase, frames }.into())
    }

    /// An error of the receiving socket is the lane's, one of the other socket is not.
    fn blame(&self, error: Error) -> Error {
        match error {
            Error::System(e) if e.operation == "recv" => {
                super::blame(e.into(), self.lane, self.opener.frames())
            }
            error => error,
        }
    }
}

fn protocol(text: &str) -> Error {
    PeerError::Protocol(text.to_owned()).into()
}
