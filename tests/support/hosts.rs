//! Two hosts in network namespaces with a wire between them. They go with their threads.
#![allow(missing_docs, dead_code)] // each test binary uses its part

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use nix::sched::{CloneFlags, unshare};

/// A firewall that lets connections out alone.
pub const OUTWARDS_ONLY: &str = "table inet filter {
  chain input {
    type filter hook input priority 0; policy accept
    ct state established,related accept
    tcp flags syn / syn,ack drop
  }
}
";

pub const WEST: &str = "192.0.2.1";
pub const EAST: &str = "192.0.2.2";

/// Runs one end at each host, under the rules of each one's firewall. Skips aloud, with none, where
/// this cannot be.
pub fn two_hosts<A: Send, B: Send>(
    test: &str,
    rules: &str,
    west: impl FnOnce() -> A + Send,
    east: impl FnOnce() -> B + Send,
) -> Option<(A, B)> {
    if let Some(reason) = missing() {
        println!("SKIP: {test}: {reason}");
        return None;
    }
    let (tell, thread) = channel();
    let (made, wire) = channel();
    let (ready, other) = channel();
    Some(std::thread::scope(|scope| {
        let east = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            wire.recv().unwrap();
            begin(EAST, rules);
            ready.send(()).unwrap();
            east()
        });
        let west = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let far = thread.recv().unwrap();
            run("ip", &format!("link add wire type veth peer name wire netns {far}"));
            begin(WEST, rules);
            made.send(()).unwrap();
            other.recv().unwrap();
            west()
        });
        (west.join().unwrap(), east.join().unwrap())
    }))
}

/// From now on this host neither sends nor hears anything.
pub fn cut_wire() {
    nft("table inet cut {
  chain in { type filter hook input priority -10; policy drop; }
  chain out { type filter hook output priority -10; policy drop; }
}
");
}

fn begin(address: &str, rules: &str) {
    run("ip", "link set lo up");
    run("ip", &format!("address add {address}/24 dev wire"));
    run("ip", "link set wire up");
    if !rules.is_empty() {
        nft(rules);
    }
}

/// More rules for the firewall of this host.
pub fn nft(rules: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft: {rules}");
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{program} {arguments}");
}

fn missing() -> Option<&'static str> {
    let has = |program| {
        let mut run = Command::new(program);
        run.arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for network namespaces");
    }
    if !has("nft") || !has("ip") {
        return Some("needs nft and ip");
    }
    // A container's root may not.
    let own = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap();
    own.is_err().then_some("needs root that may make network namespaces")
}
