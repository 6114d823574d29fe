//! The region table: what the source offers, the payload of OFFER.
//!
//! `u16 count`, then per region `u64 bytes | u8 name_bytes | name` (W-13).

use std::collections::HashSet;

use super::malformed;
use crate::error::PeerError;

/// Most regions of a session. With names of 40 bytes the table fits the smallest frame.
pub const REGIONS_MAX: usize = 1024;
/// Bytes of the smallest frame; a table has to fit one.
const TABLE_BYTES_MAX: usize = crate::config::FRAME_BYTES_MIN;
const WHAT: &str = "region table";

/// One region as the source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionEntry {
    /// 1 to 255 bytes of UTF-8 without control characters, unique in its table.
    pub name: String,
    /// Bytes, at least 1.
    pub bytes: u64,
}

/// All regions of a session. A region's place in it is its index on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionTable {
    entries: Vec<RegionEntry>,
}

impl RegionTable {
    /// A table of these regions.
    ///
    /// # Errors
    ///
    /// The rule that is broken, in words.
    pub fn new(entries: Vec<RegionEntry>) -> Result<Self, String> {
        if entries.is_empty() || entries.len() > REGIONS_MAX {
            return Err(format!("{} regions: 1 to {REGIONS_MAX} are allowed", entries.len()));
        }
        let mut names = HashSet::new();
        for entry in &entries {
            if !name_is_allowed(&entry.name) {
                let name = &entry.name;
                return Err(format!(
                    "region name {name:?}: 1 to 255 bytes without control characters"
                ));
            }
            if entry.bytes == 0 {
                return Err(format!("region {:?} is empty", entry.name));
            }
            if !names.insert(&entry.name) {
                return Err(format!("two regions are called {:?}", entry.name));
            }
        }
        let table = Self { entries };
        let bytes = table.encode().len();
        if bytes > TABLE_BYTES_MAX {
            return Err(format!(
                "the region table takes {bytes} bytes of {TABLE_BYTES_MAX}: use shorter names"
            ));
        }
        Ok(table)
    }

    /// The regions by index.
    pub fn entries(&self) -> &[RegionEntry] {
        &self.entries
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = (self.entries.len() as u16).to_le_bytes().to_vec();
        for entry in &self.entries {
            out.extend_from_slice(&entry.bytes.to_le_bytes());
            out.push(entry.name.len() as u8);
            out.extend_from_slice(entry.name.as_bytes());
        }
        out
    }

    /// Parses a table. What it allocates is bounded by the bytes given.
    ///
    /// # Errors
    ///
    /// [`PeerError::Malformed`] with the field that breaks W-13.
    pub fn parse(bytes: &[u8]) -> Result<Self, PeerError> {
        let short = |at: usize| malformed(WHAT, "length", at, "more bytes", bytes.len() as u64);
        let (count, mut rest) = bytes.split_first_chunk::<2>().ok_or_else(|| short(0))?;
        let count = usize::from(u16::from_le_bytes(*count));
        let mut entries = Vec::new();
        for _ in 0..count {
            let at = bytes.len() - rest.len();
            let (size, after) = rest.split_first_chunk::<8>().ok_or_else(|| short(at))?;
            let (&name_bytes, after) = after.split_first().ok_or_else(|| short(at + 8))?;
            let (name, after) =
                after.split_at_checked(name_bytes.into()).ok_or_else(|| short(at + 9))?;
            let name = std::str::from_utf8(name)
                .map_err(|_| malformed(WHAT, "name", at + 9, "UTF-8", name_bytes.into()))?;
            entries.push(RegionEntry { name: name.to_owned(), bytes: u64::from_le_bytes(*size) });
            rest = after;
        }
        if !rest.is_empty() {
            let at = bytes.len() - rest.len();
            return Err(malformed(WHAT, "length", at, "nothing more", rest.len() as u64));
        }
        Self::new(entries)
            .map_err(|_| malformed(WHAT, "regions", 0, "named, unique, not empty", count as u64))
    }
}

fn name_is_allowed(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, bytes: u64) -> RegionEntry {
        RegionEntry { name: name.to_owned(), bytes }
    }

    #[test]
    fn golden_table_and_every_truncation_of_it() {
        // W-13
        let table = RegionTable::new(vec![entry("ram", 4096), entry("é", 1 << 32)]).unwrap();
        let bytes = table.encode();
        let golden = b"\x02\0\0\x10\0\0\0\0\0\0\x03ram\0\0\0\0\x01\0\0\0\x02\xc3\xa9";
        assert_eq!(bytes, golden);
        assert_eq!(RegionTable::parse(&bytes).unwrap(), table);
        for cut in 0..bytes.len() {
            RegionTable::parse(&bytes[..cut]).unwrap_err();
        }
        RegionTable::parse(&[&bytes[..], b"x"].concat()).unwrap_err();
    }

    #[test]
    fn tables_outside_the_rules_are_refused() {
        for bad in [
            vec![],
            vec![entry("", 1)],
            vec![entry("a\nb", 1)],
            vec![entry("a", 0)],
            vec![entry("a", 1), entry("a", 2)],
            vec![entry(&"x".repeat(256), 1)],
        ] {
            assert!(RegionTable::new(bad.clone()).is_err(), "{bad:?}");
        }
        RegionTable::parse(&[0, 0]).unwrap_err();
        RegionTable::parse(&[0xff, 0xff]).unwrap_err();
    }
}
