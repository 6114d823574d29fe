//! Whom a migration expects at the other end.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::ConfigError;

/// The name of the host at the other end, as its certificate must have it.
///
/// A certificate that chains to the CA is not yet permission: any host of the same CA has one. So
/// each end names the other, per migration.
///
/// ```
/// use sealane::PeerName;
///
/// assert_eq!("Target.example".parse(), Ok(PeerName::Dns("target.example".to_owned())));
/// assert_eq!("10.0.0.2".parse(), Ok(PeerName::Ip([10, 0, 0, 2].into())));
/// assert_eq!(
///     format!("sha256:{}", "AB:".repeat(31) + "AB").parse(),
///     Ok(PeerName::Sha256([0xab; 32]))
/// );
/// # Ok::<(), sealane::error::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// A DNS name of its subjectAltName. The common name is never looked at.
    Dns(String),
    /// An IP address of its subjectAltName.
    Ip(IpAddr),
    /// The SHA-256 of its certificate (DER), which must chain to the CA all the same.
    Sha256([u8; 32]),
}

/// In front of a fingerprint.
const SHA256: &str = "sha256:";

impl FromStr for PeerName {
    type Err = ConfigError;

    /// `NAME`, `ADDRESS` (v4 or v6), or `sha256:HEX` with or without colons, in any case.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if let Some((prefix, hex)) = text.split_at_checked(SHA256.len())
            && prefix.eq_ignore_ascii_case(SHA256)
        {
            return fingerprint(hex).map(Self::Sha256).map_err(|found| unfit(text, &found));
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Ip(address));
        }
        match check_dns(text) {
            Ok(()) => Ok(Self::Dns(text.to_ascii_lowercase())),
            Err(reason) => Err(unfit(text, reason)),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
            Self::Sha256(hash) => f.write_str(&shown(hash)),
        }
    }
}

#[cfg(feature = "certificates")]
impl PeerName {
    /// A caller can make a `Dns` of any text.
    pub(super) fn check(&self) -> Result<(), crate::Error> {
        match self {
            Self::Dns(name) => check_dns(name).map_err(|reason| unfit(name, reason).into()),
            Self::Ip(_) | Self::Sha256(_) => Ok(()),
        }
    }
}

/// A fingerprint as [`PeerName`] reads it.
pub(super) fn shown(hash: &[u8; 32]) -> String {
    hash.iter().fold(SHA256.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn fingerprint(hex: &str) -> Result<[u8; 32], String> {
    let digits: Vec<u8> = hex
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8).ok_or(c))
        .collect::<Result<_, _>>()
        .map_err(|c| format!("{c:?} is no hex digit"))?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    match bytes.try_into() {
        Ok(hash) if digits.len() == 64 => Ok(hash),
        _ => Err(format!("it has {} hex digits, and SHA-256 has 64", digits.len())),
    }
}

fn check_dns(name: &str) -> Result<(), &'static str> {
    let label = |label: &str| {
        let inside = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let bytes = label.as_bytes();
        matches!(bytes.len(), 1..=63)
            && bytes.iter().all(inside)
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    if name.contains('*') {
        return Err("a pattern names no host");
    }
    if name.contains(':') {
        return Err("it stands without a port, and a fingerprint begins with sha256:");
    }
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a fingerprint begins with sha256:");
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    match name.len() <= 253 && name.split('.').all(label) {
        true if last.bytes().all(|b| b.is_ascii_digit()) => Err("it is no whole address"),
        true => Ok(()),
        false => Err("no host has such a name"),
    }
}

fn unfit(text: &str, reason: &str) -> ConfigError {
    ConfigError {
        key: "peer",
        found: format!("{text:?}: {reason}"),
        wanted: "a DNS name, an IP address, or sha256: and 64 hex digits".to_owned(),
        remedy: "name the other host as its certificate does: `sealane pki check` there says how"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown_alike() {
        let hash = "0123456789abcdef".repeat(4);
        let colons: Vec<_> = (0..32).map(|i| hash[2 * i..2 * i + 2].to_uppercase()).collect();
        let same = [format!("sha256:{hash}"), format!("SHA256:{}", colons.join(":"))];
        let read: Vec<PeerName> = same.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(read[0], read[1]);
        assert_eq!(read[1].to_string(), same[0]);
        for (text, back) in [
            ("Host-1.example", "host-1.example"),
            ("localhost", "localhost"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:DB8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("_x.host", "_x.host"),
        ] {
            assert_eq!(text.parse::<PeerName>().unwrap().to_string(), back);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no host"),
            ("a..b", "no host"),
            ("-a", "no host"),
            ("a b", "no host"),
            ("höst", "no host"),
            ("*.example", "pattern"),
            ("host:4444", "without a port"),
            ("192.0.2", "no whole address"),
            ("sha256:abcd", "4 hex digits"),
            ("sha256:é", "no hex digit"),
            (&"ab".repeat(32), "begins with sha256:"),
        ] {
            let error = text.parse::<PeerName>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("pki check"), "{text}: {error}");
        }
        assert!(PeerName::Dns("a b".to_owned()).check().is_err());
    }
}
