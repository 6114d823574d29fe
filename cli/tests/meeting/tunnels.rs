//! Tunnels between plain unix sockets, which stand for hypervisors.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::support::{Place, Running, json};
use super::{Hosts, assert_says, run, source_secret, start, target_secret};

/// What the source's hypervisor writes, and how the target's answers.
fn migrate(from: &str, target: &UnixListener, text: &str) {
    let mut near = UnixStream::connect(from).unwrap();
    near.write_all(text.as_bytes()).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let (mut far, _) = target.accept().unwrap();
    let mut came = String::new();
    far.read_to_string(&mut came).unwrap();
    assert_eq!(came, text);
    far.write_all(b"done").unwrap();
    drop(far);
    let mut answer = String::new();
    near.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "done");
}

/// A tunnel whose socket is ready.
fn source(place: &Place, socket: &str, line: &str) -> Running {
    let from = format!("unix:{}", place.path(socket));
    let tunnel = start(&format!("tunnel source --from {from} {line}"));
    tunnel.line_with(&format!("listening at {from}"));
    tunnel
}

#[test]
fn the_targets_tunnel_connects_to_the_sources() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let hypervisor = UnixListener::bind(place.file("in")).unwrap();
    let (from, to) = (place.path("out"), place.path("in"));
    let listens = format!("--listen 127.0.0.1:0 {}", hosts.source());
    let near = start(&format!("tunnel source --from unix:{from} {listens}"));
    let address = near.address();
    let far = start(&format!(
        "tunnel target --to unix:{to} --connect {address} --json {}",
        hosts.target()
    ));
    near.line_with(&format!("listening at unix:{from}"));
    migrate(&from, &hypervisor, "guest");
    let (near, far) = (near.end(), far.end());
    assert_eq!((near.code(), far.code()), (0, 0), "{near:?} {far:?}");
    let events: Vec<_> = far.out.lines().map(json).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["connected", "channel", "done"], "{far:?}");
    assert!(near.error.contains("1 channels"), "{near:?}");
    assert!(!place.file("out").exists());
}

#[test]
fn two_migrations_at_once_come_through_one_port() {
    let place = Place::new();
    let names = ["guest-1", "guest-2"];
    let hypervisors = names.map(|name| UnixListener::bind(place.file(name)).unwrap());
    let [one, two] = names.map(|name| format!("--to {name}=unix:{}", place.path(name)));
    let (near, far) = (source_secret(&place), target_secret(&place));
    let target = start(&format!(
        "tunnel target --listen 127.0.0.1:0 {one} {two} {far} --keep-secret --json"
    ));
    let to = target.address();
    let way = format!("--connect {to} {near} --keep-secret");
    let from = place.path("lost");
    let lost = run(&format!("tunnel source --from unix:{from} {way} --migration guest-3"));
    assert_says(&lost, 1, &["refused", "another name", "--migration"]);

    let tunnels = names
        .map(|name| source(&place, &format!("{name}.out"), &format!("{way} --migration {name}")));
    // Both are open before either begins; the second goes first.
    for (name, hypervisor) in names.iter().zip(&hypervisors).rev() {
        migrate(&place.path(&format!("{name}.out")), hypervisor, &format!("all of {name}"));
    }
    for tunnel in tunnels {
        let ended = tunnel.end();
        assert_eq!(ended.code(), 0, "{ended:?}");
    }
    let target = target.end();
    assert_eq!(target.code(), 0, "{target:?}");
    for name in names {
        let of = |line: &str| Some(json(line)).filter(|event| event["migration"] == name);
        let events: Vec<_> = target.out.lines().filter_map(of).collect();
        let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["connected", "channel", "done"], "{name}: {target:?}");
        assert_eq!(events[2]["received_bytes"], 14, "{name}: {target:?}");
    }
    assert!(place.file("key").exists() && place.file("key2").exists());
}

#[test]
fn one_of_several_that_fails_is_told_at_once_by_its_name() {
    let (hosts, place) = (Hosts::new(), Place::new());
    let hypervisor = UnixListener::bind(place.file("there")).unwrap();
    let (there, missing) = (place.path("there"), place.path("missing"));
    let target = start(&format!(
        "tunnel target --listen 127.0.0.1:0 --to a=unix:{there} --to b=unix:{missing} {} --json",
        hosts.target()
    ));
    let way = format!("--connect {} {}", target.address(), hosts.source());
    let tunnel = source(&place, "b.out", &format!("{way} --migration b"));
    UnixStream::connect(place.file("b.out")).unwrap().write_all(b"x").unwrap();
    assert_says(&tunnel.end(), 1, &[&missing]);
    // The other one is waited for still.
    let said = json(&target.line_with("\"error\""));
    assert_eq!((said["migration"].as_str(), said["exit"].as_i64()), (Some("b"), Some(1)));

    let tunnel = source(&place, "a.out", &format!("{way} --migration a"));
    migrate(&place.path("a.out"), &hypervisor, "guest");
    assert_eq!(tunnel.end().code(), 0);
    let target = target.end();
    assert_says(&target, 1, &["sealane: b: ", &missing]);
    assert_eq!(target.error.matches(&missing).count(), 1, "once: {target:?}");
}

#[test]
fn what_cannot_be_meant_exits_2_before_anybody_connects() {
    let place = Place::new();
    let (hosts, secret) = (Hosts::new(), target_secret(&place));
    let pki = hosts.target();
    let listens = "tunnel target --listen 127.0.0.1:0";
    let named = "each its own: --to NAME=unix:PATH";
    for (line, part) in [
        (format!("{listens} --to unix:a --to unix:b {pki}"), named),
        (format!("{listens} --to a=unix:a --to unix:b {pki}"), named),
        (format!("{listens} --to a=unix:a --to a=unix:b {pki}"), named),
        (format!("{listens} --to a=unix:a --migration b {pki}"), "name the migration once"),
        (format!("{listens} --to a=unix:a --to b=unix:b {secret}"), "--keep-secret"),
        (format!("{listens} --to a=unix:a --keep {secret}"), "--keep-secret"),
        (format!("{listens} --to a=/path {pki}"), "unix:/run/guest/migrate"),
        (format!("{listens} {pki}"), "--to"),
        (
            format!("tunnel source --from unix:x --listen 127.0.0.1:0 --keep {secret}"),
            "--keep-secret",
        ),
        (format!("tunnel source --from unix:x --to h:1 --connect h:1 {pki}"), "--connect"),
    ] {
        let ended = run(&line);
        assert_says(&ended, 2, &[part]);
        assert!(!ended.error.contains("listening"), "{line}: {ended:?}");
    }
}
