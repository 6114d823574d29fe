//! Two hosts that know each other by certificates, alone and with a secret.

use std::path::Path;

use sealane_qemu::{Guest, Options};
use serde_json::{Value, json};

use crate::confined::SANDBOX;
use crate::failures::a_paused_postcopy_goes_on_with;
use crate::pair::{Case, Pair, new_secret, qemu, start_source, write_secret};
use crate::pki::{Leaf, Pki};

const SOURCE: &str = "source.example";
const TARGET: &str = "target.example";
const OTHER: &str = "other.example";

/// What a host shows, and whom it expects.
fn by(pki: &Pki, host: &str, peer: &str) -> Value {
    json!({"dir": pki.host(host), "peer": peer})
}

/// The same, and a secret.
fn by_both(pki: &Pki, guest: &Guest, host: &str, peer: &str, secret: &str) -> Value {
    let file = guest.path("secret");
    write_secret(&file, secret);
    let mut properties = by(pki, host, peer);
    properties["secret-file"] = json!(file);
    properties
}

fn give(guest: &Guest, end: &str, properties: &Value) {
    guest.try_use_sealane(end, properties).unwrap_or_else(|error| guest.fail(&error));
}

/// The two expect each other.
fn pair(pki: &Pki, case: &Case) -> Pair {
    let pair = Pair::without_trust(case, start_source(case));
    give(&pair.source, "client", &by(pki, SOURCE, TARGET));
    give(&pair.target, "server", &by(pki, TARGET, SOURCE));
    pair
}

#[test]
fn a_live_guest_moves_by_certificates() {
    let pki = Pki::new();
    for capabilities in [&[][..], &["multifd"]] {
        let pair = pair(&pki, &Case::live().with(capabilities));
        pair.start();
        pair.finish();
        pair.assert_lives_at_target();
    }
}

#[test]
fn a_guest_moves_by_certificates_under_every_option_of_the_sandbox() {
    let options = Options { more: SANDBOX, ..Options::live() };
    let pair = pair(&Pki::new(), &Case { options, ..Case::live().with(&["multifd"]) });
    pair.start();
    pair.finish();
    pair.assert_lives_at_target();
}

#[test]
fn a_live_guest_moves_by_certificates_and_a_secret() {
    let (pki, secret) = (Pki::new(), new_secret());
    let case = Case::live().with(&["multifd"]);
    let pair = Pair::without_trust(&case, start_source(&case));
    give(&pair.source, "client", &by_both(&pki, &pair.source, SOURCE, TARGET, &secret));
    give(&pair.target, "server", &by_both(&pki, &pair.target, TARGET, SOURCE, &secret));
    pair.start();
    pair.finish();
    pair.assert_lives_at_target();
}

#[test]
fn a_paused_postcopy_of_certificates_goes_on() {
    let pki = Pki::new();
    a_paused_postcopy_goes_on_with("a_paused_postcopy_of_certificates_goes_on", |case| {
        pair(&pki, case)
    });
}

/// Certificates are not spent: the same object serves again.
#[test]
fn a_migration_that_was_cancelled_and_one_that_completed_leave_certificates_as_they_are() {
    let pki = Pki::new();
    let case = Case::live();
    let first = pair(&pki, &case);
    first.start_slowly();
    first.source.cancel();
    first.source.wait_status("cancelled");
    first.target.wait_target_failed();
    first.assert_lives_at_source();
    let target = |name| {
        let target = Guest::start(&qemu(), name, &case.options.target());
        target.prepare(case.capabilities, case.channels);
        give(&target, "server", &by(&pki, TARGET, SOURCE));
        target
    };
    let second = Pair { source: first.source, target: target("another target") };
    second.source.prepare(case.capabilities, case.channels);
    second.start();
    second.finish_after("closed the connection");
    second.assert_lives_at_target();
    // As where the management takes the guest back and sends it again.
    second.source.cont();
    let third = Pair { source: second.source, target: target("a third target") };
    third.source.wait_counting();
    third.start();
    third.finish_after("closed the connection");
    third.assert_lives_at_target();
}

/// Another host of the same CA is refused, whichever end it is at; the guest lives on.
#[test]
fn another_host_of_the_same_ca_is_told_at_both_ends() {
    let pki = Pki::new();
    let case = Case::live();
    for (source, target, source_says, target_says) in [
        // Another host sends.
        (by(&pki, OTHER, TARGET), by(&pki, TARGET, SOURCE), "refused this end", OTHER),
        // Another host answers.
        (by(&pki, SOURCE, TARGET), by(&pki, OTHER, SOURCE), OTHER, "refused this end"),
    ] {
        let pair = Pair::without_trust(&case, start_source(&case));
        give(&pair.source, "client", &source);
        give(&pair.target, "server", &target);
        let uri = pair.listen();
        pair.source.migrate(&uri);
        let info = pair.source.wait_status("failed");
        let error = info.all["error-desc"].as_str().unwrap_or_default();
        assert!(error.contains(source_says), "{error}");
        pair.target.wait_for("the target to say so", |target| {
            target.stderr().contains(target_says).then_some(())
        });
        pair.assert_lives_at_source();
        // It listens on, for the host that is expected.
        if source_says.contains("refused") {
            pair.source.execute("object-del", json!({"id": "s0"}));
            give(&pair.source, "client", &by(&pki, SOURCE, TARGET));
            pair.source.migrate(&uri);
            pair.source.wait_status("completed");
            pair.target.wait_status("completed");
            pair.assert_lives_at_target();
        }
    }
}

#[test]
fn a_secret_on_one_side_alone_is_told_at_both_ends() {
    let pki = Pki::new();
    let case = Case::live();
    let pair = Pair::without_trust(&case, start_source(&case));
    let secret = new_secret();
    give(&pair.source, "client", &by_both(&pki, &pair.source, SOURCE, TARGET, &secret));
    give(&pair.target, "server", &by(&pki, TARGET, SOURCE));
    pair.start();
    let info = pair.source.wait_status("failed");
    let error = info.all["error-desc"].as_str().unwrap_or_default();
    assert!(error.contains("secret"), "{error}");
    pair.target.wait_for("the target to say so", |target| {
        target.stderr().contains("secret").then_some(())
    });
    pair.assert_lives_at_source();
}

/// What cannot serve is told when the object is made.
#[test]
fn certificates_that_cannot_serve_are_refused_with_the_remedy() {
    let pki = Pki::new();
    let source = start_source(&Case::memory());
    let refused = |end: &str, properties: Value| {
        source.try_use_sealane(end, &properties).expect_err("no object")
    };
    let told = |error: String, words: &[&str]| {
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    };
    let host = pki.host(SOURCE);
    told(refused("client", json!({})), &["secret-file", "dir and peer"]);
    told(refused("client", json!({"dir": host})), &["peer is not", "which one", "sha256:"]);
    told(refused("client", json!({"peer": TARGET})), &["dir is not", "/etc/pki/qemu", TARGET]);
    told(refused("client", json!({"dir": "/nowhere", "peer": TARGET})), &["/nowhere"]);
    told(refused("client", json!({"dir": host, "peer": "host:1"})), &["host:1"]);
    // One end alone, as a host has it that only sends.
    let dials = pki.host("dials.example");
    remove(&dials, "server");
    told(refused("server", json!({"dir": dials, "peer": SOURCE})), &["server-cert.pem"]);
    let expired = pki.host_of("expired", &Leaf { valid: (-200, -100), ..Leaf::named(SOURCE) });
    told(refused("client", json!({"dir": expired, "peer": TARGET})), &["notAfter", "past"]);
    let file = source.path("secret");
    told(
        refused("client", json!({"dir": host, "peer": TARGET, "secret-file": file})),
        &["secret", "No such file"],
    );
    give(&source, "client", &json!({"dir": dials, "peer": TARGET}));
}

fn remove(host: &Path, end: &str) {
    for file in ["cert", "key"] {
        std::fs::remove_file(host.join(format!("{end}-{file}.pem"))).unwrap();
    }
}
