//! Every way with a small guest: its memory arrives, and memory that did not is an error.
#![allow(missing_docs)]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench-ways")).args(arguments).output().unwrap()
}

/// Without optimization, as tests are built, it moves a megabyte a second.
const SLOW: &str = "sealane-aes-gcm";

#[test]
fn every_way_moves_a_guest() {
    let place = tempfile::tempdir().unwrap();
    let record = place.path().join("ways.json");
    let json = format!("json={}", record.display());
    let names = String::from_utf8(bench(&["list"]).stdout).unwrap();
    let names = names.lines().filter_map(|line| line.split(' ').next());
    let only = names.filter(|name| *name != SLOW).collect::<Vec<_>>().join(",");
    let only = format!("only={only}");
    let output = bench(&["mib=16", "turns=1", "scaling=off", "trace=off", &only, &json]);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    // Counted by `cargo xtask test`; a program is skipped once, not in both series.
    let mut skips: Vec<_> = said.lines().filter(|line| line.starts_with("SKIP: ")).collect();
    skips.dedup();
    skips.sort_unstable();
    skips.dedup();
    skips.iter().for_each(|skip| println!("{skip}"));
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let series = record["series"].as_array().unwrap();
    assert_eq!(series.iter().map(|s| &s["name"]).collect::<Vec<_>>(), ["resident", "cold"]);
    for row in series.iter().flat_map(|series| series["rows"].as_array().unwrap()) {
        let runs = row["runs"].as_array().unwrap();
        assert_eq!(runs.len(), usize::from(row["missing"].is_null()), "{row}");
        for run in runs {
            assert!(run["seconds"].as_f64().unwrap() > 0.0, "{row}");
            assert_eq!(run["hash"], series[0]["rows"][0]["runs"][0]["hash"], "{row}");
            assert!(run["source"]["own_kib"].as_u64().unwrap() > 0, "{row}");
        }
        if row["way"].as_str().unwrap().starts_with("sealane") {
            let end = &runs[0]["source"]["end"];
            assert!(end["system_calls"].as_u64().unwrap() > 0, "{row}");
            assert!(end["frames"].as_u64().unwrap() >= 16, "{row}");
        }
    }
    assert!(said.contains("### Aims") && said.contains("| plain TCP |"), "{said}");
}

#[test]
fn the_slow_way_moves_a_small_guest() {
    let only = format!("only={SLOW}");
    let output = bench(&["mib=1", "turns=1", "cold=off", "trace=off", &only]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn memory_that_differs_is_an_error() {
    let output = bench(&["mib=1", "turns=1", "cold=off", "trace=off", "only=plain", "corrupt=on"]);
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("plain: the target's memory differs"), "{errors}");
}

#[test]
fn docs_are_written_between_their_markers() {
    let place = tempfile::tempdir().unwrap();
    let page = place.path().join("performance.md");
    std::fs::write(&page, "head\n<!-- ways:begin -->\n<!-- ways:end -->\ntail\n").unwrap();
    let docs = format!("docs={}", place.path().display());
    let ways = "only=plain,sealane";
    let output = bench(&["mib=1", "turns=1", "cold=off", "trace=off", ways, &docs]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(page).unwrap();
    assert!(text.starts_with("head\n") && text.ends_with("tail\n"), "{text}");
    assert!(text.contains("| Sealane, 1 lane |"), "{text}");
    for plot in ["ways-time.svg", "ways-cpu.svg"] {
        assert!(std::fs::read_to_string(place.path().join(plot)).unwrap().contains("Sealane"));
    }
}
