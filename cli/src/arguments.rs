//! What the command line can say.

use std::path::PathBuf;

use crate::meeting::{Meeting, TrustOptions};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use sealane::{Config, EngineChoice, PeerName, ProviderChoice, ZeroCopy};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failure, 2 usage, 3 peer not authenticated, 4 cancelled.
Environment: SEALANE_LOG=debug says on standard error what goes on (a level, or target=level).";

/// Moves a guest's memory from host to host, sealed
#[derive(Parser)]
#[command(name = "sealane", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Migrate a made-up running guest between two processes here, and check its memory
    Demo(DemoArguments),
    #[command(hide = true)]
    DemoTarget(DemoArguments),
    /// Send a RAM image to a host where `sealane recv` listens
    Send(SendArguments),
    /// Receive a RAM image
    Recv(RecvArguments),
    /// Meet the other end, which runs the same, and say what a migration would use: no guest moves
    Check(CheckArguments),
    /// Let stock QEMU migrate by a unix socket, sealed on its way to the other host
    #[command(subcommand)]
    Tunnel(TunnelCommand),
    /// One-time secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Certificates
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Show what this machine has for Sealane, and what it lacks
    Doctor,
    /// Write the man pages
    #[command(hide = true)]
    Man { directory: PathBuf },
}

#[derive(Subcommand)]
pub(crate) enum SecretCommand {
    /// Write 32 random bytes to a new file that only its owner can read
    New {
        /// Where it goes; copy it to the other host by a channel that nobody else reads
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum PkiCommand {
    /// Say of each file of this host's certificates whether it is fine, or what helps. Exit code 1
    /// where something is bad
    Check(PkiCheckArguments),
    /// Make a CA and certificates for some hosts, to try Sealane with
    New(PkiNewArguments),
}

#[derive(Args)]
pub(crate) struct PkiCheckArguments {
    /// With ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem and
    /// perhaps ca-crl.pem, as QEMU and libvirt lay them out
    pub(crate) directory: PathBuf,
    /// The other host, as it will be named: a DNS name, an address or sha256:HEX
    #[arg(long, value_name = "NAME")]
    pub(crate) peer: Option<PeerName>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct PkiNewArguments {
    /// Where they go: DIR/ca-cert.pem, DIR/ca-key.pem and DIR/HOST for each host
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// A host, by the DNS name or address that the other end will call it; once for each
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub(crate) hosts: Vec<String>,
    /// Days that they are valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) days: u32,
}

#[derive(Subcommand)]
pub(crate) enum TunnelCommand {
    /// At the source's host: QEMU is told `migrate unix:PATH`
    Source(TunnelSourceArguments),
    /// At the target's host: QEMU is told `-incoming unix:PATH`
    Target(TunnelTargetArguments),
}

#[derive(Args)]
#[command(group(way()), group(trust()))]
pub(crate) struct TunnelSourceArguments {
    /// Where QEMU will connect to, unix:PATH: a socket is made there (mode 0600), and removed at
    /// the end
    #[arg(long, value_name = "unix:PATH", value_parser = unix_path)]
    pub(crate) from: PathBuf,
    /// The same as --connect
    #[arg(long, value_name = "HOST:PORT", group = "way")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) tunnel: TunnelOptions,
}

#[derive(Args)]
#[command(group(way()), group(trust()))]
pub(crate) struct TunnelTargetArguments {
    /// Where QEMU listens, unix:PATH. Several, each NAME=unix:PATH, serve several migrations at
    /// once, told apart by what the source's end says with --migration
    #[arg(long, value_name = "[NAME=]unix:PATH", value_parser = named_unix_path, required = true)]
    pub(crate) to: Vec<(String, PathBuf)>,
    #[command(flatten)]
    pub(crate) tunnel: TunnelOptions,
}

#[derive(Args)]
pub(crate) struct TunnelOptions {
    /// Serve one migration after the other until a signal; each is a session of its own. A secret
    /// is read again for each, so --keep-secret must be said
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
}

#[derive(Args)]
#[command(group(way()), group(trust()))]
pub(crate) struct CheckArguments {
    /// Which end this is; else that of --connect is the source's. Must be said with --fd and
    /// --rendezvous
    #[arg(long, value_enum)]
    pub(crate) role: Option<RoleName>,
    #[command(flatten)]
    pub(crate) meeting: Meeting,
    #[command(flatten)]
    pub(crate) trust: TrustOptions,
    /// One JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) tuning: LaneTuning,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum RoleName {
    Source,
    Target,
}

/// One way to meet, and one only.
fn way() -> ArgGroup {
    ArgGroup::new("way").required(true)
}

/// At least one trust.
fn trust() -> ArgGroup {
    ArgGroup::new("trust").required(true).multiple(true)
}

#[derive(Args, Clone)]
pub(crate) struct DemoArguments {
    /// Size of the guest in MiB
    #[arg(long, default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    pub(crate) mib: u64,
    /// Longest pause of the guest that the last round may be expected to take, in ms
    #[arg(long, default_value_t = 50)]
    pub(crate) downtime_ms: u64,
    #[command(flatten)]
    pub(crate) tuning: LaneTuning,
}

#[derive(Args)]
#[command(group(way()), group(trust()))]
pub(crate) struct SendArguments {
    /// The image: it is only read
    pub(crate) file: PathBuf,
    /// The same as --connect
    #[arg(long, value_name = "HOST:PORT", group = "way")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) tuning: LaneTuning,
}

#[derive(Args)]
#[command(group(way()), group(trust()))]
pub(crate) struct RecvArguments {
    /// Where the image goes; written beside as FILE.partial until it is whole
    pub(crate) file: PathBuf,
    /// Replace FILE where it exists
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Largest image to accept; K, M, G for powers of 1000. Else what is free where FILE goes
    #[arg(long, value_parser = bandwidth, value_name = "BYTES")]
    pub(crate) max_bytes: Option<u64>,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) tuning: LaneTuning,
}

#[derive(Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) meeting: Meeting,
    #[command(flatten)]
    pub(crate) trust: TrustOptions,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress and no summary
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Clone)]
pub(crate) struct LaneTuning {
    /// Connections, each with a thread at both ends (the source decides)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) lanes: u16,
    /// Limit in bytes per second over all lanes, 0 for none; K, M, G for powers of 1000
    #[arg(long, value_parser = bandwidth, default_value = "0", value_name = "BYTES")]
    pub(crate) bandwidth: u64,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
}

#[derive(Args, Clone)]
pub(crate) struct Tuning {
    /// Payload of a frame in KiB, 64 to 1024, a multiple of 4 (the source decides)
    #[arg(long, default_value_t = 256, value_parser = frame_kib)]
    pub(crate) frame_kib: usize,
    /// Who does the AES-GCM
    #[arg(long, value_enum, default_value_t = ProviderName::Auto)]
    pub(crate) provider: ProviderName,
    /// How bytes are moved
    #[arg(long, value_enum, default_value_t = EngineName::Uring)]
    pub(crate) engine: EngineName,
    /// Zero-copy send
    #[arg(long, value_enum, default_value_t = ZeroCopyName::Auto)]
    pub(crate) zero_copy: ZeroCopyName,
    /// Seconds that the other end may be silent before it counts as dead
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) peer_timeout: u64,
    /// Bytes of the kernel's send and receive buffer of each lane, 0 for autotuning; K, M, G for
    /// powers of 1000
    #[arg(long, value_parser = bandwidth, default_value = "0", value_name = "BYTES")]
    pub(crate) socket_buffer: u64,
    /// TCP congestion control of the lanes at this end, as tcp(7) names it; else the system's
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ProviderName {
    Auto,
    AwsLc,
    Ring,
    AesGcm,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum EngineName {
    Uring,
    Syscalls,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ZeroCopyName {
    Auto,
    Require,
    Off,
}

impl LaneTuning {
    /// The settings of the library.
    pub(crate) fn config(&self, meeting: &Meeting) -> Config {
        let mut config = self.tuning.config(meeting);
        config.lanes = self.lanes;
        config.bandwidth_bytes_per_s = self.bandwidth;
        config
    }

    /// The same as arguments, for the target's process of the same program.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = self.tuning.arguments();
        arguments.push(format!("--lanes={}", self.lanes));
        arguments
    }
}

impl Tuning {
    /// The settings of the library.
    pub(crate) fn config(&self, meeting: &Meeting) -> Config {
        let mut config = Config::default();
        config.migration_name.clone_from(&meeting.migration);
        config.frame_bytes = self.frame_kib << 10;
        config.provider = match self.provider {
            ProviderName::Auto => ProviderChoice::Auto,
            ProviderName::AwsLc => ProviderChoice::AwsLc,
            ProviderName::Ring => ProviderChoice::Ring,
            ProviderName::AesGcm => ProviderChoice::RustCrypto,
        };
        config.engine = match self.engine {
            EngineName::Uring => EngineChoice::Uring,
            EngineName::Syscalls => EngineChoice::Syscalls,
        };
        config.zero_copy = match self.zero_copy {
            ZeroCopyName::Auto => ZeroCopy::Auto,
            ZeroCopyName::Require => ZeroCopy::Require,
            ZeroCopyName::Off => ZeroCopy::Off,
        };
        config.congestion = self.congestion.clone();
        config.socket_buffer_bytes = usize::try_from(self.socket_buffer).unwrap_or(usize::MAX);
        config.peer_timeout = std::time::Duration::from_secs(self.peer_timeout);
        config
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--frame-kib={}", self.frame_kib),
            format!("--peer-timeout={}", self.peer_timeout),
            format!("--socket-buffer={}", self.socket_buffer),
            format!("--provider={}", name(self.provider)),
            format!("--engine={}", name(self.engine)),
            format!("--zero-copy={}", name(self.zero_copy)),
        ];
        arguments.extend(self.congestion.iter().map(|name| format!("--congestion={name}")));
        arguments
    }
}

/// As it is spelled on the command line.
pub(crate) fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}

fn unix_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err(format!("{text:?} is not like unix:/run/guest/migrate: QEMU's own spelling")),
    }
}

/// `NAME=unix:PATH`, or without a name.
fn named_unix_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.starts_with("unix:") => {
            Ok((name.to_owned(), unix_path(path)?))
        }
        _ => Ok((String::new(), unix_path(text)?)),
    }
}

fn frame_kib(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(kib @ 64..=1024) if kib % 4 == 0 => Ok(kib),
        _ => Err(format!("{text:?} is not a multiple of 4 from 64 to 1024")),
    }
}

fn bandwidth(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let factor = match unit {
        "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => 1,
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not like 500M or 2G"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_units_are_read() {
        Arguments::command().debug_assert();
        assert_eq!(bandwidth("500M"), Ok(500_000_000));
        assert_eq!(bandwidth("7"), Ok(7));
        for bad in ["", "M", "1.5G", "-1", "99999999999G"] {
            assert!(bandwidth(bad).is_err(), "{bad}");
        }
    }
}
