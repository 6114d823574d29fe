//! A host's certificates, loaded and looked at.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConfig, ServerConfig};

use super::check::{Examined, Layout, Own, examine};
use super::refusal::{out_of_time, refusal};
use super::verifier::{Authorities, Verifier, server_name};
use super::{CertificateFiles, End, PeerName, tls};
use crate::error::{Error, PeerError, Result};

/// This host's certificates, its CA and the peer that it expects: what two hosts meet by instead
/// of, or beside, a [`OneTimeSecret`](crate::OneTimeSecret). Clones share what was loaded.
///
/// The files are read once. Load them again to take notice of new ones and of a new ca-crl.pem.
///
/// ```no_run
/// use sealane::Certificates;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let directory = std::path::Path::new("/etc/pki/qemu");
/// let certificates = Certificates::from_directory(directory, "target.example".parse()?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Certificates(pub(super) Arc<Loaded>);

pub(super) struct Loaded {
    pub(super) layout: Layout,
    pub(super) peer: PeerName,
    pub(super) authorities: Arc<Authorities>,
    dials: Result<(Own, Arc<ClientConfig>)>,
    listens: Result<(Own, Arc<ServerConfig>)>,
}

impl Certificates {
    /// Loads a directory as QEMU and libvirt lay it out: `ca-cert.pem`, `ca-crl.pem` where there is
    /// one, `client-cert.pem` and `client-key.pem` for the end that dials, `server-cert.pem` and
    /// `server-key.pem` for the end that listens. One of the pairs suffices for its end.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where a file cannot be read; [`Error::Config`] where a certificate is out
    /// of its time, of another CA, revoked, without its key or not for its end, where others can
    /// read a key, and where neither pair can be used. What concerns one pair alone is told when
    /// it is to be used.
    pub fn from_directory(directory: &Path, peer: PeerName) -> Result<Self> {
        Self::load(Layout::of_directory(directory)?, peer)
    }

    /// Loads single files; the one certificate serves both ends, as far as its extended key usage
    /// allows.
    ///
    /// # Errors
    ///
    /// As [`Certificates::from_directory`].
    pub fn from_files(files: &CertificateFiles, peer: PeerName) -> Result<Self> {
        Self::load(Layout::of_files(files), peer)
    }

    /// The peer that is expected.
    pub fn peer(&self) -> &PeerName {
        &self.0.peer
    }

    /// Refuses what does not serve an end that dials, before it dials.
    ///
    /// # Errors
    ///
    /// [`Error::System`] and [`Error::Config`] where there is no certificate for that.
    pub fn check_dials(&self) -> Result<()> {
        self.client_config().map(drop)
    }

    /// Refuses what does not serve an end that listens, before anybody is there.
    ///
    /// # Errors
    ///
    /// As [`Certificates::check_dials`].
    pub fn check_listens(&self) -> Result<()> {
        self.server_config().map(drop)
    }

    fn load(layout: Layout, peer: PeerName) -> Result<Self> {
        peer.check()?;
        let Examined { authorities, dials, listens, first, .. } = examine(&layout, UnixTime::now());
        let authorities = authorities?;
        if let (Some(error), Err(_), Err(_)) = (first, &dials, &listens) {
            return Err(error);
        }
        Self::with(layout, peer, authorities, dials, listens)
    }

    fn with(
        layout: Layout,
        peer: PeerName,
        authorities: Arc<Authorities>,
        dials: Result<Own>,
        listens: Result<Own>,
    ) -> Result<Self> {
        let verifier = Arc::new(Verifier::new(Arc::clone(&authorities), peer.clone()));
        let dials = dials.and_then(|own| {
            let config = tls::client(Arc::clone(&verifier), Arc::clone(&own.key))?;
            Ok((own, config))
        });
        let listens = listens.and_then(|own| {
            let config = tls::server(Arc::clone(&verifier), Arc::clone(&own.key))?;
            Ok((own, config))
        });
        Ok(Self(Arc::new(Loaded { layout, peer, authorities, dials, listens })))
    }

    /// What rustls needs to dial.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where there is no certificate for that, or its time has run out since it
    /// was loaded.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let (own, config) = self.0.dials.as_ref().map_err(Clone::clone)?;
        self.still_valid(own, End::Dials, UnixTime::now())?;
        Ok(Arc::clone(config))
    }

    /// What rustls needs to listen.
    ///
    /// # Errors
    ///
    /// As [`Certificates::client_config`].
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let (own, config) = self.0.listens.as_ref().map_err(Clone::clone)?;
        self.still_valid(own, End::Listens, UnixTime::now())?;
        Ok(Arc::clone(config))
    }

    /// The name that a `rustls::ClientConnection` wants. It is neither sent nor compared.
    pub(crate) fn server_name() -> ServerName<'static> {
        server_name()
    }

    /// Whether both ends speak Sealane: to be asked after the handshake, at both of them. rustls
    /// ends a handshake with success where the other end names no protocol.
    ///
    /// # Errors
    ///
    /// [`PeerError::Certificate`].
    pub(crate) fn check_protocol(agreed: Option<&[u8]>) -> Result<()> {
        if agreed == Some(tls::ALPN) {
            return Ok(());
        }
        let text = "the other end speaks TLS and did not name the protocol sealane/1: make sure \
                    that Sealane is what listens, or dials, there";
        Err(PeerError::Certificate(text.to_owned()).into())
    }

    /// This host's own certificate for an end, where it has one.
    pub(super) fn own(&self, end: End) -> Option<&Own> {
        match end {
            End::Dials => self.0.dials.as_ref().ok().map(|(own, _)| own),
            End::Listens => self.0.listens.as_ref().ok().map(|(own, _)| own),
        }
    }

    pub(super) fn still_valid(&self, own: &Own, end: End, now: UnixTime) -> Result<()> {
        let loaded = &self.0;
        let verdict = loaded.authorities.verify(&own.key.cert, end, now);
        verdict.map_err(|why| match loaded.authorities.valid_at(now).next() {
            Some(_) => refusal(&loaded.layout, &own.cert, &own.facts, end, now, &why),
            None => self.ca_out_of_time(now).unwrap_or(Error::Bug("no CA".to_owned())),
        })
    }

    /// The error where no CA of ours is valid any more.
    pub(super) fn ca_out_of_time(&self, now: UnixTime) -> Option<Error> {
        let authorities = &self.0.authorities;
        match (authorities.valid_at(now).next(), authorities.all.first()) {
            (None, Some(ca)) => Some(out_of_time(&self.0.layout.ca, &ca.facts, now)),
            _ => None,
        }
    }
}

/// For tests: a host that does not look at its own files, so that the other end must find out.
#[cfg(test)]
impl Certificates {
    pub(super) fn unlooked(ca_pem: &str, cert_pem: &str, key_pem: &str, peer: PeerName) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let files = CertificateFiles {
            ca: path("ca-cert.pem"),
            cert: path("own-cert.pem"),
            key: path("own-key.pem"),
            crl: None,
        };
        for (path, text) in [(&files.ca, ca_pem), (&files.cert, cert_pem), (&files.key, key_pem)] {
            std::fs::write(path, text).expect("room");
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&files.key, mode).expect("our file");
        let layout = Layout::of_files(&files);
        let own = super::check::unlooked(&layout);
        let authorities = examine(&layout, UnixTime::now()).authorities.expect("a CA");
        Self::with(layout, peer, authorities, Ok(own.clone()), Ok(own)).expect("configurations")
    }

    pub(super) fn unlooked_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.dials.as_ref().expect("a certificate to dial").1)
    }

    pub(super) fn unlooked_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.listens.as_ref().expect("a certificate to listen").1)
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates")
            .field("ca", &self.0.layout.ca)
            .field("peer", &self.0.peer)
            .finish_non_exhaustive()
    }
}
