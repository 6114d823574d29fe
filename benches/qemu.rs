//! What the benchmarks with QEMU share: ways to migrate, in turns, memory compared after each.
//!
//! The guest is stopped and none of its pages is zero. The time is from the order to migrate until
//! the target says that it is complete. CPU seconds are those of both QEMUs and of all processes
//! that help them.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use sealane_qemu::{Guest, Options, Qemu};
use serde_json::json;

use crate::{ratios, shown};

/// Names a file for every figure, as JSON; `cargo xtask bench --full` makes tables of it.
const RECORD: &str = "SEALANE_BENCH_RECORD";
/// Bytes written at once.
const BLOCK_BYTES: u64 = 1 << 20;

/// What the arguments `name=value` say, those of one benchmark beside.
pub struct Chosen {
    /// The guest's memory.
    pub mib: u64,
    /// How often each way is gone.
    pub turns: u64,
    /// Channels of multifd.
    pub channels: u8,
    /// Whether the target's memory was touched before.
    pub prealloc: bool,
    /// Ways by name; none for all.
    pub only: Vec<String>,
    /// What is not known here: `name`, `value`.
    pub others: Vec<(String, String)>,
}

impl Chosen {
    /// From the command line.
    ///
    /// # Panics
    ///
    /// Where an argument is no `name=value`.
    pub fn from_arguments() -> Self {
        let mut chosen = Self {
            mib: 3482,
            turns: 5,
            channels: 2,
            prealloc: true,
            only: Vec::new(),
            others: Vec::new(),
        };
        for argument in std::env::args().skip(1) {
            let (name, value) = argument.split_once('=').expect("name=value");
            let number = || value.parse().expect("a number");
            match name {
                "mib" => chosen.mib = number(),
                "turns" => chosen.turns = number(),
                "channels" => chosen.channels = number() as u8,
                "prealloc" => chosen.prealloc = value == "on",
                "only" => chosen.only = value.split(',').map(str::to_owned).collect(),
                _ => chosen.others.push((name.to_owned(), value.to_owned())),
            }
        }
        chosen
    }
}

/// How a migration gets from here to there.
pub struct Road {
    /// What the source migrates to.
    pub uri: String,
    /// Processes on the way; they end well when the migration has.
    pub helpers: Vec<Child>,
}

/// Ways of one kind: `plain`, and the same with multifd as `multifd-plain`.
pub struct Way<'a> {
    /// Its name.
    pub name: &'static str,
    /// Makes it, between a source and a target that are there.
    pub build: &'a dyn Fn(&Guest, &Guest) -> Road,
}

/// By TCP as it is.
pub fn plain(_: &Guest, target: &Guest) -> Road {
    target.listen("tcp:127.0.0.1:0");
    Road { uri: format!("tcp:127.0.0.1:{}", target.port()), helpers: Vec::new() }
}

/// By QEMU's own TLS, with the certificates that [`certificates`] made at `place`.
pub fn tls(place: &Path, source: &Guest, target: &Guest) -> Road {
    for (guest, endpoint) in [(source, "client"), (target, "server")] {
        guest.execute(
            "object-add",
            json!({
                "qom-type": "tls-creds-x509", "id": "tls", "dir": place.to_str().expect("UTF-8"),
                "endpoint": endpoint, "verify-peer": true,
            }),
        );
        guest.set_parameters(json!({"tls-creds": "tls", "tls-hostname": "localhost"}));
    }
    plain(source, target)
}

#[derive(Default, Clone)]
struct Figures {
    seconds: Vec<f64>,
    cpu: Vec<f64>,
}

/// Goes all ways in turns and prints what they took; the last is ours, the first is plain, the one
/// between them TLS.
pub fn compare(chosen: &Chosen, qemu: &Qemu, ways: &[Way<'_>; 3]) {
    println!(
        "QEMU {}, {} MiB, {} turns, multifd with {} channels, target memory {}: seconds, median \
         (least to most)",
        qemu.name,
        chosen.mib,
        chosen.turns,
        chosen.channels,
        if chosen.prealloc { "preallocated" } else { "never touched" }
    );
    let named =
        |way: &Way<'_>, multifd| format!("{}{}", if multifd { "multifd-" } else { "" }, way.name);
    let wanted = |name: &String| chosen.only.is_empty() || chosen.only.contains(name);
    let mut all = vec![Figures::default(); 2 * ways.len()];
    let each =
        || [false, true].into_iter().flat_map(|multifd| ways.iter().map(move |w| (w, multifd)));
    for turn in 0..chosen.turns {
        for ((way, multifd), figures) in each().zip(&mut all) {
            if wanted(&named(way, multifd)) {
                let (seconds, cpu) = migrate(chosen, qemu, way, multifd, turn);
                figures.seconds.push(seconds);
                figures.cpu.push(cpu);
            }
        }
    }
    for ((way, multifd), figures) in each().zip(&all) {
        let name = named(way, multifd);
        if wanted(&name) {
            println!("{name:15} {}   CPU {}", shown(&figures.seconds), shown(&figures.cpu));
        }
    }
    let ours = ways[2].name;
    if let Some(path) = std::env::var_os(RECORD) {
        let each = each().zip(&all).map(|((way, multifd), figures)| {
            json!({
                "name": named(way, multifd), "seconds": figures.seconds, "cpu_s": figures.cpu,
            })
        });
        let record = json!({
            "name": ours, "qemu": qemu.name, "mib": chosen.mib, "turns": chosen.turns,
            "channels": chosen.channels, "prealloc": chosen.prealloc,
            "ways": each.collect::<Vec<_>>(),
        });
        fs::write(path, record.to_string()).expect("the record");
    }
    for (group, of) in ["one channel", "multifd"].into_iter().zip([0, 3]) {
        let [plain, tls, own] = [0, 1, 2].map(|way| &all[of + way]);
        if !own.seconds.is_empty() && !plain.seconds.is_empty() {
            println!("{group}: {ours} / plain {}", shown(&ratios(&own.seconds, &plain.seconds)));
            println!("{group}: CPU {ours} / plain {}", shown(&ratios(&own.cpu, &plain.cpu)));
        }
        if !own.seconds.is_empty() && !tls.seconds.is_empty() {
            println!("{group}: TLS / {ours} {}", shown(&ratios(&tls.seconds, &own.seconds)));
        }
    }
}

/// Seconds of one migration, and CPU seconds of all processes.
fn migrate(chosen: &Chosen, qemu: &Qemu, way: &Way<'_>, multifd: bool, turn: u64) -> (f64, f64) {
    let options = Options { mib: chosen.mib, ..Options::default() };
    let source = Guest::start(qemu, "source", &options);
    let options = Options { prealloc: chosen.prealloc, ..options.target() };
    let target = Guest::start(qemu, "target", &options);
    fill(&source, turn);
    let capabilities: &[&str] = if multifd { &["multifd", "events"] } else { &["events"] };
    for guest in [&source, &target] {
        guest.prepare(capabilities, chosen.channels);
    }
    let road = (way.build)(&source, &target);
    let mut processes = vec![source.process(), target.process()];
    processes.extend(road.helpers.iter().map(Child::id));
    let cpu = || processes.iter().map(|id| cpu_seconds(*id)).sum::<f64>();
    let (begin, before) = (Instant::now(), cpu());
    source.migrate(&road.uri);
    target.wait_event_status("completed");
    let (seconds, used) = (begin.elapsed().as_secs_f64(), cpu() - before);
    source.wait_status("completed");
    for mut helper in road.helpers {
        assert!(helper.wait().expect("a child").success(), "a helper failed");
    }
    source.memory().assert_equal(target.memory());
    (seconds, used)
}

/// Every page gets content of its own, none is zero.
fn fill(guest: &Guest, salt: u64) {
    let mut block = vec![0; BLOCK_BYTES as usize];
    for at in (0..guest.memory().bytes()).step_by(block.len()) {
        for (n, word) in block.chunks_exact_mut(8).enumerate() {
            let mixed = (at + n as u64 * 8 + salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            word.copy_from_slice(&mixed.to_le_bytes());
        }
        guest.memory().write(at, &block);
    }
}

/// utime and stime of proc_pid_stat(5). Of a process that has ended, those of its end.
fn cpu_seconds(process: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return 0.0 };
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks = |at: usize| -> f64 {
        fields.split_whitespace().nth(at).and_then(|field| field.parse().ok()).unwrap_or(0.0)
    };
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    (ticks(11) + ticks(12)) / hz as f64
}

/// What QEMU's tls-creds-x509 wants to find at both ends.
///
/// # Panics
///
/// Where the files cannot be written.
pub fn certificates(place: &Path) {
    let params = |name: &str| {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let new_key = || KeyPair::generate().expect("a key");
    let mut ca = params("authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, new_key()).expect("an authority");
    let write = |name: &str, text: String| {
        fs::write(place.join(name), text).expect("a file");
    };
    write("ca-cert.pem", ca.pem());
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut end = params("localhost");
        end.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        end.extended_key_usages = vec![usage];
        let key = new_key();
        let signed = end.signed_by(&key, &ca).expect("a certificate");
        write(&format!("{name}-cert.pem"), signed.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}
