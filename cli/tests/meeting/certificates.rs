//! Who the other host is.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::pki::{DAY, Leaf, Pki};
use super::support::{Place, json};
use super::{
    Hosts, assert_crossed, assert_says, recv, run, send, send_line, source_secret, target_secret,
};

#[test]
fn an_image_crosses_by_each_trust_whichever_end_connects() {
    let hosts = Hosts::new();
    for (has_secret, has_certificates) in [(true, false), (false, true), (true, true)] {
        for target_listens in [true, false] {
            let place = Place::new();
            let (mut source, mut target) = (String::new(), String::new());
            if has_secret {
                source += &source_secret(&place);
                target += &target_secret(&place);
            }
            if has_certificates {
                source = format!("{source} {}", hosts.source());
                target = format!("{target} {}", hosts.target());
            }
            let (sender, receiver) = if target_listens {
                let receiver = recv(&place, &format!("--listen 127.0.0.1:0 {target} --json"));
                let to = receiver.address();
                (send(&place, &format!("--connect {to} {source} --json --lanes 2")), receiver)
            } else {
                let listens = format!("--listen 127.0.0.1:0 {source} --json --lanes 2");
                let sender = send(&place, &listens);
                let to = sender.address();
                (sender, recv(&place, &format!("--connect {to} {target} --json")))
            };
            let (sent, received) = assert_crossed(&place, sender, receiver);
            assert_eq!((&sent.error[..], &received.error[..]), ("", ""));
            for (ended, listened) in [(&sent, !target_listens), (&received, target_listens)] {
                let events: Vec<_> = ended.out.lines().map(json).collect();
                assert_eq!(events.last().unwrap()["event"], "done", "{ended:?}");
                assert_eq!(events.last().unwrap()["lanes"].as_array().unwrap().len(), 2);
                assert_eq!(events[0]["event"] == "listening", listened, "{ended:?}");
            }
            for key in ["key", "key2"] {
                assert_eq!(place.file(key).exists(), !has_secret, "{key}");
            }
        }
    }
    for directory in [&hosts.source, &hosts.target] {
        assert_eq!(fs::read_dir(directory).unwrap().count(), 5, "certificates stay");
    }
}

#[test]
fn certificates_without_a_peer_are_refused_with_the_reason() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let pki = hosts.source.display();
    let ended = run(&send_line(&place, &format!("--connect 127.0.0.1:1 --pki {pki}")));
    assert_says(&ended, 2, &["--peer NAME", "the CA has signed other hosts too", "sha256:"]);
    let no_file = run(&send_line(&place, "--connect 127.0.0.1:1 --peer target.example"));
    assert_says(&no_file, 2, &["--pki"]);
    let nothing = run(&send_line(&place, "--connect 127.0.0.1:1"));
    assert_says(&nothing, 2, &["--secret-file", "--pki"]);
    let bad = run(&send_line(&place, &format!("--connect h:1 --pki {pki} --peer target:7800")));
    assert_says(&bad, 2, &["--peer"]);
}

#[test]
fn a_host_that_was_not_meant_exits_3_and_the_listener_serves_the_one_that_was() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let third = hosts.pki.host("third.example");
    let receiver = recv(&place, &format!("--listen 127.0.0.1:0 {}", hosts.target()));
    let to = receiver.address();

    // The dialler meant another.
    let pki = hosts.source.display();
    let wrong = format!("--connect {to} --pki {pki} --peer third.example");
    let ended = send(&place, &wrong).end();
    assert_says(&ended, 3, &["target.example", "third.example was expected"]);
    // Of that the listener hears an alert, which anybody could send: it warns of nothing.

    // The listener meant another.
    let wrong = format!("--connect {to} --pki {} --peer target.example", third.display());
    let ended = send(&place, &wrong).end();
    assert_says(&ended, 3, &["the other end refused", "client-cert.pem"]);
    let warning = receiver.line_with("WARN");
    for part in ["third.example", "source.example was expected", "listening on"] {
        assert!(warning.contains(part) && !warning.contains('\u{1b}'), "{part}: {warning:?}");
    }

    // A CA that the listener does not know: no name of it is repeated.
    let stranger = Pki::with("Another CA", (-DAY, DAY));
    let directory = stranger.host("source.example");
    fs::copy(hosts.source.join("ca-cert.pem"), directory.join("ours.pem")).unwrap();
    let wrong = format!("--connect {to} --pki {} --peer target.example", directory.display());
    let ended = send(&place, &wrong).end();
    assert_says(&ended, 3, &["not issued by the CA", "ca-cert.pem"]);

    let sender = send(&place, &format!("--connect {to} {}", hosts.source()));
    let (_, receiver) = assert_crossed(&place, sender, receiver);
    let warnings = receiver.error.matches("WARN").count();
    assert_eq!(warnings, 1, "a stranger wrote to the log: {receiver:?}");
}

#[test]
fn what_is_wrong_with_this_hosts_own_files_is_named_with_the_remedy() {
    let place = Place::new();
    let attempt = |pki: &std::path::Path| {
        let line = format!("--connect 127.0.0.1:1 --pki {} --peer target.example", pki.display());
        run(&send_line(&place, &line))
    };
    let pki = Pki::new();
    let past = Leaf { valid: (-3 * DAY, -DAY), ..Leaf::named("source.example") };
    let expired = attempt(&pki.host_of("expired", &past));
    assert_says(&expired, 1, &["expired/", "-cert.pem", "which is past", "issue a new one"]);

    let mixed = pki.host("mixed");
    fs::write(mixed.join("ca-cert.pem"), Pki::with("Another CA", (-DAY, DAY)).ca_pem).unwrap();
    let mixed = attempt(&mixed);
    assert_says(&mixed, 1, &["mixed/", "-cert.pem", "issuer", "the CA in", "ca-cert.pem"]);

    let open = pki.host("open");
    let key = open.join("client-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_says(&attempt(&open), 1, &["open/client-key.pem", "0644", "chmod o="]);

    let lacking = pki.host("lacking");
    fs::remove_file(lacking.join("client-cert.pem")).unwrap();
    assert_says(&attempt(&lacking), 1, &["lacking", "client-cert.pem"]);
    let nowhere = attempt(&place.file("nowhere"));
    assert_says(&nowhere, 1, &["nowhere", "No such file", "docs/certificates.md"]);

    // With --json the message is an object, and nobody was connected to.
    let line = format!("--connect 127.0.0.1:1 --json --pki {} --peer x", lacking.display());
    let ended = run(&send_line(&place, &line));
    let event = json(ended.out.lines().last().unwrap());
    assert_eq!((event["event"].as_str(), event["exit"].as_i64()), (Some("error"), Some(1)));
}

#[test]
fn single_files_do_as_well_and_a_list_of_the_revoked_is_obeyed() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let leaf = Leaf { serial: 7, ..Leaf::named("source.example") };
    let revoked = hosts.pki.host_of("revoked", &leaf);
    let list = hosts.pki.directory.path().join("list.pem");
    fs::write(&list, hosts.pki.revocations(&[7], DAY)).unwrap();
    let target = hosts.target.display();
    let files = format!(
        "--ca {target}/ca-cert.pem --cert {target}/server-cert.pem --key {target}/server-key.pem"
    );
    let line = format!("--listen 127.0.0.1:0 {files} --peer source.example");
    let receiver = recv(&place, &format!("{line} --crl {}", list.display()));
    let to = receiver.address();
    let ended =
        send(&place, &format!("--connect {to} --pki {} --peer target.example", revoked.display()));
    assert_says(&ended.end(), 3, &["the other end refused"]);
    let warning = receiver.line_with("WARN");
    assert!(warning.contains("revoked by") && warning.contains("list.pem"), "{warning}");
    let source = hosts.source.display();
    let sender = send(
        &place,
        &format!(
            "--connect {to} --ca {source}/ca-cert.pem --cert {source}/client-cert.pem \
         --key {source}/client-key.pem --peer target.example"
        ),
    );
    assert_crossed(&place, sender, receiver);

    for (some, wanted) in [
        (format!("--ca {target}/ca-cert.pem"), "--cert"),
        (format!("--cert {target}/server-cert.pem"), "--ca"),
        (format!("--pki {target} {files}"), "--ca"),
        (format!("--pki {target} --crl {}", list.display()), "--ca"),
    ] {
        let ended = run(&send_line(&place, &format!("--connect h:1 --peer x {some}")));
        assert_says(&ended, 2, &[wanted]);
    }
}

#[test]
fn a_fingerprint_names_the_other_end_as_well() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let found = run(&format!("pki check {} --json", hosts.target.display()));
    let of_server = |line: &str| {
        let text = json(line)["text"].as_str().unwrap().to_owned();
        text.split(['(', ')', ' ', ';', ',']).find(|w| w.starts_with("sha256:")).map(str::to_owned)
    };
    let line = found.out.lines().find(|line| line.contains("server-cert.pem")).unwrap();
    let fingerprint = of_server(line).unwrap();
    let receiver = recv(&place, &format!("--listen 127.0.0.1:0 {}", hosts.target()));
    let to = receiver.address();
    let pki = hosts.source.display();
    let other = "sha256:".to_owned() + &"00".repeat(32);
    let wrong = send(&place, &format!("--connect {to} --pki {pki} --peer {other}")).end();
    assert_says(&wrong, 3, &[&fingerprint, &other]);
    let sender = send(&place, &format!("--connect {to} --pki {pki} --peer {fingerprint}"));
    assert_crossed(&place, sender, receiver);
}
