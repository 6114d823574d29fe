//! What the user sees: progress on a terminal, one event a line with `--json`.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sealane::{LaneStatistics, Progress};

/// A line on standard output. A reader that went away has seen enough.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// One JSON object on a line of its own.
pub(crate) fn event(event: &serde_json::Value) {
    say(&event.to_string());
}

/// The same of a migration, which has a name where several are served at once.
pub(crate) fn named_event(name: &str, mut said: serde_json::Value) {
    if !name.is_empty() {
        said["migration"] = name.into();
    }
    event(&said);
}

/// Shows progress from a thread of its own until it is dropped.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `progress` towards `pages_total`.
    pub(crate) fn new(progress: Progress, pages_total: u64, json: bool, quiet: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let terminal = !json && !quiet && std::io::stderr().is_terminal();
        let thread = (json || terminal).then(|| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || watch(&progress, pages_total, json, &stop))
        });
        Self { stop, thread }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(progress: &Progress, pages_total: u64, json: bool, stop: &AtomicBool) {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(pages_total * 4096) };
    let style = "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta}";
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
    let mut next_event = Instant::now() + Duration::from_secs(1);
    while !stop.load(Ordering::Acquire) {
        let pages = progress.pages();
        bar.set_length(pages_total.max(pages) * 4096);
        bar.set_position(pages * 4096);
        if json && Instant::now() >= next_event {
            next_event += Duration::from_secs(1);
            event(&serde_json::json!({
                "event": "progress", "bytes": pages * 4096, "bytes_total": pages_total * 4096,
            }));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bar.finish_and_clear();
}

/// Sums over lanes.
pub(crate) fn total(lanes: &[LaneStatistics]) -> LaneStatistics {
    let mut sum = LaneStatistics::default();
    for lane in lanes {
        sum.frames += lane.frames;
        sum.wire_bytes += lane.wire_bytes;
        sum.data_pages += lane.data_pages;
        sum.zero_pages += lane.zero_pages;
        sum.stalls += lane.stalls;
        sum.epoch = sum.epoch.max(lane.epoch);
        sum.engine.system_calls += lane.engine.system_calls;
        sum.engine.zero_copy_kept += lane.engine.zero_copy_kept;
        sum.engine.zero_copy_copied += lane.engine.zero_copy_copied;
    }
    sum
}

/// Statistics by lane, for `--json`.
pub(crate) fn lanes_json(lanes: &[LaneStatistics]) -> serde_json::Value {
    let lane = |lane: &LaneStatistics| {
        serde_json::json!({
            "frames": lane.frames, "wire_bytes": lane.wire_bytes,
            "data_pages": lane.data_pages, "zero_pages": lane.zero_pages,
            "stalls": lane.stalls, "epoch": lane.epoch,
            "system_calls": lane.engine.system_calls,
            "zero_copy_kept": lane.engine.zero_copy_kept,
            "zero_copy_copied": lane.engine.zero_copy_copied,
        })
    };
    lanes.iter().map(lane).collect()
}
