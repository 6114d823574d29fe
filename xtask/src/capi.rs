//! `cargo xtask capi`: the C library as a distribution would install it, and all that is tried on
//! the installed copy; `cargo xtask abi [--check]`: the description of its ABI.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Counts, Result, cargo, header, man, need, need_nightly, run};

const CARGO_C: &str = "0.10.24+cargo-0.98.0";
const HEADER: &str = "include/sealane.h";
const MAP: &str = "ffi/exports.map";
const ABI: &str = "ffi/sealane.abi";
const PACKAGES: [(&str, &str); 7] = [
    ("make", "make"),
    ("pkg-config", "pkg-config"),
    ("valgrind", "valgrind"),
    ("abidw", "abigail-tools"),
    ("nm", "binutils"),
    ("/usr/include/openssl/evp.h", "libssl-dev"),
    ("/usr/include/gnutls/gnutls.h", "libgnutls28-dev"),
];

/// Installs the library alone at a prefix.
///
/// # Errors
///
/// Where cargo-c cannot be had, or the library does not build.
pub fn install_at(prefix: &Path) -> Result {
    let tool = need_cargo_c(&env::current_dir().map_err(|e| e.to_string())?)?;
    let (prefix, libraries) = (prefix.display().to_string(), prefix.join("lib"));
    let mut command = Command::new(tool);
    command.args(CINSTALL).args(["--release", "--prefix", &prefix, "--libdir"]).arg(libraries);
    run(&mut command)
}

/// Installs the library below target/capi and tries it there.
///
/// # Errors
///
/// Where a tool cannot be had, or a test fails.
pub fn test() -> Result {
    need(&PACKAGES)?;
    need_nightly()?;
    man()?;
    let here = env::current_dir().map_err(|e| e.to_string())?;
    let tools = need_cargo_c(&here)?;
    let place = here.join("target/capi");
    let _ = fs::remove_dir_all(&place);
    let prefix = install(&tools, &place)?;
    let sanitized = install_sanitized(&tools, &place)?;
    let mut counts = Counts::default();
    // Each way runs the whole suite on an installed copy.
    for way in WAYS {
        println!("== the C tests {}", way.name);
        let mut tests = cargo(&["test", "--package", "sealane-ffi", "--no-fail-fast"]);
        tests.args(way.tests);
        tests.env("SEALANE_PREFIX", if way.sanitized { &sanitized } else { &prefix });
        for (name, value) in way.environment {
            tests.env(name, value);
        }
        let suppressions = here.join("ffi/tests/c/valgrind.supp");
        tests.env("VALGRIND_OPTS", format!("--suppressions={}", suppressions.display()));
        counts.run(tests.args(["--", "--show-output"]).args(way.arguments))?;
    }
    println!("== the C tests with what is under permissive licences alone");
    check_licences()?;
    let mut permissive = cargo(&["test", "--package", "sealane-ffi", "--no-default-features"]);
    counts.run(permissive.args(PROGRAMS).args(["--", "--show-output"]))?;
    check_sanitizers(&prefix)?;
    abi(true)?;
    counts.close()
}

/// Terms that programs under GPL-2.0 alone can be given to others with.
const PERMISSIVE: [&str; 6] = ["MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "0BSD", "Unicode-3.0"];

/// Whether the library without its default features is free of code that is under other terms, as
/// docs/qemu.md says.
fn check_licences() -> Result {
    let others = |features: &[&str]| -> Result<Vec<String>> {
        let mut tree =
            cargo(&["tree", "--locked", "--package", "sealane-ffi", "--edges", "normal"]);
        tree.args(["--prefix", "none", "--format", "{p}\t{l}"]).args(features);
        let out = tree.output().map_err(|e| format!("cargo tree: {e}"))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let is_other = |line: &&str| {
            let terms = line.split('\t').nth(1).unwrap_or_default();
            // Each crate has parts, and each part terms to choose from.
            !terms.split(" AND ").all(|part| PERMISSIVE.iter().any(|term| part.contains(term)))
        };
        match out.status.success() && text.contains("snow") {
            true => Ok(text.lines().filter(is_other).map(str::to_owned).collect()),
            false => Err(format!("cargo tree: {}", String::from_utf8_lossy(&out.stderr))),
        }
    };
    let (all, without) = (others(&[])?, others(&["--no-default-features"])?);
    if !all.iter().any(|line| line.starts_with("aws-lc-sys")) {
        return Err(format!("cargo tree does not show aws-lc-sys's licence: {all:?}"));
    }
    match without.is_empty() {
        true => Ok(()),
        false => Err(format!("without default features there is still: {without:?}")),
    }
}

struct Way {
    name: &'static str,
    tests: &'static [&'static str],
    arguments: &'static [&'static str],
    sanitized: bool,
    environment: &'static [(&'static str, &'static str)],
}

const PROGRAMS: &[&str] = &["--test", "c", "--test", "peers"];
const SANITIZE: &str = "-fsanitize=address,undefined -fno-sanitize-recover=all";

const WAYS: [Way; 3] = [
    Way {
        name: "as they are",
        tests: &["--features", "capi", "--test", "c", "--test", "peers", "--test", "installed"],
        arguments: &[],
        sanitized: false,
        environment: &[],
    },
    Way {
        name: "under AddressSanitizer and UndefinedBehaviorSanitizer",
        tests: PROGRAMS,
        arguments: &[],
        sanitized: true,
        environment: &[("SEALANE_C_FLAGS", SANITIZE)],
    },
    Way {
        name: "under Valgrind",
        tests: PROGRAMS,
        // One at a time: Valgrind is slow, and the tests have limits.
        arguments: &["--test-threads", "1"],
        sanitized: false,
        environment: &[(
            "SEALANE_C_RUNNER",
            "valgrind --quiet --leak-check=full --errors-for-leak-kinds=definite,indirect,possible \
             --error-exitcode=99 --child-silent-after-fork=yes",
        )],
    },
];

/// Where the pinned cargo-c is; built at the first call.
fn need_cargo_c(here: &Path) -> Result<PathBuf> {
    let tools = here.join("target/tools");
    let command = tools.join("bin/cargo-cinstall");
    let version = Command::new(&command).arg("--version").output();
    let number = CARGO_C.split('+').next().expect("a version");
    if !version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(number)) {
        let install = ["install", "cargo-c", "--locked", "--force", "--version", CARGO_C, "--root"];
        run(cargo(&install).arg(&tools))?;
    }
    Ok(command)
}

const CINSTALL: [&str; 4] = ["cinstall", "--locked", "--manifest-path", "ffi/Cargo.toml"];

/// `cargo cinstall` into a fresh prefix; gives it.
fn install(tool: &Path, place: &Path) -> Result<PathBuf> {
    let prefix = place.join("prefix");
    let cinstall = |arguments: &[&str]| {
        let mut command = Command::new(tool);
        run(command.args(CINSTALL).arg("--release").args(arguments))
    };
    let (prefix_text, staged) = (prefix.display().to_string(), place.join("staged"));
    cinstall(&["--prefix", &prefix_text, "--libdir", &format!("{prefix_text}/lib")])?;
    // As a distribution stages it: DESTDIR is in no file.
    let destination = staged.display().to_string();
    cinstall(&["--destdir", &destination, "--prefix", "/usr", "--libdir", "/usr/lib64"])?;
    let file = staged.join("usr/lib64/pkgconfig/sealane.pc");
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    if text.contains(&destination) || !text.contains("prefix=/usr\n") {
        return Err(format!("{} names other places than /usr:\n{text}", file.display()));
    }
    for name in [
        "usr/lib64/libsealane.so.0",
        "usr/lib64/libsealane.a",
        "usr/include/sealane.h",
        "usr/share/man/man3/sealane.3",
    ] {
        if !staged.join(name).exists() {
            return Err(format!("cargo cinstall left out {name}"));
        }
    }
    Ok(prefix)
}

/// The same with every access of the library checked. The nightly compiler can; the runtime is the
/// C compiler's, since the program is C. What is built in C (aws-lc, ring) is not instrumented.
fn install_sanitized(tool: &Path, place: &Path) -> Result<PathBuf> {
    let prefix = place.join("sanitized");
    let text = prefix.display().to_string();
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).arg(tool).args(CINSTALL).args(["--profile", "dev"]);
    command.args(["--target-dir", "target/sanitized", "--prefix", &text]);
    command.args(["--libdir", &format!("{text}/lib")]).env("RUSTFLAGS", "-Zsanitizer=address");
    run(command)?;
    let symbols = Command::new("nm").arg("-D").arg(prefix.join("lib/libsealane.so.0")).output();
    let symbols = symbols.map_err(|e| format!("nm: {e}"))?;
    match String::from_utf8_lossy(&symbols.stdout).contains(" __asan_report_store8") {
        true => Ok(prefix),
        false => Err("the sanitized library does not call AddressSanitizer".to_owned()),
    }
}

/// That the sanitizers and Valgrind would have told: a program with a mistake of each kind.
fn check_sanitizers(prefix: &Path) -> Result {
    let place = prefix.join("../mistakes");
    fs::create_dir_all(&place).map_err(|e| e.to_string())?;
    let mistakes = [
        ("heap", "heap-buffer-overflow"),
        ("leak", "detected memory leaks"),
        ("shift", "shift exponent"),
    ];
    for (mistake, told) in mistakes {
        let program = place.join(mistake);
        let mut compile = Command::new("cc");
        compile.args(SANITIZE.split(' ')).arg("-o").arg(&program).arg("ffi/tests/c/mistake.c");
        run(&mut compile)?;
        let output = Command::new(&program).arg(mistake).output().map_err(|e| e.to_string())?;
        if output.status.success() || !String::from_utf8_lossy(&output.stderr).contains(told) {
            return Err(format!("the sanitizers are not on: {mistake} was not told"));
        }
    }
    let plain = place.join("plain");
    run(Command::new("cc").arg("-o").arg(&plain).arg("ffi/tests/c/mistake.c"))?;
    let (_, runner) = WAYS[2].environment[0];
    for mistake in ["heap", "leak"] {
        let mut words = runner.split_whitespace();
        let mut valgrind = Command::new(words.next().expect("a program"));
        let output = valgrind.args(words).arg(&plain).arg(mistake).output();
        if output.map_err(|e| e.to_string())?.status.code() != Some(99) {
            return Err(format!("Valgrind did not tell of {mistake}"));
        }
    }
    Ok(())
}

/// Writes the ABI's description, or with `check` says where today's header and map break it.
///
/// libabigail 2.2 sees no functions in Rust's DWARF, so it is given what C sees: the header's
/// declarations with empty bodies, linked with the library's own map and soname. That the library
/// exports just these is the installed copy's test.
///
/// # Errors
///
/// Where abidw is missing, or an ABI change is incompatible.
pub fn abi(check: bool) -> Result {
    header::run(true)?;
    let place = Path::new("target/capi/abi");
    fs::create_dir_all(place).map_err(|e| e.to_string())?;
    let (source, library) = (place.join("sealane.c"), place.join("libsealane.so.0"));
    let text = fs::read_to_string(HEADER).map_err(|e| format!("{HEADER}: {e}"))?;
    fs::write(&source, bodies(&text)).map_err(|e| e.to_string())?;
    let map = fs::read_to_string(MAP).map_err(|e| format!("{MAP}: {e}"))?;
    let with_numbers = map.replacen("global:\n", "global:\n    sealane_numbers;\n", 1);
    let stub_map = place.join("exports.map");
    fs::write(&stub_map, with_numbers).map_err(|e| e.to_string())?;
    let mut compile = Command::new("cc");
    compile.args(["-g", "-w", "-shared", "-fPIC", "-Wl,-soname,libsealane.so.0", "-Iinclude"]);
    compile.arg(format!("-Wl,--version-script={}", stub_map.display()));
    compile.arg("-o").arg(&library).arg(&source);
    run(&mut compile)?;
    let new = place.join("sealane.abi");
    let mut describe = Command::new("abidw");
    describe.args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--no-elf-needed"]);
    describe.args(["--type-id-style", "hash", "--out-file"]).arg(&new).arg(&library);
    run(&mut describe)?;
    if !check {
        fs::copy(&new, ABI).map_err(|e| format!("{ABI}: {e}"))?;
        return Ok(());
    }
    // Additions are a change too: they are seen, and committed with the new description.
    run(Command::new("abidiff").args([ABI, &new.display().to_string()]))
        .map_err(|e| format!("{ABI} is not today's ABI; where it should be: cargo xtask abi\n{e}"))
}

/// The header's functions, each with a body.
fn bodies(header: &str) -> String {
    let mut text = String::from("#include <sealane.h>\n");
    // Numbers are part of the ABI too: as lengths in a type that a function takes they are seen
    // (libabigail lets another value of an enumerator pass).
    let numbers = header.lines().filter_map(|line| {
        let (name, number) = line.strip_prefix("#define ")?.split_once(' ')?;
        Some(format!("    char {name}_[{number} + 1];\n"))
    });
    let numbers: String = numbers.collect();
    if !numbers.is_empty() {
        text += &format!(
            "struct numbers {{\n{numbers}}};\nvoid sealane_numbers(struct numbers *n) {{ }}\n"
        );
    }
    let mut inside = false;
    for line in header.lines() {
        let begins = line.contains(" *sealane_") || line.contains(" sealane_");
        let declares = begins && line.contains('(') && !line.starts_with(['/', ' ', 't', '#']);
        if declares || inside {
            inside = !line.ends_with(");");
            let body = line.strip_suffix(';').filter(|_| !inside).map(|l| format!("{l} {{ }}"));
            text += &body.unwrap_or_else(|| line.to_owned());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::bodies;

    #[test]
    fn declarations_get_bodies_and_types_do_not() {
        let header = "// As sealane_f(x).\ntypedef void (*sealane_log_callback)(int level);\n\
                      struct sealane_a {\n  int b;\n};\n\
                      int sealane_f(int a,\n              int b);\n";
        let want = "#include <sealane.h>\nint sealane_f(int a,\n              int b) { }\n";
        assert_eq!(bodies(header), want);
        let number = bodies("#define SEALANE_H\n#define SEALANE_ROLE_SOURCE 1\n");
        assert!(
            number.contains("struct numbers {\n    char SEALANE_ROLE_SOURCE_[1 + 1];\n};"),
            "{number}"
        );
    }
}
