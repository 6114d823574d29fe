//! A migration of the QEMU that Sealane was fitted into, over loopback: plain TCP, QEMU's own TLS,
//! and Sealane, each with one channel and with multifd; see `qemu.rs`. Arguments: mib=3482 turns=5
//! channels=2 prealloc=on only=NAME,NAME engine=uring

use std::process::Command;

use sealane_benches::qemu::{Chosen, Way, certificates, compare, plain, tls};
use sealane_qemu::{Guest, fitted};
use serde_json::json;

fn main() {
    let mut chosen = Chosen::from_arguments();
    let mut engine = "uring".to_owned();
    for (name, value) in std::mem::take(&mut chosen.others) {
        match &name[..] {
            "engine" => engine = value,
            _ => panic!("see the head of benches/qemu_native.rs; not {name}"),
        }
    }
    let qemu = fitted().expect("cargo xtask bench builds it, and names it in SEALANE_QEMU_FITTED");
    let place = tempfile::tempdir().expect("a directory");
    certificates(place.path());
    let secret = place.path().join("secret");
    let command = std::env::var_os("SEALANE").expect("SEALANE names the command");
    let made = Command::new(command).args(["secret", "new"]).arg(&secret).status();
    assert!(made.expect("the command").success());
    let sealed = |source: &Guest, target: &Guest| {
        for (guest, endpoint) in [(source, "client"), (target, "server")] {
            let used =
                guest.try_use_sealane(endpoint, &json!({"secret-file": secret, "engine": engine}));
            used.unwrap_or_else(|error| guest.fail(&error));
        }
        plain(source, target)
    };
    let ways = [
        Way { name: "plain", build: &plain },
        Way { name: "tls", build: &|source, target| tls(place.path(), source, target) },
        Way { name: "sealane", build: &sealed },
    ];
    compare(&chosen, &qemu, &ways);
}
