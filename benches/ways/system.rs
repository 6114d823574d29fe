//! What a record must say of the machine and of the programs, so that figures can be judged.

use std::fs;
use std::process::Command;

use sealane::ProviderChoice;
use sealane::doctor::{CpuFeatures, Provider};
use serde_json::{Value, json};

use crate::helpers;

const LOCK: &str = include_str!("../../Cargo.lock");

/// Everything.
pub fn facts() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let congestion = "/proc/sys/net/ipv4/tcp_congestion_control";
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cpu_family_and_model": format!("{} {}", field(&read("/proc/cpuinfo"), "cpu family"),
            field(&read("/proc/cpuinfo"), "model")),
        "features": CpuFeatures::detect().to_string(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "congestion": read(congestion),
        "load_before": read("/proc/loadavg"),
        "huge_pages_of_memfds": read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "compiler": said("rustc", &["--version"]),
        "provider": provider().map_or("none", Provider::name),
        "rustls": locked("rustls"),
        "aws-lc-rs": locked("aws-lc-rs"),
        "ring": locked("ring"),
        "aes-gcm": locked("aes-gcm"),
        "openssl_linked": openssl(),
        "openssl": said("openssl", &["version"]),
        "stunnel": said("stunnel", &["-version"]),
        "socat": said("socat", &["-V"]),
        "ssh": said("ssh", &["-V"]),
    })
}

/// What Sealane chooses here.
pub fn provider() -> Option<Provider> {
    Provider::resolve(ProviderChoice::Auto, &CpuFeatures::detect()).ok()
}

/// One line for people.
pub fn line(facts: &Value) -> String {
    let text = |name: &str| facts[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{} ({}; family and model {}), {} cores, Linux {}, `{}`, {}, commit {}; rustls {}, \
         aws-lc-rs {}, {} linked, {}, {}, {}, {}",
        text("cpu"),
        text("features"),
        text("cpu_family_and_model"),
        facts["cores"],
        text("kernel"),
        text("congestion"),
        text("compiler"),
        text("commit"),
        text("rustls"),
        text("aws-lc-rs"),
        text("openssl_linked"),
        text("openssl"),
        text("stunnel"),
        text("socat"),
        text("ssh"),
    )
}

#[cfg(feature = "openssl")]
fn openssl() -> String {
    openssl::version::version().to_owned()
}

#[cfg(not(feature = "openssl"))]
fn openssl() -> String {
    "no OpenSSL".to_owned()
}

/// `NAME : value`.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|n| n.trim() == name));
    line.and_then(|line| line.split_once(':')).map_or("?".to_owned(), |(_, v)| v.trim().to_owned())
}

/// A crate's version in Cargo.lock.
fn locked(name: &str) -> String {
    let at = LOCK.find(&format!("name = \"{name}\"\nversion = \""));
    let version = at.and_then(|at| LOCK[at..].split('"').nth(3));
    version.unwrap_or("?").to_owned()
}

/// The line of what a program says that names its version.
fn said(program: &str, arguments: &[&str]) -> String {
    let Ok(path) = helpers::need(program) else { return format!("no {program}") };
    let Ok(output) = helpers::command(&path).args(arguments).output() else {
        return format!("no {program}");
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let line = lines.clone().find(|line| {
        let mut words = line.split(' ').skip_while(|word| !word.eq_ignore_ascii_case(program));
        let next = words.nth(1).unwrap_or("");
        next == "version" || next.starts_with(|first: char| first.is_ascii_digit())
    });
    let line = line.or_else(|| lines.next()).unwrap_or("says nothing");
    line.split(" on ").next().unwrap_or(line).trim().to_owned()
}

/// Memory that a guest may have: of the two copies and of what the machine needs beside.
pub fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = field(&text, "MemAvailable");
    kib.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// A network of this process's own, with a loopback and a congestion control; what comes from
/// it is in it too, so that the setting holds for every contestant alike and for nobody else.
pub fn own_network(congestion: &str) -> Result<(), String> {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("a network of one's own: {e}"))?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        return Err("ip link set lo up: failed".to_owned());
    }
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", congestion)
        .map_err(|e| format!("congestion control {congestion}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found() {
        assert_eq!(field("a b\t: c: d\n", "a b"), "c: d");
        assert!(locked("rustls").starts_with("0.23."));
        assert_eq!(locked("no-such-crate"), "?");
        assert!(available_bytes() > 0);
        assert!(line(&facts()).contains("Linux "));
    }
}
