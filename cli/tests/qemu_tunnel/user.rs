//! Without root, and with the locked memory that an ordinary user has.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::geteuid;
use sealane_qemu::{Guest, Options, with_each};

use crate::tunnel::{Place, Tunnel};

/// `nobody`
const USER: u32 = 65534;
/// What Debian gives to each user.
const LOCKED_BYTES: u64 = 8 << 20;

#[test]
fn an_ordinary_user_moves_nine_channels() {
    with_each("an_ordinary_user_moves_nine_channels", |qemu| {
        let place = Place::new();
        // Where the build lies may be closed to others.
        let program = place.file("sealane");
        fs::copy(env!("CARGO_BIN_EXE_sealane"), &program).unwrap();
        let is_root = geteuid().is_root();
        if is_root {
            for file in [".", "key", "key2"] {
                chown(place.file(file), Some(USER), Some(USER)).unwrap();
            }
        }
        let run = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.arg("tunnel").args(arguments);
            if is_root {
                command.uid(USER).gid(USER);
            }
            // SAFETY: setrlimit(2) alone, which is safe between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED_BYTES, LOCKED_BYTES)?)
                });
            }
            Tunnel::spawn(command)
        };
        let source = Guest::start(qemu, "source", &Options::default());
        let target = Guest::start(qemu, "target", &Options::default().target());
        source.memory().fill(1);
        for guest in [&source, &target] {
            guest.prepare(&["multifd"], 8);
        }
        target.listen(&place.target_uri());
        // QEMU runs as root here, and its socket would be root's alone.
        fs::set_permissions(place.file("target"), fs::Permissions::from_mode(0o777)).unwrap();
        let (to, key) = (place.target_uri(), place.path("key2"));
        let mut far =
            run(&["target", "--listen", "127.0.0.1:0", "--to", &to, "--secret-file", &key]);
        let (address, from, key) = (far.address(), place.source_uri(), place.path("key"));
        let mut near = run(&["source", "--from", &from, "--to", &address, "--secret-file", &key]);
        near.address();
        let mode = fs::metadata(place.file("source")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        source.migrate(&from);
        source.wait_status("completed");
        target.wait_status("completed");
        let (near, far) = (near.end(), far.end());
        assert_eq!((near.code, far.code), (Some(0), Some(0)), "{near:#?}\n{far:#?}");
        source.memory().assert_equal(target.memory());
        let left = ["key", "key2", "source"].map(|name| place.file(name).exists());
        assert_eq!(left, [false; 3]);
    });
}
