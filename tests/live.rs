//! A stream sends memory that a guest keeps writing to.
#![allow(missing_docs)]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use sealane::memory::LiveSlice;
use sealane::stream::Streams;
use sealane::{Canceller, Config, EngineChoice, OneTimeSecret, Role};

const BYTES: usize = 4 << 20;
const ROUNDS: usize = 4;

fn sent_while_written_to(engine: EngineChoice) {
    let (near, far) = UnixStream::pair().unwrap();
    let (secret, mut config) = (OneTimeSecret::generate().unwrap(), Config::default());
    config.engine = engine;
    let (theirs, other) = (secret.clone(), config.clone());
    let target = std::thread::spawn(move || {
        let cancel = Canceller::default();
        let (_, stream) = Streams::answer(far, Role::Target, &theirs, &other, &cancel).unwrap();
        let mut came = vec![0; BYTES * ROUNDS];
        (&stream).read_exact(&mut came).map(|()| came)
    });
    let cancel = Canceller::default();
    let (_, stream) = Streams::open(near, Role::Source, &secret, &config, &cancel).unwrap();
    let guest: Vec<AtomicU8> = (0..BYTES).map(|_| AtomicU8::new(1)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 1;
            while !over.load(Ordering::Relaxed) {
                value ^= 3;
                guest.iter().for_each(|byte| byte.store(value, Ordering::Relaxed));
            }
        });
        // SAFETY: the vector lives longer than the slices; a thread writes to it meanwhile.
        let live =
            |from, bytes| unsafe { LiveSlice::from_raw(guest[from..].as_ptr().cast(), bytes) };
        for _ in 0..ROUNDS {
            let parts = [live(0, 5), live(5, BYTES / 2), live(BYTES / 2 + 5, BYTES / 2 - 5)];
            assert_eq!(stream.write_live(&parts).unwrap(), BYTES);
        }
        over.store(true, Ordering::Relaxed);
    });
    // Every frame verified: what was sealed is what was sent, whatever the guest did meanwhile.
    let came = target.join().unwrap().unwrap();
    assert!(came.iter().all(|byte| [1, 2].contains(byte)));
    assert!(came.contains(&1) && came.contains(&2), "the guest wrote meanwhile");
}

#[test]
fn frames_verify_though_the_guest_writes_io_uring() {
    sent_while_written_to(EngineChoice::Uring);
}

#[test]
fn frames_verify_though_the_guest_writes_system_calls() {
    sent_while_written_to(EngineChoice::Syscalls);
}
