//! Resident memory of source and target, guest memory left out, for a small and a large guest:
//! it must not grow with the guest.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sealane::memory::{DirtyBitmap, Region};
use sealane::{Canceller, Config, Listener, OneTimeSecret, Role, Source, Target, dial};
use sealane_benches::guest;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, mib] = &arguments[..]
        && verb == "target"
    {
        return target(mib.parse::<u64>()? << 20);
    }
    println!("most private resident memory (RssAnon of proc_pid_status(5)) during a migration");
    let sizes = if arguments.is_empty() { vec![1024, 8192] } else { numbers(&arguments)? };
    for lanes in [1, 8] {
        for mib in &sizes {
            source(*mib, lanes)?;
        }
    }
    Ok(())
}

fn numbers(arguments: &[String]) -> Result<Vec<u64>, std::num::ParseIntError> {
    arguments.iter().map(|text| text.parse()).collect()
}

fn source(mib: u64, lanes: u16) -> Result<(), Box<dyn std::error::Error>> {
    let secret = OneTimeSecret::generate()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["target", &mib.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    writeln!(child.stdin.take().expect("piped"), "{}", *secret.to_text())?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = lines.next().ok_or("the target ended")??;
    let file = guest(mib << 20);
    let mut config = Config::default();
    config.lanes = lanes;
    let peak = Peak::watch();
    let cancel = Canceller::default();
    let lanes_open = dial(&address.parse()?, Role::Source, &secret, &config, &cancel)?;
    let region = Region::from_file("ram", file, 0, mib << 20)?;
    let pages = region.pages();
    let mut source = Source::start(lanes_open, vec![region], &config, &cancel)?;
    source.send_round(&[DirtyBitmap::all(pages)])?;
    source.send_round(&[DirtyBitmap::all(pages)])?;
    source.commit(b"")?;
    source.hand_over()?;
    let ours = peak.kib();
    let theirs = lines.next().ok_or("the target ended")??;
    assert!(child.wait()?.success(), "the target failed");
    println!("{mib:>6} MiB, {lanes} lane(s): source {ours:>6} KiB, target {theirs:>6} KiB");
    Ok(())
}

fn target(bytes: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_line(&mut text)?;
    let secret = OneTimeSecret::from_text(&text)?;
    let (config, cancel) = (Config::default(), Canceller::default());
    let listener = Listener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_address()?);
    let lanes = listener.accept(Role::Target, &secret, &config, &cancel)?;
    let fd = nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING)?;
    let file = std::fs::File::from(fd);
    file.set_len(bytes)?;
    let check = file.try_clone()?;
    let peak = Peak::watch();
    let mut target = Target::start(lanes, &config, &cancel)?;
    target.accept(vec![Region::from_file("ram", file, 0, bytes)?])?;
    target.receive()?;
    target.ready()?;
    target.done()?;
    println!("{}", peak.kib());
    // The same content as the source's, by the function that made it.
    let small = guest(1 << 20);
    assert!(sealane_benches::same(&small, &check, 1 << 20), "memory differs");
    Ok(())
}

/// Looks at this process again and again.
struct Peak(Arc<AtomicU64>, Arc<AtomicBool>);

impl Peak {
    fn watch() -> Self {
        let peak = Self(Arc::default(), Arc::default());
        let (most, stop) = (Arc::clone(&peak.0), Arc::clone(&peak.1));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                most.fetch_max(now_kib(), Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        peak
    }

    fn kib(self) -> u64 {
        self.1.store(true, Ordering::Release);
        self.0.load(Ordering::Acquire).max(now_kib())
    }
}

fn now_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc_pid_status(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    figure.expect("Linux 4.5 or newer")
}
