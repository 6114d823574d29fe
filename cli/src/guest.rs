//! The demo's guest: memory in a memfd and a vCPU that goes on from wherever it stopped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use sealane::memory::AtomicBitmap;
use sha2::{Digest, Sha256};

const PAGE: u64 = 4096;
const CHUNK: usize = 1 << 20;

/// A memfd of `bytes` zeros.
pub(crate) fn memory(bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(c"sealane-demo", MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// A guest's usual mix, in stretches of 1 to 64 pages: a third zero, a third text, a third random.
pub(crate) fn boot(memory: &File, bytes: u64) -> io::Result<()> {
    let mut random = Random(0x5EA1_A9E5);
    let mut chunk = vec![0u8; CHUNK];
    let (mut kind, mut stretch) = (0, 0);
    for at in (0..bytes).step_by(CHUNK) {
        for page in chunk.chunks_exact_mut(PAGE as usize) {
            if stretch == 0 {
                (kind, stretch) = (random.next() % 3, random.next() % 64 + 1);
            }
            stretch -= 1;
            match kind {
                0 => page.fill(0),
                1 => page.iter_mut().enumerate().for_each(|(n, b)| *b = b"lorem ipsum "[n % 12]),
                _ => page
                    .chunks_exact_mut(8)
                    .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes())),
            }
        }
        let left = (bytes - at).min(CHUNK as u64) as usize;
        memory.write_all_at(&chunk[..left], at)?;
    }
    Ok(())
}

/// SHA-256 over all of it.
pub(crate) fn hash(memory: &File, bytes: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0u8; CHUNK];
    for at in (0..bytes).step_by(CHUNK) {
        let left = (bytes - at).min(CHUNK as u64) as usize;
        memory.read_exact_at(&mut chunk[..left], at)?;
        hasher.update(&chunk[..left]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The device state: 16 bytes. Each step reads a word of memory, so a wrong page anywhere on its
/// way leads it astray for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vcpu {
    random: u64,
    steps: u64,
}

impl Vcpu {
    pub(crate) fn new() -> Self {
        Self { random: 0xBADC_AB1E, steps: 0 }
    }

    pub(crate) fn state(&self) -> Vec<u8> {
        [self.random.to_le_bytes(), self.steps.to_le_bytes()].concat()
    }

    pub(crate) fn from_state(state: &[u8]) -> Option<Self> {
        let (random, steps) = state.split_first_chunk::<8>()?;
        let steps = steps.try_into().ok()?;
        Some(Self { random: u64::from_le_bytes(*random), steps: u64::from_le_bytes(steps) })
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Reads a word, changes it, writes it back, and marks its page. Nine of ten go to a sixteenth
    /// of the memory, as guests do.
    pub(crate) fn step(
        &mut self,
        memory: &File,
        bytes: u64,
        log: Option<&AtomicBitmap>,
    ) -> io::Result<()> {
        let mut random = Random(self.random);
        let words = bytes / 8;
        let span = if random.next().is_multiple_of(10) { words } else { words / 16 };
        let at = random.next() % span * 8;
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, at)?;
        let value = u64::from_le_bytes(word);
        memory.write_all_at(&value.wrapping_add(random.0 | 1).to_le_bytes(), at)?;
        if let Some(log) = log {
            log.set(at / PAGE);
        }
        self.random = random.next() ^ value;
        self.steps += 1;
        Ok(())
    }
}

/// xorshift64* (Vigna, 2016): enough for a demo, not for keys.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
