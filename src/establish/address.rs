//! Where two hosts meet, as text.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{ConfigError, Error, Result, SystemError};

/// An address of any family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT` or `[V6]:PORT`: a name, which may mean several addresses, or an IP address,
    /// which may have a scope (`[fe80::1%eth0]:7800`).
    Net {
        /// Without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `vsock:CID:PORT`; none is any of this machine's, to listen at.
    Vsock {
        /// The machine (vsock(7)).
        cid: Option<u32>,
        /// Its port.
        port: u32,
    },
    /// `fd:N`: a socket that the control plane passed. It stays the caller's; a duplicate is used.
    Descriptor(RawFd),
    /// `systemd`: the first socket of a socket activation (sd_listen_fds(3)).
    Systemd,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let wanted = "unix:PATH";
            return match path {
                "" => Err(wrong(text, wanted, "name the path of a socket")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if let Some(rest) = text.strip_prefix("vsock:") {
            return vsock(rest).ok_or_else(|| {
                let remedy = "CID is a machine's number, or any to listen; 2 is the host";
                wrong(text, "vsock:CID:PORT", remedy)
            });
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return match number.parse() {
                Ok(number) if number >= 0 => Ok(Self::Descriptor(number)),
                _ => Err(wrong(text, "fd:N", "N is the number of a descriptor that is open")),
            };
        }
        if text == "systemd" {
            return Ok(Self::Systemd);
        }
        net(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Net { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid: Some(cid), port } => write!(f, "vsock:{cid}:{port}"),
            Self::Vsock { cid: None, port } => write!(f, "vsock:any:{port}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
            Self::Systemd => f.write_str("systemd"),
        }
    }
}

fn net(text: &str) -> Result<Address> {
    let wanted = "HOST:PORT, [V6]:PORT, unix:PATH, vsock:CID:PORT, fd:N or systemd";
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(wrong(text, wanted, "add the port"));
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_bare_v6 = bracketed.is_none() && host.contains(':');
    if is_bare_v6 {
        return Err(wrong(text, wanted, "put an IPv6 address in brackets: [::1]:7800"));
    }
    let host = bracketed.unwrap_or(host);
    let Ok(port) = port.parse() else {
        return Err(wrong(text, wanted, "the port is a number from 0 to 65535"));
    };
    if host.is_empty() || host.contains(['[', ']', '/', ' ']) {
        let remedy = "HOST is a name, an IPv4 address or an IPv6 address in brackets";
        return Err(wrong(text, wanted, remedy));
    }
    Ok(Address::Net { host: host.to_owned(), port })
}

fn vsock(text: &str) -> Option<Address> {
    let (cid, port) = text.split_once(':')?;
    let port = port.parse().ok()?;
    let cid = if cid == "any" { None } else { Some(cid.parse().ok()?) };
    Some(Address::Vsock { cid, port })
}

/// What a name means now. Blocks for as long as the resolver does.
pub(super) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let shown = Address::Net { host: host.to_owned(), port }.to_string();
    let found = (host, port).to_socket_addrs().map_err(|e| {
        let remedy = format!("{e}: HOST:PORT is wanted, of a host that is known");
        SystemError::from_io("resolve", &*shown, &e).remedy(remedy)
    })?;
    let mut addresses: Vec<_> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match addresses.is_empty() {
        true => Err(SystemError::from_errno("resolve", shown, 0).remedy("no address").into()),
        false => Ok(addresses),
    }
}

/// The addresses and ports that outgoing connections may come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Local {
    /// Port 0; none is any address.
    pub(super) address: Option<SocketAddr>,
    /// From and to, none is any.
    pub(super) ports: Option<(u16, u16)>,
}

impl FromStr for Local {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = "ADDRESS, ADDRESS:PORT, ADDRESS:LOW-HIGH or :LOW-HIGH";
        let bad = |remedy: &str| {
            Error::from(ConfigError {
                key: "bind",
                found: format!("\"{text}\""),
                wanted: wanted.to_owned(),
                remedy: remedy.to_owned(),
            })
        };
        // An IPv6 address may stand alone.
        let alone = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let is_alone = alone.parse::<IpAddr>().is_ok() || is_scoped(alone);
        let (address, ports) = if is_alone {
            (alone, None)
        } else {
            let (address, ports) = text
                .rsplit_once(':')
                .ok_or_else(|| bad("ADDRESS is a numeric address of this host, not a name"))?;
            let address =
                address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            (address, Some(ports))
        };
        let ports = ports
            .map(|ports| {
                let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
                match (low.parse::<u16>(), high.parse::<u16>()) {
                    (Ok(low), Ok(high)) if 0 < low && low <= high => Ok((low, high)),
                    _ => Err(bad("ports are numbers from 1 to 65535, the lower one first")),
                }
            })
            .transpose()?;
        let address = match address {
            "" => None,
            scoped if is_scoped(scoped) => resolve(scoped, 0)?.into_iter().next(),
            numeric => match numeric.parse::<IpAddr>() {
                Ok(ip) => Some(SocketAddr::new(ip, 0)),
                Err(_) => return Err(bad("ADDRESS is a numeric address of this host, not a name")),
            },
        };
        Ok(Self { address, ports })
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(SocketAddr::V6(v6)) => write!(f, "[{}]", v6.ip())?,
            Some(SocketAddr::V4(v4)) => write!(f, "{}", v4.ip())?,
            None => {}
        }
        match self.ports {
            Some((low, high)) if low == high => write!(f, ":{low}"),
            Some((low, high)) => write!(f, ":{low}-{high}"),
            None => Ok(()),
        }
    }
}

fn is_scoped(text: &str) -> bool {
    let address = text.split_once('%').map(|(address, _)| address);
    address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

fn wrong(found: &str, wanted: &str, remedy: &str) -> Error {
    let found = format!("\"{found}\"");
    ConfigError { key: "address", found, wanted: wanted.to_owned(), remedy: remedy.to_owned() }
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_as_it_is_written() {
        let net = |host: &str, port| Address::Net { host: host.to_owned(), port };
        for (text, address) in [
            ("host.example:7800", net("host.example", 7800)),
            ("192.0.2.1:0", net("192.0.2.1", 0)),
            ("[::1]:7800", net("::1", 7800)),
            ("[fe80::1%eth0]:7800", net("fe80::1%eth0", 7800)),
            ("unix:/run/a:b", Address::Unix("/run/a:b".into())),
            ("vsock:2:7800", Address::Vsock { cid: Some(2), port: 7800 }),
            ("vsock:any:4000000000", Address::Vsock { cid: None, port: 4_000_000_000 }),
            ("fd:3", Address::Descriptor(3)),
            ("systemd", Address::Systemd),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_told_with_what_would_be_one() {
        for (text, told) in [
            ("host", "add the port"),
            ("", "add the port"),
            ("host:http", "from 0 to 65535"),
            ("host:65536", "from 0 to 65535"),
            ("::1:7800", "in brackets"),
            ("[::1]", "in brackets"),
            (":7800", "HOST is a name"),
            ("[::1:7800", "in brackets"),
            ("unix:", "name the path"),
            ("vsock:7800", "CID is a machine's number"),
            ("vsock:all:1", "CID is a machine's number"),
            ("fd:-1", "number of a descriptor"),
            ("fd:x", "number of a descriptor"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(matches!(error, Error::Config(_)), "{error:?}");
            let error = error.to_string();
            assert!(error.contains(told) && error.contains(&format!("\"{text}\"")), "{error}");
        }
    }

    #[test]
    fn local_addresses_and_ports() {
        let at = |text: &str| Some(SocketAddr::new(text.parse().unwrap(), 0));
        for (text, address, ports) in [
            ("192.0.2.1", at("192.0.2.1"), None),
            ("192.0.2.1:70", at("192.0.2.1"), Some((70, 70))),
            ("192.0.2.1:70-79", at("192.0.2.1"), Some((70, 79))),
            (":70-79", None, Some((70, 79))),
            (":70", None, Some((70, 70))),
            ("::1", at("::1"), None),
            ("[::1]", at("::1"), None),
            ("[::1]:70-79", at("::1"), Some((70, 79))),
        ] {
            assert_eq!(text.parse::<Local>().unwrap(), Local { address, ports }, "{text}");
        }
        let scoped: Local = "[fe80::1%1]:70".parse().unwrap();
        assert!(matches!(scoped.address, Some(SocketAddr::V6(v6)) if v6.scope_id() == 1));
        for text in ["", "name", "name:70", ":79-70", ":0-9", ":", "192.0.2.1:x"] {
            let error = text.parse::<Local>().unwrap_err().to_string();
            assert!(error.contains("bind: found"), "{error}");
        }
    }
}
