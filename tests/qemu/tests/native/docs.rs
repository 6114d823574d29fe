//! The commands of docs/qemu.md, as they stand there but for addresses and paths.

use std::os::unix::fs::symlink;

use sealane_qemu::{Guest, Options};
use serde_json::Value;

use crate::pair::{Case, Pair, new_secret, qemu, start_source, write_secret};
use crate::pki::Pki;

const DOCS: &str = include_str!("../../../../docs/qemu.md");

/// The lines of each block of JSON, for a guest whose secret and certificates lie in its directory.
fn blocks(guest: &Guest, uri: &str) -> Vec<Vec<Value>> {
    let pki = guest.path("pki").display().to_string();
    let secret = guest.path("secret").display().to_string();
    let here = |line: &str| {
        let line = line.replace("/run/guest/secret", &secret).replace("/etc/pki/qemu", &pki);
        let line = line.replace("tcp:0.0.0.0:7800", uri).replace("tcp:target:7800", uri);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    let blocks = DOCS.split("```json\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().lines().map(here).collect()).collect()
}

fn run(guest: &Guest, commands: &[Value]) {
    for command in commands {
        let name = command["execute"].as_str().unwrap();
        guest.execute(name, command["arguments"].clone());
    }
}

#[test]
fn the_commands_of_the_docs_migrate() {
    // A block for each end: with a secret, and with certificates.
    for first in [0, 2] {
        migrate_by(first);
    }
}

fn migrate_by(first: usize) {
    let case = Case { options: Options::live(), ..Case::memory() };
    let source = start_source(&case);
    let target = Guest::start(&qemu(), "target", &case.options.target());
    let (secret, pki) = (new_secret(), Pki::new());
    for (guest, host) in [(&source, "source.example"), (&target, "target.example")] {
        guest.prepare(&[], 0);
        write_secret(&guest.path("secret"), &secret);
        symlink(pki.host(host), guest.path("pki")).unwrap();
    }
    let at_target = blocks(&target, "tcp:127.0.0.1:0");
    assert_eq!(at_target.len(), 4, "one block for each end");
    run(&target, &at_target[first]);
    run(&source, &blocks(&source, &format!("tcp:127.0.0.1:{}", target.port()))[first + 1]);
    let pair = Pair { source, target };
    pair.finish();
    pair.assert_lives_at_target();
}
