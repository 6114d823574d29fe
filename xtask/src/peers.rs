//! Programs that `bench ways` compares with, where the machine lacks them: the distribution's
//! packages, unpacked below target/peers and not installed, because an installed sshd would listen
//! on the machine. To fetch again: remove target/peers.
//!
//! OpenSSH from 9.8 on finds its other programs at their installed place alone: there, install it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, run};

/// What the benchmark reads to learn where [`ensure`] put them.
pub const VARIABLE: &str = "SEALANE_PEERS";
const PLACE: &str = "target/peers";
/// A program, the packages that it comes from.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("stunnel", &["stunnel4", "libwrap0"]),
    ("socat", &["socat", "libwrap0"]),
    ("sshd", &["openssh-server", "libwrap0"]),
    ("ssh", &["openssh-client"]),
];

/// Where they are unpacked. What cannot be had is said, and the benchmark skips it aloud.
///
/// # Errors
///
/// Where the directory cannot be made.
pub fn ensure() -> Result<PathBuf> {
    let place = env::current_dir().map_err(|e| e.to_string())?.join(PLACE);
    let archives = place.join("archives");
    fs::create_dir_all(&archives).map_err(|e| format!("{}: {e}", archives.display()))?;
    for (program, packages) in PROGRAMS {
        if is_there(program, &place) {
            continue;
        }
        if let Err(error) = fetch(packages, &archives, &place) {
            eprintln!(
                "xtask: {program} is skipped: {error}\nmake `apt-get update` work, or install it"
            );
        }
    }
    Ok(place)
}

fn is_there(program: &str, place: &Path) -> bool {
    let mut places: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    places.push("/usr/sbin".into());
    places.extend([place.join("usr/bin"), place.join("usr/sbin")]);
    places.iter().any(|place| place.join(program).is_file())
}

fn fetch(packages: &[&str], archives: &Path, place: &Path) -> Result {
    let download = || {
        let mut command = Command::new("apt-get");
        command.args(["download", "-qq", "-o", "APT::Sandbox::User="]).args(packages);
        run(command.current_dir(archives))
    };
    // Lists may be missing, or older than the mirror.
    download().or_else(|_| {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        download()
    })?;
    for path in fs::read_dir(archives).map_err(|e| e.to_string())?.flatten().map(|e| e.path()) {
        run(Command::new("dpkg-deb").arg("--extract").arg(path).arg(place))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_is_not_fetched() {
        assert!(is_there("sh", Path::new("/nowhere")));
        assert!(!is_there("no-such-program", Path::new("/nowhere")));
    }
}
