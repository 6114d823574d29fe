//! The `sealane` command.
#![forbid(unsafe_code)]

mod arguments;
mod check;
mod demo;
mod doctor;
mod guest;
mod meeting;
mod output;
mod pki;
mod transfer;
mod tunnel;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser};
use sealane::{Canceller, Error, OneTimeSecret};

use arguments::{Arguments, Command, PkiCommand, SecretCommand, TunnelCommand};

/// Why the command ends, beside the library's errors.
pub(crate) enum Failure {
    /// The library's.
    Sealane(Error),
    /// Ours, in words.
    Text(String),
    /// What was asked for cannot be meant.
    Usage(String),
    /// One that was told already.
    Told(Box<Self>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Sealane(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sealane(error) => error.fmt(f),
            Self::Text(text) | Self::Usage(text) => f.write_str(text),
            Self::Told(failure) => failure.fmt(f),
        }
    }
}

impl Failure {
    /// Says it to whoever listens.
    fn tell(&self, json: bool) {
        self.tell_of("", json);
    }

    /// The same of a migration with a name.
    fn tell_of(&self, migration: &str, json: bool) {
        if matches!(self, Self::Told(_)) {
            return;
        }
        if json {
            output::named_event(
                migration,
                serde_json::json!({
                    "event": "error", "message": self.to_string(), "exit": self.exit_code(),
                }),
            );
        }
        match migration {
            "" => eprintln!("sealane: {self}"),
            name => eprintln!("sealane: {name}: {self}"),
        }
    }

    /// What the shell sees: docs in `sealane --help`.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Sealane(error) if error.is_authentication() => 3,
            Self::Sealane(error) if error.is_cancelled() => 4,
            Self::Usage(_) => 2,
            Self::Told(failure) => failure.exit_code(),
            _ => 1,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = tracing_subscriber::fmt().with_env_filter(log_filter());
    // No colours in a file or a journal.
    log.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let cancel = Canceller::default();
    if let Err(error) = cancel_on_signals(&cancel) {
        eprintln!("sealane: signals: {error}");
        return ExitCode::from(1);
    }
    let json = match &arguments.command {
        Command::Send(send) => send.common.json,
        Command::Recv(recv) => recv.common.json,
        Command::Check(check) => check.json,
        Command::Tunnel(TunnelCommand::Source(source)) => source.tunnel.common.json,
        Command::Tunnel(TunnelCommand::Target(target)) => target.tunnel.common.json,
        _ => false,
    };
    let result = match arguments.command {
        Command::Demo(demo) => demo::run(&demo, &cancel),
        Command::DemoTarget(demo) => demo::run_target(&demo, &cancel),
        Command::Send(send) => transfer::send(&send, &cancel),
        Command::Recv(recv) => transfer::recv(&recv, &cancel),
        Command::Tunnel(TunnelCommand::Source(source)) => tunnel::source(&source, &cancel),
        Command::Tunnel(TunnelCommand::Target(target)) => tunnel::target(&target, &cancel),
        Command::Secret(SecretCommand::New { file }) => {
            OneTimeSecret::generate().and_then(|s| s.write_new(&file)).map_err(Failure::from)
        }
        Command::Pki(PkiCommand::Check(check)) => return pki::check(&check),
        Command::Pki(PkiCommand::New(new)) => pki::new(&new),
        Command::Check(check) => check::run(&check, &cancel),
        Command::Doctor => return doctor::run(),
        Command::Man { directory } => clap_mangen::generate_to(Arguments::command(), &directory)
            .map_err(|e| Failure::Text(format!("{}: {e}", directory.display()))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell(json);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What SEALANE_LOG says; warnings where it is not set.
fn log_filter() -> tracing_subscriber::EnvFilter {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::WARN.into());
    filter.with_env_var("SEALANE_LOG").from_env_lossy()
}

/// A signal that repeats another within this time is the same wish: timeout(1) and some shells send
/// one to the process and one to its group.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM and SIGHUP cancel; a second one, later, ends the process at once.
fn cancel_on_signals(cancel: &Canceller) -> nix::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    // A file that may not grow is an error of the write, and no reason to die with a part of it.
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        let mut first = None;
        while signals.wait().is_ok() {
            let since: Instant = *first.get_or_insert_with(Instant::now);
            if cancel.is_cancelled() && since.elapsed() > SAME_SIGNAL {
                std::process::exit(4);
            }
            cancel.cancel();
        }
    });
    Ok(())
}
