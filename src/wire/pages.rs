//! PAGES: guest memory, as runs of data and of zeros within one region.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{HEADER_FIXED_BYTES, RUN_BYTES, RUNS_MAX, RawHeader, expect_zero, malformed};
use crate::config::PAGE_BYTES;
use crate::error::PeerError;

pub(super) const KIND: u8 = 5;
const FLAG_ZERO: u32 = 1;

/// Consecutive pages of a region: data that lies in the payload, or zeros that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Index of the first page in its region.
    pub first_page: u64,
    /// How many; at least 1.
    pub pages: u32,
    /// Whether every byte is zero; such pages are not in the payload.
    pub zero: bool,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct RawRun {
    first_page: U64,
    pages: U32,
    flags: U32,
}
const _: () = assert!(size_of::<RawRun>() == RUN_BYTES);

/// The header of a PAGES frame, checked against the region table (W-9 to W-11).
///
/// Every run lies within its region; runs ascend and do not overlap; the data runs hold exactly
/// the payload's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages<'a> {
    /// Index in the region table.
    pub region: u16,
    /// The round that it belongs to.
    pub round: u32,
    runs: &'a [RawRun],
}

impl Pages<'_> {
    /// The runs, by rising page.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = PageRun> + Clone {
        self.runs.iter().map(|raw| PageRun {
            first_page: raw.first_page.get(),
            pages: raw.pages.get(),
            zero: raw.flags.get() == FLAG_ZERO,
        })
    }

    /// Pages in the payload.
    pub fn data_pages(&self) -> u64 {
        self.runs().filter(|run| !run.zero).map(|run| u64::from(run.pages)).sum()
    }

    /// Pages that are zero and not in the payload.
    pub fn zero_pages(&self) -> u64 {
        self.runs().filter(|run| run.zero).map(|run| u64::from(run.pages)).sum()
    }
}

/// Writes the plain header of a PAGES frame to the front of `out`; returns its bytes.
///
/// # Panics
///
/// Where `runs` is empty or longer than [`RUNS_MAX`], or `out` is too short.
pub fn encode_pages(out: &mut [u8], region: u16, round: u32, runs: &[PageRun]) -> usize {
    assert!((1..=RUNS_MAX).contains(&runs.len()), "{} runs in one frame", runs.len());
    let fixed = RawHeader {
        kind: KIND,
        region: region.into(),
        runs: (runs.len() as u16).into(),
        round: round.into(),
        ..RawHeader::default()
    };
    out[..HEADER_FIXED_BYTES].copy_from_slice(fixed.as_bytes());
    let header_bytes = HEADER_FIXED_BYTES + runs.len() * RUN_BYTES;
    for (run, out) in runs.iter().zip(out[HEADER_FIXED_BYTES..].chunks_exact_mut(RUN_BYTES)) {
        let raw = RawRun {
            first_page: run.first_page.into(),
            pages: run.pages.into(),
            flags: if run.zero { FLAG_ZERO } else { 0 }.into(),
        };
        out.copy_from_slice(raw.as_bytes());
    }
    header_bytes
}

pub(super) fn parse<'a>(
    fixed: &RawHeader,
    runs: &'a [u8],
    payload_bytes: usize,
    regions: &[u64],
) -> Result<Pages<'a>, PeerError> {
    const WHAT: &str = "PAGES header";
    expect_zero(WHAT, "a", 16, fixed.a.get())?;
    expect_zero(WHAT, "b", 24, fixed.b.get())?;
    let region = fixed.region.get();
    let Some(&region_pages) = regions.get(usize::from(region)) else {
        return Err(malformed(WHAT, "region", 2, "an index of the region table", region.into()));
    };
    let Ok(runs) = <[RawRun]>::ref_from_bytes(runs) else {
        return Err(malformed(WHAT, "runs", 4, "whole runs", runs.len() as u64));
    };
    if runs.is_empty() {
        return Err(malformed(WHAT, "runs", 4, "1 or more", 0));
    }
    let mut free_from = 0u64;
    let mut data_pages = 0u64;
    for (index, run) in runs.iter().enumerate() {
        let offset = HEADER_FIXED_BYTES + index * RUN_BYTES;
        let (first, pages) = (run.first_page.get(), u64::from(run.pages.get()));
        if run.flags.get() > FLAG_ZERO {
            return Err(malformed(
                WHAT,
                "run flags",
                offset + 12,
                "0 or 1",
                run.flags.get().into(),
            ));
        }
        if pages == 0 {
            return Err(malformed(WHAT, "run pages", offset + 8, "1 or more", 0));
        }
        // W-10
        if first < free_from {
            return Err(malformed(WHAT, "first page", offset, "after the run before", first));
        }
        match first.checked_add(pages) {
            Some(end) if end <= region_pages => free_from = end,
            _ => return Err(malformed(WHAT, "first page", offset, "inside its region", first)),
        }
        if run.flags.get() == 0 {
            data_pages += pages; // <= region_pages: cannot overflow, runs are disjoint
        }
    }
    // W-11
    if data_pages.checked_mul(PAGE_BYTES as u64) != Some(payload_bytes as u64) {
        let wanted = "as many bytes as the data runs hold";
        return Err(malformed(WHAT, "payload", 0, wanted, payload_bytes as u64));
    }
    Ok(Pages { region, round: fixed.round.get(), runs })
}

#[cfg(test)]
mod tests {
    use super::super::{Opened, parse_header};
    use super::*;
    use proptest::prelude::*;

    const fn run(first_page: u64, pages: u32, zero: bool) -> PageRun {
        PageRun { first_page, pages, zero }
    }

    #[test]
    fn golden_header() {
        let mut out = [0xAA; 64];
        let bytes = encode_pages(&mut out, 1, 2, &[run(3, 1, false), run(0x10, 0x200, true)]);
        let golden = "0500010002000000 0200000000000000 0000000000000000 0000000000000000\
                      0300000000000000 0100000000000000 1000000000000000 0002000001000000";
        let golden: String = golden.split_whitespace().collect();
        let hex: String = out[..bytes].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn broken_runs_are_refused() {
        let refuse = |runs: &[PageRun], payload: usize, regions: &[u64]| {
            let mut out = [0; 128];
            let bytes = encode_pages(&mut out, 0, 0, runs);
            parse_header(&out[..bytes], payload, regions).unwrap_err()
        };
        refuse(&[run(0, 1, false)], 4096, &[]); // W-9: no such region
        refuse(&[run(0, 0, false)], 0, &[8]); // W-10: empty
        refuse(&[run(7, 2, false)], 8192, &[8]); // W-10: past the end
        refuse(&[run(u64::MAX, 1, false)], 4096, &[8]); // W-10: overflow
        refuse(&[run(4, 2, true), run(5, 1, true)], 0, &[8]); // W-10: overlap
        refuse(&[run(4, 1, true), run(3, 1, true)], 0, &[8]); // W-10: falling
        refuse(&[run(0, 1, false)], 0, &[8]); // W-11: payload missing
        refuse(&[run(0, 1, true)], 4096, &[8]); // W-11: payload too much
        refuse(&[run(0, u32::MAX, false)], 4096, &[u64::MAX]); // W-11
    }

    proptest! {
        #[test]
        fn runs_survive_the_wire(
            gaps in prop::collection::vec((0u64..9, 1u32..9, any::<bool>()), 1..RUNS_MAX),
            region in 0u16..3, round: u32,
        ) {
            let mut at = 0;
            let runs: Vec<_> = gaps.iter().map(|&(gap, pages, zero)| {
                let run = run(at + gap, pages, zero);
                at = run.first_page + u64::from(pages);
                run
            }).collect();
            let mut out = [0; 4096];
            let bytes = encode_pages(&mut out, region, round, &runs);
            let data: usize = runs.iter().filter(|r| !r.zero).map(|r| r.pages as usize).sum();
            let opened = parse_header(&out[..bytes], data * PAGE_BYTES, &[at; 3]).unwrap();
            let Opened::Pages(pages) = opened else { panic!("not pages") };
            prop_assert_eq!((pages.region, pages.round), (region, round));
            prop_assert_eq!(pages.runs().collect::<Vec<_>>(), runs);
            prop_assert_eq!(pages.data_pages(), data as u64);
        }
    }
}
