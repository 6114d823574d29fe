//! The commands of docs/qemu.md, as they stand there but for addresses and paths.

use sealane_qemu::{Guest, Options};
use serde_json::Value;

use crate::pair::{Case, Pair, new_secret, qemu, start_source, write_secret};

const DOCS: &str = include_str!("../../../../docs/qemu.md");

/// The lines of each block of JSON, for a guest whose secret lies in its directory.
fn blocks(guest: &Guest, uri: &str) -> Vec<Vec<Value>> {
    let secret = guest.path("secret").display().to_string();
    let here = |line: &str| {
        let line = line.replace("/run/guest/secret", &secret);
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
    let case = Case { options: Options::live(), ..Case::memory() };
    let source = start_source(&case);
    let target = Guest::start(&qemu(), "target", &case.options.target());
    let secret = new_secret();
    for guest in [&source, &target] {
        guest.prepare(&[], 0);
        write_secret(&guest.path("secret"), &secret);
    }
    let at_target = blocks(&target, "tcp:127.0.0.1:0");
    assert_eq!(at_target.len(), 2, "one block for each end");
    run(&target, &at_target[0]);
    run(&source, &blocks(&source, &format!("tcp:127.0.0.1:{}", target.port()))[1]);
    let pair = Pair { source, target };
    pair.finish();
    pair.assert_lives_at_target();
}
