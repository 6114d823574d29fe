//! Which figures the plots show.

use std::fs;
use std::path::Path;

use crate::contestants::SEALANE;
use crate::record::{Row, Series, cpu_s};
use crate::statistics::Summary;
use crate::svg::{Bar, Line, bars, lines};

/// Bars of time and of CPU, into `docs/ways-time.svg` and `docs/ways-cpu.svg`.
pub fn write_bars(docs: &Path, series: &Series) -> Result<(), String> {
    let mib = series.bytes >> 20;
    let plotted = || series.rows.iter().filter(|row| row.way.plotted && !row.runs.is_empty());
    let time: Vec<Bar> = plotted().filter_map(time_bar).collect();
    let title = format!("A guest of {mib} MiB over loopback: time");
    let unit = "seconds: median, least and most";
    write(docs, "ways-time.svg", &bars(&title, unit, &[], &time))?;
    let cpu: Vec<Bar> = plotted().filter_map(|row| cpu_bar(row, series.gb())).collect();
    let parts = ["source, user", "source, system", "target, user", "target, system"];
    let title = format!("A guest of {mib} MiB over loopback: CPU");
    let unit = "CPU seconds per GB: median, least and most";
    write(docs, "ways-cpu.svg", &bars(&title, unit, &parts, &cpu))
}

fn time_bar(row: &Row) -> Option<Bar> {
    let whole = row.summary(|run| run.seconds)?;
    // Ours are green.
    let fill = if row.way.name.starts_with(SEALANE) { 2 } else { 0 };
    Some(Bar { name: row.way.shown.clone(), parts: vec![whole.median], whole, fill })
}

/// Medians of parts do not add up to the median of the whole: they are scaled to it.
fn cpu_bar(row: &Row, gb: f64) -> Option<Bar> {
    let whole = row.summary(|run| cpu_s(run) / gb)?;
    let parts = [
        row.summary(|run| run.source.cpu.user_s)?,
        row.summary(|run| run.source.cpu.system_s)?,
        row.summary(|run| run.target.cpu.user_s)?,
        row.summary(|run| run.target.cpu.system_s)?,
    ]
    .map(|part| part.median);
    let sum: f64 = parts.iter().sum();
    let scale = if sum > 0.0 { whole.median / sum } else { 0.0 };
    let parts = parts.iter().map(|part| part * scale).collect();
    Some(Bar { name: row.way.shown.clone(), parts, whole, fill: 0 })
}

/// A line of points.
pub type Points = Vec<(f64, Summary)>;

/// Lanes against GB/s, into `docs/ways-lanes.svg`.
pub fn write_lanes(docs: &Path, cores: usize, sealed: Points) -> Result<(), String> {
    let title = format!("Sealane's lanes, both ends on {cores} cores");
    let line = Line { name: "sealed".to_owned(), points: sealed };
    write(docs, "ways-lanes.svg", &lines(&title, "lanes", "GB/s", &[line]))
}

/// Guest sizes against seconds per GB, into `docs/ways-sizes.svg`.
pub fn write_sizes(docs: &Path, by_way: Vec<(String, Points)>) -> Result<(), String> {
    let lines_: Vec<Line> =
        by_way.into_iter().map(|(name, points)| Line { name, points }).collect();
    let title = "Guests of 1 GiB and more: what a GB costs";
    write(docs, "ways-sizes.svg", &lines(title, "GiB", "seconds per GB", &lines_))
}

fn write(docs: &Path, name: &str, svg: &str) -> Result<(), String> {
    let path = docs.join(name);
    fs::write(&path, svg).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_and_parts_add_up() {
        let place = tempfile::tempdir().unwrap();
        let series = crate::record::tests::series();
        write_bars(place.path(), &series).unwrap();
        let row = series.row("sealane").unwrap();
        let bar = cpu_bar(row, series.gb()).unwrap();
        assert!((bar.parts.iter().sum::<f64>() - bar.whole.median).abs() < 1e-9);
        let points = vec![(1.0, bar.whole), (2.0, bar.whole)];
        write_lanes(place.path(), 2, points.clone()).unwrap();
        write_sizes(place.path(), vec![("plain".to_owned(), points)]).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 4);
    }
}
