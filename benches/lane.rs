//! One lane over loopback, memory resident at both ends: without a cipher (N), the cipher alone
//! (P), sealed (S), and a plain blocking write/read loop of the same memory (B).
//!
//! Both ends are threads of this process, as two processes on one machine would share its cores.
//! The time is that of one round of all pages, from its order until the target has placed it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use nix::sys::socket::{setsockopt, sockopt};
use sealane::doctor::{CpuFeatures, Provider};
use sealane::{Config, EngineChoice, ProviderChoice};
use sealane_benches::{fill, gb_per_s, guest, last_round, ratios, same, shown, spread};

const BYTES: u64 = 512 << 20;
const TURNS: usize = 7;

fn main() -> sealane::Result<()> {
    let cpu = CpuFeatures::detect();
    let provider = Provider::resolve(ProviderChoice::Auto, &cpu)?;
    println!("{} MiB, {TURNS} turns each, {} ({cpu}), GB/s", BYTES >> 20, provider.name());
    let (from, into) = (guest(BYTES), guest(BYTES));
    let chosen = Chosen::from_arguments();
    let mut plain = Plain::new(&from, &into, chosen.congestion.as_ref());
    for engine in chosen.engines {
        for lanes in &chosen.lanes {
            for kib in &chosen.frame_kib {
                let mut config = Config::default();
                (config.engine, config.lanes, config.frame_bytes) = (engine, *lanes, kib << 10);
                config.socket_buffer_bytes = chosen.buffer_kib << 10;
                config.congestion = chosen.congestion.clone();
                let mut figures = Figures::default();
                for turn in 0..TURNS {
                    figures.bare.push(provider.measure(config.frame_bytes));
                    config.provider = ProviderChoice::DangerNull;
                    figures.null.push(round(&from, &into, &config, turn)?);
                    config.provider = ProviderChoice::Auto;
                    figures.sealed.push(round(&from, &into, &config, turn)?);
                    figures.plain.push(plain.turn(*kib << 10));
                }
                figures.print(&format!("{engine:?}, {lanes} lane(s), {kib} KiB"));
            }
        }
    }
    Ok(())
}

/// What the arguments `name=value` narrow or change.
struct Chosen {
    engines: Vec<EngineChoice>,
    lanes: Vec<u16>,
    frame_kib: Vec<usize>,
    buffer_kib: usize,
    congestion: Option<String>,
}

impl Chosen {
    fn from_arguments() -> Self {
        let both = vec![EngineChoice::Uring, EngineChoice::Syscalls];
        let mut chosen = Self {
            engines: both,
            lanes: vec![1, 2],
            frame_kib: vec![256],
            buffer_kib: 0,
            congestion: None,
        };
        for argument in std::env::args().skip(1) {
            let (name, value) = argument.split_once('=').expect("name=value");
            let list = || value.split(',').map(|n| n.parse().expect("numbers")).collect();
            match name {
                "engine" if value == "uring" => chosen.engines = vec![EngineChoice::Uring],
                "engine" => chosen.engines = vec![EngineChoice::Syscalls],
                "lanes" => chosen.lanes = vec![value.parse().expect("a number")],
                "frame-kib" => chosen.frame_kib = list(),
                "buffer-kib" => chosen.buffer_kib = value.parse().expect("a number"),
                "congestion" => chosen.congestion = Some(value.to_owned()),
                _ => panic!("engine, lanes, frame-kib, buffer-kib, congestion; not {name}"),
            }
        }
        chosen
    }
}

#[derive(Default)]
struct Figures {
    null: Vec<f64>,
    bare: Vec<f64>,
    sealed: Vec<f64>,
    plain: Vec<f64>,
}

impl Figures {
    fn print(&self, name: &str) {
        let both = self.null.iter().zip(&self.bare);
        let serial: Vec<f64> = both.map(|(n, p)| 1.0 / (1.0 / n + 1.0 / p)).collect();
        println!(
            "{name}\n  no cipher N {}\n  cipher  P   {}\n  sealed  S   {}\n  plain   B   {}\n  \
             S / (1/(1/N + 1/P)) {}; S / B {}; median S / median B {:.2}",
            shown(&self.null),
            shown(&self.bare),
            shown(&self.sealed),
            shown(&self.plain),
            shown(&ratios(&self.sealed, &serial)),
            shown(&ratios(&self.sealed, &self.plain)),
            spread(&self.sealed).0 / spread(&self.plain).0,
        );
    }
}

fn round(from: &File, into: &File, config: &Config, turn: usize) -> sealane::Result<f64> {
    fill(from, BYTES, 100 + turn as u64);
    // The first round warms up sockets and pools.
    let time = last_round(from, into, BYTES, config, 2)?;
    assert!(same(from, into, BYTES), "memory differs");
    Ok(gb_per_s(BYTES, time))
}

/// The plain competitor: memory written to a socket and read from it, both blocking.
struct Plain {
    from: MmapMut,
    into: MmapMut,
    congestion: Option<OsString>,
    turns: u64,
}

impl Plain {
    /// Over the same memory: memfds, and not the larger pages that a vector may get.
    fn new(from: &File, into: &File, congestion: Option<&String>) -> Self {
        // SAFETY: memfds of this process that nobody truncates, and while a turn is on nothing
        // else uses them.
        let map = |file: &File| unsafe { MmapMut::map_mut(file) }.expect("a mapping");
        let congestion = congestion.map(OsString::from);
        Self { from: map(from), into: map(into), congestion, turns: 0 }
    }

    fn turn(&mut self, chunk: usize) -> f64 {
        self.turns += 1;
        self.from.chunks_exact_mut(4096).for_each(|page| page[7] = self.turns as u8);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut near = TcpStream::connect(listener.local_addr().expect("bound")).expect("a peer");
        let (mut far, _) = listener.accept().expect("a peer");
        for socket in [&near, &far] {
            if let Some(name) = &self.congestion {
                setsockopt(socket, sockopt::TcpCongestion, name).expect("it is available");
            }
        }
        let mut time = Duration::ZERO;
        std::thread::scope(|scope| {
            let into = &mut self.into;
            let reader = scope.spawn(move || {
                for _ in 0..2 {
                    for part in into.chunks_mut(chunk) {
                        far.read_exact(part).expect("the bytes");
                    }
                    far.write_all(&[1]).expect("the answer");
                }
            });
            for _ in 0..2 {
                let begin = Instant::now();
                for part in self.from.chunks(chunk) {
                    near.write_all(part).expect("the bytes");
                }
                near.read_exact(&mut [0]).expect("the answer");
                time = begin.elapsed();
            }
            reader.join().expect("no panic");
        });
        assert!(self.from[..] == self.into[..], "memory differs");
        gb_per_s(BYTES, time)
    }
}
