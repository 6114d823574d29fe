//! `cargo xtask qemu`: QEMU with Sealane fitted into it, from the distribution's source.
//!
//! All of it lies below target/qemu-fitted: the source package of [`SUITE`], unpacked and fitted
//! by integrations/qemu/fit; the C library as cargo-c installs it; Python packages that configure
//! wants; and a build with Sealane, one with AddressSanitizer, and one without Sealane. What is
//! there already is not made again; to begin anew, remove the directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Counts, Result, capi, cargo, man, need, output, qemu, run};

/// What the tests read to learn where [`ensure`] put the list of what it built.
pub const VARIABLE: &str = "SEALANE_QEMU_FITTED";
const PLACE: &str = "target/qemu-fitted";
/// The Debian release whose QEMU is fitted: 10.0.
const SUITE: &str = "trixie";
const FIT: &str = "integrations/qemu/fit";
const BINARY: &str = "qemu-system-x86_64";
const UNIT_TEST: &str = "tests/unit/test-io-channel-sealane";
/// A function that an insertion looks for, and the anchor's name.
const ANCHOR: (&str, &str) = ("migrate_channel_requires_tls_upgrade", "requires_tls_upgrade");
/// What runs with AddressSanitizer, too.
const SANITIZED: [&str; 2] = ["a_live_guest_moves_without", "a_live_guest_moves_by_multifd"];
const PACKAGES: [(&str, &str); 12] = [
    ("cc", "gcc"),
    ("pkg-config", "pkg-config"),
    ("ninja", "ninja-build"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("dpkg-source", "dpkg-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("/usr/include/glib-2.0/glib.h", "libglib2.0-dev"),
    ("/usr/include/pixman-1/pixman.h", "libpixman-1-dev"),
    ("/usr/include/gnutls/gnutls.h", "libgnutls28-dev"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("readelf", "binutils"),
];
/// The firmware is the stock QEMU's: source packages have none.
const CONFIGURE: [&str; 12] = [
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-gnutls",
    "--enable-seccomp",
    "--disable-fdt",
    "--disable-docs",
    "--disable-werror",
    "--disable-install-blobs",
    "--disable-download",
];

/// Builds and tries everything.
///
/// # Errors
///
/// Where a tool or the source cannot be had, or a test fails.
pub fn test() -> Result {
    let place = place()?;
    let list = ensure()?;
    check_fit(&place)?;
    check_without(&place)?;
    let mut counts = Counts::default();
    println!("== the channel alone");
    run(Command::new(place.join("build").join(UNIT_TEST))
        .env("LD_LIBRARY_PATH", place.join("prefix/lib")))?;
    println!("== QEMU to QEMU");
    counts.run(tests(&list).args(["--", "--show-output"]))?;
    println!("== QEMU with AddressSanitizer");
    build(&place, "asan", &["--enable-sealane", "--enable-asan"], &[BINARY, UNIT_TEST])?;
    // glib keeps what it allocated once: what is looked for is use of what is gone.
    let options = "detect_leaks=0:abort_on_error=1";
    run(Command::new(place.join("asan").join(UNIT_TEST))
        .env("LD_LIBRARY_PATH", place.join("prefix/lib"))
        .env("ASAN_OPTIONS", options))?;
    let before = counts.passed;
    let mut sanitized = tests(&write_list(&place, "asan")?);
    sanitized.env("ASAN_OPTIONS", options).args(["--", "--show-output"]);
    counts.run(sanitized.args(SANITIZED))?;
    if counts.passed < before + SANITIZED.len() as u64 {
        return Err(format!("not all of these tests are there and passed: {SANITIZED:?}"));
    }
    counts.close()
}

/// The list with the QEMU that was fitted, built where it is not up to date.
///
/// # Errors
///
/// Where a tool or the source cannot be had, or it does not build.
pub fn ensure() -> Result<PathBuf> {
    need(&PACKAGES)?;
    // A module, which no file tells for every version of Python.
    let ensurepip = Command::new("python3").args(["-c", "import ensurepip"]).status();
    if !ensurepip.is_ok_and(|status| status.success()) {
        need(&[("/of every version", "python3-venv")])?;
    }
    let place = place()?;
    fetch(&place)?;
    run(Command::new(FIT).arg(place.join("src")))?;
    python(&place)?;
    man()?;
    capi::install_at(&place.join("prefix"))?;
    build(&place, "build", &["--enable-sealane"], &[BINARY, UNIT_TEST])?;
    write_list(&place, "build")
}

fn place() -> Result<PathBuf> {
    Ok(env::current_dir().map_err(|e| e.to_string())?.join(PLACE))
}

fn tests(list: &Path) -> Command {
    let mut tests = cargo(&["test", "--package", "sealane-qemu", "--no-fail-fast"]);
    tests.args(["--features", "fitted", "--test", "native"]).env(VARIABLE, list);
    tests
}

/// QEMU's source, as the distribution patches it.
fn fetch(place: &Path) -> Result {
    let source = place.join("src");
    if source.join("VERSION").exists() {
        return Ok(());
    }
    let new = place.join("new");
    qemu::source(&place.join("apt"), SUITE, &new)?;
    let file = |entry: fs::DirEntry| {
        Some(entry.path()).filter(|path| path.extension() == Some("dsc".as_ref()))
    };
    let mut entries = fs::read_dir(&new).map_err(|e| format!("{}: {e}", new.display()))?.flatten();
    let description = entries.find_map(file).ok_or("apt-get source left no .dsc")?;
    // apt has checked what it fetched.
    let unpack = ["--no-check", "--extract"];
    run(Command::new("dpkg-source").args(unpack).arg(description).arg(new.join("qemu")))?;
    fs::rename(new.join("qemu"), &source).map_err(|e| format!("{}: {e}", source.display()))
}

/// What configure wants of Python's packages.
fn python(place: &Path) -> Result {
    let venv = place.join("venv");
    if venv.join("bin/meson").exists() {
        return Ok(());
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let install = ["install", "--quiet", "meson>=1.5,<2", "pycotap"];
    run(Command::new(venv.join("bin/pip")).args(install))
}

/// One build of the source, in a directory of that name.
fn build(place: &Path, name: &str, options: &[&str], targets: &[&str]) -> Result {
    let directory = place.join(name);
    let (arguments, chosen) = (directory.join("sealane-options"), options.join(" "));
    let wanted = format!("{} {chosen}\n", CONFIGURE.join(" "));
    if fs::read_to_string(&arguments).is_ok_and(|had| had != wanted) {
        fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    }
    if !directory.join("build.ninja").exists() {
        fs::create_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        fs::write(&arguments, &wanted).map_err(|e| format!("{}: {e}", arguments.display()))?;
        let mut configure = Command::new(place.join("src/configure"));
        configure.env("PKG_CONFIG_PATH", place.join("prefix/lib/pkgconfig"));
        configure.arg(format!("--python={}", place.join("venv/bin/python3").display()));
        run(configure.args(CONFIGURE).args(options).current_dir(&directory))?;
    }
    run(Command::new("ninja").arg("-C").arg(&directory).args(targets))
}

/// Writes the list of one QEMU, with the stock one's firmware and libraries.
fn write_list(place: &Path, name: &str) -> Result<PathBuf> {
    let stock = qemu::ensure()?;
    let text = fs::read_to_string(&stock).map_err(|e| format!("{}: {e}", stock.display()))?;
    let fields: Vec<_> = text.lines().last().unwrap_or_default().split('\t').collect();
    let [_, _, firmware, libraries] = fields[..] else {
        return Err(format!("{}: no line of four fields", stock.display()));
    };
    let version = fs::read_to_string(place.join("src/VERSION")).map_err(|e| e.to_string())?;
    let version: Vec<_> = version.trim().split('.').take(2).collect();
    let (binary, own) = (place.join(name).join(BINARY), place.join("prefix/lib"));
    let line = format!(
        "{}\t{}\t{firmware}\t{}:{libraries}\n",
        version.join("."),
        binary.display(),
        own.display()
    );
    let list = place.join(format!("{name}.list"));
    fs::write(&list, line).map_err(|e| format!("{}: {e}", list.display()))?;
    Ok(list)
}

/// The tool itself: again it changes nothing, and a tree without an anchor is left as it is.
fn check_fit(place: &Path) -> Result {
    let source = place.join("src");
    let fit = |tree: &Path, more: &[&str]| {
        let out =
            Command::new(FIT).args(more).arg(tree).output().map_err(|e| format!("{FIT}: {e}"))?;
        let text = [out.stdout, out.stderr].concat();
        Ok::<_, String>((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
    };
    let (fitted, said) = fit(&source, &[])?;
    if !fitted || !said.contains(" 0 files changed") {
        return Err(format!("{FIT} is not idempotent: {said}"));
    }
    // A copy of what it touches, with it taken out and one anchor gone.
    let copy = place.join("anchor");
    let _ = fs::remove_dir_all(&copy);
    let touched = output(Command::new("grep").args(["-rlF", "sealane: begin"]).arg(&source))?;
    for path in touched.lines().map(Path::new).chain([source.join("VERSION").as_path()]) {
        let to = copy.join(path.strip_prefix(&source).map_err(|e| e.to_string())?);
        fs::create_dir_all(to.parent().expect("below the copy")).map_err(|e| e.to_string())?;
        fs::copy(path, to).map_err(|e| e.to_string())?;
    }
    let (removed, said) = fit(&copy, &["--remove"])?;
    let left =
        output(Command::new("grep").args(["-rciF", "sealane"]).arg(&copy)).unwrap_or_default();
    if !removed || left.lines().any(|line| !line.ends_with(":0")) {
        return Err(format!("{FIT} --remove leaves something: {said}{left}"));
    }
    let file = copy.join("migration/tls.c");
    let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
    fs::write(&file, text.replace(ANCHOR.0, "another_name")).map_err(|e| e.to_string())?;
    let (fitted, said) = fit(&copy, &[])?;
    let left =
        output(Command::new("grep").args(["-rciF", "sealane"]).arg(&copy)).unwrap_or_default();
    if fitted || !said.contains(ANCHOR.1) || left.lines().any(|line| !line.ends_with(":0")) {
        return Err(format!("{FIT} does not refuse a tree without {}: {said}{left}", ANCHOR.1));
    }
    println!("{FIT}: again without a change, taken out, refused without an anchor");
    Ok(())
}

/// `--disable-sealane` builds QEMU as it was.
fn check_without(place: &Path) -> Result {
    build(place, "without", &["--disable-sealane"], &[BINARY])?;
    let binary = place.join("without").join(BINARY);
    let objects = output(Command::new(&binary).args(["-object", "help"]))?;
    let needed = output(Command::new("readelf").arg("--dynamic").arg(&binary))?;
    for (what, text) in [("-object help", objects), ("readelf", needed)] {
        if text.contains("sealane") {
            return Err(format!("--disable-sealane leaves Sealane in QEMU ({what})"));
        }
    }
    Ok(())
}
