//! Sealing and opening as one: what goes in comes out, and nothing else does.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::keys::{expand_for_test, lane_secret_for_test};
use super::*;
use crate::config::ProviderChoice;
use crate::error::Error;
use crate::wire::{HEADER_FIXED_BYTES, PREFIX_BYTES, Prefix};

const PROVIDERS: [Provider; 3] = [Provider::AwsLc, Provider::Ring, Provider::RustCrypto];
const LIMITS: KeyLimits = KeyLimits { frames_per_epoch_log2: 2, frames_max: 100 };

fn secret() -> LaneSecret {
    lane_secret_for_test([0x5E; 32])
}

fn sealer(provider: Provider, limits: KeyLimits) -> Sealer {
    Sealer::new(provider, secret(), limits, 3)
}

fn opener(provider: Provider, limits: KeyLimits) -> Opener {
    Opener::new(provider, secret(), limits, 3)
}

/// A plain frame with room for the tags.
fn frame(header: &[u8], payload: &[u8]) -> (Vec<u8>, Prefix) {
    let prefix = Prefix::new(header.len(), payload.len());
    let mut frame = vec![0; PREFIX_BYTES + prefix.rest_bytes()];
    frame[PREFIX_BYTES..][..header.len()].copy_from_slice(header);
    frame[prefix.head_bytes()..][..payload.len()].copy_from_slice(payload);
    (frame, prefix)
}

fn open(
    opener: &mut Opener,
    frame: &mut [u8],
    prefix: Prefix,
) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (head, body) = frame.split_at_mut(prefix.head_bytes().min(frame.len()));
    let header = opener.open_header(head, prefix)?.to_vec();
    if prefix.payload_bytes() > 0 {
        opener.open_payload(body)?;
    }
    Ok((header, body[..prefix.payload_bytes()].to_vec()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn every_size_goes_through_and_providers_agree(
        steps in 0usize..9, payload in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        let header = vec![0xA5; HEADER_FIXED_BYTES + steps * 16];
        let mut sealed = Vec::new();
        for provider in PROVIDERS {
            let (mut bytes, prefix) = frame(&header, &payload);
            prop_assert_eq!(sealer(provider, LIMITS).seal(&mut bytes, prefix).unwrap(), 0);
            sealed.push((bytes, prefix));
        }
        prop_assert_eq!(&sealed[0], &sealed[1]);
        prop_assert_eq!(&sealed[0], &sealed[2]);
        for provider in PROVIDERS {
            let (mut bytes, prefix) = sealed[0].clone();
            let opened = open(&mut opener(provider, LIMITS), &mut bytes, prefix).unwrap();
            prop_assert_eq!(opened, (header.clone(), payload.clone()));
        }
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused_and_fatal() {
    for provider in PROVIDERS {
        let (mut good, prefix) = frame(&[1; 48], &[2; 33]);
        sealer(provider, LIMITS).seal(&mut good, prefix).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // W-26: a change of the prefix either does not parse or fails the header's tag.
            let Ok(prefix) = Prefix::parse(*bad.first_chunk().unwrap(), 4096) else { continue };
            let mut opener = opener(provider, LIMITS);
            open(&mut opener, &mut bad, prefix).unwrap_err();
            if prefix.head_bytes() <= good.len() && bit >= 64 {
                let again = open(&mut opener, &mut good.clone(), prefix).unwrap_err();
                assert!(matches!(again, Error::Unseal { lane: 3, frame: 0 }), "{again}");
            }
        }
        for cut in prefix.head_bytes()..good.len() {
            let mut bad = good[..cut].to_vec();
            open(&mut opener(provider, LIMITS), &mut bad, prefix).unwrap_err();
        }
        for cut in 0..prefix.head_bytes() {
            let mut bad = good[..cut].to_vec();
            opener(provider, LIMITS).open_header(&mut bad, prefix).unwrap_err();
        }
    }
}

#[test]
fn frames_cross_epochs_in_order_only() {
    // W-24: four frames an epoch here.
    for provider in PROVIDERS {
        let (mut sealer, mut reader) = (sealer(provider, LIMITS), opener(provider, LIMITS));
        let mut frames = Vec::new();
        for n in 0..13u8 {
            let (mut bytes, prefix) = frame(&[n; 32], &vec![n; usize::from(n) * 7]);
            assert_eq!(sealer.seal(&mut bytes, prefix).unwrap(), n.into());
            frames.push((bytes, prefix));
        }
        assert_eq!((sealer.frames(), sealer.epoch()), (13, 3));
        for (n, (bytes, prefix)) in frames.iter().enumerate() {
            let (header, payload) = open(&mut reader, &mut bytes.clone(), *prefix).unwrap();
            assert_eq!((header, payload), (vec![n as u8; 32], vec![n as u8; n * 7]));
        }
        assert_eq!((reader.frames(), reader.epoch()), (13, 3));
        // Replayed, dropped, reordered: each shows as a failed tag.
        for order in [vec![0, 0], vec![1], vec![0, 1, 3], vec![0, 1, 2, 3, 5]] {
            let mut opener = opener(provider, LIMITS);
            let results: Vec<_> = order
                .iter()
                .map(|&n: &usize| open(&mut opener, &mut frames[n].0.clone(), frames[n].1))
                .collect();
            assert!(results.last().unwrap().is_err(), "{order:?}");
            assert!(results[..order.len() - 1].iter().all(Result::is_ok), "{order:?}");
        }
    }
}

#[test]
fn the_hard_limit_refuses_and_leaves_the_frame_alone() {
    // W-25
    let limits = KeyLimits { frames_per_epoch_log2: 16, frames_max: 2 };
    let mut sealer = sealer(Provider::Ring, limits);
    for _ in 0..2 {
        let (mut bytes, prefix) = frame(&[0; 32], b"");
        sealer.seal(&mut bytes, prefix).unwrap();
    }
    let (mut bytes, prefix) = frame(&[7; 32], b"");
    let before = bytes.clone();
    let error = sealer.seal(&mut bytes, prefix).unwrap_err();
    assert!(error.to_string().contains("new secret"), "{error}");
    assert_eq!(bytes, before);
}

#[test]
fn payload_without_header_is_misuse_and_payloads_cannot_be_swapped() {
    let mut sealer = sealer(Provider::Ring, LIMITS);
    let (mut one, prefix) = frame(&[1; 32], &[1; 64]);
    let (mut two, _) = frame(&[2; 32], &[2; 64]);
    sealer.seal(&mut one, prefix).unwrap();
    sealer.seal(&mut two, prefix).unwrap();
    let mut reader = opener(Provider::Ring, LIMITS);
    let early = reader.open_payload(&mut one[prefix.head_bytes()..]).unwrap_err();
    assert!(matches!(early, Error::Misuse(_)));
    // W-23
    let head = prefix.head_bytes();
    let mut mixed = [&one[..head], &two[head..]].concat();
    open(&mut reader, &mut mixed, prefix).unwrap_err();
}

/// Records what a key is used for; `unique` fails where a nonce comes twice.
struct Recorder(Arc<Mutex<HashSet<[u8; 12]>>>);

impl AeadKey for Recorder {
    fn seal(&self, nonce: [u8; 12], _: &[u8], _: &mut [u8]) -> [u8; 16] {
        assert!(self.0.lock().unwrap().insert(nonce), "nonce {nonce:02x?} came twice");
        [0; 16]
    }
    fn open(&self, _: [u8; 12], _: &[u8], _: &mut [u8]) -> Result<(), super::aead::TagMismatch> {
        Err(super::aead::TagMismatch)
    }
}

#[test]
fn no_nonce_comes_twice_under_one_key() {
    // W-21. One key for all epochs is harder than the truth, where each has its own.
    let limits = KeyLimits { frames_per_epoch_log2: 40, frames_max: 1 << 32 };
    let mut sealer = sealer(Provider::Ring, limits);
    let seen = Arc::new(Mutex::new(HashSet::new()));
    sealer.0.key = Box::new(Recorder(Arc::clone(&seen)));
    for start in [0u64, 250, 65_530, (1 << 24) - 5, (1 << 32) - 20] {
        sealer.0.counter = sealer.0.counter.max(start);
        for n in 0..20 {
            let (mut bytes, prefix) = frame(&[0; 32], if n % 2 == 0 { b"" } else { b"x" });
            sealer.seal(&mut bytes, prefix).unwrap();
        }
    }
    assert_eq!(seen.lock().unwrap().len(), 5 * 30);
    let (mut a, mut b) = (sealer_iv(0), sealer_iv(1));
    assert_ne!(a, b, "each epoch has its own IV");
    a.sort_unstable();
    b.sort_unstable();
    assert_ne!(a, b);
}

fn sealer_iv(epochs: u32) -> [u8; 12] {
    let mut secret = secret();
    (0..epochs).for_each(|_| secret.ratchet());
    secret.key_and_iv(Provider::Ring).1
}

#[test]
fn lanes_directions_generations_and_nonces_have_secrets_of_their_own() {
    // W-20
    let session = SessionSecret::new(b"salt", b"ikm");
    let mut seen = HashSet::new();
    let zero = [0; 32];
    for direction in [Direction::FromSource, Direction::FromTarget] {
        for lane in [0, 1, 256] {
            for generation in [0, 1] {
                for nonces in [(zero, zero), (zero, [1; 32]), ([1; 32], zero)] {
                    let secret =
                        session.lane_secret(direction, lane, generation, &nonces.0, &nonces.1);
                    assert!(seen.insert(secret.key_and_iv(Provider::Ring).1));
                }
            }
        }
    }
    assert_ne!(session.id(), session.migration_id());
    let key = session.join_mac_key();
    let tag = mac(&key, &[b"a", b"b"]);
    assert!(verify_mac(&key, &[b"ab"], &tag));
    assert!(!verify_mac(&key, &[b"ac"], &tag));
}

#[test]
fn golden_key_schedule_and_frames() {
    // W-19, W-20, W-22: tests/golden_vectors.py computes the same without this crate.
    let session = SessionSecret::new(b"handshake hash", b"agreed");
    assert_eq!(hex(&session.id()), GOLDEN_SESSION_ID);
    assert_eq!(hex(&expand_for_test(&[0x5E; 32], "upd", b"")), GOLDEN_UPDATE);
    let mut sealer = sealer(Provider::RustCrypto, LIMITS);
    let mut last = Vec::new();
    for n in 0..5 {
        let (mut bytes, prefix) = frame(&[7; 32], b"guest memory");
        sealer.seal(&mut bytes, prefix).unwrap();
        if n == 0 {
            assert_eq!(hex(&bytes), GOLDEN_FRAME_0);
        }
        last = bytes;
    }
    assert_eq!(hex(&last), GOLDEN_FRAME_4, "the first frame of epoch 1");
}

const GOLDEN_SESSION_ID: &str = "e4a41e3d08cf35e89e71c522f69b8a4f";
const GOLDEN_UPDATE: &str = "\
    2843cb56c639bb162cd0d2f983b8aea016b550afa29c87cc1a1e797c26ad7369";
const GOLDEN_FRAME_0: &str = "\
    200000000c00000097203473b69ffa1ec3443d8fe1abf4bcc99aa96fa74bc840ca8ac7ecc5a56036\
    45da812b82c012154aeb9b0561241516a29d3f4980db13f771941c5c446d50304df87d9d88ba5c2e\
    b386019f";
const GOLDEN_FRAME_4: &str = "\
    200000000c000000b0e56dd47e346fa3cc5b9f71abacf25200e9bd4c9701914769a0d6761e2a2b09\
    ca8e4ccf3f9f3eca3f3d7ae02a06eb1ef658f26d30c20f27275090bedfbb4bfa9f726349ac46bd8f\
    8c292b29";

#[test]
fn the_provider_follows_the_cpu_and_never_silently() {
    let cpu = |aes, vaes, avx512| CpuFeatures { aes, vaes, avx512 };
    let auto = |cpu| Provider::resolve(ProviderChoice::Auto, &cpu);
    assert_eq!(auto(cpu(true, true, true)).unwrap(), Provider::AwsLc);
    assert_eq!(auto(cpu(true, true, false)).unwrap(), Provider::Ring);
    assert_eq!(auto(cpu(true, false, false)).unwrap(), Provider::AwsLc, "it erases its keys");
    let refused = auto(cpu(false, false, false)).unwrap_err().to_string();
    assert!(refused.contains("aes-gcm"), "{refused}");
    let soft = Provider::resolve(ProviderChoice::RustCrypto, &cpu(false, false, false)).unwrap();
    assert_eq!(soft.name(), "aes-gcm");
}
