//! What goes wrong: each case ends with a named error at the end that lives, on both engines, and
//! never with a guest at both.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use sealane::memory::DirtyBitmap;
use sealane::{
    Canceller, Config, EngineChoice, Error, Listener, OneTimeSecret, Result, Role, SourceReport,
    dial,
};
use support::{
    ENGINES, Proxy, STEPS, Step, config, fill, memfd, read, source, target, target_with,
};

const BYTES: u64 = 8 << 20;

/// A source that goes through all of its steps and calls `before` ahead of each.
fn whole_source(
    file: &File,
    address: &str,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
    before: impl Fn(SourceStep),
) -> Result<SourceReport> {
    let (mut source, pages) = source(file, address, secret, config, cancel)?;
    before(SourceStep::Round);
    source.send_round(&[DirtyBitmap::all(pages)])?;
    before(SourceStep::SecondRound);
    source.send_round(&[DirtyBitmap::all(pages)])?;
    before(SourceStep::Commit);
    source.commit(b"state")?;
    before(SourceStep::HandOver);
    source.hand_over()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceStep {
    Round,
    SecondRound,
    Commit,
    HandOver,
}

const SOURCE_STEPS: [SourceStep; 4] =
    [SourceStep::Round, SourceStep::SecondRound, SourceStep::Commit, SourceStep::HandOver];

/// Whether an error says that the connection is gone.
fn says_gone(error: &Error) -> bool {
    match error {
        Error::InDoubt(inner) => says_gone(inner),
        error => error.to_string().contains("closed the connection"),
    }
}

#[test]
fn a_target_killed_before_any_of_its_steps_leaves_the_guest_with_the_source_or_in_doubt() {
    for engine in ENGINES {
        for step in STEPS {
            let config = config(engine, 2);
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 1);
            let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
            let (cutter, to_cut) = mpsc::channel::<Proxy>();
            let (address, end) = target_with(&into, &secret, &config, &cancel, move |now| {
                if now == step {
                    to_cut.recv().unwrap().cut();
                }
            });
            let (proxy, address) = Proxy::new(&address);
            cutter.send(proxy).unwrap();
            let ours = whole_source(&from, &address, &secret, &config, &cancel, |_| {});
            let theirs = end.join().unwrap();
            let error = ours.err().unwrap();
            assert!(says_gone(&error), "{engine:?} {step:?}: {error}");
            let in_doubt = matches!(error, Error::InDoubt(_));
            assert_eq!(in_doubt, step == Step::Done, "{engine:?} {step:?}: {error}");
            // The target that had heard HANDOVER keeps the guest, any other does not run it.
            assert_eq!(theirs.is_ok(), in_doubt, "{engine:?} {step:?}");
            if let Err(error) = theirs {
                assert!(says_gone(&error), "{engine:?} {step:?}: {error}");
            }
        }
    }
}

#[test]
fn a_source_killed_before_any_of_its_steps_leaves_no_guest_at_the_target() {
    for engine in ENGINES {
        for step in SOURCE_STEPS {
            let config = config(engine, 2);
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 2);
            let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
            let (address, end) = target(&into, &secret, &config, &cancel);
            let (proxy, address) = Proxy::new(&address);
            let ours = whole_source(&from, &address, &secret, &config, &cancel, |now| {
                if now == step {
                    proxy.cut();
                }
            });
            let error = end.join().unwrap().err().unwrap();
            assert!(says_gone(&error), "{engine:?} {step:?}: {error}");
            let error = ours.err().unwrap();
            assert!(says_gone(&error), "{engine:?} {step:?}: {error}");
        }
    }
}

#[test]
fn a_peer_killed_in_the_middle_of_a_round_is_noticed_by_both() {
    for engine in ENGINES {
        let mut config = config(engine, 2);
        config.bandwidth_bytes_per_s = 8 << 20;
        let (from, into) = (memfd(BYTES), memfd(BYTES));
        fill(&from, BYTES, 3);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (address, end) = target(&into, &secret, &config, &cancel);
        let (proxy, address) = Proxy::new(&address);
        let (mut source, pages) = source(&from, &address, &secret, &config, &cancel).unwrap();
        let progress = source.progress();
        let cutter = std::thread::spawn(move || {
            while progress.pages() < 100 {
                std::thread::sleep(Duration::from_millis(1));
            }
            proxy.cut();
        });
        let error = source.send_round(&[DirtyBitmap::all(pages)]).unwrap_err();
        assert!(says_gone(&error), "{engine:?}: {error}");
        assert!(says_gone(&end.join().unwrap().err().unwrap()));
        cutter.join().unwrap();
    }
}

#[test]
fn a_cancel_at_the_target_before_any_of_its_steps_ends_both_until_the_handover() {
    for engine in ENGINES {
        for step in STEPS {
            let config = config(engine, 2);
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 4);
            let secret = OneTimeSecret::generate().unwrap();
            let (ours, theirs) = (Canceller::default(), Canceller::default());
            let other = theirs.clone();
            let (address, end) = target_with(&into, &secret, &config, &theirs, move |now| {
                if now == step {
                    other.cancel();
                }
            });
            let source = whole_source(&from, &address, &secret, &config, &ours, |_| {});
            let target = end.join().unwrap();
            if step == Step::Done {
                // Too late: the guest is the target's.
                assert!(source.is_ok() && target.is_ok(), "{engine:?}");
                assert!(read(&from) == read(&into));
                continue;
            }
            let (ours, theirs) = (source.err().unwrap(), target.err().unwrap());
            let what = format!("{engine:?} {step:?}: {ours}; {theirs}");
            assert!(ours.to_string().contains("cancelled by the other end"), "{what}");
            assert!(theirs.to_string().contains("at this end"), "{what}");
        }
    }
}

#[test]
fn a_cancel_at_the_source_before_any_of_its_steps_ends_both() {
    for engine in ENGINES {
        for step in SOURCE_STEPS {
            let config = config(engine, 2);
            let (from, into) = (memfd(BYTES), memfd(BYTES));
            fill(&from, BYTES, 5);
            let secret = OneTimeSecret::generate().unwrap();
            let (ours, theirs) = (Canceller::default(), Canceller::default());
            let (address, end) = target(&into, &secret, &config, &theirs);
            let source = whole_source(&from, &address, &secret, &config, &ours, |now| {
                if now == step {
                    ours.cancel();
                }
            });
            let (ours, theirs) = (source.err().unwrap(), end.join().unwrap().err().unwrap());
            let what = format!("{engine:?} {step:?}: {ours}; {theirs}");
            assert!(ours.to_string().contains("at this end"), "{what}");
            assert!(theirs.to_string().contains("cancelled by the other end"), "{what}");
            // A cancelled attempt may be repeated with the same secret.
            let cancel = Canceller::default();
            let (address, end) = target(&into, &secret, &config, &cancel);
            whole_source(&from, &address, &secret, &config, &cancel, |_| {}).unwrap();
            end.join().unwrap().unwrap();
            assert!(read(&from) == read(&into));
        }
    }
}

#[test]
fn a_cancel_reaches_a_source_whose_orders_wait_for_a_lane() {
    for engine in ENGINES {
        let mut config = config(engine, 2);
        config.bandwidth_bytes_per_s = 4 << 20;
        // Twice as many stripes as a lane's queue holds.
        let (from, into) = (memfd(512 << 20), memfd(512 << 20));
        fill(&from, 16 << 20, 10);
        let secret = OneTimeSecret::generate().unwrap();
        let (ours, theirs) = (Canceller::default(), Canceller::default());
        let (address, end) = target(&into, &secret, &config, &theirs);
        let (mut source, pages) = source(&from, &address, &secret, &config, &ours).unwrap();
        let progress = source.progress();
        let timer = std::thread::spawn(move || {
            while progress.pages() < 100 {
                std::thread::sleep(Duration::from_millis(1));
            }
            theirs.cancel();
        });
        let error = source.send_round(&[DirtyBitmap::all(pages)]).unwrap_err().to_string();
        assert!(error.contains("cancelled by the other end"), "{engine:?}: {error}");
        assert!(end.join().unwrap().unwrap_err().is_cancelled());
        timer.join().unwrap();
    }
}

#[test]
fn a_cancel_after_the_source_has_let_go_does_nothing() {
    for engine in ENGINES {
        let config = config(engine, 2);
        let (from, into) = (memfd(BYTES), memfd(BYTES));
        fill(&from, BYTES, 11);
        let secret = OneTimeSecret::generate().unwrap();
        let (ours, theirs) = (Canceller::default(), Canceller::default());
        let other = ours.clone();
        let (address, end) = target_with(&into, &secret, &config, &theirs, move |now| {
            if now == Step::Done {
                other.cancel();
                // Long enough for the source to look at it before DONE.
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        whole_source(&from, &address, &secret, &config, &ours, |_| {}).unwrap();
        end.join().unwrap().unwrap();
        assert!(read(&from) == read(&into));
    }
}

#[test]
fn settings_out_of_range_are_errors_before_any_thread_starts() {
    let good = config(EngineChoice::Syscalls, 1);
    let (from, into) = (memfd(1 << 20), memfd(1 << 20));
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let (address, end) = target(&into, &secret, &good, &cancel);
    let lanes = dial(&address.parse().unwrap(), Role::Source, &secret, &good, &cancel).unwrap();
    let mut bad = good.clone();
    bad.slots_per_lane = 65;
    let region =
        sealane::memory::Region::from_file("ram", from.try_clone().unwrap(), 0, 1 << 20).unwrap();
    let error = sealane::Source::start(lanes, vec![region], &bad, &cancel).err().unwrap();
    assert!(matches!(error, Error::Config(_)), "{error}");
    assert!(says_gone(&end.join().unwrap().err().unwrap()));
}

#[test]
fn a_cancel_ends_the_handshake_at_either_end() {
    // Accepts and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let secret = OneTimeSecret::generate().unwrap();
    let config = config(EngineChoice::Syscalls, 1);
    for dials in [true, false] {
        let cancel = Canceller::default();
        let other = cancel.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            other.cancel();
        });
        let ended = if dials {
            dial(&address.parse().unwrap(), Role::Source, &secret, &config, &cancel)
        } else {
            let listener = Listener::bind("127.0.0.1:0").unwrap();
            listener.accept(Role::Target, &secret, &config, &cancel)
        };
        assert!(ended.err().unwrap().is_cancelled());
        thread.join().unwrap();
    }
}

#[test]
fn a_peer_that_dies_in_the_handshake_is_not_authenticated_and_the_listener_waits_on() {
    let config = config(EngineChoice::Syscalls, 1);
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let dying = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = dying.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || drop(dying.accept().unwrap()));
    let error =
        dial(&address.parse().unwrap(), Role::Source, &secret, &config, &cancel).err().unwrap();
    assert!(error.is_authentication() && error.to_string().contains("handshake"), "{error}");
    thread.join().unwrap();

    let (from, into) = (memfd(BYTES), memfd(BYTES));
    fill(&from, BYTES, 6);
    let (address, end) = target(&into, &secret, &config, &cancel);
    for bytes in [0, 1, 111, 112, 200] {
        use std::io::Write;
        let mut stranger = std::net::TcpStream::connect(&address).unwrap();
        stranger.write_all(&vec![0xA5; bytes]).unwrap();
    }
    whole_source(&from, &address, &secret, &config, &cancel, |_| {}).unwrap();
    end.join().unwrap().unwrap();
}

#[test]
fn a_recorded_hello_sent_again_is_not_answered() {
    use std::io::{Read, Write};
    let config = config(EngineChoice::Syscalls, 1);
    let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
    let (from, into) = (memfd(BYTES), memfd(BYTES));
    let (address, end) = target(&into, &secret, &config, &cancel);
    // A first message that the listener answers, from a dialler that goes away then.
    let recorder = TcpListener::bind("127.0.0.1:0").unwrap();
    let (theirs, own) = (secret.clone(), config.clone());
    let recorded_at = recorder.local_addr().unwrap().to_string();
    let dialler = std::thread::spawn(move || {
        dial(&recorded_at.parse().unwrap(), Role::Source, &theirs, &own, &Canceller::default())
            .err()
            .unwrap()
    });
    let (mut near, _) = recorder.accept().unwrap();
    let mut hello = [0; 112];
    near.read_exact(&mut hello).unwrap();
    drop(near);
    dialler.join().unwrap();
    for answered in [true, false] {
        let mut replay = std::net::TcpStream::connect(&address).unwrap();
        replay.write_all(&hello).unwrap();
        replay.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = replay.read_to_end(&mut answer);
        assert_eq!(!answer.is_empty(), answered);
    }
    whole_source(&from, &address, &secret, &config, &cancel, |_| {}).unwrap();
    end.join().unwrap().unwrap();
}

#[test]
fn a_secret_serves_one_migration() {
    for engine in ENGINES {
        let config = config(engine, 1);
        let (from, into) = (memfd(1 << 20), memfd(1 << 20));
        fill(&from, 1 << 20, 7);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        // A second listener of the same process waits with the same secret.
        let (other_address, other_end) = target(&into, &secret, &config, &cancel);
        let (address, end) = target(&into, &secret, &config, &cancel);
        let copy = OneTimeSecret::from_text(&secret.to_text()).unwrap();
        whole_source(&from, &address, &secret, &config, &cancel, |_| {}).unwrap();
        end.join().unwrap().unwrap();

        let error = dial(&other_address.parse().unwrap(), Role::Source, &copy, &config, &cancel)
            .err()
            .unwrap();
        assert!(error.to_string().contains("has carried a migration already"), "{error}");
        let error = other_end.join().unwrap().err().unwrap().to_string();
        assert!(error.contains("sealane secret new"), "{error}");
        for again in [
            dial(&other_address.parse().unwrap(), Role::Source, &secret, &config, &cancel),
            Listener::bind("127.0.0.1:0").unwrap().accept(Role::Target, &secret, &config, &cancel),
        ] {
            let error = again.err().unwrap().to_string();
            assert!(error.contains("has used") && error.contains("secret new"), "{error}");
        }
    }
}

#[test]
fn a_full_disk_at_the_target_is_named_at_both_ends() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: full_disk: needs root to mount a small tmpfs");
        return;
    }
    for engine in ENGINES {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().to_owned();
        // In a mount namespace of this thread's own: gone with the thread.
        let file = std::thread::spawn(move || {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("t"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path.join("image"))
                .unwrap();
            file.set_len(BYTES).unwrap();
            file
        })
        .join()
        .unwrap();
        let config = config(engine, 2);
        let from = memfd(BYTES);
        fill(&from, BYTES, 8);
        let before = read(&from);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (address, end) = target(&file, &secret, &config, &cancel);
        let ours = whole_source(&from, &address, &secret, &config, &cancel, |_| {});
        for error in [ours.err().unwrap(), end.join().unwrap().err().unwrap()] {
            let text = error.to_string();
            assert!(text.contains("No space left") && text.contains("free space"), "{text}");
        }
        assert!(read(&from) == before);
    }
}

#[test]
fn io_uring_denied_by_seccomp_is_named_with_its_remedy() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let filter = |call: i64| -> BpfProgram {
        SeccompFilter::new(
            BTreeMap::from([(call, vec![])]),
            SeccompAction::Allow,
            SeccompAction::Errno(nix::libc::EPERM as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        )
        .unwrap()
        .try_into()
        .unwrap()
    };
    use nix::libc::{SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup};
    for call in [SYS_io_uring_setup, SYS_io_uring_register, SYS_io_uring_enter] {
        let filter = filter(call);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        let (from, into) = (memfd(1 << 20), memfd(1 << 20));
        fill(&from, 1 << 20, 9);
        let plain = config(EngineChoice::Syscalls, 1);
        let (address, end) = target(&into, &secret, &plain, &cancel);
        // A filter holds for the thread that sets it and the threads that it makes.
        let denied = std::thread::spawn(move || {
            apply_filter(&filter).unwrap();
            let cancel = Canceller::default();
            let uring = config(EngineChoice::Uring, 1);
            let error =
                whole_source(&from, &address, &secret, &uring, &cancel, |_| {}).err().unwrap();
            (error, from, secret)
        });
        let (error, from, secret) = denied.join().unwrap();
        let text = error.to_string();
        assert!(
            text.contains("Operation not permitted")
                && text.contains("seccomp")
                && text.contains("engine = syscalls"),
            "{text}"
        );
        // The other end hears why, and the engine that was named works.
        let theirs = end.join().unwrap().err().unwrap().to_string();
        assert!(theirs.contains("closed the connection") || theirs.contains("refused"), "{theirs}");
        let (address, end) = target(&into, &secret, &plain, &cancel);
        whole_source(&from, &address, &secret, &plain, &cancel, |_| {}).unwrap();
        end.join().unwrap().unwrap();
        assert!(read(&from) == read(&into));
    }
}

#[test]
fn a_peer_that_hangs_is_given_up_after_its_time() {
    for engine in ENGINES {
        let mut config = config(engine, 1);
        config.peer_timeout = Duration::from_millis(1500);
        let from = memfd(1 << 20);
        let (secret, cancel) = (OneTimeSecret::generate().unwrap(), Canceller::default());
        // Lanes, and then nothing: a stopped process.
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (theirs, other) = (secret.clone(), config.clone());
        let (done, wait) = mpsc::channel::<()>();
        let stopped = std::thread::spawn(move || {
            let lanes = listener.accept(Role::Target, &theirs, &other, &Canceller::default());
            let _ = wait.recv();
            drop(lanes);
        });
        let error = source(&from, &address, &secret, &config, &cancel).err().unwrap().to_string();
        assert!(error.contains("nothing from the other end") && error.contains("peer_timeout"));
        done.send(()).unwrap();
        stopped.join().unwrap();
    }
}
