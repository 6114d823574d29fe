//! C programs of `ffi/tests/c`: compiled with warnings as errors, and run.
//!
//! Against the library that the cargo of the tests builds; or, where `SEALANE_PREFIX` is set,
//! against the copy that is installed there, as `pkg-config` describes it. Then `SEALANE_C_FLAGS`
//! are more flags of the compiler, and `SEALANE_C_RUNNER` is what runs the programs (`valgrind`),
//! which then use the engine of system calls: few tools know io_uring.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The words of a variable, none where it is not set.
fn words(variable: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// What the compiler is told of the library.
fn library() -> &'static [String] {
    static FLAGS: OnceLock<Vec<String>> = OnceLock::new();
    FLAGS.get_or_init(|| match std::env::var_os("SEALANE_PREFIX") {
        Some(prefix) => installed(Path::new(&prefix)),
        None => built(),
    })
}

fn built() -> Vec<String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build.args(["build", "--quiet", "--package", "sealane-ffi", "--target-dir"]).arg(target);
    // The library has what the tests were built with.
    build.args(["--no-default-features", "--features", &features().join(",")]);
    assert!(build.current_dir(root()).status().unwrap().success());
    let built = target.join("debug/libsealane.so");
    // A build gives it by the name for the linker alone, an installation also by its soname.
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-library");
    std::fs::create_dir_all(&place).unwrap();
    for name in ["libsealane.so", "libsealane.so.0"] {
        match std::os::unix::fs::symlink(&built, place.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{error}"),
            _ => {}
        }
    }
    let (place, include) = (place.display(), root().join("include"));
    vec![
        format!("-I{}", include.display()),
        format!("-L{place}"),
        "-lsealane".to_owned(),
        format!("-Wl,-rpath,{place}"),
    ]
}

fn features() -> Vec<&'static str> {
    let all = [
        ("aws-lc", cfg!(feature = "aws-lc")),
        ("certificates", cfg!(feature = "certificates")),
        ("ring", cfg!(feature = "ring")),
    ];
    all.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect()
}

fn installed(prefix: &Path) -> Vec<String> {
    // A distribution may keep libraries by machine.
    let places = ["lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"];
    let described = places.map(|place| prefix.join(place).join("pkgconfig"));
    let described = described.iter().find(|place| place.join("sealane.pc").exists());
    let described = described.unwrap_or_else(|| panic!("no sealane.pc under {prefix:?}"));
    let mut ask = Command::new("pkg-config");
    ask.args(["--cflags", "--libs", "sealane"]).env("PKG_CONFIG_PATH", described);
    let answer = ask.output().unwrap_or_else(|e| panic!("pkg-config: {e}"));
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let answer = String::from_utf8(answer.stdout).unwrap();
    let rpath = format!("-Wl,-rpath,{}", described.parent().unwrap().display());
    answer.split_whitespace().map(str::to_owned).chain([rpath]).collect()
}

/// Compiles `ffi/tests/c/<name>`.
pub fn compile(compiler: &str, standard: &str, name: &str, place: &Path) -> PathBuf {
    let program = place.join("program");
    let mut command = Command::new(compiler);
    command.args([standard, "-D_GNU_SOURCE", "-pthread", "-g"]).args(STRICT);
    command.args(words("SEALANE_C_FLAGS")).arg("-o").arg(&program);
    command.arg(root().join("ffi/tests/c").join(name)).args(library());
    let output = command.output().unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// The engines that programs are run with.
pub fn engines() -> &'static [&'static str] {
    match words("SEALANE_C_RUNNER").is_empty() {
        true => &["uring", "syscalls"],
        false => &["syscalls"],
    }
}

/// What runs a program that was compiled into `place`: with that place and the engine, and for not
/// much longer than it may take. A runner is slow.
pub fn command(program: &Path, place: &Path, engine: &str) -> Command {
    let (mut command, runner) = (Command::new("timeout"), words("SEALANE_C_RUNNER"));
    command.arg(if runner.is_empty() { "60" } else { "300" });
    command.args(runner).arg(program).arg(place);
    command.arg(format!("engine={engine}"));
    command
}
