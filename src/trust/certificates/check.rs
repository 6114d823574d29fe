//! The look at all files of a host, for errors and for `sealane pki check`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::facts::{Facts, date, days_left, seconds};
use super::finding::{Finding, unfit};
use super::refusal::{named, no_pair, out_of_time, refusal};
use super::verifier::{Authorities, Authority};
use super::{CertificateFiles, End, files, lists, tls};
use crate::error::{Error, Result, SystemError};

/// Days before its end from which on a certificate is worth a warning.
const DAYS_LEFT_MIN: i64 = 30;
const DIALS: &[End] = &[End::Dials];
const LISTENS: &[End] = &[End::Listens];
const BOTH: &[End] = &[End::Listens, End::Dials];

/// Where the files of a host lie.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// What a message names that concerns no single file.
    pub(super) place: PathBuf,
    pub(super) ca: PathBuf,
    pub(super) crl: Option<PathBuf>,
    pub(super) pairs: Vec<PairFiles>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(super) struct PairFiles {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    /// Which ends it is for.
    pub(super) ends: &'static [End],
}

impl Layout {
    /// As QEMU and libvirt lay them out.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where there is no such directory, [`Error::Config`] where it is none.
    pub(super) fn of_directory(directory: &Path) -> Result<Self> {
        let remedy = "name the directory with ca-cert.pem and this host's certificates; \
                      docs/certificates.md says how to make them";
        let metadata = std::fs::metadata(directory).map_err(|e| {
            SystemError::from_io("stat", directory.display().to_string(), &e).remedy(remedy)
        })?;
        if !metadata.is_dir() {
            return Err(unfit(directory, "no directory", "a directory of certificates", remedy));
        }
        // What is there and cannot be looked at shall be an error of the one who opens it.
        let there = |name: &str| {
            let path = directory.join(name);
            let absent =
                path.symlink_metadata().is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT));
            (!absent).then_some(path)
        };
        let pair = |(cert, key, ends)| {
            there(cert).or(there(key)).map(|_| PairFiles {
                cert: directory.join(cert),
                key: directory.join(key),
                ends,
            })
        };
        let pairs = [
            ("server-cert.pem", "server-key.pem", LISTENS),
            ("client-cert.pem", "client-key.pem", DIALS),
        ];
        Ok(Self {
            place: directory.to_owned(),
            ca: directory.join("ca-cert.pem"),
            crl: there("ca-crl.pem"),
            pairs: pairs.into_iter().filter_map(pair).collect(),
        })
    }

    /// One certificate for both ends.
    pub(super) fn of_files(files: &CertificateFiles) -> Self {
        let (cert, key) = (files.cert.clone(), files.key.clone());
        Self {
            place: files.cert.clone(),
            ca: files.ca.clone(),
            crl: files.crl.clone(),
            pairs: vec![PairFiles { cert, key, ends: BOTH }],
        }
    }
}

/// This host's certificate for one end, as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) cert: PathBuf,
    pub(super) facts: Facts,
    pub(super) key: Arc<CertifiedKey>,
}

/// All that the look has found.
pub(super) struct Examined {
    pub(super) findings: Vec<Finding>,
    pub(super) authorities: Result<Arc<Authorities>>,
    /// By end: the certificate, or why there is none to use.
    pub(super) dials: Result<Own>,
    pub(super) listens: Result<Own>,
    /// The first error of a pair.
    pub(super) first: Option<Error>,
}

/// Looks at everything.
pub(super) fn examine(layout: &Layout, now: UnixTime) -> Examined {
    let mut findings = Vec::new();
    let authorities = authorities(layout, now, &mut findings).map(Arc::new);
    let mut examined = Examined {
        findings,
        authorities,
        dials: Err(no_pair(layout, End::Dials)),
        listens: Err(no_pair(layout, End::Listens)),
        first: None,
    };
    for pair in &layout.pairs {
        examined.pair(layout, pair, now);
    }
    if layout.pairs.is_empty() {
        let error = no_pair(layout, End::Listens);
        examined.findings.push(Finding::bad(&layout.place, &error));
        examined.first = Some(error);
    }
    examined
}

impl Examined {
    fn pair(&mut self, layout: &Layout, files: &PairFiles, now: UnixTime) {
        let chain = match chain(&files.cert) {
            Ok(chain) => chain,
            Err(error) => return self.failed(&files.cert, files.ends, error),
        };
        let facts = chain.1.clone();
        // Without a CA to ask, what can be said of the certificate alone is said.
        let stranger = Authorities {
            all: Vec::new(),
            lists: Vec::new(),
            algorithms: tls::provider().signature_verification_algorithms,
        };
        let authorities = self.authorities.as_deref().unwrap_or(&stranger);
        let verdicts: Vec<_> = (files.ends.iter())
            .map(|end| (*end, authorities.verify(&chain.0, *end, now)))
            .filter(|(_, verdict)| match verdict {
                Ok(()) => false,
                Err(webpki::Error::UnknownIssuer) => self.authorities.is_ok(),
                Err(_) => true,
            })
            .filter_map(|(end, verdict)| {
                verdict.err().map(|why| (end, refusal(layout, &files.cert, &facts, end, now, &why)))
            })
            .collect();
        match verdicts.first() {
            Some((_, error)) if verdicts.len() == files.ends.len() => {
                let error = error.clone();
                self.failed(&files.cert, files.ends, error);
            }
            Some((end, error)) => {
                let only = Finding::bad(&files.cert, error);
                self.findings.push(Finding::warning(&files.cert, only.text, only.remedy));
                *self.slot(*end) = Err(error.clone());
                self.findings.extend(described(&files.cert, &facts, now));
            }
            None => self.findings.extend(described(&files.cert, &facts, now)),
        }
        let key = match certified(&files.cert, &files.key, chain.0) {
            Ok(key) => Arc::new(key),
            Err(error) => {
                let whole = |end: &End| !verdicts.iter().any(|(failed, _)| failed == end);
                let ends: Vec<_> = files.ends.iter().copied().filter(whole).collect();
                return self.failed(&files.key, &ends, error);
            }
        };
        self.findings.push(Finding::fine(&files.key, "fits the certificate".to_owned()));
        for end in files.ends {
            if !verdicts.iter().any(|(failed, _)| failed == end) {
                let (cert, facts) = (files.cert.clone(), facts.clone());
                *self.slot(*end) = Ok(Own { cert, facts, key: Arc::clone(&key) });
            }
        }
    }

    fn slot(&mut self, end: End) -> &mut Result<Own> {
        match end {
            End::Dials => &mut self.dials,
            End::Listens => &mut self.listens,
        }
    }

    fn failed(&mut self, file: &Path, ends: &[End], error: Error) {
        self.findings.push(Finding::bad(file, &error));
        for end in ends {
            *self.slot(*end) = Err(error.clone());
        }
        self.first.get_or_insert(error);
    }
}

/// The CA and its lists.
fn authorities(layout: &Layout, now: UnixTime, findings: &mut Vec<Finding>) -> Result<Authorities> {
    let algorithms = tls::provider().signature_verification_algorithms;
    let all = authority_file(&layout.ca, now, findings)
        .inspect_err(|error| findings.push(Finding::bad(&layout.ca, error)));
    let known = all.as_deref().unwrap_or_default();
    let loaded = layout.crl.as_deref().map(|path| {
        lists::load(path, known, &algorithms, now, findings)
            .inspect_err(|error| findings.push(Finding::bad(path, error)))
    });
    let (all, lists) = (all?, loaded.transpose()?.unwrap_or_default());
    Ok(Authorities { all, lists, algorithms })
}

fn authority_file(
    path: &Path,
    now: UnixTime,
    findings: &mut Vec<Finding>,
) -> Result<Vec<Authority>> {
    let mut all = Vec::new();
    let mut expired = None;
    for certificate in files::certificates(path)? {
        let facts = readable(path, &certificate)?;
        if !facts.is_ca {
            return Err(unfit(
                path,
                format_args!("{}, which is no CA", facts.subject),
                "basicConstraints CA:TRUE and, where it has a keyUsage, keyCertSign",
                "put the certificate of the CA here, not that of a host",
            ));
        }
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|e| unfit(path, named(&e), "a CA that webpki can read", "make the CA anew"))?
            .to_owned();
        if seconds(now) < facts.not_before || facts.not_after < seconds(now) {
            expired.get_or_insert_with(|| out_of_time(path, &facts, now));
        } else {
            let text = format!("CA {}, {}", facts.subject, described_text(&facts, now));
            findings.push(by_days(path, &facts, now, text));
        }
        all.push(Authority { certificate, anchor, facts });
    }
    match expired {
        Some(error) if all.iter().all(|ca| facts_out(&ca.facts, now)) => Err(error),
        Some(error) => {
            let Finding { text, .. } = Finding::bad(path, &error);
            findings.push(Finding::warning(path, text, "remove it from the file"));
            Ok(all)
        }
        None => Ok(all),
    }
}

fn facts_out(facts: &Facts, now: UnixTime) -> bool {
    seconds(now) < facts.not_before || facts.not_after < seconds(now)
}

fn readable(path: &Path, certificate: &CertificateDer<'_>) -> Result<Facts> {
    let facts = Facts::of(certificate).ok_or_else(|| {
        unfit(path, "a damaged certificate", "one of X.509 in DER", "copy it again, whole")
    })?;
    if facts.has_extensions {
        return Ok(facts);
    }
    Err(unfit(
        path,
        "X.509 version 1, without extensions",
        "version 3 with subjectAltName",
        "issue it with an extension file; docs/certificates.md says how",
    ))
}

/// The chain of a host and what its first certificate says.
fn chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Facts)> {
    let chain = files::certificates(path)?;
    let facts = readable(path, &chain[0])?;
    Ok((chain, facts))
}

fn certified(cert: &Path, key: &Path, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey> {
    // Erased when dropped; rustls's own copy is the library's.
    let der = Zeroizing::new(files::key(key)?);
    let fitting = any_supported_type(&der).map(|key| CertifiedKey::new(chain, key));
    let fitting = fitting.and_then(|certified| certified.keys_match().map(|()| certified));
    fitting.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => unfit(
            key,
            format_args!("a key that does not fit {}", cert.display()),
            "the key that the certificate was issued for",
            "put the two of one pair together, or have a certificate issued for this key",
        ),
        // rustls says nothing of the key itself.
        _ => unfit(
            key,
            "a key that cannot be used",
            "RSA of 2048 bits or more, ECDSA P-256, P-384 or P-521, or Ed25519",
            "make such a key and have a certificate issued for it",
        ),
    })
}

/// For tests: the first pair without any look at it.
#[cfg(test)]
pub(super) fn unlooked(layout: &Layout) -> Own {
    let PairFiles { cert, key, .. } = &layout.pairs[0];
    let (chain, facts) = chain(cert).expect("a certificate");
    let key = Arc::new(certified(cert, key, chain).expect("its key"));
    Own { cert: cert.clone(), facts, key }
}

/// Findings of a certificate that can be used.
fn described(path: &Path, facts: &Facts, now: UnixTime) -> Vec<Finding> {
    let usages = facts.usages.as_ref().map_or("any usage".to_owned(), |u| u.join(", "));
    let (names, rest) = (facts.shown_names(), described_text(facts, now));
    let text = format!("{names}; {rest}; {usages}; by {}", facts.issuer);
    let mut findings = vec![by_days(path, facts, now, text)];
    if facts.names.is_empty() {
        findings.push(Finding::warning(
            path,
            format!("no subjectAltName; subject {}, which is not looked at", facts.subject),
            format!(
                "have it issued with one (DNS or IP), or name it at the other end by --peer {}",
                facts.shown_fingerprint()
            ),
        ));
    }
    if let Some(name) = facts.names.iter().find(|name| name.contains('*')) {
        findings.push(Finding::warning(
            path,
            format!("the name {name} is that of many hosts"),
            "have each host's issued for its own name, since who has this one can pass for all",
        ));
    }
    findings
}

fn described_text(facts: &Facts, now: UnixTime) -> String {
    let days = days_left(now, facts.not_after);
    let until = date(facts.not_after);
    format!("{}, {}, until {until} ({days} days)", facts.key, facts.shown_fingerprint())
}

fn by_days(path: &Path, facts: &Facts, now: UnixTime, text: String) -> Finding {
    match days_left(now, facts.not_after) < DAYS_LEFT_MIN {
        true => Finding::warning(path, text, "have a new one issued before it ends"),
        false => Finding::fine(path, text),
    }
}
