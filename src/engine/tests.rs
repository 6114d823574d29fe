//! Both engines do the same.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::buffer::HEAD_BYTES;

const BOTH: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Syscalls];
const PAYLOAD: usize = 256 << 10;

fn sockets() -> (Arc<OwnedFd>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    (Arc::new(ours.into()), theirs)
}

fn engine(choice: EngineChoice, pool: &Pool, socket: &Arc<OwnedFd>) -> Box<dyn Engine> {
    with_zero_copy(choice, pool, socket, ZeroCopy::Auto)
}

fn with_zero_copy(
    choice: EngineChoice,
    pool: &Pool,
    socket: &Arc<OwnedFd>,
    zero_copy: ZeroCopy,
) -> Box<dyn Engine> {
    let to = Endpoint::of_lane(Arc::clone(socket), 5);
    let (sqpoll, register, callers, from) = (false, true, Callers::One, to.clone());
    let setup = EngineSetup { choice, zero_copy, sqpoll, pool, register, callers, from, to };
    open(&setup).unwrap()
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

fn memfd(bytes: usize) -> File {
    let file = File::from(
        nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::empty()).unwrap(),
    );
    let content: Vec<u8> = (0..bytes).map(|n| (n / 7) as u8).collect();
    file.write_all_at(&content, 0).unwrap();
    file
}

#[test]
fn what_is_sent_arrives_whole_and_in_order() {
    for choice in BOTH {
        let (socket, mut peer) = sockets();
        let pool = Pool::new(3, PAYLOAD).unwrap();
        let mut engine = engine(choice, &pool, &socket);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            // Slowly at first, so that sends come back short or wait.
            std::thread::sleep(Duration::from_millis(50));
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let mut expected = Vec::new();
        for n in 0..60u8 {
            let mut slot = loop {
                if let Some(slot) = pool.take() {
                    break slot;
                }
                engine.complete(soon()).unwrap();
            };
            while !engine.can_send() {
                engine.complete(soon()).unwrap();
            }
            let range = HEAD_BYTES - usize::from(n)..HEAD_BYTES + PAYLOAD;
            slot.bytes_mut()[range.clone()].fill(n);
            expected.extend_from_slice(&slot.bytes()[range.clone()]);
            engine.send(slot, range).unwrap();
        }
        while !engine.can_send() {
            engine.complete(soon()).unwrap();
        }
        shutdown(&socket);
        drop(engine);
        assert!(reader.join().unwrap() == expected, "{choice:?}");
        assert_eq!(
            std::iter::from_fn(|| pool.take()).collect::<Vec<_>>().len(),
            3,
            "every slot came back"
        );
    }
}

#[test]
fn receives_fill_their_range_or_end_short() {
    for choice in BOTH {
        let (socket, mut peer) = sockets();
        let pool = Pool::new(1, PAYLOAD).unwrap();
        let mut engine = engine(choice, &pool, &socket);
        let writer = std::thread::spawn(move || {
            for part in [&[1u8; 1000][..], &[2; 100_000], &[3; 24]] {
                peer.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        engine.recv(pool.take().unwrap(), 0..101_000, Until::Full).unwrap();
        let Some(Done::Received { slot, bytes }) = engine.complete(soon()).unwrap() else {
            panic!()
        };
        assert_eq!((bytes, slot.bytes()[999], slot.bytes()[1000]), (101_000, 1, 2));
        engine.recv(slot, 50..100, Until::Full).unwrap();
        let Some(Done::Received { slot, bytes }) = engine.complete(soon()).unwrap() else {
            panic!()
        };
        assert_eq!((bytes, slot.bytes()[73]), (24, 3));
        writer.join().unwrap();
    }
}

#[test]
fn files_are_read_and_written() {
    for choice in BOTH {
        let (socket, _peer) = sockets();
        let pool = Pool::new(2, PAYLOAD).unwrap();
        let mut engine = engine(choice, &pool, &socket);
        let from = memfd(3 * PAYLOAD);
        let into = memfd(0);
        let source =
            engine.register_file(Arc::new(from.try_clone().unwrap().into()), "from").unwrap();
        let target =
            engine.register_file(Arc::new(into.try_clone().unwrap().into()), "into").unwrap();
        let extents = [
            Extent { file_offset: 4096, slot_offset: HEAD_BYTES, bytes: 8192 },
            Extent { file_offset: 400_000, slot_offset: HEAD_BYTES + 8192, bytes: PAYLOAD - 8192 },
        ];
        engine.read(pool.take().unwrap(), source, &extents, 7).unwrap();
        let Some(Done::Read { slot, token: 7 }) = engine.complete(soon()).unwrap() else {
            panic!()
        };
        engine.write(slot, target, &extents, 8).unwrap();
        let Some(Done::Written { token: 8, .. }) = engine.complete(soon()).unwrap() else {
            panic!()
        };
        for extent in extents {
            let (mut one, mut two) = (vec![0; extent.bytes], vec![1; extent.bytes]);
            from.read_exact_at(&mut one, extent.file_offset).unwrap();
            into.read_exact_at(&mut two, extent.file_offset).unwrap();
            assert!(one == two);
        }
    }
}

#[test]
fn a_file_that_ends_early_and_one_that_takes_no_more_are_errors_with_their_name() {
    for choice in BOTH {
        let (socket, _peer) = sockets();
        let pool = Pool::new(1, PAYLOAD).unwrap();
        let mut engine = engine(choice, &pool, &socket);
        let short = engine.register_file(Arc::new(memfd(5000).into()), "short").unwrap();
        let extent = Extent { file_offset: 0, slot_offset: HEAD_BYTES, bytes: 8192 };
        engine.read(pool.take().unwrap(), short, &[extent], 1).unwrap();
        let error = engine.complete(soon()).unwrap_err().to_string();
        assert!(error.contains("short") && error.contains("byte 5000"), "{error}");

        let sealed = memfd(4096);
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        let sealed_fd =
            nix::sys::memfd::memfd_create(c"sealed", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING)
                .unwrap();
        fcntl(&sealed_fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
        drop(sealed);
        let full = engine.register_file(Arc::new(sealed_fd), "full").unwrap();
        engine.write(pool.take().expect("the slot came back"), full, &[extent], 1).unwrap();
        let error = engine.complete(soon()).unwrap_err().to_string();
        assert!(error.contains("full: write"), "{error}");
        assert!(pool.take().is_some());
    }
}

#[test]
fn a_hypervisors_reset_is_its_end_and_loses_nothing_that_came_and_a_lanes_is_an_error() {
    for choice in BOTH {
        for is_hypervisors in [true, false] {
            let (near, mut peer) = UnixStream::pair().unwrap();
            (&near).write_all(b"what is left unread").unwrap();
            peer.write_all(b"all").unwrap();
            let socket: Arc<OwnedFd> = Arc::new(near.into());
            let from = match is_hypervisors {
                true => Endpoint::of_hypervisor(Arc::clone(&socket), "unix".into()),
                false => Endpoint::of_lane(Arc::clone(&socket), 0),
            };
            let pool = Pool::new(1, 4096).unwrap();
            let mut engine = open(&EngineSetup {
                choice,
                zero_copy: ZeroCopy::Off,
                sqpoll: false,
                pool: &pool,
                register: false,
                callers: Callers::One,
                from,
                to: Endpoint::of_lane(socket, 0),
            })
            .unwrap();
            // As where more is looked for behind what came: the slot holds both.
            engine.recv(pool.take().unwrap(), 0..3, Until::Full).unwrap();
            let Some(Done::Received { slot, bytes: 3 }) = engine.complete(soon()).unwrap() else {
                panic!("three bytes came");
            };
            drop(peer);
            engine.recv(slot, 3..8, Until::Now).unwrap();
            match engine.complete(soon()) {
                Ok(Some(Done::Received { slot, bytes: 0 })) if is_hypervisors => {
                    assert_eq!(&slot.bytes()[..3], b"all");
                }
                Err(error) if !is_hypervisors => {
                    assert!(error.to_string().contains("recv"), "{error}");
                }
                other => panic!("{choice:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn deadlines_and_shutdown_end_a_wait() {
    for choice in BOTH {
        let (socket, _peer) = sockets();
        let pool = Pool::new(1, 4096).unwrap();
        let mut engine = engine(choice, &pool, &socket);
        assert!(engine.complete(None).unwrap().is_none(), "nothing is under way");
        engine.recv(pool.take().unwrap(), 0..8, Until::Full).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(engine.complete(Some(deadline)).unwrap().is_none());
        assert!(Instant::now() >= deadline);
        let other = Arc::clone(&socket);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            shutdown(&other);
        });
        let done = engine.complete(soon()).unwrap();
        assert!(matches!(done, Some(Done::Received { bytes: 0, .. })), "{done:?}");
        thread.join().unwrap();
    }
}

#[test]
fn dropping_with_operations_under_way_gives_every_slot_back() {
    for choice in BOTH {
        for round in 0..30 {
            let (socket, peer) = sockets();
            let pool = Pool::new(3, PAYLOAD).unwrap();
            // A peer that lives and does not read holds on to what was sent without a copy.
            let zero_copy = if round % 2 == 0 { ZeroCopy::Auto } else { ZeroCopy::Off };
            let mut engine = with_zero_copy(choice, &pool, &socket, zero_copy);
            let file = engine.register_file(Arc::new(memfd(PAYLOAD).into()), "f").unwrap();
            engine.recv(pool.take().unwrap(), 0..8, Until::Full).unwrap();
            engine.send(pool.take().unwrap(), 0..PAYLOAD).unwrap();
            let whole = Extent { file_offset: 0, slot_offset: HEAD_BYTES, bytes: PAYLOAD };
            engine.read(pool.take().unwrap(), file, &[whole], 0).unwrap();
            for _ in 0..round % 3 {
                engine.complete(Some(Instant::now())).unwrap();
            }
            if round % 2 == 0 {
                drop(peer);
            }
            drop(engine);
            assert_eq!(
                std::iter::from_fn(|| pool.take()).collect::<Vec<_>>().len(),
                3,
                "{choice:?} {round}"
            );
        }
    }
}

#[test]
fn zero_copy_required_is_an_error_where_the_kernel_copies() {
    let (socket, mut peer) = sockets();
    let pool = Pool::new(2, PAYLOAD).unwrap();
    let mut engine = with_zero_copy(EngineChoice::Uring, &pool, &socket, ZeroCopy::Require);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = peer.read_to_end(&mut all);
    });
    let mut sent = engine.send(pool.take().unwrap(), 0..PAYLOAD);
    let error = loop {
        match std::mem::replace(&mut sent, Ok(())).and_then(|()| engine.complete(soon())) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("loopback copies and says so"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("loopback") && error.contains("zero_copy = auto"), "{error}");
    assert_eq!(engine.statistics().zero_copy_copied, 1);
    drop(engine);
    shutdown(&socket);
    reader.join().unwrap();
}

#[test]
fn a_send_that_is_refused_at_once_says_so_itself() {
    for choice in BOTH {
        let (socket, _peer) = sockets();
        let pool = Pool::new(2, PAYLOAD).unwrap();
        let mut engine = with_zero_copy(choice, &pool, &socket, ZeroCopy::Off);
        shutdown(&socket);
        // Whoever looks only at `can_send` would take it for sent.
        let error = engine.send(pool.take().unwrap(), 0..PAYLOAD).unwrap_err();
        let Error::System(error) = error else { panic!("{error}") };
        assert_eq!(error.errno, libc::EPIPE, "{choice:?}");
        assert!(engine.can_send());
    }
}

#[test]
fn sends_that_nobody_asked_about_leave_nothing_behind() {
    for choice in BOTH {
        let (socket, mut peer) = sockets();
        let pool = Pool::new(2, PAYLOAD).unwrap();
        let mut engine = with_zero_copy(choice, &pool, &socket, ZeroCopy::Off);
        for n in 0..50 {
            engine.send(pool.take().unwrap(), 0..8).unwrap();
            while !engine.can_send() {
                engine.complete(soon()).unwrap();
            }
            peer.read_exact(&mut [n; 8]).unwrap();
        }
        let mut left = 0;
        while engine.complete(Some(Instant::now())).unwrap().is_some() {
            left += 1;
        }
        assert!(left <= 1, "{choice:?}: {left} answers wait");
    }
}

#[test]
fn a_polled_ring_moves_bytes_too() {
    let (socket, mut peer) = sockets();
    let pool = Pool::new(3, PAYLOAD).unwrap();
    let to = Endpoint::of_lane(Arc::clone(&socket), 0);
    let mut engine = open(&EngineSetup {
        choice: EngineChoice::Uring,
        zero_copy: ZeroCopy::Off,
        sqpoll: true,
        pool: &pool,
        register: true,
        callers: Callers::One,
        from: to.clone(),
        to,
    })
    .unwrap();
    let file = engine.register_file(Arc::new(memfd(PAYLOAD).into()), "f").unwrap();
    let whole = Extent { file_offset: 0, slot_offset: HEAD_BYTES, bytes: PAYLOAD };
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    let mut expected = Vec::new();
    for token in 0..4 {
        // Long enough for the kernel's thread to fall asleep, which takes a second.
        if token == 3 {
            std::thread::sleep(Duration::from_millis(1200));
        }
        engine.read(pool.take().unwrap(), file, &[whole], token).unwrap();
        let Some(Done::Read { slot, .. }) = engine.complete(soon()).unwrap() else { panic!() };
        expected.extend_from_slice(&slot.bytes()[HEAD_BYTES..HEAD_BYTES + PAYLOAD]);
        engine.send(slot, HEAD_BYTES..HEAD_BYTES + PAYLOAD).unwrap();
        while !engine.can_send() {
            engine.complete(soon()).unwrap();
        }
    }
    shutdown(&socket);
    assert!(reader.join().unwrap() == expected);
}
