//! The copies between a slot and guest memory, by kind of memory and by temperature: in the L2
//! cache, in DRAM, and never touched. What a cold page costs is the kernel's fault and its zeros;
//! written to the memfd it needs neither.

use std::os::fd::AsRawFd;
use std::time::Instant;

use memmap2::{Advice, MmapMut, MmapOptions};
use sealane::memory::copy::{page_out_of_guest, pages_into_guest};
use sealane_benches::{gb_per_s, shown};

const BYTES: usize = 512 << 20;
const SLOT: usize = 256 << 10;
const PAGE: usize = 4096;
const TURNS: usize = 7;

/// Makes memory of one kind.
type Make = fn() -> MmapMut;

fn main() {
    println!("{} MiB in slots of {} KiB, {TURNS} turns each, GB/s", BYTES >> 20, SLOT >> 10);
    println!("{:<44} {:<26} place", "memory", "gather");
    let cases: [(&str, Make, usize); 4] = [
        ("memfd, in the cache", memfd, SLOT),
        ("memfd, in DRAM", memfd, BYTES),
        ("anonymous, small pages, in DRAM", || anonymous(Advice::NoHugePage), BYTES),
        ("anonymous, huge pages where there are, DRAM", || anonymous(Advice::HugePage), BYTES),
    ];
    for (name, make, bytes) in cases {
        let mut memory = make();
        memory.fill(0x5A);
        let gather = turns(|slot| touched(&mut memory[..bytes], slot, Copy::Gather));
        let place = turns(|slot| touched(&mut memory[..bytes], slot, Copy::Place));
        println!("{name:<44} {:<26} {}", shown(&gather), shown(&place));
    }
    let place = turns(|slot| cold(&mut memfd(), slot));
    println!("{:<44} {:<26} {}", "memfd, never touched, by mapping", "-", shown(&place));
    let place = turns(|slot| cold(&mut anonymous(Advice::HugePage), slot));
    println!("{:<44} {:<26} {}", "anonymous, huge, never touched", "-", shown(&place));
    let place = turns(cold_by_descriptor);
    println!("{:<44} {:<26} {}", "memfd, never touched, by pwrite(2)", "-", shown(&place));
}

fn turns(mut turn: impl FnMut(&mut [u8]) -> f64) -> Vec<f64> {
    let mut slot = vec![0xA7u8; SLOT];
    (0..TURNS).map(|_| turn(&mut slot)).collect()
}

fn memfd() -> MmapMut {
    // SAFETY: a memfd of this process that nobody truncates.
    unsafe { MmapMut::map_mut(&fresh()) }.expect("a mapping")
}

fn fresh() -> std::fs::File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = std::fs::File::from(memfd_create(c"bench", MFdFlags::empty()).expect("a memfd"));
    file.set_len(BYTES as u64).expect("room");
    file
}

fn anonymous(advice: Advice) -> MmapMut {
    let memory = MmapOptions::new().len(BYTES).map_anon().expect("a mapping");
    // Without huge pages in the kernel it is small ones.
    let _ = memory.advise(advice);
    memory
}

enum Copy {
    Gather,
    Place,
}

/// All of the memory once, or what lies in the cache as often as it takes.
fn touched(memory: &mut [u8], slot: &mut [u8], copy: Copy) -> f64 {
    let rounds = BYTES / memory.len();
    slot.fill(0xA7);
    let begin = Instant::now();
    for _ in 0..rounds {
        for part in memory.chunks_exact_mut(SLOT) {
            match copy {
                Copy::Gather => gather(part, slot),
                Copy::Place => place(slot, part),
            }
            std::hint::black_box(&mut *slot);
        }
    }
    let figure = gb_per_s(BYTES as u64, begin.elapsed());
    assert!(memory[..SLOT] == *slot, "it differs");
    figure
}

fn cold(memory: &mut MmapMut, slot: &mut [u8]) -> f64 {
    let begin = Instant::now();
    memory.chunks_exact_mut(SLOT).for_each(|part| place(slot, part));
    let figure = gb_per_s(BYTES as u64, begin.elapsed());
    assert!(memory.chunks_exact(SLOT).all(|part| part == slot), "it differs");
    figure
}

fn cold_by_descriptor(slot: &mut [u8]) -> f64 {
    let file = fresh();
    let begin = Instant::now();
    for at in (0..BYTES).step_by(SLOT) {
        // SAFETY: writes a slot that is there.
        let written = unsafe {
            libc::pwrite(file.as_raw_fd(), slot.as_ptr().cast(), SLOT, at as libc::off_t)
        };
        assert_eq!(written, SLOT as isize, "room");
    }
    let figure = gb_per_s(BYTES as u64, begin.elapsed());
    // SAFETY: a memfd of this process that nobody truncates.
    let memory = unsafe { MmapMut::map_mut(&file) }.expect("a mapping");
    assert!(memory.chunks_exact(SLOT).all(|part| part == slot), "it differs");
    figure
}

fn gather(part: &[u8], slot: &mut [u8]) {
    for at in (0..SLOT).step_by(PAGE) {
        // SAFETY: both hold a slot's bytes.
        let zero = unsafe { page_out_of_guest(part[at..].as_ptr(), slot[at..].as_mut_ptr()) };
        assert!(!zero, "the search is wrong");
    }
}

fn place(slot: &[u8], part: &mut [u8]) {
    // SAFETY: both hold a slot's bytes.
    unsafe { pages_into_guest(slot.as_ptr(), part.as_mut_ptr(), SLOT) }
}
