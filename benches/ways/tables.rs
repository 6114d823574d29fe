//! Tables in Markdown, and where they go: between markers of docs/performance.md.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::contestants::PLAIN;
use crate::record::{Row, Series, cpu_s};
use crate::referee::{Run, Side};
use crate::statistics::{Summary, ratios};

/// One series: a row for each way.
pub fn series(series: &Series) -> String {
    let mut text = String::from(
        "| way | seconds | GB/s | speed to plain | CPU s/GB, source: user + system | target | CPU \
         to plain | own MiB, source / target | pinned MiB |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in &series.rows {
        let _ = writeln!(text, "{}", line(series, row));
    }
    text
}

fn line(series: &Series, row: &Row) -> String {
    let Some(seconds) = row.summary(|run| run.seconds) else {
        let why = row.missing.as_deref().unwrap_or("not run");
        return format!("| {} | skipped: {why} | | | | | | | |", row.way.shown);
    };
    let gb = series.gb();
    let speed = row.summary(|run| gb / run.seconds).map_or(0.0, |summary| summary.median);
    let plain = series.row(PLAIN);
    let to_plain = |of: fn(&Run) -> f64, flip: bool| {
        let Some(plain) = plain else { return String::new() };
        let (ours, theirs) = (row.turns(of), plain.turns(of));
        let (ours, theirs) = if flip { (theirs, ours) } else { (ours, theirs) };
        Summary::of(&ratios(&ours, &theirs)).map_or(String::new(), |summary| summary.shown())
    };
    let cpu = |side: fn(&Run) -> &Side| {
        let median = |of: &dyn Fn(&Side) -> f64| {
            row.summary(|run| of(side(run)) / gb).map_or(0.0, |summary| summary.median)
        };
        format!("{:.2} + {:.2}", median(&|side| side.cpu.user_s), median(&|side| side.cpu.system_s))
    };
    let mib = |of: fn(&Run) -> u64| {
        row.summary(|run| of(run) as f64 / 1024.0).map_or(0.0, |summary| summary.most)
    };
    format!(
        "| {} | {} | {speed:.2} | {} | {} | {} | {} | {:.1} / {:.1} | {:.1} / {:.1} |",
        row.way.shown,
        seconds.shown(),
        to_plain(|run| run.seconds, true),
        cpu(|run| &run.source),
        cpu(|run| &run.target),
        to_plain(cpu_s, false),
        mib(|run| run.source.own_kib),
        mib(|run| run.target.own_kib),
        mib(|run| run.source.pinned_kib),
        mib(|run| run.target.pinned_kib),
    )
}

/// Guest sizes or lanes: a row for each series or way.
pub fn scaling(title: &str, points: &[(String, &Row, f64)]) -> String {
    let mut text = format!(
        "| {title} | seconds per GB | CPU s/GB, both sides | own MiB, source / target |\n\
         | --- | --- | --- | --- |\n"
    );
    for (point, row, gb) in points {
        let shown = |summary: Option<Summary>| summary.map_or(String::new(), |s| s.shown());
        let most = |of: fn(&Run) -> u64| {
            row.summary(|run| of(run) as f64 / 1024.0).map_or(0.0, |summary| summary.most)
        };
        let _ = writeln!(
            text,
            "| {point} | {} | {} | {:.1} / {:.1} |",
            shown(row.summary(|run| run.seconds / gb)),
            shown(row.summary(|run| cpu_s(run) / gb)),
            most(|run| run.source.own_kib),
            most(|run| run.target.own_kib),
        );
    }
    text
}

/// What the benchmarks with QEMU left in a file: seconds and CPU of each way and turn.
pub fn qemu(record: &Value) -> String {
    let mut text = format!(
        "QEMU {}, {} MiB, {} turns, multifd with {} channels, target memory {}:\n\n\
         | way | seconds | speed to plain | CPU s/GB, all processes |\n| --- | --- | --- | --- |\n",
        record["qemu"].as_str().unwrap_or("?"),
        record["mib"],
        record["turns"],
        record["channels"],
        if record["prealloc"] == true { "preallocated" } else { "never touched" },
    );
    let gb = record["mib"].as_f64().unwrap_or(f64::NAN) * f64::from(1 << 20) / 1e9;
    let figures = |way: &Value, name: &str| -> Vec<(u32, f64)> {
        let list = way[name].as_array().into_iter().flatten();
        (0..).zip(list).filter_map(|(turn, figure)| Some((turn, figure.as_f64()?))).collect()
    };
    let ways: Vec<&Value> = record["ways"].as_array().into_iter().flatten().collect();
    for way in &ways {
        let name = way["name"].as_str().unwrap_or("?");
        let plain = if name.starts_with("multifd-") { "multifd-plain" } else { "plain" };
        let plain = ways.iter().find(|way| way["name"] == plain);
        let seconds = figures(way, "seconds");
        let plain = plain.map(|plain| ratios(&figures(plain, "seconds"), &seconds));
        let shown = |figures: Vec<f64>| Summary::of(&figures).map_or(String::new(), |s| s.shown());
        let of = |list: &[(u32, f64)]| list.iter().map(|(_, figure)| *figure).collect::<Vec<_>>();
        let cpu = of(&figures(way, "cpu_s")).iter().map(|cpu| cpu / gb).collect();
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} |",
            shown(of(&seconds)),
            shown(plain.unwrap_or_default()),
            shown(cpu)
        );
    }
    text
}

/// Puts text between `<!-- NAME:begin` and `<!-- NAME:end -->` of a file.
///
/// # Errors
///
/// Where the file or the markers are not there.
pub fn put(file: &Path, name: &str, text: &str) -> Result<(), String> {
    let shown = file.display();
    let old = fs::read_to_string(file).map_err(|e| format!("{shown}: {e}"))?;
    let new = between(&old, name, text).ok_or_else(|| format!("{shown}: no markers {name}"))?;
    fs::write(file, new).map_err(|e| format!("{shown}: {e}"))
}

fn between(old: &str, name: &str, text: &str) -> Option<String> {
    let begin = old.find(&format!("<!-- {name}:begin"))?;
    let from = begin + old[begin..].find('\n')? + 1;
    let end = from + old[from..].find(&format!("<!-- {name}:end -->"))?;
    Some(format!("{}\n{}\n\n{}", &old[..from], text.trim(), &old[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_has_medians_spread_and_ratios() {
        let text = series(&crate::record::tests::series());
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert_eq!(
            line("Sealane"),
            "| Sealane, 1 lane | 0.75 (0.50 to 1.00) | 3.00 | 2.00 (2.00 to 2.00) | 0.19 + 0.12 | \
             0.09 + 0.12 | 0.66 (0.62 to 0.70) | 2.0 / 2.0 | 1.0 / 0.0 |"
        );
        assert!(line("stunnel").contains("skipped: stunnel is not there"));
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().all(|line| columns(line) == 10), "{text}");
    }

    #[test]
    fn text_goes_between_its_markers_alone() {
        let old = "a\n<!-- x:begin by y -->\nold\n<!-- x:end -->\nb\n";
        let new = between(old, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- x:begin by y -->\n\nnew\n\n<!-- x:end -->\nb\n");
        assert_eq!(between(&new, "x", "new\n").unwrap(), new);
        assert!(between(old, "z", "new").is_none());
    }

    #[test]
    fn qemu_is_compared_with_its_own_plain() {
        let text = qemu(&json!({
            "qemu": "10.0", "mib": 1000, "turns": 1, "channels": 2, "prealloc": true,
            "ways": [
                {"name": "plain", "seconds": [1.0], "cpu_s": [1.048576]},
                {"name": "multifd-plain", "seconds": [0.5], "cpu_s": [1.0]},
                {"name": "multifd-tls", "seconds": [2.0], "cpu_s": [1.0]},
            ],
        }));
        assert!(text.contains("| multifd-tls | 2.00 (2.00 to 2.00) | 0.25 (0.25 to 0.25) |"));
        assert!(text.contains("| plain | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | 1.00 (1"));
    }
}
