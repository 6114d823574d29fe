//! The harness itself: QEMU to QEMU with nothing between.
#![allow(missing_docs)]

use sealane_qemu::{Guest, Info, Options, Qemu, kvm_is_here, with_each};

/// Two guests of one kind.
struct Pair {
    source: Guest,
    target: Guest,
}

impl Pair {
    fn new(qemu: &Qemu, options: &Options, capabilities: &[&str], channels: u8) -> Self {
        let source = Guest::start(qemu, "source", options);
        let target = Guest::start(qemu, "target", &options.target());
        for end in [&source, &target] {
            end.prepare(capabilities, channels);
        }
        if options.live {
            source.wait_counting();
        } else {
            source.memory().fill(1);
        }
        Self { source, target }
    }

    /// Starts it by a socket of the file system.
    fn start(&self) {
        let uri = format!("unix:{}", self.target.path("migration").display());
        self.target.listen(&uri);
        self.source.migrate(&uri);
    }

    fn finish(&self) -> Info {
        let info = self.source.wait_status("completed");
        self.target.wait_status("completed");
        info
    }

    /// The guest runs at the target, and lost nothing.
    fn assert_lives(&self) {
        self.target.assert_took_over_from(&self.source);
    }
}

#[test]
fn memory_crosses_by_unix_and_by_tcp() {
    with_each("memory_crosses_by_unix_and_by_tcp", |qemu| {
        let pair = Pair::new(qemu, &Options::default(), &[], 0);
        pair.start();
        let info = pair.finish();
        assert!(info.transferred_bytes > 90 << 20, "{info:?}");
        pair.source.memory().assert_equal(pair.target.memory());

        let pair = Pair::new(qemu, &Options::default(), &["return-path"], 0);
        pair.target.listen("tcp:127.0.0.1:0");
        pair.source.migrate(&format!("tcp:127.0.0.1:{}", pair.target.port()));
        pair.finish();
        pair.source.memory().assert_equal(pair.target.memory());
    });
}

#[test]
fn memory_crosses_by_two_channels() {
    with_each("memory_crosses_by_two_channels", |qemu| {
        let pair = Pair::new(qemu, &Options::default(), &["multifd"], 2);
        pair.start();
        let info = pair.finish();
        assert!(info.all["ram"]["multifd-bytes"].as_u64() > Some(90 << 20), "{info:?}");
        pair.source.memory().assert_equal(pair.target.memory());
    });
}

#[test]
fn a_live_guest_moves() {
    with_each("a_live_guest_moves", |qemu| {
        let pair = Pair::new(qemu, &Options::live(), &["events"], 0);
        pair.start();
        pair.finish();
        pair.assert_lives();
        let events = pair.target.take_events();
        assert!(events.iter().any(|event| event["event"] == "MIGRATION"), "{events:?}");
    });
}

#[test]
fn a_live_guest_moves_and_stops_at_the_target_with_the_same_memory() {
    with_each("a_live_guest_moves_and_stops_at_the_target_with_the_same_memory", |qemu| {
        let options = Options { paused: true, ..Options::live() };
        let pair = Pair::new(qemu, &options, &[], 0);
        pair.start();
        pair.finish();
        pair.source.memory().assert_equal(pair.target.memory());
        pair.target.cont();
        pair.assert_lives();
    });
}

#[test]
fn a_live_guest_moves_by_postcopy() {
    with_each("a_live_guest_moves_by_postcopy", |qemu| {
        if let Some(error) = qemu.refuses_postcopy() {
            println!("SKIP: a_live_guest_moves_by_postcopy: {error}");
            return;
        }
        for capabilities in qemu.postcopy_ways() {
            let pair = Pair::new(qemu, &Options::live(), capabilities, 0);
            pair.source.slow_down(32 << 20);
            pair.start();
            pair.source.wait_transferred(8 << 20);
            pair.source.start_postcopy();
            let info = pair.finish();
            assert!(info.all["ram"]["postcopy-requests"].as_u64() > Some(0), "{info:?}");
            pair.assert_lives();
        }
    });
}

#[test]
fn a_cancelled_source_runs_on_and_a_killed_target_fails_it() {
    with_each("a_cancelled_source_runs_on_and_a_killed_target_fails_it", |qemu| {
        for kill in [false, true] {
            let pair = Pair::new(qemu, &Options::live(), &[], 0);
            pair.source.slow_down(16 << 20);
            pair.start();
            pair.source.wait_transferred(4 << 20);
            if kill {
                pair.target.kill();
                pair.source.wait_status("failed");
            } else {
                pair.source.cancel();
                pair.source.wait_status("cancelled");
                let said = pair.target.wait_target_failed();
                println!("target after a cancel: {said}");
            }
            pair.source.assert_runs_on();
        }
    });
}

#[test]
fn a_live_guest_moves_under_kvm() {
    if !kvm_is_here() {
        println!("SKIP: a_live_guest_moves_under_kvm: no /dev/kvm for this user");
        return;
    }
    with_each("a_live_guest_moves_under_kvm", |qemu| {
        let options = Options { kvm: true, ..Options::live() };
        let pair = Pair::new(qemu, &options, &[], 0);
        pair.start();
        pair.finish();
        pair.assert_lives();
    });
}

#[test]
fn another_uuid_is_refused() {
    with_each("another_uuid_is_refused", |qemu| {
        let source = Guest::start(qemu, "source", &Options::default());
        let uuid = Some("5ea1a9e0-0000-4000-8000-000000000002");
        let options = Options { uuid, ..Options::default() };
        let target = Guest::start(qemu, "target", &options.target());
        let pair = Pair { source, target };
        pair.source.prepare(&["validate-uuid"], 0);
        pair.start();
        let said = pair.target.wait_target_failed();
        assert!(said.contains("UUID"), "{said}");
    });
}
