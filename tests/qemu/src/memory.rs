//! A guest's memory, as the file that QEMU maps.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::TOUCHED;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
const BLOCK_BYTES: usize = 1 << 20;

/// The memory of one guest, read and written beside QEMU.
pub struct Memory {
    file: File,
    bytes: u64,
}

impl Memory {
    pub(crate) fn create(path: &Path, bytes: u64) -> Self {
        let create = || {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(path)?;
            file.set_len(bytes)?;
            Ok::<_, std::io::Error>(file)
        };
        let file = create().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { file, bytes }
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Every fourth page stays zero, each other one gets content of its own, the same for the
    /// same seed.
    pub fn fill(&self, seed: u64) {
        let page_bytes = PAGE_BYTES as usize;
        let mut noise = Vec::with_capacity(BLOCK_BYTES + page_bytes);
        while noise.len() < BLOCK_BYTES + page_bytes {
            noise.extend(mix(seed ^ noise.len() as u64).to_le_bytes());
        }
        let mut block = vec![0; BLOCK_BYTES];
        for start in (0..self.bytes).step_by(BLOCK_BYTES) {
            for (index, page) in block.chunks_mut(page_bytes).enumerate() {
                let number = start / PAGE_BYTES + index as u64;
                if number % 4 == 3 {
                    page.fill(0);
                    continue;
                }
                let word = mix(seed.wrapping_add(number));
                let from = word as usize % BLOCK_BYTES;
                page.copy_from_slice(&noise[from..from + page_bytes]);
                page[..8].copy_from_slice(&word.to_le_bytes());
            }
            self.write(start, &block);
        }
    }

    /// Writes beside QEMU.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, address).expect("guest memory is written");
    }

    /// Reads beside QEMU.
    pub fn read(&self, address: u64, bytes: &mut [u8]) {
        self.file.read_exact_at(bytes, address).expect("guest memory is read");
    }

    /// # Panics
    ///
    /// Where the two differ, with the first page that does. Both guests must be stopped.
    pub fn assert_equal(&self, other: &Self) {
        assert_eq!(self.bytes, other.bytes);
        let (mut mine, mut theirs) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        for start in (0..self.bytes).step_by(BLOCK_BYTES) {
            self.read(start, &mut mine);
            other.read(start, &mut theirs);
            if mine != theirs {
                let at = mine.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(0);
                panic!("memory differs, first at {:#x}", start + at as u64);
            }
        }
    }

    /// For a target that failed: what it has is `source`'s or nothing, nobody made it up.
    ///
    /// # Panics
    ///
    /// Where a byte is neither zero nor as in `source`.
    pub fn assert_nothing_but(&self, source: &Self) {
        let page_bytes = PAGE_BYTES as usize;
        let (mut mine, mut theirs) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        for start in (0..self.bytes).step_by(BLOCK_BYTES) {
            self.read(start, &mut mine);
            source.read(start, &mut theirs);
            let pages = mine.chunks(page_bytes).zip(theirs.chunks(page_bytes));
            let differing = pages.filter(|(mine, theirs)| mine != theirs);
            for (mine, theirs) in differing {
                let mut bytes = mine.iter().zip(theirs);
                let foreign = bytes.any(|(mine, theirs)| *mine != 0 && mine != theirs);
                assert!(!foreign, "what no source sent, in the MiB at {start:#x}");
            }
        }
    }

    /// The counter of each page of [`TOUCHED`], in the order of addresses.
    pub fn counters(&self) -> Vec<u32> {
        let counter = |address| {
            let mut word = [0; 4];
            self.read(address, &mut word);
            u32::from_le_bytes(word)
        };
        TOUCHED.step_by(PAGE_BYTES as usize).map(counter).collect()
    }

    /// Whether each counter is `more` beyond what it was.
    pub fn are_counters_beyond(&self, old: &[u32], more: u32) -> bool {
        self.counters().iter().zip(old).all(|(new, old)| *new >= old + more)
    }

    /// What holds after a handover at any time, the guest running or not.
    ///
    /// # Panics
    ///
    /// Where a page is older than in `handover`, the counters of the stopped source.
    pub fn assert_no_page_older_than(&self, handover: &[u32]) {
        let counters = self.counters();
        assert_eq!(counters.len(), handover.len());
        for (index, (new, old)) in counters.iter().zip(handover).enumerate() {
            let address = TOUCHED.start + index as u64 * PAGE_BYTES;
            assert!(new >= old, "page {address:#x}: {new}, at the handover {old}");
        }
    }

    /// What holds of a stopped guest: one sweep is under way, those before it left out no page.
    ///
    /// # Panics
    ///
    /// Where a page missed a sweep.
    pub fn assert_no_page_missed_a_sweep(&self) {
        let counters = self.counters();
        let (first, last) = (counters[0], counters[counters.len() - 1]);
        assert!(first - last <= 1, "from {first} to {last}");
        for (index, pair) in counters.windows(2).enumerate() {
            let address = TOUCHED.start + (index as u64 + 1) * PAGE_BYTES;
            assert!(pair[0] >= pair[1], "page {address:#x}: {} after {}", pair[1], pair[0]);
        }
    }
}

/// splitmix64.
fn mix(seed: u64) -> u64 {
    let mut word = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(directory: &tempfile::TempDir, name: &str) -> Memory {
        Memory::create(&directory.path().join(name), 104 << 20)
    }

    #[test]
    #[should_panic(expected = "memory differs, first at 0x2000001")]
    fn a_byte_of_difference_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (mine, theirs) = (memory(&directory, "a"), memory(&directory, "b"));
        for end in [&mine, &theirs] {
            end.fill(3);
        }
        mine.assert_equal(&theirs);
        theirs.write((32 << 20) + 1, &[!0]);
        mine.assert_equal(&theirs);
    }

    #[test]
    #[should_panic(expected = "page 0x101000: 4, at the handover 5")]
    fn an_old_page_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let memory = memory(&directory, "a");
        let handover: Vec<_> = TOUCHED.step_by(PAGE_BYTES as usize).map(|_| 5).collect();
        for address in TOUCHED.step_by(PAGE_BYTES as usize) {
            memory.write(address, &[5, 0, 0, 0]);
        }
        memory.assert_no_page_older_than(&handover);
        memory.write(TOUCHED.start + PAGE_BYTES, &[4]);
        memory.assert_no_page_older_than(&handover);
    }

    #[test]
    #[should_panic(expected = "page 0x64ff000: 2 after 1")]
    fn a_missed_sweep_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let memory = memory(&directory, "a");
        for address in TOUCHED.step_by(PAGE_BYTES as usize) {
            memory.write(address, &[if address < 50 << 20 { 2 } else { 1 }]);
        }
        memory.assert_no_page_missed_a_sweep();
        memory.write(TOUCHED.end - PAGE_BYTES, &[2]);
        memory.assert_no_page_missed_a_sweep();
    }
}
