//! Unix sockets that have a file.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{Mode, fchmod};

use crate::error::{Error, Result, SystemError};

/// The file of a socket. It goes when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that no other one is removed.
    id: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.id;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes a path for a socket of mode 0600. Nobody can connect until listen(2).
///
/// # Errors
///
/// [`Error::System`] where there is something at `path`, or it is longer than a socket's address
/// may be (107 bytes, unix(7)).
pub fn bind_unix(path: &Path) -> Result<(OwnedFd, SocketFile)> {
    let shown = path.display().to_string();
    let failed = |operation, e: nix::Error| SystemError::from_errno(operation, &*shown, e as i32);
    let address = unix_address(path)?;
    let socket = unix_socket(path, SockFlag::empty())?;
    // The mode of the socket is that of the file that bind makes, in one step (net/unix).
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed("fchmod", e))?;
    bind(socket.as_raw_fd(), &address).map_err(|e| {
        let remedy = match e {
            nix::Error::EADDRINUSE if !is_socket(path) => {
                "something is there that is no socket: name another place"
            }
            nix::Error::EADDRINUSE => {
                "a socket is there: of another process, or of one that was killed: remove it then"
            }
            nix::Error::ENOENT => "make its directory first",
            _ => return failed("bind", e),
        };
        failed("bind", e).remedy(remedy)
    })?;
    let found = fs::symlink_metadata(path)
        .map_err(|e| Error::from(SystemError::from_io("stat", shown.clone(), &e)))?;
    Ok((socket, SocketFile { path: path.to_owned(), id: (found.dev(), found.ino()) }))
}

/// Removes the socket of a process that was killed: one that nobody listens at.
pub(super) fn remove_stale(path: &Path) -> Result<()> {
    if !is_socket(path) {
        return Ok(());
    }
    let probe = unix_socket(path, SockFlag::SOCK_NONBLOCK)?;
    match connect(probe.as_raw_fd(), &unix_address(path)?) {
        Err(nix::Error::ECONNREFUSED) => {
            tracing::info!(path = %path.display(), "replaces a socket that nobody listens at");
            fs::remove_file(path)
                .map_err(|e| SystemError::from_io("unlink", path.display().to_string(), &e).into())
        }
        // Somebody does, or bind will say what is there.
        _ => Ok(()),
    }
}

/// The address of a path.
///
/// # Errors
///
/// [`Error::System`] where it is longer than 107 bytes (unix(7)).
pub fn unix_address(path: &Path) -> Result<UnixAddr> {
    UnixAddr::new(path).map_err(|e| {
        let bytes = path.as_os_str().len();
        SystemError::from_errno("bind", path.display().to_string(), e as i32)
            .remedy(format!("{bytes} bytes, a socket's path has 1 to 107: choose another place"))
            .into()
    })
}

/// A stream socket that is not connected; `path` is for the error.
///
/// # Errors
///
/// [`Error::System`] where there is no descriptor left.
pub fn unix_socket(path: &Path, flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)
        .map_err(|e| SystemError::from_errno("socket", path.display().to_string(), e as i32).into())
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}
