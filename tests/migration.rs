//! Whole migrations between two ends in one process, on both engines.
#![allow(missing_docs)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealane::memory::{AtomicBitmap, DirtyBitmap, Region, Run};
use sealane::{
    Canceller, Config, EngineChoice, Error, Listener, OneTimeSecret, Role, SourceReport,
    TargetReport, dial,
};
use support::{ENGINES, config, fill, memfd, read, source, target};

const BYTES: u64 = 24 << 20;

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
        let error =
            dial(&address.parse().unwrap(), Role::Source, &wrong, &hasty, &cancel).err().unwrap();
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
fn both_ends_source_is_refused_and_the_listener_waits_on() {
    let config = config(EngineChoice::Syscalls, 1);
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_address().unwrap().to_string();
    let (theirs, other) = (secret.clone(), config.clone());
    let end = std::thread::spawn(move || {
        listener.accept(Role::Source, &theirs, &other, &Canceller::default()).map(drop)
    });
    let error = dial(&address.parse().unwrap(), Role::Source, &secret, &config, &cancel)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("same role"), "{error}");
    dial(&address.parse().unwrap(), Role::Target, &secret, &config, &cancel).unwrap();
    end.join().unwrap().unwrap();
}

#[test]
fn memory_that_changes_while_it_is_sent_arrives_as_it_was_at_the_end() {
    for engine in ENGINES {
        for lanes in [1, 2, 8] {
            let config = config(engine, lanes);
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 6);
            let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
            let (address, end) = target(&into, &secret, &config, &cancel);
            let (mut source, pages) = source(&from, &address, &secret, &config, &cancel).unwrap();
            let log = Arc::new(AtomicBitmap::new(pages));
            let stop = Arc::new(AtomicBool::new(false));
            let writer = writer(from.try_clone().unwrap(), Arc::clone(&log), Arc::clone(&stop));
            let mut dirty = DirtyBitmap::all(pages);
            let mut sent = 0;
            for _ in 0..12 {
                sent += source.send_round(&[dirty]).unwrap().pages;
                dirty = log.drain();
            }
            stop.store(true, Ordering::Release);
            writer.join().unwrap();
            // What was drained but not sent yet, and what was written since.
            let mut last = log.drain();
            dirty.runs().for_each(|run| last.set_run(run));
            sent += source.send_round(&[last]).unwrap().pages;
            assert!(sent > pages, "pages were sent again");
            source.commit(b"").unwrap();
            source.hand_over().unwrap();
            end.join().unwrap().unwrap();
            assert!(read(&from) == read(&into), "{engine:?}, {lanes} lanes: memory differs");
        }
    }
}

/// Writes whole and partial pages, some of them zero, mostly to few places.
fn writer(
    file: File,
    log: Arc<AtomicBitmap>,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut word = 1u64;
        while !stop.load(Ordering::Acquire) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = (word >> 33) % if word >> 63 == 0 { 64 } else { BYTES / 4096 };
            let zero = word >> 60 & 3 == 0;
            let content = if zero { [0; 8] } else { word.to_le_bytes() }.repeat(512);
            let whole = zero || word >> 59 & 1 == 0;
            let bytes = if whole { 4096 } else { 8 };
            file.write_all_at(&content[..bytes], page * 4096).unwrap();
            log.set(page);
        }
    })
}

#[test]
fn a_region_by_mapping_crosses() {
    for engine in ENGINES {
        let config = config(engine, 2);
        let bytes = 4 << 20;
        let (from, into) = (memfd(bytes), memfd(bytes));
        fill(&from, bytes, 7);
        let mapped = |file: &File| {
            // SAFETY: a memfd that nobody truncates while the test runs.
            let mut map = unsafe { memmap2::MmapMut::map_mut(file).unwrap() };
            let address = std::ptr::NonNull::new(map.as_mut_ptr()).unwrap();
            // SAFETY: the mapping outlives the region, and is touched by nothing else.
            let region = unsafe { Region::from_mapping("ram", address, bytes as usize).unwrap() };
            (map, region)
        };
        let (from_map, source_region) = mapped(&from);
        let (into_map, target_region) = mapped(&into);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (theirs, other) = (secret.clone(), config.clone());
        let end = std::thread::spawn(move || {
            let cancel = Canceller::default();
            let lanes = listener.accept(Role::Target, &theirs, &other, &cancel).unwrap();
            let mut target = sealane::Target::start(lanes, &other, &cancel).unwrap();
            target.accept(vec![target_region]).unwrap();
            target.receive().unwrap();
            target.ready().unwrap();
            target.done().unwrap();
        });
        let lanes =
            dial(&address.parse().unwrap(), Role::Source, &secret, &config, &cancel).unwrap();
        let pages = source_region.pages();
        let mut source =
            sealane::Source::start(lanes, vec![source_region], &config, &cancel).unwrap();
        source.send_round(&[DirtyBitmap::all(pages)]).unwrap();
        source.commit(b"").unwrap();
        source.hand_over().unwrap();
        end.join().unwrap();
        assert!(read(&from) == read(&into));
        drop((from_map, into_map));
    }
}

#[test]
fn the_target_may_dial_and_the_source_listen() {
    for engine in ENGINES {
        let config = config(engine, 2);
        let (from, into) = (memfd(1 << 20), memfd(1 << 20));
        fill(&from, 1 << 20, 8);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (theirs, other, file) = (secret.clone(), config.clone(), into.try_clone().unwrap());
        let end = std::thread::spawn(move || {
            let cancel = Canceller::default();
            // Lanes and frame size are the source's, whatever the target's settings say.
            let mut own = other;
            (own.lanes, own.frame_bytes) = (1, 1 << 20);
            let lanes =
                dial(&address.parse().unwrap(), Role::Target, &theirs, &own, &cancel).unwrap();
            assert_eq!((lanes.count(), lanes.frame_bytes()), (2, 64 << 10));
            let mut target = sealane::Target::start(lanes, &own, &cancel).unwrap();
            let region = Region::from_file("ram", file, 0, 1 << 20).unwrap();
            target.accept(vec![region]).unwrap();
            target.receive().unwrap();
            target.ready().unwrap();
            target.done().unwrap();
        });
        let lanes = listener.accept(Role::Source, &secret, &config, &cancel).unwrap();
        let region = Region::from_file("ram", from.try_clone().unwrap(), 0, 1 << 20).unwrap();
        let mut source = sealane::Source::start(lanes, vec![region], &config, &cancel).unwrap();
        source.send_round(&[DirtyBitmap::all(256)]).unwrap();
        source.commit(b"").unwrap();
        source.hand_over().unwrap();
        end.join().unwrap();
        assert!(read(&from) == read(&into));
    }
}

#[test]
fn a_bandwidth_limit_slower_than_the_heartbeat_keeps_the_session_alive() {
    for engine in ENGINES {
        let mut config = config(engine, 1);
        config.peer_timeout = Duration::from_millis(2500);
        // One frame in three seconds: without heartbeats in between the target would give up.
        config.bandwidth_bytes_per_s = (64 << 10) / 3;
        let (from, into) = (memfd(3 * 65536), memfd(3 * 65536));
        from.write_all_at(&[0x77; 2 * 65536], 0).unwrap();
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (address, end) = target(&into, &secret, &config, &cancel);
        let (mut source, pages) = source(&from, &address, &secret, &config, &cancel).unwrap();
        source.send_round(&[DirtyBitmap::all(pages)]).unwrap();
        source.commit(b"").unwrap();
        source.hand_over().unwrap();
        end.join().unwrap().unwrap();
        assert!(read(&from) == read(&into));
    }
}
