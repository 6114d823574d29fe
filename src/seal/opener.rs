//! Opens frames in place.

use super::{KeyLimits, LaneSecret, Part, Provider, Schedule};
use crate::error::{Error, Result};
use crate::wire::{PREFIX_BYTES, Prefix, TAG_BYTES};

/// Opens the frames of one direction of one lane, in their order, header first.
///
/// After one tag that does not verify it opens nothing more (W-26).
pub struct Opener {
    schedule: Schedule,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Payload([u8; TAG_BYTES]),
    Dead,
}

impl Opener {
    /// An opener at frame 0.
    pub fn new(provider: Provider, secret: LaneSecret, limits: KeyLimits, lane: u16) -> Self {
        Self { schedule: Schedule::new(provider, secret, limits, lane), state: State::Header }
    }

    /// Opens the header of the next frame. `head` is `prefix | sealed header | tag`. A frame
    /// without payload is complete with it.
    ///
    /// # Errors
    ///
    /// [`Error::Unseal`] where the tag does not verify, [`Error::Misuse`] out of turn or at the
    /// hard limit.
    pub fn open_header<'a>(&mut self, head: &'a mut [u8], prefix: Prefix) -> Result<&'a [u8]> {
        if self.state != State::Header {
            return Err(self.out_of_turn());
        }
        self.schedule.check_limit()?;
        if head.len() != prefix.head_bytes() {
            return Err(Error::Misuse(format!(
                "a head of {} bytes: its prefix says {}",
                head.len(),
                prefix.head_bytes()
            )));
        }
        let (_, header_and_tag) = head.split_at_mut(PREFIX_BYTES);
        let tag = *header_and_tag.last_chunk::<TAG_BYTES>().expect("as long as the prefix says");
        let nonce = self.schedule.nonce(Part::Header);
        if self.schedule.key.open(nonce, &prefix.encode(), header_and_tag).is_err() {
            return Err(self.dead());
        }
        if prefix.payload_bytes() == 0 {
            self.schedule.advance();
        } else {
            self.state = State::Payload(tag);
        }
        Ok(&header_and_tag[..prefix.header_bytes()])
    }

    /// Opens the payload that follows the header just opened: `sealed payload | tag`.
    ///
    /// # Errors
    ///
    /// As [`Self::open_header`].
    pub fn open_payload(&mut self, payload_and_tag: &mut [u8]) -> Result<()> {
        let State::Payload(header_tag) = self.state else { return Err(self.out_of_turn()) };
        let nonce = self.schedule.nonce(Part::Payload);
        if self.schedule.key.open(nonce, &header_tag, payload_and_tag).is_err() {
            return Err(self.dead());
        }
        self.state = State::Header;
        self.schedule.advance();
        Ok(())
    }

    /// Frames opened whole.
    pub fn frames(&self) -> u64 {
        self.schedule.counter
    }

    /// The epoch of the next frame.
    pub fn epoch(&self) -> u64 {
        self.schedule.epoch()
    }

    fn dead(&mut self) -> Error {
        self.state = State::Dead;
        Error::Unseal { lane: self.schedule.lane, frame: self.schedule.counter }
    }

    fn out_of_turn(&self) -> Error {
        match self.state {
            State::Dead => Error::Unseal { lane: self.schedule.lane, frame: self.schedule.counter },
            _ => Error::Misuse("header and payload of a frame are opened in turn".to_owned()),
        }
    }
}
