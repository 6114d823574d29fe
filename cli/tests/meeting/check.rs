//! `sealane check`.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::{Place, json};
use super::{
    Hosts, assert_crossed, assert_says, recv, run, send, source_secret, start, target_secret,
};

#[test]
fn both_ends_say_what_a_migration_would_use() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let source = format!("{} {}", source_secret(&place), hosts.source());
    let target = format!("{} {}", target_secret(&place), hosts.target());
    let far = start(&format!("check --listen 127.0.0.1:0 {target} --provider ring --json"));
    let to = far.address();
    let near = start(&format!(
        "check --connect {to} {source} --provider aws-lc --lanes 2 --engine syscalls"
    ));
    let (near, far) = (near.end(), far.end());
    assert_eq!((near.code(), far.code()), (0, 0), "{near:?} {far:?}");
    assert_eq!(near.error, "", "{near:?}");

    let lines: Vec<_> = near.out.lines().collect();
    let version = env!("CARGO_PKG_VERSION");
    for (name, parts) in [
        ("trust", vec!["secret", "certificate"]),
        ("version", vec![&format!("here {version}, there {version}")[..], "protocol 1"]),
        ("suite", vec!["AES-256-GCM"]),
        ("provider", vec!["here aws-lc-rs, there ring"]),
        ("engine", vec!["here syscalls, there uring"]),
        ("zero copy", vec!["here auto, there auto", "sends from here: 0 without a copy"]),
        ("lanes", vec!["2"]),
        ("frames", vec!["256 KiB"]),
        ("round trip", vec![" us"]),
        ("throughput", vec!["GB/s from here", "GB/s to here", "sealed"]),
    ] {
        let line = lines.iter().find(|line| line.starts_with(&format!("{name:<12} ")));
        let line = line.unwrap_or_else(|| panic!("{name}: {near:?}"));
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    let [line] = far.out.lines().collect::<Vec<_>>()[..] else { panic!("{far:?}") };
    let said = json(line);
    let is = |key: &str, value: Value| assert_eq!(said[key], value, "{key}: {said}");
    is("event", "check".into());
    is("role", "target".into());
    is("suite", "AES-256-GCM".into());
    is("protocol", 1.into());
    is("lanes", 2.into());
    is("frame_bytes", (256 << 10).into());
    for (end, provider, engine) in [("here", "ring", "uring"), ("there", "aws-lc-rs", "syscalls")] {
        let facts = &said[end];
        assert_eq!(facts["version"], version, "{said}");
        assert_eq!((&facts["provider"], &facts["engine"]), (&provider.into(), &engine.into()));
        assert!(facts["zero_copy"] == "auto" && facts["complaints"].is_array(), "{said}");
    }
    for rate in ["round_trip_us", "sent_bytes_per_s", "received_bytes_per_s"] {
        assert!(said[rate].as_u64() > Some(0), "{rate}: {said}");
    }
    for count in ["zero_copy_kept", "zero_copy_copied"] {
        assert!(said[count].is_u64(), "{count}: {said}");
    }
    // What doctor complains of at either end stands in both reports.
    for (end, complaint) in [("here", "there"), ("there", "here")] {
        for text in said[end]["complaints"].as_array().unwrap() {
            let line = format!("{complaint:<12} {}", text.as_str().unwrap());
            assert!(lines.contains(&&line[..]), "{line}: {near:?}");
        }
    }
    assert!(place.file("key").exists() && place.file("key2").exists(), "no guest moved");
}

#[test]
fn a_wrong_secret_exits_3_and_a_signal_ends_the_wait() {
    let place = Place::new();
    let far = start(&format!("check --listen 127.0.0.1:0 {}", target_secret(&place)));
    let to = far.address();
    assert_eq!(run(&format!("secret new {}", place.path("other"))).code(), 0);
    let wrong = format!("check --connect {to} --json --secret-file {}", place.path("other"));
    let ended = run(&wrong);
    assert_says(&ended, 3, &["same secret"]);
    let event = json(ended.out.lines().last().unwrap());
    assert_eq!((event["event"].as_str(), event["exit"].as_i64()), (Some("error"), Some(3)));
    far.signal(Signal::SIGINT);
    assert_says(&far.end(), 4, &["cancelled by the caller at this end"]);
}

#[test]
fn a_check_and_a_migration_tell_each_other_what_they_are() {
    let place = Place::new();
    let (source, target) = (source_secret(&place), target_secret(&place));
    let receiver = recv(&place, &format!("--listen 127.0.0.1:0 {target}"));
    let to = receiver.address();
    let ended = run(&format!("check --connect {to} {source}"));
    assert_says(&ended, 1, &["refused", "or a check", "use the same at both ends"]);
    let sender = send(&place, &format!("--connect {to} {source} --keep-secret"));
    assert_crossed(&place, sender, receiver);

    let far = start(&format!("check --listen 127.0.0.1:0 --secret-file {}", place.path("key")));
    let ended = send(&place, &format!("--connect {} {source}", far.address())).end();
    assert_says(&ended, 1, &["refused", "or a check", "use the same at both ends"]);
    far.signal(Signal::SIGTERM);
    assert_eq!(far.end().code(), 4);
}

#[test]
fn where_neither_end_listens_the_role_is_named() {
    let place = Place::new();
    let secret = source_secret(&place);
    for way in ["--fd 100", "--rendezvous --bind 127.0.0.1:1 --connect 127.0.0.1:2"] {
        assert_says(&run(&format!("check {way} {secret}")), 2, &["--role source", "--role target"]);
    }
}
