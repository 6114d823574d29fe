//! The command's processes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sealane_qemu::PATIENCE;
use serde_json::Value;

/// A directory with the same secret twice, and the sockets where tunnels and QEMUs meet.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        place.new_secrets();
        place
    }

    /// The same secret, for each end a file.
    pub fn new_secrets(&self) {
        self.new_secret("key");
        fs::copy(self.file("key"), self.file("key2")).unwrap();
    }

    pub fn new_secret(&self, name: &str) {
        let mut made = Tunnel::start(&["secret", "new", &self.path(name)]);
        assert_eq!(made.end().code, Some(0));
    }

    /// Certificates of a host for each end.
    pub fn new_certificates(&self) {
        let pki = self.path("pki");
        let hosts = ["--host", "source.example", "--host", "target.example"];
        let mut made = Tunnel::start(&[&["pki", "new", &pki][..], &hosts].concat());
        assert_eq!(made.end().code, Some(0));
    }

    /// What the source's tunnel is told of it, and the target's.
    pub fn trust(&self, trust: Trust) -> [Vec<String>; 2] {
        let [own, other] = ["source.example", "target.example"];
        [("key", own, other), ("key2", other, own)].map(|(key, own, other)| {
            let mut options = Vec::new();
            if trust != Trust::Certificates {
                options.extend(["--secret-file".to_owned(), self.path(key)]);
            }
            if trust != Trust::Secret {
                let pki = self.path(&format!("pki/{own}"));
                options.extend(["--pki".to_owned(), pki, "--peer".to_owned(), other.to_owned()]);
            }
            options
        })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    /// Where the target's QEMU listens.
    pub fn target_uri(&self) -> String {
        format!("unix:{}", self.path("target"))
    }

    /// Where the source's QEMU connects to.
    pub fn source_uri(&self) -> String {
        format!("unix:{}", self.path("source"))
    }

    /// A tunnel to the target's QEMU, and the address where it listens.
    pub fn far(&self, more: &[&str]) -> (Tunnel, String) {
        let (to, key) = (self.target_uri(), self.path("key2"));
        let how = ["tunnel", "target", "--listen", "127.0.0.1:0", "--to", &to];
        let mut far = Tunnel::start(&[&how[..], &["--secret-file", &key], more].concat());
        let address = far.address();
        (far, address)
    }

    /// A tunnel from the source's QEMU, with the secret of that name; it may not get far.
    pub fn near(&self, address: &str, secret: &str, more: &[&str]) -> Tunnel {
        let (from, key) = (self.source_uri(), self.path(secret));
        let how = ["tunnel", "source", "--from", &from, "--to", address];
        Tunnel::start(&[&how[..], &["--secret-file", &key], more].concat())
    }
}

/// What two ends know each other by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trust {
    Secret,
    Certificates,
    Both,
}

/// A process of the command, killed when dropped. What it says is read as it comes.
pub struct Tunnel {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub said: Vec<String>,
}

impl Ended {
    pub fn says(&self, part: &str) -> bool {
        self.said.iter().any(|line| line.contains(part))
    }

    /// What it said with --json.
    pub fn events(&self) -> Vec<Value> {
        self.said.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Tunnel {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealane"));
        command.args(arguments);
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines, said: Vec::new() }
    }

    /// Waits for a line of which `found` makes something.
    pub fn wait_line<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {what}: {:?}: {:#?}", self.child.try_wait(), self.said);
            };
            let value = found(&line);
            self.said.push(line);
            if let Some(value) = value {
                return value;
            }
        }
    }

    /// Waits until it listens, and says where.
    pub fn address(&mut self) -> String {
        self.wait_line("address", |line| {
            if let Some((_, address)) = line.split_once("listening at ") {
                return Some(address.trim().to_owned());
            }
            let event: Value = serde_json::from_str(line).ok()?;
            let address = event["address"].as_str().filter(|_| event["event"] == "listening");
            address.map(str::to_owned)
        })
    }

    /// Waits for an event, with --json.
    pub fn wait_event(&mut self, name: &str) {
        self.wait_line(name, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["event"] == name).then_some(())
        });
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it ends by itself.
    pub fn end(&mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Both streams close with the process.
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:#?}", self.said),
            }
        }
        let status = self.child.wait().unwrap();
        Ended { code: status.code(), said: self.said.clone() }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
