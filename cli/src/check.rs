//! `sealane check`: meets the other end and says what a migration would use.

use std::fmt::Write;

use sealane::check::{self, CheckReport};
use sealane::doctor::{CpuFeatures, Provider};
use sealane::error::printable;
use sealane::{Canceller, Role};
use serde_json::{Value, json};

use crate::Failure;
use crate::arguments::{CheckArguments, RoleName, Tuning, name};
use crate::doctor::{self, State};
use crate::meeting::Way;
use crate::output::{event, say};

/// The version of what the ends tell each other of themselves.
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(arguments: &CheckArguments, cancel: &Canceller) -> Result<(), Failure> {
    let meeting = &arguments.meeting;
    if meeting.is_symmetric() && arguments.role.is_none() {
        let text =
            "both ends look alike here: name --role source at one, --role target at the other";
        return Err(Failure::Usage(text.into()));
    }
    let trust = arguments.trust.trust()?;
    let config = arguments.tuning.config(meeting);
    // Which role it has says which end speaks first where both look alike; else who connects is
    // the source.
    let asked = arguments.role.map(|role| match role {
        RoleName::Source => Role::Source,
        RoleName::Target => Role::Target,
    });
    let role = asked.unwrap_or(match meeting.listen {
        Some(_) => Role::Target,
        None => Role::Source,
    });
    let ours = facts(arguments);
    let way = meeting.way(role, None)?;
    if let Some(address) = way.listens_at() {
        eprintln!("listening at {address}");
    }
    let text = ours.to_string();
    let report = match way {
        Way::Dials(dial) => check::dial(&dial, role, trust, &text, &config, cancel)?,
        Way::Listens(listener) => check::accept(&listener, role, trust, &text, &config, cancel)?,
    };
    let theirs = serde_json::from_str(&report.peer_facts).unwrap_or(Value::Null);
    let report = Found { report: &report, ours, theirs, role };
    if arguments.json {
        event(&report.json());
    } else {
        say(report.text().trim_end());
    }
    Ok(())
}

/// What this end tells of itself.
fn facts(arguments: &CheckArguments) -> Value {
    let mut complaints = Vec::new();
    doctor::look(&mut |state, name, found, remedy| {
        if state != State::Ok {
            complaints.push(format!("{name}: {found}: {remedy}"));
        }
    });
    let Tuning { engine, zero_copy, .. } = arguments.tuning.tuning;
    let config = arguments.tuning.config(&arguments.meeting);
    let provider = Provider::resolve(config.provider, &CpuFeatures::detect());
    json!({
        "version": VERSION,
        "provider": provider.map_or_else(|e| e.to_string(), |provider| provider.name().to_owned()),
        "engine": name(engine),
        "zero_copy": name(zero_copy),
        "complaints": complaints,
    })
}

struct Found<'a> {
    report: &'a CheckReport,
    ours: Value,
    theirs: Value,
    role: Role,
}

impl Found<'_> {
    fn json(&self) -> Value {
        let report = self.report;
        json!({
            "event": "check",
            "role": if self.role == Role::Source { "source" } else { "target" },
            "trust": report.trust,
            "protocol": report.protocol,
            "suite": "AES-256-GCM",
            "provider": report.provider,
            "zero_copy_kept": report.zero_copy_kept,
            "zero_copy_copied": report.zero_copy_copied,
            "lanes": report.lanes,
            "frame_bytes": report.frame_bytes,
            "round_trip_us": report.round_trip.as_micros() as u64,
            "sent_bytes_per_s": report.sent_bytes_per_s as u64,
            "received_bytes_per_s": report.received_bytes_per_s as u64,
            "here": self.ours,
            "there": self.theirs,
        })
    }

    fn text(&self) -> String {
        let report = self.report;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // A String takes everything; what the other end says is for eyes alone.
            let _ = writeln!(text, "{name:<12} {}", printable(&value));
        };
        let told = |facts: &Value, key: &str| {
            facts[key].as_str().map_or_else(|| "unknown".to_owned(), str::to_owned)
        };
        let both = |key: &str| {
            format!("here {}, there {}", told(&self.ours, key), told(&self.theirs, key))
        };
        line("trust", report.trust.clone());
        line("version", format!("{}; protocol {}", both("version"), report.protocol));
        line("suite", "AES-256-GCM".to_owned());
        line("provider", both("provider"));
        line("engine", both("engine"));
        let (kept, copied) = (report.zero_copy_kept, report.zero_copy_copied);
        let used =
            format!("sends from here: {kept} without a copy, {copied} that the kernel copied");
        line("zero copy", format!("{}; {used}", both("zero_copy")));
        line("lanes", report.lanes.to_string());
        line("frames", format!("{} KiB", report.frame_bytes >> 10));
        line("round trip", format!("{} us", report.round_trip.as_micros()));
        let (sent, received) = (report.sent_bytes_per_s / 1e9, report.received_bytes_per_s / 1e9);
        line("throughput", format!("{sent:.2} GB/s from here, {received:.2} GB/s to here, sealed"));
        for (place, facts) in [("here", &self.ours), ("there", &self.theirs)] {
            for complaint in facts["complaints"].as_array().into_iter().flatten() {
                line(place, complaint.as_str().unwrap_or_default().to_owned());
            }
        }
        text
    }
}
