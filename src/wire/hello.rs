//! The first bytes of a connection, before there are keys.
//!
//! The dialler's first message has one length whatever it asks for, so a listener reads exactly
//! that much from a stranger and no more (W-14).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Features, expect_zero, malformed};
use crate::error::PeerError;

/// Bytes of the dialler's first message.
pub const DIALLER_HELLO_BYTES: usize = 112;
/// Bytes of its clear part when it opens a session; the prologue of the Noise handshake.
pub const OPEN_CLEAR_BYTES: usize = 64;
/// Bytes of its proof, which depends on the trust (W-16): the first Noise message (an X25519 key
/// and a tag), or a nonce and a MAC, or zeros.
pub const PROOF_BYTES: usize = 48;
/// The version of the protocol.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 8] = *b"SEALANE\n";
const KIND_OPEN: u8 = 1;
const KIND_JOIN: u8 = 2;

/// What the ends know each other by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustKind {
    /// A one-time secret.
    Secret,
    /// Certificates.
    Certificates,
    /// Both: an attacker must break both.
    Both,
}

impl TrustKind {
    fn code(self) -> u8 {
        match self {
            Self::Secret => 1,
            Self::Certificates => 2,
            Self::Both => 3,
        }
    }
}

/// Which end of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The guest is here before the migration.
    Source,
    /// The guest is here after it.
    Target,
}

impl Role {
    /// The other end's role.
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Source => 1,
            Self::Target => 2,
        }
    }
}

/// What a connection that was accepted asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// A new session.
    Open,
    /// One more lane, or stream, of a session that is open.
    Join,
}

/// The first bytes of a connection, before its first message is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// The beginning of a first message.
    Ours(Asks),
    /// The beginning of something else, as far as it is known.
    Foreign(&'static str),
    /// Not enough to tell.
    Partial,
}

impl FirstBytes {
    /// How many tell.
    pub const BYTES: usize = MAGIC.len() + 1;

    /// Looks at the bytes that came so far.
    pub fn parse(bytes: &[u8]) -> Self {
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] == MAGIC[..known] {
            return match bytes.get(MAGIC.len()) {
                None => Self::Partial,
                Some(&KIND_OPEN) => Self::Ours(Asks::Open),
                Some(&KIND_JOIN) => Self::Ours(Asks::Join),
                Some(_) => Self::Foreign("it asks for something that this version does not know"),
            };
        }
        // RFC 8446, 5.1: a handshake record and its version. QEMU: the magic numbers of its main
        // and of its multifd channels, big-endian.
        Self::Foreign(match bytes {
            [0x16, 0x03, ..] => "it speaks TLS, not Sealane",
            [b'Q', b'E', b'V', b'M', ..] | [0x11, 0x22, 0x33, 0x44, ..] => {
                "it sends a plain migration of QEMU's, not Sealane"
            }
            _ => "its first bytes are not Sealane's",
        })
    }
}

/// What the dialler's first message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiallerHello {
    /// A new session: the hello, its bytes as they came, and the proof.
    Open(OpenHello, [u8; OPEN_CLEAR_BYTES], [u8; PROOF_BYTES]),
    /// A further lane of a session that is open.
    Join(JoinHello),
}

impl DiallerHello {
    /// Parses a first message.
    ///
    /// # Errors
    ///
    /// [`PeerError::Malformed`] with the field that breaks W-15 or W-17.
    pub fn parse(bytes: &[u8; DIALLER_HELLO_BYTES]) -> Result<Self, PeerError> {
        let (clear, proof) = bytes.split_first_chunk::<OPEN_CLEAR_BYTES>().expect("64 of 112");
        if clear[..8] != MAGIC {
            let got = u64::from_le_bytes(*clear.first_chunk().expect("8 of 64"));
            return Err(malformed("hello", "magic", 0, "SEALANE", got));
        }
        match clear[8] {
            KIND_OPEN => {
                let proof = proof.try_into().expect("48 of 112");
                Ok(Self::Open(OpenHello::parse(clear)?, *clear, proof))
            }
            KIND_JOIN => JoinHello::parse(bytes).map(Self::Join),
            kind => Err(malformed("hello", "kind", 8, "1 or 2", kind.into())),
        }
    }
}

/// The clear part of an open: everything in it is bound to the session's secret (W-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHello {
    /// Version of the dialler. Another than ours is refused after authentication, not before.
    pub version: u8,
    /// Role of the dialler.
    pub role: Role,
    /// What it shows who it is by.
    pub trust: TrustKind,
    /// Features without which it does not go on.
    pub required: Features,
    /// Features that it would use where the listener has them.
    pub optional: Features,
    /// Lanes that a source wants, 0 from a target and for streams.
    pub lanes: u16,
    /// Bytes of a full frame's payload that a source wants, 0 from a target.
    pub frame_bytes: u32,
    /// The migration (W-38); zeros where it has no name.
    pub migration_id: [u8; 16],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOpen {
    magic: [u8; 8],
    kind: u8,
    version: u8,
    role: u8,
    trust: u8,
    required: U32,
    lanes: U16,
    zero: U16,
    frame_bytes: U32,
    migration_id: [u8; 16],
    optional: U32,
    pad: [u8; 20],
}
const _: () = assert!(size_of::<RawOpen>() == OPEN_CLEAR_BYTES);

impl OpenHello {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; OPEN_CLEAR_BYTES] {
        let raw = RawOpen {
            magic: MAGIC,
            kind: KIND_OPEN,
            version: self.version,
            role: self.role.code(),
            trust: self.trust.code(),
            required: self.required.0.into(),
            lanes: self.lanes.into(),
            zero: 0.into(),
            frame_bytes: self.frame_bytes.into(),
            migration_id: self.migration_id,
            optional: self.optional.0.into(),
            pad: [0; 20],
        };
        zerocopy::transmute!(raw)
    }

    fn parse(bytes: &[u8; OPEN_CLEAR_BYTES]) -> Result<Self, PeerError> {
        const WHAT: &str = "open hello";
        let raw: RawOpen = zerocopy::transmute!(*bytes);
        let role = match raw.role {
            1 => Role::Source,
            2 => Role::Target,
            got => return Err(malformed(WHAT, "role", 10, "1 or 2", got.into())),
        };
        let kinds = [TrustKind::Secret, TrustKind::Certificates, TrustKind::Both];
        let Some(trust) = kinds.into_iter().find(|kind| kind.code() == raw.trust) else {
            return Err(malformed(WHAT, "trust", 11, "1 to 3", raw.trust.into()));
        };
        // Of a later version only what is before these is known, and it will hear ours (W-39).
        if raw.version == VERSION {
            expect_zero(WHAT, "reserved field", 18, raw.zero.get().into())?;
            if let Some(at) = raw.pad.iter().position(|&byte| byte != 0) {
                return Err(malformed(WHAT, "padding", 44 + at, "0", raw.pad[at].into()));
            }
        }
        Ok(Self {
            version: raw.version,
            role,
            trust,
            required: Features(raw.required.get()),
            optional: Features(raw.optional.get()),
            lanes: raw.lanes.get(),
            frame_bytes: raw.frame_bytes.get(),
            migration_id: raw.migration_id,
        })
    }
}

/// A request to join a further lane to an open session (W-17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinHello {
    /// The lane, from 1.
    pub lane: u16,
    /// How often the lane was joined before.
    pub generation: u32,
    /// The session.
    pub session_id: [u8; 16],
    /// The dialler's nonce.
    pub nonce: [u8; 32],
    /// HMAC-SHA256 over the bytes before it, under the session's join key.
    pub mac: [u8; 32],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawJoin {
    magic: [u8; 8],
    kind: u8,
    version: u8,
    lane: U16,
    generation: U32,
    session_id: [u8; 16],
    nonce: [u8; 32],
    mac: [u8; 32],
    pad: [u8; 16],
}
const _: () = assert!(size_of::<RawJoin>() == DIALLER_HELLO_BYTES);

impl JoinHello {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; DIALLER_HELLO_BYTES] {
        let raw = RawJoin {
            magic: MAGIC,
            kind: KIND_JOIN,
            version: VERSION,
            lane: self.lane.into(),
            generation: self.generation.into(),
            session_id: self.session_id,
            nonce: self.nonce,
            mac: self.mac,
            pad: [0; 16],
        };
        zerocopy::transmute!(raw)
    }

    /// The bytes that the mac covers: all before it.
    pub fn signed_bytes(&self) -> [u8; 64] {
        *self.encode().first_chunk().expect("64 of 112")
    }

    fn parse(bytes: &[u8; DIALLER_HELLO_BYTES]) -> Result<Self, PeerError> {
        let raw: RawJoin = zerocopy::transmute!(*bytes);
        let join = Self {
            lane: raw.lane.get(),
            generation: raw.generation.get(),
            session_id: raw.session_id,
            nonce: raw.nonce,
            mac: raw.mac,
        };
        if let Some(at) = join.encode().iter().zip(bytes).position(|(x, y)| x != y) {
            let got = bytes[at].into();
            return Err(malformed("join hello", "version or padding", at, "this version's", got));
        }
        Ok(join)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> OpenHello {
        OpenHello {
            version: 1,
            role: Role::Source,
            trust: TrustKind::Secret,
            required: Features::default(),
            optional: Features::default(),
            lanes: 8,
            frame_bytes: 256 << 10,
            migration_id: [7; 16],
        }
    }

    #[test]
    fn first_bytes_tell_as_soon_as_they_can() {
        let open = open().encode();
        for count in 0..FirstBytes::BYTES {
            assert_eq!(FirstBytes::parse(&open[..count]), FirstBytes::Partial);
        }
        assert_eq!(FirstBytes::parse(&open), FirstBytes::Ours(Asks::Open));
        assert_eq!(FirstBytes::parse(b"SEALANE\n\x02"), FirstBytes::Ours(Asks::Join));
        for (bytes, word) in [
            (&b"\x16\x03\x01"[..], "TLS"),
            (b"QEVM\0\0\0\x03", "QEMU"),
            (&[0x11, 0x22, 0x33, 0x44], "QEMU"),
            (b"SEALANE\n\0", "does not know"),
            (b"SEALANE\r", "not Sealane's"),
        ] {
            match FirstBytes::parse(bytes) {
                FirstBytes::Foreign(reason) => assert!(reason.contains(word), "{reason}"),
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn golden_open_and_every_flipped_bit() {
        // W-15
        let clear = open().encode();
        let mut golden = b"SEALANE\n\x01\x01\x01\x01\0\0\0\0\x08\0\0\0\0\0\x04\0".to_vec();
        golden.extend([7; 16]);
        golden.extend([0; 24]);
        assert_eq!(clear[..], golden[..]);
        let mut message = [9; DIALLER_HELLO_BYTES];
        message[..64].copy_from_slice(&clear);
        let parsed = DiallerHello::parse(&message).unwrap();
        assert_eq!(parsed, DiallerHello::Open(open(), clear, [9; 48]));
        for bit in 0..64 * 8 {
            let mut bad = message;
            bad[bit / 8] ^= 1 << (bit % 8);
            match DiallerHello::parse(&bad) {
                // What still parses shows the change, and Noise binds it (W-16).
                Ok(DiallerHello::Open(hello, ..)) => assert_ne!(hello, open(), "bit {bit}"),
                Ok(DiallerHello::Join(_)) => panic!("bit {bit} made it a join"),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn join_survives_and_its_padding_is_checked() {
        // W-17
        let join =
            JoinHello { lane: 3, generation: 0, session_id: [1; 16], nonce: [2; 32], mac: [3; 32] };
        let bytes = join.encode();
        assert_eq!(DiallerHello::parse(&bytes).unwrap(), DiallerHello::Join(join));
        assert_eq!(bytes[32..64], [2; 32]);
        for at in [0, 8, 9, 96, 111] {
            let mut bad = bytes;
            bad[at] ^= 4;
            assert!(DiallerHello::parse(&bad).is_err(), "{at}");
        }
    }
}
