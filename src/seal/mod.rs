//! Keys, nonces, epochs; sealing and opening frames in place. No I/O, no clock.
//!
//! docs/wire-format.md holds the rules: W-19 to W-26. In short: AES-256-GCM; one frame takes one
//! counter and two nonces, one for its header and one for its payload; 2^16 frames are an epoch;
//! at an epoch's end the secret is ratcheted forward and the old one erased.
#![forbid(unsafe_code)]

mod aead;
mod cpu;
mod keys;
mod opener;
mod sealer;

pub use aead::{AeadKey, Provider};
pub use cpu::CpuFeatures;
pub use keys::{Direction, LaneSecret, SessionSecret, mac, verify_mac};
pub use opener::Opener;
pub use sealer::Sealer;

/// How long a key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// Logarithm of the frames of an epoch.
    pub frames_per_epoch_log2: u32,
    /// Frames after which a lane refuses to go on.
    pub frames_max: u64,
}

impl Default for KeyLimits {
    /// 2^16 frames of at most 2^16.6 AES blocks an epoch keep the chance to tell GCM from random
    /// below 2^-57 per epoch (the square of the blocks over 2^129, RFC 8446 5.5 with NIST SP
    /// 800-38D); 2^32 frames are 1 PiB at 256 KiB.
    fn default() -> Self {
        Self { frames_per_epoch_log2: 16, frames_max: 1 << 32 }
    }
}

/// Counter, epoch and key of one direction of one lane, kept alike by sealer and opener.
struct Schedule {
    key: Box<dyn AeadKey>,
    iv: [u8; 12],
    secret: LaneSecret,
    provider: Provider,
    limits: KeyLimits,
    counter: u64,
    lane: u16,
}

impl Schedule {
    fn new(provider: Provider, secret: LaneSecret, limits: KeyLimits, lane: u16) -> Self {
        let (key, iv) = secret.key_and_iv(provider);
        Self { key, iv, secret, provider, limits, counter: 0, lane }
    }

    fn epoch(&self) -> u64 {
        self.counter >> self.limits.frames_per_epoch_log2
    }

    /// Refuses at the hard limit (W-25).
    fn check_limit(&self) -> crate::Result<()> {
        if self.counter < self.limits.frames_max {
            return Ok(());
        }
        Err(crate::Error::Misuse(format!(
            "lane {}: {} frames were sealed under this session's secret, the limit: start the \
             migration again with a new secret, or with larger frames or more lanes",
            self.lane, self.counter
        )))
    }

    /// W-21
    fn nonce(&self, part: Part) -> [u8; 12] {
        let mut nonce = self.iv;
        nonce[3] ^= part as u8;
        for (byte, counter) in nonce[4..].iter_mut().zip(self.counter.to_be_bytes()) {
            *byte ^= counter;
        }
        nonce
    }

    /// Goes on to the next frame and, at an epoch's end, to the next key (W-24).
    fn advance(&mut self) {
        let epoch = self.epoch();
        self.counter += 1;
        if self.epoch() != epoch {
            self.secret.ratchet();
            (self.key, self.iv) = self.secret.key_and_iv(self.provider);
        }
    }
}

/// The two parts of a frame; the number goes into the nonce.
#[derive(Clone, Copy)]
enum Part {
    Header = 0,
    Payload = 1,
}

#[cfg(test)]
mod tests;
