//! What a series of runs came to, by way: from here come the record, the tables and the plots.

use serde_json::{Value, json};

use crate::contestants::Way;
use crate::referee::{Run, Side};
use crate::statistics::{Summary, ratios};

/// Runs of one way in a series.
pub struct Row {
    pub way: Way,
    /// `turn`, run.
    pub runs: Vec<(u32, Run)>,
    /// Why there are none.
    pub missing: Option<String>,
}

impl Row {
    pub fn of(way: Way) -> Self {
        Self { way, runs: Vec::new(), missing: None }
    }

    /// A figure of each turn.
    pub fn turns(&self, of: impl Fn(&Run) -> f64) -> Vec<(u32, f64)> {
        self.runs.iter().map(|(turn, run)| (*turn, of(run))).collect()
    }

    /// A figure over all turns.
    pub fn summary(&self, of: impl Fn(&Run) -> f64) -> Option<Summary> {
        Summary::of(&self.runs.iter().map(|(_, run)| of(run)).collect::<Vec<_>>())
    }
}

/// Turns of some ways with one guest.
pub struct Series {
    /// `resident`, `cold`, or another name.
    pub name: String,
    pub bytes: u64,
    pub rows: Vec<Row>,
    /// `turn`, GB/s of the provider that Sealane chose, alone, on one core.
    pub bare: Vec<(u32, f64)>,
}

impl Series {
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.way.name == name && !row.runs.is_empty())
    }

    /// GB of the guest, decimal.
    pub fn gb(&self) -> f64 {
        self.bytes as f64 / 1e9
    }

    /// Of each turn that both have, how `of` compares.
    pub fn ratio(&self, one: &str, other: &str, of: impl Fn(&Run) -> f64) -> Option<Summary> {
        let (one, other) = (self.row(one)?, self.row(other)?);
        Summary::of(&ratios(&one.turns(&of), &other.turns(&of)))
    }

    /// Every run.
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let runs = row.runs.iter().map(|(turn, run)| {
                let mut json = run.to_json();
                json["turn"] = (*turn).into();
                json
            });
            json!({
                "way": row.way.name, "shown": row.way.shown,
                "settings": format!("{:?}", row.way.means),
                "missing": row.missing, "runs": runs.collect::<Vec<_>>(),
            })
        };
        json!({
            "name": self.name, "bytes": self.bytes,
            "bare_provider_gb_per_s": self.bare.iter().map(|bare| bare.1).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// CPU seconds of both sides.
pub fn cpu_s(run: &Run) -> f64 {
    run.source.cpu.whole_s() + run.target.cpu.whole_s()
}

/// System calls of a side by its engine's own count; none where it has no engine.
pub fn system_calls(side: &Side) -> Option<f64> {
    side.figures["system_calls"].as_f64()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::contestants::find;
    use crate::processes::Cpu;

    /// A series of two turns: plain takes 1 s and 2 s, Sealane half.
    pub fn series() -> Series {
        let side = |user_s, pinned_kib| Side {
            cpu: Cpu { user_s, system_s: 0.25 },
            own_kib: 2048,
            pinned_kib,
            figures: json!({"system_calls": 100}),
        };
        let run = |seconds: f64| Run {
            seconds,
            source: side(seconds / 2.0, 1024),
            target: side(seconds / 4.0, 0),
            hash: 7,
        };
        let row = |name: &str, factor: f64| Row {
            way: find(name).unwrap(),
            runs: vec![(0, run(factor)), (1, run(2.0 * factor))],
            missing: None,
        };
        let mut missing = Row::of(find("stunnel").unwrap());
        missing.missing = Some("stunnel is not there".to_owned());
        Series {
            name: "resident".to_owned(),
            bytes: 2_000_000_000,
            rows: vec![row("plain", 1.0), missing, row("rustls", 4.0), row("sealane", 0.5)],
            bare: vec![(0, 10.0), (1, 10.0)],
        }
    }

    #[test]
    fn ratios_are_per_turn_and_missing_rows_are_none() {
        let series = series();
        let ratio = series.ratio("sealane", "plain", |run| run.seconds).unwrap();
        assert_eq!(ratio, Summary { median: 0.5, least: 0.5, most: 0.5 });
        assert!(series.ratio("stunnel", "plain", |run| run.seconds).is_none());
        assert_eq!(series.row("plain").unwrap().summary(cpu_s).unwrap().median, 1.625);
        let json = series.to_json();
        assert_eq!(json["rows"][1]["missing"], "stunnel is not there");
        assert_eq!(json["rows"][0]["runs"].as_array().unwrap().len(), 2);
    }
}
