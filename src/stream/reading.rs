//! The reading half of a stream.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Failure;
use crate::buffer::Pool;
use crate::config::{Config, ZeroCopy};
use crate::engine::{self, Callers, Endpoint, EngineSetup, EngineStatistics};
use crate::error::{PeerError, Result, ended_by_peer};
use crate::lane::{StreamEvent, StreamReceiver};
use crate::seal::Opener;
use crate::wire::Control;

pub(super) struct Reading {
    receiver: StreamReceiver,
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
        let from = Endpoint::of_lane(socket, lane);
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
        Ok(Self { receiver, hand: 0..0, ended: false, failed: None })
    }

    /// Waits until there are bytes to take; false at the end of the stream.
    pub(super) fn has_bytes(&mut self, now: bool, shut: &AtomicBool) -> io::Result<bool> {
        loop {
            if !self.hand.is_empty() {
                return Ok(true);
            }
            if self.ended || shut.load(Ordering::Acquire) {
                return Ok(false);
            }
            if let Some(failure) = &self.failed {
                return Err(failure.again());
            }
            let error = match self.receiver.next(now, None) {
                Ok(StreamEvent::Data(range)) => {
                    self.hand = range;
                    continue;
                }
                Ok(StreamEvent::End | StreamEvent::Closed) => {
                    self.ended = true;
                    continue;
                }
                Ok(StreamEvent::Nothing) if now => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(StreamEvent::Nothing | StreamEvent::Sent) => continue,
                Ok(StreamEvent::Control(Control::Heartbeat)) => continue,
                Ok(StreamEvent::Control(control)) => {
                    PeerError::Protocol(format!("{} on a stream", control.name())).into()
                }
                Ok(StreamEvent::Cancelled(reason)) => ended_by_peer(&reason),
                // Our own shutdown looks as if the other end had closed.
                Err(_) if shut.load(Ordering::Acquire) => return Ok(false),
                Err(error) => error,
            };
            return Err(Failure::keep(&mut self.failed, error));
        }
    }

    /// Moves opened bytes out, as many as fit.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let bytes = self.peek(into);
        self.hand.start += bytes;
        bytes
    }

    pub(super) fn peek(&self, into: &mut [u8]) -> usize {
        let bytes = into.len().min(self.hand.len());
        if bytes > 0 {
            let from = self.hand.start..self.hand.start + bytes;
            into[..bytes].copy_from_slice(self.receiver.payload(from));
        }
        bytes
    }

    /// Whether a read would return at once whatever the socket says.
    pub(super) fn has_more(&self) -> bool {
        !self.hand.is_empty() || self.ended || self.failed.is_some() || self.receiver.has_event()
    }

    pub(super) fn statistics(&self) -> (u64, u64, EngineStatistics) {
        let (bytes, _, frames, engine) = self.receiver.statistics();
        (bytes, frames, engine)
    }
}
