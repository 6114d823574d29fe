//! Streams over TCP and over socket pairs, with both engines.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::cancel::Canceller;
use crate::config::EngineChoice;
use crate::error::PeerError;
use crate::establish::Dial;
use crate::trust::OneTimeSecret;
use crate::wire::Role;

const BOTH: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Syscalls];

fn config(engine: EngineChoice) -> Config {
    Config { engine, frame_bytes: 64 << 10, ..Config::default() }
}

fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near.into(), listener.accept().unwrap().0.into())
}

fn unix_pair() -> (OwnedFd, OwnedFd) {
    let (near, far) = UnixStream::pair().unwrap();
    (near.into(), far.into())
}

/// Both ends of a stream, source first.
fn pair(engine: EngineChoice, sockets: (OwnedFd, OwnedFd)) -> (Arc<Stream>, Arc<Stream>) {
    let secret = OneTimeSecret::generate().unwrap();
    let (theirs, own) = (secret.clone(), config(engine));
    let far = std::thread::spawn(move || {
        let cancel = Canceller::default();
        Streams::answer(sockets.1, Role::Target, &theirs, &own, &cancel).unwrap().1
    });
    let cancel = Canceller::default();
    let near = Streams::open(sockets.0, Role::Source, &secret, &config(engine), &cancel).unwrap();
    (Arc::new(near.1), Arc::new(far.join().unwrap()))
}

fn bytes(count: usize, salt: u8) -> Vec<u8> {
    (0..count).map(|n| (n / 251) as u8 ^ (n as u8).wrapping_mul(salt)).collect()
}

fn readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

fn await_readable(fd: &impl AsFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "it never came");
}

#[test]
fn bytes_cross_in_order_both_ways_at_once_and_end() {
    for engine in BOTH {
        for sockets in [tcp_pair(), unix_pair()] {
            let (near, far) = pair(engine, sockets);
            let there = bytes(3_000_001, 7);
            let back = bytes(1_234_567, 9);
            std::thread::scope(|scope| {
                let read = |stream: Arc<Stream>| {
                    move || {
                        let mut all = Vec::new();
                        (&*stream).read_to_end(&mut all).unwrap();
                        all
                    }
                };
                let came_there = scope.spawn(read(Arc::clone(&far)));
                let came_back = scope.spawn(read(Arc::clone(&near)));
                scope.spawn(|| {
                    for part in back.chunks(1021) {
                        (&*far).write_all(part).unwrap();
                    }
                    (&*far).flush().unwrap();
                    far.shutdown(Shutdown::Write).unwrap();
                });
                // One gathered write of many pieces, as a hypervisor's pages are.
                let pieces: Vec<_> = there.chunks(4096).map(IoSlice::new).collect();
                assert_eq!(near.write_vectored(&pieces).unwrap(), there.len());
                near.shutdown(Shutdown::Write).unwrap();
                assert!(came_there.join().unwrap() == there, "{engine:?}");
                assert!(came_back.join().unwrap() == back, "{engine:?}");
            });
            let (one, two) = (near.statistics(), far.statistics());
            assert_eq!(one.sent_bytes, two.received_bytes);
            assert_eq!(
                (one.sent_frames, one.received_frames),
                (two.received_frames, two.sent_frames)
            );
            // CONFIRM, full frames and their rest, STREAM_END.
            assert_eq!(one.sent_frames, 1 + 3_000_001u64.div_ceil(64 << 10) + 1);
            assert_eq!((&*near).write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
        }
    }
}

#[test]
fn what_was_written_arrives_though_its_thread_sleeps_or_has_ended() {
    for engine in BOTH {
        let (near, far) = pair(engine, tcp_pair());
        let sent = bytes(1 << 20, 3);
        let (asleep, wake) = channel::<()>();
        let writer = std::thread::spawn({
            let (near, sent) = (Arc::clone(&near), sent.clone());
            move || {
                for part in sent.chunks(10_000) {
                    (&*near).write_all(part).unwrap();
                }
                wake.recv().unwrap_err();
            }
        });
        let mut came = vec![0; sent.len()];
        (&*far).read_exact(&mut came).unwrap();
        assert!(came == sent);
        drop(asleep);
        writer.join().unwrap();
        // Each write from a thread of its own that is gone when its bytes are read, each read too.
        for n in 0..20u8 {
            let (ours, theirs) = (Arc::clone(&near), Arc::clone(&far));
            std::thread::spawn(move || (&*ours).write_all(&[n; 5000]).unwrap()).join().unwrap();
            let read = std::thread::spawn(move || {
                let mut came = [0; 5000];
                (&*theirs).read_exact(&mut came).unwrap();
                came
            });
            assert_eq!(read.join().unwrap(), [n; 5000]);
        }
    }
}

#[test]
fn a_small_write_is_one_frame_that_leaves_at_once_and_peek_leaves_it_there() {
    for engine in BOTH {
        let (near, far) = pair(engine, tcp_pair());
        for n in 1..5u8 {
            assert_eq!((&*near).write(&[n; 64]).unwrap(), 64);
            let mut came = [0; 64];
            assert_eq!(far.peek(&mut came[..10]).unwrap(), 10);
            assert_eq!(far.peek(&mut came).unwrap(), 64);
            (&*far).read_exact(&mut came).unwrap();
            assert_eq!(came, [n; 64]);
            assert_eq!(near.statistics().sent_frames, u64::from(n) + 1);
        }
        let mut nothing = [0; 0];
        assert_eq!((&*far).read(&mut nothing).unwrap(), 0);
        assert_eq!((&*near).write(&nothing).unwrap(), 0);
    }
}

#[test]
fn non_blocking_calls_return_and_descriptors_say_when_to_come_back() {
    for engine in BOTH {
        for sockets in [tcp_pair(), unix_pair()] {
            let (near, far) = pair(engine, sockets);
            near.set_nonblocking(true);
            far.set_nonblocking(true);
            let mut buffer = vec![0; 100_000];
            assert_eq!((&*far).read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!(far.peek(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert!(!readable(&far.read_ready_fd().unwrap()));
            // Two frames come at once; the descriptor stays readable until both are read.
            (&*near).write_all(b"one").unwrap();
            (&*near).write_all(b"two").unwrap();
            await_readable(&far.read_ready_fd().unwrap());
            for expected in [&b"on"[..], b"e", b"two"] {
                assert!(readable(&far.read_ready_fd().unwrap()), "{engine:?} {expected:?}");
                assert_eq!((&*far).read(&mut buffer[..expected.len()]).unwrap(), expected.len());
                assert_eq!(buffer[..expected.len()], *expected);
            }
            assert!(!readable(&far.read_ready_fd().unwrap()), "{engine:?}");
            // A full socket takes no more; what it took arrives, and then there is room again.
            let mut sent = 0;
            loop {
                match (&*near).write(&bytes(100_000, 5)) {
                    Ok(taken) => sent += taken,
                    Err(e) => break assert_eq!(e.kind(), ErrorKind::WouldBlock),
                }
            }
            assert!(sent > 0);
            let mut came = 0;
            while came < sent {
                await_readable(&far.read_ready_fd().unwrap());
                came += (&*far).read(&mut buffer).unwrap();
            }
            assert_eq!((&*far).read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
            let mut writable = [PollFd::new(near.as_fd(), PollFlags::POLLOUT)];
            assert_eq!(poll(&mut writable, PollTimeout::from(10_000u16)).unwrap(), 1);
            assert!((&*near).write(b"again").unwrap() > 0);
            near.shutdown(Shutdown::Write).unwrap();
            far.set_nonblocking(false);
            assert_eq!((&*far).read(&mut buffer).unwrap(), 5);
            assert_eq!((&*far).read(&mut buffer).unwrap(), 0);
            assert!(readable(&far.read_ready_fd().unwrap()), "the end is an event too");
        }
    }
}

#[test]
fn shutdown_from_another_thread_wakes_a_reader_and_a_writer() {
    for engine in BOTH {
        for how in [Shutdown::Read, Shutdown::Both] {
            let (near, _far) = pair(engine, tcp_pair());
            let reader = std::thread::spawn({
                let near = Arc::clone(&near);
                move || (&*near).read(&mut [0; 10])
            });
            std::thread::sleep(Duration::from_millis(20));
            near.shutdown(how).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), 0, "{engine:?}");
        }
        // AF_UNIX does not show in poll(2) that one direction was shut.
        for (how, sockets) in [Shutdown::Write, Shutdown::Both]
            .into_iter()
            .flat_map(|how| [(how, tcp_pair()), (how, unix_pair())])
        {
            let (near, far) = pair(engine, sockets);
            let writer = std::thread::spawn({
                let near = Arc::clone(&near);
                // Nobody reads: it waits.
                move || (&*near).write_all(&vec![1; 64 << 20])
            });
            await_readable(&far.as_fd());
            near.shutdown(how).unwrap_err();
            let error = writer.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            let inside = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
            assert!(inside.to_string().contains("shut down at this end"), "{inside}");
            // The end could not be said: no end of file at the other end.
            let error = (&*far).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{engine:?}");
        }
    }
}

#[test]
fn figures_may_be_looked_at_while_the_end_is_said() {
    let (near, far) = pair(EngineChoice::Syscalls, tcp_pair());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    near.statistics();
                    (&*near).flush().unwrap();
                }
            });
        }
        for _ in 0..200 {
            (&*near).write_all(b"all of it").unwrap();
        }
        let said = near.shutdown(Shutdown::Write);
        stop.store(true, Ordering::Relaxed);
        said.unwrap();
    });
    let mut came = Vec::new();
    (&*far).read_to_end(&mut came).unwrap();
    assert_eq!(came.len(), 200 * 9);
}

#[test]
fn a_non_blocking_write_returns_whatever_limits_the_socket_has() {
    for engine in BOTH {
        let (near, far) = tcp_pair();
        // As net.ipv4.tcp_notsent_lowat would set it.
        engine::set_unsent_limit(&near, 16 << 10).unwrap();
        let (near, _far) = pair(engine, (near, far));
        near.set_nonblocking(true);
        let (told, ended) = channel();
        let writer = Arc::clone(&near);
        std::thread::spawn(move || {
            let part = bytes(1_000_000, 5);
            let error = loop {
                if let Err(error) = (&*writer).write(&part) {
                    break error;
                }
            };
            told.send(error.kind()).unwrap();
        });
        let kind = ended.recv_timeout(Duration::from_secs(10)).expect("it waits");
        assert_eq!(kind, ErrorKind::WouldBlock);
    }
}

#[test]
fn a_peek_looks_beyond_a_frame_and_a_cancel_gives_its_reason() {
    for engine in BOTH {
        let (near, far) = pair(engine, tcp_pair());
        for part in [&b"Q"[..], b"EV", b"M rest"] {
            (&*near).write_all(part).unwrap();
        }
        let mut magic = [0; 4];
        await_readable(&far.read_ready_fd().unwrap());
        while far.peek(&mut magic).unwrap() < 4 {
            std::thread::yield_now();
        }
        assert_eq!(&magic, b"QEVM");
        assert!(readable(&far.read_ready_fd().unwrap()));
        let mut came = [0; 9];
        (&*far).read_exact(&mut came).unwrap();
        assert_eq!(&came, b"QEVM rest");
        near.cancel("the disk is full");
        let error = (&*far).read(&mut came).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(error.to_string().contains("the disk is full"), "{error}");
        assert_eq!((&*near).write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!((&*near).read(&mut came).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert!(matches!(near.peek(&mut came), Err(e) if e.kind() == ErrorKind::ConnectionAborted));
    }
}

#[test]
fn a_cancel_from_another_thread_is_no_end_for_a_reader_unless_it_was_read() {
    for engine in BOTH {
        let (near, far) = pair(engine, tcp_pair());
        (&*far).write_all(b"half of it").unwrap();
        let reader = std::thread::spawn({
            let near = Arc::clone(&near);
            move || (&*near).read_to_end(&mut Vec::new())
        });
        near.cancel("no more");
        let error = reader.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{engine:?}");
        near.shutdown(Shutdown::Read).unwrap();
        (&*near).read(&mut [0; 4]).unwrap_err();

        let (near, far) = pair(engine, tcp_pair());
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&*near).read(&mut [0; 4]).unwrap(), 0);
        near.cancel("no more");
        assert_eq!((&*near).read(&mut [0; 4]).unwrap(), 0);
    }
}

#[test]
fn frames_that_come_in_any_pieces_are_read_whole() {
    for (engine, nonblocking) in BOTH.into_iter().flat_map(|e| [(e, false), (e, true)]) {
        let (near, relay_in) = UnixStream::pair().unwrap();
        let (relay_out, far) = UnixStream::pair().unwrap();
        let (back_in, back_out) = (relay_out.try_clone().unwrap(), relay_in.try_clone().unwrap());
        std::thread::spawn(move || dribble(relay_in, relay_out));
        std::thread::spawn(move || dribble(back_in, back_out));
        let (near, far) = pair(engine, (near.into(), far.into()));
        far.set_nonblocking(nonblocking);
        let sent = bytes(400_000, 11);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut rest, mut next) = (&sent[..], 1);
                while !rest.is_empty() {
                    let part;
                    (part, rest) = rest.split_at(next.min(rest.len()));
                    (&*near).write_all(part).unwrap();
                    next = next * 3 % 90_001 + 1;
                }
                near.shutdown(Shutdown::Write).unwrap();
            });
            let (mut came, mut buffer) = (Vec::new(), vec![0; 7777]);
            loop {
                match (&*far).read(&mut buffer) {
                    Ok(0) => break,
                    Ok(got) => came.extend_from_slice(&buffer[..got]),
                    Err(e) => {
                        assert!(nonblocking && e.kind() == ErrorKind::WouldBlock, "{e}");
                        await_readable(&far.read_ready_fd().unwrap());
                    }
                }
            }
            assert!(came == sent, "{engine:?}");
        });
    }
}

/// Passes bytes on, a few at a time and now and then many.
fn dribble(mut from: UnixStream, mut to: UnixStream) {
    let (mut seed, mut buffer) = (12_345u32, [0; 5000]);
    loop {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let most = if seed >> 30 == 0 { buffer.len() } else { 1 + (seed >> 16) as usize % 13 };
        match from.read(&mut buffer[..most]) {
            Ok(got @ 1..) if to.write_all(&buffer[..got]).is_ok() => {}
            _ => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_stream_that_is_dropped_or_damaged_is_an_error_and_never_an_end() {
    for engine in BOTH {
        let (near, far) = pair(engine, tcp_pair());
        (&*near).write_all(b"half of it").unwrap();
        drop(near);
        let mut came = Vec::new();
        let error = (&*far).read_to_end(&mut came).unwrap_err();
        assert_eq!((error.kind(), &came[..]), (ErrorKind::UnexpectedEof, &b"half of it"[..]));
        let inside = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
        assert!(matches!(inside, Error::Peer(PeerError::Closed { .. })), "{inside}");
        let again = (&*far).read(&mut [0; 4]).unwrap_err();
        assert_eq!((again.kind(), again.to_string()), (error.kind(), error.to_string()));

        let (near, far) = pair(engine, tcp_pair());
        // Clear bytes among sealed ones, as an attacker would put them.
        nix::sys::socket::send(
            std::os::fd::AsRawFd::as_raw_fd(&*near.socket),
            &[&[32, 0, 0, 0, 8, 0, 0, 0][..], &[0; 72]].concat(),
            nix::sys::socket::MsgFlags::empty(),
        )
        .unwrap();
        let error = (&*far).read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("did not verify"), "{error}");
    }
}

#[test]
fn streams_of_a_session_join_it_and_strangers_and_repeats_do_not() {
    let secret = OneTimeSecret::generate().unwrap();
    let own = config(EngineChoice::Syscalls);
    let cancel = Canceller::default();
    let listener = crate::Listener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_address().unwrap();
    let dial: Dial = format!("localhost:{}", at.port()).parse().unwrap();
    let (theirs, other) = (secret.clone(), own.clone());
    let far = std::thread::spawn(move || {
        let cancel = Canceller::default();
        let (streams, first) =
            listener.accept_streams(Role::Target, &theirs, &other, &cancel).unwrap();
        let more: Vec<_> =
            (0..3).map(|_| listener.next_stream(&streams, &cancel).unwrap()).collect();
        (streams, first, more)
    });
    let (streams, first) = Streams::dial(&dial, Role::Source, &secret, &own, &cancel).unwrap();
    // Whoever opens a session of the same secret meanwhile hears why it cannot be.
    let busy = Streams::dial(&dial, Role::Source, &secret, &own, &cancel).err().unwrap();
    assert!(busy.to_string().contains("another migration is going on"), "{busy}");
    let stranger = OneTimeSecret::generate().unwrap();
    let hasty = Config { handshake_timeout: Duration::from_millis(200), ..own.clone() };
    let refused = Streams::dial(&dial, Role::Source, &stranger, &hasty, &cancel).err().unwrap();
    assert!(refused.is_authentication(), "{refused}");
    let more: Vec<_> = (0..3).map(|_| streams.dial_next(&cancel).unwrap()).collect();
    let (theirs, their_first, their_more) = far.join().unwrap();
    assert_eq!(streams.migration_id(), theirs.migration_id());
    for (n, (near, far)) in
        [(&first, &their_first)].into_iter().chain(more.iter().zip(&their_more)).enumerate()
    {
        let mut near = near;
        near.write_all(&[n as u8; 100]).unwrap();
        let (mut came, mut far) = ([0; 100], far);
        far.read_exact(&mut came).unwrap();
        assert_eq!((came, near.number(), far.number()), ([n as u8; 100], n as u16, n as u16));
    }
    streams.complete();
    let spent = Streams::dial(&dial, Role::Source, &secret, &own, &cancel).err().unwrap();
    assert!(spent.to_string().contains("has used"), "{spent}");
}

#[test]
fn an_image_and_a_stream_do_not_meet() {
    let secret = OneTimeSecret::generate().unwrap();
    let own = config(EngineChoice::Syscalls);
    let cancel = Canceller::default();
    let listener = crate::Listener::bind("127.0.0.1:0").unwrap();
    let dial: Dial = listener.local_address().unwrap().to_string().parse().unwrap();
    let (theirs, other) = (secret.clone(), own.clone());
    let ended = cancel.clone();
    let far = std::thread::spawn(move || {
        listener.accept(Role::Target, &theirs, &other, &ended).err().unwrap()
    });
    let near = Streams::dial(&dial, Role::Source, &secret, &own, &cancel).err().unwrap();
    assert!(near.to_string().contains("the same at both ends"), "{near}");
    // It may be a message that somebody recorded: the listener waits for the right one.
    cancel.cancel();
    assert!(far.join().unwrap().is_cancelled());
}
