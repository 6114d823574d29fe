//! The reading half of a stream.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::Failure;
use crate::buffer::Pool;
use crate::config::{Config, ZeroCopy};
use crate::engine::{self, Callers, Endpoint, EngineSetup, EngineStatistics, Pulse};
use crate::error::{CancelledBy, Error, PeerError, Result, ended_by_peer};
use crate::lane::{StreamEvent, StreamReceiver};
use crate::seal::Opener;
use crate::wire::Control;

/// How far a peek looks beyond the frame in hand.
const PEEK_BYTES_MAX: usize = 4096;
/// How often a wait looks whether the other host still answers, as a part of the time that it has.
const LOOKS: u32 = 16;

/// Whether this end reads no more, and what reads come to then.
#[derive(Default)]
pub(super) struct ReadShut(AtomicU8);

impl ReadShut {
    const ENDED: u8 = 1;
    const CANCELLED: u8 = 2;

    /// Reads return 0.
    pub(super) fn end(&self) {
        self.0.fetch_or(Self::ENDED, Ordering::AcqRel);
    }

    /// Reads are errors: a stream that was given up has not ended.
    pub(super) fn cancel(&self) {
        self.0.fetch_or(Self::CANCELLED, Ordering::AcqRel);
    }

    fn is_shut(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    fn told(&self) -> io::Result<bool> {
        match self.0.load(Ordering::Acquire) & Self::CANCELLED {
            0 => Ok(false),
            _ => Err(Error::Cancelled { by: CancelledBy::Us }.into()),
        }
    }
}

pub(super) struct Reading {
    receiver: StreamReceiver,
    lane: u16,
    socket: Arc<OwnedFd>,
    peer_timeout: Duration,
    /// Bytes of earlier frames that a peek went beyond; they come before `hand`.
    front: Vec<u8>,
    /// Opened and not read yet.
    hand: Range<usize>,
    ended: bool,
    failed: Option<Failure>,
}

impl Reading {
    pub(super) fn new(
        config: &Config,
        frame_bytes: usize,
        socket: Arc<OwnedFd>,
        opener: Opener,
        lane: u16,
    ) -> Result<Self> {
        let pool = Pool::new(1, frame_bytes)?;
        let from = Endpoint::of_lane(Arc::clone(&socket), lane);
        let engine = engine::open(&EngineSetup {
            choice: config.engine,
            zero_copy: ZeroCopy::Off,
            sqpoll: false,
            pool: &pool,
            register: false,
            callers: Callers::Any,
            to: from.clone(),
            from,
        })?;
        let receiver = StreamReceiver::new(engine, pool, opener, lane, frame_bytes);
        Ok(Self {
            receiver,
            lane,
            socket,
            peer_timeout: config.peer_timeout,
            front: Vec::new(),
            hand: 0..0,
            ended: false,
            failed: None,
        })
    }

    /// Waits until there are bytes to take; false at the end of the stream.
    pub(super) fn has_bytes(&mut self, now: bool, shut: &ReadShut) -> io::Result<bool> {
        let mut pulse = Pulse::new(self.peer_timeout);
        loop {
            if self.available() > 0 {
                return Ok(true);
            }
            if self.ended {
                return Ok(false);
            }
            if shut.is_shut() {
                return shut.told();
            }
            if let Some(failure) = &self.failed {
                return Err(failure.again());
            }
            match self.advance(now) {
                Ok(true) => {}
                Ok(false) if now => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(false) if pulse.is_dead(&*self.socket) => {
                    let error = super::silent(self.lane, self.peer_timeout);
                    return Err(Failure::keep(&mut self.failed, error, None));
                }
                Ok(false) => {}
                // Our own shutdown looks as if the other end had closed.
                Err(_) if shut.is_shut() => return shut.told(),
                Err(error) => return Err(Failure::keep(&mut self.failed, error, None)),
            }
        }
    }

    /// Takes what comes next; false where nothing is there. Only with no byte in hand.
    fn advance(&mut self, now: bool) -> Result<bool> {
        let look = (!now).then(|| Instant::now() + self.peer_timeout / LOOKS);
        match self.receiver.next(now, look)? {
            StreamEvent::Data(range) => self.hand = range,
            StreamEvent::End | StreamEvent::Closed => self.ended = true,
            StreamEvent::Nothing => return Ok(false),
            StreamEvent::Sent | StreamEvent::Control(Control::Heartbeat) => {}
            StreamEvent::Control(control) => {
                return Err(PeerError::Protocol(format!("{} on a stream", control.name())).into());
            }
            StreamEvent::Cancelled(reason) => return Err(ended_by_peer(&reason)),
        }
        Ok(true)
    }

    fn available(&self) -> usize {
        self.front.len() + self.hand.len()
    }

    /// Moves opened bytes out, as many as fit.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let bytes = self.copy(into);
        let of_front = bytes.min(self.front.len());
        self.front.drain(..of_front);
        self.hand.start += bytes - of_front;
        bytes
    }

    /// Copies opened bytes, and those of further frames that are there.
    pub(super) fn peek(&mut self, into: &mut [u8]) -> usize {
        let wanted = into.len().min(PEEK_BYTES_MAX);
        while self.available() < wanted && !self.ended && self.failed.is_none() {
            // The next frame takes the place of the one in hand.
            if !self.hand.is_empty() {
                self.front.extend_from_slice(self.receiver.payload(self.hand.clone()));
                self.hand = 0..0;
            }
            match self.advance(true) {
                Ok(true) => {}
                Ok(false) => break,
                // The read that comes to it tells it.
                Err(error) => drop(Failure::keep(&mut self.failed, error, None)),
            }
        }
        self.copy(into)
    }

    fn copy(&self, into: &mut [u8]) -> usize {
        let of_front = into.len().min(self.front.len());
        into[..of_front].copy_from_slice(&self.front[..of_front]);
        let of_hand = (into.len() - of_front).min(self.hand.len());
        if of_hand > 0 {
            let from = self.hand.start..self.hand.start + of_hand;
            into[of_front..][..of_hand].copy_from_slice(self.receiver.payload(from));
        }
        of_front + of_hand
    }

    /// Whether a read would return at once whatever the socket says.
    pub(super) fn has_more(&self) -> bool {
        self.available() > 0 || self.ended || self.failed.is_some() || self.receiver.has_event()
    }

    /// Whether the other host was found dead.
    pub(super) fn is_silent(&self) -> bool {
        self.failed.as_ref().is_some_and(Failure::is_silent)
    }

    pub(super) fn statistics(&self) -> (u64, u64, EngineStatistics) {
        let (bytes, _, frames, engine) = self.receiver.statistics();
        (bytes, frames, engine)
    }
}
