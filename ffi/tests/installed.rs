//! What `cargo cinstall` put under a prefix, as a C programmer meets it: `cargo xtask capi`
//! installs it there and runs these with SEALANE_PREFIX.
#![allow(missing_docs)]

#[path = "../../tests/support/pki.rs"]
mod pki;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const STRICT: [&str; 6] =
    ["-std=c99", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn library_directory() -> PathBuf {
    let prefix = std::env::var_os("SEALANE_PREFIX").expect("SEALANE_PREFIX: cargo xtask capi");
    Path::new(&prefix).join("lib")
}

/// A command that finds the installed library, at compile time and at run time.
fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    let library = library_directory();
    command.env("PKG_CONFIG_PATH", library.join("pkgconfig"));
    command.env("LD_LIBRARY_PATH", library);
    command
}

fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| {
        panic!("{command:?}: {e}");
    });
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{said}{}", String::from_utf8_lossy(&stderr));
    said
}

/// What pkg-config says, word by word.
fn flags(arguments: &[&str]) -> Vec<String> {
    let said = succeeds(command("pkg-config").args(arguments));
    said.split_whitespace().map(str::to_owned).collect()
}

/// The functions that the installed header declares.
fn declared() -> BTreeSet<String> {
    let header = library_directory().join("../include/sealane.h");
    let text = fs::read_to_string(header).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let names = code.filter(|line| !line.starts_with("typedef")).filter_map(|line| {
        let (before, _) = line.split_once('(')?;
        let start = before.rfind("sealane_")?;
        let name = &before[start..];
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| name.to_owned())
    });
    names.collect()
}

#[test]
fn nothing_but_the_headers_functions_is_exported_each_with_a_version() {
    let library = library_directory().join("libsealane.so.0");
    let symbols = succeeds(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let exported = symbols.lines().map(|line| line.rsplit(' ').next().unwrap());
    let mut names = BTreeSet::new();
    for symbol in exported.filter(|symbol| *symbol != "SEALANE_0.1") {
        let (name, version) = symbol.split_once("@@").unwrap_or_else(|| panic!("{symbol}"));
        assert_eq!(version, "SEALANE_0.1", "{name}");
        names.insert(name.to_owned());
    }
    assert!(names.len() > 70);
    assert_eq!(names, declared());
    let dynamic = succeeds(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("[libsealane.so.0]"), "{dynamic}");
}

#[test]
fn openssl_and_gnutls_live_in_the_same_process() {
    let place = tempfile::tempdir().unwrap();
    for (name, library) in [("shared", "-lsealane"), ("static", "-l:libsealane.a")] {
        let program = place.path().join(name);
        let mut compile = command("cc");
        compile.args(STRICT).args(["-pthread", "-o"]).arg(&program);
        compile.arg(root().join("ffi/tests/c/clash.c"));
        compile.args(flags(&["--cflags", "sealane"]));
        compile.args(flags(&["--libs-only-L", "sealane"])).arg(library);
        if name == "static" {
            let all = flags(&["--static", "--libs", "sealane"]);
            compile.args(all.into_iter().filter(|flag| flag != "-lsealane"));
        }
        succeeds(compile.args(["-lcrypto", "-lgnutls"]));
        assert_eq!(succeeds(command("timeout").arg("60").arg(&program)), "");
        let needed = succeeds(Command::new("readelf").arg("-d").arg(&program));
        assert_eq!(needed.contains("libsealane.so.0"), name == "shared", "{needed}");
    }
}

/// `examples/c` copied elsewhere and built by its Makefile.
fn examples() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(root().join("examples/c")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "c" || e == "h") || path.ends_with("Makefile") {
            fs::copy(&path, place.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let strict = "CFLAGS=-O2 -Wall -Wextra -Wpedantic -Werror";
    succeeds(command("make").arg("-C").arg(place.path()).arg(strict));
    place
}

#[test]
fn the_examples_source_and_target_move_a_guest() {
    let (place, pki) = (examples(), pki::Pki::new());
    let secret = place.path().join("key");
    fs::write(&secret, "5a".repeat(32)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.display().to_string();
    move_a_guest(place.path(), &secret, &secret);
    let host = |name, peer| format!("{}@{peer}", pki.host(name).display());
    move_a_guest(
        place.path(),
        &host("source.example", "target.example"),
        &host("target.example", "source.example"),
    );
}

/// By the trust of each end.
fn move_a_guest(place: &Path, source_has: &str, target_has: &str) {
    let mut target = command("timeout");
    target.arg("60").arg(place.join("target")).arg("127.0.0.1:0").arg(target_has);
    let mut target = target.args(["64", "lanes=2"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(target.stdout.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    let port = first.strip_prefix("listening at port ").unwrap_or_else(|| panic!("{first}"));
    let mut source = command("timeout");
    source.arg("60").arg(place.join("source")).arg(format!("127.0.0.1:{port}"));
    let source = succeeds(source.arg(source_has).args(["64", "lanes=2"]));
    let rest: Vec<_> = said.map(Result::unwrap).collect();
    assert!(target.wait().unwrap().success(), "{rest:?}");
    let is_guest = |line: &&str| line.starts_with("guest: ");
    let sent = source.lines().find(is_guest).expect("the source's guest");
    assert_eq!(rest.iter().map(String::as_str).find(is_guest), Some(sent));
}

#[test]
fn the_examples_pipe_copies_its_input() {
    let place = examples();
    let (from, to) = (place.path().join("from"), place.path().join("to"));
    let bytes: Vec<u8> = (0..3_000_001_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&from, &bytes).unwrap();
    let mut pipe = command("timeout");
    pipe.arg("60").arg(place.path().join("pipe")).stdin(File::open(&from).unwrap());
    assert!(pipe.stdout(File::create(&to).unwrap()).status().unwrap().success());
    assert!(fs::read(&to).unwrap() == bytes);
}

/// Names that a library defines for others.
fn defined(library: &Path, arguments: &[&str]) -> BTreeSet<String> {
    let symbols = succeeds(Command::new("nm").args(arguments).arg("--defined-only").arg(library));
    let names = symbols.lines().filter(|line| line.split(' ').count() == 3);
    let names = names.map(|line| line.rsplit(' ').next().unwrap());
    names.map(|name| name.split('@').next().unwrap().to_owned()).collect()
}

#[test]
fn the_static_library_shares_no_name_with_openssl_and_gnutls() {
    let ours = defined(&library_directory().join("libsealane.a"), &["-g"]);
    assert!(ours.contains("sealane_version") && ours.len() > 1000);
    for name in ["libcrypto.so", "libssl.so", "libgnutls.so"] {
        let place = succeeds(Command::new("cc").arg(format!("-print-file-name={name}")));
        let theirs = defined(Path::new(place.trim()), &["-D"]);
        assert!(theirs.len() > 100, "{place}");
        assert_eq!(ours.intersection(&theirs).collect::<Vec<_>>(), [""; 0], "{name}");
    }
}
