//! A whole frame sealed and one opened, header and all, against the provider alone on the same
//! buffer.

use std::time::{Duration, Instant};

use sealane::doctor::CpuFeatures;
use sealane::seal::{Direction, KeyLimits, Opener, Provider, Sealer, SessionSecret};
use sealane::wire::{PREFIX_BYTES, PageRun, Prefix, TAG_BYTES, encode_pages};
use sealane_benches::{gb_per_s, ratios, shown};

const TURNS: usize = 11;
const TURN: Duration = Duration::from_millis(40);

fn main() {
    println!("CPU: {}; {TURNS} turns of {TURN:?} each", CpuFeatures::detect());
    println!(
        "{:<10} {:<5} {:>7}  {:<24} {:<24} ratio",
        "provider", "what", "frame", "bare GB/s", "frame GB/s"
    );
    for provider in [Provider::AwsLc, Provider::Ring, Provider::RustCrypto] {
        for kib in [64, 128, 256, 512, 1024] {
            compare(provider, kib << 10);
            compare_opening(provider, kib << 10);
        }
    }
}

fn compare(provider: Provider, payload_bytes: usize) {
    let secret = SessionSecret::new(b"bench", b"bench");
    let lane = || secret.lane_secret(Direction::FromSource, 0, 0, &[0; 32], &[0; 32]);
    let mut sealer = Sealer::new(provider, lane(), KeyLimits::default(), 0);
    let mut header = [0; 4096];
    let runs = [PageRun { first_page: 0, pages: (payload_bytes / 4096) as u32, zero: false }];
    let header_bytes = encode_pages(&mut header, 0, 0, &runs);
    let prefix = Prefix::new(header_bytes, payload_bytes);
    let mut frame = vec![0x5A; PREFIX_BYTES + prefix.rest_bytes()];
    let key = provider.key(&[7; 32]);
    let mut nonce = 0u64;
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let payload_at = frame.len() - TAG_BYTES - payload_bytes;
        bare.push(turn(payload_bytes, || {
            nonce += 1;
            let mut bytes = [0; 12];
            bytes[4..].copy_from_slice(&nonce.to_be_bytes());
            let payload = &mut frame[payload_at..payload_at + payload_bytes];
            std::hint::black_box(key.seal(bytes, &[], payload));
        }));
        whole.push(turn(payload_bytes, || {
            frame[PREFIX_BYTES..][..header_bytes].copy_from_slice(&header[..header_bytes]);
            sealer.seal(&mut frame, prefix).expect("far from the limit");
        }));
    }
    check(provider, lane(), &frame, prefix);
    print(provider, "seal", payload_bytes, &bare, &whole);
}

fn print(provider: Provider, what: &str, payload_bytes: usize, bare: &[f64], whole: &[f64]) {
    println!(
        "{:<10} {what:<5} {:>4}KiB  {:<24} {:<24} {}",
        provider.name(),
        payload_bytes >> 10,
        shown(bare),
        shown(whole),
        shown(&ratios(whole, bare))
    );
}

/// Opening spoils what it opens: some frames are sealed while no clock runs.
fn compare_opening(provider: Provider, payload_bytes: usize) {
    let secret = SessionSecret::new(b"bench", b"bench");
    let lane = || secret.lane_secret(Direction::FromSource, 0, 0, &[0; 32], &[0; 32]);
    let mut sealer = Sealer::new(provider, lane(), KeyLimits::default(), 0);
    let mut opener = Opener::new(provider, lane(), KeyLimits::default(), 0);
    let mut header = [0; 4096];
    let runs = [PageRun { first_page: 0, pages: (payload_bytes / 4096) as u32, zero: false }];
    let header_bytes = encode_pages(&mut header, 0, 0, &runs);
    let prefix = Prefix::new(header_bytes, payload_bytes);
    let plain = vec![0x5A; PREFIX_BYTES + prefix.rest_bytes()];
    // One at a time: it stays in the cache, as a slot does.
    let mut frame = plain.clone();
    let key = provider.key(&[7; 32]);
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for turn in 0..TURNS as u64 {
        let payload_at = frame.len() - TAG_BYTES - payload_bytes;
        let mut nonce = [0; 12];
        bare.push(turn_of_pairs(payload_bytes, |step| {
            nonce[..8].copy_from_slice(&(turn << 32 | step).to_le_bytes());
            let (payload, room) = frame[payload_at..].split_at_mut(payload_bytes);
            room.copy_from_slice(&key.seal(nonce, &[], payload));
            let begin = Instant::now();
            key.open(nonce, &[], &mut frame[payload_at..]).expect("as sealed");
            begin.elapsed()
        }));
        whole.push(turn_of_pairs(payload_bytes, |_| {
            frame[PREFIX_BYTES..][..header_bytes].copy_from_slice(&header[..header_bytes]);
            sealer.seal(&mut frame, prefix).expect("far from the limit");
            let (head, body) = frame.split_at_mut(prefix.head_bytes());
            let begin = Instant::now();
            opener.open_header(head, prefix).expect("the header opens");
            opener.open_payload(body).expect("the payload opens");
            begin.elapsed()
        }));
    }
    let payload = prefix.head_bytes()..prefix.head_bytes() + payload_bytes;
    assert!(frame[payload.clone()] == plain[payload], "it differs");
    print(provider, "open", payload_bytes, &bare, &whole);
}

/// GB/s by the times that `step` says.
fn turn_of_pairs(bytes: usize, mut step: impl FnMut(u64) -> Duration) -> f64 {
    let (mut spent, mut steps) = (Duration::ZERO, 0);
    while spent < TURN / 2 {
        spent += step(steps);
        steps += 1;
    }
    gb_per_s(steps * bytes as u64, spent)
}

fn turn(bytes: usize, mut step: impl FnMut()) -> f64 {
    let (begin, mut done) = (Instant::now(), 0);
    while begin.elapsed() < TURN {
        (0..8).for_each(|_| step());
        done += 8 * bytes as u64;
    }
    gb_per_s(done, begin.elapsed())
}

/// What the sealer of these benches makes opens again, and not after a flipped bit.
fn check(provider: Provider, secret: sealane::seal::LaneSecret, frame: &[u8], prefix: Prefix) {
    let other = SessionSecret::new(b"bench", b"bench");
    let again = other.lane_secret(Direction::FromSource, 0, 0, &[0; 32], &[0; 32]);
    let mut sealer = Sealer::new(provider, secret, KeyLimits::default(), 0);
    let mut opener = Opener::new(provider, again, KeyLimits::default(), 0);
    let (mut sealed, plain) = (frame.to_vec(), frame.to_vec());
    sealer.seal(&mut sealed, prefix).expect("the first frame");
    let (head, body) = sealed.split_at_mut(prefix.head_bytes());
    opener.open_header(head, prefix).expect("the header opens");
    opener.open_payload(body).expect("the payload opens");
    let payload = &body[..prefix.payload_bytes()];
    assert!(payload == &plain[prefix.head_bytes()..][..prefix.payload_bytes()], "it differs");
    sealer.seal(&mut sealed, prefix).expect("the second frame");
    let (head, body) = sealed.split_at_mut(prefix.head_bytes());
    opener.open_header(head, prefix).expect("the header opens");
    body[0] ^= 1;
    assert!(opener.open_payload(body).is_err(), "a flipped bit opens");
}
