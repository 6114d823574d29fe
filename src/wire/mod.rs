//! Bytes on the wire: prefix, header, runs, region table, hello. No I/O, no clock.
//!
//! docs/wire-format.md holds the numbered rules that comments and tests here cite as `W-n`.
//!
//! ```text
//!  dialler                                             listener
//!    | -- DiallerHello::Open (112) ------------------------> |  lane 0
//!    | <--- TLS 1.3 where certificates are part of it -----> |
//!    | <------------- OpenReply, sealed by Noise or TLS --- |
//!    | -- DiallerHello::Join (112) ------------------------> |  every further lane
//!    | <----------------------------- JoinReply (64) ------- |
//!
//!  source                                              target
//!    | -- CONFIRM (each lane) ---------- CONFIRM (each lane) |  nothing is acted on before it
//!    | -- OFFER (regions) ---------------------------------> |
//!    | <------------------------------ ACCEPT or REFUSE ---- |
//!    | -- PAGES* (each lane), ROUND_END (each lane) -------> |  one round
//!    | <------------------------------------ ROUND_DONE ---- |
//!    |    ... more rounds; HEARTBEAT both ways on lane 0 ... |
//!    | -- STATE*, END (each lane), COMMIT -----------------> |
//!    | <----------------------------------------- READY ---- |  the target has everything
//!    | -- HANDOVER ----------------------------------------> |  the source has let go
//!    | <------------------------------------------ DONE ---- |  the guest is the target's
//! ```
//!
//! A frame is `prefix | sealed header | tag | sealed payload | tag`; a frame without payload ends
//! with the header's tag.
#![forbid(unsafe_code)]

mod control;
mod features;
mod hello;
mod pages;
mod prefix;
mod reply;
mod table;

#[cfg(any(test, feature = "internals"))]
pub mod fuzz_bodies;

pub use control::{Control, STATE_BYTES_MAX, reason_bytes};
pub use features::Features;
pub use hello::{
    Asks, DIALLER_HELLO_BYTES, DiallerHello, FirstBytes, JoinHello, OPEN_CLEAR_BYTES, OpenHello,
    PROOF_BYTES, Role, TrustKind, VERSION,
};
pub use pages::{PageRun, Pages, encode_pages};
pub use prefix::Prefix;
pub use reply::{
    JOIN_REPLY_BYTES, JoinReply, OPEN_REPLY_BYTES, OpenReply, REPLY_PLAIN_BYTES, Refusal,
};
pub use table::{REGIONS_MAX, RegionEntry, RegionTable};

use crate::error::PeerError;

/// Bytes of the clear prefix of a frame.
pub const PREFIX_BYTES: usize = 8;
/// Bytes of an AES-GCM tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a header without runs.
pub const HEADER_FIXED_BYTES: usize = 32;
/// Bytes of one run in a header.
pub const RUN_BYTES: usize = 16;
/// Most runs of one frame. With them prefix, header and tag still fit one page.
pub const RUNS_MAX: usize = 240;
/// Most bytes before the payload: prefix, header, tag.
pub const HEAD_BYTES_MAX: usize =
    PREFIX_BYTES + HEADER_FIXED_BYTES + RUNS_MAX * RUN_BYTES + TAG_BYTES;
const _: () = assert!(HEAD_BYTES_MAX <= crate::config::PAGE_BYTES);

/// The fixed part of a header as it lies on the wire.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Immutable,
    zerocopy::Unaligned,
)]
#[repr(C)]
struct RawHeader {
    kind: u8,
    flags: u8,
    region: zerocopy::little_endian::U16,
    runs: zerocopy::little_endian::U16,
    zero16: zerocopy::little_endian::U16,
    round: zerocopy::little_endian::U32,
    zero32: zerocopy::little_endian::U32,
    a: zerocopy::little_endian::U64,
    b: zerocopy::little_endian::U64,
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_FIXED_BYTES);

/// A header whose every field was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened<'a> {
    /// Guest memory.
    Pages(Pages<'a>),
    /// Everything else.
    Control(Control),
}

/// Parses an opened header. `regions` holds the number of pages of each agreed region.
///
/// # Errors
///
/// [`PeerError::Malformed`] with the first field that breaks a rule (W-7 to W-12).
pub fn parse_header<'a>(
    header: &'a [u8],
    payload_bytes: usize,
    regions: &[u64],
) -> Result<Opened<'a>, PeerError> {
    let (fixed, runs) = zerocopy::Ref::<_, RawHeader>::from_prefix(header)
        .map_err(|_| malformed("header", "length", 0, "32 bytes or more", header.len() as u64))?;
    let fixed: &RawHeader = zerocopy::Ref::into_ref(fixed);
    // W-8
    let reserved = [
        (1, u64::from(fixed.flags)),
        (6, fixed.zero16.get().into()),
        (12, fixed.zero32.get().into()),
    ];
    for (offset, value) in reserved {
        expect_zero("header", "reserved field", offset, value)?;
    }
    if runs.len() != usize::from(fixed.runs.get()) * RUN_BYTES {
        return Err(malformed("header", "runs", 4, "as many as follow", fixed.runs.get().into()));
    }
    if fixed.kind == pages::KIND {
        return pages::parse(fixed, runs, payload_bytes, regions).map(Opened::Pages);
    }
    control::parse(fixed, payload_bytes).map(Opened::Control)
}

fn malformed(
    what: &'static str,
    field: &'static str,
    offset: usize,
    wanted: &'static str,
    got: u64,
) -> PeerError {
    PeerError::Malformed { what, field, offset, wanted, got }
}

fn expect_zero(
    what: &'static str,
    field: &'static str,
    offset: usize,
    got: u64,
) -> Result<(), PeerError> {
    if got == 0 { Ok(()) } else { Err(malformed(what, field, offset, "0", got)) }
}
