//! System calls of one run, counted by the engine itself and by `strace -c -f` from outside.
//! Nothing of such a run is timed: a traced process is slow.

use std::fmt::Write as _;

use crate::contestants::{PLAIN, SEALANE, find};
use crate::helpers::need;
use crate::memory::Memory;
use crate::record::system_calls;
use crate::referee::{self, Course, Failure, Run};

/// What is traced.
const WAYS: [&str; 8] = [
    PLAIN,
    "rustls",
    "rustls-ahead",
    "rpc-calls",
    SEALANE,
    "sealane-syscalls",
    "sealane-sqpoll",
    "sealane-2-lanes",
];
/// Calls that a table names.
const NAMED: usize = 3;

/// A table, or none where strace is missing.
///
/// # Errors
///
/// A run that is wrong.
pub fn table(course: &Course<'_>, target: &mut Memory) -> Result<Option<String>, String> {
    let tracer = match need("strace") {
        Ok(path) => path,
        Err(_) => {
            println!("SKIP: ways: system calls: strace is not there");
            return Ok(None);
        }
    };
    let gb = course.source.map.len() as f64 / 1e9;
    let mut text =
        "| way | end | by its engine, per GB | by strace, set-up and all, per GB | most \
                    of them |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for way in WAYS.iter().filter_map(|name| find(name)) {
        let traced = Course { tracer: Some(&tracer), ..*course };
        let run = match referee::run(&traced, &way, target, false) {
            Ok(run) => run,
            Err(Failure::Missing(why) | Failure::Wrong(why)) => return Err(why),
        };
        for (role, of) in [("source", true), ("target", false)] {
            let summary = course.place.join(format!("strace-{role}"));
            let summary = std::fs::read_to_string(summary).map_err(|e| format!("strace: {e}"))?;
            let calls = calls(&summary);
            let all: u64 = calls.iter().map(|(_, count)| count).sum();
            let named: Vec<String> = calls
                .iter()
                .take(NAMED)
                .map(|(name, count)| format!("{name} {:.0}", *count as f64 / gb))
                .collect();
            let side = |run: &Run| if of { run.source.clone() } else { run.target.clone() };
            let own = system_calls(&side(&run));
            let own = own.map_or("-".to_owned(), |count| format!("{:.0}", count / gb));
            let _ = writeln!(
                text,
                "| {} | {role} | {own} | {:.0} | {} |",
                way.shown,
                all as f64 / gb,
                named.join(", ")
            );
        }
    }
    Ok(Some(text))
}

/// Names and counts of strace's summary, most first.
fn calls(summary: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [share, _, _, count, .., name] = &words[..] else { return None };
        share.parse::<f64>().ok()?;
        (*name != "total").then_some(())?;
        Some(((*name).to_owned(), count.parse().ok()?))
    };
    let mut calls: Vec<(String, u64)> = summary.lines().filter_map(line).collect();
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read_without_its_total() {
        let summary = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.00    0.100000           5        20         3 futex
 10.00    0.010000           1      4096           io_uring_enter
------ ----------- ----------- --------- --------- ----------------
100.00    0.110000           2      4116         3 total
";
        let wanted = [("io_uring_enter".to_owned(), 4096), ("futex".to_owned(), 20)];
        assert_eq!(calls(summary), wanted);
    }
}
