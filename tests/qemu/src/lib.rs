//! Stock QEMU as a peer for tests: guests, their memory, QMP, migrations.
//!
//! `cargo xtask qemu` unpacks the versions that the distribution has and tells the tests by the
//! environment variable `SEALANE_QEMU`. A [`Guest`] is a QEMU process whose memory lies in a file
//! in /dev/shm, so that a test reads both ends' memory itself and trusts no report.

mod boot;
mod guest;
mod memory;
mod migration;
mod proxy;
mod qmp;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use boot::TOUCHED;
pub use guest::{Guest, Options};
pub use memory::{Memory, PAGE_BYTES};
pub use migration::{Info, ordinary_parameters};
pub use proxy::{Proxy, contains};
pub use qmp::{PATIENCE, Qmp};

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Its version, `7.2`.
    pub name: String,
    binary: PathBuf,
    firmware: Vec<String>,
    libraries: String,
}

/// The QEMUs of the list that `SEALANE_QEMU` names; none where it is not set.
///
/// # Panics
///
/// Where it is set and there is no such list.
pub fn installed() -> Vec<Qemu> {
    list_of("SEALANE_QEMU")
}

/// The QEMU that Sealane was fitted into, if the list that `SEALANE_QEMU_FITTED` names has it; the
/// last of the list.
///
/// # Panics
///
/// As [`installed`].
pub fn fitted() -> Option<Qemu> {
    list_of("SEALANE_QEMU_FITTED").pop()
}

fn list_of(variable: &str) -> Vec<Qemu> {
    let Some(path) = std::env::var_os(variable) else { return Vec::new() };
    let list = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{variable} {path:?}: {e}"));
    list.lines().map(Qemu::parse).collect()
}

/// Runs the case with each QEMU; says aloud that it is skipped where there is none.
pub fn with_each(test: &str, case: impl Fn(&Qemu)) {
    let installed = installed();
    if installed.is_empty() {
        println!("SKIP: {test}: no QEMU: cargo xtask test gets one");
    }
    for qemu in &installed {
        println!("{test}: QEMU {}", qemu.name);
        case(qemu);
    }
}

/// Whether this user may use the machine's virtualization.
pub fn kvm_is_here() -> bool {
    fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

impl Qemu {
    /// Writes a shell script that starts it as a command of the PATH would be started.
    ///
    /// # Panics
    ///
    /// Where the file cannot be written.
    pub fn write_wrapper(&self, path: &Path) {
        let firmware: Vec<_> = self.firmware.iter().map(|place| format!("-L '{place}'")).collect();
        let (libraries, binary) = (&self.libraries, self.binary.display());
        let text = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH='{libraries}' exec '{binary}' {} \"$@\"\n",
            firmware.join(" ")
        );
        fs::write(path, text).expect("a script");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// A line of the list: version, binary, `-L` directories, libraries, with tabs between.
    fn parse(line: &str) -> Self {
        let fields: Vec<_> = line.split('\t').collect();
        let [name, binary, firmware, libraries] = fields[..] else {
            panic!("no line of four fields: {line:?}");
        };
        Self {
            name: name.to_owned(),
            binary: binary.into(),
            firmware: firmware.split(':').map(str::to_owned).collect(),
            libraries: libraries.to_owned(),
        }
    }

    /// Whether it is at least this version.
    pub fn is_since(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.name.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    /// Whether postcopy can have a channel of its own for urgent pages.
    pub fn has_preempt(&self) -> bool {
        self.is_since(7, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        let qemu = Qemu::parse("10.0\t/q\t/a:/b\t/c:/d");
        assert!(qemu.is_since(7, 2) && qemu.is_since(10, 0) && !qemu.is_since(10, 1));
        assert!(qemu.has_preempt() && qemu.firmware == ["/a", "/b"]);
    }
}
