//! C and C++ programs against the shared library, warnings being errors.
#![allow(missing_docs)]

#[path = "../../tests/support/pki.rs"]
mod pki;
mod program;

use std::os::unix::fs::symlink;
use std::path::Path;

use pki::{DAY, Leaf, Pki};
use program::{command, compile, engines, root};

fn run(name: &str) {
    run_with(name, |_| ());
}

/// Runs a C program with each engine, in a directory that is prepared for it. It prints what it
/// skipped and nothing else: neither does the library.
fn run_with(name: &str, prepare: impl Fn(&Path)) {
    let place = tempfile::tempdir().unwrap();
    let program = compile("cc", "-std=c99", name, place.path());
    for engine in engines() {
        let files = tempfile::tempdir_in(place.path()).unwrap();
        prepare(files.path());
        let output = command(&program, files.path(), engine).output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(status.success(), "{name}, {engine}: {status}: {out}{errors}");
        let (skips, other): (Vec<_>, Vec<_>) =
            out.lines().partition(|line| line.starts_with("SKIP: "));
        skips.iter().for_each(|skip| println!("{skip}"));
        assert!(other.is_empty() && errors.is_empty(), "{name}, {engine}: {out}{errors}");
    }
}

#[test]
fn streams_carry_bytes_and_every_mistake_is_an_error() {
    run("stream.c");
}

#[test]
fn a_guest_moves_and_every_mistake_is_an_error() {
    run("migration.c");
}

#[test]
fn after_a_fork_handles_are_the_parents() {
    run("fork.c");
}

#[test]
fn the_other_end_and_who_stands_between_bring_about_every_error() {
    run("errors.c");
}

#[test]
fn two_ends_meet_by_every_connection_and_by_every_trust() {
    let pki = Pki::new();
    let hosts = [("near.example", 7), ("far.example", 8), ("third.example", 9)];
    for (name, serial) in hosts {
        pki.host_of(name, &Leaf { serial, ..Leaf::named(name) });
    }
    let dials = pki.host("dials.example");
    std::fs::remove_file(dials.join("server-cert.pem")).unwrap();
    std::fs::remove_file(dials.join("server-key.pem")).unwrap();
    std::fs::write(pki.directory.path().join("revokes-near.pem"), pki.revocations(&[7], DAY))
        .unwrap();
    run_with("meet.c", |files| {
        // Without it the program expects a library that has no certificates.
        if cfg!(feature = "certificates") {
            symlink(pki.directory.path(), files.join("pki")).unwrap();
        }
    });
}

#[test]
fn eight_threads_and_threads_that_share_a_stream() {
    run("threads.c");
}

#[test]
fn every_function_is_called_and_every_error_is_expected() {
    let header = std::fs::read_to_string(root().join("include/sealane.h")).unwrap();
    let programs = std::fs::read_dir(root().join("ffi/tests/c")).unwrap();
    let programs: String = programs
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "c" || kind == "h"))
        .map(|path| without_comments(&std::fs::read_to_string(path).unwrap()))
        .collect();
    let declared: Vec<_> = header.lines().filter_map(function_of).collect();
    let errors = header.lines().filter_map(|line| {
        line.strip_prefix("#define ")?.split(' ').next().filter(|n| n.starts_with("SEALANE_E_"))
    });
    let errors: Vec<_> = errors.collect();
    assert!(declared.len() > 80 && errors.len() > 10, "{declared:?} {errors:?}");
    let uncalled = declared.iter().filter(|name| !programs.contains(&format!("{name}(")));
    assert_eq!(uncalled.collect::<Vec<_>>(), [&""; 0], "no C program calls these");
    let words: Vec<_> =
        programs.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').collect();
    let unexpected = errors.iter().filter(|name| !words.contains(&format!("-{name}").as_str()));
    // ffi/tests/c/errors.c says why.
    assert_eq!(unexpected.collect::<Vec<_>>(), [&"SEALANE_E_PANIC"], "no C program expects these");
}

/// The function that a line of the header declares: `int sealane_x(..`, `const char *sealane_y(..`.
fn function_of(line: &str) -> Option<&str> {
    if line.starts_with(['/', '#', ' ']) || line.starts_with("typedef") {
        return None;
    }
    let before = line.split_once('(')?.0;
    let name = before.rsplit([' ', '*']).next()?;
    name.starts_with("sealane_").then_some(name)
}

fn without_comments(program: &str) -> String {
    let mut parts = program.split("/*");
    let code = parts.next().unwrap_or_default().to_owned();
    parts.fold(code, |code, part| code + part.split_once("*/").map_or("", |(_, after)| after))
}

#[test]
fn the_header_is_cpp_too() {
    let place = tempfile::tempdir().unwrap();
    let program = compile("c++", "-std=c++17", "header.cc", place.path());
    assert!(command(&program, place.path(), "syscalls").status().unwrap().success());
}
