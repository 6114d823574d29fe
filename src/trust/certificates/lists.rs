//! ca-crl.pem: what the CA has revoked.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::UnixTime;
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

use super::facts::{ListFacts, date, days_left, seconds, subject_der};
use super::finding::{Finding, unfit};
use super::verifier::Authority;
use crate::error::{Error, Result};

/// Days before its end from which on a list is worth a warning.
const DAYS_LEFT_MIN: i64 = 2;
const NEW_LIST: &str = "have the CA issue a new list (openssl ca -gencrl, with \
                        crlnumber or crl_extensions in its configuration; certtool \
                        --generate-crl) and copy it to every host";

/// The lists of a file. Each is looked at; none may be out of its time, one must be our CA's.
///
/// # Errors
///
/// [`crate::Error::Config`] and [`crate::Error::System`].
pub(super) fn load(
    path: &Path,
    authorities: &[Authority],
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
    findings: &mut Vec<Finding>,
) -> Result<Vec<CertRevocationList<'static>>> {
    let mut lists = Vec::new();
    let mut ours = false;
    let mut issuers = Vec::new();
    for der in super::files::lists(path)? {
        let parsed = OwnedCertRevocationList::from_der(&der).ok();
        let (Some(parsed), Some(facts)) = (parsed, ListFacts::of(&der)) else {
            let wanted = "a revocation list of X.509 version 2, not partitioned and no delta";
            return Err(unfit(path, "a list that cannot be read", wanted, NEW_LIST));
        };
        let end = facts.next_update();
        if end < seconds(now) {
            return Err(out_of_date(path, UnixTime::since_unix_epoch(end_of(end)), now));
        }
        ours |= issued_by_one(path, &facts, authorities, algorithms)?;
        issuers.push(facts.issuer());
        let days = days_left(now, end);
        let text = format!(
            "list of {}: {} revoked, next update {} ({days} days)",
            facts.issuer(),
            facts.revoked(),
            date(end)
        );
        findings.push(match days < DAYS_LEFT_MIN {
            true => Finding::warning(path, text, NEW_LIST),
            false => Finding::fine(path, text),
        });
        lists.push(parsed.into());
    }
    if ours || authorities.is_empty() {
        return Ok(lists);
    }
    let cas: Vec<_> = authorities.iter().map(|ca| ca.facts.subject.as_str()).collect();
    Err(unfit(
        path,
        format_args!("issuer {}", issuers.join("; ")),
        format!("a list of the CA in ca-cert.pem ({})", cas.join("; ")),
        NEW_LIST,
    ))
}

fn end_of(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0).unsigned_abs())
}

/// The error of a list whose time has run out.
pub(super) fn out_of_date(path: &Path, end: UnixTime, now: UnixTime) -> Error {
    let clock = date(seconds(now));
    unfit(
        path,
        format_args!("nextUpdate {}", date(seconds(end))),
        format!("a list whose time has not run out; this machine's clock says {clock}"),
        format!("{NEW_LIST}; set the clock if it is wrong"),
    )
}

/// Whether one of our CAs made a list.
///
/// # Errors
///
/// [`crate::Error::Config`] where a list has the name of one and another's signature.
fn issued_by_one(
    path: &Path,
    list: &ListFacts<'_>,
    authorities: &[Authority],
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<bool> {
    let named = |authority: &&Authority| subject_der(&authority.certificate) == list.issuer_der();
    let (message, signature) = list.signed();
    let signed = |authority: &Authority| {
        EndEntityCert::try_from(&authority.certificate).is_ok_and(|certificate| {
            let one = |a: &&&_| certificate.verify_signature(**a, message, signature).is_ok();
            algorithms.all.iter().any(|a| one(&a))
        })
    };
    let candidates: Vec<_> = authorities.iter().filter(named).collect();
    if candidates.is_empty() || candidates.iter().any(|authority| signed(authority)) {
        return Ok(!candidates.is_empty());
    }
    Err(unfit(
        path,
        format_args!("a signature that is not of the CA {}", list.issuer()),
        "a list that the CA in ca-cert.pem has signed",
        format!("the CA was made anew, or the list is damaged: {NEW_LIST}"),
    ))
}
