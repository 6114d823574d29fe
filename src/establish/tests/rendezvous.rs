//! Both hosts dial.

use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::hosts::{EAST, OUTWARDS_ONLY, WEST, two_hosts};
use super::{accept, accept_until, next, talk, told};
use crate::cancel::Canceller;
use crate::config::Config;
use crate::establish::Dial;
use crate::establish::door::Door;
use crate::establish::rendezvous::bound;

/// Tests that take ports next to each other take turns.
static PORTS: Mutex<()> = Mutex::new(());

/// Ports of which the next ones were free a moment ago, and are not what the kernel gives out.
pub(super) fn ports(host: &str, from: u16) -> u16 {
    // Not by listening: a process that another test begins would hold on to it for a while.
    let is_free = |port: u16| bound(SocketAddr::new(host.parse().unwrap(), port), None).is_ok();
    (from..).step_by(8).find(|port| (*port..port + 6).all(is_free)).expect("free ports")
}

/// So many connections of a session, whose listening end begins so much later, or earlier.
fn meet(connections: u16, dialler_later_ms: i64) {
    let (here, there) = (ports("127.0.0.1", 21_000), ports("127.0.0.2", 22_000));
    let (here, there) = (format!("127.0.0.1:{here}"), format!("127.0.0.2:{there}"));
    let later = |ms: i64| std::thread::sleep(Duration::from_millis(ms.max(0) as u64));
    let (ours, theirs) = (here.clone(), there.clone());
    let far = std::thread::spawn(move || {
        later(-dialler_later_ms);
        let mut door = Door::rendezvous(&theirs, &ours).unwrap();
        door.tune(&Config::default()).unwrap();
        (0..connections).map(|_| accept(&mut door).0).collect::<Vec<_>>()
    });
    later(dialler_later_ms);
    let dial = Dial::rendezvous(&here, &there).unwrap();
    let near: Vec<_> = (0..connections).map(|_| next(&dial).unwrap()).collect();
    let far = far.join().unwrap();
    for (n, (near, far)) in (0..).zip(near.iter().zip(&far)) {
        let first: SocketAddr = here.parse().unwrap();
        assert_eq!(near.local_addr().unwrap().port(), first.port() + n);
        assert_eq!(far.peer_addr().unwrap(), near.local_addr().unwrap());
        talk(near, far);
    }
}

#[test]
fn the_ends_begin_whenever_they_like() {
    let _turn = PORTS.lock().unwrap();
    for later_ms in [0, 50, -50, 2000] {
        meet(2, later_ms);
    }
    for _ in 0..20 {
        meet(4, 0);
    }
}

#[test]
fn another_session_begins_at_the_first_ports() {
    let _turn = PORTS.lock().unwrap();
    let (here, there) = (ports("127.0.0.1", 23_000), ports("127.0.0.2", 24_000));
    let (here, there) = (format!("127.0.0.1:{here}"), format!("127.0.0.2:{there}"));
    let dial = Dial::rendezvous(&here, &there).unwrap();
    let mut door = Door::rendezvous(&there, &here).unwrap();
    // The door's end closes first, as that of a listener does which heard a stranger out; twice in
    // a session, and the second session gets as far as the first.
    for _ in 0..2 {
        let session = dial.begin();
        for _ in 0..2 {
            let near = std::thread::scope(|scope| {
                let near = scope.spawn(|| next(&session).unwrap());
                let far = accept(&mut door).0;
                let near = near.join().unwrap();
                talk(&near, &far);
                // No TIME_WAIT: it would last a minute.
                reset(&far);
                near
            });
            drop(near);
        }
    }
}

fn reset(socket: &TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &now).unwrap();
}

#[test]
fn nobody_else_is_met() {
    let _turn = PORTS.lock().unwrap();
    let (here, there) = (ports("127.0.0.1", 25_000), ports("127.0.0.2", 26_000));
    let (near, far) = (format!("127.0.0.1:{here}"), format!("127.0.0.2:{there}"));
    let mut door = Door::rendezvous(&far, &near).unwrap();
    // From the right host and another port, and from another host.
    let stranger = TcpStream::connect(("127.0.0.2", there)).unwrap();
    assert!(accept_until(&mut door, Instant::now() + Duration::from_millis(300)).is_none());
    drop((stranger, door));

    let late = Instant::now() + Duration::from_millis(300);
    let dial = Dial::rendezvous(&near, &far).unwrap();
    let alone = told(dial.next(&Config::default(), late, &Canceller::default()));
    assert!(alone.contains("start the other end too"), "{alone}");
    let itself = told(Dial::rendezvous(&near, &near));
    assert!(itself.contains("exchange the two"), "{itself}");
    // The same where the address does not say so.
    let any = Dial::rendezvous(&format!("0.0.0.0:{here}"), &near).unwrap();
    let itself = told(next(&any));
    assert!(itself.contains("exchange the two"), "{itself}");

    for (local, remote, part) in [
        ("localhost:1", "127.0.0.1:2", "as a number"),
        ("127.0.0.1:1", "[::1]:2", "same family"),
        ("127.0.0.1:0", "127.0.0.1:2", "name both"),
        ("127.0.0.1:1", "unix:/s", "for TCP"),
        ("unix:/s", "127.0.0.1:2", "ADDRESS:PORT"),
    ] {
        let error = told(Dial::rendezvous(local, remote));
        assert!(error.contains(part), "{error}");
    }
    let last = Dial::rendezvous("127.0.0.1:65535", &far).unwrap();
    let soon = Instant::now() + Duration::from_millis(10);
    let _ = dial_in_vain(&last, soon);
    let beyond = dial_in_vain(&last, soon);
    assert!(beyond.contains("name lower ports"), "{beyond}");
}

fn dial_in_vain(dial: &Dial, until: Instant) -> String {
    told(dial.next(&Config::default(), until, &Canceller::default()))
}

#[test]
fn firewalls_that_let_connections_out_alone_are_passed_by_a_rendezvous_alone() {
    const TEST: &str = "firewalls_that_let_connections_out_alone";
    let near = format!("{WEST}:7800");
    let far = format!("{EAST}:7800");
    for later_ms in [0, 50, 1200] {
        let (n, f) = (near.clone(), far.clone());
        let west = move || {
            let dial = Dial::rendezvous(&n, &f).unwrap();
            (0..4).map(|_| next(&dial).unwrap()).collect::<Vec<_>>()
        };
        let (n, f) = (near.clone(), far.clone());
        let east = move || {
            std::thread::sleep(Duration::from_millis(later_ms));
            let mut door = Door::rendezvous(&f, &n).unwrap();
            (0..4).map(|_| accept(&mut door).0).collect::<Vec<_>>()
        };
        let Some((west, east)) = two_hosts(TEST, OUTWARDS_ONLY, west, east) else { return };
        west.iter().zip(&east).for_each(|(west, east)| talk(west, east));
    }
    // Without it none of this says anything.
    let until = || Instant::now() + Duration::from_millis(1500);
    let to = far.clone();
    let west = move || {
        let dial = Dial::to(&to).unwrap();
        dial.next(&Config::default(), until(), &Canceller::default()).is_err()
    };
    let east = move || accept_until(&mut Door::bind(&far).unwrap(), until()).is_none();
    let plain = two_hosts(TEST, OUTWARDS_ONLY, west, east).unwrap();
    assert_eq!(plain, (true, true), "a plain dial passed: the firewalls do nothing");
}

/// One end remembers the connection that was (TIME_WAIT) and may not dial it again for a minute;
/// the other end's try comes through.
#[test]
fn a_session_follows_another_at_once() {
    const TEST: &str = "a_session_follows_another_at_once";
    for (rules, door_closes_first) in
        [("", false), ("", true), (OUTWARDS_ONLY, false), (OUTWARDS_ONLY, true)]
    {
        let (near, far) = (format!("{WEST}:7800"), format!("{EAST}:7800"));
        let (here, there) = (near.clone(), far.clone());
        let later = |is_later| std::thread::sleep(Duration::from_millis(100 * u64::from(is_later)));
        let west = move || {
            let dial = Dial::rendezvous(&here, &there).unwrap();
            let first = next(&dial).unwrap();
            later(door_closes_first);
            drop(first);
            later(true);
            next(&dial.begin()).unwrap()
        };
        let east = move || {
            let mut door = Door::rendezvous(&far, &near).unwrap();
            let first = accept(&mut door);
            later(!door_closes_first);
            drop(first);
            accept(&mut door).0
        };
        let Some((west, east)) = two_hosts(TEST, rules, west, east) else { return };
        talk(&west, &east);
    }
}
