//! A VMM that receives a guest: `cargo run --release --example target -- ADDR:PORT SECRET-FILE`.
//!
//! See `source` for the other end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use sealane::memory::Region;
use sealane::{Canceller, Config, Error, Listener, OneTimeSecret, Role, Target};

/// Sizes come from the other end: never make room for one unseen.
const BYTES_MAX: u64 = 16 << 30;

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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, secret_file] = &arguments[..] else {
        return Err("usage: target ADDR:PORT SECRET-FILE".into());
    };
    let secret = OneTimeSecret::read(Path::new(secret_file))?;
    let (config, cancel) = (Config::default(), Canceller::default());

    let listener = Listener::bind(address)?;
    println!("listening at {}", listener.local_address()?);
    let lanes = listener.accept(Role::Target, &secret, &config, &cancel)?;
    let mut target = Target::start(lanes, &config, &cancel)?;
    // A VMM compares the offer with the machine that it was told to build.
    let offer: Vec<_> = target.offer().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let [(name, bytes)] = &offer[..] else {
        return Err(target.refuse("this example takes one region").into());
    };
    if *bytes > BYTES_MAX {
        return Err(target.refuse("this example takes at most 16 GiB").into());
    }
    let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING)?);
    memory.set_len(*bytes)?;
    target.accept(vec![Region::from_file(name, memory.try_clone()?, 0, *bytes)?])?;
    let state = target.receive()?;
    let Ok(state) = <[u8; 8]>::try_from(&state[..]) else {
        return Err(target.fail(Error::Misuse("a device state of another size".to_owned())).into());
    };
    target.ready()?;
    // The source has let go: the guest is this end's from here on, so nothing below may fail it.
    target.done()?;
    let steps = u64::from_le_bytes(state);
    let mut word = [0; 8];
    memory.read_exact_at(&mut word, (steps - 1) * 7919 % 4096 * 4096)?;
    println!("took a guest of {steps} steps; its last left {}", u64::from_le_bytes(word));
    Ok(())
}
