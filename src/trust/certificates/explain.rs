//! rustls's errors of a handshake in our words, with the remedy.

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::facts::{date, seconds};
use super::refusal::{named, usage};
use super::{Certificates, End, PeerName};
use crate::error::{Error, PeerError};

const CLOCKS: &str = "compare the clocks of both hosts";
const CHECK: &str = "run `sealane pki check` on both hosts";

impl Certificates {
    /// What a handshake failed with, where this end was `end`.
    pub(crate) fn explain(&self, end: End, error: &TlsError) -> Error {
        self.explain_at(end, error, UnixTime::now())
    }

    pub(super) fn explain_at(&self, end: End, error: &TlsError, now: UnixTime) -> Error {
        let text = match error {
            TlsError::InvalidCertificate(error) => self.refused(end, error, now),
            TlsError::AlertReceived(alert) => self.refused_by_peer(end, *alert, now),
            TlsError::NoCertificatesPresented => {
                "the other end showed no certificate: give it one as well".to_owned()
            }
            TlsError::NoApplicationProtocol => not_sealane(),
            TlsError::PeerIncompatible(_) => incompatible(),
            TlsError::InvalidMessage(_) => {
                "the other end does not speak TLS, or its bytes were changed on their way: give \
                 both ends certificates, and look for what else listens at that address"
                    .to_owned()
            }
            TlsError::General(_) | TlsError::FailedToGetRandomBytes => {
                return Error::Bug(format!("TLS failed at this end: {error}"));
            }
            // Of these rustls tells no more than which rule was broken.
            _ => "the other end broke the rules of TLS, or its bytes were changed on their way: \
                  look for a middlebox or an attacker between the hosts"
                .to_owned(),
        };
        PeerError::Certificate(text).into()
    }

    /// What is wrong with the other end's certificate.
    fn refused(&self, end: End, error: &CertificateError, now: UnixTime) -> String {
        use CertificateError as E;
        let ca = self.0.layout.ca.display();
        let crl = self.0.layout.crl.as_deref().unwrap_or(&self.0.layout.ca).display();
        match error {
            E::ExpiredContext { time, not_after } => format!(
                "the other end's certificate, or one between it and the CA, expired {}, and this \
                 machine's clock says {}: have a new one issued there, or {CLOCKS}",
                date(seconds(*not_after)),
                date(seconds(*time))
            ),
            E::NotValidYetContext { time, not_before } => format!(
                "the other end's certificate is not valid before {}, and this machine's clock says \
                 {}: {CLOCKS}",
                date(seconds(*not_before)),
                date(seconds(*time))
            ),
            E::UnknownIssuer => match self.ca_out_of_time(now) {
                Some(error) => error.to_string(),
                None => format!(
                    "the other end's certificate was not issued by the CA in {ca}: both hosts need \
                     certificates of one CA and the same ca-cert.pem: {CHECK}"
                ),
            },
            E::NotValidForNameContext { presented, .. } => self.other_peer(presented),
            E::Revoked => format!(
                "the other end's certificate is revoked by {crl}: have a new one issued there, \
                 with a new key"
            ),
            E::ExpiredRevocationListContext { time, next_update } => format!(
                "{crl} is out of date: its nextUpdate was {}, and this machine's clock says {}: \
                 have the CA issue a new list and copy it here",
                date(seconds(*next_update)),
                date(seconds(*time))
            ),
            E::UnknownRevocationStatus => format!(
                "{crl} has no list of a CA that issued the other end's certificate: add the list, \
                 or remove the file where nothing is revoked"
            ),
            E::InvalidPurpose => {
                let (usage, does) = match end {
                    End::Dials => (usage(End::Listens), "listens"),
                    End::Listens => (usage(End::Dials), "dials"),
                };
                format!(
                    "the other end's certificate lacks the extended key usage {usage}, which the \
                     end that {does} needs: have one issued there with it"
                )
            }
            E::Expired => {
                "the other end's certificate ends before it begins: have it issued anew".to_owned()
            }
            E::BadEncoding => format!(
                "the other end's certificate cannot be read, or is of X.509 version 1 without \
                 extensions: {CHECK}"
            ),
            E::BadSignature => "the other end does not hold the key of its certificate: look for \
                                an attacker between the hosts"
                .to_owned(),
            E::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::CaUsedAsEndEntity) => {
                    "the other end's certificate is that of a CA (basicConstraints CA:TRUE): have \
                     one issued for the host there"
                        .to_owned()
                }
                Some(error) => unsupported(&named(error)),
                None => unsupported("what is not supported"),
            },
            _ => unsupported("what is not supported"),
        }
    }

    /// The other end is one of ours, and not the one that was named.
    fn other_peer(&self, presented: &[String]) -> String {
        let wanted = &self.0.peer;
        let [fingerprint, names, count] = presented else {
            return format!("the other end is not {wanted}: {CHECK}");
        };
        let meant = "if it is the host that you mean";
        match wanted {
            PeerName::Sha256(_) => format!(
                "the other end's certificate is {fingerprint} ({names}), and {wanted} was \
                 expected: {meant}, name it so as peer (--peer); else another host answers there"
            ),
            _ if count == "0" => format!(
                "the other end's certificate has no subjectAltName (a common name is not looked \
                 at), and {wanted} was expected: have one issued there with that name, or, \
                 {meant}, name it with --peer {fingerprint}"
            ),
            _ => format!(
                "the other end's certificate is for {names} ({fingerprint}), and {wanted} was \
                 expected: {meant}, name it so as peer (--peer); else another host answers there"
            ),
        }
    }

    /// What the other end said of ours. An alert is no more than a hint.
    fn refused_by_peer(&self, end: End, alert: AlertDescription, now: UnixTime) -> String {
        use AlertDescription as A;
        let Some(own) = self.own(end) else {
            return format!("the other end broke off ({alert:?}): {CHECK}");
        };
        let cert = own.cert.display();
        let refused = format!("the other end refused this end's certificate {cert}");
        match alert {
            A::CertificateExpired => format!(
                "{refused}: by its clock it is not valid now ({}; this machine's clock says {}): \
                 {CLOCKS}",
                own.facts.validity(),
                date(seconds(now))
            ),
            A::UnknownCA => format!(
                "{refused}: its ca-cert.pem did not issue it, or its ca-crl.pem is out of date or \
                 of another CA: both hosts need the same ca-cert.pem: {CHECK}"
            ),
            A::CertificateRevoked => {
                format!("{refused}: its ca-crl.pem revokes it: have a new one issued here")
            }
            A::BadCertificate | A::AccessDenied => format!(
                "{refused}: it expects another peer: its peer (--peer) must name this host as \
                 the certificate does: {}, or {}",
                own.facts.shown_names(),
                own.facts.shown_fingerprint()
            ),
            A::UnsupportedCertificate => format!(
                "{refused}: it lacks the extended key usage {}: have one issued with it",
                usage(end)
            ),
            A::CertificateUnknown | A::DecryptError | A::CertificateRequired => {
                format!("{refused} ({alert:?}): {CHECK}")
            }
            A::NoApplicationProtocol => not_sealane(),
            A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => incompatible(),
            other => format!("the other end broke off ({other:?}): its own message says why"),
        }
    }
}

fn unsupported(what: &str) -> String {
    format!(
        "the other end's certificate has {what}: have one issued with RSA of 2048 bits or more, \
         ECDSA P-256, P-384 or P-521, or Ed25519, and SHA-256 or more"
    )
}

fn not_sealane() -> String {
    "the other end speaks TLS and not Sealane: look for what else listens, or dials, at that \
     address"
        .to_owned()
}

fn incompatible() -> String {
    "the other end does not do TLS 1.3 with X25519MLKEM768 and AES-256-GCM as Sealane does: make \
     sure that Sealane is what listens, or dials, there, of the same version at both ends"
        .to_owned()
}
