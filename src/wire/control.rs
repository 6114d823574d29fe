//! Every frame that is not guest memory.

use zerocopy::IntoBytes;

use super::{HEADER_FIXED_BYTES, Prefix, RawHeader, expect_zero, malformed};
use crate::error::PeerError;

/// Most bytes of a reason in REFUSE and CANCEL.
pub const REASON_BYTES_MAX: usize = 1024;
/// Most bytes of device state.
pub const STATE_BYTES_MAX: u64 = 64 << 20;

/// A reason, cut to what a frame may carry.
pub fn reason_bytes(text: &str) -> &[u8] {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

/// A message about the session. See the picture at the head of [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// First frame of each side on each lane: proves that it holds the lane's key.
    Confirm,
    /// Source, lane 0: the region table is the payload.
    Offer {
        /// Bytes of the table.
        payload_bytes: usize,
    },
    /// Target, lane 0: the regions fit.
    Accept,
    /// Target, lane 0: they do not; the payload says why.
    Refuse {
        /// Bytes of the reason, UTF-8.
        payload_bytes: usize,
    },
    /// Source, each lane: everything of this round has been sent on this lane.
    RoundEnd {
        /// The round, from 0.
        round: u32,
        /// Pages that this lane carried in it.
        pages: u64,
    },
    /// Target, lane 0: every lane ended the round and all of it has been placed.
    RoundDone {
        /// The round.
        round: u32,
    },
    /// Source, lane 0: a piece of the device state.
    State {
        /// Where it belongs, in bytes.
        offset: u64,
        /// Bytes of all of it.
        total_bytes: u64,
        /// Bytes of this piece.
        payload_bytes: usize,
    },
    /// Source, each lane: no pages follow; what the lane carried before this frame.
    End {
        /// Frames.
        frames: u64,
        /// Pages, zero pages too.
        pages: u64,
    },
    /// Source, lane 0, after its END: the sums of all ENDs.
    Commit {
        /// Number of lanes.
        lanes: u16,
        /// Frames of all lanes.
        frames: u64,
        /// Pages of all lanes.
        pages: u64,
    },
    /// Target: everything has arrived and been placed.
    Ready,
    /// Source: it has let go of the guest.
    Handover,
    /// Target: the guest is its own.
    Done,
    /// Either end: the session ends here; the payload says why.
    Cancel {
        /// Bytes of the reason, UTF-8.
        payload_bytes: usize,
    },
    /// Either end: it is alive.
    Heartbeat,
    /// Either end, a lane that is a stream: the next bytes.
    Stream {
        /// Bytes of them.
        payload_bytes: usize,
    },
    /// Either end, a lane that is a stream: no bytes follow in this direction; what it carried.
    StreamEnd {
        /// Frames before this one.
        frames: u64,
        /// Bytes of the stream.
        bytes: u64,
    },
    /// The source of a tunnel, lane 0, where the target dials: so many channels are to be there.
    Want {
        /// Channels that were opened until now, this one too.
        channels: u16,
    },
}

impl Control {
    /// Writes the plain header to the front of `out` and returns the frame's prefix.
    ///
    /// # Panics
    ///
    /// Where `out` is shorter than [`HEADER_FIXED_BYTES`].
    pub fn encode(&self, out: &mut [u8]) -> Prefix {
        let (kind, region, round, a, b) = match *self {
            Self::Confirm => (1, 0, 0, 0, 0),
            Self::Offer { .. } => (2, 0, 0, 0, 0),
            Self::Accept => (3, 0, 0, 0, 0),
            Self::Refuse { .. } => (4, 0, 0, 0, 0),
            Self::RoundEnd { round, pages } => (6, 0, round, pages, 0),
            Self::RoundDone { round } => (7, 0, round, 0, 0),
            Self::State { offset, total_bytes, .. } => (8, 0, 0, offset, total_bytes),
            Self::End { frames, pages } => (9, 0, 0, frames, pages),
            Self::Commit { lanes, frames, pages } => (10, lanes, 0, frames, pages),
            Self::Ready => (11, 0, 0, 0, 0),
            Self::Handover => (12, 0, 0, 0, 0),
            Self::Done => (13, 0, 0, 0, 0),
            Self::Cancel { .. } => (14, 0, 0, 0, 0),
            Self::Heartbeat => (15, 0, 0, 0, 0),
            Self::Stream { .. } => (16, 0, 0, 0, 0),
            Self::StreamEnd { frames, bytes } => (17, 0, 0, frames, bytes),
            Self::Want { channels } => (18, channels, 0, 0, 0),
        };
        let fixed = RawHeader {
            kind,
            region: region.into(),
            round: round.into(),
            a: a.into(),
            b: b.into(),
            ..RawHeader::default()
        };
        out[..HEADER_FIXED_BYTES].copy_from_slice(fixed.as_bytes());
        Prefix::new(HEADER_FIXED_BYTES, self.payload_bytes())
    }

    /// Bytes of the frame's payload.
    pub fn payload_bytes(&self) -> usize {
        match *self {
            Self::Offer { payload_bytes }
            | Self::Refuse { payload_bytes }
            | Self::State { payload_bytes, .. }
            | Self::Stream { payload_bytes }
            | Self::Cancel { payload_bytes } => payload_bytes,
            _ => 0,
        }
    }

    /// The name that docs/wire-format.md uses.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Confirm => "CONFIRM",
            Self::Offer { .. } => "OFFER",
            Self::Accept => "ACCEPT",
            Self::Refuse { .. } => "REFUSE",
            Self::RoundEnd { .. } => "ROUND_END",
            Self::RoundDone { .. } => "ROUND_DONE",
            Self::State { .. } => "STATE",
            Self::End { .. } => "END",
            Self::Commit { .. } => "COMMIT",
            Self::Ready => "READY",
            Self::Handover => "HANDOVER",
            Self::Done => "DONE",
            Self::Cancel { .. } => "CANCEL",
            Self::Heartbeat => "HEARTBEAT",
            Self::Stream { .. } => "STREAM",
            Self::StreamEnd { .. } => "STREAM_END",
            Self::Want { .. } => "WANT",
        }
    }
}

pub(super) fn parse(fixed: &RawHeader, payload_bytes: usize) -> Result<Control, PeerError> {
    const WHAT: &str = "control header";
    let (a, b, round) = (fixed.a.get(), fixed.b.get(), fixed.round.get());
    let control = match fixed.kind {
        1 => Control::Confirm,
        2 => Control::Offer { payload_bytes },
        3 => Control::Accept,
        4 => Control::Refuse { payload_bytes },
        6 => Control::RoundEnd { round, pages: a },
        7 => Control::RoundDone { round },
        8 => Control::State { offset: a, total_bytes: b, payload_bytes },
        9 => Control::End { frames: a, pages: b },
        10 => Control::Commit { lanes: fixed.region.get(), frames: a, pages: b },
        11 => Control::Ready,
        12 => Control::Handover,
        13 => Control::Done,
        14 => Control::Cancel { payload_bytes },
        15 => Control::Heartbeat,
        16 => Control::Stream { payload_bytes },
        17 => Control::StreamEnd { frames: a, bytes: b },
        18 => Control::Want { channels: fixed.region.get() },
        // W-7: 0 is invalid, 19 and above are not of this version.
        kind => return Err(malformed(WHAT, "kind", 0, "1 to 18", kind.into())),
    };
    expect_zero(WHAT, "runs", 4, fixed.runs.get().into())?;
    // W-8: what a kind does not use is zero. Encoding again shows it without a second table.
    let mut again = [0; HEADER_FIXED_BYTES];
    control.encode(&mut again);
    if let Some(offset) = again.iter().zip(fixed.as_bytes()).position(|(x, y)| x != y) {
        let got = fixed.as_bytes()[offset].into();
        return Err(malformed(WHAT, "unused field", offset, "0", got));
    }
    check_payload(&control, payload_bytes)?;
    Ok(control)
}

/// W-12
fn check_payload(control: &Control, payload_bytes: usize) -> Result<(), PeerError> {
    const WHAT: &str = "control payload";
    let got = payload_bytes as u64;
    match *control {
        Control::Offer { .. } if payload_bytes == 0 => {
            Err(malformed(WHAT, "length", 0, "a region table", got))
        }
        Control::Stream { .. } if payload_bytes == 0 => {
            Err(malformed(WHAT, "length", 0, "bytes of a stream", got))
        }
        Control::Refuse { .. } | Control::Cancel { .. } if payload_bytes > REASON_BYTES_MAX => {
            Err(malformed(WHAT, "length", 0, "at most 1024 bytes", got))
        }
        Control::State { offset, total_bytes, .. } => {
            if total_bytes > STATE_BYTES_MAX {
                return Err(malformed(WHAT, "total", 24, "at most 64 MiB", total_bytes));
            }
            match offset.checked_add(got) {
                Some(end) if end <= total_bytes && got > 0 => Ok(()),
                _ => Err(malformed(WHAT, "offset", 16, "a piece inside the total", offset)),
            }
        }
        _ if payload_bytes != control.payload_bytes() => {
            Err(malformed(WHAT, "length", 0, "no payload", got))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Opened, parse_header};
    use super::*;

    fn all() -> Vec<Control> {
        vec![
            Control::Confirm,
            Control::Offer { payload_bytes: 20 },
            Control::Accept,
            Control::Refuse { payload_bytes: 1024 },
            Control::RoundEnd { round: 7, pages: 1 << 40 },
            Control::RoundDone { round: u32::MAX },
            Control::State { offset: 5, total_bytes: 10, payload_bytes: 5 },
            Control::End { frames: 3, pages: 4 },
            Control::Commit { lanes: 64, frames: 1, pages: 2 },
            Control::Ready,
            Control::Handover,
            Control::Done,
            Control::Cancel { payload_bytes: 0 },
            Control::Heartbeat,
            Control::Stream { payload_bytes: 4096 },
            Control::StreamEnd { frames: 7, bytes: 1 << 50 },
            Control::Want { channels: 300 },
        ]
    }

    #[test]
    fn every_control_survives_the_wire_and_any_stray_byte_is_refused() {
        for control in all() {
            let mut header = [0; HEADER_FIXED_BYTES];
            let prefix = control.encode(&mut header);
            assert_eq!(prefix.payload_bytes(), control.payload_bytes());
            let parsed = parse_header(&header, control.payload_bytes(), &[]).unwrap();
            assert_eq!(parsed, Opened::Control(control), "{}", control.name());
            for at in [1, 4, 5, 6, 7, 12, 13, 14, 15] {
                let mut bad = header;
                bad[at] ^= 0x80; // W-8
                assert!(parse_header(&bad, control.payload_bytes(), &[]).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn kinds_outside_the_version_and_wrong_payloads_are_refused() {
        for kind in [0u8, 19, 20, 255] {
            let mut header = [0; HEADER_FIXED_BYTES];
            header[0] = kind; // W-7
            assert!(parse_header(&header, 0, &[]).is_err(), "{kind}");
        }
        let mut header = [0; HEADER_FIXED_BYTES];
        let refused = |control: Control, header: &mut [u8; 32], payload: usize| {
            control.encode(header);
            parse_header(header, payload, &[]).unwrap_err()
        };
        // W-12
        refused(Control::Ready, &mut header, 1);
        refused(Control::Offer { payload_bytes: 0 }, &mut header, 0);
        refused(Control::Stream { payload_bytes: 0 }, &mut header, 0);
        refused(Control::StreamEnd { frames: 0, bytes: 0 }, &mut header, 1);
        refused(Control::Cancel { payload_bytes: 0 }, &mut header, 1025);
        let state = |offset, total_bytes| Control::State { offset, total_bytes, payload_bytes: 5 };
        refused(state(6, 10), &mut header, 5);
        refused(state(u64::MAX, 10), &mut header, 5);
        refused(state(0, u64::MAX), &mut header, 5);
        refused(state(0, 5), &mut header, 0);
    }

    #[test]
    fn golden_refusal() {
        let mut header = [0; HEADER_FIXED_BYTES];
        let prefix = Control::Refuse { payload_bytes: 4 }.encode(&mut header);
        let mut golden = [0; HEADER_FIXED_BYTES];
        golden[0] = 4;
        assert_eq!(header, golden);
        assert_eq!(prefix.encode(), [32, 0, 0, 0, 4, 0, 0, 0]);
    }
}
