//! `sealane demo`: a guest that keeps writing moves from this process to another one.
//!
//! The child is the target. After the handover its vCPU goes on for some steps and hashes the
//! memory; this process lets its own copy go the same steps and compares.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use sealane::memory::{AtomicBitmap, DirtyBitmap, Region};
use sealane::{Canceller, Listener, OneTimeSecret, Role, Source, SourceReport, Target, dial};

use crate::Failure;
use crate::arguments::DemoArguments;
use crate::guest::{self, Vcpu};
use crate::meeting::Meeting;
use crate::output::{Watch, say, total};

/// Steps that the vCPU goes on after the handover.
const STEPS_AFTER: u64 = 10_000;
const ROUNDS_MAX: usize = 20;
/// Pause of the vCPU after each burst, so that it leaves the core to others as a guest would.
const BURST: u64 = 64;
const REST: Duration = Duration::from_millis(2);

pub(crate) fn run(arguments: &DemoArguments, cancel: &Canceller) -> Result<(), Failure> {
    let bytes = arguments.mib << 20;
    eprintln!("making a guest of {} MiB", arguments.mib);
    let memory = guest::memory(bytes).map_err(io)?;
    guest::boot(&memory, bytes).map_err(io)?;
    let mut child = ChildTarget::spawn(arguments)?;
    let outcome = migrate(arguments, &memory, &mut child, cancel)?;
    let theirs = child.result()?;
    let mut vcpu = outcome.vcpu;
    for _ in 0..STEPS_AFTER {
        vcpu.step(&memory, bytes, None).map_err(io)?;
    }
    let ours = guest::hash(&memory, bytes).map_err(io)?;
    let identical = theirs["hash"] == ours.as_str() && theirs["steps"] == vcpu.steps();
    table(arguments, &outcome, theirs["cpu_seconds"].as_f64().unwrap_or(f64::NAN));
    if !identical {
        return Err(Failure::Text("memory differs between source and target".to_owned()));
    }
    say("memory identical");
    Ok(())
}

/// What the source measured.
struct Outcome {
    vcpu: Vcpu,
    total: Duration,
    downtime: Duration,
    rounds: usize,
    pages: u64,
    provider: &'static str,
    cpu_seconds: f64,
    report: SourceReport,
}

fn migrate(
    arguments: &DemoArguments,
    memory: &File,
    child: &mut ChildTarget,
    cancel: &Canceller,
) -> Result<Outcome, Failure> {
    let bytes = arguments.mib << 20;
    let config = arguments.tuning.config(&Meeting::default());
    let region = Region::from_file("ram", memory.try_clone().map_err(io)?, 0, bytes)?;
    let log = Arc::new(AtomicBitmap::new(region.pages()));
    let guest = RunningGuest::start(memory.try_clone().map_err(io)?, bytes, Arc::clone(&log));
    let (begin, cpu_begin) = (Instant::now(), cpu_seconds(UsageWho::RUSAGE_SELF));
    let lanes = dial(&child.address.parse()?, Role::Source, &child.secret, &config, cancel)?;
    let provider = lanes.provider();
    // This clone outlives the handover, as a hypervisor's own would: unmapping a guest takes tens
    // of milliseconds, when the other one is running already.
    let mut source = Source::start(lanes, vec![region.clone()], &config, cancel)?;
    let watch = Watch::new(source.progress(), bytes / 4096, false, false);
    let mut dirty = DirtyBitmap::all(bytes / 4096);
    let (mut rounds, mut pages) = (0, 0);
    loop {
        let report = source.send_round(&[dirty])?;
        rounds += 1;
        pages += report.pages;
        dirty = log.drain();
        let pages_per_s = report.pages as f64 / report.elapsed.as_secs_f64().max(1e-6);
        let expected_ms = dirty.count() as f64 / pages_per_s * 1e3;
        if expected_ms <= arguments.downtime_ms as f64 || rounds == ROUNDS_MAX {
            break;
        }
    }
    let paused = Instant::now();
    let (vcpu, vcpu_cpu) = guest.pause()?;
    // What it wrote until the pause, beside what was drained before.
    let mut last = log.drain();
    dirty.runs().for_each(|run| last.set_run(run));
    pages += source.send_round(&[last])?.pages;
    rounds += 1;
    source.commit(&vcpu.state())?;
    let report = source.hand_over()?;
    let (downtime, total) = (paused.elapsed(), begin.elapsed());
    drop(watch);
    let cpu_seconds = cpu_seconds(UsageWho::RUSAGE_SELF) - cpu_begin - vcpu_cpu;
    Ok(Outcome { vcpu, total, downtime, rounds, pages, provider, cpu_seconds, report })
}

/// The child process: takes the guest, lets it go on, and says what became of it.
pub(crate) fn run_target(arguments: &DemoArguments, cancel: &Canceller) -> Result<(), Failure> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(io)?;
    let secret = OneTimeSecret::from_text(&line)?;
    let config = arguments.tuning.config(&Meeting::default());
    let listener = Listener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_address()?);
    let lanes = listener.accept(Role::Target, &secret, &config, cancel)?;
    let cpu_begin = cpu_seconds(UsageWho::RUSAGE_SELF);
    let bytes = arguments.mib << 20;
    let memory = guest::memory(bytes).map_err(io)?;
    let mut target = Target::start(lanes, &config, cancel)?;
    target.accept(vec![Region::from_file("ram", memory.try_clone().map_err(io)?, 0, bytes)?])?;
    let state = target.receive()?;
    let vcpu = Vcpu::from_state(&state);
    let mut vcpu = vcpu.ok_or_else(|| Failure::Text("a vCPU state of another size".to_owned()))?;
    target.ready()?;
    target.done()?;
    let cpu = cpu_seconds(UsageWho::RUSAGE_SELF) - cpu_begin;
    for _ in 0..STEPS_AFTER {
        vcpu.step(&memory, bytes, None).map_err(io)?;
    }
    let hash = guest::hash(&memory, bytes).map_err(io)?;
    println!("{}", serde_json::json!({ "hash": hash, "steps": vcpu.steps(), "cpu_seconds": cpu }));
    Ok(())
}

struct ChildTarget {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
    secret: OneTimeSecret,
}

impl ChildTarget {
    fn spawn(arguments: &DemoArguments) -> Result<Self, Failure> {
        let secret = OneTimeSecret::generate()?;
        let mut child = Command::new(std::env::current_exe().map_err(io)?)
            .arg("demo-target")
            .arg(format!("--mib={}", arguments.mib))
            .args(arguments.tuning.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(io)?;
        let mut input = child.stdin.take().expect("piped");
        writeln!(input, "{}", *secret.to_text()).map_err(io)?;
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut address = String::new();
        output.read_line(&mut address).map_err(io)?;
        if address.is_empty() {
            let status = child.wait().map_err(io)?;
            return Err(Failure::Text(format!("the target process ended: {status}")));
        }
        Ok(Self { child, output, address: address.trim().to_owned(), secret })
    }

    fn result(&mut self) -> Result<serde_json::Value, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(io)?;
        let status = self.child.wait().map_err(io)?;
        serde_json::from_str(&line).map_err(|_| {
            Failure::Text(format!("the target process ended without a result: {status}"))
        })
    }
}

impl Drop for ChildTarget {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The source's vCPU thread.
struct RunningGuest {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<std::io::Result<(Vcpu, f64)>>,
}

impl RunningGuest {
    fn start(memory: File, bytes: u64, log: Arc<AtomicBitmap>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut vcpu = Vcpu::new();
            while !stopped.load(Ordering::Acquire) {
                for _ in 0..BURST {
                    vcpu.step(&memory, bytes, Some(&log))?;
                }
                std::thread::sleep(REST);
            }
            Ok((vcpu, cpu_seconds(UsageWho::RUSAGE_THREAD)))
        });
        Self { stop, thread }
    }

    fn pause(self) -> Result<(Vcpu, f64), Failure> {
        self.stop.store(true, Ordering::Release);
        match self.thread.join() {
            Ok(result) => result.map_err(io),
            Err(_) => Err(Failure::Text("the vCPU thread panicked".to_owned())),
        }
    }
}

fn table(arguments: &DemoArguments, outcome: &Outcome, target_cpu: f64) {
    let sum = total(&outcome.report.lanes);
    let gb = outcome.pages as f64 * 4096.0 / 1e9;
    let engine = match arguments.tuning.config(&Meeting::default()).engine {
        sealane::EngineChoice::Uring => "uring",
        sealane::EngineChoice::Syscalls => "syscalls",
    };
    let rows = [
        ("total time", format!("{:.2} s", outcome.total.as_secs_f64())),
        ("downtime", format!("{:.1} ms", outcome.downtime.as_secs_f64() * 1e3)),
        ("guest memory", format!("{:.2} GB/s", gb / outcome.total.as_secs_f64())),
        ("zero pages", format!("{} of {}", sum.zero_pages, outcome.pages)),
        ("rounds", outcome.rounds.to_string()),
        ("lanes", outcome.report.lanes.len().to_string()),
        ("provider", outcome.provider.to_owned()),
        ("engine", engine.to_owned()),
        (
            "zero-copy sends",
            format!("{} kept, {} copied", sum.engine.zero_copy_kept, sum.engine.zero_copy_copied),
        ),
        ("CPU, source", format!("{:.2} s/GB", outcome.cpu_seconds / gb)),
        ("CPU, target", format!("{:.2} s/GB", target_cpu / gb)),
    ];
    for (name, value) in rows {
        say(&format!("{name:<16} {value}"));
    }
}

fn cpu_seconds(who: UsageWho) -> f64 {
    let Ok(usage) = getrusage(who) else { return f64::NAN };
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn io(error: impl std::fmt::Display) -> Failure {
    Failure::Text(error.to_string())
}
