//! A VMM that sends its guest: `cargo run --release --example source -- HOST:PORT SECRET-FILE`.
//!
//! Start `target` first, on the same or another host. The guest here is 256 MiB in a memfd with
//! a thread that writes to it in place of a vCPU; the dirty log is kept in software where a VMM
//! would call `KVM_GET_DIRTY_LOG` and hand the words to `DirtyBitmap::from_words`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::memfd::{MFdFlags, memfd_create};
use sealane::memory::{AtomicBitmap, DirtyBitmap, Region};
use sealane::{Canceller, Config, OneTimeSecret, Role, Source, dial};

const BYTES: u64 = 256 << 20;
/// With so few pages left the guest is paused: they cross in a moment.
const PAGES_LEFT: u64 = 512;
const ROUNDS_MAX: usize = 30;

fn main() -> std::process::ExitCode {
    // Display and not Debug: the messages are made to be read.
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let [address, secret_file] = arguments()?;
    let secret = OneTimeSecret::read(Path::new(&secret_file))?;
    let (config, cancel) = (Config::default(), Canceller::default());

    let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING)?);
    memory.set_len(BYTES)?;
    let ram = Region::from_file("ram", memory.try_clone()?, 0, BYTES)?;
    let log = Arc::new(AtomicBitmap::new(ram.pages()));
    let guest = Guest::run(memory, Arc::clone(&log));

    let lanes = dial(&address.parse()?, Role::Source, &secret, &config, &cancel)?;
    let mut dirty = DirtyBitmap::all(ram.pages());
    let mut source = Source::start(lanes, vec![ram], &config, &cancel)?;
    for _ in 0..ROUNDS_MAX {
        let round = source.send_round(&[dirty])?;
        println!("round {}: {} pages in {:?}", round.round, round.pages, round.elapsed);
        dirty = log.drain();
        if dirty.count() <= PAGES_LEFT {
            break;
        }
    }
    let steps = guest.pause();
    // What was drained and not sent yet, and what was written until the pause.
    let mut last = log.drain();
    dirty.runs().for_each(|run| last.set_run(run));
    source.send_round(&[last])?;
    source.commit(&steps.to_le_bytes())?;
    // Until here any error leaves the guest with this end: let it go on. From here on it must
    // not run here again, whatever `hand_over` returns.
    let report = source.hand_over()?;
    let sealed: u64 = report.lanes.iter().map(|lane| lane.wire_bytes).sum();
    println!("handed over after {steps} steps, {sealed} bytes on the wire");
    Ok(())
}

fn arguments() -> Result<[String; 2], String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.try_into().map_err(|_| "usage: source HOST:PORT SECRET-FILE".to_owned())
}

/// In place of a vCPU: counts its steps, each in another page.
struct Guest {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Guest {
    fn run(memory: File, log: Arc<AtomicBitmap>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut steps = 0u64;
            while !stopped.load(Ordering::Acquire) {
                let page = steps * 7919 % 4096;
                memory.write_all_at(&steps.to_le_bytes(), page * 4096).expect("guest memory");
                log.set(page); // after the store: see AtomicBitmap
                steps += 1;
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            steps
        });
        Self { stop, thread }
    }

    /// The device state: how many steps it went.
    fn pause(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the guest did not panic")
    }
}
