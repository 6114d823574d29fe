//! The search for zero pages against a plain read of the same memory, and against the copy that
//! stands before it on the way of a page.

use std::time::Instant;

use sealane::memory::is_zero_page;
use sealane_benches::{gb_per_s, ratios, shown};

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
    in_cache();
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

/// As lanes do it: a page is copied into a slot, then searched where it lies in the cache.
fn in_cache() {
    let memory = vec![1u8; BYTES];
    let mut memory = memory;
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
                room.copy_from_slice(page);
                found += usize::from(is_zero_page(room));
            }
        }
        both.push(gb_per_s(BYTES as u64, begin.elapsed()));
        assert_eq!(found, 0, "the search is wrong");
    }
    print("copied first: copy | + search", &copy, &both);
}

/// What a plain read costs: every word is used, and nothing else is done.
fn sum(memory: &[u8]) -> u64 {
    let words = memory.as_chunks::<8>().0;
    words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

fn print(name: &str, plain: &[f64], ours: &[f64]) {
    println!("{name:<28} {:<24} {:<24} {}", shown(plain), shown(ours), shown(&ratios(ours, plain)));
}
