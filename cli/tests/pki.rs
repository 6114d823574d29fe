//! `sealane pki`: what its user sees.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn sealane(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealane")).arg("pki").args(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn new(directory: &Path) -> Output {
    let directory = directory.to_str().unwrap();
    sealane(&["new", directory, "--host", "a.example", "--host", "192.0.2.2", "--days", "90"])
}

#[test]
fn new_certificates_are_private_and_pass_the_check() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("pki");
    let made = new(&root);
    assert!(made.status.success(), "{made:?}");
    assert!(out(&made).contains("sealane pki check") && out(&made).contains("ca-key.pem"));
    for (file, mode) in [
        ("ca-key.pem", 0o600),
        ("a.example/server-key.pem", 0o600),
        ("192.0.2.2/client-key.pem", 0o600),
        ("a.example", 0o700),
    ] {
        let found = fs::metadata(root.join(file)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{file}");
    }
    for (host, other) in [("a.example", "192.0.2.2"), ("192.0.2.2", "a.example")] {
        let directory = root.join(host);
        let checked = sealane(&["check", directory.to_str().unwrap(), "--peer", other]);
        assert!(checked.status.success(), "{checked:?}");
        let text = out(&checked);
        assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
        assert!(text.contains(&format!("server-cert.pem  {host}; ECDSA P-256")), "{text}");
        assert!(text.contains("serverAuth") && text.contains("(90 days)"), "{text}");
    }
}

#[test]
fn new_overwrites_nothing_and_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("pki");
    fs::create_dir_all(root.join("192.0.2.2")).unwrap();
    let refused = new(&root);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("192.0.2.2") && said.contains("left alone"), "{said}");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "only what was there");
    fs::remove_dir(root.join("192.0.2.2")).unwrap();
    fs::write(root.join("ca-cert.pem"), "mine").unwrap();
    assert_eq!(new(&root).status.code(), Some(1));
    assert_eq!(fs::read_to_string(root.join("ca-cert.pem")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    let root = root.to_str().unwrap();
    for bad in ["a/b", "*.example", "..", &format!("sha256:{}", "ab".repeat(32))] {
        assert_eq!(sealane(&["new", root, "--host", bad]).status.code(), Some(1), "{bad}");
    }
}

#[test]
fn check_names_file_and_remedy_and_fails() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("pki");
    assert!(new(&root).status.success());
    let host = root.join("a.example");
    fs::copy(host.join("client-key.pem"), host.join("server-key.pem")).unwrap();
    let checked = sealane(&["check", host.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(1));
    let text = out(&checked);
    assert!(text.contains("bad      server-key.pem   a key that does not fit"), "{text}");
    let checked = sealane(&["check", host.to_str().unwrap(), "--json", "--peer", "a.example"]);
    assert_eq!(checked.status.code(), Some(1));
    let text = out(&checked);
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |state: &str| events.iter().filter(|event| event["state"] == state).count();
    assert!(of("bad") == 1 && of("warning") == 1, "{text}");
    let missing = sealane(&["check", place.path().join("none").to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(out(&missing).contains("docs/certificates.md"), "{}", out(&missing));
    let usage = sealane(&["check", host.to_str().unwrap(), "--peer", "host:1"]);
    assert_eq!(usage.status.code(), Some(2));
}
