//! What a listener answers to the first message of a peer that has shown who it is.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Features, malformed};
use crate::error::PeerError;

/// Bytes of the plain answer to an open.
pub const REPLY_PLAIN_BYTES: usize = 32;
/// Bytes of it where Noise carries it: an X25519 key, the sealed answer, a tag.
pub const OPEN_REPLY_BYTES: usize = 80;
/// Bytes of the answer to a join.
pub const JOIN_REPLY_BYTES: usize = 64;

/// Why a listener does not open a session with a peer that has shown who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Both ends are source, or both target.
    Role,
    /// The versions differ.
    Version,
    /// The secret carried a migration to its end before.
    SecretSpent,
    /// Lanes or frame size outside what is allowed.
    Limits,
    /// The migration has another name here.
    MigrationId,
    /// One end is for a migration of ours, the other for streams or a check.
    Use,
    /// Another session is going on.
    Busy,
    /// One end requires a feature that the other lacks.
    Features,
    /// A reason of a later version.
    Unknown(u8),
}

const REFUSALS: [(Refusal, u8, &str); 8] = [
    (
        Refusal::Role,
        1,
        "it has the same role (both ends are source, or both target), one sends and one receives",
    ),
    (Refusal::Version, 2, "it speaks another version of the protocol"),
    (Refusal::SecretSpent, 3, "the secret has carried a migration already: make a new one"),
    (Refusal::Limits, 4, "lanes or frame size are outside what it allows"),
    (
        Refusal::MigrationId,
        5,
        "it waits for a migration of another name: name the same with --migration at both ends",
    ),
    (
        Refusal::Use,
        6,
        "one end carries an image, the other is a tunnel or a check, use the same at both ends",
    ),
    (Refusal::Busy, 7, "another migration is going on there: wait until it has ended"),
    (
        Refusal::Features,
        8,
        "one end requires a feature that the other lacks, run the same release at both ends",
    ),
];

impl Refusal {
    /// The reason in words.
    pub fn text(self) -> &'static str {
        let known = REFUSALS.iter().find(|(refusal, ..)| *refusal == self);
        known.map_or("for a reason that this version does not know", |(.., text)| text)
    }

    fn code(self) -> u8 {
        match self {
            Self::Unknown(code) => code,
            known => REFUSALS.iter().find(|(refusal, ..)| *refusal == known).expect("listed").1,
        }
    }
}

/// The listener's answer to an open, never sent in clear (W-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// None where the session is open.
    pub refusal: Option<Refusal>,
    /// Version of the listener.
    pub version: u8,
    /// Lanes: the source's, 0 for streams. The most that are allowed, in a refusal.
    pub lanes: u16,
    /// Bytes of a full frame's payload: the source's. The most that are allowed, in a refusal.
    pub frame_bytes: u32,
    /// Features without which the listener does not go on.
    pub required: Features,
    /// Features that it has.
    pub supported: Features,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawReply {
    status: u8,
    version: u8,
    zero: U16,
    lanes: U16,
    zero_too: U16,
    frame_bytes: U32,
    required: U32,
    supported: U32,
    pad: [u8; 12],
}
const _: () = assert!(size_of::<RawReply>() == REPLY_PLAIN_BYTES);

impl OpenReply {
    /// The plain bytes.
    pub fn encode(&self) -> [u8; REPLY_PLAIN_BYTES] {
        let raw = RawReply {
            status: self.refusal.map_or(0, Refusal::code),
            version: self.version,
            zero: 0.into(),
            lanes: self.lanes.into(),
            zero_too: 0.into(),
            frame_bytes: self.frame_bytes.into(),
            required: self.required.0.into(),
            supported: self.supported.0.into(),
            pad: [0; 12],
        };
        zerocopy::transmute!(raw)
    }

    /// Parses the plain bytes.
    ///
    /// # Errors
    ///
    /// [`PeerError::Malformed`] with the field that breaks W-18.
    pub fn parse(bytes: &[u8; REPLY_PLAIN_BYTES]) -> Result<Self, PeerError> {
        const WHAT: &str = "open reply";
        let raw: RawReply = zerocopy::transmute!(*bytes);
        let refusal = match raw.status {
            0 => None,
            code => Some(
                REFUSALS
                    .iter()
                    .find(|(_, known, _)| *known == code)
                    .map_or(Refusal::Unknown(code), |(refusal, ..)| *refusal),
            ),
        };
        let reply = Self {
            refusal,
            version: raw.version,
            lanes: raw.lanes.get(),
            frame_bytes: raw.frame_bytes.get(),
            required: Features(raw.required.get()),
            supported: Features(raw.supported.get()),
        };
        if let Some(at) = reply.encode().iter().zip(bytes).position(|(x, y)| x != y) {
            return Err(malformed(WHAT, "reserved field", at, "0", bytes[at].into()));
        }
        Ok(reply)
    }
}

/// The listener's answer to a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinReply {
    /// The listener's nonce for this join.
    pub nonce: [u8; 32],
    /// HMAC-SHA256 over the request and this nonce, under the session's join key.
    pub mac: [u8; 32],
}

impl JoinReply {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; JOIN_REPLY_BYTES] {
        let mut out = [0; JOIN_REPLY_BYTES];
        out[..32].copy_from_slice(&self.nonce);
        out[32..].copy_from_slice(&self.mac);
        out
    }

    /// Splits the bytes; every value is well formed.
    pub fn parse(bytes: &[u8; JOIN_REPLY_BYTES]) -> Self {
        let (nonce, mac) = bytes.split_first_chunk::<32>().expect("32 of 64");
        Self { nonce: *nonce, mac: mac.try_into().expect("32 of 64") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_survive_and_stray_bytes_are_refused() {
        // W-18
        let mut refusals: Vec<_> = REFUSALS.map(|(refusal, ..)| Some(refusal)).into();
        refusals.extend([None, Some(Refusal::Unknown(9))]);
        for refusal in refusals {
            let reply = OpenReply {
                refusal,
                version: 1,
                lanes: 2,
                frame_bytes: 65536,
                required: Features::STREAMS,
                supported: Features::KNOWN,
            };
            let bytes = reply.encode();
            assert_eq!(OpenReply::parse(&bytes).unwrap(), reply);
            for at in [2, 6, 20, 31] {
                let mut bad = bytes;
                bad[at] ^= 1;
                assert!(OpenReply::parse(&bad).is_err(), "{reply:?} {at}");
            }
        }
    }

    #[test]
    fn answers_to_joins_survive() {
        // W-17
        let reply = JoinReply { nonce: [4; 32], mac: [5; 32] };
        assert_eq!(JoinReply::parse(&reply.encode()), reply);
    }
}
