//! Seals frames in place.

use super::{KeyLimits, LaneSecret, Part, Provider, Schedule};
use crate::error::Result;
use crate::wire::{PREFIX_BYTES, Prefix, TAG_BYTES};

/// Seals the frames of one direction of one lane, in their order.
pub struct Sealer(pub(super) Schedule);

impl Sealer {
    /// A sealer at frame 0.
    pub fn new(provider: Provider, secret: LaneSecret, limits: KeyLimits, lane: u16) -> Self {
        Self(Schedule::new(provider, secret, limits, lane))
    }

    /// Seals one frame and returns its counter.
    ///
    /// `frame` is `prefix | plain header | 16 free | plain payload | 16 free`, without the last
    /// two parts where there is no payload. The prefix is written here.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Misuse`] at the hard limit; the frame is then as it was.
    ///
    /// # Panics
    ///
    /// Where `frame` is not as long as `prefix` says.
    pub fn seal(&mut self, frame: &mut [u8], prefix: Prefix) -> Result<u64> {
        self.0.check_limit()?;
        assert_eq!(frame.len(), PREFIX_BYTES + prefix.rest_bytes(), "a frame as its prefix says");
        let (head, body) = frame.split_at_mut(prefix.head_bytes());
        let (prefix_bytes, rest) = head.split_at_mut(PREFIX_BYTES);
        prefix_bytes.copy_from_slice(&prefix.encode());
        let (header, header_tag) = rest.split_at_mut(prefix.header_bytes());
        // W-22
        let tag = self.0.key.seal(self.0.nonce(Part::Header), prefix_bytes, header);
        header_tag.copy_from_slice(&tag);
        if !body.is_empty() {
            let (payload, payload_tag) = body.split_at_mut(body.len() - TAG_BYTES);
            // W-23: the header's tag binds the payload to its place.
            let tag = self.0.key.seal(self.0.nonce(Part::Payload), &tag, payload);
            payload_tag.copy_from_slice(&tag);
        }
        let counter = self.0.counter;
        self.0.advance();
        Ok(counter)
    }

    /// Frames sealed.
    pub fn frames(&self) -> u64 {
        self.0.counter
    }

    /// The epoch of the next frame.
    pub fn epoch(&self) -> u64 {
        self.0.epoch()
    }
}
