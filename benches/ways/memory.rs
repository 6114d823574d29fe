//! Guest memory: a memfd that the referee makes and both ends map.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use memmap2::{Advice, MmapMut};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// What a target's memory holds before a run.
const STALE: u8 = 0xA5;
/// Odd, so that a multiplication loses nothing.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Guest memory as one process has it.
pub struct Memory {
    pub file: File,
    pub map: MmapMut,
}

impl Memory {
    /// Memory that nothing was ever written to.
    pub fn new(bytes: u64) -> Self {
        let fd = memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        let file = File::from(fd);
        file.set_len(bytes).expect("room");
        Self::of(file)
    }

    /// What another process of this user made, by its [`Self::path`].
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self::of(File::options().read(true).write(true).open(path)?))
    }

    fn of(file: File) -> Self {
        // SAFETY: a memfd that nobody truncates; while one end writes, nobody reads but for the
        // bytes that it was told are there.
        let map = unsafe { MmapMut::map_mut(&file) }.expect("a mapping");
        Self { file, map }
    }

    /// Where other processes find it while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Every page in memory and in this process's tables.
    pub fn make_resident(&self) {
        self.map.advise(Advice::PopulateWrite).expect("Linux 5.14 or newer, and room");
    }

    /// Something that no run may leave behind.
    pub fn spoil(&mut self) {
        self.map.fill(STALE);
    }
}

/// Order and content of all words: not cryptographic, nobody forges here.
pub fn hash(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let mut lanes = [1u64, 2, 3, 4, 5, 6, 7, 8];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_ne_bytes(*word)).wrapping_mul(MIX).rotate_left(29);
        }
    }
    let rest = rest.iter().map(|byte| u64::from(*byte));
    lanes
        .into_iter()
        .chain(rest)
        .fold(bytes.len() as u64, |sum, part| (sum ^ part).wrapping_mul(MIX).rotate_left(29))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_sees_each_byte_and_its_place() {
        let memory: Vec<u8> = (0..300u32).map(|n| (n * 7) as u8).collect();
        let whole = hash(&memory);
        for at in 0..memory.len() {
            let mut other = memory.clone();
            other[at] ^= 1;
            assert_ne!(hash(&other), whole, "byte {at}");
        }
        let mut swapped = memory.clone();
        swapped.rotate_left(64);
        assert_ne!(hash(&swapped), whole);
        assert_ne!(hash(&memory[..299]), whole);
    }

    #[test]
    fn others_see_the_same_memory() {
        let mut memory = Memory::new(8192);
        memory.spoil();
        let other = Memory::open(Path::new(&memory.path())).unwrap();
        other.make_resident();
        assert!(other.map.iter().all(|byte| *byte == STALE));
    }
}
