//! The copies between guest memory and a slot against `memcpy`, over a memfd of small pages.

use std::time::Instant;

use memmap2::MmapMut;
use sealane::memory::copy::{page_out_of_guest, pages_into_guest};
use sealane_benches::{gb_per_s, guest, ratios, shown};

const BYTES: usize = 512 << 20;
const SLOT: usize = 256 << 10;
const PAGE: usize = 4096;
const TURNS: usize = 9;

type Copy = fn(*const u8, *mut u8);

fn main() {
    println!("{} MiB in slots of {} KiB, {TURNS} turns each", BYTES >> 20, SLOT >> 10);
    println!("{:<10} {:<24} {:<24} ratio", "way", "memcpy GB/s", "ours GB/s");
    let file = guest(BYTES as u64);
    // SAFETY: a memfd of this process that nobody truncates.
    let mut memory = unsafe { MmapMut::map_mut(&file) }.expect("a mapping");
    let mut slot = vec![0u8; SLOT];
    compare("gather", &mut memory, &mut slot, true, |from, into| {
        for at in (0..SLOT).step_by(PAGE) {
            // SAFETY: both hold a slot's bytes.
            unsafe { page_out_of_guest(from.add(at), into.add(at)) };
        }
    });
    slot.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 7 + n / 256) as u8);
    compare("place", &mut memory, &mut slot, false, |from, into| {
        // SAFETY: both hold a slot's bytes.
        unsafe { pages_into_guest(from, into, SLOT) }
    });
}

fn compare(name: &str, memory: &mut [u8], slot: &mut [u8], gather: bool, ours: Copy) {
    let memcpy: Copy = |from, into| {
        // SAFETY: both hold a slot's bytes, and they are apart.
        unsafe { std::ptr::copy_nonoverlapping(from, into, SLOT) }
    };
    let (mut plain, mut special) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        for (copy, figures) in [(memcpy, &mut plain), (ours, &mut special)] {
            // Something to overwrite, so that the check below can fail.
            if gather {
                slot.fill(0)
            } else {
                memory.iter_mut().step_by(64).for_each(|b| *b = 0)
            }
            let begin = Instant::now();
            for part in memory.chunks_exact_mut(SLOT) {
                match gather {
                    true => copy(part.as_ptr(), slot.as_mut_ptr()),
                    false => copy(slot.as_ptr(), part.as_mut_ptr()),
                }
                std::hint::black_box(&mut *slot);
            }
            figures.push(gb_per_s(BYTES as u64, begin.elapsed()));
            let last = BYTES - SLOT;
            let checked = if gather { last } else { 0 };
            assert!(memory[checked..].chunks_exact(SLOT).all(|part| part == slot), "it differs");
        }
    }
    println!(
        "{name:<10} {:<24} {:<24} {}",
        shown(&plain),
        shown(&special),
        shown(&ratios(&special, &plain))
    );
}
