//! How the two ends meet, and how they know each other: the same options for every command.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use clap::Args;
use sealane::{
    CertificateFiles, Certificates, Dial, Error, Expected, Listener, OneTimeSecret, PeerName, Role,
    Trust, passed_sockets,
};

use crate::Failure;

/// Which end connects does not depend on which is the source.
#[derive(Args, Clone, Default)]
#[group(skip)]
pub(crate) struct Meeting {
    /// Wait for the other end at ADDRESS:PORT, [V6]:PORT, unix:PATH, vsock:CID:PORT (or
    /// vsock:any:PORT), or at a listening socket that was passed: fd:N, systemd
    #[arg(long, value_name = "ADDRESS", group = "way")]
    pub(crate) listen: Option<String>,
    /// Connect to the other end, which waits at HOST:PORT, [V6]:PORT, unix:PATH or vsock:CID:PORT
    #[arg(long, value_name = "ADDRESS", group = "way")]
    connect: Option<String>,
    /// Use connected sockets that were passed, by their numbers: one for each lane, for a tunnel
    /// one more than the hypervisor has channels
    #[arg(long, value_name = "N,...", group = "way", value_delimiter = ',')]
    fd: Vec<i32>,
    /// The sockets of --fd were accepted, so that the other end speaks first; else the source does
    #[arg(long, requires = "fd")]
    accepted: bool,
    /// Both ends connect to each other at once, through two firewalls which let connections out
    /// alone: each names --bind ADDRESS:PORT of its own and --connect of the other's. Lanes take
    /// consecutive ports
    #[arg(long, requires_all = ["connect", "bind"])]
    rendezvous: bool,
    /// Where connections leave from: ADDRESS, ADDRESS:PORT, or a range of ports ADDRESS:LOW-HIGH,
    /// :LOW-HIGH
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Name of this migration, the same at both ends: any text. Who watches the network sees a hash
    /// of it, and could try names that he can guess: a random UUID tells nothing
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) migration: String,
}

/// Where the other end comes from, or is.
pub(crate) enum Way {
    Dials(Dial),
    Listens(Listener),
}

impl Meeting {
    /// Whether who listens says nothing of who is the source.
    pub(crate) fn is_symmetric(&self) -> bool {
        !self.fd.is_empty() || self.rendezvous
    }

    /// `to` is another spelling of --connect that some commands have.
    pub(crate) fn way(&self, role: Role, to: Option<&str>) -> Result<Way, Failure> {
        self.find_way(role, to).map_err(|failure| match failure {
            Failure::Sealane(Error::Config(e)) if matches!(e.key, "address" | "bind") => {
                Failure::Usage(e.to_string())
            }
            failure => failure,
        })
    }

    fn find_way(&self, role: Role, to: Option<&str>) -> Result<Way, Failure> {
        self.check()?;
        if !self.fd.is_empty() {
            let sockets = passed_sockets(&self.fd)?;
            return Ok(match role == Role::Source && !self.accepted {
                true => Way::Dials(Dial::sockets(sockets)?),
                false => Way::Listens(Listener::sockets(sockets)?),
            });
        }
        let bind = self.bind.as_deref();
        match (self.listen.as_deref(), self.connect.as_deref().or(to), bind) {
            (Some(_), _, Some(_)) => Err(Failure::Usage(
                "--bind is where connections leave from: --listen names where they come to".into(),
            )),
            (Some(address), ..) => Ok(Way::Listens(Listener::bind(address)?)),
            (None, Some(remote), Some(local)) if self.rendezvous => Ok(match role {
                Role::Source => Way::Dials(Dial::rendezvous(local, remote)?),
                Role::Target => Way::Listens(Listener::rendezvous(local, remote)?),
            }),
            (None, Some(address), Some(from)) => Ok(Way::Dials(Dial::to(address)?.bind(from)?)),
            (None, Some(address), None) => Ok(Way::Dials(Dial::to(address)?)),
            (None, None, _) => Err(Failure::Usage("name --listen or --connect".into())),
        }
    }
}

impl Meeting {
    /// What clap lets pass, where an option that is wanted excludes one that is there.
    fn check(&self) -> Result<(), Failure> {
        let text = match (self.fd.is_empty(), self.accepted, &self.bind) {
            (false, _, Some(_)) => {
                "--bind is where connections leave from: those of --fd are made already"
            }
            (true, true, _) => "--accepted says of the sockets of --fd who speaks first: name --fd",
            _ => return Ok(()),
        };
        Err(Failure::Usage(text.into()))
    }
}

impl Way {
    /// Keeps whoever comes for a migration before it is waited for.
    pub(crate) fn expect(&self, migration: &str) -> Option<Expected> {
        match self {
            Self::Dials(_) => None,
            Self::Listens(listener) => Some(listener.expect(migration)),
        }
    }

    /// Where it listens, where it does.
    pub(crate) fn listens_at(&self) -> Option<String> {
        match self {
            Self::Dials(_) => None,
            Self::Listens(listener) => Some(listener.to_string()),
        }
    }
}

/// A one-time secret, certificates, or both.
#[derive(Args, Clone, Default)]
#[group(skip)]
pub(crate) struct TrustOptions {
    /// The one-time secret, the same at both ends: hex digits, as `sealane secret new` writes them,
    /// or a line identity:hex as in QEMU's keys.psk. Removed when the transfer is done. With
    /// certificates: both, and an attacker must break both
    #[arg(long, value_name = "FILE", group = "trust")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Leave the secret file where it is afterwards
    #[arg(long, requires = "secret_file")]
    pub(crate) keep_secret: bool,
    /// Which line of the secret file, where it has several; only that line is removed
    #[arg(long, value_name = "NAME", requires = "secret_file")]
    psk_identity: Option<String>,
    /// Certificates, in a directory as QEMU and libvirt lay it out: ca-cert.pem, ca-crl.pem,
    /// client-cert.pem and client-key.pem of the end that connects, server-cert.pem and
    /// server-key.pem of the end that listens
    #[arg(long, value_name = "DIR", group = "trust", group = "certificates")]
    pki: Option<PathBuf>,
    /// Certificates, as single files: of the CA
    #[arg(long, value_name = "FILE", group = "trust", group = "certificates")]
    #[arg(requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,
    /// Of this host, with --ca
    #[arg(long, value_name = "FILE", requires = "ca")]
    cert: Option<PathBuf>,
    /// Its key, with --ca
    #[arg(long, value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
    /// What the CA has revoked, with --ca
    #[arg(long, value_name = "FILE", requires = "ca")]
    crl: Option<PathBuf>,
    /// The other end, as its certificate names it: NAME, IP or sha256:FINGERPRINT
    #[arg(long, value_name = "PEER", requires = "certificates")]
    peer: Option<PeerName>,
}

/// Why a CA is not enough.
const NO_PEER: &str = "certificates without --peer: the CA has signed other hosts too, and each of \
     them could take this guest or give another in its place: name the one that you mean with \
     --peer NAME, IP or sha256:FINGERPRINT";

impl TrustOptions {
    /// Reads what it takes.
    pub(crate) fn trust(&self) -> Result<Trust, Failure> {
        let secret = self.secret_file.as_deref().map(|file| match &self.psk_identity {
            Some(identity) => OneTimeSecret::read_identity(file, identity),
            None => OneTimeSecret::read(file),
        });
        let secret = secret.transpose()?;
        match (secret, self.certificates()?) {
            (Some(secret), Some(certificates)) => Ok(Trust::both(secret, certificates)),
            (Some(secret), None) => Ok(secret.into()),
            (None, Some(certificates)) => Ok(certificates.into()),
            (None, None) => Err(Failure::Usage("name --secret-file, --pki, or both".into())),
        }
    }

    fn certificates(&self) -> Result<Option<Certificates>, Failure> {
        if self.pki.is_none() && self.ca.is_none() {
            return Ok(None);
        }
        let Some(peer) = self.peer.clone() else { return Err(Failure::Usage(NO_PEER.into())) };
        let certificates = match (&self.pki, &self.ca, &self.cert, &self.key) {
            (Some(directory), ..) => Certificates::from_directory(directory, peer)?,
            (None, Some(ca), Some(cert), Some(key)) => {
                let (ca, cert, key) = (ca.clone(), cert.clone(), key.clone());
                let crl = self.crl.clone();
                Certificates::from_files(&CertificateFiles { ca, cert, key, crl }, peer)?
            }
            _ => return Err(Failure::Usage("--ca wants --cert and --key".into())),
        };
        Ok(Some(certificates))
    }

    /// The files that it takes, as far as they tell that something in them changed.
    pub(crate) fn files(&self) -> Vec<Option<(u64, u64, i64, i64)>> {
        const PKI: [&str; 6] = [
            "ca-cert.pem",
            "ca-crl.pem",
            "client-cert.pem",
            "client-key.pem",
            "server-cert.pem",
            "server-key.pem",
        ];
        let single = [&self.secret_file, &self.ca, &self.cert, &self.key, &self.crl];
        let single = single.into_iter().flatten().cloned();
        let pki = self.pki.iter().flat_map(|pki| PKI.map(|name| pki.join(name)));
        let state = |path: PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
        };
        single.chain(pki).map(state).collect()
    }

    /// A secret serves one migration.
    pub(crate) fn spend(&self) -> Result<(), Failure> {
        match &self.secret_file {
            Some(file) if !self.keep_secret => {
                Ok(OneTimeSecret::remove(file, self.psk_identity.as_deref())?)
            }
            _ => Ok(()),
        }
    }
}
