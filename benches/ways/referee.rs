//! One run: starts both ends, says go, counts what all processes used, compares memory.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contestants::{Means, Way};
use crate::end::Order;
use crate::helpers::Helpers;
use crate::memory::{Memory, hash};
use crate::processes::{Cpu, cpu, own_memory_kib, pinned_kib, tree};

/// How often pinned memory is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Longer than any run.
const PATIENCE: Duration = Duration::from_secs(900);

/// Why a run has no figures.
#[derive(Debug)]
pub enum Failure {
    /// This machine cannot.
    Missing(String),
    /// It went wrong.
    Wrong(String),
}

/// What is the same for all runs.
#[derive(Clone, Copy)]
pub struct Course<'a> {
    /// The guest at the source, and what its memory hashes to.
    pub source: &'a Memory,
    pub source_hash: u64,
    /// Certificates, keys and secrets.
    pub place: &'a Path,
    /// Changes a byte of the target's memory before it is compared: the comparison's own test.
    pub corrupt: bool,
    /// strace, where system calls are counted; its summaries lie at `place`.
    pub tracer: Option<&'a Path>,
}

/// One side's part.
#[derive(Clone, Debug, Default)]
pub struct Side {
    pub cpu: Cpu,
    /// KiB at most beside the guest's memory.
    pub own_kib: u64,
    /// KiB at most that the kernel holds in place.
    pub pinned_kib: u64,
    /// All that the end tells.
    pub figures: Value,
}

/// A run that was right.
#[derive(Clone, Debug)]
pub struct Run {
    pub seconds: f64,
    pub source: Side,
    pub target: Side,
    pub hash: u64,
}

impl Run {
    /// For the record.
    pub fn to_json(&self) -> Value {
        let side = |side: &Side| {
            json!({
                "user_s": side.cpu.user_s, "system_s": side.cpu.system_s,
                "own_kib": side.own_kib, "pinned_kib": side.pinned_kib, "end": side.figures,
            })
        };
        json!({
            "seconds": self.seconds, "hash": format!("{:016x}", self.hash),
            "source": side(&self.source), "target": side(&self.target),
        })
    }
}

/// A run into `target`, which is fresh memory where it is cold, else spoilt here.
pub fn run(
    course: &Course<'_>,
    way: &Way,
    target: &mut Memory,
    cold: bool,
) -> Result<Run, Failure> {
    if !cold {
        target.spoil();
    }
    let order = |is_source: bool, memory: &Memory, port: u16| Order {
        is_source,
        way: way.clone(),
        memory: memory.path().into(),
        place: course.place.to_owned(),
        port,
        cold,
    };
    let mut far = End::start(course, &order(false, target, 0))?;
    let mut port = far.number("port")?;
    let mut helpers = None;
    if let Means::Helper(helper) = way.means {
        let started = Helpers::start(helper, course.place, port).map_err(Failure::Missing)?;
        port = started.port;
        helpers = Some(started);
    }
    let mut near = End::start(course, &order(true, course.source, port))?;
    if let Some(helpers) = &mut helpers {
        helpers.after_dial().map_err(Failure::Wrong)?;
    }
    near.line("ready")?;
    far.line("ready")?;
    let roots = helpers.as_ref().map(Helpers::sides).unwrap_or_default();
    let beside = roots.each_ref().map(|roots| if roots.is_empty() { vec![] } else { tree(roots) });
    let before = beside.each_ref().map(|side| cpu(side));
    near.say("go")?;
    let mut pinned = [0; 2];
    let mut look = |near: &End, far: &End| {
        for (most, end) in pinned.iter_mut().zip([near, far]) {
            *most = (*most).max(pinned_kib(&[end.child.id()]));
        }
    };
    let ours = near.done(|near| look(near, &far))?;
    let theirs = far.done(|_| {})?;
    let after = beside.each_ref().map(|side| cpu(side));
    let side = |n: usize, figures: Value| Side {
        cpu: cpu_of(&figures).plus(after[n].since(before[n])),
        own_kib: figures["own_kib"].as_u64().unwrap_or(0) + own_memory_kib(&beside[n]),
        pinned_kib: pinned[n],
        figures,
    };
    let seconds = number(&ours, "seconds");
    let (source, target_side) = (side(0, ours), side(1, theirs));
    drop(helpers);
    near.end()?;
    far.end()?;
    if course.corrupt {
        target.map[course.source.map.len() / 2] ^= 1;
    }
    let hash = hash(&target.map);
    if hash != course.source_hash {
        return Err(Failure::Wrong(format!("{}: the target's memory differs", way.name)));
    }
    Ok(Run { seconds, source, target: target_side, hash })
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or(f64::NAN)
}

fn cpu_of(figures: &Value) -> Cpu {
    Cpu { user_s: number(figures, "user_s"), system_s: number(figures, "system_s") }
}

/// A process of ours that is one end.
struct End {
    name: String,
    child: Child,
    orders: ChildStdin,
    said: Receiver<String>,
}

impl End {
    fn start(course: &Course<'_>, order: &Order) -> Result<Self, Failure> {
        let wrong = |error: std::io::Error| Failure::Wrong(format!("an end: {error}"));
        let role = if order.is_source { "source" } else { "target" };
        let program = std::env::current_exe().map_err(wrong)?;
        let mut command = match course.tracer {
            Some(tracer) => {
                let mut command = Command::new(tracer);
                command.args(["-f", "-c", "-o"]).arg(course.place.join(format!("strace-{role}")));
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        let mut child = command
            .args(order.to_arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(wrong)?;
        let (out, said) = channel();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).all(|line| out.send(line).is_ok());
        });
        let orders = child.stdin.take().expect("piped");
        Ok(Self { name: format!("{} of {}", role, order.way.name), child, orders, said })
    }

    /// The next line, which begins with `wanted`; meanwhile `look` from time to time.
    fn hear(&mut self, wanted: &str, mut look: impl FnMut(&Self)) -> Result<String, Failure> {
        let begin = Instant::now();
        loop {
            match self.said.recv_timeout(LOOK) {
                Ok(line) => {
                    let rest = line.strip_prefix(wanted).map(|rest| rest.trim().to_owned());
                    return rest.ok_or_else(|| self.wrong(&format!("says {line}, not {wanted}")));
                }
                Err(RecvTimeoutError::Timeout) if begin.elapsed() < PATIENCE => look(self),
                Err(error) => return Err(self.wrong(&format!("{error} before {wanted}"))),
            }
        }
    }

    fn line(&mut self, wanted: &str) -> Result<String, Failure> {
        self.hear(wanted, |_| {})
    }

    fn number(&mut self, name: &str) -> Result<u16, Failure> {
        self.line(name)?.parse().map_err(|_| self.wrong("no number"))
    }

    fn done(&mut self, look: impl FnMut(&Self)) -> Result<Value, Failure> {
        let text = self.hear("done", look)?;
        serde_json::from_str(&text).map_err(|error| self.wrong(&error.to_string()))
    }

    fn say(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.orders, "{line}").map_err(|error| self.wrong(&error.to_string()))
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.say("end")?;
        let status = self.child.wait().map_err(|error| self.wrong(&error.to_string()))?;
        if status.success() { Ok(()) } else { Err(self.wrong(&status.to_string())) }
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure::Wrong(format!("the {}: {what}", self.name))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
