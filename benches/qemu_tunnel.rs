//! A stock QEMU's migration over loopback: plain TCP, QEMU's own TLS, and `sealane tunnel`, each
//! with one channel and with multifd; see `qemu.rs`. Arguments: mib=3482 turns=5 channels=2
//! prealloc=on qemu=10.0 only=NAME,NAME frame-kib=.. engine=uring

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use sealane_benches::qemu::{Chosen, Road, Way, certificates, compare, plain, tls};
use sealane_qemu::{Guest, installed};

fn main() {
    let mut chosen = Chosen::from_arguments();
    let (mut options, mut version) = (Vec::new(), None);
    for (name, value) in std::mem::take(&mut chosen.others) {
        match &name[..] {
            "qemu" => version = Some(value),
            "frame-kib" | "engine" | "congestion" | "zero-copy" | "provider" => {
                options.push(format!("--{name}={value}"));
            }
            _ => panic!("see the head of benches/qemu_tunnel.rs; not {name}"),
        }
    }
    let is_wanted = |name: &str| version.as_ref().is_none_or(|version| version == name);
    let qemu = installed().into_iter().rfind(|qemu| is_wanted(&qemu.name));
    let qemu = qemu.expect("that version of QEMU: cargo xtask bench gets it");
    let place = tempfile::tempdir().expect("a directory");
    certificates(place.path());
    let command = std::env::var_os("SEALANE").expect("SEALANE names the command");
    let tunnels = Tunnels { options, command: command.into(), place };
    let ways = [
        Way { name: "plain", build: &plain },
        Way { name: "tls", build: &|source, target| tls(tunnels.place.path(), source, target) },
        Way { name: "tunnel", build: &|_, target| tunnels.build(target) },
    ];
    compare(&chosen, &qemu, &ways);
}

struct Tunnels {
    options: Vec<String>,
    command: PathBuf,
    place: tempfile::TempDir,
}

impl Tunnels {
    /// A tunnel at each end, and where the source shall connect to.
    fn build(&self, target: &Guest) -> Road {
        let uri = |name: &str| format!("unix:{}", self.place.path().join(name).display());
        for name in ["secret", "from", "to"] {
            let _ = fs::remove_file(self.place.path().join(name));
        }
        let secret = self.place.path().join("secret");
        let made = Command::new(&self.command).args(["secret", "new"]).arg(&secret).status();
        assert!(made.expect("the command").success());
        target.listen(&uri("to"));
        let run = |arguments: &[&str]| -> (Child, String) {
            let mut command = Command::new(&self.command);
            command.args(["tunnel"]).args(arguments).args(&self.options);
            command.arg("--keep-secret").arg("--secret-file").arg(&secret);
            let mut child = command.stderr(Stdio::piped()).spawn().expect("the command");
            let said = BufReader::new(child.stderr.take().expect("piped"));
            let mut lines = said.lines().map_while(Result::ok);
            let address =
                lines.find_map(|line| Some(line.split_once("listening at ")?.1.to_owned()));
            // What it says later is read, so that it never waits.
            std::thread::spawn(move || lines.for_each(|line| eprintln!("tunnel: {line}")));
            (child, address.expect("it listens"))
        };
        let (far, address) = run(&["target", "--listen", "127.0.0.1:0", "--to", &uri("to")]);
        let (near, address) = run(&["source", "--from", &uri("from"), "--to", &address]);
        Road { uri: address, helpers: vec![near, far] }
    }
}
