//! Migrations that are cancelled, cut, refused or tampered with: the source's guest runs on, and
//! nobody waits.

use std::io::Read;
use std::time::Instant;

use sealane_qemu::{Guest, Proxy};
use serde_json::json;

use crate::pair::{Case, Pair, new_secret, qemu, use_secret};

#[test]
fn a_cancelled_migration_can_be_repeated_with_the_same_credentials() {
    for capabilities in [&[][..], &["multifd"]] {
        let case = Case::live().with(capabilities);
        let secret = new_secret();
        let pair = Pair::new(&case);
        use_again(&pair.source, "client", &secret);
        use_again(&pair.target, "server", &secret);
        pair.start_slowly();
        pair.source.cancel();
        pair.source.wait_status("cancelled");
        pair.target.wait_target_failed();
        pair.assert_lives_at_source();
        // The object at the source has been in use already.
        let target = Guest::start(&qemu(), "another target", &case.options.target());
        target.prepare(case.capabilities, case.channels);
        use_secret(&target, "server", &secret).unwrap();
        let again = Pair { source: pair.source, target };
        again.source.prepare(case.capabilities, case.channels);
        again.start();
        // Of the attempt that was cancelled.
        again.finish_after("closed the connection");
        again.assert_lives_at_target();
    }
}

fn use_again(guest: &Guest, end: &str, secret: &str) {
    guest.execute("object-del", json!({"id": "s0"}));
    use_secret(guest, end, secret).unwrap();
}

#[test]
fn a_killed_target_fails_the_source() {
    for capabilities in [&[][..], &["multifd"], &["return-path"]] {
        let pair = Pair::new(&Case::live().with(capabilities));
        pair.start_slowly();
        pair.target.kill();
        pair.source.wait_status("failed");
        pair.assert_lives_at_source();
    }
}

#[test]
fn a_killed_source_fails_the_target() {
    for capabilities in [&[][..], &["multifd"]] {
        let pair = Pair::new(&Case::live().with(capabilities));
        pair.start_slowly();
        pair.source.kill();
        let said = pair.target.wait_target_failed();
        assert!(said.contains("Sealane") && said.contains("closed the connection"), "{said}");
    }
}

#[test]
fn a_changed_byte_is_found_and_never_reaches_the_target() {
    for capabilities in [&[][..], &["multifd"]] {
        let pair = Pair::new(&Case::memory().with(capabilities));
        let uri = pair.listen();
        let proxy = Proxy::flipping(uri.strip_prefix("tcp:").unwrap(), 9 << 20);
        pair.source.migrate(&format!("tcp:{}", proxy.address));
        pair.source.wait_status("failed");
        let said = pair.target.wait_target_failed();
        assert!(said.contains("did not verify"), "{said}");
        pair.target.memory().assert_nothing_but(pair.source.memory());
    }
}

#[test]
fn a_peer_that_hangs_is_yanked_or_cancelled() {
    for (capabilities, yanks) in [(&[][..], &[true, false][..]), (&["multifd"], &[true])] {
        for &yank in yanks {
            let pair = Pair::new(&Case::live().with(capabilities));
            let uri = pair.listen();
            let proxy = Proxy::hanging(uri.strip_prefix("tcp:").unwrap(), 9 << 20);
            pair.source.slow_down(64 << 20); // or the last round waits with QEMU's lock
            pair.source.migrate(&format!("tcp:{}", proxy.address));
            wait_stuck(&pair.source);
            if yank {
                let instances = json!({"instances": [{"type": "migration"}]});
                for end in [&pair.source, &pair.target] {
                    end.execute("yank", instances.clone());
                }
                pair.source.wait_status("failed");
                pair.target.wait_target_failed();
            } else {
                pair.source.cancel();
                pair.source.wait_status("cancelled");
            }
            pair.assert_lives_at_source();
        }
    }
}

/// A handshake has a limit of its own, and a yank ends it sooner.
#[test]
fn a_peer_that_accepts_and_says_nothing_is_yanked_or_cancelled() {
    for yank in [true, false] {
        silent_peer(yank);
    }
}

fn silent_peer(yank: bool) {
    let pair = Pair::new(&Case::live());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", silent.local_addr().unwrap());
    pair.source.migrate(&uri);
    let (mut peer, _) = silent.accept().unwrap();
    // From its first bytes on there is something to yank.
    peer.read_exact(&mut [0; 112]).unwrap();
    if yank {
        pair.source.execute("yank", json!({"instances": [{"type": "migration"}]}));
        let info = pair.source.wait_status("failed");
        let error = info.all["error-desc"].as_str().unwrap_or_default();
        assert!(error.contains("cancelled"), "{error}");
    } else {
        pair.source.cancel();
        pair.source.wait_status("cancelled");
    }
    // Long before the handshake's own limit.
    let begin = Instant::now();
    pair.source.wait_for("the handshake to end", |source| {
        let yanks = source.execute("query-yank", json!({}));
        yanks
            .as_array()
            .is_some_and(|list| list.iter().all(|one| one["type"] != "migration"))
            .then_some(())
    });
    println!("the handshake ended after {:?}", begin.elapsed());
    drop(peer);
    pair.start();
    pair.finish_after("cancelled");
    pair.assert_lives_at_target();
}

/// Waits until the network takes nothing more.
fn wait_stuck(source: &Guest) {
    let mut before = 0;
    source.wait_for("a hang", |source| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let info = source.info();
        assert_eq!(info.status, "active", "{info:?}");
        let stuck = info.transferred_bytes == before && before > 0;
        before = info.transferred_bytes;
        stuck.then_some(())
    });
}

#[test]
fn a_paused_postcopy_goes_on() {
    a_paused_postcopy_goes_on_with("a_paused_postcopy_goes_on", Pair::new);
}

pub fn a_paused_postcopy_goes_on_with(test: &str, pair: impl Fn(&Case) -> Pair) {
    if let Some(error) = qemu().refuses_postcopy() {
        println!("SKIP: {test}: {error}");
        return;
    }
    for capabilities in [&["postcopy-ram"][..], &["postcopy-ram", "postcopy-preempt"]] {
        let pair = pair(&Case::live().with(capabilities));
        let uri = pair.listen();
        pair.start_postcopy_slowly(&uri);
        pair.source.execute("migrate-pause", json!({}));
        for guest in [&pair.source, &pair.target] {
            guest.wait_for("postcopy-paused", |guest| {
                (guest.info().status == "postcopy-paused").then_some(())
            });
        }
        pair.target.execute("migrate-recover", json!({"uri": "tcp:127.0.0.1:0"}));
        let uri = format!("tcp:127.0.0.1:{}", pair.target.port());
        pair.source.execute("migrate", json!({"uri": uri, "resume": true}));
        pair.source.set_parameters(json!({"max-postcopy-bandwidth": 0}));
        for guest in [&pair.source, &pair.target] {
            guest.wait_for("the recovered migration to complete", |guest| {
                (guest.info().status == "completed").then_some(())
            });
        }
        pair.assert_lives_at_target();
    }
}
