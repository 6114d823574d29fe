//! A CA and hosts of it, laid out as QEMU and libvirt do. Unit tests include this file by its
//! path.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};

pub const SERVER: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ServerAuth;
pub const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;
pub const DAY: i64 = 24 * 60 * 60;

/// A CA with a directory for its hosts.
pub struct Pki {
    pub directory: tempfile::TempDir,
    pub issuer: Issuer<'static, KeyPair>,
    pub ca_pem: String,
}

/// A CA that another one issued.
pub struct Between {
    /// It issues as any; the CA's file is that of the one above.
    pub pki: Pki,
    /// Its own certificate, to stand behind a host's.
    pub pem: String,
}

/// What a host's certificate says.
#[derive(Clone)]
pub struct Leaf {
    /// DNS names and addresses.
    pub names: Vec<String>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// Seconds from now.
    pub valid: (i64, i64),
    pub is_ca: bool,
    pub serial: u64,
}

impl Leaf {
    pub fn named(name: &str) -> Self {
        Self {
            names: vec![name.to_owned()],
            usages: vec![SERVER, CLIENT],
            valid: (-DAY, 365 * DAY),
            is_ca: false,
            serial: 1,
        }
    }
}

impl Pki {
    pub fn new() -> Self {
        Self::with("Test CA", (-DAY, 365 * DAY))
    }

    /// A CA of this name, valid between seconds from now.
    pub fn with(name: &str, valid: (i64, i64)) -> Self {
        let params = authority(name, valid);
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, issuer: Issuer::new(params, key), ca_pem }
    }

    /// A CA in between: its hosts' chains lead to this CA.
    pub fn between(&self, name: &str) -> Between {
        let params = authority(name, (-DAY, 365 * DAY));
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer::new(params, key);
        Between { pki: Self { directory, issuer, ca_pem: self.ca_pem.clone() }, pem }
    }

    /// A directory of a host with both pairs, for its name.
    pub fn host(&self, name: &str) -> PathBuf {
        self.host_of(name, &Leaf::named(name))
    }

    /// A directory of a host with both pairs, which are alike.
    pub fn host_of(&self, directory: &str, leaf: &Leaf) -> PathBuf {
        let (cert, key) = self.issue(leaf);
        let path = self.directory.path().join(directory);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("ca-cert.pem"), &self.ca_pem).unwrap();
        for end in ["server", "client"] {
            fs::write(path.join(format!("{end}-cert.pem")), &cert).unwrap();
            write_key(&path.join(format!("{end}-key.pem")), &key);
        }
        path
    }

    /// A certificate and its key.
    pub fn issue(&self, leaf: &Leaf) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (self.issue_for(leaf, &key), key.serialize_pem())
    }

    pub fn issue_for(&self, leaf: &Leaf, key: &KeyPair) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "host.example");
        params.subject_alt_names = leaf.names.iter().map(|name| alternative(name)).collect();
        params.extended_key_usages = leaf.usages.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (at(leaf.valid.0), at(leaf.valid.1));
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        if leaf.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// A list of the CA that revokes these serial numbers.
    pub fn revocations(&self, serials: &[u64], next_update_s: i64) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: at(-DAY),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: at(-2 * DAY),
            next_update: at(next_update_s),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

pub fn write_key(path: &Path, pem: &str) {
    fs::write(path, pem).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn authority(name: &str, valid: (i64, i64)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(valid.0), at(valid.1));
    params
}

fn alternative(name: &str) -> SanType {
    match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().unwrap()),
    }
}

/// Seconds from now, as rcgen takes it.
fn at<T: From<SystemTime>>(seconds: i64) -> T {
    let now = SystemTime::now();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    T::from(if seconds < 0 { now - distance } else { now + distance })
}
