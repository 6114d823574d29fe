//! How the two ends of the command meet, and what they know each other by.
#![allow(missing_docs)]

#[path = "../../../tests/support/hosts.rs"]
mod hosts;
#[path = "../../../tests/support/pki.rs"]
mod pki;
#[path = "../support/mod.rs"]
mod support;

mod certificates;
mod check;
mod docs;
mod names;
mod secrets;
mod sockets;
mod tunnels;
mod ways;

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use pki::Pki;
use support::{Ended, Place, Running, sealane};

/// The command with these words; no path here has a blank in it.
fn command(line: &str) -> Command {
    sealane(&line.split_whitespace().collect::<Vec<_>>())
}

fn start(line: &str) -> Running {
    Running::start(&mut command(line))
}

fn run(line: &str) -> Ended {
    start(line).end()
}

/// The first of the numbers under which sockets are passed: nobody else has it.
const PASSED: i32 = 100;

/// Passes these sockets to the process under this number and those that follow.
fn pass<S: AsRawFd>(command: &mut Command, first: i32, sockets: &[S]) {
    let sockets: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    assert!(sockets.iter().all(|socket| !(first..first + 8).contains(socket)), "{sockets:?}");
    // SAFETY: dup2(2) alone, which is safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for (number, socket) in (first..).zip(&sockets) {
                if nix::libc::dup2(*socket, number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// A CA with the hosts source.example and target.example.
struct Hosts {
    pki: Pki,
    source: PathBuf,
    target: PathBuf,
}

impl Hosts {
    fn new() -> Self {
        let pki = Pki::new();
        let (source, target) = (pki.host("source.example"), pki.host("target.example"));
        Self { pki, source, target }
    }

    /// What the source is told.
    fn source(&self) -> String {
        format!("--pki {} --peer target.example", self.source.display())
    }

    fn target(&self) -> String {
        format!("--pki {} --peer source.example", self.target.display())
    }
}

/// The secret as the source is told of it.
fn source_secret(place: &Place) -> String {
    format!("--secret-file {}", place.path("key"))
}

fn target_secret(place: &Place) -> String {
    format!("--secret-file {}", place.path("key2"))
}

fn send(place: &Place, line: &str) -> Running {
    start(&send_line(place, line))
}

fn send_line(place: &Place, line: &str) -> String {
    format!("send {} {line}", place.path("image"))
}

fn recv(place: &Place, line: &str) -> Running {
    start(&recv_line(place, line))
}

fn recv_line(place: &Place, line: &str) -> String {
    format!("recv {} {line}", place.path("got"))
}

/// Both ended well and the image is there.
fn assert_crossed(place: &Place, send: Running, recv: Running) -> (Ended, Ended) {
    let (send, recv) = (send.end(), recv.end());
    assert_eq!((send.code(), recv.code()), (0, 0), "{send:?} {recv:?}");
    place.assert_arrived();
    (send, recv)
}

fn assert_says(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code(), code, "{ended:?}");
    for part in parts {
        assert!(ended.error.contains(part), "{part}: {ended:?}");
    }
}
