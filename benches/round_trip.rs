//! A 64-byte message there and back through an idle stream, and through bare sockets: TCP over
//! loopback, TCP_NODELAY, both ends threads of this process; in turns.
//!
//! The stream comes twice: as the tunnel and a caller with threads use it (blocking), with each
//! engine.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use sealane::stream::{Stream, Streams};
use sealane::{Canceller, Config, EngineChoice, OneTimeSecret, Role};
use sealane_benches::{ratios, shown, spread};

const MESSAGE_BYTES: usize = 64;
const TURNS: usize = 9;
const TRIPS: usize = 5000;

fn main() -> sealane::Result<()> {
    println!("{MESSAGE_BYTES} bytes there and back, {TRIPS} times, {TURNS} turns: microseconds");
    let mut bare = Bare::new();
    let mut ways = [EngineChoice::Uring, EngineChoice::Syscalls].map(|engine| {
        let pair = pair(engine).expect("a stream");
        (engine, pair, Vec::new(), Vec::new())
    });
    let (mut bare50, mut bare99) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (p50, p99) = bare.turn();
        bare50.push(p50);
        bare99.push(p99);
        for (_, (near, far), all50, all99) in &mut ways {
            let (p50, p99) = turn(near, far);
            all50.push(p50);
            all99.push(p99);
        }
    }
    println!("bare TCP   p50 {}   p99 {}", shown(&bare50), shown(&bare99));
    for (engine, _, p50, p99) in &ways {
        println!("{engine:?}   p50 {}   p99 {}", shown(p50), shown(p99));
        println!(
            "  stream / bare: p50 {}; p99 {}",
            shown(&ratios(p50, &bare50)),
            shown(&ratios(p99, &bare99))
        );
    }
    Ok(())
}

/// p50 and p99 in microseconds of trips that check what comes back.
fn trips(mut trip: impl FnMut(&mut [u8; MESSAGE_BYTES])) -> (f64, f64) {
    let mut times = Vec::with_capacity(TRIPS);
    for n in 0..TRIPS {
        let sent = [n as u8; MESSAGE_BYTES];
        let mut message = sent;
        let begin = Instant::now();
        trip(&mut message);
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        assert_eq!(message, sent.map(|byte| byte ^ 0xFF), "the echo inverts");
    }
    times.sort_by(f64::total_cmp);
    (spread(&times).0, times[TRIPS * 99 / 100])
}

/// Answers with the inverse until the end.
fn echo(mut far: impl Read + Write) {
    let mut message = [0; MESSAGE_BYTES];
    for _ in 0..TRIPS {
        far.read_exact(&mut message).expect("a message");
        message.iter_mut().for_each(|byte| *byte ^= 0xFF);
        far.write_all(&message).expect("room");
    }
}

struct Bare(TcpStream, TcpStream);

impl Bare {
    fn new() -> Self {
        let (near, far) = sockets();
        for socket in [&near, &far] {
            socket.set_nodelay(true).expect("TCP");
        }
        Self(near, far)
    }

    fn turn(&mut self) -> (f64, f64) {
        let (near, far) = (&self.0, &self.1);
        std::thread::scope(|scope| {
            scope.spawn(|| echo(far));
            trips(|message| {
                let mut near = near;
                near.write_all(message).expect("room");
                near.read_exact(message).expect("the answer");
            })
        })
    }
}

fn turn(near: &Arc<Stream>, far: &Arc<Stream>) -> (f64, f64) {
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&**far));
        trips(|message| {
            let mut near = &**near;
            near.write_all(message).expect("room");
            near.read_exact(message).expect("the answer");
        })
    })
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("a peer");
    (near, listener.accept().expect("a peer").0)
}

fn pair(engine: EngineChoice) -> sealane::Result<(Arc<Stream>, Arc<Stream>)> {
    let (secret, mut config) = (OneTimeSecret::generate()?, Config::default());
    config.engine = engine;
    let (near, far) = sockets();
    let (theirs, other) = (secret.clone(), config.clone());
    let far = std::thread::spawn(move || {
        let cancel = Canceller::default();
        Streams::answer(far, Role::Target, &theirs, &other, &cancel)
    });
    let cancel = Canceller::default();
    let (_, near) = Streams::open(near, Role::Source, &secret, &config, &cancel)?;
    let (_, far) = far.join().expect("no panic")?;
    Ok((Arc::new(near), Arc::new(far)))
}
