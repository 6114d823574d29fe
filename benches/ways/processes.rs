//! What processes that are not ours to ask have used: CPU of a tree, memory.

use std::fs;
use std::time::Duration;

use crate::end::{field_kib, own_kib};

/// CPU seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    pub user_s: f64,
    pub system_s: f64,
}

impl Cpu {
    pub fn whole_s(self) -> f64 {
        self.user_s + self.system_s
    }

    pub fn plus(self, other: Self) -> Self {
        Self { user_s: self.user_s + other.user_s, system_s: self.system_s + other.system_s }
    }

    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        let spent = |now: f64, then: f64| (now - then).max(0.0);
        Self {
            user_s: spent(self.user_s, before.user_s),
            system_s: spent(self.system_s, before.system_s),
        }
    }
}

/// The processes and all that came from them.
pub fn tree(roots: &[u32]) -> Vec<u32> {
    let mut found = roots.to_vec();
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|id| Some((id, stat(id)?.parent)))
        .collect();
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        let children: Vec<u32> = all
            .iter()
            .filter(|(id, of)| of == parent && !found.contains(id))
            .map(|c| c.0)
            .collect();
        found.extend(children);
        at += 1;
    }
    found
}

/// CPU of processes, all their threads. The sum is the scheduler's, to the nanosecond; how it
/// divides comes from clock ticks.
pub fn cpu(processes: &[u32]) -> Cpu {
    let of = |id: &u32| {
        let (Some(stat), Some(whole)) = (stat(*id), run_time(*id)) else { return Cpu::default() };
        let ticks = (stat.user_ticks + stat.system_ticks).max(1) as f64;
        let system_s = whole.as_secs_f64() * stat.system_ticks as f64 / ticks;
        Cpu { user_s: whole.as_secs_f64() - system_s, system_s }
    };
    processes.iter().map(of).fold(Cpu::default(), Cpu::plus)
}

/// KiB of resident memory that is not shared, at most, summed.
pub fn own_memory_kib(processes: &[u32]) -> u64 {
    processes.iter().map(|id| own_kib(&status(*id))).sum()
}

/// KiB that the kernel holds in place now: VmPin (io_uring's registered buffers) and VmLck
/// (mlock(2)). Zero-copy sends in flight are in neither.
pub fn pinned_kib(processes: &[u32]) -> u64 {
    let of = |id: &u32| {
        let status = status(*id);
        field_kib(&status, "VmPin:") + field_kib(&status, "VmLck:")
    };
    processes.iter().map(of).sum()
}

fn status(id: u32) -> String {
    fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default()
}

struct Stat {
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
}

/// proc_pid_stat(5).
fn stat(id: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Stat { parent: number(1)? as u32, user_ticks: number(11)?, system_ticks: number(12)? })
}

/// CPU time of another process, as clock_getcpuclockid(3) finds it.
fn run_time(id: u32) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: writes a clock's number to a place of that type.
    let failed = unsafe { libc::clock_getcpuclockid(id as libc::pid_t, &raw mut clock) };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a time to a place of that type.
    if failed != 0 || unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_tree_has_its_children_and_their_cpu_counts() {
        // A shell that waits for a shell that works and then waits for its stdin.
        let script = "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; echo done; read x";
        let mut child = Command::new("sh")
            .args(["-c", &format!("sh -c '{script}'; true")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let all = tree(&[child.id()]);
        assert!(all.len() >= 2 && all[0] == child.id(), "{all:?}");
        let (alone, whole) = (cpu(&all[..1]), cpu(&all));
        assert!(whole.whole_s() > alone.whole_s() && whole.whole_s() > 0.0, "{alone:?} {whole:?}");
        assert_eq!(whole.since(whole), Cpu::default());
        assert!(own_memory_kib(&all) > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
