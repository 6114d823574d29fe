//! Migrations that succeed.

use nix::sys::signal::Signal;
use sealane_qemu::{Guest, Options, Proxy, contains, installed, kvm_is_here, with_each};
use serde_json::Value;

use crate::rig::{Between, Case, Rig};
use crate::tunnel::Trust;

const ENGINES: [&str; 2] = ["uring", "syscalls"];
/// What stands in the guest's memory, and nowhere on the wire.
const CANARY: &[u8; 64] = b"in a coal mine it would sing; on the wire nobody may ever see it";
/// Less than what a guest of 32 MiB has for content.
const CONTENT_BYTES: usize = 20 << 20;
/// How QEMU's stream begins: its magic and its version.
const QEMU_MAGIC: &[u8] = b"QEVM\0\0\0\x03";

#[test]
fn memory_crosses_and_the_secret_is_gone_at_both_ends() {
    with_each("memory_crosses_and_the_secret_is_gone_at_both_ends", |qemu| {
        for engine in ENGINES {
            let case = Case { tunnels: vec!["--engine", engine], ..Case::memory(qemu) };
            let mut rig = Rig::new(&case);
            rig.start();
            let info = rig.finish();
            assert!(info.transferred_bytes > 90 << 20, "{info:?}");
            rig.assert_memory_arrived();
            let left = ["key", "key2"].map(|key| rig.place.file(key).exists());
            assert_eq!(left, [false, false], "the one-time secret");
        }
    });
}

#[test]
fn a_live_guest_moves_without_losing_a_page() {
    with_each("a_live_guest_moves_without_losing_a_page", |qemu| {
        for engine in ENGINES {
            let case = Case { tunnels: vec!["--engine", engine], ..Case::live(qemu) };
            let mut rig = Rig::new(&case);
            rig.start();
            rig.finish();
            rig.assert_lives_at_target();
        }
    });
}

#[test]
fn multifd_channels_are_streams_of_one_tunnel() {
    with_each("multifd_channels_are_streams_of_one_tunnel", |qemu| {
        for (channels, engine) in [(2, "uring"), (8, "uring"), (2, "syscalls")] {
            let tunnels = vec!["--json", "--engine", engine];
            let case = Case { channels, capabilities: &["multifd"], tunnels, ..Case::memory(qemu) };
            let mut rig = Rig::new(&case);
            rig.start();
            rig.wait_completed();
            let (near, far) = rig.ends();
            assert_eq!((near.code, far.code), (Some(0), Some(0)), "{near:#?}\n{far:#?}");
            rig.assert_memory_arrived();
            for ended in [near, far] {
                let events = ended.events();
                let named = |name: &'static str| events.iter().filter(move |e| e["event"] == name);
                for name in ["listening", "connected", "done"] {
                    assert!(named(name).count() > 0, "{name}: {ended:#?}");
                }
                assert_eq!(events.last().unwrap()["event"], "done", "{ended:#?}");
                let mut numbers: Vec<_> =
                    named("channel").filter_map(|event| event["channel"].as_u64()).collect();
                numbers.sort_unstable();
                // The main channel is one more.
                assert_eq!(numbers, (1..=u64::from(channels) + 1).collect::<Vec<_>>());
            }
        }
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
            let mut rig = Rig::new(&Case { capabilities, ..Case::live(qemu) });
            rig.start_slowly();
            rig.source.start_postcopy();
            let info = rig.finish();
            let asked = info.all["ram"]["postcopy-requests"].as_u64();
            assert!(asked > Some(0), "no page was fetched: {info:?}");
            rig.assert_lives_at_target();
        }
    });
}

#[test]
fn the_targets_tunnel_connects_to_the_sources_by_certificates() {
    with_each("the_targets_tunnel_connects_to_the_sources_by_certificates", |qemu| {
        let by_certificates =
            Case { trust: Trust::Certificates, target_dials: true, ..Case::live(qemu) };
        let case = Case { channels: 4, capabilities: &["multifd"], ..by_certificates.clone() };
        let mut rig = Rig::new(&case);
        rig.start();
        rig.finish();
        rig.assert_lives_at_target();

        // The last way is the one with a channel of its own for pages that are asked for.
        if let Some(error) = qemu.refuses_postcopy() {
            println!("SKIP: postcopy where the target's tunnel connects: {error}");
            return;
        }
        let capabilities = qemu.postcopy_ways().pop().unwrap();
        let mut rig = Rig::new(&Case { capabilities, ..by_certificates });
        rig.start_slowly();
        rig.source.start_postcopy();
        rig.finish();
        rig.assert_lives_at_target();
        assert!(rig.place.file("pki/source.example/client-key.pem").exists());
    });
}

#[test]
fn memory_crosses_by_a_secret_and_certificates_together() {
    with_each("memory_crosses_by_a_secret_and_certificates_together", |qemu| {
        let mut rig = Rig::new(&Case { trust: Trust::Both, ..Case::memory(qemu) });
        rig.start();
        rig.finish();
        rig.assert_memory_arrived();
        let left = ["key", "key2", "pki/target.example/server-key.pem"];
        let left = left.map(|file| rig.place.file(file).exists());
        assert_eq!(left, [false, false, true], "the one-time secret goes, certificates stay");
    });
}

#[test]
fn a_return_path_and_other_capabilities_change_nothing() {
    with_each("a_return_path_and_other_capabilities_change_nothing", |qemu| {
        let mut rig = Rig::new(&Case { capabilities: &["return-path"], ..Case::memory(qemu) });
        rig.start();
        rig.finish();
        rig.assert_memory_arrived();

        let capabilities = &["events", "validate-uuid", "auto-converge"];
        let mut rig = Rig::new(&Case { capabilities, ..Case::live(qemu) });
        rig.start();
        rig.finish();
        rig.assert_lives_at_target();
        for end in [&rig.source, &rig.target] {
            let events = end.take_events();
            let completed = |event: &Value| event["data"]["status"] == "completed";
            assert!(events.iter().any(completed), "{}: {events:?}", end.name());
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
        let mut rig = Rig::new(&Case { options, ..Case::memory(qemu) });
        rig.start();
        rig.finish();
        rig.assert_lives_at_target();
    });
}

#[test]
fn a_guest_moves_to_a_newer_qemu() {
    let installed = installed();
    let (Some(old), Some(new)) = (installed.first(), installed.get(1)) else {
        println!("SKIP: a_guest_moves_to_a_newer_qemu: needs two versions of QEMU");
        return;
    };
    let machine = format!("pc-i440fx-{}", old.name);
    let options = Options { machine: machine.leak(), ..Options::live() };
    let mut rig = Rig::new(&Case { options, target_qemu: Some(new), ..Case::memory(old) });
    rig.start();
    rig.finish();
    rig.assert_lives_at_target();
}

#[test]
fn tunnels_that_are_kept_serve_two_migrations() {
    with_each("tunnels_that_are_kept_serve_two_migrations", |qemu| {
        let tunnels = vec!["--json", "--keep", "--keep-secret"];
        let case = Case { tunnels, ..Case::memory(qemu) };
        let mut rig = Rig::new(&case);
        for turn in 0..2 {
            if turn > 0 {
                // Both ends wait already; the secret of the day counts.
                for key in ["key", "key2"] {
                    std::fs::remove_file(rig.place.file(key)).unwrap();
                }
                rig.place.new_secrets();
                rig.replace_guests(&case);
            }
            rig.start();
            rig.wait_completed();
            rig.assert_memory_arrived();
            for tunnel in [&mut rig.near, &mut rig.far] {
                tunnel.wait_event("done");
            }
        }
        for (tunnel, key) in [(&mut rig.near, "key"), (&mut rig.far, "key2")] {
            assert!(tunnel.is_running() && rig.place.file(key).exists());
        }
        rig.near.signal(Signal::SIGINT);
        let near = rig.near.end();
        assert_eq!(near.code, Some(4), "{near:#?}");
        // It may have ended with the source, or wait for another one.
        rig.far.signal(Signal::SIGINT);
        let far = rig.far.end();
        assert!(matches!(far.code, Some(1 | 4)), "{far:#?}");
    });
}

#[test]
fn nothing_of_the_guest_can_be_read_on_the_wire() {
    with_each("nothing_of_the_guest_can_be_read_on_the_wire", |qemu| {
        let options = Options { mib: 32, ..Options::default() };
        let case = Case { options, proxy: Between::Recorder, ..Case::memory(qemu) };
        let mut rig = Rig::new(&case);
        write_canary(&rig.source);
        rig.start();
        rig.finish();
        rig.assert_memory_arrived();
        let records = rig.proxy.as_ref().unwrap().wait_records(CONTENT_BYTES);
        assert_readable(&records, false);

        // The same without a tunnel: what is sought would be found.
        let source = Guest::start(qemu, "plain source", &case.options);
        let target = Guest::start(qemu, "plain target", &case.options.target());
        source.memory().fill(1);
        write_canary(&source);
        target.listen("tcp:127.0.0.1:0");
        let proxy = Proxy::recording(&format!("127.0.0.1:{}", target.port()));
        source.migrate(&format!("tcp:{}", proxy.address));
        source.wait_status("completed");
        target.wait_status("completed");
        let records = proxy.wait_records(CONTENT_BYTES);
        assert_readable(&records, true);
    });
}

fn write_canary(guest: &Guest) {
    for mib in [1, 7, 20, 31] {
        guest.memory().write((mib << 20) + 100, CANARY);
    }
}

/// Whether canary and magic occur: neither, or both where nothing is sealed.
fn assert_readable(records: &[Vec<u8>], plain: bool) {
    for needle in [&CANARY[..], QEMU_MAGIC] {
        let found = records.iter().any(|record| contains(record, needle));
        assert_eq!(found, plain, "{}", String::from_utf8_lossy(needle));
    }
    // The four letters alone occur in that much noise one time in a hundred: look at the
    // beginnings, where they would stand.
    let starts_readable = |record: &Vec<u8>| contains(&record[..record.len().min(4096)], b"QEVM");
    assert_eq!(records.iter().any(starts_readable), plain);
}
