//! `cargo xtask VERB`: what CI and a contributor run, the same way everywhere.

mod bench;
mod capi;
mod fitted;
mod header;
mod manual;
mod peers;
mod qemu;
mod tidy;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "verbs: test, tidy, man, header [--check], capi, abi [--check], \
    qemu [--stock], fuzz [--seconds N], packages, bench [--full] [--no-docs] [NAME=VALUE..], \
    bench NAME [ARGUMENT..]";
const FUZZ_TARGETS: [&str; 3] = ["frame_parser", "opened_header", "hello"];
const CARGO_FUZZ: &str = "0.13.1";
/// `SKIP: name: reason` lines that CI accepts, by their beginning.
const ALLOWED_SKIPS: &str = include_str!("../allowed-skips.txt");

type Result<T = ()> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    env::set_current_dir(root()).expect("the workspace is where it was built");
    let result = match arguments.first().map(String::as_str) {
        Some("test") => test(),
        Some("tidy") => tidy::run(Path::new(".")),
        Some("man") => man(),
        Some("header") => header::run(arguments.get(1).is_some_and(|flag| flag == "--check")),
        Some("capi") => capi::test(),
        Some("abi") => capi::abi(arguments.get(1).is_some_and(|flag| flag == "--check")),
        Some("qemu") if arguments.get(1).is_some_and(|flag| flag == "--stock") => qemu::show(),
        Some("qemu") => fitted::test(),
        Some("fuzz") => fuzz(&arguments[1..]),
        Some("packages") => packages(),
        Some("bench") => bench::bench(&arguments[1..]),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Installs what building everything and the tests need.
fn packages() -> Result {
    need(&COMPILERS)?;
    need(&TOOLS)?;
    bench::packages()
}

/// Tidy, then all tests; counts what passed, failed and was skipped.
fn test() -> Result {
    packages()?;
    tidy::run(Path::new("."))?;
    header::run(true)?;
    let mut counts = Counts::default();
    let show = ["--", "--show-output"];
    let mut workspace = cargo(&["test", "--workspace", "--no-fail-fast"]);
    // Their tests follow, with all of their features.
    workspace.args(["--exclude", "sealane-benches"]);
    match qemu::ensure() {
        Ok(list) => drop(workspace.env(qemu::VARIABLE, list)),
        Err(error) => eprintln!("xtask: the tests with QEMU will be skipped: {error}"),
    }
    counts.run(workspace.args(show))?;
    let null = ["test", "-p", "sealane", "--lib", "--features", "danger-null-seal,internals"];
    counts.run(cargo(&null).args(show))?;
    let benches = ["test", "-p", "sealane-benches", "--no-fail-fast", "--features"];
    let mut benches = cargo(&benches);
    benches.arg(bench::FEATURES).env(peers::VARIABLE, peers::ensure()?);
    counts.run(benches.args(show))?;
    man()?;
    counts.close()
}

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skips: Vec<String>,
    broken: bool,
}

impl Counts {
    fn run(&mut self, command: &mut Command) -> Result {
        let mut child =
            command.stdout(Stdio::piped()).spawn().map_err(|e| format!("cargo: {e}"))?;
        for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
            let line = line.map_err(|e| e.to_string())?;
            println!("{line}");
            self.count(&line);
        }
        self.broken |= !child.wait().map_err(|e| e.to_string())?.success();
        Ok(())
    }

    fn count(&mut self, line: &str) {
        if let Some(skip) = line.split_once("SKIP: ") {
            self.skips.push(skip.1.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let before = result.split(word).next()?;
            before.trim_end().rsplit([' ', '.']).next()?.parse::<u64>().ok()
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
    }

    /// The closing line, and whether all is well.
    fn close(self) -> Result {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skips.len());
        self.finish()
    }

    fn finish(self) -> Result {
        let allowed = |skip: &&String| {
            let mut lines = ALLOWED_SKIPS.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
            !lines.any(|line| skip.starts_with(line))
        };
        let stray: Vec<_> = self.skips.iter().filter(allowed).collect();
        let in_ci = env::var_os("CI").is_some();
        if self.failed > 0 || self.broken {
            return Err("tests failed".to_owned());
        }
        if in_ci && !stray.is_empty() {
            return Err(format!("skips that xtask/allowed-skips.txt does not list: {stray:?}"));
        }
        Ok(())
    }
}

/// The man pages, into target/man.
fn man() -> Result {
    std::fs::create_dir_all("target/man").map_err(|e| format!("target/man: {e}"))?;
    run(&mut cargo(&["run", "--quiet", "--package", "sealane-cli", "--", "man", "target/man"]))?;
    manual::run()
}

/// Runs every fuzz target for so many seconds, from its corpus.
fn fuzz(arguments: &[String]) -> Result {
    let seconds = match arguments {
        [] => "60",
        [flag, seconds] if flag == "--seconds" => seconds.as_str(),
        _ => return Err(USAGE.to_owned()),
    };
    let tools = env::current_dir().map_err(|e| e.to_string())?.join("target/tools");
    if !tools.join("bin/cargo-fuzz").exists() {
        let version = ["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ, "--root"];
        run(cargo(&version).arg(&tools))?;
    }
    need_nightly()?;
    let path = format!("{}:{}", tools.join("bin").display(), env::var("PATH").unwrap_or_default());
    for target in FUZZ_TARGETS {
        // Finds go to a throw-away corpus; the committed one grows by hand.
        let scratch = format!("target/fuzz-corpus/{target}");
        std::fs::create_dir_all(&scratch).map_err(|e| format!("{scratch}: {e}"))?;
        let seeds = format!("fuzz/corpus/{target}");
        let limit = format!("-max_total_time={seconds}");
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "fuzz", "run", target, &scratch, &seeds, "--"]);
        run(command.args([&limit, "-max_len=8192", "-verbosity=0"]).env("PATH", &path))?;
        println!("fuzz {target}: {seconds} s without a find");
    }
    Ok(())
}

/// The compiler of fuzzing and of sanitizers.
fn need_nightly() -> Result {
    let nightly = Command::new("rustup").args(["run", "nightly", "true"]).status();
    match nightly.is_ok_and(|status| status.success()) {
        true => Ok(()),
        false => {
            let install = ["toolchain", "install", "nightly", "--profile", "minimal"];
            run(Command::new("rustup").args(install))
        }
    }
}

/// aws-lc and ring compile C, and the header is tried as C and as C++.
const COMPILERS: [(&str, &str); 3] =
    [("cc", "gcc"), ("c++", "g++"), ("/usr/include/stdio.h", "libc6-dev")];

/// Certificates that others made are read, and firewalls stand between network namespaces.
const TOOLS: [(&str, &str); 4] = [
    ("certtool", "gnutls-bin"),
    ("openssl", "openssl"),
    ("/usr/sbin/nft", "nftables"),
    ("ip", "iproute2"),
];

/// What a command prints; an error where it fails, with what it says.
fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{:?}", command.get_program());
    let output = command.output().map_err(|error| format!("{shown}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Installs the Debian packages whose program, or file where it is a path, is not there.
fn need(packages: &[(&str, &str)]) -> Result {
    let there = |what: &str| match what.starts_with('/') {
        true => Path::new(what).exists(),
        false => Command::new(what).arg("--version").output().is_ok(),
    };
    let missing = packages.iter().filter(|(what, _)| !there(what));
    let names: Vec<_> = missing.map(|(_, package)| *package).collect();
    if names.is_empty() {
        return Ok(());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    if !root {
        return Err(format!("missing: apt-get install {}", names.join(" ")));
    }
    run(Command::new("apt-get").arg("update"))?;
    run(Command::new("apt-get").args(["install", "-y"]).args(names))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

fn run(command: impl std::borrow::BorrowMut<Command>) -> Result {
    let mut command = command;
    let command = command.borrow_mut();
    let shown = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn results_and_skips_are_counted() {
        let mut counts = Counts::default();
        counts.count("test result: FAILED. 12 passed; 3 failed; 0 ignored; finished");
        counts.count("SKIP: tiny_memlock: needs another user");
        assert_eq!((counts.passed, counts.failed), (12, 3));
        assert_eq!(counts.skips, ["tiny_memlock: needs another user"]);
        assert!(counts.finish().is_err());
    }
}
