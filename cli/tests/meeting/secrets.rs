//! The secret file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::support::Place;
use super::{assert_crossed, assert_says, recv, run, send, send_line};

/// Two identities as in QEMU's keys.psk, in a file of its owner's.
fn two_identities(place: &Place, name: &str) {
    let line = |identity: &str, digits: &str| format!("{identity}:{}\n", digits.repeat(32));
    let text = line("guest-1", "1f") + &line("guest-2", "2e");
    fs::write(place.file(name), text).unwrap();
    fs::set_permissions(place.file(name), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn an_identity_takes_its_line_and_only_that_is_removed() {
    let place = Place::new();
    for keys in ["keys.psk", "keys2.psk"] {
        two_identities(&place, keys);
    }
    let [source, target] = ["keys.psk", "keys2.psk"].map(|keys| place.path(keys));
    let listens = format!("--listen 127.0.0.1:0 --secret-file {target} --psk-identity guest-2");
    let receiver = recv(&place, &listens);
    let connects = format!("--connect {} --secret-file {source}", receiver.address());

    let several = send(&place, &connects).end();
    assert_says(&several, 1, &[&source, "several lines", "--psk-identity"]);
    let unknown = send(&place, &format!("{connects} --psk-identity guest-3")).end();
    assert_says(&unknown, 1, &[&source, "guest-3", "guest-1", "guest-2", "--psk-identity"]);
    let other = send(&place, &format!("{connects} --psk-identity guest-1")).end();
    assert_says(&other, 3, &["same secret"]);
    assert_eq!(fs::read_to_string(&source).unwrap().lines().count(), 2, "a failed attempt");

    let sender = send(&place, &format!("{connects} --psk-identity guest-2"));
    assert_crossed(&place, sender, receiver);
    for keys in ["keys.psk", "keys2.psk"] {
        let left = fs::read_to_string(place.file(keys)).unwrap();
        assert_eq!(left, format!("guest-1:{}\n", "1f".repeat(32)));
        let mode = fs::metadata(place.file(keys)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn options_of_the_secret_want_the_secret() {
    let place = Place::new();
    for option in ["--keep-secret", "--psk-identity a"] {
        let line = format!("--connect h:1 --pki {} --peer x {option}", place.path("pki"));
        assert_says(&run(&send_line(&place, &line)), 2, &["--secret-file"]);
    }
}
