//! C at one end, Rust at the other, each in its own process.
#![allow(missing_docs)]

mod program;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStdout, ExitStatus, Stdio};
use std::thread::JoinHandle;

use sealane::memory::{DirtyBitmap, Region};
use sealane::stream::Streams;
use sealane::{
    Canceller, Config, EngineChoice, Listener, OneTimeSecret, Role, Source, Target, dial,
};

use program::{command, compile, engines};

const PAGE: usize = 4096;
const PAGES: usize = 150;
const MANY: usize = 2_000_000;

/// What the Rust end has, and how the C end is begun.
struct Rig {
    place: tempfile::TempDir,
    engine: &'static str,
    secret: OneTimeSecret,
    config: Config,
    cancel: Canceller,
}

impl Rig {
    fn new(engine: &'static str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let secret = OneTimeSecret::generate().unwrap();
        secret.write_new(&place.path().join("secret")).unwrap();
        std::fs::write(place.path().join("near"), guest()).unwrap();
        File::create(place.path().join("far")).unwrap().set_len((PAGES * PAGE) as u64).unwrap();
        let mut config = Config::default();
        config.engine = match engine {
            "uring" => EngineChoice::Uring,
            _ => EngineChoice::Syscalls,
        };
        config.lanes = 3;
        config.frame_bytes = 65536;
        Self { place, engine, secret, config, cancel: Canceller::default() }
    }

    fn begin(&self, program: &Path, arguments: &[&str], stdin: Stdio) -> Peer {
        let mut command = command(program, self.place.path(), self.engine);
        command.args(arguments).stdin(stdin).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdout, cancel) = (child.stdout.take().unwrap(), self.cancel.clone());
        let ended = std::thread::spawn(move || {
            let status = child.wait().unwrap();
            if !status.success() {
                cancel.cancel(); // nobody is there to wait for
            }
            status
        });
        Peer { stdout: BufReader::new(stdout), ended }
    }

    fn region(&self, name: &str) -> Region {
        let file = File::options().read(true).write(true).open(self.place.path().join(name));
        Region::from_file("ram", file.unwrap(), 0, (PAGES * PAGE) as u64).unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.place.path().join(name)).unwrap()
    }
}

fn compiled(place: &tempfile::TempDir) -> std::path::PathBuf {
    compile("cc", "-std=c99", "peer.c", place.path())
}

/// The C end.
struct Peer {
    stdout: BufReader<ChildStdout>,
    ended: JoinHandle<ExitStatus>,
}

impl Peer {
    fn ends_well(self) {
        assert!(self.ended.join().unwrap().success());
    }
}

/// Memory of a guest: every fifth page is zero.
fn guest() -> Vec<u8> {
    let byte = |n: usize| if (n / PAGE).is_multiple_of(5) { 0 } else { (n / PAGE + n / 7) as u8 };
    (0..PAGES * PAGE).map(byte).collect()
}

#[test]
fn a_guest_moves_from_c_to_rust() {
    let place = tempfile::tempdir().unwrap();
    let program = compiled(&place);
    for engine in engines() {
        let rig = Rig::new(engine);
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_address().unwrap().port().to_string();
        let peer = rig.begin(&program, &["source", &port], Stdio::null());
        let lanes = listener.accept(Role::Target, &rig.secret, &rig.config, &rig.cancel).unwrap();
        // The source decides.
        assert_eq!((lanes.count(), lanes.frame_bytes()), (2, 131_072));
        let mut target = Target::start(lanes, &rig.config, &rig.cancel).unwrap();
        assert_eq!(target.offer().collect::<Vec<_>>(), [("ram", (PAGES * PAGE) as u64)]);
        target.accept(vec![rig.region("far")]).unwrap();
        let state = target.receive().unwrap();
        assert_eq!(state, b"registers of a guest in C\0");
        target.ready().unwrap();
        target.done().unwrap();
        peer.ends_well();
        let mut wanted = guest();
        wanted[3 * PAGE + 5..][..13].copy_from_slice(b"written later");
        assert!(rig.read("far") == wanted, "{engine}: the memory differs");
    }
}

#[test]
fn a_guest_moves_from_rust_to_c() {
    let place = tempfile::tempdir().unwrap();
    let program = compiled(&place);
    for engine in engines() {
        let rig = Rig::new(engine);
        let mut peer = rig.begin(&program, &["target"], Stdio::null());
        let mut port = String::new();
        peer.stdout.read_line(&mut port).unwrap();
        let address = format!("127.0.0.1:{}", port.trim());
        let lanes =
            dial(&address.parse().unwrap(), Role::Source, &rig.secret, &rig.config, &rig.cancel)
                .unwrap();
        let regions = vec![rig.region("near")];
        let mut source = Source::start(lanes, regions, &rig.config, &rig.cancel).unwrap();
        source.send_round(&[DirtyBitmap::all(PAGES as u64)]).unwrap();
        let state: Vec<u8> = (0..200_000_u32).map(|n| (n / 3) as u8).collect();
        source.commit(&state).unwrap();
        source.hand_over().unwrap();
        peer.ends_well();
        assert!(rig.read("far") == guest(), "{engine}: the memory differs");
        assert!(rig.read("state") == state, "{engine}: the state differs");
    }
}

fn tcp() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near.into(), listener.accept().unwrap().0.into())
}

fn unix() -> (OwnedFd, OwnedFd) {
    let (near, far) = UnixStream::pair().unwrap();
    (near.into(), far.into())
}

/// Each byte goes to C and comes back changed, while others go.
fn bytes_come_back(rig: &Rig, program: &Path, side: &str, (near, far): (OwnedFd, OwnedFd)) {
    let peer = rig.begin(program, &[side], far.into());
    let (secret, config, cancel) = (&rig.secret, &rig.config, &rig.cancel);
    let (streams, stream) = match side {
        "accepted" => Streams::open(near, Role::Source, secret, config, cancel),
        _ => Streams::answer(near, Role::Target, secret, config, cancel),
    }
    .unwrap();
    let frame_bytes = if side == "accepted" { 65536 } else { 131_072 };
    assert_eq!(streams.frame_bytes(), frame_bytes, "the source decides");
    let sent: Vec<u8> = (0..MANY).map(|n| (n * 7 + n / 251) as u8).collect();
    let mut came = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        (&stream).read_to_end(&mut came).unwrap();
    });
    peer.ends_well();
    let wanted: Vec<u8> = sent.iter().map(|byte| byte ^ 0x5A).collect();
    assert!(came == wanted, "{side}: {} bytes of {MANY} came, or others", came.len());
}

#[test]
fn a_stream_has_an_end_in_c_and_one_in_rust() {
    let place = tempfile::tempdir().unwrap();
    let program = compiled(&place);
    for engine in engines() {
        bytes_come_back(&Rig::new(engine), &program, "connected", tcp());
        bytes_come_back(&Rig::new(engine), &program, "accepted", tcp());
        bytes_come_back(&Rig::new(engine), &program, "connected", unix());
        bytes_come_back(&Rig::new(engine), &program, "accepted", unix());
    }
}
