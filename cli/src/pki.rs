//! `sealane pki`: what is wrong with certificates, and a CA to try them with.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sealane::PeerName;
use sealane::pki::{Finding, State};

use crate::Failure;
use crate::arguments::{PkiCheckArguments, PkiNewArguments};
use crate::output::{event, say};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Prints a line for each finding; exit code 1 where something is bad.
pub(crate) fn check(arguments: &PkiCheckArguments) -> ExitCode {
    let findings = sealane::pki::inspect(&arguments.directory, arguments.peer.as_ref());
    for finding in &findings {
        if arguments.json {
            event(&serde_json::json!({
                "file": finding.file.display().to_string(), "state": word(finding.state).trim(),
                "text": finding.text, "remedy": finding.remedy,
            }));
        } else {
            say(&line(&arguments.directory, finding));
        }
    }
    let bad = findings.iter().any(|finding| finding.state == State::Bad);
    if bad && !arguments.json {
        say("whoever needs what is bad here meets nobody: mend it first");
    }
    ExitCode::from(u8::from(bad))
}

fn line(directory: &Path, finding: &Finding) -> String {
    let name = match finding.file.strip_prefix(directory) {
        Ok(name) if !name.as_os_str().is_empty() => name.display().to_string(),
        Ok(_) => "directory".to_owned(),
        Err(_) => finding.file.display().to_string(),
    };
    let arrow = if finding.remedy.is_empty() { "" } else { ": " };
    format!("{}  {name:<16} {}{arrow}{}", word(finding.state), finding.text, finding.remedy)
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok     ",
        State::Warning => "warning",
        State::Bad => "bad    ",
    }
}

/// A file that is to be made.
struct Planned {
    path: PathBuf,
    text: String,
    mode: u32,
}

/// Makes a CA and a directory for each host: everything, or nothing.
pub(crate) fn new(arguments: &PkiNewArguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let hosts = hosts(&arguments.hosts)?;
    let planned = plan(directory, &hosts, arguments.days)
        .map_err(|e| Failure::Text(format!("certificates cannot be made: {e}: name fewer days")))?;
    let mut made = Made::default();
    make(directory, &hosts, &planned, &mut made)?;
    made.keep();
    for host in &hosts {
        let place = directory.join(host.to_string());
        let place = place.display();
        say(&format!("{place}: copy it to {host}, by a channel that nobody else reads"));
    }
    say(&format!(
        "{}: the key of the CA: keep it from every host",
        directory.join("ca-key.pem").display()
    ));
    say("then, on each host: sealane pki check DIR --peer OTHER-HOST, and the same DIR as --pki");
    Ok(())
}

/// The hosts' names, each once.
fn hosts(names: &[String]) -> Result<Vec<PeerName>, Failure> {
    let mut hosts: Vec<PeerName> = Vec::new();
    for name in names {
        let host: PeerName = name.parse().map_err(|e| Failure::Text(format!("--host: {e}")))?;
        if matches!(host, PeerName::Sha256(_)) {
            return Err(Failure::Text(format!(
                "--host {name}: a fingerprint is known once a certificate is made: name the host"
            )));
        }
        if hosts.contains(&host) {
            return Err(Failure::Text(format!("--host {name}: it is named twice")));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

fn plan(directory: &Path, hosts: &[PeerName], days: u32) -> Result<Vec<Planned>, rcgen::Error> {
    let mut ca = params("Sealane trial CA", days);
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let ca_cert = ca.self_signed(&key)?.pem();
    let private = |path: PathBuf, text| Planned { path, text, mode: 0o600 };
    let public = |path: PathBuf, text| Planned { path, text, mode: 0o644 };
    let mut planned = vec![
        private(directory.join("ca-key.pem"), key.serialize_pem()),
        public(directory.join("ca-cert.pem"), ca_cert.clone()),
    ];
    let issuer = Issuer::new(ca, key);
    for host in hosts {
        let place = directory.join(host.to_string());
        planned.push(public(place.join("ca-cert.pem"), ca_cert.clone()));
        for (end, usage) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let mut params = params(&host.to_string(), days);
            params.subject_alt_names = vec![match host {
                PeerName::Ip(address) => SanType::IpAddress(*address),
                name => SanType::DnsName(name.to_string().try_into()?),
            }];
            params.extended_key_usages = vec![usage];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let cert = params.signed_by(&key, &issuer)?.pem();
            planned.push(private(place.join(format!("{end}-key.pem")), key.serialize_pem()));
            planned.push(public(place.join(format!("{end}-cert.pem")), cert));
        }
    }
    Ok(planned)
}

/// Valid from an hour ago on, since clocks differ.
fn params(name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60 * 60)).into();
    params.not_after = (now + DAY * days).into();
    params
}

/// What is removed again where not everything could be made.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Made {
    fn keep(mut self) {
        self.files.clear();
        self.directories.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for directory in self.directories.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn make(
    directory: &Path,
    hosts: &[PeerName],
    planned: &[Planned],
    made: &mut Made,
) -> Result<(), Failure> {
    let failed = |path: &Path, e: &std::io::Error| {
        let remedy = match e.kind() {
            std::io::ErrorKind::AlreadyExists => ": it is left alone: name another directory",
            _ => "",
        };
        Failure::Text(format!("{}: {e}{remedy}", path.display()))
    };
    if !directory.is_dir() {
        private_directory(directory).map_err(|e| failed(directory, &e))?;
        made.directories.push(directory.to_owned());
    }
    for host in hosts {
        let place = directory.join(host.to_string());
        private_directory(&place).map_err(|e| failed(&place, &e))?;
        made.directories.push(place);
    }
    for Planned { path, text, mode } in planned {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(*mode).open(path);
        let mut file = file.map_err(|e| failed(path, &e))?;
        made.files.push(path.clone());
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|e| failed(path, &e))?;
    }
    Ok(())
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}
