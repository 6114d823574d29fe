//! C and C++ programs against the shared library, warnings being errors.
#![allow(missing_docs)]

mod program;

use program::{command, compile, engines};

/// Runs a C program with each engine. It prints what it skipped and nothing else: neither does the
/// library.
fn run(name: &str) {
    let place = tempfile::tempdir().unwrap();
    let program = compile("cc", "-std=c99", name, place.path());
    for engine in engines() {
        let files = tempfile::tempdir_in(place.path()).unwrap();
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
fn the_header_is_cpp_too() {
    let place = tempfile::tempdir().unwrap();
    let program = compile("c++", "-std=c++17", "header.cc", place.path());
    assert!(command(&program, place.path(), "syscalls").status().unwrap().success());
}
