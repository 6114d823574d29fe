//! C and C++ programs against the shared library, warnings being errors.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Where the shared library lies, built by the cargo that runs the tests.
fn library() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build.args(["build", "--quiet", "--package", "sealane-ffi", "--target-dir"]).arg(target);
    assert!(build.current_dir(root()).status().unwrap().success());
    target.join("debug")
}

/// Compiles `ffi/tests/c/<name>`.
fn compile(compiler: &str, standard: &str, name: &str, place: &Path) -> PathBuf {
    let (library, program) = (library(), place.join("program"));
    let mut command = Command::new(compiler);
    command.args([standard, "-D_GNU_SOURCE", "-pthread", "-g"]).args(STRICT);
    command.arg("-I").arg(root().join("include")).arg("-o").arg(&program);
    command.arg(root().join("ffi/tests/c").join(name));
    command.arg("-L").arg(&library).arg("-lsealane_ffi");
    command.arg(format!("-Wl,-rpath,{}", library.display()));
    let output = command.output().unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// Runs a C program, which prints nothing: neither does the library.
fn run(name: &str) {
    let place = tempfile::tempdir().unwrap();
    let program = compile("cc", "-std=c99", name, place.path());
    let output = Command::new("timeout").arg("60").arg(program).arg(place.path()).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&said));
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
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
fn the_header_is_cpp_too() {
    let place = tempfile::tempdir().unwrap();
    let program = compile("c++", "-std=c++17", "header.cc", place.path());
    assert!(Command::new(program).status().unwrap().success());
}
