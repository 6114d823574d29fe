//! `sealane tunnel`: stock QEMU migrates by unix sockets, sealed in between.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar};
use sealane::tunnel::{
    ChannelStatistics, LocalListener, TunnelProgress, TunnelReport, TunnelSource, TunnelTarget,
    check_socket_path,
};
use sealane::{Canceller, Dial, Error, Listener, OneTimeSecret, Trust};
use serde_json::{Value, json};

use crate::Failure;
use crate::arguments::{TunnelOptions, TunnelSourceArguments, TunnelTargetArguments};
use crate::output::event;
use crate::transfer::spend;

/// How a tunnel ended.
type Outcome = Result<(), Failure>;

/// How often progress is shown; channels are told when they are seen.
const LOOK: Duration = Duration::from_millis(50);
const PROGRESS: Duration = Duration::from_secs(1);
/// How soon a tunnel that is kept tries again what nobody else brings about.
const AGAIN: Duration = Duration::from_secs(1);
/// More than 255 channels, the most of QEMU, take.
const OPEN_FILES: u64 = 4096;

pub(crate) fn source(arguments: &TunnelSourceArguments, cancel: &Canceller) -> Outcome {
    let (options, to) = (&arguments.tunnel, Dial::to(&arguments.to)?);
    let config = options.tuning.config();
    raise_open_files();
    let from = LocalListener::bind(&arguments.from)?;
    let dial = || -> Result<TunnelSource, Failure> {
        let secret = OneTimeSecret::read(&options.common.secret_file)?;
        let tunnel = TunnelSource::dial(&to, &secret, &config, cancel)?;
        connected(options, tunnel.provider());
        Ok(tunnel)
    };
    // Before QEMU is let in: a wrong secret or address is found when it harms nobody.
    let mut first = Some(dial()?);
    from.listen()?;
    listening(options, &format!("unix:{}", from.path().display()));
    repeat(options, cancel, || {
        let tunnel = match first.take() {
            Some(tunnel) => tunnel,
            None => {
                from.wait(cancel)?;
                match dial() {
                    Ok(tunnel) => tunnel,
                    Err(failure) => {
                        from.turn_away()?; // this migration fails, the next may not
                        return Ok(Err(failure));
                    }
                }
            }
        };
        let watch = Watch::new(tunnel.progress(), options);
        let report = tunnel.serve(&from);
        if report.is_err() {
            from.turn_away()?; // what is left of it must not begin the next one
        }
        Ok(watch.end(report))
    })
}

pub(crate) fn target(arguments: &TunnelTargetArguments, cancel: &Canceller) -> Outcome {
    let options = &arguments.tunnel;
    let config = options.tuning.config();
    check_socket_path(&arguments.to)?;
    raise_open_files();
    let first = OneTimeSecret::read(&options.common.secret_file)?;
    // One that is kept takes the secret of the day; else its file may go once it was read.
    let secret = || match options.keep {
        true => OneTimeSecret::read(&options.common.secret_file).map(Trust::from),
        false => Ok(first.clone().into()),
    };
    let listener = Listener::bind(&arguments.listen)?;
    listening(options, &listener.local_address()?.to_string());
    repeat(options, cancel, || {
        let tunnel = match TunnelTarget::accept(&listener, &secret, &config, cancel) {
            Err(error) if options.keep && !error.is_cancelled() => {
                if !matches!(error, Error::Peer(_)) {
                    std::thread::sleep(AGAIN);
                }
                return Ok(Err(error.into()));
            }
            accepted => accepted?,
        };
        connected(options, tunnel.provider());
        let watch = Watch::new(tunnel.progress(), options);
        let report = tunnel.serve(&arguments.to);
        Ok(watch.end(report))
    })
}

/// Once, or until a signal: then a migration that failed is told and does not end it. What `serve`
/// fails with itself does: the next one would fail as well.
fn repeat(
    options: &TunnelOptions,
    cancel: &Canceller,
    mut serve: impl FnMut() -> Result<Outcome, Failure>,
) -> Outcome {
    loop {
        let served = serve()?;
        if !options.keep {
            served?;
            return spend(&options.common);
        }
        match served {
            Err(failure) if cancel.is_cancelled() => return Err(failure),
            Err(failure) => failure.tell(options.common.json),
            Ok(()) => {}
        }
    }
}

/// A channel takes five descriptors at each end, and QEMU may open hundreds: up to the hard limit.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(OPEN_FILES).max(soft);
        // Where this fails, the file that cannot be opened will say so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
}

fn listening(options: &TunnelOptions, address: &str) {
    if options.common.json {
        event(&json!({ "event": "listening", "address": address }));
    } else if !options.common.quiet {
        eprintln!("listening at {address}");
    }
}

fn connected(options: &TunnelOptions, provider: &str) {
    if options.common.json {
        event(&json!({ "event": "connected", "provider": provider }));
    } else if !options.common.quiet {
        eprintln!("connected, sealed by {provider}");
    }
}

/// Shows what the channels do, from a thread of its own.
struct Watch {
    begin: Instant,
    json: bool,
    quiet: bool,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn new(progress: TunnelProgress, options: &TunnelOptions) -> Self {
        let (json, quiet) = (options.common.json, options.common.quiet);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(&progress, json, quiet, &seen));
        Self { begin: Instant::now(), json, quiet, stop, thread }
    }

    /// Ends it, and says how the tunnel did.
    fn end(self, report: sealane::Result<TunnelReport>) -> Outcome {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.join();
        let report = report?;
        let sum = |bytes: fn(&ChannelStatistics) -> u64| -> u64 {
            report.channels.iter().map(bytes).sum()
        };
        let (sent, received) = (sum(|c| c.sent_bytes), sum(|c| c.received_bytes));
        let seconds = self.begin.elapsed().as_secs_f64();
        if self.json {
            event(&json!({
                "event": "done", "seconds": seconds,
                "sent_bytes": sent, "received_bytes": received,
                "target_process": report.watched,
                "channels": report.channels.iter().map(statistics).collect::<Vec<_>>(),
            }));
        } else if !self.quiet {
            eprintln!(
                "done: {sent} bytes sealed, {received} bytes opened, {} channels, {seconds:.2} s",
                report.channels.len()
            );
        }
        Ok(())
    }
}

fn watch(progress: &TunnelProgress, json: bool, quiet: bool, stop: &AtomicBool) {
    let shown = !json && !quiet && std::io::stderr().is_terminal();
    let bar = if shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let mut rates = Rates::default();
    let mut next = Instant::now() + PROGRESS;
    loop {
        let last = stop.load(Ordering::Acquire);
        let channels = progress.channels();
        for channel in channels.iter().skip(rates.told) {
            if json {
                event(&json!({ "event": "channel", "channel": channel.number }));
            }
        }
        rates.told = channels.len();
        if last {
            break;
        }
        if Instant::now() >= next {
            next += PROGRESS;
            let figures = rates.look(&channels);
            if json && !channels.is_empty() {
                event(&progress_event(&channels, &figures));
            }
            bar.set_message(progress_line(&channels, &figures));
            bar.tick();
        }
        std::thread::sleep(LOOK);
    }
    bar.finish_and_clear();
}

/// Bytes per second of each channel since the last look, by its number.
#[derive(Default)]
struct Rates {
    told: usize,
    at: Option<Instant>,
    bytes: HashMap<u16, u64>,
}

impl Rates {
    fn look(&mut self, channels: &[ChannelStatistics]) -> HashMap<u16, u64> {
        let now = Instant::now();
        let seconds = self.at.replace(now).map_or(PROGRESS, |at| now - at).as_secs_f64();
        let rate = |channel: &ChannelStatistics| {
            let bytes = channel.sent_bytes + channel.received_bytes;
            let before = self.bytes.insert(channel.number, bytes).unwrap_or(0);
            (channel.number, ((bytes - before) as f64 / seconds) as u64)
        };
        channels.iter().map(rate).collect()
    }
}

fn progress_event(channels: &[ChannelStatistics], rates: &HashMap<u16, u64>) -> Value {
    let channel = |channel: &ChannelStatistics| {
        json!({
            "channel": channel.number, "open": channel.is_open,
            "sent_bytes": channel.sent_bytes, "received_bytes": channel.received_bytes,
            "bytes_per_s": rates[&channel.number],
        })
    };
    json!({
        "event": "progress",
        "bytes": channels.iter().map(|c| c.sent_bytes + c.received_bytes).sum::<u64>(),
        "channels": channels.iter().map(channel).collect::<Vec<_>>(),
    })
}

fn progress_line(channels: &[ChannelStatistics], rates: &HashMap<u16, u64>) -> String {
    let bytes = channels.iter().map(|c| c.sent_bytes + c.received_bytes).sum();
    let each: Vec<_> = channels
        .iter()
        .filter(|channel| channel.is_open)
        .map(|c| format!("{}: {}/s", c.number, BinaryBytes(rates[&c.number])))
        .collect();
    format!("{} {}", BinaryBytes(bytes), each.join("  "))
}

fn statistics(channel: &ChannelStatistics) -> Value {
    json!({
        "channel": channel.number,
        "sent_bytes": channel.sent_bytes, "received_bytes": channel.received_bytes,
        "sent_frames": channel.sent_frames, "received_frames": channel.received_frames,
        "system_calls": channel.engine.system_calls,
        "zero_copy_kept": channel.engine.zero_copy_kept,
        "zero_copy_copied": channel.engine.zero_copy_copied,
    })
}
