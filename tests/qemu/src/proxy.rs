//! What stands between two hosts: it keeps what passes, changes a byte of it, or lets nothing more
//! pass.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::PATIENCE;

const BUFFER_BYTES: usize = 256 << 10;

/// A TCP proxy on loopback; its threads end with the connections.
pub struct Proxy {
    /// Where it listens.
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Whether to keep what passes.
    record: bool,
    /// Of which byte from the source to flip a bit, counted over all connections.
    flip_at: Option<u64>,
    /// After how many bytes from the source nothing more passes, and nobody is told.
    hang_at: Option<u64>,
    passed_bytes: AtomicU64,
    /// What passed, for each direction of each connection.
    records: Mutex<Vec<Vec<u8>>>,
}

impl Proxy {
    /// Keeps everything that passes to and from `to`.
    pub fn recording(to: &str) -> Self {
        Self::start(to, Shared { record: true, ..Shared::default() })
    }

    /// Flips a bit of this byte from the source.
    pub fn flipping(to: &str, at: u64) -> Self {
        Self::start(to, Shared { flip_at: Some(at), ..Shared::default() })
    }

    /// After so many bytes from the source nothing passes any more, as if the path were cut.
    pub fn hanging(to: &str, after: u64) -> Self {
        Self::start(to, Shared { hang_at: Some(after), ..Shared::default() })
    }

    fn start(to: &str, shared: Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (shared, to) = (Arc::new(shared), to.to_owned());
        let proxy = Self { address, shared: shared.clone() };
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&to) else { continue };
                for stream in [&near, &far] {
                    stream.set_nodelay(true).unwrap();
                }
                let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (there, back) = (shared.clone(), shared.clone());
                std::thread::spawn(move || pump(near, far, &there, true));
                std::thread::spawn(move || pump(far2, near2, &back, false));
            }
        });
        proxy
    }

    /// What passed, for each direction of each connection that has closed: as soon as it is so
    /// much.
    ///
    /// # Panics
    ///
    /// Where it does not become so much.
    pub fn wait_records(&self, bytes: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut records = self.shared.records.lock().unwrap();
            let recorded: usize = records.iter().map(Vec::len).sum();
            if recorded >= bytes {
                return std::mem::take(&mut records);
            }
            drop(records);
            assert!(Instant::now() < deadline, "{recorded} bytes passed, {bytes} were to");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, is_forward: bool) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut record = Vec::new();
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..got];
        if is_forward {
            let before = shared.passed_bytes.fetch_add(got as u64, Ordering::Relaxed);
            let at = shared.flip_at.and_then(|at| at.checked_sub(before));
            if let Some(byte) = at.and_then(|at| bytes.get_mut(at as usize)) {
                *byte ^= 0x10;
            }
        }
        let passed = shared.passed_bytes.load(Ordering::Relaxed);
        if shared.hang_at.is_some_and(|at| passed > at) {
            loop {
                std::thread::park(); // with both connections open
            }
        }
        if shared.record {
            record.extend_from_slice(bytes);
        }
        if to.write_all(bytes).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    shared.records.lock().unwrap().push(record);
    let _ = to.shutdown(Shutdown::Write);
}

/// Whether `needle` occurs.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let starts = haystack.iter().enumerate().filter(|(_, byte)| **byte == needle[0]);
    starts.map(|(at, _)| at).any(|at| haystack[at..].starts_with(needle))
}
