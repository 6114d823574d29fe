//! Every knob: unit, default, how to size it, what it costs.

use std::time::Duration;

use crate::error::{ConfigError, Error, Result};

/// Bytes of a page: the unit of regions, runs and dirty bitmaps.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a stripe: all pages of one stripe go over the same lane.
pub const STRIPE_BYTES: usize = 2 << 20;
/// Fewest payload bytes of a frame that can be configured.
pub const FRAME_BYTES_MIN: usize = 64 << 10;
/// Most payload bytes of a frame that can be configured.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Payload bytes of a frame unless configured.
pub const FRAME_BYTES_DEFAULT: usize = 256 << 10;
/// Most lanes of a migration.
pub const LANES_MAX: u16 = 64;
/// Least time that the other end may be silent: some heartbeats.
pub const PEER_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Most streams of a session, those that have ended too.
pub const STREAMS_MAX: u16 = 4096;

/// Which implementation of AES-256-GCM seals and opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProviderChoice {
    /// The fastest for this CPU; an error on a CPU without AES instructions.
    #[default]
    Auto,
    /// AWS-LC: AVX-512 VAES, else AES-NI; ARMv8 AES.
    AwsLc,
    /// ring: AVX2 VAES, else AES-NI; ARMv8 AES.
    Ring,
    /// RustCrypto's `aes-gcm`: no C and no assembly; runs without AES instructions too.
    RustCrypto,
    /// Encrypts and authenticates nothing. For benches.
    #[cfg(feature = "danger-null-seal")]
    DangerNull,
}

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// io_uring with registered buffers. An error where the kernel refuses it.
    #[default]
    Uring,
    /// Ordinary system calls: `send`, `recv`, `pread`, `pwrite`.
    Syscalls,
}

/// Whether frames leave by zero-copy send (`IORING_OP_SEND_ZC`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ZeroCopy {
    /// Each lane tries it and stays with it where the kernel reports that it did not copy. Streams
    /// and tunnels, which register slots for it alone, do without where the limit of locked
    /// memory allows no slots: a warning in the log, and 0 in the statistics.
    #[default]
    Auto,
    /// An error where the kernel copies (it does on loopback and veth) or cannot do it.
    Require,
    /// Plain sends.
    Off,
}

/// The settings of a session. `Config::default()` is what the command uses.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Connections of the session, 1 to 64. Default 1. The source decides. One lane fills about
    /// one core at each end; add lanes until the network or the cores are full. Each costs a
    /// thread, a ring and a pool at both ends.
    pub lanes: u16,
    /// Payload bytes of a full frame, a multiple of 4096 from 64 KiB to 1 MiB. Default 256 KiB.
    /// The source decides. Larger frames cost fewer system calls until the pool falls out of
    /// the L2 cache; see docs/performance.md.
    pub frame_bytes: usize,
    /// Frames that one lane's pool holds, 2 to 64. Default 3: one with the network and two with
    /// the disk or the cipher. Each costs a frame and 8 KiB of locked memory.
    pub slots_per_lane: usize,
    /// Bytes per second that all lanes together may send, 0 for no limit. Default 0.
    pub bandwidth_bytes_per_s: u64,
    /// The AEAD implementation. Default: by CPU features.
    pub provider: ProviderChoice,
    /// The engine. Default io_uring; `Syscalls` is chosen only by name.
    pub engine: EngineChoice,
    /// Zero-copy send. Default `Auto`. Only with the `Uring` engine.
    pub zero_copy: ZeroCopy,
    /// A kernel thread that polls each lane's ring (`IORING_SETUP_SQPOLL`). Default off. Saves
    /// system calls and costs up to a core per lane; never worth it without idle cores.
    pub sqpoll: bool,
    /// How long the handshake of all lanes may take. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long the other end may be silent before it counts as dead, at least 1 s. Default 30 s.
    /// Both ends send four heartbeats a second, so this is not bounded by the length of a round.
    /// Streams have none: TCP finds a host that is dead by keepalive, to the second, and by what
    /// it does not acknowledge; before Linux 6.15 the latter may take two minutes longer.
    pub peer_timeout: Duration,
    /// Bytes of the kernel's send and receive buffer of each lane, 0 for autotuning. Default 0.
    pub socket_buffer_bytes: usize,
    /// TCP congestion control by name, as in `tcp(7)`. Default: the system's.
    pub congestion: Option<String>,
    /// Name of the migration, the same at both ends: any text. Several may wait at one listener,
    /// each for a migration of another name. A hash of it goes in clear, so that whoever watches
    /// could try names that he can guess: a random UUID tells nothing. Default: none.
    pub migration_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lanes: 1,
            frame_bytes: FRAME_BYTES_DEFAULT,
            slots_per_lane: 3,
            bandwidth_bytes_per_s: 0,
            provider: ProviderChoice::Auto,
            engine: EngineChoice::Uring,
            zero_copy: ZeroCopy::Auto,
            sqpoll: false,
            handshake_timeout: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(30),
            socket_buffer_bytes: 0,
            congestion: None,
            migration_name: String::new(),
        }
    }
}

impl Config {
    /// Checks what can be checked without the system.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the first setting that is out of its range.
    pub fn check(&self) -> Result<()> {
        range("lanes", self.lanes.into(), 1, LANES_MAX.into())?;
        range("frame_bytes", self.frame_bytes, FRAME_BYTES_MIN, FRAME_BYTES_MAX)?;
        range("slots_per_lane", self.slots_per_lane, 2, 64)?;
        if self.peer_timeout < PEER_TIMEOUT_MIN {
            return Err(Error::Config(ConfigError {
                key: "peer_timeout",
                found: format!("{:?}", self.peer_timeout),
                wanted: format!("at least {PEER_TIMEOUT_MIN:?}"),
                remedy: "heartbeats need some time to come: name more".to_owned(),
            }));
        }
        if !self.frame_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(Error::Config(ConfigError {
                key: "frame_bytes",
                found: self.frame_bytes.to_string(),
                wanted: format!("a multiple of {PAGE_BYTES}"),
                remedy: "round it to whole pages".to_owned(),
            }));
        }
        if self.engine == EngineChoice::Syscalls {
            let key = match (self.zero_copy, self.sqpoll) {
                (ZeroCopy::Require, _) => "zero_copy = require",
                (_, true) => "sqpoll = on",
                _ => return Ok(()),
            };
            return Err(Error::Config(ConfigError {
                key,
                found: "engine = syscalls".to_owned(),
                wanted: "engine = uring".to_owned(),
                remedy: "drop one of the two settings".to_owned(),
            }));
        }
        Ok(())
    }
}

fn range(key: &'static str, found: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(Error::Config(ConfigError {
        key,
        found: found.to_string(),
        wanted: format!("{min} to {max}"),
        remedy: "choose a value in that range".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_in_range_and_edges_are_not() {
        Config::default().check().unwrap();
        for bad in [
            Config { lanes: 0, ..Config::default() },
            Config { lanes: 65, ..Config::default() },
            Config { frame_bytes: (64 << 10) + 1, ..Config::default() },
            Config { frame_bytes: 2 << 20, ..Config::default() },
            Config { slots_per_lane: 1, ..Config::default() },
            Config { peer_timeout: Duration::from_millis(999), ..Config::default() },
        ] {
            assert!(matches!(bad.check(), Err(Error::Config(_))), "{bad:?}");
        }
        let both = Config {
            engine: EngineChoice::Syscalls,
            zero_copy: ZeroCopy::Require,
            ..Config::default()
        };
        assert!(both.check().unwrap_err().to_string().contains("engine = syscalls"));
    }
}
