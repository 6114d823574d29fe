//! What a certificate says, in words. For messages alone: webpki decides.

use rustls::pki_types::UnixTime;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{
    ASN1Time, CertificateRevocationList, FromDer, GeneralName, ParsedExtension,
    SubjectPublicKeyInfo, X509Certificate, X509Version,
};
use x509_parser::public_key::PublicKey;

use super::peer_name;
use crate::error::printable;

/// Names that are shown of one certificate, and characters of one name.
const NAMES_MAX: usize = 8;
const NAME_CHARS_MAX: usize = 253;
const DAY_S: i64 = 24 * 60 * 60;

/// What a certificate says.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) subject: String,
    pub(super) issuer: String,
    /// Its subjectAltName: DNS names and addresses.
    pub(super) names: Vec<String>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    /// Seconds since 1970.
    pub(super) not_after: i64,
    /// Basic constraints, and key usage where it has some.
    pub(super) is_ca: bool,
    /// The extended key usage, where it has some.
    pub(super) usages: Option<Vec<&'static str>>,
    pub(super) key: String,
    pub(super) fingerprint: [u8; 32],
    /// X.509 version 3, which has extensions.
    pub(super) has_extensions: bool,
}

impl Facts {
    /// Of a certificate in DER; `None` where it is none.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        let signs = |usage: &x509_parser::extensions::KeyUsage| usage.key_cert_sign();
        let key_usage = certificate.key_usage().ok()?.is_none_or(|usage| signs(usage.value));
        rest.is_empty().then(|| Self {
            subject: clean(&certificate.subject().to_string()),
            issuer: clean(&certificate.issuer().to_string()),
            names: names(&certificate),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_ca: certificate.is_ca() && key_usage,
            usages: usages(&certificate),
            key: key(certificate.public_key()),
            fingerprint: fingerprint(der),
            has_extensions: certificate.version() == X509Version::V3,
        })
    }

    /// From when to when it is valid.
    pub(super) fn validity(&self) -> String {
        format!("valid from {} to {}", date(self.not_before), date(self.not_after))
    }

    /// Its names for a message; what it lacks where it has none.
    pub(super) fn shown_names(&self) -> String {
        match self.names.len() {
            0 => "no subjectAltName".to_owned(),
            more if more > NAMES_MAX => {
                format!("{} and {} more", self.names[..NAMES_MAX].join(", "), more - NAMES_MAX)
            }
            _ => self.names.join(", "),
        }
    }

    /// Its fingerprint as `--peer` reads it.
    pub(super) fn shown_fingerprint(&self) -> String {
        peer_name::shown(&self.fingerprint)
    }
}

/// What a revocation list says.
pub(super) struct ListFacts<'a>(CertificateRevocationList<'a>);

impl<'a> ListFacts<'a> {
    /// Of a list in DER; `None` where it is none.
    pub(super) fn of(der: &'a [u8]) -> Option<Self> {
        CertificateRevocationList::from_der(der).ok().map(|(_, list)| Self(list))
    }

    /// Who made it.
    pub(super) fn issuer(&self) -> String {
        clean(&self.0.issuer().to_string())
    }

    /// Who made it, in DER.
    pub(super) fn issuer_der(&self) -> &[u8] {
        self.0.issuer().as_raw()
    }

    /// Seconds since 1970; a list without an end counts as past it.
    pub(super) fn next_update(&self) -> i64 {
        self.0.next_update().map_or(0, |time| time.timestamp())
    }

    /// How many certificates it revokes.
    pub(super) fn revoked(&self) -> usize {
        self.0.iter_revoked_certificates().count()
    }

    /// What is signed, and the signature.
    pub(super) fn signed(&self) -> (&[u8], &[u8]) {
        (self.0.tbs_cert_list.as_ref(), &self.0.signature_value.data)
    }
}

/// The subject of a certificate in DER.
pub(super) fn subject_der(der: &[u8]) -> Vec<u8> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate.subject().as_raw().to_vec())
        .unwrap_or_default()
}

/// The SHA-256 of a certificate.
pub(super) fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// The clock of this machine in seconds since 1970.
pub(super) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// Whole days from `now` to `then`.
pub(super) fn days_left(now: UnixTime, then: i64) -> i64 {
    then.saturating_sub(seconds(now)) / DAY_S
}

/// A point in time as people write it.
pub(super) fn date(seconds: i64) -> String {
    let Ok(time) = ASN1Time::from_timestamp(seconds) else { return format!("{seconds} s") };
    let time = time.to_datetime();
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second) = time.to_hms();
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A text of a certificate, for people.
pub(super) fn clean(text: &str) -> String {
    printable(text).chars().take(NAME_CHARS_MAX).collect()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(clean(name)),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    };
    found.value.general_names.iter().filter_map(name).collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from);
    v4.or(v6).ok().map(|address| address.to_string())
}

fn usages(certificate: &X509Certificate<'_>) -> Option<Vec<&'static str>> {
    let ParsedExtension::ExtendedKeyUsage(usage) = certificate
        .extensions()
        .iter()
        .map(|extension| extension.parsed_extension())
        .find(|parsed| matches!(parsed, ParsedExtension::ExtendedKeyUsage(_)))?
    else {
        return None;
    };
    let all = [
        (usage.server_auth, "serverAuth"),
        (usage.client_auth, "clientAuth"),
        (usage.any, "anyExtendedKeyUsage"),
        (usage.code_signing, "codeSigning"),
        (usage.email_protection, "emailProtection"),
        (usage.time_stamping, "timeStamping"),
        (usage.ocsp_signing, "OCSPSigning"),
        (!usage.other.is_empty(), "others"),
    ];
    Some(all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect())
}

fn key(info: &SubjectPublicKeyInfo<'_>) -> String {
    let curve = || {
        let oid = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
        Some(match oid.to_id_string().as_str() {
            "1.2.840.10045.3.1.7" => "ECDSA P-256".to_owned(),
            "1.3.132.0.34" => "ECDSA P-384".to_owned(),
            "1.3.132.0.35" => "ECDSA P-521".to_owned(),
            other => format!("ECDSA on curve {other}"),
        })
    };
    match (info.algorithm.algorithm.to_id_string().as_str(), info.parsed()) {
        (_, Ok(PublicKey::RSA(rsa))) => format!("RSA {} bits", rsa.key_size()),
        ("1.2.840.10045.2.1", _) => curve().unwrap_or_else(|| "ECDSA".to_owned()),
        ("1.3.101.112", _) => "Ed25519".to_owned(),
        ("1.3.101.113", _) => "Ed448".to_owned(),
        (other, _) => format!("algorithm {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_readable_and_texts_are_tame() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(1_709_210_096), "2024-02-29 12:34:56 UTC");
        assert_eq!(clean("a\x1b[2Jb\n\u{202e}c"), "a[2Jbc");
        assert_eq!(clean(&"x".repeat(1000)).len(), NAME_CHARS_MAX);
        assert!(Facts::of(b"nothing").is_none());
    }
}
