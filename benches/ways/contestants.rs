//! Who takes part. Both ends of a run look their way up here, by its name.

use sealane::{Config, EngineChoice, ProviderChoice, ZeroCopy};

/// How memory gets from one process to the other.
#[derive(Clone, Debug)]
pub enum Means {
    /// `write` and `read` of 256 KiB.
    Plain,
    /// TLS 1.3 by rustls with aws-lc-rs.
    Rustls,
    /// The same with a buffer before it, because rustls reads 4 KiB at a time.
    RustlsAhead,
    /// TLS 1.3 by OpenSSL, as a library.
    #[cfg(feature = "openssl")]
    OpenSsl,
    /// RPC calls over rustls.
    Calls,
    /// RPC's stream messages over rustls.
    Messages,
    /// Plain TCP to a program beside each end.
    Helper(Helper),
    /// Sealane.
    Sealane(Box<Config>),
    /// The same, which gets the target's memory as a descriptor and maps it itself.
    ByDescriptor(Box<Config>),
}

/// Programs that seal what plain ends send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    Stunnel,
    Socat,
    SClient,
    Ssh,
}

/// One contestant.
#[derive(Clone, Debug)]
pub struct Way {
    /// By which it is chosen.
    pub name: String,
    /// In tables.
    pub shown: String,
    pub means: Means,
    /// Whether the bars of the plots have it.
    pub plotted: bool,
    /// Whether the table of cold targets has it.
    pub cold: bool,
    /// Whether a quick run has it.
    pub quick: bool,
}

/// The baseline.
pub const PLAIN: &str = "plain";
/// Sealane as it comes.
pub const SEALANE: &str = "sealane";
/// Without a cipher.
pub const NULL: &str = "sealane-null";
/// Lanes of the scaling run.
pub const LANES: &str = "sealane-lanes-";
/// Frames, KiB, beside the default.
const FRAMES_KIB: [usize; 4] = [64, 128, 512, 1024];
/// Most lanes that have a name.
const LANES_MAX: u16 = 64;

/// All of them, in the order of the tables.
pub fn all() -> Vec<Way> {
    let mut ways = others();
    ways.extend(sealanes());
    for lanes in 1..=LANES_MAX {
        let change = move |config: &mut Config| config.lanes = lanes;
        let mut way = sealane(&format!("{LANES}{lanes}"), &format!("{lanes} lanes"), change);
        way.quick = false;
        ways.push(way);
    }
    ways
}

/// All but the scaling run's.
pub fn of_the_table() -> Vec<Way> {
    all().into_iter().filter(|way| !way.name.starts_with(LANES)).collect()
}

/// By name.
pub fn find(name: &str) -> Option<Way> {
    all().into_iter().find(|way| way.name == name)
}

fn way(name: &str, shown: &str, means: Means) -> Way {
    let (name, shown) = (name.to_owned(), shown.to_owned());
    Way { name, shown, means, plotted: true, cold: true, quick: true }
}

fn others() -> Vec<Way> {
    vec![
        way(PLAIN, "plain TCP", Means::Plain),
        way("rustls", "TLS 1.3, rustls with aws-lc-rs", Means::Rustls),
        way("rustls-ahead", "TLS 1.3, rustls, reading ahead", Means::RustlsAhead),
        #[cfg(feature = "openssl")]
        way("openssl", "TLS 1.3, OpenSSL", Means::OpenSsl),
        way("rpc-calls", "2009: RPC, 64 KiB, each with its reply", Means::Calls),
        way("rpc-stream", "2009: RPC, 64 KiB, a stream", Means::Messages),
        way("stunnel", "stunnel", Means::Helper(Helper::Stunnel)),
        way("socat", "socat with OPENSSL", Means::Helper(Helper::Socat)),
        way("s-client", "openssl s_client and s_server", Means::Helper(Helper::SClient)),
        way("ssh", "ssh, aes256-gcm@openssh.com", Means::Helper(Helper::Ssh)),
    ]
}

fn sealane(name: &str, shown: &str, change: impl FnOnce(&mut Config)) -> Way {
    let mut config = Config::default();
    change(&mut config);
    let shown = format!("Sealane, {shown}");
    Way { cold: false, plotted: false, ..way(name, &shown, Means::Sealane(Box::new(config))) }
}

fn sealanes() -> Vec<Way> {
    let mut ways = vec![
        sealane(SEALANE, "1 lane", |_| {}),
        sealane("sealane-2-lanes", "2 lanes", |config| config.lanes = 2),
        sealane("sealane-4-lanes", "4 lanes", |config| config.lanes = 4),
    ];
    // Cold memory is placed by descriptor anyway.
    ways.iter_mut().for_each(|way| (way.cold, way.plotted) = (true, true));
    let by = Means::ByDescriptor(Box::default());
    let mut by = way("sealane-descriptor", "Sealane, 1 lane, memory by descriptor", by);
    (by.cold, by.plotted) = (false, false);
    ways.push(by);
    for (name, choice) in [
        ("aws-lc-rs", ProviderChoice::AwsLc),
        ("ring", ProviderChoice::Ring),
        ("aes-gcm", ProviderChoice::RustCrypto),
    ] {
        let shown = format!("1 lane, {name}");
        ways.push(sealane(&format!("sealane-{name}"), &shown, |config| config.provider = choice));
    }
    ways.push(sealane("sealane-syscalls", "1 lane, system calls", |config| {
        config.engine = EngineChoice::Syscalls;
    }));
    ways.push(sealane("sealane-sqpoll", "1 lane, SQPOLL", |config| config.sqpoll = true));
    ways.push(sealane("sealane-zero-copy-off", "1 lane, zero copy off", |config| {
        config.zero_copy = ZeroCopy::Off;
    }));
    for kib in FRAMES_KIB {
        let shown = format!("1 lane, frames of {kib} KiB");
        ways.push(sealane(&format!("sealane-{kib}-kib"), &shown, |config| {
            config.frame_bytes = kib << 10;
        }));
    }
    #[cfg(feature = "danger-null-seal")]
    ways.extend(nulls());
    ways
}

#[cfg(feature = "danger-null-seal")]
fn nulls() -> Vec<Way> {
    let null = |name: &str, shown: &str, lanes: u16, sqpoll: bool| {
        sealane(name, shown, |config| {
            (config.provider, config.lanes) = (ProviderChoice::DangerNull, lanes);
            config.sqpoll = sqpoll;
        })
    };
    let mut ways = vec![
        null(NULL, "1 lane, no cipher", 1, false),
        null("sealane-null-2-lanes", "2 lanes, no cipher", 2, false),
        null("sealane-null-4-lanes", "4 lanes, no cipher", 4, false),
        null("sealane-null-sqpoll", "1 lane, no cipher, SQPOLL", 1, true),
    ];
    ways[2].quick = false;
    ways[3].quick = false;
    (ways[0].cold, ways[0].plotted) = (true, true);
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_setting_is_one_that_sealane_takes() {
        let ways = all();
        for (n, way) in ways.iter().enumerate() {
            assert!(ways[..n].iter().all(|other| other.name != way.name), "{}", way.name);
            if let Means::Sealane(config) | Means::ByDescriptor(config) = &way.means {
                config.check().unwrap();
            }
        }
        assert!([PLAIN, SEALANE].iter().all(|name| find(name).is_some()));
        assert!(of_the_table().iter().all(|way| !way.name.starts_with(LANES)));
    }
}
