//! Connections of lanes.

use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, setsockopt, sockopt};

use super::TICK;
use crate::cancel::Canceller;
use crate::config::Config;
use crate::engine;
use crate::error::{Error, Result, SystemError};

/// A connection to a listener, non-blocking, with its options set.
pub fn connect(
    address: &str,
    config: &Config,
    deadline: Instant,
    cancel: &Canceller,
) -> Result<TcpStream> {
    cancel.check()?;
    let failed = |operation, e: &std::io::Error| SystemError::from_io(operation, address, e);
    let mut last = None;
    let resolved = address.to_socket_addrs().map_err(|e| {
        failed("resolve", &e).remedy(format!("{e}: HOST:PORT is wanted, of a host that is known"))
    })?;
    for resolved in resolved {
        cancel.check()?;
        let left = deadline.saturating_duration_since(Instant::now()).max(TICK);
        match TcpStream::connect_timeout(&resolved, left) {
            Ok(socket) => {
                tune(&socket, config)?;
                socket.set_nonblocking(true).map_err(|e| failed("fcntl", &e))?;
                return Ok(socket);
            }
            Err(e) => last = Some(failed("connect", &e)),
        }
    }
    Err(last
        .unwrap_or_else(|| SystemError::from_errno("resolve", address, 0).remedy("no address"))
        .into())
}

/// Where the connections that follow this one go: a name may mean several hosts, or another one
/// meanwhile.
pub fn peer_of(socket: &TcpStream, address: &str) -> String {
    socket.peer_addr().map_or_else(|_| address.to_owned(), |peer| peer.to_string())
}

/// Options of a lane's socket (tcp(7)). Not TCP_USER_TIMEOUT: it ends connections whose window is
/// closed, as a target's is while its disk is busy; heartbeats tell the living from the dead.
pub(super) fn tune(socket: &impl AsFd, config: &Config) -> Result<()> {
    let failed =
        |name, e: nix::Error| Error::from(SystemError::from_errno("setsockopt", name, e as i32));
    setsockopt(socket, sockopt::TcpNoDelay, &true).map_err(|e| failed("TCP_NODELAY", e))?;
    setsockopt(socket, sockopt::KeepAlive, &true).map_err(|e| failed("SO_KEEPALIVE", e))?;
    engine::set_unsent_limit(socket, engine::UNSENT_BYTES_MAX)?;
    if config.socket_buffer_bytes > 0 {
        let bytes = config.socket_buffer_bytes;
        setsockopt(socket, sockopt::SndBuf, &bytes).map_err(|e| failed("SO_SNDBUF", e))?;
        setsockopt(socket, sockopt::RcvBuf, &bytes).map_err(|e| failed("SO_RCVBUF", e))?;
    }
    if let Some(name) = &config.congestion {
        setsockopt(socket, sockopt::TcpCongestion, &std::ffi::OsString::from(name)).map_err(
            |e| {
                Error::from(
                    SystemError::from_errno(
                        "setsockopt",
                        format!("TCP_CONGESTION {name}"),
                        e as i32,
                    )
                    .remedy("see sysctl net.ipv4.tcp_available_congestion_control"),
                )
            },
        )?;
    }
    Ok(())
}

/// As for a lane's own connection, where the socket is of TCP.
pub fn tune_if_tcp(socket: &(impl AsFd + AsRawFd), config: &Config) -> Result<()> {
    let protocol = nix::sys::socket::getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .map_err(|e| SystemError::from_errno("getsockname", "stream", e as i32))?;
    match protocol.family() {
        Some(AddressFamily::Inet | AddressFamily::Inet6) => tune(socket, config),
        _ => Ok(()),
    }
}
