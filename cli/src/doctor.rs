//! `sealane doctor`: what this machine has, what it lacks, and what helps.

use std::process::ExitCode;

use crate::output::say;
use sealane::doctor::{CpuFeatures, Probe, Provider, lane_locked_bytes};
use sealane::{Config, ProviderChoice};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum State {
    Ok,
    Degraded,
    Missing,
}

/// Prints a line for each thing; exit code 1 where the default configuration could not run.
pub(crate) fn run() -> ExitCode {
    let mut missing = false;
    let mut line = |state: State, name: &str, found: String, remedy: &str| {
        let word = match state {
            State::Ok => "ok      ",
            State::Degraded => "degraded",
            State::Missing => "missing ",
        };
        missing |= state == State::Missing;
        let remedy = if state == State::Ok { "" } else { remedy };
        let arrow = if remedy.is_empty() { "" } else { ": " };
        say(&format!("{word}  {name:<22} {found}{arrow}{remedy}"));
    };
    look(&mut line);
    if missing {
        say("the default configuration cannot run here");
    }
    ExitCode::from(u8::from(missing))
}

/// Looks at everything.
pub(crate) fn look(line: &mut Line<'_>) {
    kernel(line);
    cpu(line);
    system(line);
}

pub(crate) type Line<'a> = dyn FnMut(State, &str, String, &str) + 'a;

fn kernel(line: &mut Line<'_>) {
    let probe = Probe::run();
    line(State::Ok, "kernel", probe.kernel.clone(), "");
    let setup = match probe.setup_errno {
        0 => (State::Ok, "can be used".to_owned()),
        errno => (State::Missing, std::io::Error::from_raw_os_error(errno).to_string()),
    };
    let remedy = match probe.io_uring_disabled {
        Some(1 | 2) => "sysctl kernel.io_uring_disabled=0, or --engine syscalls",
        _ if probe.setup_errno == libc::ENOMEM => "raise ulimit -l, or --engine syscalls",
        _ => {
            "a seccomp filter forbids it or the kernel lacks it (Linux 6.1 is wanted): allow \
              io_uring_setup, io_uring_enter, io_uring_register, or --engine syscalls"
        }
    };
    line(setup.0, "io_uring", setup.1, remedy);
    // Without a ring nothing is known of them.
    for operation in probe.operations.iter().filter(|_| probe.setup_errno == 0) {
        let optional = operation.name == "SEND_ZC";
        let state = match (operation.supported, optional) {
            (true, _) => State::Ok,
            (false, true) => State::Degraded,
            (false, false) => State::Missing,
        };
        let found = if operation.supported { "supported" } else { "not supported" };
        let name = format!("io_uring {}", operation.name);
        line(state, &name, found.to_owned(), "update the kernel, or --engine syscalls");
    }
    let config = Config::default();
    let one = lane_locked_bytes(config.slots_per_lane, config.frame_bytes);
    let lock = &probe.lock;
    let limit = if lock.unlimited {
        "no limit (CAP_IPC_LOCK)".to_owned()
    } else {
        format!("limit {} KiB", lock.soft_bytes >> 10)
    };
    let found = format!("{limit}; one lane needs {} KiB, eight {} KiB", one >> 10, (8 * one) >> 10);
    let state = match (lock.allows(one), lock.allows(8 * one)) {
        (true, true) => State::Ok,
        (true, false) => State::Degraded,
        _ => State::Missing,
    };
    line(state, "locked memory", found, "raise it with ulimit -l or LimitMEMLOCK=");
}

fn cpu(line: &mut Line<'_>) {
    let cpu = CpuFeatures::detect();
    let state = match (cpu.aes, cpu.vaes) {
        (true, true) => State::Ok,
        (true, false) => State::Degraded,
        _ => State::Missing,
    };
    let remedy = if cpu.aes {
        "a CPU with VAES seals two to five times faster; pass it through to this machine"
    } else {
        "pass the CPU's AES instructions through, or --provider aes-gcm at a tenth of the speed"
    };
    line(state, "CPU", cpu.to_string(), remedy);
    match Provider::resolve(ProviderChoice::Auto, &cpu) {
        Ok(provider) => {
            let speed = provider.measure(256 << 10);
            line(State::Ok, "provider", format!("{}, {speed:.1} GB/s a core", provider.name()), "");
        }
        Err(error) => line(State::Missing, "provider", error.to_string(), ""),
    }
}

fn system(line: &mut Line<'_>) {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let of = |key: &str| {
        meminfo.lines().find_map(|line| line.strip_prefix(key)).map_or("unknown", str::trim)
    };
    let cache = format!("{} cached, {} free to take", of("Cached:"), of("MemAvailable:"));
    line(State::Ok, "page cache", cache, "");
    let huge = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    line(State::Ok, "huge pages", format!("memfd: {}", huge.as_deref().unwrap_or("unknown")), "");
    for (name, path) in [
        ("send buffer", "/proc/sys/net/ipv4/tcp_wmem"),
        ("receive buffer", "/proc/sys/net/ipv4/tcp_rmem"),
    ] {
        let value = read(path).unwrap_or_default();
        let max: u64 = value.split_whitespace().last().and_then(|v| v.parse().ok()).unwrap_or(0);
        let state = if max >= 4 << 20 { State::Ok } else { State::Degraded };
        line(
            state,
            name,
            format!("up to {} KiB", max >> 10),
            "raise the third value to 4194304 or more",
        );
    }
    let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let state = if congestion.starts_with("bbr") { State::Degraded } else { State::Ok };
    line(
        state,
        "congestion control",
        congestion,
        "it paces each lane by a timer, which on a fast local network costs half of the speed \
         (docs/performance.md): --congestion cubic",
    );
}
