//! Ends that do not fit together: each of them says why, and a target listens on.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use sealane_qemu::Guest;
use serde_json::json;

use crate::pair::{Case, Pair, new_secret, qemu, start_source, use_secret, write_secret};

/// How one end protects its migration.
#[derive(Clone, Copy, PartialEq, Debug)]
enum How<'a> {
    Plain,
    Tls,
    Sealane(&'a str),
}

fn protect(guest: &Guest, end: &str, how: How<'_>) {
    match how {
        How::Plain => {}
        How::Sealane(secret) => use_secret(guest, end, secret).unwrap(),
        How::Tls => {
            let key = guest.path("keys.psk");
            write_secret(&key, &format!("qemu:{}\n", new_secret()));
            guest.execute(
                "object-add",
                json!({
                    "qom-type": "tls-creds-psk", "id": "tls", "endpoint": end,
                    "dir": key.parent().unwrap(),
                }),
            );
            guest.set_parameters(json!({"tls-creds": "tls", "tls-hostname": "localhost"}));
        }
    }
}

/// What the source says, once the target has said `wanted`.
fn told(source_has: How<'_>, target_has: How<'_>, wanted: &str) -> String {
    let case = Case::live();
    let source = start_source(&case);
    let target = Guest::start(&qemu(), "target", &case.options.target());
    protect(&source, "client", source_has);
    protect(&target, "server", target_has);
    target.listen("tcp:127.0.0.1:0");
    source.migrate(&format!("tcp:127.0.0.1:{}", target.port()));
    let info = source.wait_for("the source to fail", |source| {
        let info = source.info();
        (info.status == "failed").then_some(info)
    });
    let error = info.all["error-desc"].as_str().unwrap_or_default().to_owned();
    target.wait_for(&format!("the target to say {wanted}"), |target| {
        target.stderr().contains(wanted).then_some(())
    });
    assert!(source.is_running());
    error + &source.stderr()
}

#[test]
fn a_wrong_secret_is_told_and_the_target_serves_the_right_one() {
    let (right, wrong) = (new_secret(), new_secret());
    let pair = Pair::new(&Case::live());
    for (end, name, secret) in [(&pair.source, "client", &wrong), (&pair.target, "server", &right)]
    {
        end.execute("object-del", json!({"id": "s0"}));
        use_secret(end, name, secret).unwrap();
    }
    let uri = pair.listen();
    pair.source.migrate(&uri);
    let info = pair.source.wait_status("failed");
    let error = info.all["error-desc"].as_str().unwrap_or_default();
    assert!(error.contains("same secret"), "{error}");
    pair.target.wait_for("the target to say so", |target| {
        target.stderr().contains("same secret").then_some(())
    });
    pair.assert_lives_at_source();
    pair.source.execute("object-del", json!({"id": "s0"}));
    use_secret(&pair.source, "client", &right).unwrap();
    pair.source.migrate(&uri);
    pair.source.wait_status("completed");
    pair.target.wait_status("completed");
    pair.assert_lives_at_target();
}

#[test]
fn one_end_plain_or_with_tls_is_told_at_both() {
    let secret = new_secret();
    let sealed = How::Sealane(&secret);
    let source = told(How::Plain, sealed, "plain migration of QEMU's");
    assert!(!source.is_empty());
    let source = told(How::Tls, sealed, "it speaks TLS, not Sealane");
    assert!(source.contains("TLS"), "{source}");
    let source = told(sealed, How::Plain, "Not a migration stream");
    assert!(source.contains("Sealane") && source.contains("both ends"), "{source}");
    let source = told(sealed, How::Tls, "TLS");
    assert!(source.contains("Sealane"), "{source}");
}

#[test]
fn channels_that_the_target_does_not_expect_are_told() {
    for (case, at_target, words) in [
        (Case::live().with(&["multifd"]), None, "neither multifd nor postcopy-preempt"),
        (Case { channels: 8, ..Case::live().with(&["multifd"]) }, Some(2), "same multifd-channels"),
    ] {
        let pair = Pair::new(&case);
        match at_target {
            Some(channels) => pair.target.set_parameters(json!({"multifd-channels": channels})),
            None => pair.target.clear_capabilities(case.capabilities),
        }
        pair.start();
        let said = pair.target.wait_for("the target to say so", |target| {
            // Asked before its words are read: it may say them and end in between.
            let ended = target.ended().is_some();
            let said = target.stderr();
            // Or QEMU itself: of what comes when all channels are there, or of its number.
            let told = [words, "Extra incoming", "multifd: received"];
            let told = told.iter().any(|told| said.contains(told));
            (told || ended).then_some((told, said))
        });
        // QEMU 10.0 takes the channel whose number is that of its channels for one of them
        // (multifd_recv_initial_packet compares with >) and reads behind its array, with plain
        // channels too: where that one is among the first, the target dies without a word.
        let by_signal = pair.target.ended().and_then(|status| status.signal());
        let is_qemus = at_target.is_some() && by_signal == Some(Signal::SIGSEGV as i32);
        assert!(said.0 || is_qemus, "{said:?} {by_signal:?}");
        assert!(!said.1.contains("Assertion"), "{said:?}");
        pair.source.cancel();
        pair.source.assert_runs_on();
    }
}

#[test]
fn credentials_that_cannot_serve_are_refused_with_the_remedy() {
    let case = Case::memory();
    let source = start_source(&case);
    let refused = |object: serde_json::Value| {
        let mut arguments = json!({"qom-type": "sealane-creds", "id": "bad"});
        arguments.as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
        source.try_execute("object-add", arguments).unwrap_err()
    };
    assert!(refused(json!({})).contains("secret-file"));
    let missing = refused(json!({"secret-file": "/nowhere/secret"}));
    assert!(missing.contains("/nowhere/secret"), "{missing}");
    let file = source.path("open");
    std::fs::write(&file, new_secret()).unwrap();
    let open = refused(json!({"secret-file": file}));
    assert!(open.contains("chmod"), "{open}");
    write_secret(&file, &new_secret());
    let engine = refused(json!({"secret-file": file, "engine": "steam"}));
    assert!(engine.contains("steam") && engine.contains("syscalls"), "{engine}");

    // The end that connects is a client, and what it connects is a socket.
    use_secret(&source, "server", &new_secret()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let uri = format!("tcp:127.0.0.1:{port}");
    source.migrate(&uri);
    assert!(failure(&source).contains("endpoint=client"));
    source.execute("object-del", json!({"id": "s0"}));
    use_secret(&source, "client", &new_secret()).unwrap();
    source.migrate("exec:cat >/dev/null");
    assert!(failure(&source).contains("stream socket"));
}

fn failure(source: &Guest) -> String {
    let info = source.wait_status("failed");
    info.all["error-desc"].as_str().unwrap_or_default().to_owned()
}
