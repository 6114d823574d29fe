//! SHIM until the sockets branch is merged.
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::PollFlags;

use crate::error::{Result, SystemError};

pub type PeerAddress = Option<IpAddr>;

pub struct Door(TcpListener);

impl Door {
    pub fn bind(address: &str) -> Result<Self> {
        let failed = |operation, e: &std::io::Error| SystemError::from_io(operation, address, e);
        let socket = TcpListener::bind(address).map_err(|e| match e.raw_os_error() {
            Some(_) => failed("bind", &e),
            None => failed("bind", &e).remedy(format!("{e}: ADDRESS:PORT of this host is wanted")),
        })?;
        socket.set_nonblocking(true).map_err(|e| failed("fcntl", &e))?;
        Ok(Self(socket))
    }
    pub fn local_address(&self) -> Result<SocketAddr> {
        let address = self.0.local_addr();
        Ok(address.map_err(|e| SystemError::from_io("getsockname", "listener", &e))?)
    }
    pub fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        vec![(self.0.as_fd(), PollFlags::POLLIN)]
    }
    pub fn accept(&mut self) -> Result<Option<(TcpStream, PeerAddress)>> {
        loop {
            match self.0.accept() {
                Ok((socket, from)) => {
                    if socket.set_nonblocking(true).is_ok() {
                        return Ok(Some((socket, Some(from.ip()))));
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => return Err(SystemError::from_io("accept", "listener", &e).into()),
            }
        }
    }
}
