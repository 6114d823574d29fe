//! The ways to move a guest, measured side by side: plain TCP, TLS, the proposal of 2009, what an
//! administrator would reach for, and Sealane. Both ends are processes, over loopback; each turn
//! goes all ways, and every target's memory is compared.
//!
//! Arguments: mib=1024 turns=5 full=on only=NAME,NAME cold=off trace=off scaling=on
//! congestion=cubic json=FILE docs=DIRECTORY qemu=FILE,FILE; `list` names the ways. What this
//! machine cannot run is skipped aloud.

mod aims;
mod contestants;
mod end;
mod helpers;
mod memory;
mod pipes;
mod plots;
mod processes;
mod record;
mod referee;
mod rpc;
mod sealed;
mod series;
mod settings;
mod statistics;
mod svg;
mod system;
mod tables;
mod traced;

use std::fs;
use std::process::ExitCode;

use sealane::OneTimeSecret;
use serde_json::{Value, json};

use contestants::{LANES, PLAIN, SEALANE, find, of_the_table};
use record::{Row, Series};
use series::Arena;
use settings::Settings;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("end") => match end::Order::from_arguments(&arguments) {
            Some(order) => end::run(&order).map_err(|error| error.to_string()),
            None => Err("no order".to_owned()),
        },
        Some("list") => {
            for way in of_the_table() {
                println!("{:24} {}", way.name, way.shown);
            }
            Ok(())
        }
        _ => Settings::parse(&arguments).and_then(|settings| compare(&settings)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench ways: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(settings: &Settings) -> Result<(), String> {
    if let Some(congestion) = &settings.congestion {
        system::own_network(congestion)?;
    }
    let place = tempfile::tempdir().map_err(|e| e.to_string())?;
    pipes::certificates(place.path());
    let secret = OneTimeSecret::generate().map_err(|e| e.to_string())?;
    secret.write_new(&sealed::secret_at(place.path())).map_err(|e| e.to_string())?;
    let facts = system::facts();
    println!("{}", system::line(&facts));
    let wanted = |name: &str| settings.only.is_empty() || settings.only.iter().any(|n| n == name);
    let ways = of_the_table().into_iter();
    let ways: Vec<_> = ways
        .filter(|way| wanted(&way.name))
        .filter(|way| way.quick || settings.full || !settings.only.is_empty())
        .collect();
    let (mut all, mut calls) = (Vec::new(), None);
    {
        let arena = Arena::new(settings, place.path(), settings.mib);
        all.push(arena.series("resident", false, &ways)?);
        if settings.cold {
            let cold: Vec<_> = ways.iter().filter(|way| way.cold).cloned().collect();
            all.push(arena.series("cold", true, &cold)?);
        }
        if settings.trace {
            calls = arena.system_calls()?;
        }
        if settings.scaling {
            let cores = std::thread::available_parallelism().map_or(1, usize::from) as u16;
            let lanes: Vec<_> = lanes_up_to(cores)
                .into_iter()
                .filter_map(|lanes| find(&format!("{LANES}{lanes}")))
                .collect();
            all.push(arena.series("lanes", false, &lanes)?);
        }
    }
    if settings.scaling {
        for gib in [1, 2, 4, 8, 16] {
            let need = (2 * gib + 1) << 30;
            if need > system::available_bytes() {
                println!("SKIP: ways: a guest of {gib} GiB needs {} GiB of memory", need >> 30);
                continue;
            }
            let both: Vec<_> = [PLAIN, SEALANE].iter().filter_map(|name| find(name)).collect();
            let arena = Arena::new(settings, place.path(), gib << 10);
            all.push(arena.series(&format!("size-{gib}"), false, &both)?);
        }
    }
    write(settings, &facts, &all, calls.as_deref())
}

/// 1, 2, 4, .. and twice as many lanes as there are cores.
fn lanes_up_to(cores: u16) -> Vec<u16> {
    let doubled = std::iter::successors(Some(1u16), |lanes| lanes.checked_mul(2));
    doubled.take_while(|lanes| *lanes <= (2 * cores).min(64)).collect()
}

/// The record, the tables and the plots.
fn write(
    settings: &Settings,
    facts: &Value,
    all: &[Series],
    calls: Option<&str>,
) -> Result<(), String> {
    if let Some(path) = &settings.json {
        let record = json!({
            "facts": facts, "settings": settings.to_json(),
            "load_after": fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
            "series": all.iter().map(Series::to_json).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&record).map_err(|e| e.to_string())?;
        fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let find = |name: &str| all.iter().find(|series| series.name == name);
    let resident = find("resident").ok_or("no series")?;
    let mut text = format!("{}\n\n{}\n", settings.sentence(resident, facts), HOW_TO_READ);
    text.push_str(&format!("\n### Memory resident at both ends\n\n{}", tables::series(resident)));
    if let Some(cold) = find("cold") {
        let table = tables::series(cold);
        text.push_str(&format!("\n### The target's memory never touched before\n\n{table}"));
    }
    let aims = aims::table(resident, find("cold"));
    text.push_str(&format!("\n### Aims\n\n{aims}"));
    if let Some(calls) = calls {
        text.push_str(&format!("\n### System calls\n\nOne run of each, traced.\n\n{calls}"));
    }
    for path in &settings.qemu {
        let record = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let record: Value = serde_json::from_str(&record).map_err(|e| e.to_string())?;
        let name = record["name"].as_str().unwrap_or("?");
        text.push_str(&format!("\n### QEMU, {name}\n\n{}", tables::qemu(&record)));
    }
    let scaling = scaling(settings, all)?;
    println!("\n{text}\n{scaling}");
    text.push_str("\n![Time](ways-time.svg)\n\n![CPU](ways-cpu.svg)\n");
    if let Some(docs) = &settings.docs {
        tables::put(&docs.join("performance.md"), "ways", &text)?;
        if !scaling.is_empty() {
            let plots = "\n![Lanes](ways-lanes.svg)\n\n![Guests](ways-sizes.svg)\n";
            let text = format!("{scaling}{plots}");
            tables::put(&docs.join("performance.md"), "ways-scaling", &text)?;
        }
        plots::write_bars(docs, resident)?;
    }
    Ok(())
}

const HOW_TO_READ: &str = "Median of turns (half as many where memory is cold) and, in brackets, \
    least to most; ratios are of the same turn, then the median. The clock runs from the first \
    byte that is ordered until the source knows that all is in the target's memory; connections \
    and handshakes are before it. CPU is user + system of all processes of a side in that time, \
    medians; own memory is the most ever resident without shared pages (VmHWM less RssShmem: the \
    guest is shared), pinned is VmPin + VmLck at most, of the ends, seen every 20 ms; each the \
    most of all turns. Helpers count on their side, their share of user and system by clock ticks.";

/// Tables of lanes and sizes, and their plots; empty where they did not run.
fn scaling(settings: &Settings, all: &[Series]) -> Result<String, String> {
    let mut text = String::new();
    let Some(lanes) = all.iter().find(|series| series.name == "lanes") else { return Ok(text) };
    let number = |row: &Row| row.way.name.trim_start_matches(LANES).to_owned();
    let points: Vec<_> = lanes.rows.iter().map(|row| (number(row), row, lanes.gb())).collect();
    text.push_str(&tables::scaling("lanes", &points));
    let mut points = Vec::new();
    let mut by_way = vec![("plain TCP".to_owned(), vec![]), ("Sealane, 1 lane".to_owned(), vec![])];
    for series in all.iter().filter(|series| series.name.starts_with("size-")) {
        for (row, (name, line)) in series.rows.iter().zip(&mut by_way) {
            let gib = series.bytes >> 30;
            points.push((format!("{gib} GiB, {name}"), row, series.gb()));
            let cost = row.summary(|run| run.seconds / series.gb());
            line.extend(cost.map(|cost| (gib as f64, cost)));
        }
    }
    text.push_str(&format!("\n{}", tables::scaling("guest", &points)));
    if let Some(docs) = &settings.docs {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let of = |row: &Row| row.summary(|run| lanes.gb() / run.seconds);
        let sealed =
            lanes.rows.iter().filter_map(|row| Some((number(row).parse().ok()?, of(row)?)));
        plots::write_lanes(docs, cores, sealed.collect())?;
        plots::write_sizes(docs, by_way)?;
    }
    Ok(text)
}
