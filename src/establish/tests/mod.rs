//! A dial and a door meet, in every way that there is.

mod agree;
#[path = "../../../tests/support/hosts.rs"]
mod hosts;
mod rendezvous;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use std::time::{Duration, Instant};

use super::door::{Door, PeerAddress};
use super::{Dial, wait};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::error::{Error, Result};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn next(dial: &Dial) -> Result<TcpStream> {
    dial.next(&Config::default(), soon(), &Canceller::default())
}

fn accept(door: &mut Door) -> (TcpStream, PeerAddress) {
    accept_until(door, soon()).expect("somebody comes")
}

fn accept_until(door: &mut Door, deadline: Instant) -> Option<(TcpStream, PeerAddress)> {
    while Instant::now() < deadline {
        if let Some(came) = door.accept().unwrap() {
            return Some(came);
        }
        let retry_at = door.retry_at().unwrap_or(deadline).min(deadline);
        wait(&door.poll_fds(), Some(retry_at));
    }
    None
}

/// Whether bytes cross both ways.
fn talk(near: &TcpStream, far: &TcpStream) {
    for socket in [near, far] {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    for (mut from, mut to) in [(near, far), (far, near)] {
        from.write_all(b"here").unwrap();
        let mut came = [0; 4];
        to.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"here");
    }
}

/// Two connections, and the address that the door says.
fn meet(at: &str) -> (String, PeerAddress) {
    let mut door = Door::bind(at).unwrap();
    door.tune(&Config::default()).unwrap();
    assert!(door.accept().unwrap().is_none());
    let dial = Dial::to(&door.to_string()).unwrap();
    let mut peer = PeerAddress::Local;
    for _ in 0..2 {
        let near = next(&dial).unwrap();
        let far = accept(&mut door);
        talk(&near, &far.0);
        peer = far.1;
    }
    (door.to_string(), peer)
}

/// What comes out in the end: a process that another test begins holds on to every socket here
/// until it runs its program.
fn settled<T>(mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = soon();
    loop {
        match step() {
            Some(value) => return value,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => panic!("it stays as it is"),
        }
    }
}

fn told<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn by_tcp() {
    let (address, peer) = meet("127.0.0.1:0");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert_eq!(peer, PeerAddress::Ip("127.0.0.1".parse().unwrap()));
    if TcpListener::bind("[::1]:0").is_err() {
        println!("SKIP: by_tcp: no IPv6 here");
        return;
    }
    let (address, peer) = meet("[::1]:0");
    assert!(address.starts_with("[::1]:"), "{address}");
    assert_eq!(peer, PeerAddress::Ip("::1".parse().unwrap()));
}

/// Runs it where a name of this test means 127.0.0.1 and ::1; skips aloud where that cannot be.
fn with_a_name_of_two_addresses(test: &str, run: impl FnOnce(&str) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: {test}: needs root for a hosts file of its own");
        return;
    }
    if TcpListener::bind("[::1]:0").is_err() {
        println!("SKIP: {test}: no IPv6 here");
        return;
    }
    // In a mount namespace of this thread's own: gone with the thread.
    let thread = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        let mut hosts = tempfile::NamedTempFile::new().unwrap();
        hosts.write_all(b"127.0.0.1 two.test\n::1 two.test\n").unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some(hosts.path()), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
        run("two.test");
    });
    thread.join().unwrap();
}

#[test]
fn of_a_name_each_address_is_tried_and_the_one_that_answered_stays() {
    with_a_name_of_two_addresses("of_a_name_each_address_is_tried", |name| {
        for host in ["127.0.0.1", "[::1]"] {
            let mut door = Door::bind(&format!("{host}:0")).unwrap();
            let port = door.socket_address().unwrap().port();
            let dial = Dial::to(&format!("{name}:{port}")).unwrap();
            talk(&next(&dial).unwrap(), &accept(&mut door).0);
            // Somebody listens at the other address meanwhile.
            let other = if host == "[::1]" { "127.0.0.1" } else { "[::1]" };
            let mut other = Door::bind(&format!("{other}:{port}")).unwrap();
            for _ in 0..3 {
                talk(&next(&dial).unwrap(), &accept(&mut door).0);
            }
            assert!(other.accept().unwrap().is_none());
            drop((door, other));
            // Another session asks again.
            let none = settled(|| next(&dial.begin()).err()).to_string();
            for part in ["127.0.0.1:", "[::1]:", name, "start the other end first"] {
                assert!(none.contains(part), "{none}");
            }
            // Addresses of the other family are passed over.
            let mut door = Door::bind("127.0.0.1:0").unwrap();
            let to = format!("{name}:{}", door.socket_address().unwrap().port());
            let from = next(&Dial::to(&to).unwrap().bind("127.0.0.5").unwrap()).unwrap();
            assert_eq!(from.local_addr().unwrap().ip().to_string(), "127.0.0.5");
            talk(&from, &accept(&mut door).0);
        }
    });
}

#[test]
fn an_address_that_does_not_answer_leaves_time_for_the_next() {
    with_a_name_of_two_addresses("of_a_name_each_address_is_tried", |name| {
        let (full, _kept, _fill) = socket_with_a_full_queue();
        let port = full.rsplit_once(':').unwrap().1;
        let mut door = Door::bind(&format!("[::1]:{port}")).unwrap();
        let dial = Dial::to(&format!("{name}:{port}")).unwrap();
        let soon = Instant::now() + Duration::from_secs(1);
        let near = dial.next(&Config::default(), soon, &Canceller::default()).unwrap();
        talk(&near, &accept(&mut door).0);
        assert!(near.peer_addr().unwrap().is_ipv6());
    });
}

#[test]
fn from_an_address_and_ports_of_this_host() {
    let mut door = Door::bind("127.0.0.1:0").unwrap();
    let to = door.to_string();
    let low = rendezvous::ports("127.0.0.3", 27_000);
    let from = format!("127.0.0.3:{low}-{}", low + 1);
    let dial = Dial::to(&to).unwrap().bind(&from).unwrap();
    let mut kept = Vec::new();
    for port in [low, low + 1] {
        let near = next(&dial).unwrap();
        assert_eq!(near.local_addr().unwrap(), format!("127.0.0.3:{port}").parse().unwrap());
        kept.push((near, accept(&mut door)));
    }
    let full = told(next(&dial));
    assert!(full.contains(&from) && full.contains("name more of them"), "{full}");
    let plain = next(&Dial::to(&to).unwrap().bind("127.0.0.4").unwrap()).unwrap();
    assert_eq!(plain.local_addr().unwrap().ip().to_string(), "127.0.0.4");
    let any = next(&Dial::to(&to).unwrap().bind(&format!(":{}", low + 2)).unwrap()).unwrap();
    assert_eq!(any.local_addr().unwrap().port(), low + 2);

    let family = told(next(&Dial::to(&to).unwrap().bind("[::1]:1-9").unwrap()));
    assert!(family.contains("same family") && family.contains(&to), "{family}");
    let nowhere = told(next(&Dial::to(&to).unwrap().bind("192.0.2.77:5000-5100").unwrap()));
    assert!(nowhere.contains("ip address") && nowhere.contains("192.0.2.77"), "{nowhere}");
    let unix = told(Dial::to("unix:/s").unwrap().bind(":5000"));
    assert!(unix.contains("connections to HOST:PORT"), "{unix}");
}

#[test]
fn what_cannot_be_dialled_is_told() {
    for (address, part) in [
        ("systemd", "end that listens"),
        ("vsock:any:1", "name the CID"),
        ("127.0.0.1:0", "name the port"),
        ("fd:1000000", "passed to this process"),
    ] {
        let error = told(Dial::to(address));
        assert!(error.contains(part), "{error}");
    }
    let missing = told(next(&Dial::to("unix:/nowhere/s").unwrap()));
    assert!(missing.contains("start the other end first"), "{missing}");
    let unknown = told(next(&Dial::to("no-such-host.invalid:1").unwrap()));
    assert!(unknown.contains("of a host that is known"), "{unknown}");
}

#[test]
fn a_cancel_interrupts_a_connect() {
    // A listener whose queue is full: its kernel drops what comes.
    let place = tempfile::tempdir().unwrap();
    let full = socket_with_a_full_queue();
    let path = place.path().join("s");
    let unix = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&unix, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    for address in [full.0.clone(), format!("unix:{}", path.display())] {
        let (cancel, config) = (Canceller::default(), Config::default());
        let (asked, dial) = (cancel.clone(), Dial::to(&address).unwrap());
        let far_off = Instant::now() + Duration::from_secs(600);
        let connect = std::thread::spawn(move || dial.next(&config, far_off, &asked).err());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!connect.is_finished(), "{address}");
        cancel.cancel();
        assert!(connect.join().unwrap().unwrap().is_cancelled());
        // Its time ends it too.
        let soon = Instant::now() + Duration::from_millis(150);
        let dial = Dial::to(&address).unwrap();
        let late = dial.next(&Config::default(), soon, &Canceller::default()).err().unwrap();
        assert!(matches!(late, Error::System(_)), "{late}");
    }
}

fn socket_with_a_full_queue() -> (String, OwnedFd, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let wait = Duration::from_millis(100);
    let connect = |_| TcpStream::connect_timeout(&at, wait).ok();
    let fill = (0..8).map_while(connect).collect();
    (at.to_string(), listener.into(), fill)
}

#[test]
fn by_a_unix_socket() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("s");
    let at = format!("unix:{}", path.display());
    assert_eq!(meet(&at), (at.clone(), PeerAddress::Local));
    assert!(!path.exists(), "it goes with the door");

    // What a killed process left is replaced; what somebody listens at is not, nor is a file.
    drop(UnixListener::bind(&path).unwrap());
    let door = settled(|| Door::bind(&at).ok());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let second = told(Door::bind(&at));
    assert!(second.contains("a socket is there"), "{second}");
    drop(door);
    std::fs::write(&path, "a file").unwrap();
    let file = told(Door::bind(&at));
    assert!(file.contains("no socket: name another place"), "{file}");
    assert!(path.exists());
}

#[test]
fn by_vsock() {
    let mut door = match Door::bind("vsock:any:4294967295") {
        Ok(door) => door,
        Err(error) => {
            println!("SKIP: by_vsock: no vsock here: {error}");
            return;
        }
    };
    let port: u32 = door.to_string().strip_prefix("vsock:any:").unwrap().parse().unwrap();
    assert!(door.accept().unwrap().is_none());
    let dial = Dial::to(&format!("vsock:1:{port}")).unwrap();
    let patience = Instant::now() + Duration::from_secs(1);
    match dial.next(&Config::default(), patience, &Canceller::default()) {
        Ok(near) => {
            let far = accept(&mut door);
            talk(&near, &far.0);
            assert_eq!(far.1, PeerAddress::Vsock(1));
        }
        Err(error) => println!("SKIP: by_vsock: no loopback (modprobe vsock_loopback): {error}"),
    }
}

#[test]
fn by_sockets_that_somebody_else_connected() {
    let (near, far): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
    let owned = |streams: Vec<UnixStream>| streams.into_iter().map(OwnedFd::from).collect();
    let dial = Dial::sockets(owned(near)).unwrap();
    let mut door = Door::sockets(owned(far)).unwrap();
    for _ in 0..2 {
        assert!(door.none_left(false).is_none());
        talk(&next(&dial).unwrap(), &accept(&mut door).0);
    }
    assert!(door.accept().unwrap().is_none());
    // Another session begins where this one ended.
    for error in [door.none_left(false).unwrap(), next(&dial.begin()).err().unwrap()] {
        assert!(matches!(error, Error::Misuse(_)));
        let error = error.to_string();
        assert!(error.contains("2 connected sockets") && error.contains("3 are wanted"), "{error}");
    }
    let listener = || vec![OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap())];
    for error in [told(Dial::sockets(listener())), told(Door::sockets(listener()))] {
        assert!(error.contains("not connected"), "{error}");
    }
}

#[test]
fn by_descriptors_with_a_number() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut door = Door::bind(&format!("fd:{}", listener.as_raw_fd())).unwrap();
    let dial = Dial::to(&format!("fd:{}", near.as_raw_fd())).unwrap();
    assert_eq!(door.socket_address().unwrap(), listener.local_addr().unwrap());
    talk(&next(&dial).unwrap(), &accept(&mut door).0);
    let wrong = told(Door::bind(&format!("fd:{}", near.as_raw_fd())));
    assert!(wrong.contains("SO_ACCEPTCONN is 0"), "{wrong}");
}
