//! Processes of the command, and what lies around them.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub const BYTES: usize = (8 << 20) + 1234;
/// Nothing here takes long; what takes this long hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with an image and the same secret twice.
pub struct Place {
    directory: tempfile::TempDir,
    pub content: Vec<u8>,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut content = vec![0; BYTES];
        File::open("/dev/urandom").unwrap().read_exact(&mut content).unwrap();
        content[1 << 20..3 << 20].fill(0);
        fs::write(directory.path().join("image"), &content).unwrap();
        let place = Self { directory, content };
        let made = run(&["secret", "new", &place.path("key")]);
        assert_eq!(made.code(), 0, "{made:?}");
        fs::copy(place.file("key"), place.file("key2")).unwrap();
        place
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    /// A `recv` into `got`, and the address where it listens.
    pub fn recv(&self, more: &[&str]) -> (Running, String) {
        let (file, key) = (self.path("got"), self.path("key2"));
        let mut arguments = vec!["recv", &file, "--listen", "127.0.0.1:0", "--secret-file", &key];
        arguments.extend(more);
        let running = Running::start(&mut sealane(&arguments));
        let address = running.address();
        (running, address)
    }

    pub fn send(&self, address: &str, more: &[&str]) -> Running {
        let (file, key) = (self.path("image"), self.path("key"));
        let mut arguments = vec!["send", &file, "--to", address, "--secret-file", &key];
        arguments.extend(more);
        Running::start(&mut sealane(&arguments))
    }

    pub fn assert_source_is_untouched(&self) {
        assert!(fs::read(self.file("image")).unwrap() == self.content);
    }

    pub fn assert_nothing_arrived(&self) {
        for name in ["got", "got.partial"] {
            assert!(!self.file(name).exists(), "{name} is there");
        }
        self.assert_source_is_untouched();
    }

    pub fn assert_arrived(&self) {
        assert!(fs::read(self.file("got")).unwrap() == self.content, "the image differs");
        assert!(!self.file("got.partial").exists());
        self.assert_source_is_untouched();
    }
}

/// A process whose output is read as it comes; killed where a test fails before it ends.
pub struct Running {
    child: Killed,
    lines: Receiver<String>,
    out: JoinHandle<String>,
    error: JoinHandle<String>,
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub out: String,
    pub error: String,
}

impl Ended {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let collect = |stream: Box<dyn Read + Send>| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut all = String::new();
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    all.push_str(&line);
                    all.push('\n');
                    let _ = sender.send(line);
                }
                all
            })
        };
        let out = collect(Box::new(child.stdout.take().unwrap()));
        let error = collect(Box::new(child.stderr.take().unwrap()));
        Self { child: Killed(child), lines, out, error }
    }

    /// The next line of output.
    pub fn line(&self) -> String {
        self.line_after(&[])
    }

    fn line_after(&self, said: &[String]) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|e| panic!("it says no more: {e}: {said:#?}"))
    }

    /// The first line that has this in it.
    pub fn line_with(&self, part: &str) -> String {
        let mut said = Vec::new();
        loop {
            let line = self.line_after(&said);
            if line.contains(part) {
                return line;
            }
            said.push(line);
        }
    }

    /// Waits until it listens, and says where.
    pub fn address(&self) -> String {
        let line = self.line_with("listening");
        match line.strip_prefix("listening at ") {
            Some(address) => address.to_owned(),
            None => json(&line)["address"].as_str().unwrap().to_owned(),
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.0.id() as i32), signal).unwrap();
    }

    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.0.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.0.kill().unwrap();
                let status = self.child.0.wait().unwrap();
                let (out, error) = (self.out.join().unwrap(), self.error.join().unwrap());
                panic!("it hangs: {status}: {out}{error}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ended { status, out: self.out.join().unwrap(), error: self.error.join().unwrap() }
    }
}

pub fn sealane(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealane"));
    command.args(arguments);
    command
}

pub fn run(arguments: &[&str]) -> Ended {
    Running::start(&mut sealane(arguments)).end()
}

pub fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}
