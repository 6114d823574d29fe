//! Why this host's own files cannot be used, in words with the remedy.

use std::path::Path;

use rustls::pki_types::UnixTime;

use super::check::Layout;
use super::facts::{Facts, date, seconds};
use super::finding::unfit;
use super::{End, lists};
use crate::error::Error;

/// Why this host's own certificate would not be accepted.
pub(super) fn refusal(
    layout: &Layout,
    cert: &Path,
    facts: &Facts,
    end: End,
    now: UnixTime,
    why: &webpki::Error,
) -> Error {
    use webpki::Error as E;
    let clock = date(seconds(now));
    let ca = layout.ca.display();
    match why {
        E::CertExpired { not_after, .. } => unfit(
            cert,
            format_args!("notAfter {}, which is past", date(seconds(*not_after))),
            format!("one that is valid now; this machine's clock says {clock}"),
            "have the CA issue a new one, or set the clock if it is wrong",
        ),
        E::CertNotValidYet { not_before, .. } => unfit(
            cert,
            format_args!("notBefore {}, which is to come", date(seconds(*not_before))),
            format!("one that is valid now; this machine's clock says {clock}"),
            "set this machine's clock, or that of the machine of the CA, and wait or issue it anew",
        ),
        E::UnknownIssuer => unfit(
            cert,
            format_args!("issuer {}", facts.issuer),
            format!("a certificate that the CA in {ca} issued"),
            "put the certificate of its CA into ca-cert.pem, or have this CA issue one; a CA in \
             between belongs behind the host's own, in the same file",
        ),
        E::InvalidSignatureForPublicKey => unfit(
            cert,
            format_args!("issuer {}, a CA of the same name with another key", facts.issuer),
            format!("a certificate that the CA in {ca} issued"),
            "the CA was made anew: put the same ca-cert.pem on every host and issue all anew",
        ),
        E::CaUsedAsEndEntity => unfit(
            cert,
            "basicConstraints CA:TRUE, the certificate of a CA",
            "a certificate of this host alone",
            "have the CA issue one with CA:FALSE; the CA's own belongs into ca-cert.pem",
        ),
        E::CertRevoked => unfit(
            cert,
            "a certificate that ca-crl.pem revokes",
            "one that is not revoked",
            "have the CA issue a new one with a new key",
        ),
        E::InvalidCertValidity => {
            unfit(cert, facts.validity(), "an end behind its begin", "have it issued anew")
        }
        why => rarer_refusal(layout, cert, facts, end, now, why),
    }
}

/// The reasons of lists and usages, and of kinds that are not supported.
fn rarer_refusal(
    layout: &Layout,
    cert: &Path,
    facts: &Facts,
    end: End,
    now: UnixTime,
    why: &webpki::Error,
) -> Error {
    use webpki::Error as E;
    let usage = usage(end);
    match why {
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => unfit(
            cert,
            format_args!(
                "extendedKeyUsage {}",
                facts.usages.clone().unwrap_or_default().join(", ")
            ),
            format!("{usage}, as the end that {} needs it", does(end)),
            format!("have one issued with {usage} (one certificate may have both)"),
        ),
        E::CrlExpired { next_update, .. } => {
            lists::out_of_date(layout.crl.as_deref().unwrap_or(&layout.ca), *next_update, now)
        }
        E::UnknownRevocationStatus | E::IssuerNotCrlSigner => unfit(
            layout.crl.as_deref().unwrap_or(&layout.ca),
            format_args!("no list of {}", facts.issuer),
            "a list of every CA between a host and ca-cert.pem",
            "add the lists that are missing, or remove the file where nothing is revoked",
        ),
        other => unfit(
            cert,
            named(other),
            "RSA of 2048 bits or more, ECDSA P-256, P-384 or P-521, \
             or Ed25519; SHA-256 or more",
            "have one issued with such a key",
        ),
    }
}

/// What else webpki does not like, without what stood in the certificate.
pub(super) fn named(error: &webpki::Error) -> String {
    let text = format!("{error:?}");
    let end = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    format!("what is not supported ({})", &text[..end])
}

/// The extended key usage of an end.
pub(super) fn usage(end: End) -> &'static str {
    match end {
        End::Dials => "clientAuth",
        End::Listens => "serverAuth",
    }
}

fn does(end: End) -> &'static str {
    match end {
        End::Dials => "dials",
        End::Listens => "listens",
    }
}

/// That the certificate of an end is missing.
pub(super) fn no_pair(layout: &Layout, end: End) -> Error {
    let (name, other) = match end {
        End::Dials => ("client", "server"),
        End::Listens => ("server", "client"),
    };
    let usage = usage(end);
    if layout.pairs.is_empty() {
        return unfit(
            &layout.place,
            "no certificate of this host",
            "server-cert.pem and server-key.pem to listen, client-cert.pem and client-key.pem to \
             dial",
            "have the CA issue them; docs/certificates.md says how",
        );
    }
    unfit(
        &layout.place,
        format_args!("no {name}-cert.pem"),
        format!("{name}-cert.pem and {name}-key.pem, as the end that {} needs them", does(end)),
        format!(
            "have the CA issue one with {usage}, or link both names to {other}-*.pem where that \
             one has both usages"
        ),
    )
}

/// Of a CA that is not valid now.
pub(super) fn out_of_time(path: &Path, facts: &Facts, now: UnixTime) -> Error {
    unfit(
        path,
        format_args!("CA {}, {}", facts.subject, facts.validity()),
        format!("a CA that is valid now; this machine's clock says {}", date(seconds(now))),
        "make the CA's certificate anew (the same key keeps what it issued), or set the clock",
    )
}
