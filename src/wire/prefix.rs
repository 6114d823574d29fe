//! The clear prefix of a frame: two lengths, and nothing about the guest.

use super::{HEADER_FIXED_BYTES, PREFIX_BYTES, RUN_BYTES, RUNS_MAX, TAG_BYTES, malformed};
use crate::error::PeerError;

/// Both lengths of a frame, checked.
///
/// `HEADER_FIXED_BYTES <= header_bytes <= HEADER_FIXED_BYTES + RUNS_MAX * RUN_BYTES`, in steps of
/// `RUN_BYTES` (W-2); `payload_bytes` is at most the agreed frame size (W-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    header_bytes: u16,
    payload_bytes: u32,
}

impl Prefix {
    /// The prefix of a frame with this plain header and payload.
    ///
    /// # Panics
    ///
    /// Where a length breaks W-2 or does not fit its field: a mistake of this crate.
    pub fn new(header_bytes: usize, payload_bytes: usize) -> Self {
        assert!(header_is_allowed(header_bytes), "{header_bytes} bytes are no header");
        Self {
            header_bytes: header_bytes as u16,
            payload_bytes: u32::try_from(payload_bytes).expect("a payload fits 32 bits"),
        }
    }

    /// Parses a prefix from the wire; `payload_bytes_max` is the agreed frame size in bytes.
    ///
    /// # Errors
    ///
    /// [`PeerError::Malformed`] with the field that breaks W-2, W-3 or W-4.
    pub fn parse(bytes: [u8; PREFIX_BYTES], payload_bytes_max: usize) -> Result<Self, PeerError> {
        let header_bytes = u16::from_le_bytes([bytes[0], bytes[1]]);
        let reserved = u16::from_le_bytes([bytes[2], bytes[3]]);
        let payload_bytes = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if !header_is_allowed(header_bytes.into()) {
            let wanted = "32 to 3872 in steps of 16";
            return Err(malformed("prefix", "header_bytes", 0, wanted, header_bytes.into()));
        }
        if reserved != 0 {
            return Err(malformed("prefix", "reserved field", 2, "0", reserved.into()));
        }
        if payload_bytes as usize > payload_bytes_max {
            let wanted = "at most the agreed frame size";
            return Err(malformed("prefix", "payload_bytes", 4, wanted, payload_bytes.into()));
        }
        Ok(Self { header_bytes, payload_bytes })
    }

    /// The bytes on the wire.
    pub fn encode(self) -> [u8; PREFIX_BYTES] {
        let mut bytes = [0; PREFIX_BYTES];
        bytes[..2].copy_from_slice(&self.header_bytes.to_le_bytes());
        bytes[4..].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    /// Bytes of the header, without its tag.
    pub fn header_bytes(self) -> usize {
        self.header_bytes.into()
    }

    /// Bytes of the payload, without its tag; 0 where there is none.
    pub fn payload_bytes(self) -> usize {
        self.payload_bytes as usize
    }

    /// Bytes of prefix, header and the header's tag.
    pub fn head_bytes(self) -> usize {
        PREFIX_BYTES + self.header_bytes() + TAG_BYTES
    }

    /// Bytes of the payload with its tag; 0 where there is no payload.
    pub fn body_bytes(self) -> usize {
        if self.payload_bytes == 0 { 0 } else { self.payload_bytes() + TAG_BYTES }
    }

    /// Bytes that follow the prefix.
    pub fn rest_bytes(self) -> usize {
        self.head_bytes() - PREFIX_BYTES + self.body_bytes()
    }
}

fn header_is_allowed(bytes: usize) -> bool {
    (HEADER_FIXED_BYTES..=HEADER_FIXED_BYTES + RUNS_MAX * RUN_BYTES).contains(&bytes)
        && (bytes - HEADER_FIXED_BYTES).is_multiple_of(RUN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_prefix() {
        // W-1
        let bytes = [48, 0, 0, 0, 0, 0, 4, 0];
        let prefix = Prefix::parse(bytes, 256 << 10).unwrap();
        assert_eq!((prefix.header_bytes(), prefix.payload_bytes()), (48, 256 << 10));
        assert_eq!(prefix.rest_bytes(), 48 + 16 + (256 << 10) + 16);
        assert_eq!(prefix.encode(), bytes);
    }

    #[test]
    fn lengths_outside_the_rules_are_refused() {
        for (header, reserved, payload) in [
            (0u16, 0u16, 0u32), // W-2: too short
            (31, 0, 0),         // W-2
            (33, 0, 0),         // W-2: not in steps
            (3888, 0, 0),       // W-2: too long
            (u16::MAX, 0, 0),   // W-2
            (32, 0, 65537),     // W-3: above the agreed size
            (32, 0, u32::MAX),  // W-3
            (32, 1, 0),         // W-4: reserved
        ] {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&header.to_le_bytes());
            bytes[2..4].copy_from_slice(&reserved.to_le_bytes());
            bytes[4..].copy_from_slice(&payload.to_le_bytes());
            assert!(Prefix::parse(bytes, 65536).is_err(), "{header} {reserved} {payload}");
        }
    }
}
