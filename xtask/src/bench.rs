//! `cargo xtask bench`: all ways in one table, quick or `--full`; `cargo xtask bench NAME`: one
//! benchmark, which ends with an error where its result is wrong.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Result, cargo, fitted, need, output, peers, qemu, run};

const BENCHES: [&str; 12] = [
    "ways",
    "seal",
    "zero",
    "copy",
    "temperatures",
    "frames",
    "lane",
    "memory",
    "round_trip",
    "qemu_tunnel",
    "qemu_native",
    "c_abi",
];
/// What a quick run has beside the ways, and what a whole one has besides.
const QUICK: [&str; 5] = ["frames", "seal", "zero", "copy", "temperatures"];
const FULL: [&str; 4] = ["lane", "memory", "round_trip", "c_abi"];
const QEMU: [&str; 2] = ["qemu_tunnel", "qemu_native"];
/// Where records and what benchmarks print are left.
const PLACE: &str = "target/bench";
const RECORD: &str = "SEALANE_BENCH_RECORD";
/// The features of `bench-ways`; its tests have them too.
pub const FEATURES: &str = "danger-null-seal,openssl";
/// What the feature `openssl` is built from.
const PACKAGES: [(&str, &str); 2] =
    [("pkg-config", "pkg-config"), ("/usr/include/openssl/evp.h", "libssl-dev")];

/// What the command line asks for.
///
/// # Errors
///
/// Where a benchmark fails.
pub fn bench(arguments: &[String]) -> Result {
    match arguments.split_first() {
        None => all(arguments),
        Some((flag, _)) if flag.starts_with("--") || flag.contains('=') => all(arguments),
        Some((name, rest)) if BENCHES.contains(&name.as_str()) => run(command(name)?.args(rest)),
        Some(_) => Err(format!("benchmarks: {}; or --full, --no-docs", BENCHES.join(", "))),
    }
}

/// Installs what `bench-ways` is built from.
///
/// # Errors
///
/// Where it is missing and this user is not root.
pub fn packages() -> Result {
    need(&PACKAGES)
}

fn all(arguments: &[String]) -> Result {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let (full, docs) = (has("--full"), !has("--no-docs"));
    let rest: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    if let Some(stray) = arguments
        .iter()
        .find(|a| a.starts_with("--") && !["--full", "--no-docs"].contains(&a.as_str()))
    {
        return Err(format!("{stray}: --full, --no-docs, or what benches/ways/main.rs names"));
    }
    fs::create_dir_all(PLACE).map_err(|e| format!("{PLACE}: {e}"))?;
    let mut records = Vec::new();
    if full {
        for name in QEMU {
            let record = here()?.join(PLACE).join(format!("{name}.json"));
            let _ = fs::remove_file(&record);
            // A machine where QEMU cannot be had measures everything else.
            match command(name).and_then(|mut bench| run(bench.env(RECORD, &record))) {
                Ok(()) => records.push(record.display().to_string()),
                Err(error) => println!("SKIP: {name}: {error}"),
            }
        }
    }
    for name in QUICK.iter().chain(FULL.iter().filter(|_| full)) {
        kept(name)?;
    }
    println!("== ways");
    let mut ways = command("ways")?;
    ways.arg(format!("json={PLACE}/ways{}.json", if full { "-full" } else { "" }));
    if docs {
        ways.arg("docs=docs");
    }
    if full {
        ways.arg("full=on");
    }
    if !records.is_empty() {
        ways.arg(format!("qemu={}", records.join(",")));
    }
    run(ways.args(rest))?;
    if docs {
        println!("docs/performance.md and docs/ways-*.svg are new: look at them before you commit");
    }
    Ok(())
}

/// Runs one and leaves what it prints in a file too.
fn kept(name: &str) -> Result {
    println!("== {name}");
    let text = output(command(name)?.stderr(Stdio::inherit()))?;
    print!("{text}");
    let path = Path::new(PLACE).join(format!("{name}.txt"));
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// To build and run it, with what it needs.
fn command(name: &str) -> Result<Command> {
    let bin = format!("bench-{name}");
    let mut bench = cargo(&["run", "--quiet", "--release", "--package", "sealane-benches"]);
    if name == "ways" {
        packages()?;
        bench.env(peers::VARIABLE, peers::ensure()?);
    }
    if name.starts_with("qemu_") {
        run(cargo(&["build", "--quiet", "--release", "--package", "sealane-cli"]))?;
        bench.env("SEALANE", here()?.join("target/release/sealane"));
        match name {
            "qemu_native" => bench.env(fitted::VARIABLE, fitted::ensure()?),
            _ => bench.env(qemu::VARIABLE, qemu::ensure()?),
        };
    }
    if name == "c_abi" {
        run(cargo(&["build", "--quiet", "--release", "--package", "sealane-ffi"]))?;
        bench.env("SEALANE_LIBRARY", here()?.join("target/release/libsealane.so"));
    }
    let features = if name == "ways" { FEATURES } else { "danger-null-seal" };
    bench.args(["--features", features, "--bin", &bin, "--"]);
    Ok(bench)
}

fn here() -> Result<PathBuf> {
    env::current_dir().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_run_by_themselves_are_benchmarks() {
        let all = QUICK.iter().chain(&FULL).chain(&QEMU);
        assert!(all.clone().all(|name| BENCHES.contains(name)));
        assert_eq!(all.count() + 1, BENCHES.len());
        assert!(bench(&["no-such-bench".to_owned()]).is_err());
        assert!(bench(&["--no-such-flag".to_owned()]).is_err());
    }
}
