//! 64 MiB through `sealane_stream_writev` of libsealane.so against the same through the Rust call:
//! a stream over loopback each, whose far end is a Rust reader; in turns.
//!
//! SEALANE_LIBRARY names the library; `cargo xtask bench c_abi` builds it and says where.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io::{IoSlice, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use sealane::stream::{Stream, Streams};
use sealane::{Canceller, Config, OneTimeSecret, Role};
use sealane_benches::{gb_per_s, ratios, shown};

const BYTES: usize = 64 << 20;
/// As a caller with guest memory gives them.
const PART_BYTES: usize = 1 << 20;
const TURNS: usize = 21;
const SECRET: [u8; 32] = [0x5A; 32];

type Streaming = *mut c_void;
type SecretFromBytes = unsafe extern "C" fn(*const u8, usize, *mut Streaming) -> c_int;
type TrustNew = unsafe extern "C" fn(*const c_void, *const c_void, *mut Streaming) -> c_int;
type Open = unsafe extern "C" fn(
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    *const c_void,
    *mut Streaming,
    *mut Streaming,
) -> c_int;
type Writev = unsafe extern "C" fn(*const c_void, *const libc::iovec, c_int) -> isize;
type LastError = unsafe extern "C" fn() -> *const c_char;

fn main() -> sealane::Result<()> {
    let bytes: Vec<u8> = (0..BYTES).map(|n| (n / 4096 + n) as u8).collect();
    let ways: [(&str, Box<dyn Write>); 2] =
        [("Rust", Box::new(by_rust()?)), ("C", Box::new(ThroughC::new()))];
    let mut figures = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
        // Each way goes first in half of the turns.
        for n in [turn % 2, 1 - turn % 2] {
            figures[n].push(ways[n].1.turn(&bytes));
        }
    }
    println!("64 MiB through one call, {TURNS} turns, GB/s");
    for ((name, _), figures) in ways.iter().zip(&figures) {
        println!("{name:5} {}", shown(figures));
    }
    println!("C / Rust: {}", shown(&ratios(&figures[1], &figures[0])));
    Ok(())
}

/// A way to write, with the far end that reads.
trait Write {
    fn write(&self, bytes: &[u8]);
    fn far(&self) -> &Stream;

    /// GB/s of one call until the far end has all bytes, which it compares.
    fn turn(&self, bytes: &[u8]) -> f64 {
        let begin = Instant::now();
        let far = self.far();
        let (read, end) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut read = vec![0; bytes.len()];
                let mut far = far;
                far.read_exact(&mut read).expect("all bytes");
                (read, Instant::now())
            });
            self.write(bytes);
            reader.join().expect("no panic")
        });
        assert!(read == bytes, "what was read is what was written");
        gb_per_s(bytes.len() as u64, end - begin)
    }
}

struct ThroughRust {
    near: Stream,
    far: Stream,
}

fn by_rust() -> sealane::Result<ThroughRust> {
    let secret = OneTimeSecret::from_bytes(&SECRET)?;
    let (near, far) = sockets();
    let far = answer(far);
    let cancel = Canceller::default();
    let (_, near) = Streams::open(near, Role::Source, &secret, &Config::default(), &cancel)?;
    Ok(ThroughRust { near, far: far.join().expect("no panic") })
}

impl Write for ThroughRust {
    fn write(&self, bytes: &[u8]) {
        let parts: Vec<_> = bytes.chunks(PART_BYTES).map(IoSlice::new).collect();
        assert_eq!(self.near.write_vectored(&parts).expect("a stream"), bytes.len());
    }

    fn far(&self) -> &Stream {
        &self.far
    }
}

struct ThroughC {
    writev: Writev,
    last_error: LastError,
    near: Streaming,
    far: Stream,
}

impl ThroughC {
    fn new() -> Self {
        let path = std::env::var("SEALANE_LIBRARY").expect("SEALANE_LIBRARY");
        let path = CString::new(path).expect("no zero");
        // SAFETY: the library of this workspace; it has no initialiser that asks for anything.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null(), "{path:?} does not load");
        let symbol = |name: &str| {
            let name = CString::new(name).expect("no zero");
            // SAFETY: a library that stays open.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            assert!(!symbol.is_null(), "{name:?} is not there");
            symbol
        };
        // SAFETY: the types are those of include/sealane.h.
        let (secret_from_bytes, trust_new, open, writev, last_error) = unsafe {
            (
                std::mem::transmute::<*mut c_void, SecretFromBytes>(symbol(
                    "sealane_secret_from_bytes",
                )),
                std::mem::transmute::<*mut c_void, TrustNew>(symbol("sealane_trust_new")),
                std::mem::transmute::<*mut c_void, Open>(symbol("sealane_streams_open")),
                std::mem::transmute::<*mut c_void, Writev>(symbol("sealane_stream_writev")),
                std::mem::transmute::<*mut c_void, LastError>(symbol("sealane_last_error")),
            )
        };
        let (near, far) = sockets();
        let far = answer(far);
        let mut handles = [std::ptr::null_mut(); 4];
        let [secret, trust, streams, stream] = &mut handles;
        // SAFETY: as the header asks; the handles live until this process ends.
        unsafe {
            assert_eq!(secret_from_bytes(SECRET.as_ptr(), SECRET.len(), secret), 0);
            let null = std::ptr::null();
            assert_eq!(trust_new(*secret, null, trust), 0);
            assert_eq!(open(near.as_raw_fd(), 1, *trust, null, null, streams, stream), 0);
        }
        Self { writev, last_error, near: *stream, far: far.join().expect("no panic") }
    }
}

impl Write for ThroughC {
    fn write(&self, bytes: &[u8]) {
        let parts: Vec<_> = bytes
            .chunks(PART_BYTES)
            .map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            })
            .collect();
        // SAFETY: the stream lives, and the parts outlive the call.
        unsafe {
            let written = (self.writev)(self.near, parts.as_ptr(), parts.len() as c_int);
            let error = std::ffi::CStr::from_ptr((self.last_error)());
            assert_eq!(written, bytes.len() as isize, "{error:?}");
        }
    }

    fn far(&self) -> &Stream {
        &self.far
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("a peer");
    (near, listener.accept().expect("a peer").0)
}

fn answer(far: TcpStream) -> std::thread::JoinHandle<Stream> {
    std::thread::spawn(move || {
        let (secret, cancel) =
            (OneTimeSecret::from_bytes(&SECRET).expect("32 bytes"), Canceller::default());
        let config = Config::default();
        Streams::answer(far, Role::Target, &secret, &config, &cancel).expect("a session").1
    })
}
