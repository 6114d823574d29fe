//! `sealane tunnel`: stock QEMU migrates by unix sockets, sealed in between.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar};
use sealane::tunnel::{
    ChannelStatistics, LocalListener, TunnelProgress, TunnelReport, TunnelSource, TunnelTarget,
    check_socket_path,
};
use sealane::{Canceller, Config, Error, Role, Trust};
use serde_json::{Value, json};

use crate::Failure;
use crate::arguments::{Common, TunnelOptions, TunnelSourceArguments, TunnelTargetArguments};
use crate::meeting::{TrustOptions, Way};
use crate::output::named_event;
use crate::transfer::listening;

/// How a tunnel ended.
type Outcome = Result<(), Failure>;

/// How often progress is shown; channels are told when they are seen.
const LOOK: Duration = Duration::from_millis(50);
const PROGRESS: Duration = Duration::from_secs(1);
/// How soon a tunnel that is kept tries again what nobody else brings about.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it says what has not changed.
const REMIND: Duration = Duration::from_secs(60);
/// More than 255 channels, the most of QEMU, take.
const OPEN_FILES: u64 = 4096;

pub(crate) fn source(arguments: &TunnelSourceArguments, cancel: &Canceller) -> Outcome {
    let options = &arguments.tunnel;
    let Common { meeting, trust, .. } = &options.common;
    let config = options.tuning.config(meeting);
    let told = Told { options, name: "" };
    check_secret(options, options.keep, "--keep")?;
    raise_open_files();
    let from = LocalListener::bind(&arguments.from)?;
    let way = meeting.way(Role::Source, arguments.to.as_deref())?;
    if let Some(address) = way.listens_at() {
        listening(&options.common, &address);
    }
    let meet = || -> Result<TunnelSource, Failure> {
        let tunnel = match &way {
            Way::Dials(dial) => TunnelSource::dial(dial, trust.trust()?, &config, cancel)?,
            Way::Listens(listener) => {
                let trust = again(trust, options.keep)?;
                TunnelSource::accept(listener, &trust, &config, cancel)?
            }
        };
        told.connected(tunnel.provider());
        Ok(tunnel)
    };
    // Before QEMU is let in: a wrong secret or address is found when it harms nobody.
    let mut first = Some(meet()?);
    from.listen()?;
    listening(&options.common, &format!("unix:{}", from.path().display()));
    repeat(&told, cancel, || {
        let tunnel = match first.take() {
            Some(tunnel) => tunnel,
            None => {
                if let Way::Dials(_) = way {
                    from.wait(cancel)?;
                }
                match meet() {
                    Ok(tunnel) => tunnel,
                    Err(failure) => {
                        from.turn_away()?; // this migration fails, the next may not
                        return Ok(Err(failure));
                    }
                }
            }
        };
        let watch = Watch::new(tunnel.progress(), &told);
        let report = tunnel.serve(&from);
        if report.is_err() {
            from.turn_away()?; // what is left of it must not begin the next one
        }
        Ok(watch.end(report))
    })
}

pub(crate) fn target(arguments: &TunnelTargetArguments, cancel: &Canceller) -> Outcome {
    let (options, to) = (&arguments.tunnel, &arguments.to);
    let meeting = &options.common.meeting;
    let several = to.len() > 1;
    for (name, path) in to {
        check_socket_path(path)?;
        if to.iter().filter(|(_, other)| other == path).count() > 1 {
            let text = "several --to want a socket each: one hypervisor is behind one path";
            return Err(Failure::Usage(text.to_owned()));
        }
        if several && (name.is_empty() || to.iter().filter(|(other, _)| other == name).count() > 1)
        {
            let text = "several --to want a name each, and each its own: --to NAME=unix:PATH";
            return Err(Failure::Usage(text.to_owned()));
        }
        if !name.is_empty() && !meeting.migration.is_empty() {
            let text = "name the migration once: --migration NAME, or --to NAME=unix:PATH";
            return Err(Failure::Usage(text.to_owned()));
        }
    }
    check_secret(options, options.keep, "--keep")?;
    check_secret(options, several, "several --to")?;
    raise_open_files();
    let way = meeting.way(Role::Target, None)?;
    // Before anybody is waited for.
    let trust = again(&options.common.trust, options.keep || several)?;
    // Nor is anybody refused who comes between two.
    let expected: Vec<_> = to.iter().map(|(name, _)| way.expect(name)).collect();
    if let Some(address) = way.listens_at() {
        listening(&options.common, &address);
    }
    let serve = |name: &str, path: &Path| {
        let mut config = options.tuning.config(meeting);
        if !name.is_empty() {
            name.clone_into(&mut config.migration_name);
        }
        let told = Told { options, name };
        let served = serve_target(&told, &way, &trust, path, &config, cancel);
        // The others may go on for long.
        served.map_err(|failure| told.failure(failure))
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let serve = &serve;
        let begin = |((name, path), expected): (&'_ (String, PathBuf), _)| {
            let (name, path) = (name.clone(), path.clone());
            scope.spawn(move || {
                let _expected = expected;
                serve(&name, &path)
            })
        };
        let threads: Vec<_> = to.iter().zip(expected).map(begin).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    outcomes.into_iter().collect()
}

fn serve_target(
    told: &Told<'_>,
    way: &Way,
    trust: &dyn Fn() -> sealane::Result<Trust>,
    to: &Path,
    config: &Config,
    cancel: &Canceller,
) -> Outcome {
    repeat(told, cancel, || {
        let met = match way {
            Way::Listens(listener) => TunnelTarget::accept(listener, trust, config, cancel),
            Way::Dials(dial) => {
                trust().and_then(|trust| TunnelTarget::dial(dial, trust, config, cancel))
            }
        };
        let tunnel = match met {
            Err(error) if told.options.keep && !error.is_cancelled() => {
                match (way, &error) {
                    (Way::Listens(_), Error::Peer(_)) => {}
                    // Whoever comes meanwhile cannot be served, and need not wait to learn it.
                    (Way::Listens(listener), _) => {
                        listener.turn_away()?;
                        std::thread::sleep(AGAIN);
                    }
                    (Way::Dials(_), _) => std::thread::sleep(AGAIN),
                }
                return Ok(Err(error.into()));
            }
            met => met?,
        };
        told.connected(tunnel.provider());
        let watch = Watch::new(tunnel.progress(), told);
        let report = tunnel.serve(to);
        Ok(watch.end(report))
    })
}

/// A one-time secret is for one migration, unless somebody says otherwise.
fn check_secret(options: &TunnelOptions, several: bool, what: &str) -> Outcome {
    let trust = &options.common.trust;
    if !several || trust.secret_file.is_none() || trust.keep_secret {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{what} serves several migrations, and a one-time secret is for one: say --keep-secret, or \
         use certificates"
    )))
}

/// What the ends know each other by: read now, and where `keep` says so again whenever it is
/// asked, so that one that is kept takes the secret of the day. Else its file may go once it was
/// read.
fn again(
    options: &TrustOptions,
    keep: bool,
) -> Result<impl Fn() -> sealane::Result<Trust> + Sync + '_, Failure> {
    let last = Mutex::new((options.files(), options.trust()?));
    Ok(move || {
        let mut last = last.lock().expect("no panic while it is held");
        // Strangers come as often as they like: only what changed is read again.
        let files = if keep { options.files() } else { last.0.clone() };
        if files != last.0 {
            let read = options.trust().map_err(|failure| match failure {
                Failure::Sealane(error) => error,
                other => Error::Misuse(other.to_string()),
            });
            *last = (files, read?);
        }
        // A secret that is kept serves the next migration as well.
        Ok(if keep { last.1.renewed() } else { last.1.clone() })
    })
}

/// Once, or until a signal: then a migration that failed is told and does not end it. What `serve`
/// fails with itself does: the next one would fail as well.
fn repeat(
    told: &Told<'_>,
    cancel: &Canceller,
    mut serve: impl FnMut() -> Result<Outcome, Failure>,
) -> Outcome {
    let common = &told.options.common;
    let mut last: Option<(String, Instant)> = None;
    loop {
        let served = serve()?;
        if !told.options.keep {
            served?;
            return common.trust.spend();
        }
        match served {
            Err(failure) if cancel.is_cancelled() => return Err(failure),
            Err(failure) => {
                // One end that waits for the other to come, or for its files, says so now and then.
                let text = failure.to_string();
                if !last.as_ref().is_some_and(|(t, at)| *t == text && at.elapsed() < REMIND) {
                    failure.tell_of(told.name, common.json);
                    last = Some((text, Instant::now()));
                }
            }
            Ok(()) => last = None,
        }
    }
}

/// What is said of one migration.
struct Told<'a> {
    options: &'a TunnelOptions,
    /// Its name, where several are served at once.
    name: &'a str,
}

impl Told<'_> {
    fn event(&self, said: Value) {
        named_event(self.name, said);
    }

    fn line(&self, line: &str) {
        match self.name {
            "" => eprintln!("{line}"),
            name => eprintln!("{name}: {line}"),
        }
    }

    /// Says that it failed.
    fn failure(&self, failure: Failure) -> Failure {
        failure.tell_of(self.name, self.options.common.json);
        Failure::Told(Box::new(failure))
    }

    fn connected(&self, provider: &str) {
        if self.options.common.json {
            self.event(json!({ "event": "connected", "provider": provider }));
        } else if !self.options.common.quiet {
            self.line(&format!("connected, sealed by {provider}"));
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

/// Shows what the channels do, from a thread of its own.
struct Watch<'a> {
    begin: Instant,
    told: &'a Told<'a>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl<'a> Watch<'a> {
    fn new(progress: TunnelProgress, told: &'a Told<'a>) -> Self {
        let Common { json, quiet, .. } = told.options.common;
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, name) = (Arc::clone(&stop), told.name.to_owned());
        let thread = std::thread::spawn(move || watch(&progress, json, quiet, &name, &seen));
        Self { begin: Instant::now(), told, stop, thread }
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
        let Common { json, quiet, .. } = self.told.options.common;
        if json {
            self.told.event(json!({
                "event": "done", "seconds": seconds,
                "sent_bytes": sent, "received_bytes": received,
                "target_process": report.watched,
                "channels": report.channels.iter().map(statistics).collect::<Vec<_>>(),
            }));
        } else if !quiet {
            self.told.line(&format!(
                "done: {sent} bytes sealed, {received} bytes opened, {} channels, {seconds:.2} s",
                report.channels.len()
            ));
        }
        Ok(())
    }
}

fn watch(progress: &TunnelProgress, json: bool, quiet: bool, name: &str, stop: &AtomicBool) {
    let shown = !json && !quiet && std::io::stderr().is_terminal();
    let bar = if shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let mut rates = Rates::default();
    let mut next = Instant::now() + PROGRESS;
    loop {
        let last = stop.load(Ordering::Acquire);
        let channels = progress.channels();
        for channel in channels.iter().skip(rates.told) {
            if json {
                named_event(name, json!({ "event": "channel", "channel": channel.number }));
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
                named_event(name, progress_event(&channels, &figures));
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
