//! The one way that TLS is spoken: 1.3, one suite, both ends with certificates.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, version};

use super::verifier::Verifier;
use crate::error::{Error, Result};

/// What both ends must have agreed on after the handshake, too: rustls lets a client pass that
/// names no protocol at all.
pub(crate) const ALPN: &[u8] = b"sealane/1";

/// AES-256-GCM and X25519 with ML-KEM-768, nothing else: there is nothing to downgrade to.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        ..aws_lc_rs::default_provider()
    }
}

/// Of the end that dials.
pub(super) fn client(verifier: Arc<Verifier>, own: Arc<CertifiedKey>) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Of the end that listens.
pub(super) fn server(verifier: Arc<Verifier>, own: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(internal)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn internal(error: rustls::Error) -> Error {
    Error::Bug(format!("TLS 1.3 cannot be set up: {error}"))
}
