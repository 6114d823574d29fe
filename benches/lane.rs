//! One lane over loopback, memory resident at both ends: without a cipher (N), the cipher alone
//! (P), sealed (S), and a plain blocking write/read loop of the same memory (B).
//!
//! Both ends are threads of this process, as two processes on one machine would share its cores.
//! The time is that of one round of all pages, from its order until the target has placed it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

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
    let mut plain = Plain::new();
    let sizes: &[usize] =
        if std::env::args().any(|a| a == "--sizes") { &[64, 128, 256, 512, 1024] } else { &[256] };
    for engine in [EngineChoice::Uring, EngineChoice::Syscalls] {
        for lanes in [1, 2] {
            for kib in sizes {
                let mut config = Config::default();
                (config.engine, config.lanes, config.frame_bytes) = (engine, lanes, kib << 10);
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

fn round(
    from: &std::fs::File,
    into: &std::fs::File,
    config: &Config,
    turn: usize,
) -> sealane::Result<f64> {
    fill(from, BYTES, 100 + turn as u64);
    // The first round warms up sockets and pools.
    let time = last_round(from, into, BYTES, config, 2)?;
    assert!(same(from, into, BYTES), "memory differs");
    Ok(gb_per_s(BYTES, time))
}

/// The plain competitor: memory written to a socket and read from it, both blocking.
struct Plain {
    from: Vec<u8>,
    into: Vec<u8>,
    turns: u64,
}

impl Plain {
    fn new() -> Self {
        let (from, into) = (vec![3u8; BYTES as usize], vec![1u8; BYTES as usize]);
        Self { from, into, turns: 0 }
    }

    fn turn(&mut self, chunk: usize) -> f64 {
        self.turns += 1;
        self.from.chunks_exact_mut(4096).for_each(|page| page[7] = self.turns as u8);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut near = TcpStream::connect(listener.local_addr().expect("bound")).expect("a peer");
        let (mut far, _) = listener.accept().expect("a peer");
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
        assert!(self.from == self.into, "memory differs");
        gb_per_s(BYTES, time)
    }
}
