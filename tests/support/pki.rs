//! Certificates for tests.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sealane::{Certificates, Result};

/// A CA and a place for what it issues.
pub struct Pki {
    place: tempfile::TempDir,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "a CA of tests");
        let pem = ca.self_signed(&key).unwrap().pem();
        Self { place: tempfile::tempdir().unwrap(), pem, issuer: Issuer::new(ca, key) }
    }

    /// The directory of a host, both pairs in it.
    pub fn host(&self, name: &str) -> PathBuf {
        let directory = self.place.path().join(name);
        if directory.exists() {
            return directory;
        }
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("ca-cert.pem"), &self.pem).unwrap();
        for (end, usage) in [
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut host = CertificateParams::new(vec![name.to_owned()]).unwrap();
            host.extended_key_usages = vec![usage];
            let cert = host.signed_by(&key, &self.issuer).unwrap();
            fs::write(directory.join(format!("{end}-cert.pem")), cert.pem()).unwrap();
            let file = directory.join(format!("{end}-key.pem"));
            fs::write(&file, key.serialize_pem()).unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        }
        directory
    }

    /// What `host` shows, and whom it expects.
    pub fn certificates(&self, host: &str, peer: &str) -> Certificates {
        load(&self.host(host), peer).unwrap()
    }
}

pub fn load(directory: &Path, peer: &str) -> Result<Certificates> {
    Certificates::from_directory(directory, peer.parse()?)
}
