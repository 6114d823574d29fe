//! Whether a chain of certificates leads to our CA and, for the other end's, to the peer that was
//! named. webpki decides; nothing of a certificate is repeated before its chain has verified.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError};
use rustls::{PeerIncompatible, SignatureScheme};
use webpki::{CertRevocationList, EndEntityCert, KeyUsage};

use super::facts::{Facts, seconds};
use super::{End, PeerName};

/// A CA of ca-cert.pem.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) anchor: TrustAnchor<'static>,
    pub(super) facts: Facts,
}

/// Whom this end believes.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) all: Vec<Authority>,
    pub(super) lists: Vec<CertRevocationList<'static>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Authorities {
    /// Whether `chain`, the host's own certificate first, leads to one of them and may be used by
    /// the end that `end` says.
    ///
    /// # Errors
    ///
    /// webpki's. That a certificate is out of its time is said only of one that one of them issued.
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        end: End,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        // webpki does not look at the dates of an anchor.
        let anchors: Vec<_> =
            self.valid_at(now).map(|authority| authority.anchor.clone()).collect();
        let error = match self.build(chain, &anchors, end, now, true) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // It looks at dates first and at signatures later.
        let in_time = match error {
            webpki::Error::CertExpired { not_after, .. } => not_after,
            webpki::Error::CertNotValidYet { not_before, .. } => not_before,
            error => return Err(error),
        };
        match self.build(chain, &anchors, end, in_time, false) {
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => {
                Err(webpki::Error::UnknownIssuer)
            }
            Err(other) => Err(other),
            Ok(()) => Err(error),
        }
    }

    /// Those that have not expired.
    pub(super) fn valid_at(&self, now: UnixTime) -> impl Iterator<Item = &Authority> {
        let now = seconds(now);
        let valid = move |facts: &Facts| facts.not_before <= now && now <= facts.not_after;
        self.all.iter().filter(move |authority| valid(&authority.facts))
    }

    fn build(
        &self,
        chain: &[CertificateDer<'_>],
        anchors: &[TrustAnchor<'_>],
        end: End,
        now: UnixTime,
        with_lists: bool,
    ) -> Result<(), webpki::Error> {
        let [own, between @ ..] = chain else { return Err(webpki::Error::BadDer) };
        let usage = match end {
            End::Dials => KeyUsage::client_auth(),
            End::Listens => KeyUsage::server_auth(),
        };
        let lists: Vec<_> = self.lists.iter().filter(|_| with_lists).collect();
        // Every certificate of a chain must be covered by a list that has not expired.
        let revocation = webpki::RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(webpki::RevocationCheckDepth::Chain)
                .with_status_policy(webpki::UnknownStatusPolicy::Deny)
                .with_expiration_policy(webpki::ExpirationPolicy::Enforce)
                .build()
        });
        let own = EndEntityCert::try_from(own)?;
        let all = self.algorithms.all;
        own.verify_for_usage(all, anchors, between, now, usage, revocation, None).map(|_| ())
    }
}

/// The verifier of both directions.
#[derive(Debug)]
pub(super) struct Verifier {
    authorities: Arc<Authorities>,
    peer: PeerName,
}

impl Verifier {
    pub(super) fn new(authorities: Arc<Authorities>, peer: PeerName) -> Self {
        Self { authorities, peer }
    }

    fn verify(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        end: End,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<_> = std::iter::once(own).chain(between).cloned().collect();
        self.authorities.verify(&chain, end, now).map_err(told)?;
        match is_for(own, &self.peer) {
            Ok(true) => Ok(()),
            Ok(false) => Err(other_peer(own).into()),
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.authorities.algorithms)
    }
}

/// Whether a certificate is that of `peer`. Its common name does not count.
pub(super) fn is_for(
    certificate: &CertificateDer<'_>,
    peer: &PeerName,
) -> Result<bool, webpki::Error> {
    let name = match peer {
        PeerName::Sha256(hash) => return Ok(super::facts::fingerprint(certificate) == *hash),
        PeerName::Ip(address) => ServerName::from(*address),
        PeerName::Dns(name) => ServerName::try_from(name.as_str())
            .map_err(|_| webpki::Error::MalformedDnsIdentifier)?,
    };
    let parsed = EndEntityCert::try_from(certificate)?;
    match parsed.verify_is_valid_for_subject_name(&name) {
        Ok(()) => Ok(true),
        Err(webpki::Error::CertNotValidForName(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What TLS says of a certificate that is not the peer's: its fingerprint and its names, for the
/// message at this end. The chain has verified.
fn other_peer(certificate: &CertificateDer<'_>) -> CertificateError {
    let presented = Facts::of(certificate).map_or_else(Vec::new, |facts| {
        vec![facts.shown_fingerprint(), facts.shown_names(), facts.names.len().to_string()]
    });
    CertificateError::NotValidForNameContext { expected: server_name(), presented }
}

/// The name that TLS wants of a client. It is not sent and not compared.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("sealane.invalid").expect("a DNS name")
}

/// webpki's error as rustls knows it, so that the right alert goes out.
fn told(error: webpki::Error) -> Error {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::UnsupportedCertVersion => {
            CertificateError::BadEncoding
        }
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        E::InvalidCertValidity => CertificateError::Expired,
        // A CA of the same name and another key.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownRevocationStatus | E::IssuerNotCrlSigner | E::InvalidCrlSignatureForPublicKey => {
            CertificateError::UnknownRevocationStatus
        }
        E::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }
        }
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => CertificateError::InvalidPurpose,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    }
    .into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(own, between, End::Listens, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// None: a stranger learns nothing of our CA.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(own, between, End::Dials, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.algorithms.supported_schemes()
    }
}

/// TLS 1.2 is not compiled in.
fn no_tls12() -> Error {
    PeerIncompatible::Tls12NotOffered.into()
}
