//! The limit of locked memory. A test binary of its own: the limit is the process's.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sealane::doctor::lane_locked_bytes;
use sealane::memory::DirtyBitmap;
use sealane::stream::Streams;
use sealane::{Canceller, Config, EngineChoice, OneTimeSecret, Role, ZeroCopy};
use support::{fill, memfd, read, source, target};

/// What an ordinary user has by default (systemd, kernel 5.16 and newer).
const USUAL: u64 = 8 << 20;

/// Takes CAP_IPC_LOCK, which lifts the limit, from this thread and those that it makes.
fn drop_ipc_lock() {
    const VERSION_3: u32 = 0x2008_0522;
    const IPC_LOCK: u32 = 1 << 14;
    let header = [VERSION_3, 0u32];
    let mut sets = [0u32; 6]; // effective, permitted, inheritable; low and high words
    // SAFETY: capget(2) and capset(2) with a header and two data structs of three words each.
    unsafe {
        let call = |number, sets: *mut u32| nix::libc::syscall(number, header.as_ptr(), sets);
        assert_eq!(call(nix::libc::SYS_capget, sets.as_mut_ptr()), 0);
        sets[0] &= !IPC_LOCK;
        sets[1] &= !IPC_LOCK;
        assert_eq!(call(nix::libc::SYS_capset, sets.as_mut_ptr()), 0);
    }
}

fn lanes(engine: EngineChoice, lanes: u16) -> Config {
    let mut config = Config::default();
    (config.engine, config.lanes) = (engine, lanes);
    config
}

fn migrate(ours: &Config) -> sealane::Result<()> {
    let (from, into) = (memfd(1 << 20), memfd(1 << 20));
    fill(&from, 1 << 20, 1);
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    // One host has one end: the other locks nothing.
    let theirs = lanes(EngineChoice::Syscalls, 1);
    let (address, end) = target(&into, &secret, &theirs, &cancel);
    let result = source(&from, &address, &secret, ours, &cancel).and_then(|(mut source, pages)| {
        source.send_round(&[DirtyBitmap::all(pages)])?;
        source.commit(b"")?;
        source.hand_over()
    });
    let theirs = end.join().unwrap();
    let report = result?;
    assert_eq!(report.lanes.len(), usize::from(ours.lanes));
    theirs.unwrap();
    assert!(read(&from) == read(&into));
    Ok(())
}

/// A stream between two ends, of which this one has the limit; none of its sends is zero-copy.
fn stream(zero_copy: ZeroCopy) -> sealane::Result<()> {
    let (near, far) = UnixStream::pair().unwrap();
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let (theirs, other) = (secret.clone(), cancel.clone());
    let end = std::thread::spawn(move || {
        let config = lanes(EngineChoice::Syscalls, 1);
        let (_, stream) = Streams::answer(far, Role::Target, &theirs, &config, &other)?;
        let mut all = Vec::new();
        (&stream).read_to_end(&mut all).expect("the end was said");
        Ok::<_, sealane::Error>(all)
    });
    let mut config = lanes(EngineChoice::Uring, 1);
    config.zero_copy = zero_copy;
    let (_, stream) = Streams::open(near, Role::Source, &secret, &config, &cancel)?;
    let bytes = vec![7; 1 << 20];
    (&stream).write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(end.join().unwrap()? == bytes);
    let engine = stream.statistics().engine;
    assert_eq!((engine.zero_copy_kept, engine.zero_copy_copied), (0, 0));
    Ok(())
}

#[test]
fn eight_lanes_fit_under_the_usual_limit_and_64_kib_is_a_named_error() {
    let config = Config::default();
    let one = lane_locked_bytes(config.slots_per_lane, config.frame_bytes) as u64;
    assert!(one <= 2 << 20 && 8 * one <= USUAL, "{one} bytes a lane");
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
    assert!(hard >= USUAL, "this machine allows {hard} bytes of locked memory");
    std::thread::spawn(move || {
        drop_ipc_lock();
        setrlimit(Resource::RLIMIT_MEMLOCK, USUAL, hard).unwrap();
        migrate(&lanes(EngineChoice::Uring, 8)).unwrap();

        setrlimit(Resource::RLIMIT_MEMLOCK, 64 << 10, hard).unwrap();
        for count in [1, 8] {
            let error = migrate(&lanes(EngineChoice::Uring, count)).unwrap_err().to_string();
            for part in ["locked memory", "65536", "ulimit -l", "engine = syscalls"] {
                assert!(error.contains(part), "{error}");
            }
        }
        migrate(&lanes(EngineChoice::Syscalls, 8)).unwrap();

        // Streams lock memory for zero-copy sends alone.
        assert!(stream(ZeroCopy::Off).is_ok() && stream(ZeroCopy::Auto).is_ok());
        let error = stream(ZeroCopy::Require).unwrap_err().to_string();
        assert!(error.contains("locked memory") && error.contains("zero_copy = off"), "{error}");
    })
    .join()
    .unwrap();
}

#[test]
fn the_usual_limit_of_open_files_is_enough() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 1024.min(hard), hard).unwrap();
    migrate(&lanes(EngineChoice::Uring, 2)).unwrap();
}
