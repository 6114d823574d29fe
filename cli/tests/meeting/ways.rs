//! Unix sockets, IPv6, ports that connections leave from, and a rendezvous.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU16, Ordering};

use super::support::Place;
use super::{
    assert_crossed, assert_says, recv, run, send, send_line, source_secret, target_secret,
};

/// So many ports in a row, of which nobody else has one now; not among those that the kernel gives.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 12_000 + (std::process::id() % 1000) as u16 * 16;
    for _ in 0..100 {
        let first = start + NEXT.fetch_add(count, Ordering::Relaxed);
        let all: Vec<_> = (first..first + count)
            .map_while(|port| TcpListener::bind(("127.0.0.1", port)).ok())
            .collect();
        if all.len() == usize::from(count) {
            return first;
        }
    }
    panic!("no ports from {start} on");
}

#[test]
fn an_image_crosses_by_a_unix_socket_which_goes_again() {
    for target_listens in [true, false] {
        let place = Place::new();
        let at = format!("unix:{}", place.path("socket"));
        let (source, target) = (source_secret(&place), target_secret(&place));
        let listens = format!("--listen {at}");
        let (sender, receiver) = if target_listens {
            let receiver = recv(&place, &format!("{listens} {target}"));
            assert_eq!(receiver.address(), at);
            (send(&place, &format!("--connect {at} {source}")), receiver)
        } else {
            let sender = send(&place, &format!("{listens} {source}"));
            assert_eq!(sender.address(), at);
            let mode = place.file("socket").metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
            (sender, recv(&place, &format!("--connect {at} {target}")))
        };
        assert_crossed(&place, sender, receiver);
        assert!(!place.file("socket").exists());
    }
    let place = Place::new();
    let at = format!("unix:{}", place.path("nobody"));
    let nobody = send(&place, &format!("--connect {at} {}", source_secret(&place))).end();
    assert_says(&nobody, 1, &[&at, "No such file"]);
}

#[test]
fn an_image_crosses_by_ipv6() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("SKIP: an_image_crosses_by_ipv6: no ::1 here");
        return;
    }
    let place = Place::new();
    let receiver = recv(&place, &format!("--listen [::1]:0 {}", target_secret(&place)));
    let to = receiver.address();
    assert!(to.starts_with("[::1]:"), "{to}");
    let secret = format!("{} --keep-secret", source_secret(&place));
    let sender = send(&place, &format!("--to {to} {secret}"));
    assert_crossed(&place, sender, receiver);
    let bare = send(&place, &format!("--to ::1:7800 {secret}")).end();
    assert_says(&bare, 2, &["brackets", "[::1]:7800"]);
}

#[test]
fn connections_leave_from_the_ports_that_are_named() {
    let place = Place::new();
    let (source, target) = (source_secret(&place), target_secret(&place));
    let low = free_ports(2);
    let high = low + 1;

    // Who comes, before anything is said.
    let seen = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = seen.local_addr().unwrap();
    let sender = send(&place, &format!("--connect {to} --bind 127.0.0.1:{high} {source}"));
    let (socket, from) = seen.accept().unwrap();
    assert_eq!(from.to_string(), format!("127.0.0.1:{high}"));
    drop(socket);
    assert_eq!(sender.end().code(), 3);

    let low = free_ports(2);
    let high = low + 1;
    let receiver = recv(&place, &format!("--listen 127.0.0.1:0 {target} --keep-secret"));
    let to = receiver.address();
    let range = format!("--connect {to} --bind 127.0.0.1:{low}-{high} {source} --keep-secret");
    let sender = send(&place, &format!("{range} --lanes 2"));
    assert_crossed(&place, sender, receiver);

    let receiver = recv(&place, &format!("--listen 127.0.0.1:0 {target} --overwrite"));
    let (to, port) = (receiver.address(), free_ports(1));
    let narrow = format!("--connect {to} --bind 127.0.0.1:{port}-{port} {source} --lanes 2");
    let ended = send(&place, &narrow).end();
    assert_says(&ended, 1, &[&port.to_string(), "bind", "port"]);
    assert_says(&receiver.end(), 1, &["closed the connection while further lanes were to join"]);
}

#[test]
fn where_connections_leave_from_is_for_connections_by_tcp() {
    let place = Place::new();
    let secret = source_secret(&place);
    for (line, code, parts) in [
        ("--listen 127.0.0.1:0 --bind 127.0.0.1:0", 2, ["--bind", "--listen"]),
        ("--fd 100 --bind 127.0.0.1:1", 2, ["--bind", "--fd"]),
        ("--connect unix:/nowhere --bind 127.0.0.1:1", 2, ["bind", "HOST:PORT"]),
        ("--connect h:1 --bind name:1", 2, ["bind", "numeric address"]),
        ("--connect h:1 --bind 127.0.0.1:9-8", 2, ["bind", "lower one first"]),
        ("--rendezvous --connect h:1", 2, ["--bind", "required"]),
        ("--rendezvous --listen 127.0.0.1:0 --bind 127.0.0.1:1", 2, ["--listen", "--bind"]),
        ("--listen 127.0.0.1:0 --connect h:1", 2, ["--listen", "--connect"]),
        ("--to h:1 --connect h:1", 2, ["--to", "--connect"]),
        ("--accepted --connect h:1", 2, ["--accepted", "--fd"]),
        ("", 2, ["--listen", "--connect"]),
    ] {
        assert_says(&run(&send_line(&place, &format!("{line} {secret}"))), code, &parts);
    }
}

#[test]
fn both_ends_connect_at_once() {
    let place = Place::new();
    let (near, far) = (free_ports(2), free_ports(2));
    let [near, far] = [near, far].map(|port| format!("127.0.0.1:{port}"));
    let way = |local: &str, remote: &str| format!("--rendezvous --bind {local} --connect {remote}");
    let receiver = recv(&place, &format!("{} {}", way(&far, &near), target_secret(&place)));
    let sender = send(&place, &format!("{} {} --lanes 2", way(&near, &far), source_secret(&place)));
    let (sent, received) = assert_crossed(&place, sender, receiver);
    assert!(sent.error.contains("2 lanes"), "{sent:?}");
    let met = format!("listening at rendezvous of {far} with {near}");
    assert!(received.error.contains(&met), "{received:?}");

    let place = Place::new();
    let itself = send(&place, &format!("{} {}", way(&near, &near), source_secret(&place))).end();
    assert_says(&itself, 1, &["rendezvous", "the same socket", "exchange"]);
}
