//! A stock QEMU's migration over loopback: plain TCP, QEMU's own TLS, and `sealane tunnel`, each
//! with one channel and with multifd; in turns, memory compared after each.
//!
//! The guest is stopped and none of its pages is zero; the target's memory is preallocated. The
//! time is from the order to migrate until the target says that it is complete. CPU seconds are
//! those of both QEMUs and both tunnels. Arguments: mib=3482 turns=5 channels=2 qemu=10.0
//! only=NAME,NAME frame-kib=.. engine=uring

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use sealane_benches::{ratios, shown};
use sealane_qemu::{Guest, Options, Qemu, installed};
use serde_json::json;

/// Bytes written at once.
const BLOCK_BYTES: u64 = 1 << 20;

/// One way to migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Plain,
    Tls,
    Tunnel,
}

const WAYS: [(&str, Way, bool); 6] = [
    ("plain", Way::Plain, false),
    ("tls", Way::Tls, false),
    ("tunnel", Way::Tunnel, false),
    ("multifd-plain", Way::Plain, true),
    ("multifd-tls", Way::Tls, true),
    ("multifd-tunnel", Way::Tunnel, true),
];

#[derive(Default, Clone)]
struct Figures {
    seconds: Vec<f64>,
    cpu: Vec<f64>,
}

fn main() {
    let chosen = Chosen::from_arguments();
    let bench = Bench::new(&chosen);
    println!(
        "QEMU {}, {} MiB, {} turns, multifd with {} channels: seconds, median (least to most)",
        bench.qemu.name, chosen.mib, chosen.turns, chosen.channels
    );
    let mut all = vec![Figures::default(); WAYS.len()];
    for turn in 0..chosen.turns {
        for ((name, way, multifd), figures) in WAYS.iter().zip(&mut all) {
            if chosen.has(name) {
                let (seconds, cpu) = bench.migrate(*way, *multifd, turn);
                figures.seconds.push(seconds);
                figures.cpu.push(cpu);
            }
        }
    }
    for ((name, ..), figures) in WAYS.iter().zip(&all).filter(|((name, ..), _)| chosen.has(name)) {
        println!("{name:15} {}   CPU {}", shown(&figures.seconds), shown(&figures.cpu));
    }
    for (group, of) in ["one channel", "multifd"].into_iter().zip([0, 3]) {
        let [plain, tls, tunnel] = [0, 1, 2].map(|way| &all[of + way].seconds);
        if !tunnel.is_empty() && !plain.is_empty() {
            println!("{group}: tunnel / plain {}", shown(&ratios(tunnel, plain)));
        }
        if !tunnel.is_empty() && !tls.is_empty() {
            println!("{group}: TLS / tunnel {}", shown(&ratios(tls, tunnel)));
        }
    }
}

/// What the arguments `name=value` say.
struct Chosen {
    mib: u64,
    turns: u64,
    channels: u8,
    qemu: String,
    only: Vec<String>,
    tunnels: Vec<String>,
}

impl Chosen {
    fn from_arguments() -> Self {
        let (mut chosen, newest) = (
            Self {
                mib: 3482,
                turns: 5,
                channels: 2,
                qemu: String::new(),
                only: Vec::new(),
                tunnels: Vec::new(),
            },
            installed().pop().map(|qemu| qemu.name),
        );
        chosen.qemu = newest.expect("a QEMU: cargo xtask bench gets it");
        for argument in std::env::args().skip(1) {
            let (name, value) = argument.split_once('=').expect("name=value");
            let number = || value.parse().expect("a number");
            match name {
                "mib" => chosen.mib = number(),
                "turns" => chosen.turns = number(),
                "channels" => chosen.channels = number() as u8,
                "qemu" => chosen.qemu = value.to_owned(),
                "only" => chosen.only = value.split(',').map(str::to_owned).collect(),
                "frame-kib" | "engine" | "congestion" | "zero-copy" | "provider" => {
                    chosen.tunnels.push(format!("--{argument}"));
                }
                _ => panic!("see the head of benches/qemu_tunnel.rs; not {name}"),
            }
        }
        chosen
    }

    fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

struct Bench {
    qemu: Qemu,
    options: Options,
    channels: u8,
    tunnels: Vec<String>,
    command: PathBuf,
    place: tempfile::TempDir,
}

impl Bench {
    fn new(chosen: &Chosen) -> Self {
        let qemu = installed().into_iter().find(|qemu| qemu.name == chosen.qemu);
        let place = tempfile::tempdir().expect("a directory");
        certificates(place.path());
        let command = std::env::var_os("SEALANE").expect("SEALANE names the command");
        Self {
            qemu: qemu.expect("that version of QEMU"),
            options: Options { mib: chosen.mib, ..Options::default() },
            channels: chosen.channels,
            tunnels: chosen.tunnels.clone(),
            command: command.into(),
            place,
        }
    }

    /// Seconds of one migration, and CPU seconds of all processes.
    fn migrate(&self, way: Way, multifd: bool, turn: u64) -> (f64, f64) {
        let source = Guest::start(&self.qemu, "source", &self.options);
        let target = Guest::start(&self.qemu, "target", &self.options.target());
        fill(&source, turn);
        let capabilities: &[&str] = if multifd { &["multifd", "events"] } else { &["events"] };
        for guest in [&source, &target] {
            guest.prepare(capabilities, self.channels);
        }
        let mut processes = vec![source.process(), target.process()];
        let mut tunnels = Vec::new();
        let uri = match way {
            Way::Tunnel => {
                let (near, far, uri) = self.tunnels(&target);
                processes.extend([near.id(), far.id()]);
                tunnels.extend([near, far]);
                uri
            }
            Way::Plain | Way::Tls => {
                if way == Way::Tls {
                    self.use_tls(&source, "client");
                    self.use_tls(&target, "server");
                }
                target.listen("tcp:127.0.0.1:0");
                format!("tcp:127.0.0.1:{}", target.port())
            }
        };
        let cpu = || processes.iter().map(|id| cpu_seconds(*id)).sum::<f64>();
        let (begin, before) = (Instant::now(), cpu());
        source.migrate(&uri);
        target.wait_event_status("completed");
        let (seconds, used) = (begin.elapsed().as_secs_f64(), cpu() - before);
        source.wait_status("completed");
        for mut tunnel in tunnels {
            assert!(tunnel.wait().expect("a child").success(), "a tunnel failed");
        }
        source.memory().assert_equal(target.memory());
        (seconds, used)
    }

    fn use_tls(&self, guest: &Guest, endpoint: &str) {
        let directory = self.place.path().to_str().expect("UTF-8");
        guest.execute(
            "object-add",
            json!({
                "qom-type": "tls-creds-x509", "id": "tls", "dir": directory,
                "endpoint": endpoint, "verify-peer": true,
            }),
        );
        guest.set_parameters(json!({"tls-creds": "tls", "tls-hostname": "localhost"}));
    }

    /// Both tunnels, and where the source shall connect to.
    fn tunnels(&self, target: &Guest) -> (Child, Child, String) {
        let uri = |name: &str| format!("unix:{}", self.place.path().join(name).display());
        for name in ["secret", "from", "to"] {
            let _ = fs::remove_file(self.place.path().join(name));
        }
        let secret = self.place.path().join("secret");
        let made = Command::new(&self.command).args(["secret", "new"]).arg(&secret).status();
        assert!(made.expect("the command").success());
        target.listen(&uri("to"));
        let run = |arguments: &[&str]| {
            let mut command = Command::new(&self.command);
            command.args(["tunnel"]).args(arguments).args(&self.tunnels);
            command.arg("--keep-secret").arg("--secret-file").arg(&secret);
            let mut child = command.stderr(Stdio::piped()).spawn().expect("the command");
            let said = BufReader::new(child.stderr.take().expect("piped"));
            let mut lines = said.lines().map_while(Result::ok);
            let address =
                lines.find_map(|line| Some(line.split_once("listening at ")?.1.to_owned()));
            // What it says later is read, so that it never waits.
            std::thread::spawn(move || lines.for_each(|line| eprintln!("tunnel: {line}")));
            (child, address.expect("it listens"))
        };
        let (far, address) = run(&["target", "--listen", "127.0.0.1:0", "--to", &uri("to")]);
        let (near, address) = run(&["source", "--from", &uri("from"), "--to", &address]);
        (near, far, address)
    }
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
fn certificates(place: &Path) {
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
