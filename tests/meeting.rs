//! How two hosts meet and how they part: connections that others made, and hosts that die.

#[path = "support/hosts.rs"]
mod hosts;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use sealane::error::PeerError;
use sealane::stream::{Stream, Streams};
use sealane::{Canceller, Config, Dial, EngineChoice, Error, Listener, OneTimeSecret, Role};

use hosts::{EAST, cut_wire, two_hosts};

/// More than the kernel takes on one side and gives on the other.
const MORE_THAN_BUFFERS: usize = 64 << 20;

fn config(engine: EngineChoice, peer_timeout: Duration) -> Config {
    let mut config = Config::default();
    config.engine = engine;
    config.peer_timeout = peer_timeout;
    config
}

/// As many streams of a session as there are sockets, at the end that dials.
fn dialled(sockets: Vec<OwnedFd>, secret: &OneTimeSecret, config: &Config) -> Vec<Arc<Stream>> {
    let (more, cancel) = (sockets.len() - 1, Canceller::default());
    let dial = Dial::sockets(sockets).unwrap();
    let (streams, first) = Streams::dial(&dial, Role::Source, secret, config, &cancel).unwrap();
    let joined = (0..more).map(|_| streams.dial_next(&cancel).unwrap());
    let all = std::iter::once(first).chain(joined).map(Arc::new).collect();
    let error = streams.dial_next(&cancel).unwrap_err();
    assert!(error.to_string().contains("connected sockets were passed"), "{error}");
    all
}

/// The same at the end that accepted.
fn accepted(sockets: Vec<OwnedFd>, secret: &OneTimeSecret, config: &Config) -> Vec<Arc<Stream>> {
    let (mut sockets, cancel) = (sockets.into_iter(), Canceller::default());
    let first = sockets.next().unwrap();
    let (streams, first) = Streams::answer(first, Role::Target, secret, config, &cancel).unwrap();
    let joined = sockets.map(|socket| streams.admit(socket, &cancel).unwrap());
    std::iter::once(first).chain(joined).map(Arc::new).collect()
}

fn read_on(stream: &Arc<Stream>) -> Receiver<io::Error> {
    let (tell, ended) = channel();
    let stream = Arc::clone(stream);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        loop {
            match (&*stream).read(&mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => break drop(tell.send(error)),
            }
        }
    });
    ended
}

fn write_on(stream: &Arc<Stream>) -> Receiver<io::Error> {
    let (tell, ended) = channel();
    let stream = Arc::clone(stream);
    std::thread::spawn(move || {
        let bytes = vec![7; 1 << 20];
        loop {
            if let Err(error) = (&*stream).write_all(&bytes) {
                break drop(tell.send(error));
            }
        }
    });
    ended
}

fn is_silent(ended: &Receiver<io::Error>) -> bool {
    let error = ended.recv_timeout(Duration::from_secs(20)).expect("it goes on and on");
    let error = error.get_ref().and_then(|inside| inside.downcast_ref::<Error>());
    let silent = matches!(error, Some(Error::Peer(PeerError::Silent { .. })));
    assert!(silent || matches!(error, Some(Error::Peer(PeerError::Closed { .. }))), "{error:?}");
    silent
}

#[test]
fn who_waits_for_a_stream_without_a_socket_left_is_told_so() {
    let (near, far) = UnixStream::pair().unwrap();
    let secret = OneTimeSecret::generate().unwrap();
    let own = config(EngineChoice::Syscalls, Duration::from_secs(30));
    let (theirs, other) = (secret.clone(), own.clone());
    let far = std::thread::spawn(move || {
        let cancel = Canceller::default();
        let listener = Listener::sockets(vec![far.into()]).unwrap();
        let first = listener.accept_streams(Role::Target, &theirs, &other, &cancel);
        let (streams, _first) = first.unwrap();
        listener.next_stream(&streams, &cancel).err().unwrap()
    });
    let near = dialled(vec![near.into()], &secret, &own);
    let error = far.join().unwrap().to_string();
    assert!(error.contains("1 connected sockets were passed and 2 are wanted"), "{error}");
    drop(near);
}

#[test]
fn streams_of_sockets_that_others_connected() {
    let (near, far): (Vec<OwnedFd>, Vec<OwnedFd>) =
        (0..3).map(|_| UnixStream::pair().unwrap()).map(|(n, f)| (n.into(), f.into())).unzip();
    let secret = OneTimeSecret::generate().unwrap();
    let own = config(EngineChoice::Syscalls, Duration::from_secs(30));
    let (theirs, other) = (secret.clone(), own.clone());
    let far = std::thread::spawn(move || accepted(far, &theirs, &other));
    let near = dialled(near, &secret, &own);
    for (near, far) in near.iter().zip(far.join().unwrap()) {
        (&**near).write_all(b"sealed").unwrap();
        let mut came = [0; 6];
        (&*far).read_exact(&mut came).unwrap();
        assert_eq!(&came, b"sealed");
    }
}

/// Who waits keeps nobody else from the listener, for good least of all.
#[test]
fn while_one_waits_others_look_at_the_listener_and_wait_too() {
    let config = |name: &str| {
        let mut config = config(EngineChoice::Syscalls, Duration::from_secs(30));
        config.migration_name = name.to_owned();
        config
    };
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let cancel = Canceller::default();
    let wait = |config: &Config, cancel: &Canceller| {
        let secret = OneTimeSecret::generate().unwrap();
        listener.accept_streams(Role::Target, &secret, config, cancel).err().unwrap()
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            loop {
                match wait(&config("first"), &cancel) {
                    Error::Misuse(_) => {} // who looks whether it waits was there
                    error => break error,
                }
            }
        });
        let over = Canceller::default();
        over.cancel();
        // It waits where another one may not.
        while !matches!(wait(&config("first"), &over), Error::Misuse(_)) {}
        for _ in 0..100 {
            assert_ne!(listener.local_address().unwrap().port(), 0);
            let second = wait(&config("second"), &over);
            assert!(matches!(second, Error::Cancelled { .. }), "{second}");
        }
        cancel.cancel();
        assert!(matches!(first.join().unwrap(), Error::Cancelled { .. }));
    });
}

/// Three streams to a host that dies: one whose reader has stopped, so that its window is closed;
/// one with bytes on their way; one that is idle.
fn a_dead_host_is_seen(engine: EngineChoice) {
    let own = config(engine, Duration::from_secs(2));
    let secret = OneTimeSecret::generate().unwrap();
    let (theirs, other) = (secret.clone(), own.clone());
    let (tell, is_cut) = channel();
    let (listens, far_listens) = channel();
    let west = move || {
        far_listens.recv().unwrap();
        let connect = |_| TcpStream::connect((EAST, 7800)).unwrap().into();
        let streams = dialled((0..3).map(connect).collect(), &secret, &own);
        let writers = [write_on(&streams[0]), write_on(&streams[1])];
        let readers = [&streams[0], &streams[1], &streams[2]].map(read_on);
        std::thread::sleep(Duration::from_millis(500));
        cut_wire();
        tell.send(()).unwrap();
        for (n, ended) in writers.iter().chain(&readers).enumerate() {
            // Of an idle one the kernel says so, by its keepalive.
            assert_eq!(is_silent(ended), n < 4, "{engine:?}: {n}");
        }
    };
    let east = move || {
        let listener = TcpListener::bind((EAST, 7800)).unwrap();
        listens.send(()).unwrap();
        let sockets = (0..3).map(|_| listener.accept().unwrap().0.into()).collect();
        let streams = accepted(sockets, &theirs, &other);
        let readers = [&streams[1], &streams[2]].map(read_on);
        is_cut.recv().unwrap();
        for ended in &readers {
            is_silent(ended);
        }
    };
    let test = "a_dead_host_is_seen";
    let _ = two_hosts(test, "", west, east);
}

#[test]
fn a_dead_host_is_seen_by_io_uring() {
    a_dead_host_is_seen(EngineChoice::Uring);
}

#[test]
fn a_dead_host_is_seen_by_system_calls() {
    a_dead_host_is_seen(EngineChoice::Syscalls);
}

fn a_host_that_does_not_read_for_long_is_not_dead(engine: EngineChoice) {
    let own = config(engine, Duration::from_secs(1));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    let secret = OneTimeSecret::generate().unwrap();
    let (theirs, other) = (secret.clone(), own.clone());
    let far = std::thread::spawn(move || accepted(vec![far.into()], &theirs, &other));
    let near = dialled(vec![near.into()], &secret, &own).remove(0);
    let far = far.join().unwrap().remove(0);
    let writer = std::thread::spawn({
        let near = Arc::clone(&near);
        move || (&*near).write_all(&vec![7; MORE_THAN_BUFFERS])
    });
    let idle = read_on(&near);
    std::thread::sleep(Duration::from_millis(3000));
    if writer.is_finished() {
        panic!("{engine:?}: it was to wait: {:?}", writer.join());
    }
    let mut came = vec![0; MORE_THAN_BUFFERS];
    (&*far).read_exact(&mut came).unwrap();
    writer.join().unwrap().unwrap();
    assert!(idle.try_recv().is_err(), "{engine:?}: nothing ended");
}

#[test]
fn a_host_that_does_not_read_for_long_is_not_dead_to_io_uring() {
    a_host_that_does_not_read_for_long_is_not_dead(EngineChoice::Uring);
}

#[test]
fn a_host_that_does_not_read_for_long_is_not_dead_to_system_calls() {
    a_host_that_does_not_read_for_long_is_not_dead(EngineChoice::Syscalls);
}
