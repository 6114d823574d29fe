//! One end of a run, a process of its own. The referee tells it on stdin what to do.
//!
//! ```text
//! referee                 target                          source
//!    | starts, with a way --> listens, memory resident
//!    | <------------- port N |
//!    | starts, with N -------------------------------------> dials, shakes hands
//!    | <-------------- ready | <------ one byte, both ways -> | ready --> referee
//!    | go --------------------------------------------------> | the clock begins
//!    |                       | <------- the whole memory      |
//!    |                       | one byte, or its like -------> | the clock ends
//!    | <-------- done FIGURES                                 | done FIGURES --> referee
//! ```

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use crate::contestants::{Means, Way, find};
use crate::memory::Memory;
use crate::pipes::{self, Ahead, CHUNK_BYTES, Pipe};
use crate::{rpc, sealed};

/// What the referee says on the command line.
pub struct Order {
    pub is_source: bool,
    pub way: Way,
    /// The memory's path.
    pub memory: PathBuf,
    /// Certificates, keys and secrets.
    pub place: PathBuf,
    /// Where the source dials.
    pub port: u16,
    /// Whether the target's memory is left untouched.
    pub cold: bool,
}

impl Order {
    /// What [`Self::from_arguments`] reads.
    pub fn to_arguments(&self) -> Vec<String> {
        let role = if self.is_source { "source" } else { "target" };
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        vec![
            "end".to_owned(),
            role.to_owned(),
            self.way.name.clone(),
            path(&self.memory),
            path(&self.place),
            self.port.to_string(),
            self.cold.to_string(),
        ]
    }

    pub fn from_arguments(arguments: &[String]) -> Option<Self> {
        let [_, role, way, memory, place, port, cold] = arguments else { return None };
        Some(Self {
            is_source: role == "source",
            way: find(way)?,
            memory: memory.into(),
            place: place.into(),
            port: port.parse().ok()?,
            cold: cold.parse().ok()?,
        })
    }
}

/// Goes one end of a way.
pub fn run(order: &Order) -> Result<(), Box<dyn std::error::Error>> {
    let mut memory = Memory::open(&order.memory)?;
    // A source's guest has run: its memory is there.
    if order.is_source || !order.cold {
        memory.make_resident();
    }
    // The pipe stays open until the referee has looked at the helpers, which end with it.
    let (figures, _pipe) = match (&order.way.means, order.is_source) {
        (Means::Sealane(config) | Means::ByDescriptor(config), true) => {
            (sealed::source(order, config, &mut memory)?, None)
        }
        (Means::Sealane(config), false) => {
            (sealed::target(order, config, &mut memory, order.cold)?, None)
        }
        (Means::ByDescriptor(config), false) => {
            (sealed::target(order, config, &mut memory, true)?, None)
        }
        (_, true) => source(order, &memory)?,
        (_, false) => target(order, &mut memory)?,
    };
    tell(&format!("done {figures}"));
    hear("end")?;
    Ok(())
}

type Outcome = Result<(Value, Option<Box<dyn Pipe>>), Box<dyn std::error::Error>>;

fn source(order: &Order, memory: &Memory) -> Outcome {
    let socket = TcpStream::connect(("127.0.0.1", order.port))?;
    socket.set_nodelay(true)?;
    let mut pipe: Box<dyn Pipe> = match &order.way.means {
        Means::Rustls | Means::Calls | Means::Messages => {
            pipes::rustls_client(socket, &order.place)?
        }
        Means::RustlsAhead => pipes::rustls_client(Ahead::of(socket), &order.place)?,
        #[cfg(feature = "openssl")]
        Means::OpenSsl => pipes::openssl_client(socket, &order.place)?,
        _ => Box::new(socket),
    };
    pipe.write_all(&[1])?;
    pipe.flush()?;
    pipe.read_exact(&mut [0])?;
    tell("ready");
    hear("go")?;
    let clock = Clock::begin();
    match &order.way.means {
        Means::Calls => rpc::send_calls(&mut pipe, &memory.map)?,
        Means::Messages => rpc::send_stream(&mut pipe, &memory.map)?,
        _ => {
            for part in memory.map.chunks(CHUNK_BYTES) {
                pipe.write_all(part)?;
            }
            pipe.flush()?;
            pipe.read_exact(&mut [0])?;
        }
    }
    Ok((clock.figures(), Some(pipe)))
}

fn target(order: &Order, memory: &mut Memory) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    tell(&format!("port {}", listener.local_addr()?.port()));
    let (socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut pipe: Box<dyn Pipe> = match &order.way.means {
        Means::Rustls | Means::Calls | Means::Messages => {
            pipes::rustls_server(socket, &order.place)?
        }
        Means::RustlsAhead => pipes::rustls_server(Ahead::of(socket), &order.place)?,
        #[cfg(feature = "openssl")]
        Means::OpenSsl => pipes::openssl_server(socket, &order.place)?,
        _ => Box::new(socket),
    };
    pipe.read_exact(&mut [0])?;
    pipe.write_all(&[1])?;
    pipe.flush()?;
    tell("ready");
    let clock = Clock::begin();
    match &order.way.means {
        Means::Calls => rpc::receive_calls(&mut pipe, &mut memory.map)?,
        Means::Messages => rpc::receive_stream(&mut pipe, &mut memory.map)?,
        _ => {
            for part in memory.map.chunks_mut(CHUNK_BYTES) {
                pipe.read_exact(part)?;
            }
            pipe.write_all(&[1])?;
            pipe.flush()?;
        }
    }
    Ok((clock.figures(), Some(pipe)))
}

/// Time and what this process used in it.
pub struct Clock {
    begin: Instant,
    before: Usage,
}

impl Clock {
    pub fn begin() -> Self {
        Self { before: usage(), begin: Instant::now() }
    }

    /// Seconds, CPU seconds, page faults, switches; and the most memory ever: VmHWM without what is
    /// shared (the guest) is what the way itself needs.
    pub fn figures(&self) -> Value {
        let seconds = self.begin.elapsed().as_secs_f64();
        let after = usage();
        let spent = |of: fn(&Usage) -> f64| of(&after) - of(&self.before);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        json!({
            "seconds": seconds,
            "user_s": spent(|usage| usage.user_time().num_microseconds() as f64 / 1e6),
            "system_s": spent(|usage| usage.system_time().num_microseconds() as f64 / 1e6),
            "minor_faults": spent(|usage| usage.minor_page_faults() as f64),
            "waits": spent(|usage| usage.voluntary_context_switches() as f64),
            "preemptions": spent(|usage| usage.involuntary_context_switches() as f64),
            "own_kib": own_kib(&status),
        })
    }
}

/// The most resident memory ever but for shared pages.
pub fn own_kib(status: &str) -> u64 {
    field_kib(status, "VmHWM:").saturating_sub(field_kib(status, "RssShmem:"))
}

/// A line of proc_pid_status(5).
pub fn field_kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn usage() -> Usage {
    getrusage(UsageWho::RUSAGE_SELF).expect("getrusage(2) of oneself")
}

/// A line to the referee.
pub fn tell(line: &str) {
    println!("{line}");
    io::stdout().flush().expect("the referee listens");
}

/// Waits for a line from the referee.
pub fn hear(wanted: &str) -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    match line.trim() == wanted {
        true => Ok(()),
        false => Err(io::Error::other(format!("the referee says {line:?}, not {wanted}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_command_line() {
        let order = Order {
            is_source: true,
            way: find("rustls").unwrap(),
            memory: "/proc/1/fd/3".into(),
            place: "/tmp".into(),
            port: 7,
            cold: true,
        };
        let again = Order::from_arguments(&order.to_arguments()).unwrap();
        assert_eq!(again.to_arguments(), order.to_arguments());
        assert!(Order::from_arguments(&["end".to_owned()]).is_none());
    }

    #[test]
    fn own_memory_is_what_is_not_shared() {
        let status = "VmHWM:\t    5000 kB\nRssAnon:\t 900 kB\nRssShmem:\t    4096 kB\n";
        assert_eq!(own_kib(status), 904);
        assert_eq!(field_kib(status, "VmPin:"), 0);
    }
}
