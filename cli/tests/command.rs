//! The command as its user meets it: exit codes, files, messages.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;

use support::{Ended, Place, Running, json, run, sealane};

const ENGINES: [&str; 2] = ["uring", "syscalls"];

#[test]
fn an_image_crosses_and_its_secret_is_gone_at_both_ends() {
    for engine in ENGINES {
        for lanes in ["1", "2", "8"] {
            let place = Place::new();
            let (recv, address) = place.recv(&["--engine", engine]);
            let send = place.send(&address, &["--engine", engine, "--lanes", lanes]).end();
            let recv = recv.end();
            assert_eq!((send.code(), recv.code()), (0, 0), "{send:?} {recv:?}");
            place.assert_arrived();
            assert!(!place.file("key").exists() && !place.file("key2").exists());
            assert!(send.error.contains("sent 8389842 bytes"), "{send:?}");
            assert!(recv.error.contains("received 8389842 bytes"), "{recv:?}");
            assert_eq!((send.out, recv.out), (String::new(), String::new()));
        }
    }
}

#[test]
fn json_events_are_one_object_a_line_and_quiet_says_nothing() {
    let place = Place::new();
    let (recv, address) = place.recv(&["--json", "--keep-secret"]);
    let slow = ["--json", "--keep-secret", "--bandwidth", "5M"];
    let (send, recv) = (place.send(&address, &slow).end(), recv.end());
    assert_eq!((send.code(), recv.code()), (0, 0), "{send:?} {recv:?}");
    assert_eq!((&send.error[..], &recv.error[..]), ("", ""));
    let events = |ended: &Ended| -> Vec<String> {
        let event = |line| json(line)["event"].as_str().unwrap().to_owned();
        let mut events: Vec<_> = ended.out.lines().map(event).collect();
        events.dedup();
        events
    };
    assert_eq!(events(&send), ["started", "progress", "done"]);
    assert_eq!(events(&recv), ["listening", "started", "progress", "done"]);
    assert!(place.file("key").exists() && place.file("key2").exists(), "--keep-secret");
    place.assert_arrived();

    let (recv, address) = place.recv(&["--json", "--overwrite", "--engine", "syscalls"]);
    let send = place.send(&address, &["--quiet"]).end();
    assert_eq!((send.code(), recv.end().code()), (0, 0));
    assert_eq!((&send.out[..], &send.error[..]), ("", ""));
    let failed = run(&[
        "send",
        &place.path("none"),
        "--to",
        "127.0.0.1:1",
        "--json",
        "--secret-file",
        &place.path("key"),
    ]);
    let last = json(failed.out.lines().last().unwrap());
    assert_eq!((last["event"].as_str(), last["exit"].as_i64()), (Some("error"), Some(1)));
}

#[test]
fn an_existing_image_is_left_alone_unless_overwrite_is_named() {
    let place = Place::new();
    fs::write(place.file("got"), "mine").unwrap();
    let arguments = [
        "recv",
        &place.path("got"),
        "--listen",
        "127.0.0.1:0",
        "--secret-file",
        &place.path("key2"),
    ];
    let refused = run(&arguments);
    assert_eq!(refused.code(), 1);
    assert!(refused.error.contains("left alone") && refused.error.contains("--overwrite"));
    assert_eq!(fs::read(place.file("got")).unwrap(), b"mine");
    // What another transfer writes meanwhile is named, and the source hears of it.
    let (recv, address) = place.recv(&["--overwrite"]);
    fs::write(place.file("got.partial"), "old").unwrap();
    let send = place.send(&address, &[]).end();
    let recv = recv.end();
    assert_eq!((send.code(), recv.code()), (1, 1));
    assert!(recv.error.contains("got.partial") && recv.error.contains("remove it"), "{recv:?}");
    assert!(send.error.contains("refused") && send.error.contains("got.partial"), "{send:?}");
    assert_eq!(fs::read(place.file("got")).unwrap(), b"mine");
    assert_eq!(fs::read(place.file("got.partial")).unwrap(), b"old");
    fs::remove_file(place.file("got.partial")).unwrap();
    let (recv, address) = place.recv(&["--overwrite"]);
    assert_eq!((place.send(&address, &[]).end().code(), recv.end().code()), (0, 0));
    place.assert_arrived();
}

#[test]
fn a_secret_that_others_can_read_is_refused_and_a_new_one_is_private() {
    let place = Place::new();
    let text = fs::read_to_string(place.file("key")).unwrap();
    assert!(text.len() == 65 && text.ends_with('\n'), "{} bytes", text.len());
    assert!(text.trim_end().bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(fs::metadata(place.file("key")).unwrap().permissions().mode() & 0o7777, 0o600);
    let again = run(&["secret", "new", &place.path("key")]);
    assert!(again.code() == 1 && again.error.contains("left alone"), "{again:?}");
    assert_eq!(fs::read_to_string(place.file("key")).unwrap(), text);
    for mode in [0o640, 0o604, 0o660] {
        fs::set_permissions(place.file("key"), fs::Permissions::from_mode(mode)).unwrap();
        let refused = place.send("127.0.0.1:1", &[]).end();
        assert_eq!(refused.code(), 1);
        assert!(refused.error.contains(&format!("{mode:04o}")), "{refused:?}");
        assert!(refused.error.contains("0600") && refused.error.contains("new secret"));
    }
    let missing =
        run(&["send", &place.path("image"), "--to", "127.0.0.1:1", "--secret-file", "no"]);
    assert!(missing.code() == 1 && missing.error.contains("sealane secret new"), "{missing:?}");
}

#[test]
fn a_wrong_secret_exits_3_and_the_listener_serves_the_right_one() {
    for engine in ENGINES {
        let place = Place::new();
        let (recv, address) = place.recv(&["--engine", engine]);
        assert_eq!(run(&["secret", "new", &place.path("wrong")]).code(), 0);
        let wrong = run(&[
            "send",
            &place.path("image"),
            "--to",
            &address,
            "--engine",
            engine,
            "--secret-file",
            &place.path("wrong"),
        ]);
        assert_eq!(wrong.code(), 3, "{wrong:?}");
        assert!(wrong.error.contains("same secret"), "{wrong:?}");
        assert!(place.file("wrong").exists(), "a failed attempt may be repeated");
        let send = place.send(&address, &["--engine", engine]).end();
        assert_eq!((send.code(), recv.end().code()), (0, 0));
        place.assert_arrived();
    }
}

#[test]
fn usage_errors_exit_2_and_an_absent_listener_exits_1() {
    let place = Place::new();
    for arguments in [
        vec!["send"],
        vec!["frobnicate"],
        vec!["send", "f", "--to", "h:1", "--secret-file", "k", "--lanes", "65"],
        vec!["send", "f", "--to", "h:1", "--secret-file", "k", "--engine", "magic"],
        vec!["send", "f", "--to", "h:1", "--secret-file", "k", "--frame-kib", "3"],
        vec!["send", "f", "--to", "h:1", "--secret-file", "k", "--bandwidth", "fast"],
    ] {
        assert_eq!(run(&arguments).code(), 2, "{arguments:?}");
    }
    let nobody = place.send("127.0.0.1:1", &[]).end();
    assert_eq!(nobody.code(), 1);
    assert!(nobody.error.contains("start the other end first"), "{nobody:?}");
    fs::write(place.file("image"), "").unwrap();
    let empty = place.send("127.0.0.1:1", &[]).end();
    assert!(empty.code() == 1 && empty.error.contains("an empty file"), "{empty:?}");
    fs::remove_file(place.file("image")).unwrap();
    nix::unistd::mkfifo(&place.file("image"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = place.send("127.0.0.1:1", &[]).end();
    assert!(fifo.code() == 1 && fifo.error.contains("no regular file"), "{fifo:?}");
}

#[test]
fn an_unknown_congestion_control_is_an_error_at_either_end_with_where_to_look() {
    let place = Place::new();
    let (recv, address) = place.recv(&["--congestion", "reno"]);
    let (file, key) = (place.path("got2"), place.path("key2"));
    let unknown = ["--congestion", "no-such"];
    let there = ["recv", &file, "--listen", "127.0.0.1:0", "--secret-file", &key];
    for ended in [place.send(&address, &unknown).end(), run(&[&there[..], &unknown].concat())] {
        assert_eq!(ended.code(), 1, "{ended:?}");
        for part in ["TCP_CONGESTION no-such", "tcp_available_congestion_control"] {
            assert!(ended.error.contains(part), "{ended:?}");
        }
    }
    let send = place.send(&address, &["--congestion", "reno"]).end();
    assert_eq!((send.code(), recv.end().code()), (0, 0), "{send:?}");
    place.assert_arrived();
}

#[test]
fn a_place_that_cannot_take_the_image_is_refused_before_anybody_connects() {
    let place = Place::new();
    fs::create_dir(place.file("directory")).unwrap();
    std::os::unix::fs::symlink(place.file("nowhere"), place.file("link")).unwrap();
    fs::write(place.file("old.partial"), "").unwrap();
    let key = place.path("key2");
    for (file, said) in [
        ("directory", "no regular file"),
        ("directory/", "names a directory"),
        ("..", "names a directory"),
        ("link", "no regular file"),
        ("image/x", "no directory"),
        ("nowhere/x", "No such file or directory"),
        ("old", "old.partial exists"),
    ] {
        let path = place.path(file);
        let arguments = ["recv", &path, "--listen", "127.0.0.1:0", "--secret-file", &key];
        let ended = run(&[&arguments[..], &["--overwrite"]].concat());
        assert_eq!(ended.code(), 1, "{file}: {ended:?}");
        let listened = ended.error.contains("listening");
        assert!(ended.error.contains(said) && !listened, "{file}: {ended:?}");
    }
}

#[test]
fn a_received_image_is_its_owners_alone_and_zero_copy_required_is_never_waived() {
    let place = Place::new();
    fs::write(place.file("image"), [7; 5000]).unwrap();
    let (recv, address) = place.recv(&[]);
    let send = place.send(&address, &["--zero-copy", "require"]).end();
    assert_eq!(send.code(), 1, "loopback copies: {send:?}");
    assert!(send.error.contains("the kernel copied"), "{send:?}");
    assert_eq!(recv.end().code(), 1);
    let (recv, address) = place.recv(&[]);
    let send = place.send(&address, &[]).end();
    assert_eq!((send.code(), recv.end().code()), (0, 0), "{send:?}");
    let mode = fs::metadata(place.file("got")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    for arguments in [&["doctor"][..], &["demo", "--mib", "16", "--engine", "syscalls"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let out = sealane(arguments).stdout(full).output().unwrap();
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code().is_some_and(|code| code <= 1), "{error}");
        assert!(!error.contains("panicked"), "{error}");
    }
}

#[test]
fn an_image_larger_than_accepted_is_refused_at_both_ends_with_both_figures() {
    let place = Place::new();
    let (recv, address) = place.recv(&["--max-bytes", "1M"]);
    for ended in [place.send(&address, &[]).end(), recv.end()] {
        assert_eq!(ended.code(), 1, "{ended:?}");
        for part in ["8389842", "1000000", "--max-bytes"] {
            assert!(ended.error.contains(part), "{part}: {ended:?}");
        }
    }
    place.assert_nothing_arrived();
}

#[test]
fn a_file_that_comes_meanwhile_is_left_alone_and_the_image_kept() {
    let place = Place::new();
    let (send, recv) = slow_transfer(&place, "uring");
    fs::write(place.file("got"), "another's").unwrap();
    let (send, recv) = (send.end(), recv.end());
    assert_eq!((send.code(), recv.code()), (1, 1), "{send:?} {recv:?}");
    assert!(send.error.contains("in doubt") && recv.error.contains("whole"), "{send:?} {recv:?}");
    assert_eq!(fs::read(place.file("got")).unwrap(), b"another's");
    assert!(fs::read(place.file("got.partial")).unwrap() == place.content);
}

/// Starts a transfer that takes long and waits until both ends are in it.
fn slow_transfer(place: &Place, engine: &str) -> (Running, Running) {
    let (recv, address) = place.recv(&["--engine", engine, "--json"]);
    let send = place.send(&address, &["--engine", engine, "--json", "--bandwidth", "500K"]);
    for end in [&send, &recv] {
        while json(&end.line())["event"] != "progress" {}
    }
    (send, recv)
}

#[test]
fn a_signal_at_either_end_cancels_both_and_the_attempt_may_be_repeated() {
    for engine in ENGINES {
        for (at_source, signal) in [(true, Signal::SIGINT), (false, Signal::SIGTERM)] {
            let place = Place::new();
            let (send, recv) = slow_transfer(&place, engine);
            if at_source {
                send.signal(signal)
            } else {
                recv.signal(signal)
            }
            let (send, recv) = (send.end(), recv.end());
            assert_eq!((send.code(), recv.code()), (4, 4), "{send:?} {recv:?}");
            let (ours, theirs) = if at_source { (send, recv) } else { (recv, send) };
            assert!(ours.error.contains("cancelled by the caller at this end"), "{ours:?}");
            assert!(theirs.error.contains("cancelled by the other end"), "{theirs:?}");
            place.assert_nothing_arrived();
            let (recv, address) = place.recv(&["--engine", engine]);
            let send = place.send(&address, &["--engine", engine]).end();
            assert_eq!((send.code(), recv.end().code()), (0, 0));
            place.assert_arrived();
        }
    }
    let place = Place::new();
    let (recv, _) = place.recv(&[]);
    recv.signal(Signal::SIGTERM);
    assert_eq!(recv.end().code(), 4, "while it waits for a peer");
    place.assert_nothing_arrived();
}

#[test]
fn a_killed_peer_is_an_error_and_leaves_nothing_that_looks_whole() {
    for engine in ENGINES {
        let place = Place::new();
        let (send, recv) = slow_transfer(&place, engine);
        send.signal(Signal::SIGKILL);
        let recv = recv.end();
        assert_eq!(recv.code(), 1, "{recv:?}");
        assert!(recv.error.contains("the other end closed the connection"), "{recv:?}");
        send.end();
        place.assert_nothing_arrived();

        let (send, recv) = slow_transfer(&place, engine);
        recv.signal(Signal::SIGKILL);
        let send = send.end();
        assert_eq!(send.code(), 1, "{send:?}");
        assert!(send.error.contains("the other end closed the connection"), "{send:?}");
        recv.end();
        assert!(!place.file("got").exists(), "only the part under its own name");
        place.assert_source_is_untouched();
    }
}

#[test]
fn a_file_that_may_not_grow_so_far_is_named_at_both_ends() {
    use nix::sys::resource::{Resource, setrlimit};
    for engine in ENGINES {
        let place = Place::new();
        let (file, key) = (place.path("got"), place.path("key2"));
        let mut command = sealane(&[
            "recv",
            &file,
            "--listen",
            "127.0.0.1:0",
            "--secret-file",
            &key,
            "--engine",
            engine,
        ]);
        // SAFETY: setrlimit(2) is safe between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, 1 << 20)?));
        }
        let recv = Running::start(&mut command);
        let line = recv.line();
        let address = line.strip_prefix("listening at ").unwrap().to_owned();
        let send = place.send(&address, &["--engine", engine]).end();
        let recv = recv.end();
        assert_eq!((send.code(), recv.code()), (1, 1), "{send:?} {recv:?}");
        for error in [send.error, recv.error] {
            assert!(error.contains("File too large") && error.contains("ulimit -f"), "{error}");
        }
        place.assert_nothing_arrived();
    }
}

#[test]
fn an_image_that_shrinks_under_the_source_is_an_error_at_both_ends() {
    for engine in ENGINES {
        let place = Place::new();
        let (send, recv) = slow_transfer(&place, engine);
        File::options().write(true).open(place.file("image")).unwrap().set_len(1 << 20).unwrap();
        let (send, recv) = (send.end(), recv.end());
        assert_eq!((send.code(), recv.code()), (1, 1), "{send:?} {recv:?}");
        assert!(send.error.contains("shrank"), "{send:?}");
        assert!(!place.file("got").exists() && !place.file("got.partial").exists());
    }
}

#[test]
fn the_demo_finds_memory_identical() {
    for engine in ENGINES {
        let demo = run(&["demo", "--mib", "48", "--lanes", "2", "--engine", engine]);
        assert_eq!(demo.code(), 0, "{demo:?}");
        for row in [
            "total time",
            "downtime",
            "GB/s",
            "zero pages",
            "rounds",
            "lanes            2",
            "provider",
            "zero-copy",
            "CPU, source",
            "CPU, target",
            "memory identical",
        ] {
            assert!(demo.out.contains(row), "{row}: {demo:?}");
        }
        assert!(demo.out.contains(&format!("engine           {engine}")));
    }
}

/// The command in a sandbox that forbids io_uring, as container runtimes do.
fn without_io_uring(arguments: &[&str]) -> Ended {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let filter: BpfProgram = SeccompFilter::new(
        [(nix::libc::SYS_io_uring_setup, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(nix::libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap()
    .try_into()
    .unwrap();
    let mut command = sealane(arguments);
    // SAFETY: prctl(2) and seccomp(2) alone, on a filter made before the fork.
    unsafe {
        command.pre_exec(move || apply_filter(&filter).map_err(std::io::Error::other));
    }
    Running::start(&mut command).end()
}

#[test]
fn doctor_says_what_is_missing_and_who_forbids_it() {
    let doctor = run(&["doctor"]);
    for name in [
        "kernel",
        "io_uring SEND",
        "io_uring READ_FIXED",
        "locked memory",
        "CPU",
        "provider",
        "page cache",
        "huge pages",
        "send buffer",
        "receive buffer",
        "congestion control",
    ] {
        assert!(doctor.out.contains(name), "{name}: {doctor:?}");
    }
    let words = ["ok", "degraded", "missing"];
    let missing = doctor.out.lines().any(|line| line.starts_with("missing"));
    assert_eq!(doctor.code(), i32::from(missing), "{doctor:?}");
    let known = |line: &str| words.iter().any(|word| line.starts_with(word));
    assert!(doctor.out.lines().all(|line| known(line) || line.starts_with("the default")));

    let denied = without_io_uring(&["doctor"]);
    assert_eq!(denied.code(), 1, "{denied:?}");
    let line = denied.out.lines().find(|line| line.starts_with("missing   io_uring "));
    let line = line.unwrap_or_else(|| panic!("{denied:?}"));
    assert!(line.contains("seccomp") && line.contains("--engine syscalls"), "{line}");
    let demo = without_io_uring(&["demo", "--mib", "16"]);
    assert!(demo.code() == 1 && demo.error.contains("engine = syscalls"), "{demo:?}");
    let demo = without_io_uring(&["demo", "--mib", "16", "--engine", "syscalls"]);
    assert!(demo.code() == 0 && demo.out.contains("memory identical"), "{demo:?}");
}

#[test]
fn man_pages_are_written_for_each_command() {
    let directory = tempfile::tempdir().unwrap();
    let made = run(&["man", directory.path().to_str().unwrap()]);
    assert_eq!(made.code(), 0, "{made:?}");
    for page in ["sealane.1", "sealane-send.1", "sealane-recv.1", "sealane-demo.1"] {
        let text = fs::read_to_string(directory.path().join(page)).unwrap();
        assert!(text.contains(".SH"), "{page}");
    }
    let top = fs::read_to_string(directory.path().join("sealane.1")).unwrap();
    assert!(top.contains("3 peer not authenticated"), "exit codes stand in the page");
    let recv = fs::read_to_string(directory.path().join("sealane-recv.1")).unwrap();
    assert!(recv.contains("partial"), "where the image lies until it is whole");
}
