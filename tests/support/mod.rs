//! Two ends of a migration for tests: memory, a target that can be stopped between its steps, and
//! a proxy that can cut every connection between them.
#![allow(missing_docs, dead_code)] // each test binary uses its part

pub mod pki;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sealane::memory::Region;
use sealane::{
    Canceller, Config, EngineChoice, Listener, OneTimeSecret, Result, Role, Source, Target,
    TargetReport, dial,
};

pub const ENGINES: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Syscalls];

pub fn config(engine: EngineChoice, lanes: u16) -> Config {
    let mut config = Config::default();
    config.engine = engine;
    config.lanes = lanes;
    config.frame_bytes = 64 << 10;
    config.peer_timeout = Duration::from_secs(10);
    config
}

pub fn memfd(bytes: u64) -> File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(bytes).unwrap();
    file
}

/// A third of the pages zero, the rest each its own.
pub fn fill(file: &File, bytes: u64, salt: u64) {
    let pages = bytes.div_ceil(4096);
    for page in (0..pages).filter(|page| page % 3 != 0) {
        let word = page.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt) | 1;
        let content = word.to_le_bytes().repeat(512);
        let room = (bytes - page * 4096).min(4096) as usize;
        file.write_all_at(&content[..room], page * 4096).unwrap();
    }
}

pub fn read(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

/// What a target does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The lanes are there; nothing was offered yet.
    Start,
    /// The regions were offered.
    Accept,
    /// They were accepted.
    Receive,
    /// Everything came.
    Ready,
    /// The source has let go.
    Done,
}

pub const STEPS: [Step; 5] = [Step::Start, Step::Accept, Step::Receive, Step::Ready, Step::Done];

pub type TargetEnd = JoinHandle<Result<(Vec<u8>, TargetReport)>>;

/// A target that takes the one region into `file` and calls `before` ahead of each step.
pub fn target_with(
    file: &File,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
    before: impl Fn(Step) + Send + 'static,
) -> (String, TargetEnd) {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_address().unwrap().to_string();
    let (file, secret, config) = (file.try_clone().unwrap(), secret.clone(), config.clone());
    let cancel = cancel.clone();
    let end = std::thread::spawn(move || {
        let lanes = listener.accept(Role::Target, &secret, &config, &cancel)?;
        before(Step::Start);
        let mut target = Target::start(lanes, &config, &cancel)?;
        let bytes = file.metadata().unwrap().len();
        before(Step::Accept);
        target.accept(vec![Region::from_file("ram", file, 0, bytes)?])?;
        before(Step::Receive);
        let state = target.receive()?;
        before(Step::Ready);
        target.ready()?;
        before(Step::Done);
        Ok((state, target.done()?))
    });
    (address, end)
}

pub fn target(
    file: &File,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
) -> (String, TargetEnd) {
    target_with(file, secret, config, cancel, |_| {})
}

pub fn source(
    file: &File,
    address: &str,
    secret: &OneTimeSecret,
    config: &Config,
    cancel: &Canceller,
) -> Result<(Source, u64)> {
    let lanes = dial(&address.parse()?, Role::Source, secret, config, cancel)?;
    let file = file.try_clone().unwrap();
    let bytes = file.metadata().unwrap().len();
    let region = Region::from_file("ram", file, 0, bytes)?;
    let pages = region.pages();
    Ok((Source::start(lanes, vec![region], config, cancel)?, pages))
}

/// Stands between two ends and passes every byte on, until it is told to cut.
#[derive(Clone)]
pub struct Proxy(Arc<Mutex<Cut>>);

#[derive(Default)]
struct Cut {
    cut: bool,
    sockets: Vec<TcpStream>,
}

impl Proxy {
    /// A proxy in front of `address`, and its own address.
    pub fn new(address: &str) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ours, address) = (listener.local_addr().unwrap().to_string(), address.to_owned());
        let proxy = Self(Arc::default());
        let state = proxy.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(&address)) else { return };
                state.pass(&near, &far);
                state.pass(&far, &near);
                state.remember([near, far]);
            }
        });
        (proxy, ours)
    }

    /// Ends all connections at once, those that come later too: what each end sees when the
    /// other's process is killed.
    pub fn cut(&self) {
        let mut state = self.0.lock().unwrap();
        state.cut = true;
        state.sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
    }

    fn remember(&self, sockets: [TcpStream; 2]) {
        let mut state = self.0.lock().unwrap();
        if state.cut {
            sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
        }
        state.sockets.extend(sockets);
    }

    fn pass(&self, from: &TcpStream, into: &TcpStream) {
        let (mut from, mut into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = vec![0; 256 << 10];
            while let Ok(got @ 1..) = from.read(&mut bytes) {
                if into.write_all(&bytes[..got]).is_err() {
                    break;
                }
            }
            let _ = into.shutdown(Shutdown::Write);
        });
    }
}
