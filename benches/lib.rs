//! What the benchmarks share. Each compares ways within one run, in turns, and checks what came
//! out; a shared machine makes single figures worth little and ratios of neighbours a lot.

pub mod qemu;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use sealane::memory::{DirtyBitmap, Region};
use sealane::{Canceller, Config, Listener, OneTimeSecret, Role, Source, Target, dial};

/// GB/s of something that moved `bytes` in `time`.
pub fn gb_per_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Median, least and most of some figures.
pub fn spread(figures: &[f64]) -> (f64, f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}

/// `median (least to most)`.
pub fn shown(figures: &[f64]) -> String {
    let (median, least, most) = spread(figures);
    format!("{median:6.2} ({least:.2} to {most:.2})")
}

/// Ratios of neighbours: the same turn of two ways.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// A memfd with every page populated and none zero.
pub fn guest(bytes: u64) -> File {
    let fd = memfd_create(c"bench", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
    let file = File::from(fd);
    file.set_len(bytes).expect("room");
    fill(&file, bytes, 1);
    file
}

/// Gives every page a content of its own.
pub fn fill(file: &File, bytes: u64, salt: u64) {
    let mut chunk = vec![0u8; 1 << 20];
    for at in (0..bytes).step_by(chunk.len()) {
        for (n, word) in chunk.chunks_exact_mut(8).enumerate() {
            let mixed = (at + n as u64 * 8 + salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            word.copy_from_slice(&mixed.to_le_bytes());
        }
        let left = chunk.len().min((bytes - at) as usize);
        file.write_all_at(&chunk[..left], at).expect("room");
    }
}

/// Whether two files hold the same.
pub fn same(one: &File, two: &File, bytes: u64) -> bool {
    let (mut ours, mut theirs) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    (0..bytes).step_by(1 << 20).all(|at| {
        let left = (1 << 20).min((bytes - at) as usize);
        one.read_exact_at(&mut ours[..left], at).expect("readable");
        two.read_exact_at(&mut theirs[..left], at).expect("readable");
        ours[..left] == theirs[..left]
    })
}

/// A migration of `rounds` rounds of all pages from one memfd into another, both ends in this
/// process; the time of the last round alone.
pub fn last_round(
    from: &File,
    into: &File,
    bytes: u64,
    config: &Config,
    rounds: usize,
) -> sealane::Result<Duration> {
    let (secret, cancel) = (OneTimeSecret::generate()?, Canceller::default());
    let listener = Listener::bind("127.0.0.1:0")?;
    let address = listener.local_address()?.to_string();
    let (theirs, other) = (secret.clone(), config.clone());
    let file = into.try_clone().expect("a descriptor");
    let end = std::thread::spawn(move || -> sealane::Result<()> {
        let cancel = Canceller::default();
        let lanes = listener.accept(Role::Target, &theirs, &other, &cancel)?;
        let mut target = Target::start(lanes, &other, &cancel)?;
        target.accept(vec![Region::from_file("ram", file, 0, bytes)?])?;
        target.receive()?;
        target.ready()?;
        target.done()?;
        Ok(())
    });
    let lanes = dial(&address.parse()?, Role::Source, &secret, config, &cancel)?;
    let file = from.try_clone().expect("a descriptor");
    let region = Region::from_file("ram", file, 0, bytes)?;
    let pages = region.pages();
    let mut source = Source::start(lanes, vec![region], config, &cancel)?;
    let mut last = Duration::ZERO;
    for _ in 0..rounds {
        let begin = Instant::now();
        source.send_round(&[DirtyBitmap::all(pages)])?;
        last = begin.elapsed();
    }
    source.commit(b"")?;
    source.hand_over()?;
    end.join().expect("the target did not panic")?;
    Ok(last)
}
