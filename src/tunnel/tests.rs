//! Tunnels between plain unix sockets, with both engines.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

use super::*;
use crate::OneTimeSecret;
use crate::config::EngineChoice;
use crate::wire::DIALLER_HELLO_BYTES;

const BOTH: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Syscalls];
/// What takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two ends on their way, between a path to connect to and a listener.
struct Rig {
    place: tempfile::TempDir,
    target: UnixListener,
    progress: [TunnelProgress; 2],
    cancel: Canceller,
    address: String,
    threads: Vec<JoinHandle<()>>,
    /// How the source's end ended, and the target's.
    ends: [Receiver<Result<TunnelReport>>; 2],
}

impl Rig {
    fn new(engine: EngineChoice) -> Self {
        Self::with(Config { engine, ..Config::default() }, |address| address.to_owned())
    }

    /// The target's end dials.
    fn reversed(engine: EngineChoice) -> Self {
        let config = Config { engine, ..Config::default() };
        Self::between(config, Role::Target, |address| address.to_owned())
    }

    /// `through` gives the address that the source dials for that of the target.
    fn with(config: Config, through: impl FnOnce(&str) -> String) -> Self {
        Self::between(config, Role::Source, through)
    }

    fn between(config: Config, dials: Role, through: impl FnOnce(&str) -> String) -> Self {
        let place = tempfile::tempdir().unwrap();
        let secret = OneTimeSecret::generate().unwrap();
        let cancel = Canceller::default();
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap().to_string();
        let to = place.path().join("target");
        let target = UnixListener::bind(&to).unwrap();
        let (far_ended, far_end) = channel();
        let (far_began, far_progress) = channel();
        let (theirs, own) = (secret.clone(), config.clone());
        let (door, dial) = (listener.clone(), through(&address).parse::<Dial>().unwrap());
        let reached = dial.clone();
        let far = std::thread::spawn(move || {
            let cancel = Canceller::default();
            let tunnel = match dials {
                Role::Source => {
                    TunnelTarget::accept(&door, &|| Ok((&theirs).into()), &own, &cancel)
                }
                Role::Target => TunnelTarget::dial(&reached, &theirs, &own, &cancel),
            };
            let tunnel = tunnel.unwrap();
            drop(door);
            far_began.send(tunnel.progress()).unwrap();
            let _ = far_ended.send(tunnel.serve(&to));
        });
        let from = LocalListener::bind(&place.path().join("source")).unwrap();
        let tunnel = match dials {
            Role::Source => TunnelSource::dial(&dial, &secret, &config, &cancel),
            Role::Target => {
                TunnelSource::accept(&listener, &|| Ok((&secret).into()), &config, &cancel)
            }
        };
        let tunnel = tunnel.unwrap();
        drop(listener);
        from.listen().unwrap();
        let progress = [tunnel.progress(), far_progress.recv().unwrap()];
        let (near_ended, near_end) = channel();
        let near = std::thread::spawn(move || {
            let _ = near_ended.send(tunnel.serve(&from));
        });
        let ends = [near_end, far_end];
        Self { place, target, progress, cancel, address, threads: vec![near, far], ends }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("source")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    /// A channel that has carried a byte: both of its ends.
    fn channel(&self) -> (UnixStream, UnixStream) {
        let mut near = self.connect();
        near.write_all(&[7]).unwrap();
        let (mut far, _) = self.target.accept().unwrap();
        let mut came = [0];
        far.read_exact(&mut came).unwrap();
        assert_eq!(came, [7]);
        (near, far)
    }

    /// Writes to its only channel, of which nobody reads, until it is full from the target's
    /// hypervisor to the network; how much.
    fn fill(&self, mut near: &UnixStream) -> usize {
        let came = |end: usize| {
            let channel = self.progress[end].channels()[0];
            (channel.sent_bytes + channel.received_bytes) as usize
        };
        let part = bytes(64 << 10, 3);
        let mut written = 1; // with that of a new channel
        loop {
            near.write_all(&part).unwrap();
            written += part.len();
            let deadline = Instant::now() + Duration::from_millis(100);
            while came(1) < written && Instant::now() < deadline {
                std::thread::yield_now();
            }
            if came(1) < written {
                assert_eq!(came(0), written, "the network has the rest");
                return written - 1;
            }
        }
    }

    /// How both ended.
    fn ends(&mut self) -> [Result<TunnelReport>; 2] {
        let ends = self.ends.each_ref().map(|end| end.recv_timeout(PATIENCE).expect("it hangs"));
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        ends
    }

    fn finish(&mut self) -> [TunnelReport; 2] {
        self.ends().map(|end| end.unwrap())
    }
}

fn bytes(count: usize, salt: u8) -> Vec<u8> {
    (0..count).map(|n| (n / 253) as u8 ^ (n as u8).wrapping_mul(salt)).collect()
}

/// Writes all of it and ends that direction.
fn write(socket: &UnixStream, bytes: &[u8]) {
    let mut socket = socket;
    socket.write_all(bytes).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
}

fn read(socket: &UnixStream) -> Vec<u8> {
    let (mut socket, mut all) = (socket, Vec::new());
    socket.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn channels_carry_both_directions_and_their_ends() {
    let rigs = BOTH.map(|engine| [Rig::new(engine), Rig::reversed(engine)]);
    for mut rig in rigs.into_iter().flatten() {
        let channels: Vec<_> = (0..9).map(|_| rig.channel()).collect();
        std::thread::scope(|scope| {
            for (n, (near, far)) in channels.iter().enumerate() {
                let (there, back) = (bytes(2_000_003 >> n, 3 + n as u8), bytes(700_001, 9));
                scope.spawn({
                    let (there, back) = (there.clone(), back.clone());
                    move || {
                        // Every second channel ends this way last.
                        if n % 2 == 1 {
                            assert!(read(near) == back);
                            write(near, &there);
                        } else {
                            write(near, &there);
                            assert!(read(near) == back);
                        }
                    }
                });
                scope.spawn(move || {
                    if n % 2 == 1 {
                        write(far, &back);
                        assert!(read(far) == there);
                    } else {
                        assert!(read(far) == there);
                        write(far, &back);
                    }
                });
            }
        });
        drop(channels);
        let [near, far] = rig.finish();
        let numbers = |report: &TunnelReport| {
            report.channels.iter().map(|channel| channel.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&near), (1..=9).collect::<Vec<_>>());
        assert_eq!(far.watched, Some(std::process::id() as i32));
        for (near, far) in near.channels.iter().zip(&far.channels) {
            assert_eq!(
                (near.sent_bytes, near.sent_frames),
                (far.received_bytes, far.received_frames)
            );
            assert_eq!(
                (near.received_bytes, near.received_frames),
                (far.sent_bytes, far.sent_frames)
            );
            assert!(!near.is_open && near.sent_bytes > 1 && near.received_bytes == 700_001);
        }
    }
}

#[test]
fn whoever_only_looks_is_no_migration() {
    let mut rig = Rig::new(EngineChoice::Uring);
    drop(rig.connect());
    let silent = rig.connect();
    std::thread::sleep(Duration::from_millis(50));
    drop(silent);
    let (near, far) = rig.channel();
    write(&near, b"");
    assert!(read(&far).is_empty());
    drop((near, far));
    assert_eq!(rig.finish()[1].channels.len(), 1);
}

#[test]
fn what_breaks_one_channel_ends_all_at_both_ends() {
    for engine in BOTH {
        let mut rig = Rig::new(engine);
        let (mut near, far) = rig.channel();
        let (other_near, other_far) = rig.channel();
        drop(far);
        // It may take more than is in the sockets until that shows.
        let block = bytes(1 << 20, 5);
        while near.write_all(&block).is_ok() {}
        assert!(read(&other_near).is_empty() && read(&other_far).is_empty());
        for end in rig.ends() {
            let error = end.unwrap_err().to_string();
            assert!(
                error.contains("channel 1 at unix:") && error.contains("see its log"),
                "{error}"
            );
        }
    }
}

#[test]
fn what_a_hypervisor_that_lives_leaves_unread_at_the_end_is_no_failure() {
    for engine in BOTH {
        let mut rig = Rig::new(engine);
        let (near, far) = rig.channel();
        write(&near, b"what nobody will read");
        // It is there, and the close behind it resets the connection.
        let mut fds = [PollFd::new(far.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        while rig.progress[1].channels()[0].received_bytes < 22 {
            std::thread::yield_now();
        }
        drop(far);
        assert!(read(&near).is_empty());
        for report in rig.finish() {
            assert_eq!(report.channels.len(), 1, "{engine:?}");
        }
    }
}

#[test]
fn a_cut_never_looks_like_an_end() {
    for engine in BOTH {
        for _ in 0..10 {
            let mut rig = Rig::new(engine);
            let (near, far) = rig.channel();
            rig.cancel.cancel();
            for end in rig.ends() {
                assert!(end.unwrap_err().is_cancelled());
            }
            // CONFIRM and one STREAM, no STREAM_END.
            let came = rig.progress[1].channels()[0];
            assert_eq!((came.received_frames, came.received_bytes), (2, 1), "{engine:?}");
            drop((near, far));
        }
    }
}

#[test]
fn a_join_that_was_seen_and_is_sent_again_harms_nobody() {
    let (seen, joins) = channel();
    let mut rig = Rig::with(Config::default(), |address| {
        let recorder = TcpListener::bind("127.0.0.1:0").unwrap();
        let shown = recorder.local_addr().unwrap().to_string();
        let to = address.to_owned();
        std::thread::spawn(move || {
            for near in recorder.incoming().map_while(std::result::Result::ok) {
                let (mut near, mut far) = (near, TcpStream::connect(&to).unwrap());
                let mut first = [0; DIALLER_HELLO_BYTES];
                near.read_exact(&mut first).unwrap();
                far.write_all(&first).unwrap();
                let _ = seen.send(first);
                let (mut near2, mut far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut near, &mut far));
                std::thread::spawn(move || std::io::copy(&mut far2, &mut near2));
            }
        });
        shown
    });
    let (near, far) = rig.channel();
    let seen: Vec<_> = joins.try_iter().collect();
    assert_eq!(seen.len(), 2, "the open and the join");
    for first in seen {
        let mut again = TcpStream::connect(&rig.address).unwrap();
        again.write_all(&first).unwrap();
        again.set_read_timeout(Some(PATIENCE)).unwrap();
        // Both were answered before, and are dropped.
        let mut answer = Vec::new();
        let _ = again.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    let (second_near, second_far) = rig.channel();
    for (near, far) in [(&near, &far), (&second_near, &second_far)] {
        write(near, b"on it goes");
        assert_eq!(read(far), b"on it goes");
    }
    drop((near, far, second_near, second_far));
    rig.finish();
}

#[test]
fn a_channel_that_the_other_end_does_not_take_is_no_wrong_secret() {
    let mut rig = Rig::with(Config::default(), |address| {
        let relay = TcpListener::bind("127.0.0.1:0").unwrap();
        let shown = relay.local_addr().unwrap().to_string();
        let to = address.to_owned();
        std::thread::spawn(move || {
            // The first connection passes, what follows is closed.
            let (mut near, mut far) = (relay.accept().unwrap().0, TcpStream::connect(&to).unwrap());
            let (mut near2, mut far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut near, &mut far));
            std::thread::spawn(move || std::io::copy(&mut far2, &mut near2));
            relay.incoming().for_each(drop);
        });
        shown
    });
    rig.connect().write_all(&[7]).unwrap();
    let [near, far] = rig.ends().map(|end| end.unwrap_err());
    assert!(!near.is_authentication() && near.to_string().contains("while it joined"), "{near}");
    assert!(far.to_string().contains("refused to go on"), "{far}");
}

#[test]
fn an_idle_and_a_slow_tunnel_outlive_the_shortest_peer_timeout() {
    let peer_timeout = crate::config::PEER_TIMEOUT_MIN;
    let config = Config { peer_timeout, ..Config::default() };
    let mut idle = Rig::with(config.clone(), str::to_owned);
    let (near, far) = idle.channel();
    // The source's end has ended long before the target's hypervisor reads the rest.
    let mut slow = Rig::with(config, str::to_owned);
    let (slow_near, slow_far) = slow.channel();
    slow_far.shutdown(Shutdown::Write).unwrap();
    let rest = slow.fill(&slow_near);
    slow_near.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(2 * peer_timeout);
    write(&near, b"still there");
    assert_eq!(read(&far), b"still there");
    let is_open = slow.progress.each_ref().map(|end| end.channels()[0].is_open);
    assert_eq!(is_open, [false, true]);
    assert_eq!(read(&slow_far).len(), rest);
    drop((near, far, slow_near, slow_far));
    idle.finish();
    slow.finish();
}
