//! What the figures are held against: medians of the turns' ratios, in one run.

use std::fmt::Write as _;

use crate::contestants::{NULL, PLAIN, SEALANE};
use crate::record::{Series, cpu_s, system_calls};
use crate::statistics::{Summary, ratios};

/// Direct TLS and what an administrator would reach for: the best of them counts.
const RIVALS: [&str; 7] =
    ["rustls", "rustls-ahead", "openssl", "stunnel", "socat", "s-client", "ssh"];

/// A table of the aims that the runs allow to judge.
pub fn table(resident: &Series, cold: Option<&Series>) -> String {
    let mut rows = vec![
        ("sealed / (1/(1/N + 1/P)), one lane", "at least 0.95", serial(resident)),
        ("speed of one lane to plain", "at least 1.0", speed(resident, SEALANE, PLAIN)),
        ("speed to the best of TLS and helpers", "at least 3", best(resident)),
        ("speed to RPC with replies", "at least 10", speed(resident, SEALANE, "rpc-calls")),
        ("CPU of both ends to plain", "at most 1.4", resident.ratio(SEALANE, PLAIN, cpu_s)),
    ];
    if let Some(cold) = cold {
        let ratio = cold.ratio(SEALANE, PLAIN, |run| run.seconds);
        rows.push(("time into cold memory to plain's", "at most 0.6", ratio));
    }
    for (name, source) in [
        ("system calls per GB, SQPOLL, source", true),
        ("system calls per GB, SQPOLL, target", false),
    ] {
        let calls = calls_per_gb(resident, "sealane-sqpoll", source);
        rows.push((name, "fewer than 10", calls));
    }
    for (name, source) in [
        ("system calls per GB, one lane, source", true),
        ("system calls per GB, one lane, target", false),
    ] {
        rows.push((name, "none", calls_per_gb(resident, SEALANE, source)));
    }
    let mut text = "| figure | aim | median of turns |\n| --- | --- | --- |\n".to_owned();
    for (name, aim, figure) in rows {
        let shown = figure.map_or("not run".to_owned(), |figure| figure.shown());
        let _ = writeln!(text, "| {name} | {aim} | {shown} |");
    }
    text
}

fn speed(series: &Series, ours: &str, theirs: &str) -> Option<Summary> {
    series.ratio(theirs, ours, |run| run.seconds)
}

/// The least of the ratios to each rival.
fn best(series: &Series) -> Option<Summary> {
    let all = RIVALS.iter().filter_map(|rival| speed(series, SEALANE, rival));
    all.min_by(|one, two| one.median.total_cmp(&two.median))
}

/// N is Sealane's speed without a cipher, P the cipher's alone, both of the same turn.
fn serial(series: &Series) -> Option<Summary> {
    let gb = series.gb();
    let speeds = |name: &str| -> Option<Vec<(u32, f64)>> {
        Some(series.row(name)?.turns(|run| gb / run.seconds))
    };
    let (sealed, null) = (speeds(SEALANE)?, speeds(NULL)?);
    let limit: Vec<(u32, f64)> = null
        .iter()
        .filter_map(|(turn, n)| {
            let (_, p) = series.bare.iter().find(|(of, _)| of == turn)?;
            Some((*turn, 1.0 / (1.0 / n + 1.0 / p)))
        })
        .collect();
    Summary::of(&ratios(&sealed, &limit))
}

fn calls_per_gb(series: &Series, name: &str, source: bool) -> Option<Summary> {
    let row = series.row(name)?;
    let side = |run: &crate::referee::Run| {
        system_calls(if source { &run.source } else { &run.target }).unwrap_or(f64::NAN)
    };
    row.summary(|run| side(run) / series.gb())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_judged_where_their_ways_ran() {
        let text = table(&crate::record::tests::series(), None);
        assert!(text.contains("speed of one lane to plain | at least 1.0 | 2.00 (2.00 to 2.00)"));
        assert!(text.contains("best of TLS and helpers | at least 3 | 8.00"));
        assert!(text.contains("1/P)), one lane | at least 0.95 | not run"));
        assert!(text.contains("one lane, source | none | 50.00"));
        assert!(!text.contains("cold"));
    }
}
