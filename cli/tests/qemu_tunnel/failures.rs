//! Migrations that are cancelled, cut, refused or tampered with: the source's guest runs on, and
//! nobody waits.

use std::fs;

use nix::sys::signal::Signal;
use sealane_qemu::{Guest, Options, with_each};
use serde_json::json;

use crate::rig::{Between, Case, Rig};
use crate::tunnel::Place;

#[test]
fn a_cancelled_migration_can_be_repeated_over_new_tunnels() {
    with_each("a_cancelled_migration_can_be_repeated_over_new_tunnels", |qemu| {
        let case = Case::disturbed(qemu);
        let mut rig = Rig::new(&case);
        rig.start_slowly();
        rig.source.cancel();
        rig.source.wait_status("cancelled");
        rig.target.wait_target_failed();
        rig.assert_lives_at_source();
        let (near, far) = rig.ends();
        assert_eq!((near.code, far.code), (Some(1), Some(1)), "{near:#?}\n{far:#?}");
        let mut again = Rig::with_source(&case, rig.source);
        again.start();
        again.finish();
        again.assert_lives_at_target();
    });
}

#[test]
fn a_killed_target_fails_the_source_and_both_tunnels() {
    with_each("a_killed_target_fails_the_source_and_both_tunnels", |qemu| {
        for capabilities in [&[][..], &["multifd"]] {
            let mut case = Case { channels: 2, capabilities, ..Case::disturbed(qemu) };
            case.tunnels.push("--json");
            let mut rig = Rig::new(&case);
            rig.start_slowly();
            rig.target.kill();
            rig.source.wait_status("failed");
            rig.assert_lives_at_source();
            let (near, far) = rig.assert_both_tunnels_fail();
            for ended in [near, far] {
                let last = ended.events().pop().unwrap_or_default();
                assert!(last["event"] == "error" && last["exit"] == 1, "{ended:#?}");
                assert!(last["message"].is_string(), "{ended:#?}");
            }
        }
    });
}

#[test]
fn a_killed_source_fails_the_target_and_both_tunnels() {
    with_each("a_killed_source_fails_the_target_and_both_tunnels", |qemu| {
        for capabilities in [&[][..], &["multifd"]] {
            let case = Case { channels: 2, capabilities, ..Case::disturbed(qemu) };
            let mut rig = Rig::new(&case);
            rig.start_slowly();
            rig.source.kill();
            rig.target.wait_target_failed();
            rig.assert_both_tunnels_fail();
            let kept = ["key", "key2"].map(|key| rig.place.file(key).exists());
            assert_eq!(kept, [true, true], "a failed attempt may be repeated");
        }
    });
}

#[test]
fn a_killed_tunnel_fails_both_guests_and_the_other_tunnel() {
    with_each("a_killed_tunnel_fails_both_guests_and_the_other_tunnel", |qemu| {
        for engine in ["uring", "syscalls"] {
            for kill_near in [true, false] {
                let mut case = Case::disturbed(qemu);
                case.tunnels.extend(["--engine", engine]);
                let mut rig = Rig::new(&case);
                rig.start_slowly();
                let (killed, other) = match kill_near {
                    true => (&mut rig.near, &mut rig.far),
                    false => (&mut rig.far, &mut rig.near),
                };
                killed.signal(Signal::SIGKILL);
                let other = other.end();
                assert_eq!(other.code, Some(1), "{other:#?}");
                rig.source.wait_status("failed");
                rig.target.wait_target_failed();
                rig.assert_lives_at_source();
            }
        }
    });
}

#[test]
fn postcopy_fails_with_its_source_and_goes_on_through_new_tunnels() {
    let name = "postcopy_fails_with_its_source_and_goes_on_through_new_tunnels";
    with_each(name, |qemu| {
        if let Some(error) = qemu.refuses_postcopy() {
            println!("SKIP: {name}: {error}");
            return;
        }
        let case = Case { capabilities: &["postcopy-ram"], ..Case::disturbed(qemu) };
        let mut rig = Rig::new(&case);
        rig.start_postcopy_slowly();
        rig.source.kill();
        rig.assert_both_tunnels_fail();
        assert!(rig.place.file("key").exists() && rig.place.file("key2").exists());

        let mut rig = Rig::new(&case);
        rig.start_postcopy_slowly();
        rig.near.signal(Signal::SIGKILL);
        rig.near.end();
        assert_eq!(rig.far.end().code, Some(1));
        for guest in [&rig.source, &rig.target] {
            guest.wait_for("postcopy-paused", |guest| {
                (guest.info().status == "postcopy-paused").then_some(())
            });
        }
        rig.renew_tunnels(&case);
        rig.target.execute("migrate-recover", json!({"uri": rig.place.target_uri()}));
        rig.source.set_parameters(json!({"max-postcopy-bandwidth": 0}));
        rig.source.execute("migrate", json!({"uri": rig.place.source_uri(), "resume": true}));
        rig.source.wait_for("an end of the pause", |source| {
            (source.info().status != "postcopy-paused").then_some(())
        });
        rig.finish();
        rig.assert_lives_at_target();
    });
}

#[test]
fn a_host_that_falls_silent_is_found_and_a_signal_cancels_both() {
    with_each("a_host_that_falls_silent_is_found_and_a_signal_cancels_both", |qemu| {
        let mut rig = Rig::new(&Case { tunnels: vec!["--peer-timeout", "2"], ..Case::live(qemu) });
        rig.start_slowly();
        rig.far.signal(Signal::SIGSTOP);
        let near = rig.near.end();
        assert_eq!(near.code, Some(1), "{near:#?}");
        assert!(near.says("nothing from the other end for 2 s"), "{near:#?}");
        rig.source.wait_status("failed");
        rig.assert_lives_at_source();
        rig.far.signal(Signal::SIGCONT);
        rig.target.wait_target_failed();
        assert_eq!(rig.far.end().code, Some(1));

        let mut rig = Rig::new(&Case::disturbed(qemu));
        rig.start_slowly();
        rig.near.signal(Signal::SIGTERM);
        rig.source.wait_status("failed");
        rig.target.wait_target_failed();
        rig.assert_lives_at_source();
        let (near, far) = rig.ends();
        assert_eq!((near.code, far.code), (Some(4), Some(4)), "{near:#?}\n{far:#?}");
        assert!(!rig.place.file("source").exists(), "its socket");
    });
}

#[test]
fn tunnels_that_are_kept_outlive_a_migration_that_failed() {
    with_each("tunnels_that_are_kept_outlive_a_migration_that_failed", |qemu| {
        let tunnels = vec!["--json", "--keep", "--keep-secret", "--peer-timeout", "600"];
        let case = Case { tunnels, ..Case::live(qemu) };
        let mut rig = Rig::new(&case);
        rig.start_slowly();
        rig.target.kill();
        rig.source.wait_status("failed");
        for tunnel in [&mut rig.near, &mut rig.far] {
            tunnel.wait_event("error");
        }
        rig.replace_guests(&case);
        rig.start();
        rig.wait_completed();
        rig.assert_lives_at_target();
        for tunnel in [&mut rig.near, &mut rig.far] {
            tunnel.wait_event("done");
        }
        // With its other end gone, a tunnel that is kept fails the migration and not itself.
        rig.far.signal(Signal::SIGKILL);
        rig.far.end();
        rig.replace_guests(&case);
        rig.start();
        rig.source.wait_status("failed");
        rig.near.wait_event("error");
        assert!(rig.near.is_running());
    });
}

#[test]
fn a_changed_byte_is_found_and_never_reaches_the_target() {
    with_each("a_changed_byte_is_found_and_never_reaches_the_target", |qemu| {
        for engine in ["uring", "syscalls"] {
            let mut case = Case { proxy: Between::Flip { at: 9 << 20 }, ..Case::disturbed(qemu) };
            case.options = Options::default();
            case.tunnels.extend(["--engine", engine]);
            let mut rig = Rig::new(&case);
            rig.start();
            rig.source.wait_status("failed");
            rig.target.wait_target_failed();
            rig.assert_both_tunnels_fail();
            rig.target.memory().assert_nothing_but(rig.source.memory());
        }
    });
}

#[test]
fn a_wrong_secret_exits_3_and_the_target_serves_the_right_one() {
    with_each("a_wrong_secret_exits_3_and_the_target_serves_the_right_one", |qemu| {
        let place = Place::new();
        place.new_secret("wrong");
        let source = Guest::start(qemu, "source", &Options::default());
        let target = Guest::start(qemu, "target", &Options::default().target());
        source.memory().fill(1);
        target.listen(&place.target_uri());
        let (mut far, address) = place.far(&[]);
        let wrong = place.near(&address, "wrong", &[]).end();
        assert_eq!(wrong.code, Some(3), "{wrong:#?}");
        assert!(!wrong.says("listening"), "QEMU might have connected: {wrong:#?}");
        assert!(place.file("wrong").exists() && far.is_running());

        let mut near = place.near(&address, "key", &[]);
        near.address();
        source.migrate(&place.source_uri());
        source.wait_status("completed");
        target.wait_status("completed");
        let (near, far) = (near.end(), far.end());
        assert_eq!((near.code, far.code), (Some(0), Some(0)), "{near:#?}\n{far:#?}");
        source.memory().assert_equal(target.memory());
    });
}

#[test]
fn a_socket_that_is_not_there_is_named_at_both_ends() {
    with_each("a_socket_that_is_not_there_is_named_at_both_ends", |qemu| {
        let mut rig = Rig::new(&Case::disturbed(qemu));
        let socket = rig.place.file("target");
        fs::remove_file(&socket).unwrap();
        rig.start();
        rig.source.wait_status("failed");
        rig.assert_lives_at_source();
        let (near, far) = rig.assert_both_tunnels_fail();
        for ended in [near, far] {
            assert!(ended.says(socket.to_str().unwrap()), "{ended:#?}");
        }
    });
}
