//! The commands of docs/qemu-tunnel.md.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sealane_qemu::with_each;

#[test]
fn the_try_in_the_docs_works_as_it_stands() {
    let text = include_str!("../../../docs/qemu-tunnel.md");
    let script = text.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    with_each("the_try_in_the_docs_works_as_it_stands", |qemu| {
        let place = tempfile::tempdir().unwrap();
        let bin = place.path().join("bin");
        fs::create_dir(&bin).unwrap();
        // An unpacked QEMU needs to be told where its libraries and its firmware lie.
        qemu.write_wrapper(&bin.join("qemu-system-x86_64"));
        let sealane = Path::new(env!("CARGO_BIN_EXE_sealane"));
        std::os::unix::fs::symlink(sealane, bin.join("sealane")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        // A port that nobody else has now.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(script.contains("127.0.0.1:7811"));
        let script = script.replace(":7811", &format!(":{port}"));
        let mut command = Command::new("timeout");
        command.args(["60", "sh", "-e", "-c", &script]).env("PATH", path).current_dir(place.path());
        let output = command.output().unwrap();
        let try_ = place.path().join("try");
        let logs = ["source.log", "target.log"].map(|log| fs::read_to_string(try_.join(log)));
        assert!(output.status.success(), "{output:#?}\n{logs:#?}");
        assert!(!try_.join("key").exists() && !try_.join("key2").exists());
        let mode = fs::metadata(&try_).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    });
}
