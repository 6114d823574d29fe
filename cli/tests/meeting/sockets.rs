//! Sockets that somebody else made and passed on.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use super::support::{Ended, Place, Running, sealane};
use super::{
    PASSED, assert_crossed, assert_says, command, pass, recv_line, send, send_line, source_secret,
    target_secret,
};

/// Two ends of so many connections.
fn pairs(count: usize, tcp: bool) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pair = |_| {
        if tcp {
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            return (OwnedFd::from(near), OwnedFd::from(listener.accept().unwrap().0));
        }
        let (near, far) = UnixStream::pair().unwrap();
        (near.into(), far.into())
    };
    (0..count).map(pair).unzip()
}

fn numbers(count: usize) -> String {
    let numbers: Vec<_> = (PASSED..).take(count).map(|number| number.to_string()).collect();
    numbers.join(",")
}

/// Both ends with the sockets of their own; the test's own are closed.
fn both(
    place: &Place,
    (near, far): (Vec<OwnedFd>, Vec<OwnedFd>),
    source: &str,
    target: &str,
) -> (Running, Running) {
    let (secret, their_secret) = (source_secret(place), target_secret(place));
    let mut sender = command(&send_line(place, &format!("{source} {secret}")));
    let mut receiver = command(&recv_line(place, &format!("{target} {their_secret}")));
    pass(&mut sender, PASSED, &near);
    pass(&mut receiver, PASSED, &far);
    (Running::start(&mut sender), Running::start(&mut receiver))
}

#[test]
fn an_image_crosses_by_sockets_that_were_passed() {
    for (lanes, tcp) in [(1, false), (1, true), (2, false), (2, true)] {
        let place = Place::new();
        let fds = format!("--fd {}", numbers(lanes));
        let source = format!("{fds} --lanes {lanes}");
        let (sender, receiver) = both(&place, pairs(lanes, tcp), &source, &fds);
        assert_crossed(&place, sender, receiver);
    }
}

#[test]
fn whoever_accepted_lets_the_other_speak_first() {
    let place = Place::new();
    let source = format!("--fd {} --accepted", numbers(1));
    let target = format!("--connect fd:{PASSED}");
    let (sender, receiver) = both(&place, pairs(1, true), &source, &target);
    assert_crossed(&place, sender, receiver);
}

#[test]
fn too_few_sockets_and_what_is_no_socket_are_named() {
    let place = Place::new();
    let fds = format!("--fd {}", numbers(1));
    let (sender, receiver) = both(&place, pairs(1, true), &format!("{fds} --lanes 2"), &fds);
    let (sent, received) = (sender.end(), receiver.end());
    assert_says(&sent, 1, &["1 connected", "2 are wanted", "pass one for each"]);
    assert_eq!(received.code(), 1, "{received:?}");
    place.assert_nothing_arrived();

    let attempt = |sockets: &[OwnedFd], line: &str| -> Ended {
        let line = send_line(&place, &format!("{line} {}", source_secret(&place)));
        let mut command = command(&line);
        pass(&mut command, PASSED, sockets);
        Running::start(&mut command).end()
    };
    let nothing = attempt(&[], &fds);
    assert_says(&nothing, 1, &["fd:100", "Bad file descriptor", "was passed to this process"]);
    let file = File::open(place.file("image")).unwrap().into();
    assert_says(&attempt(&[file], &fds), 1, &["no socket", "SOCK_STREAM"]);
    let listening = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    assert_says(&attempt(&[listening()], &fds), 1, &["not connected"]);
    let (connected, _other) = pairs(1, true);
    let listens = format!("--listen fd:{PASSED}");
    assert_says(&attempt(&connected, &listens), 1, &["not listening", "listen(2)"]);
}

#[test]
fn an_image_comes_to_a_listening_socket_that_was_passed() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let line = format!("--listen fd:{PASSED} {}", target_secret(&place));
    let mut receiver = command(&recv_line(&place, &line));
    pass(&mut receiver, PASSED, std::slice::from_ref(&listener));
    let receiver = Running::start(&mut receiver);
    assert_eq!(receiver.address(), to);
    let sender = send(&place, &format!("--connect {to} {}", source_secret(&place)));
    assert_crossed(&place, sender, receiver);
}

/// The same socket under a number that is not one of those below.
fn above(socket: &impl AsFd, number: i32) -> OwnedFd {
    let high = nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(number)).unwrap();
    // SAFETY: it was made just now and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(high) }
}

/// As systemd starts a service: the socket is number 3.
fn activated(line: &str) -> Command {
    let mut command = Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_sealane")]).args(line.split_whitespace());
    command
}

#[test]
fn an_image_comes_to_the_socket_of_a_unit_of_systemd() {
    let place = Place::new();
    let line = recv_line(&place, &format!("--listen systemd {}", target_secret(&place)));
    let alone = Running::start(sealane(&[]).args(line.split_whitespace())).end();
    assert_says(&alone, 1, &["LISTEN_PID unset", "LISTEN_FDS unset", ".socket unit"]);
    let mut others = sealane(&[]);
    others.args(line.split_whitespace()).env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let others = Running::start(&mut others).end();
    assert_says(&others, 1, &["LISTEN_PID 1", ".socket unit"]);

    let listener = UnixListener::bind(place.file("unit")).unwrap();
    let mut receiver = activated(&line);
    let high = above(&listener, 50);
    pass(&mut receiver, 3, std::slice::from_ref(&high));
    let receiver = Running::start(&mut receiver);
    drop((listener, high));
    let at = format!("unix:{}", place.path("unit"));
    assert_eq!(receiver.address(), at);
    let sender = send(&place, &format!("--connect {at} {}", source_secret(&place)));
    assert_crossed(&place, sender, receiver);
    assert!(place.file("unit").exists(), "it is the unit's");
}
