//! What a frame costs beside its cipher and its copy: header, parser, sealing without a cipher; in
//! nanoseconds, and in instructions, which a busy machine does not change.
//!
//! `count STEP TIMES` does a step so often and nothing else. Instructions are counted by `perf
//! stat` where the machine counts them, else by `valgrind --tool=callgrind`: those of twice as many
//! steps less those of so many, by step.

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::Instant;

use sealane::memory::copy::{page_out_of_guest, pages_into_guest};
use sealane::seal::{Direction, KeyLimits, Opener, Provider, Sealer, SessionSecret};
use sealane::wire::{Opened, PREFIX_BYTES, PageRun, Prefix, RUNS_MAX, encode_pages, parse_header};
use sealane_benches::shown;

const FRAME_BYTES: usize = 256 << 10;
const PAGE: usize = 4096;
const TURNS: usize = 9;
const TIMES: u32 = 500;

/// Makes a step: what is done again and again.
type Make = fn() -> Box<dyn FnMut()>;

const STEPS: [(&str, &str, Make); 7] = [
    ("encode-1", "header of 1 run written", || encode(1)),
    ("parse-1", "prefix and header of 1 run parsed", || parse(1)),
    ("parse-64", "the same of 64 runs", || parse(64)),
    ("parse-most", "the same of as many runs as fit", || parse(RUNS_MAX)),
    ("seal-open", "a frame sealed and opened without a cipher", seal_and_open),
    ("gather", "256 KiB out of guest memory, zero search", gather),
    ("place", "256 KiB into guest memory", place),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, name, times] = &arguments[..]
        && verb == "count"
    {
        let step = STEPS.iter().find(|(step, ..)| step == name).expect("a step");
        let mut step = step.2();
        (0..times.parse::<u32>().expect("a number")).for_each(|_| step());
        return ExitCode::SUCCESS;
    }
    let counter = Counter::find();
    match &counter {
        Some(counter) => println!("instructions counted by {}", counter.name()),
        None => println!("SKIP: frames: no perf that counts, no valgrind: no instructions"),
    }
    println!("{:<46} {:<28} instructions", "a frame's", "ns, median (least to most)");
    for (name, shown_name, make) in STEPS {
        let mut step = make();
        let figures: Vec<f64> = (0..TURNS).map(|_| turn(&mut step)).collect();
        let counted = counter.as_ref().and_then(|counter| counter.count(name));
        let counted = counted.map_or("-".to_owned(), |count| count.to_string());
        println!("{shown_name:<46} {:<28} {counted}", shown(&figures));
    }
    ExitCode::SUCCESS
}

/// Nanoseconds of a step.
fn turn(step: &mut dyn FnMut()) -> f64 {
    let (begin, mut done) = (Instant::now(), 0u32);
    while begin.elapsed().as_millis() < 20 {
        (0..32).for_each(|_| step());
        done += 32;
    }
    begin.elapsed().as_nanos() as f64 / f64::from(done)
}

/// A program that counts instructions of user space.
enum Counter {
    Perf,
    Callgrind,
}

impl Counter {
    fn find() -> Option<Self> {
        let all = [Self::Perf, Self::Callgrind];
        all.into_iter().find(|counter| counter.count("encode-1").is_some())
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Perf => "perf stat",
            Self::Callgrind => "callgrind, whose CPU may lack instructions that this one has",
        }
    }

    fn count(&self, step: &str) -> Option<u64> {
        let once = self.run(step, TIMES)?;
        Some((self.run(step, 2 * TIMES)?.checked_sub(once)?) / u64::from(TIMES))
    }

    fn run(&self, step: &str, times: u32) -> Option<u64> {
        let mut command = match self {
            Self::Perf => {
                let mut command = Command::new("perf");
                command.args(["stat", "-x", ",", "-e", "instructions:u", "--"]);
                command
            }
            Self::Callgrind => {
                let mut command = Command::new("valgrind");
                command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
                command
            }
        };
        let command = command.arg(std::env::current_exe().ok()?);
        let output = command.args(["count", step, &times.to_string()]).env("LC_ALL", "C").output();
        let output = output.ok().filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match self {
            Self::Perf => {
                text.lines().find(|line| line.contains("instructions"))?.split(',').next()?.parse()
            }
            Self::Callgrind => text
                .lines()
                .find_map(|line| Some(line.split_once("Collected :")?.1.trim()))?
                .parse(),
        }
        .ok()
    }
}

/// Runs of one page each with a gap between them, half of them zero.
fn runs(count: usize) -> Vec<PageRun> {
    let run = |n: usize| PageRun { first_page: 2 * n as u64, pages: 1, zero: n % 2 == 1 };
    (0..count).map(run).collect()
}

fn encode(count: usize) -> Box<dyn FnMut()> {
    let (runs, mut out) = (runs(count), vec![0; PAGE]);
    Box::new(move || {
        black_box(encode_pages(black_box(&mut out), 0, 0, black_box(&runs)));
    })
}

fn parse(count: usize) -> Box<dyn FnMut()> {
    let runs = runs(count);
    let payload_bytes = runs.iter().filter(|run| !run.zero).count() * PAGE;
    let mut header = vec![0; PAGE];
    let header_bytes = encode_pages(&mut header, 0, 0, &runs);
    header.truncate(header_bytes);
    let prefix = Prefix::new(header_bytes, payload_bytes).encode();
    let most = payload_bytes.max(FRAME_BYTES);
    Box::new(move || {
        let prefix = Prefix::parse(black_box(prefix), most).expect("as encoded");
        let opened = parse_header(black_box(&header), prefix.payload_bytes(), &[1 << 20]);
        let Ok(Opened::Pages(pages)) = opened else { panic!("as encoded") };
        assert!(pages.data_pages() as usize * PAGE == payload_bytes, "pages are lost");
    })
}

fn seal_and_open() -> Box<dyn FnMut()> {
    let secret = SessionSecret::new(b"bench", b"bench");
    let lane = || secret.lane_secret(Direction::FromSource, 0, 0, &[0; 32], &[0; 32]);
    let mut sealer = Sealer::new(Provider::DangerNull, lane(), KeyLimits::default(), 0);
    let mut opener = Opener::new(Provider::DangerNull, lane(), KeyLimits::default(), 0);
    let mut header = vec![0; PAGE];
    let run = PageRun { first_page: 0, pages: (FRAME_BYTES / PAGE) as u32, zero: false };
    let header_bytes = encode_pages(&mut header, 0, 0, &[run]);
    header.truncate(header_bytes);
    let prefix = Prefix::new(header.len(), FRAME_BYTES);
    let mut frame = vec![0x5A; PREFIX_BYTES + prefix.rest_bytes()];
    Box::new(move || {
        frame[PREFIX_BYTES..][..header.len()].copy_from_slice(&header);
        sealer.seal(&mut frame, prefix).expect("far from the limit");
        let (head, body) = frame.split_at_mut(prefix.head_bytes());
        opener.open_header(head, prefix).expect("as sealed");
        opener.open_payload(body).expect("as sealed");
    })
}

fn gather() -> Box<dyn FnMut()> {
    let (from, mut into) = (vec![1u8; FRAME_BYTES + PAGE], vec![0u8; FRAME_BYTES]);
    let first = from.as_ptr().align_offset(PAGE);
    Box::new(move || {
        for at in (0..FRAME_BYTES).step_by(PAGE) {
            let room = into[at..].as_mut_ptr();
            // SAFETY: a page of one vector and room of a page in the other.
            let zero = unsafe { page_out_of_guest(from.as_ptr().add(first + at), room) };
            assert!(!zero, "the search is wrong");
        }
    })
}

fn place() -> Box<dyn FnMut()> {
    let (from, mut into) = (vec![1u8; FRAME_BYTES], vec![0u8; FRAME_BYTES + PAGE]);
    let first = into.as_ptr().align_offset(PAGE);
    Box::new(move || {
        // SAFETY: both hold a frame, from a page's begin.
        unsafe { pages_into_guest(from.as_ptr(), into.as_mut_ptr().add(first), FRAME_BYTES) };
        assert!(into[first + FRAME_BYTES - 1] == 1, "it differs");
    })
}
