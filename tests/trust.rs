//! Who may meet whom: certificates, one-time secrets and both, several at one door, strangers of
//! every kind.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sealane::error::PeerError;
use sealane::memory::{DirtyBitmap, Region};
use sealane::stream::Streams;
use sealane::{
    Canceller, Certificates, Config, Dial, EngineChoice, Error, Lanes, Listener, OneTimeSecret,
    Result, Role, Source, Target, Trust, dial,
};
use support::pki::Pki;
use support::{config, fill, memfd, read};

const BYTES: u64 = 4 << 20;

fn quick() -> Config {
    let mut config = config(EngineChoice::Syscalls, 2);
    config.handshake_timeout = Duration::from_secs(5);
    config
}

/// Listens with these, and says where.
fn accepting(
    role: Role,
    trust: impl Into<Trust>,
    config: &Config,
    cancel: &Canceller,
) -> (String, JoinHandle<Result<Lanes>>) {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_address().unwrap().to_string();
    (address, waiting(&listener, role, trust, config, cancel))
}

fn waiting(
    listener: &Listener,
    role: Role,
    trust: impl Into<Trust>,
    config: &Config,
    cancel: &Canceller,
) -> JoinHandle<Result<Lanes>> {
    let (listener, trust, config) = (listener.clone(), trust.into(), config.clone());
    let cancel = cancel.clone();
    std::thread::spawn(move || listener.accept(role, trust, &config, &cancel))
}

fn dialled(address: &str, role: Role, trust: impl Into<Trust>, config: &Config) -> Result<Lanes> {
    dial(&address.parse()?, role, trust, config, &Canceller::default())
}

/// Moves a guest over lanes that were opened by either end.
fn moves(source: Lanes, target: Lanes, config: &Config) {
    let (from, into) = (memfd(BYTES), memfd(BYTES));
    fill(&from, BYTES, 7);
    let cancel = Canceller::default();
    let (file, own) = (into.try_clone().unwrap(), config.clone());
    let end = std::thread::spawn(move || -> Result<Vec<u8>> {
        let cancel = Canceller::default();
        let mut target = Target::start(target, &own, &cancel)?;
        target.accept(vec![Region::from_file("ram", file, 0, BYTES)?])?;
        let state = target.receive()?;
        target.ready()?;
        target.done()?;
        Ok(state)
    });
    let region = Region::from_file("ram", from.try_clone().unwrap(), 0, BYTES).unwrap();
    let pages = region.pages();
    let mut source = Source::start(source, vec![region], config, &cancel).unwrap();
    source.send_round(&[DirtyBitmap::all(pages)]).unwrap();
    source.commit(b"state").unwrap();
    source.hand_over().unwrap();
    assert_eq!(end.join().unwrap().unwrap(), b"state");
    assert!(read(&from) == read(&into), "memory");
}

fn certificates(pki: &Pki, host: &str, peer: &str) -> Certificates {
    Certificates::from_directory(&pki.host(host), peer.parse().unwrap()).unwrap()
}

/// The two ends' trusts, of the end that dials and the end that listens.
fn trusts(pki: &Pki) -> [(&'static str, Trust, Trust); 3] {
    let [one, other] = [(); 2].map(|()| OneTimeSecret::generate().unwrap());
    let dials = certificates(pki, "a.example", "b.example");
    let listens = certificates(pki, "b.example", "a.example");
    [
        ("secret", (&one).into(), one.into()),
        ("certificates", (&dials).into(), (&listens).into()),
        ("both", Trust::both(other.clone(), dials), Trust::both(other, listens)),
    ]
}

#[test]
fn a_guest_moves_by_each_trust_whoever_dials() {
    let (pki, config) = (Pki::new(), quick());
    for listener in [Role::Target, Role::Source] {
        for (name, dials, listens) in trusts(&pki) {
            let cancel = Canceller::default();
            let (address, end) = accepting(listener, listens, &config, &cancel);
            let ours = dialled(&address, listener.other(), dials, &config).expect(name);
            let theirs = end.join().unwrap().unwrap();
            assert_eq!(ours.migration_id, theirs.migration_id, "{name}");
            match listener {
                Role::Target => moves(ours, theirs, &config),
                Role::Source => moves(theirs, ours, &config),
            }
        }
    }
}

#[test]
fn another_host_of_the_same_ca_is_refused_by_both_and_the_right_one_is_served_after_it() {
    let (pki, config) = (Pki::new(), quick());
    let right = certificates(&pki, "a.example", "b.example");
    let listens = certificates(&pki, "b.example", "a.example");
    let cancel = Canceller::default();
    let (address, end) = accepting(Role::Target, &listens, &config, &cancel);

    // The second host dials: the listener refuses it, and tells it so.
    let mallory = certificates(&pki, "mallory.example", "b.example");
    let error = dialled(&address, Role::Source, &mallory, &config).err().unwrap();
    assert!(error.is_authentication(), "{error}");
    let text = error.to_string();
    assert!(text.contains("mallory.example") && text.contains("--peer"), "{text}");

    // Who dials expects another host than the one that listens.
    let wrong = certificates(&pki, "a.example", "c.example");
    let error = dialled(&address, Role::Source, &wrong, &config).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("b.example") && text.contains("c.example"), "{text}");

    // Another CA altogether.
    let other = Pki::new();
    let stranger = certificates(&other, "a.example", "b.example");
    let error = dialled(&address, Role::Source, &stranger, &config).err().unwrap();
    assert!(error.to_string().contains("was not issued by the CA"), "{error}");

    let ours = dialled(&address, Role::Source, &right, &config).unwrap();
    moves(ours, end.join().unwrap().unwrap(), &config);
}

#[test]
fn a_middle_with_a_certificate_of_the_same_ca_gets_nothing_of_either() {
    let (pki, config) = (Pki::new(), quick());
    let cancel = Canceller::default();
    let listens = certificates(&pki, "b.example", "a.example");
    let (behind, end) = accepting(Role::Target, &listens, &config, &cancel);
    // It shows its own certificate to both, and would take whoever comes.
    let to_source = certificates(&pki, "mallory.example", "a.example");
    let (between, trap) = accepting(Role::Target, &to_source, &config, &cancel);
    let source = certificates(&pki, "a.example", "b.example");
    let error = dialled(&between, Role::Source, &source, &config).err().unwrap();
    assert!(error.to_string().contains("mallory.example"), "{error}");
    let to_target = certificates(&pki, "mallory.example", "b.example");
    let error = dialled(&behind, Role::Source, &to_target, &config).err().unwrap();
    assert!(error.is_authentication(), "{error}");
    cancel.cancel();
    for end in [trap, end] {
        assert!(end.join().unwrap().err().unwrap().is_cancelled());
    }
}

#[test]
fn ends_of_different_trust_do_not_meet() {
    let (pki, config) = (Pki::new(), quick());
    let cancel = Canceller::default();
    let all = trusts(&pki);
    for (listener, _, listens) in &all {
        let (address, end) = accepting(Role::Target, listens, &config, &cancel);
        for (dialler, dials, _) in all.iter().filter(|(dialler, ..)| dialler != listener) {
            let error = dialled(&address, Role::Source, dials, &config).err().unwrap();
            assert!(error.is_authentication(), "{dialler} to {listener}: {error}");
        }
        // Nor where one of the two is another: whoever has broken one gets nowhere.
        let secret = OneTimeSecret::generate().unwrap();
        let right = certificates(&pki, "a.example", "b.example");
        let wrong = certificates(&pki, "mallory.example", "b.example");
        let both = all[2].1.secret().unwrap().clone();
        for dials in [
            Trust::from(&secret),
            Trust::both(secret, right),
            Trust::both(both, wrong.clone()),
            wrong.into(),
        ] {
            let error = dialled(&address, Role::Source, dials, &config).err().unwrap();
            assert!(error.is_authentication(), "to {listener}: {error}");
        }
        let ours = all.iter().find(|(name, ..)| name == listener).unwrap().1.clone();
        dialled(&address, Role::Source, ours, &config).unwrap();
        end.join().unwrap().unwrap();
    }
}

#[test]
fn both_ends_as_source_is_said_and_the_listener_listens_on() {
    let (pki, config) = (Pki::new(), quick());
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let (address, end) = accepting(Role::Source, listens, &config, &cancel);
        let error = dialled(&address, Role::Source, &dials, &config).err().unwrap();
        assert!(matches!(error, Error::Peer(PeerError::Refused(_))), "{name}: {error}");
        assert!(error.to_string().contains("both ends are source"), "{name}: {error}");
        let ours = dialled(&address, Role::Target, &dials, &config).unwrap();
        moves(end.join().unwrap().unwrap(), ours, &config);
    }
}

/// Tries again while the listener waits for a migration of another name alone.
fn once_it_waits<T>(mut open: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match open() {
            Err(error) if error.to_string().contains("another name") => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

fn named(name: &str) -> Config {
    let mut config = quick();
    config.migration_name = name.to_owned();
    config
}

#[test]
fn one_listener_serves_several_migrations_by_their_names() {
    let pki = Pki::new();
    let dials = certificates(&pki, "a.example", "b.example");
    let listens = certificates(&pki, "b.example", "a.example");
    let cancel = Canceller::default();
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_address().unwrap().to_string();
    let (first, second) = (named("guest 1"), named("guest 2"));
    let ends =
        [&first, &second].map(|config| waiting(&listener, Role::Target, &listens, config, &cancel));
    // Both wait once who has the wrong role is told so.
    for config in [&first, &second] {
        let error = once_it_waits(|| dialled(&address, Role::Target, &dials, config));
        assert!(error.err().unwrap().to_string().contains("same role"));
    }
    let third = waiting(&listener, Role::Target, &listens, &second, &cancel);
    let twice = third.join().unwrap().err().unwrap();
    assert!(twice.to_string().contains("migration_name"), "{twice}");

    let error = dialled(&address, Role::Source, &dials, &named("guest 3")).err().unwrap();
    assert!(error.to_string().contains("another name"), "{error}");

    // In the other order, and both at once.
    let ours = [&second, &first]
        .map(|config| once_it_waits(|| dialled(&address, Role::Source, &dials, config)).unwrap());
    let mut theirs: Vec<_> = ends.into_iter().map(|end| end.join().unwrap().unwrap()).collect();
    std::thread::scope(|scope| {
        for (source, config) in ours.into_iter().zip([&second, &first]) {
            let target = theirs.pop().unwrap();
            scope.spawn(move || moves(source, target, config));
        }
    });
}

#[test]
fn who_comes_for_an_expected_migration_is_kept_until_somebody_waits_for_it() {
    let pki = Pki::new();
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (early, other) = (named("early"), named("other"));
        let expected = listener.expect("early");
        let others = waiting(&listener, Role::Target, &listens, &other, &cancel);
        let ours = std::thread::scope(|scope| {
            let ours = scope.spawn(|| dialled(&address, Role::Source, &dials, &early));
            // Time enough to be refused by who waits for the other one.
            std::thread::sleep(Duration::from_millis(100));
            once_it_waits(|| dialled(&address, Role::Source, &dials, &other)).expect(name);
            let end = waiting(&listener, Role::Target, &listens, &early, &cancel);
            (ours.join().unwrap().expect(name), end.join().unwrap().expect(name))
        });
        others.join().unwrap().expect(name);

        // What nobody expects any more is refused as before.
        drop(listener.expect("late"));
        let others = waiting(&listener, Role::Target, &listens, &other, &cancel);
        let error = dialled(&address, Role::Source, &dials, &named("late")).err().unwrap();
        assert!(error.to_string().contains("another name"), "{name}: {error}");
        cancel.cancel();
        assert!(others.join().unwrap().is_err());
        moves(ours.0, ours.1, &early);
        drop(expected);
    }
}

#[test]
fn a_session_that_goes_on_is_busy_for_its_own_name_and_not_for_another() {
    let pki = Pki::new();
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap();
        let (first, second) = (named("one"), named("two"));
        let accept = |config: &Config| {
            let (listener, trust) = (listener.clone(), listens.clone());
            let (config, cancel) = (config.clone(), cancel.clone());
            std::thread::spawn(move || -> Result<_> {
                let (streams, first) =
                    listener.accept_streams(Role::Target, trust, &config, &cancel)?;
                let next = listener.next_stream(&streams, &cancel);
                Ok((first, next?))
            })
        };
        let open = |config: &Config| {
            let dial: Dial = address.to_string().parse().unwrap();
            once_it_waits(|| Streams::dial(&dial, Role::Source, &dials, config, &cancel))
        };
        let (one, two) = (accept(&first), accept(&second));
        let (streams, stream) = open(&first).expect(name);
        let busy = open(&first).err().unwrap();
        assert!(busy.to_string().contains("going on"), "{name}: {busy}");
        let (others, other) = open(&second).expect(name);
        for (streams, end, mut stream) in [(others, two, other), (streams, one, stream)] {
            let mut further = streams.dial_next(&cancel).unwrap();
            let (mut theirs, mut next) = end.join().unwrap().unwrap();
            for (ours, theirs) in [(&mut stream, &mut theirs), (&mut further, &mut next)] {
                ours.write_all(b"word").unwrap();
                let mut word = [0; 4];
                theirs.read_exact(&mut word).unwrap();
                assert_eq!(&word, b"word");
            }
        }
    }
}

/// Passes bytes on, and lets `change` at each piece that the dialler sends, with its offset.
fn between(
    address: &str,
    change: impl Fn(u64, usize, &mut [u8]) + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let between = listener.local_addr().unwrap().to_string();
    let address = address.to_owned();
    let change = Arc::new(change);
    std::thread::spawn(move || {
        for (number, near) in listener.incoming().enumerate() {
            let (near, far) = (near.unwrap(), TcpStream::connect(&address).unwrap());
            let (from, into) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || pass(from, into, |_, _| {}));
            let change = Arc::clone(&change);
            std::thread::spawn(move || {
                pass(near, far, |at, bytes| change(number as u64, at, bytes))
            });
        }
    });
    between
}

fn pass(mut from: TcpStream, mut into: TcpStream, change: impl Fn(usize, &mut [u8])) {
    let (mut bytes, mut at) = ([0; 4096], 0);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        change(at, &mut bytes[..count]);
        at += count;
        if into.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(std::net::Shutdown::Write);
}

#[test]
fn every_flipped_bit_of_the_hello_ends_the_handshake() {
    let pki = Pki::new();
    let mut config = quick();
    config.lanes = 1;
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let (address, end) = accepting(Role::Target, listens, &config, &cancel);
        let bit = Arc::new(AtomicU64::new(0));
        let flipped = Arc::clone(&bit);
        let through = between(&address, move |_, at, bytes| {
            let bit = flipped.load(Ordering::Relaxed) as usize;
            if let Some(byte) = (bit / 8).checked_sub(at).and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1 << (bit % 8);
            }
        });
        for at in 0..112 * 8 {
            bit.store(at, Ordering::Relaxed);
            let error = dialled(&through, Role::Source, &dials, &config).err();
            let error = error.unwrap_or_else(|| panic!("{name}: bit {at} did not matter"));
            assert!(
                matches!(
                    error,
                    Error::Peer(PeerError::NotAuthenticated { .. } | PeerError::Refused(_))
                ) || error.is_authentication(),
                "{name}: bit {at}: {error}"
            );
        }
        bit.store(u64::MAX, Ordering::Relaxed);
        let ours = dialled(&through, Role::Source, &dials, &config).expect(name);
        moves(ours, end.join().unwrap().unwrap(), &config);
    }
}

#[test]
fn a_recorded_handshake_that_is_sent_again_is_nobody() {
    let pki = Pki::new();
    let config = quick();
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let (address, end) = accepting(Role::Target, &listens, &config, &cancel);
        let record = Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = Arc::clone(&record);
        let through = between(&address, move |number, _, bytes| {
            if number == 0 {
                kept.lock().unwrap().extend_from_slice(bytes);
            }
        });
        // The session is open and breaks: the secret is good for another attempt.
        drop(dialled(&through, Role::Source, &dials, &config).expect(name));
        drop(end.join().unwrap().unwrap());
        let record = record.lock().unwrap().clone();
        let (address, end) = accepting(Role::Target, &listens, &config, &cancel);
        let mut again = TcpStream::connect(&address).unwrap();
        again.write_all(&record).unwrap();
        let mut answer = Vec::new();
        let _ = again.read_to_end(&mut answer);
        assert!(!end.is_finished(), "{name}: a recorded handshake opened a session");
        let ours = dialled(&address, Role::Source, &dials, &config).unwrap();
        moves(ours, end.join().unwrap().unwrap(), &config);
    }
}

/// The clear part of a first message, without a proof.
fn hello(trust: TrustKind) -> Vec<u8> {
    let code = if trust == TrustKind::Secret { 1 } else { 2 };
    let mut hello = b"SEALANE\n\x01\x01\x01".to_vec();
    hello.push(code);
    hello.resize(112, 0);
    hello
}

#[derive(PartialEq)]
enum TrustKind {
    Secret,
    Certificates,
}

/// A connection from another address than the one that everybody else has here.
fn from_elsewhere(to: SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&made, sockopt::IpBindAddressNoPort, &true)?;
    bind(made.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 2, 0))?;
    let SocketAddr::V4(to) = to else { panic!("the listener is at an IPv4 address") };
    connect(made.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(made.into())
}

#[test]
fn ten_thousand_half_open_handshakes_and_a_slow_one_do_not_keep_a_migration_away() {
    let pki = Pki::new();
    let config = quick();
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let (address, end) = accepting(Role::Target, listens, &config, &cancel);
        let to: SocketAddr = address.parse().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let slow = {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                // A first message of each kind, and TLS behind the second: a byte now and then.
                let mut all = hello(TrustKind::Secret);
                all.extend(hello(TrustKind::Certificates));
                all.extend([0x16, 3, 1, 2, 0, 1]);
                let mut sockets = [0, 112].map(|at| (TcpStream::connect(to).unwrap(), at));
                while !over.load(Ordering::Relaxed) {
                    for (socket, at) in &mut sockets {
                        // One that was turned away has nobody to write to.
                        let _ = socket.write_all(&all[*at..*at + 1]);
                        *at = (*at + 1).min(all.len() - 1);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let made = Arc::new(AtomicU64::new(0));
        let flood = {
            let (over, made) = (Arc::clone(&over), Arc::clone(&made));
            std::thread::spawn(move || {
                // Those that say nothing, those that begin well, and those that begin TLS.
                let mut hello = hello(TrustKind::Certificates);
                hello.extend([0x16, 3, 1, 2, 0, 1]);
                let mut open = std::collections::VecDeque::new();
                while !over.load(Ordering::Relaxed) {
                    if let Ok(mut socket) = from_elsewhere(to) {
                        let count = made.fetch_add(1, Ordering::Relaxed) as usize;
                        let _ = socket.write_all(&hello[..[0, 50, 118][count % 3]]);
                        open.push_back(socket);
                    }
                    if open.len() > 500 {
                        open.pop_front();
                    }
                }
            })
        };
        while made.load(Ordering::Relaxed) < 10_000 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let begin = std::time::Instant::now();
        let ours = dialled(&address, Role::Source, dials, &config);
        println!("{name}: the handshake took {:?}", begin.elapsed());
        // The lanes came through the same door, and the guest moves while the flood goes on.
        let ours = ours.expect(name);
        moves(ours, end.join().unwrap().unwrap(), &config);
        over.store(true, Ordering::Relaxed);
        flood.join().unwrap();
        slow.join().unwrap();
    }
}

/// What a TLS client of somebody else's gets, or none where the program is not there.
fn tls_client(program: &str, arguments: &[String]) -> Option<String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            println!("SKIP: tls_clients_get_a_clean_alert: {program}: {error}");
            return None;
        }
    };
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success(), "{program} was content");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Some(text.concat())
}

#[test]
fn tls_clients_get_a_clean_alert_and_no_information() {
    let pki = Pki::new();
    let config = quick();
    for (name, dials, listens) in trusts(&pki) {
        let cancel = Canceller::default();
        let (address, end) = accepting(Role::Target, listens, &config, &cancel);
        let (host, port) = address.split_once(':').unwrap();
        let openssl = ["s_client", "-connect", &address].map(str::to_owned);
        let gnutls = ["--insecure", "--port", port, host].map(str::to_owned);
        for (program, arguments) in [("openssl", &openssl[..]), ("gnutls-cli", &gnutls[..])] {
            let Some(said) = tls_client(program, arguments) else { continue };
            let alert = said.to_lowercase().contains("alert");
            // Nobody without the one-time secret gets a byte.
            assert_eq!(alert, name == "certificates", "{name}, {program}: {said}");
            assert!(!said.contains("b.example") && !said.contains("BEGIN CERT"), "{said}");
        }
        let ours = dialled(&address, Role::Source, dials, &config).expect(name);
        moves(ours, end.join().unwrap().unwrap(), &config);
    }
}
