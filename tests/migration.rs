//! Whole migrations between two ends in one process, on both engines.
#![allow(missing_docs)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::Duration;

use sealane::memory::{DirtyBitmap, Region, Run};
use sealane::{
    Canceller, Config, EngineChoice, Error, Listener, OneTimeSecret, Result, Role, Source,
    SourceReport, Target, TargetReport, dial,
};

const ENGINES: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Syscalls];
const BYTES: u64 = 24 << 20;

fn config(engine: EngineChoice, lanes: u16) -> Config {
    let mut config = Config::default();
    config.engine = engine;
    config.lanes = lanes;
    config.frame_bytes = 64 << 10;
    config.peer_timeout = Duration::from_secs(10);
    config
}

fn memfd(bytes: u64) -> File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(bytes).unwrap();
    file
}

/// A third of the pages zero, the rest each its own.
fn fill(file: &File, bytes: u64, salt: u64) {
    let pages = bytes.div_ceil(4096);
    for page in (0..pages).filter(|page| page % 3 != 0) {
        let word = page.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt) | 1;
        let content = word.to_le_bytes().repeat(512);
        let room = (bytes - page * 4096).min(4096) as usize;
        file.write_all_at(&content[..room], page * 4096).unwrap();
    }
}

fn read(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

type TargetEnd = JoinHandle<Result<(Vec<u8>, TargetReport)>>;

/// A target that takes the one region into `file`.
fn target(
    file: &File,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
) -> (String, TargetEnd) {
    let mut listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_address().unwrap().to_string();
    let (file, secret, config) = (file.try_clone().unwrap(), secret.clone(), config.clone());
    let cancel = cancel.clone();
    let end = std::thread::spawn(move || {
        let lanes = listener.accept(Role::Target, &secret, &config, &cancel)?;
        let mut target = Target::start(lanes, &config, &cancel)?;
        let bytes = file.metadata().unwrap().len();
        target.accept(vec![Region::from_file("ram", file, 0, bytes)?])?;
        let state = target.receive()?;
        target.ready()?;
        Ok((state, target.done()?))
    });
    (address, end)
}

fn source(
    file: &File,
    address: &str,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
) -> Result<(Source, u64)> {
    let lanes = dial(address, Role::Source, secret, config, cancel)?;
    let file = file.try_clone().unwrap();
    let bytes = file.metadata().unwrap().len();
    let region = Region::from_file("ram", file, 0, bytes)?;
    let pages = region.pages();
    Ok((Source::start(lanes, vec![region], config, cancel)?, pages))
}

fn whole(from: &File, into: &File, config: &Config) -> (SourceReport, TargetReport) {
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let (address, end) = target(into, &secret, config, &cancel);
    let (mut source, pages) = source(from, &address, &secret, config, &cancel).unwrap();
    source.send_round(&[DirtyBitmap::all(pages)]).unwrap();
    // A second round over pages that changed, one of them to zero.
    from.write_all_at(&[0xC3; 8192], 4096 * 7).unwrap();
    from.write_all_at(&[0; 4096], 4096 * 4).unwrap();
    let mut dirty = DirtyBitmap::new(pages);
    dirty.set_run(Run { first_page: 4, pages: 1 });
    dirty.set_run(Run { first_page: 7, pages: 2 });
    assert_eq!(source.send_round(&[dirty]).unwrap().pages, 3);
    let state: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    source.commit(&state).unwrap();
    let report = source.hand_over().unwrap();
    let (got, target_report) = end.join().unwrap().unwrap();
    assert_eq!(got, state);
    assert!(read(from) == read(into), "memory differs");
    (report, target_report)
}

#[test]
fn memory_crosses_over_one_two_and_eight_lanes() {
    for engine in ENGINES {
        for lanes in [1, 2, 8] {
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 1);
            let (source, target) = whole(&from, &into, &config(engine, lanes));
            assert_eq!(source.lanes.len(), usize::from(lanes));
            let pages: u64 = source.lanes.iter().map(|l| l.data_pages + l.zero_pages).sum();
            assert_eq!(pages, BYTES / 4096 + 3);
            assert!(source.lanes.iter().all(|lane| lane.data_pages > 0), "every lane works");
            let sum = |l: &[sealane::LaneStatistics]| l.iter().map(|l| l.wire_bytes).sum::<u64>();
            assert!(sum(&target.lanes) > BYTES / 2 && sum(&source.lanes) > BYTES / 2);
        }
    }
}

#[test]
fn disk_files_with_a_short_last_page_cross() {
    for engine in ENGINES {
        let (from, into) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = BYTES + 1234;
        fill(&from, bytes, 2);
        into.set_len(bytes).unwrap();
        from.set_len(bytes).unwrap();
        whole(&from, &into, &config(engine, 2));
        assert_eq!(into.metadata().unwrap().len(), bytes);
    }
}

#[test]
fn a_wrong_secret_is_not_authenticated_and_the_listener_waits_on() {
    for engine in ENGINES {
        let config = config(engine, 1);
        let (from, into) = (memfd(1 << 20), memfd(1 << 20));
        fill(&from, 1 << 20, 3);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (address, end) = target(&into, &secret, &config, &cancel);
        let wrong = OneTimeSecret::generate().unwrap();
        let mut hasty = config.clone();
        hasty.handshake_timeout = Duration::from_millis(300);
        let error = dial(&address, Role::Source, &wrong, &hasty, &cancel).err().unwrap();
        assert!(error.is_authentication(), "{error}");
        let (mut source, pages) = source(&from, &address, &secret, &config, &cancel).unwrap();
        source.send_round(&[DirtyBitmap::all(pages)]).unwrap();
        source.commit(b"").unwrap();
        source.hand_over().unwrap();
        end.join().unwrap().unwrap();
        assert!(read(&from) == read(&into));
    }
}

#[test]
fn a_region_of_another_size_is_refused_with_both_sizes() {
    for engine in ENGINES {
        let config = config(engine, 2);
        let (from, into) = (memfd(1 << 20), memfd(2 << 20));
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (address, end) = target(&into, &secret, &config, &cancel);
        let error = source(&from, &address, &secret, &config, &cancel).err().unwrap().to_string();
        assert!(
            error.contains("refused") && error.contains("2097152") && error.contains("1048576"),
            "{error}"
        );
        assert!(matches!(end.join().unwrap(), Err(Error::Misuse(_))));
    }
}

#[test]
fn a_source_file_truncated_meanwhile_is_an_error_at_both_ends() {
    for engine in ENGINES {
        let config = config(engine, 1);
        let (from, into) = (tempfile::tempfile().unwrap(), memfd(BYTES));
        fill(&from, BYTES, 4);
        from.set_len(BYTES).unwrap();
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (address, end) = target(&into, &secret, &config, &cancel);
        let (mut source, pages) = source(&from, &address, &secret, &config, &cancel).unwrap();
        from.set_len(BYTES / 2 + 4096).unwrap();
        // The hole that the file system reports past the end reads as data that is not there.
        let result = source.send_round(&[DirtyBitmap::all(pages)]).map(|_| source.commit(b""));
        drop(source);
        let theirs = end.join().unwrap();
        if let Err(error) = result {
            assert!(error.to_string().contains("shrank"), "{error}");
            assert!(theirs.is_err());
        } else {
            panic!("a truncated file went through");
        }
    }
}

#[test]
fn cancel_from_either_end_in_a_round_ends_both() {
    for engine in ENGINES {
        for by_source in [true, false] {
            let mut config = config(engine, 2);
            config.bandwidth_bytes_per_s = 4 << 20; // long enough to be cancelled
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 5);
            let secret = OneTimeSecret::generate().unwrap();
            let (ours, theirs) = (Canceller::default(), Canceller::default());
            let (address, end) = target(&into, &secret, &config, &theirs);
            let (mut source, pages) = source(&from, &address, &secret, &config, &ours).unwrap();
            let (mine, other) = (ours.clone(), theirs.clone());
            let timer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                if by_source { mine.cancel() } else { other.cancel() }
            });
            let error = source.send_round(&[DirtyBitmap::all(pages)]).unwrap_err();
            assert!(error.is_cancelled(), "{engine:?} {by_source}: {error}");
            let error = end.join().unwrap().unwrap_err();
            assert!(error.is_cancelled(), "{engine:?} {by_source}: {error}");
            timer.join().unwrap();
        }
    }
}

#[test]
fn both_ends_source_is_refused() {
    let config = config(EngineChoice::Syscalls, 1);
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let mut listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_address().unwrap().to_string();
    let (theirs, other) = (secret.clone(), config.clone());
    let end = std::thread::spawn(move || {
        listener.accept(Role::Source, &theirs, &other, &Canceller::default()).err().unwrap()
    });
    let error = dial(&address, Role::Source, &secret, &config, &cancel).err().unwrap().to_string();
    assert!(error.contains("same role"), "{error}");
    assert!(end.join().unwrap().to_string().contains("same role"));
}
