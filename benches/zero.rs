//! The search for zero pages against a plain read of the same memory, and together with the copy
//! out of guest memory against a plain copy.

use std::time::Instant;

use memmap2::MmapMut;
use sealane::memory::copy::page_out_of_guest;
use sealane::memory::is_zero_page;
use sealane_benches::{gb_per_s, guest, ratios, shown};

const BYTES: usize = 512 << 20;
const PAGE: usize = 4096;
const TURNS: usize = 9;

fn main() {
    println!("{} MiB, {TURNS} turns each", BYTES >> 20);
    println!("{:<28} {:<24} {:<24} ratio", "memory", "plain read GB/s", "search GB/s");
    let mut memory = vec![1u8; BYTES];
    memory.fill(0); // touched: not the kernel's one zero page
    compare("zero", &memory, BYTES / PAGE);
    memory.chunks_exact_mut(PAGE).for_each(|page| page[PAGE - 1] = 1);
    compare("last byte of each page set", &memory, 0);
    with_the_copy();
}

fn compare(name: &str, memory: &[u8], zero_pages: usize) {
    let (mut plain, mut search) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let begin = Instant::now();
        std::hint::black_box(sum(memory));
        plain.push(gb_per_s(BYTES as u64, begin.elapsed()));
        let begin = Instant::now();
        let found = memory.chunks_exact(PAGE).filter(|page| is_zero_page(page)).count();
        search.push(gb_per_s(BYTES as u64, begin.elapsed()));
        assert_eq!(found, zero_pages, "the search is wrong");
    }
    print(name, &plain, &search);
}

/// As lanes do it: the copy of a page into a slot says whether it was zero. Against memcpy alone.
fn with_the_copy() {
    let file = guest(BYTES as u64);
    // SAFETY: a memfd of this process that nobody truncates.
    let mut memory = unsafe { MmapMut::map_mut(&file) }.expect("a mapping");
    memory.chunks_exact_mut(PAGE).for_each(|page| {
        page.fill(0);
        page[PAGE - 1] = 1;
    });
    let mut slot = vec![0u8; 256 << 10];
    let (mut copy, mut both) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let begin = Instant::now();
        for part in memory.chunks_exact(slot.len()) {
            slot.copy_from_slice(part);
            std::hint::black_box(&mut slot);
        }
        copy.push(gb_per_s(BYTES as u64, begin.elapsed()));
        let (begin, mut found) = (Instant::now(), 0);
        for part in memory.chunks_exact(slot.len()) {
            for (page, room) in part.chunks_exact(PAGE).zip(slot.chunks_exact_mut(PAGE)) {
                found += usize::from(gather(page, room));
            }
        }
        both.push(gb_per_s(BYTES as u64, begin.elapsed()));
        assert_eq!(found, 0, "the search is wrong");
    }
    print("memcpy | copy and search", &copy, &both);
}

fn gather(page: &[u8], room: &mut [u8]) -> bool {
    assert!(page.len() == PAGE && room.len() == PAGE);
    // SAFETY: a page of the mapping and one of the slot.
    unsafe { page_out_of_guest(page.as_ptr(), room.as_mut_ptr()) }
}

/// What a plain read costs: every word is used, and nothing else is done.
fn sum(memory: &[u8]) -> u64 {
    let words = memory.as_chunks::<8>().0;
    words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

fn print(name: &str, plain: &[f64], ours: &[f64]) {
    println!("{name:<28} {:<24} {:<24} {}", shown(plain), shown(ours), shown(&ratios(ours, plain)));
}
