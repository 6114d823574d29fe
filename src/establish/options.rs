//! Options of the sockets that lanes are made of, and what is asked of sockets that came from
//! somebody else.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt,
    setsockopt, sockopt,
};

use crate::config::Config;
use crate::engine;
use crate::error::{ConfigError, Error, Result, SystemError};

/// Most seconds of TCP_KEEPIDLE and TCP_KEEPINTVL, and most probes (tcp(7)).
const KEEPALIVE_S_MAX: u64 = 32767;
const KEEPALIVE_PROBES_MAX: u64 = 127;

/// Options of a lane's TCP socket (tcp(7)). Not TCP_USER_TIMEOUT: it ends connections whose window
/// is closed, as a target's is while its disk is busy. Heartbeats, keepalive and
/// [`engine::Pulse`] tell the living from the dead.
pub(super) fn tune(socket: &impl AsFd, config: &Config) -> Result<()> {
    let failed =
        |name, e: nix::Error| Error::from(SystemError::from_errno("setsockopt", name, e as i32));
    setsockopt(socket, sockopt::TcpNoDelay, &true).map_err(|e| failed("TCP_NODELAY", e))?;
    setsockopt(socket, sockopt::KeepAlive, &true).map_err(|e| failed("SO_KEEPALIVE", e))?;
    let (idle_s, interval_s, probes) = keepalive(config.peer_timeout);
    setsockopt(socket, sockopt::TcpKeepIdle, &idle_s).map_err(|e| failed("TCP_KEEPIDLE", e))?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval_s)
        .map_err(|e| failed("TCP_KEEPINTVL", e))?;
    setsockopt(socket, sockopt::TcpKeepCount, &probes).map_err(|e| failed("TCP_KEEPCNT", e))?;
    engine::set_probe_interval_max(socket, config.peer_timeout / 4);
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
    if family(socket)?.is_some_and(is_internet) { tune(socket, config) } else { Ok(()) }
}

/// Seconds until an idle connection is probed, between probes, and how many may stay without an
/// answer: together what the other end may be silent, to the second.
fn keepalive(peer_timeout: Duration) -> (u32, u32, u32) {
    let all_s = peer_timeout.as_secs().max(2);
    let idle_s = (all_s / 2).min(KEEPALIVE_S_MAX);
    let interval_s = (all_s / 8).clamp(1, KEEPALIVE_S_MAX);
    let probes = ((all_s - idle_s) / interval_s).clamp(1, KEEPALIVE_PROBES_MAX);
    (idle_s as u32, interval_s as u32, probes as u32)
}

/// Whether it is a stream socket that is connected.
///
/// # Errors
///
/// [`Error::Config`] that says what it is instead.
pub(super) fn check_connected(socket: &OwnedFd) -> Result<()> {
    check_stream(socket)?;
    match getpeername::<SockaddrStorage>(socket.as_raw_fd()) {
        Ok(_) => Ok(()),
        Err(e) => {
            let remedy = "connect or accept it before it is handed over";
            Err(wrong(socket, &format!("not connected ({})", e.desc()), "connected", remedy))
        }
    }
}

/// Whether it is a socket that connections are accepted from.
///
/// # Errors
///
/// As [`check_connected`].
pub(super) fn check_listening(socket: &OwnedFd) -> Result<()> {
    check_stream(socket)?;
    match getsockopt(socket, sockopt::AcceptConn) {
        Ok(true) => Ok(()),
        _ => {
            let remedy = "call listen(2) before it is handed over; connected sockets are handed \
                          over as such";
            Err(wrong(socket, "not listening (SO_ACCEPTCONN is 0)", "listening", remedy))
        }
    }
}

fn check_stream(socket: &OwnedFd) -> Result<()> {
    let remedy = "hand over a stream socket (SOCK_STREAM)";
    match getsockopt(socket, sockopt::SockType) {
        Ok(SockType::Stream) => Ok(()),
        Ok(other) => Err(wrong(socket, &format!("a socket of {other:?}"), "a stream", remedy)),
        Err(e) => Err(wrong(socket, &format!("no socket ({})", e.desc()), "a stream", remedy)),
    }
}

fn wrong(socket: &OwnedFd, found: &str, wanted: &str, remedy: &str) -> Error {
    ConfigError {
        key: "socket",
        found: format!("descriptor {}: {found}", socket.as_raw_fd()),
        wanted: wanted.to_owned(),
        remedy: remedy.to_owned(),
    }
    .into()
}

pub(super) fn is_internet(family: AddressFamily) -> bool {
    matches!(family, AddressFamily::Inet | AddressFamily::Inet6)
}

fn family(socket: &impl AsRawFd) -> Result<Option<AddressFamily>> {
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .map_err(|e| SystemError::from_errno("getsockname", "stream", e as i32))?;
    Ok(name.family())
}

/// This end of a TCP socket; none of another family.
pub(super) fn local_address(socket: &impl AsRawFd) -> Option<SocketAddr> {
    internet(&getsockname(socket.as_raw_fd()).ok()?)
}

/// The other end of a TCP socket; none of another family.
pub(super) fn peer_address(socket: &impl AsRawFd) -> Option<SocketAddr> {
    internet(&getpeername(socket.as_raw_fd()).ok()?)
}

fn internet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_peer_is_probed_in_time() {
        assert_eq!(keepalive(Duration::from_secs(30)), (15, 3, 5));
        for seconds in 1..200_000 {
            let (idle, interval, probes) = keepalive(Duration::from_secs(seconds));
            assert!(idle > 0 && interval > 0 && probes > 0);
            let all = u64::from(idle) + u64::from(interval) * u64::from(probes);
            assert!(all <= seconds.max(2), "{seconds}: {all}");
        }
    }

    #[test]
    fn a_tcp_socket_gets_them_all() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config {
            peer_timeout: Duration::from_secs(8),
            congestion: Some("reno".to_owned()),
            ..Config::default()
        };
        tune(&listener, &config).unwrap();
        assert_eq!(getsockopt(&listener, sockopt::TcpKeepIdle), Ok(4));
        assert_eq!(getsockopt(&listener, sockopt::TcpKeepInterval), Ok(1));
        assert_eq!(getsockopt(&listener, sockopt::TcpKeepCount), Ok(4));
        assert_eq!(getsockopt(&listener, sockopt::TcpUserTimeout), Ok(0));
        assert_eq!(getsockopt(&listener, sockopt::TcpNoDelay), Ok(true));
        let name = getsockopt(&listener, sockopt::TcpCongestion).unwrap();
        assert!(name.to_string_lossy().starts_with("reno"), "{name:?}");
        let nobody = Config { congestion: Some("nobody".to_owned()), ..config };
        let error = tune(&listener, &nobody).unwrap_err().to_string();
        assert!(error.contains("tcp_available_congestion_control"), "{error}");
    }

    #[test]
    fn sockets_of_others_are_looked_at() {
        let listener = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        check_listening(&listener).unwrap();
        let idle = check_connected(&listener).unwrap_err().to_string();
        assert!(idle.contains("not connected"), "{idle}");
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = OwnedFd::from(near);
        check_connected(&near).unwrap();
        let error = check_listening(&near).unwrap_err().to_string();
        assert!(error.contains("SO_ACCEPTCONN is 0"), "{error}");
        let datagram = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let error = check_connected(&datagram).unwrap_err().to_string();
        assert!(error.contains("Datagram") && error.contains("SOCK_STREAM"), "{error}");
        let error = check_connected(&tempfile::tempfile().unwrap().into()).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
    }
}
