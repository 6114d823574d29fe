//! The side of a tunnel that a hypervisor sees: unix sockets, and whether the process behind one
//! lives.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, MsgFlags, SockFlag, connect, listen, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::cancel::Canceller;
use crate::engine;
use crate::error::{Result, SystemError};
use crate::establish::{SocketFile, bind_unix, unix_address, unix_socket};

/// Connections that may wait to be accepted; a hypervisor opens one for each of its channels.
const BACKLOG: i32 = 256;
/// Room for bytes that the target's hypervisor has not taken yet.
const SEND_BUFFER_BYTES: usize = 2 << 20;
/// How often a wait looks whether somebody cancelled.
const TICK: Duration = Duration::from_millis(50);
/// How long a process is watched that may end because its migration failed.
const LIFE_WATCH: Duration = Duration::from_millis(500);
/// `flags` of proc_pid_stat(5): the process is on its way out. It may have terabytes to give back
/// until its pidfd says so.
const PF_EXITING: u64 = 4;

/// A unix socket (mode 0600) where the source's hypervisor connects to. Its file goes when this
/// is dropped.
pub struct LocalListener {
    socket: UnixListener,
    file: SocketFile,
}

impl LocalListener {
    /// Takes the path. Nobody can connect until [`Self::listen`].
    ///
    /// # Errors
    ///
    /// [`crate::Error::System`] where there is something at `path`, or it is longer than a socket's
    /// address may be (107 bytes, unix(7)).
    pub fn bind(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let (socket, file) = bind_unix(path)?;
        let socket = UnixListener::from(socket);
        let unblocked = socket.set_nonblocking(true);
        unblocked.map_err(|e| SystemError::from_io("fcntl", shown.clone(), &e))?;
        Ok(Self { socket, file })
    }

    /// From here on the hypervisor may connect.
    ///
    /// # Errors
    ///
    /// [`crate::Error::System`].
    pub fn listen(&self) -> Result<()> {
        let backlog = Backlog::new(BACKLOG).expect("no larger than what listen(2) allows");
        let shown = || self.path().display().to_string();
        listen(&self.socket, backlog)
            .map_err(|e| SystemError::from_errno("listen", shown(), e as i32).into())
    }

    /// Waits until somebody connects, who is left waiting for [`super::TunnelSource::serve`].
    ///
    /// # Errors
    ///
    /// [`crate::Error::Cancelled`].
    pub fn wait(&self, cancel: &Canceller) -> Result<()> {
        loop {
            cancel.check()?;
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, tick()).is_ok_and(|ready| ready > 0) {
                return Ok(());
            }
        }
    }

    /// Closes the connections that wait: nobody can serve them.
    ///
    /// # Errors
    ///
    /// [`crate::Error::System`].
    pub fn turn_away(&self) -> Result<()> {
        while let Some(socket) = self.accept()? {
            drop(socket);
        }
        Ok(())
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A connection, where one waits.
    pub(super) fn accept(&self) -> Result<Option<OwnedFd>> {
        match self.socket.accept() {
            Ok((socket, _)) => Ok(Some(socket.into())),
            Err(e) => {
                match e.kind() {
                    ErrorKind::WouldBlock
                    | ErrorKind::Interrupted
                    | ErrorKind::ConnectionAborted => Ok(None),
                    _ => Err(SystemError::from_io("accept", self.path().display().to_string(), &e)
                        .into()),
                }
            }
        }
    }
}

impl AsFd for LocalListener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a connection that was accepted has to say.
pub(super) enum FirstByte {
    /// Something.
    Here,
    /// Nothing until now.
    NotYet,
    /// Nothing, and it is closed.
    Never,
}

/// Looks for the first byte and leaves it there.
pub(super) fn first_byte(socket: &OwnedFd) -> FirstByte {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0], flags) {
        Ok(0) => FirstByte::Never,
        Ok(_) => FirstByte::Here,
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => FirstByte::NotYet,
        Err(_) => FirstByte::Never,
    }
}

/// A connection to the target's hypervisor. It may be slow to accept, so this waits for a while.
pub(super) fn connect_local(
    path: &Path,
    patience: Duration,
    cancel: &Canceller,
) -> Result<OwnedFd> {
    let shown = path.display().to_string();
    let failed = |operation, e: nix::Error| SystemError::from_errno(operation, &*shown, e as i32);
    let address = unix_address(path)?;
    let socket = unix_socket(path, SockFlag::empty())?;
    let limit = |time: Duration| {
        let time = TimeVal::microseconds(time.as_micros() as i64);
        setsockopt(&socket, sockopt::SendTimeout, &time).map_err(|e| failed("setsockopt", e))
    };
    // How long connect(2) waits while the listener's queue is full (unix(7), socket(7)).
    limit(TICK)?;
    // AF_UNIX calls a socket writable only while three quarters of its buffer are free: with room
    // for some frames its writer need not wait for each. The kernel caps it (wmem_max).
    setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES)
        .map_err(|e| failed("setsockopt", e))?;
    let deadline = Instant::now() + patience;
    loop {
        cancel.check()?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) if Instant::now() < deadline => {}
            Err(e) => {
                let remedy = match e {
                    nix::Error::ENOENT | nix::Error::ECONNREFUSED => {
                        "start the target's hypervisor first, and let it listen there"
                    }
                    nix::Error::EAGAIN => "the hypervisor there accepts nobody: see what it does",
                    _ => return Err(failed("connect", e).into()),
                };
                return Err(failed("connect", e).remedy(remedy).into());
            }
        }
    }
    limit(Duration::ZERO)?;
    Ok(socket)
}

/// Whether a socket could have this path.
///
/// # Errors
///
/// [`crate::Error::System`] where it is longer than 107 bytes (unix(7)).
pub fn check_socket_path(path: &Path) -> Result<()> {
    unix_address(path).map(drop)
}

/// The process at the other end of a unix socket.
pub(super) struct Process {
    id: i32,
    descriptor: OwnedFd,
}

impl Process {
    /// None where it cannot be told: in another PID namespace, for one.
    pub(super) fn behind(socket: &OwnedFd) -> Option<Self> {
        let peer = nix::sys::socket::getsockopt(socket, sockopt::PeerCredentials).ok()?;
        let id = rustix::process::Pid::from_raw(peer.pid())?;
        let flags = rustix::process::PidfdFlags::empty();
        let descriptor = rustix::process::pidfd_open(id, flags).ok()?;
        Some(Self { id: peer.pid(), descriptor })
    }

    pub(super) fn id(&self) -> i32 {
        self.id
    }

    /// Whether it ends soon, looked at for half a second.
    pub(super) fn ends(&self) -> bool {
        let deadline = Instant::now() + LIFE_WATCH;
        while Instant::now() < deadline {
            if self.has_ended() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.has_ended()
    }

    /// Whether its sockets ended because it was killed or failed: looked at as soon as one has. Its
    /// sockets are closed on its way out, so a process that closed one itself still lives, or ends
    /// with success. Where that cannot be known (another user's exit code; waited for on Linux
    /// before 6.15) it counts as a success: the target's end sees what became of the guest.
    pub(super) fn died(&self) -> bool {
        match self.stat() {
            Some(stat) => stat.is_exiting && stat.exit_code != 0,
            None => engine::exit_status(&self.descriptor).is_some_and(|status| status != 0),
        }
    }

    fn has_ended(&self) -> bool {
        self.is_gone() || self.stat().is_some_and(|stat| stat.is_exiting)
    }

    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// `state`, `flags` and `exit_code` of proc_pid_stat(5); none where it was waited for.
    fn stat(&self) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        // The name of the program may have blanks and parentheses.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let flags: u64 = fields.get(6)?.parse().ok()?;
        let exit_code = fields.get(49)?.parse().ok()?;
        Some(Stat { is_exiting: flags & PF_EXITING != 0, exit_code })
    }
}

struct Stat {
    is_exiting: bool,
    exit_code: i32,
}

pub(super) fn tick() -> PollTimeout {
    PollTimeout::try_from(TICK).expect("a short time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use rustix::process::PidfdFlags;

    #[test]
    fn a_listener_is_its_owners_alone_and_removes_its_own_file_only() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s");
        let listener = LocalListener::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        UnixStream::connect(&path).expect_err("nobody listens yet");
        listener.listen().unwrap();
        let _peer = UnixStream::connect(&path).unwrap();
        listener.wait(&Canceller::default()).unwrap();
        assert!(listener.accept().unwrap().is_some() && listener.accept().unwrap().is_none());
        let taken = LocalListener::bind(&path).err().unwrap().to_string();
        assert!(taken.contains("a socket is there"), "{taken}");
        drop(listener);
        assert!(!path.exists());

        let listener = LocalListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "of somebody else").unwrap();
        drop(listener);
        assert!(path.exists());
        let file = LocalListener::bind(&path).err().unwrap().to_string();
        assert!(file.contains("no socket: name another place"), "{file}");
        let nowhere = LocalListener::bind(&place.path().join("no/s")).err().unwrap().to_string();
        assert!(nowhere.contains("make its directory"), "{nowhere}");
        let long = LocalListener::bind(&place.path().join("x".repeat(108))).err().unwrap();
        assert!(long.to_string().contains("1 to 107"), "{long}");
    }

    #[test]
    fn nobody_to_connect_to_is_named_with_what_to_do() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s");
        let cancel = Canceller::default();
        let missing = connect_local(&path, Duration::ZERO, &cancel).err().unwrap().to_string();
        assert!(missing.contains("start the target's hypervisor"), "{missing}");
        // A queue that is full makes it wait, and give up.
        let full = LocalListener::bind(&path).unwrap();
        listen(&full.socket, Backlog::new(0).unwrap()).unwrap();
        let _first = connect_local(&path, Duration::ZERO, &cancel).unwrap();
        let error = connect_local(&path, Duration::from_millis(100), &cancel).err().unwrap();
        assert!(error.to_string().contains("accepts nobody"), "{error}");
    }

    #[test]
    fn a_process_that_ends_is_seen() {
        let (near, _far) = UnixStream::pair().unwrap();
        let ours = Process::behind(&near.into()).unwrap();
        assert_eq!(ours.id(), std::process::id() as i32);
        assert!(!ours.has_ended());
        let (mut child, process) = run("exec sleep 60");
        assert!(!process.has_ended() && !process.died());
        child.kill().unwrap();
        assert!(process.ends() && process.died());
        child.wait().unwrap();
        // Nobody knows its end any more, or the kernel does.
        let is_kept = engine::exit_status(&process.descriptor).is_some();
        assert!(process.ends() && process.died() == is_kept);
        let (mut child, process) = run("exit 0");
        assert!(process.ends() && !process.died(), "it ended with success");
        child.wait().unwrap();
        assert!(process.ends() && !process.died(), "it ended with success and was waited for");
        let (mut child, process) = run("exit 1");
        child.wait().unwrap();
        assert!(process.ends() && process.died() == is_kept);
    }

    fn run(program: &str) -> (std::process::Child, Process) {
        let child = std::process::Command::new("sh").args(["-c", program]).spawn().unwrap();
        let id = rustix::process::Pid::from_child(&child);
        let descriptor = rustix::process::pidfd_open(id, PidfdFlags::empty()).unwrap();
        (child, Process { id: id.as_raw_nonzero().get(), descriptor })
    }
}
