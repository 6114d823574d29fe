//! Whole handshakes in memory between the two configurations, and every error, with its words.

#[path = "../../../tests/support/pki.rs"]
mod pki;

mod foreign;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::UnixTime;
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection};

use self::pki::{CLIENT, DAY, Leaf, Pki, SERVER, write_key};
use super::{CertificateFiles, Certificates, End, PeerName, State, inspect, tls};
use crate::error::Error;

/// How a handshake ended at each end.
struct Outcome {
    dialler: Result<(), rustls::Error>,
    listener: Result<(), rustls::Error>,
}

fn handshake(dialler: &Certificates, listener: &Certificates) -> Outcome {
    shake(dialler.unlooked_client(), listener.unlooked_server())
}

fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let mut client = ClientConnection::new(client, Certificates::server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut outcome = Outcome { dialler: Ok(()), listener: Ok(()) };
    for _ in 0..8 {
        pass(&mut client, &mut server, &mut outcome.listener);
        pass(&mut server, &mut client, &mut outcome.dialler);
    }
    if outcome.dialler.is_ok() && outcome.listener.is_ok() {
        assert!(!client.is_handshaking() && !server.is_handshaking(), "it hangs");
        Certificates::check_protocol(client.alpn_protocol()).unwrap();
        Certificates::check_protocol(server.alpn_protocol()).unwrap();
        let suite = client.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
        let group = server.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
    outcome
}

/// Carries what one end has to say to the other, alerts too.
fn pass<A, B>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
    result: &mut Result<(), rustls::Error>,
) where
    A: rustls::SideData,
    B: rustls::SideData,
{
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() && result.is_ok() {
        to.read_tls(&mut rest).unwrap();
        *result = to.process_new_packets().map(drop);
    }
}

fn load(directory: &Path, peer: &str) -> Certificates {
    Certificates::from_directory(directory, peer.parse().unwrap()).unwrap()
}

fn explained(certificates: &Certificates, end: End, result: Result<(), rustls::Error>) -> String {
    let error = certificates.explain(end, &result.unwrap_err());
    assert!(error.is_authentication(), "{error}");
    error.to_string()
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Each end dials and each listens; what the one that refuses says, and what the other hears.
#[track_caller]
fn refused(good: &Certificates, bad: &Certificates, says: &[&str], hears: &[&str]) {
    let Outcome { dialler, listener } = handshake(bad, good);
    has(&explained(good, End::Listens, listener), says);
    has(&explained(bad, End::Dials, dialler), hears);
    let Outcome { dialler, listener } = handshake(good, bad);
    has(&explained(good, End::Dials, dialler), says);
    has(&explained(bad, End::Listens, listener), hears);
}

/// Loads without the look at the own files, so that the peer must find out.
fn unlooked(pki: &Pki, leaf: &Leaf, peer: &str) -> Certificates {
    let (cert, key) = pki.issue(leaf);
    Certificates::unlooked(&pki.ca_pem, &cert, &key, peer.parse().unwrap())
}

#[test]
fn two_hosts_that_name_each_other_meet() {
    let pki = Pki::new();
    let (a, b) = (pki.host("a.example"), pki.host("192.0.2.2"));
    let (a, b) = (load(&a, "192.0.2.2"), load(&b, "A.example"));
    for (dialler, listener) in [(&a, &b), (&b, &a)] {
        let outcome = handshake(dialler, listener);
        assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));
    }
    assert_eq!(a.peer(), &PeerName::Ip([192, 0, 2, 2].into()));
    let shown = format!("{a:?}");
    assert!(shown.contains("ca-cert.pem") && !shown.to_lowercase().contains("key"), "{shown}");
}

#[test]
fn a_fingerprint_names_a_host_and_only_one_of_our_ca() {
    let pki = Pki::new();
    let fingerprint = |dir: &Path| {
        let chain = super::files::certificates(&dir.join("client-cert.pem")).unwrap();
        super::peer_name::shown(&super::facts::fingerprint(&chain[0]))
    };
    let nameless = Leaf { names: Vec::new(), ..Leaf::named("") };
    let (a, b) = (pki.host("a.example"), pki.host_of("b", &nameless));
    let (sees, seen) = (load(&a, &fingerprint(&b)), load(&b, "a.example"));
    let outcome = handshake(&sees, &seen);
    assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));
    let wrong = load(&a, &fingerprint(&a));
    refused(
        &wrong,
        &seen,
        &["is sha256:", &fingerprint(&b), "was expected", "--peer"],
        &["expects another peer", "client-cert.pem", "sha256:"].map(|part| match part {
            "client-cert.pem" => "-cert.pem",
            part => part,
        }),
    );
    // The fingerprint alone does not do: another CA's certificate with it is refused.
    let other = Pki::with("Other CA", (-DAY, DAY));
    let stranger = other.host("b.example");
    let sees = load(&a, &fingerprint(&stranger));
    let outcome = handshake(&sees, &load(&stranger, "a.example"));
    has(&explained(&sees, End::Dials, outcome.dialler), &["not issued by the CA"]);
}

#[test]
fn another_host_of_the_same_ca_is_refused() {
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    let c = load(&pki.host("c.example"), "a.example");
    let heard = ["expects another peer", "-cert.pem", "c.example", "sha256:"];
    refused(&a, &c, &["is for c.example", "b.example was expected", "--peer"], &heard);
}

#[test]
fn certificates_of_a_peer_are_refused_with_the_reason() {
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    let leaf = Leaf::named("b.example");
    let expired = Leaf { valid: (-20 * DAY, -DAY), ..leaf.clone() };
    let says = ["expired 2", "this machine's clock says 2", "compare the clocks"];
    let hears = ["by its clock", "valid from", "-cert.pem", "compare the clocks"];
    refused(&a, &unlooked(&pki, &expired, "a.example"), &says, &hears);

    let early = Leaf { valid: (DAY, 20 * DAY), ..leaf.clone() };
    let says = ["not valid before", "compare the clocks"];
    refused(&a, &unlooked(&pki, &early, "a.example"), &says, &hears);

    let nameless = Leaf { names: Vec::new(), ..leaf.clone() };
    let says = ["no subjectAltName", "b.example was expected", "--peer sha256:"];
    let hears = ["expects another peer", "no subjectAltName"];
    refused(&a, &unlooked(&pki, &nameless, "a.example"), &says, &hears);

    let authority = Leaf { is_ca: true, ..leaf.clone() };
    let says = ["that of a CA", "CA:TRUE"];
    refused(&a, &unlooked(&pki, &authority, "a.example"), &says, &["CertificateUnknown"]);
}

#[test]
fn a_ca_that_is_not_ours_is_refused_even_by_the_same_name() {
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    for name in ["Other CA", "Test CA"] {
        let other = Pki::with(name, (-DAY, 365 * DAY));
        let leaf = Leaf::named("b.example");
        // Of a stranger's certificate no date is said, and no name.
        for valid in [(-DAY, DAY), (-20 * DAY, -DAY), (DAY, 2 * DAY)] {
            let (cert, key) = other.issue(&Leaf { valid, ..leaf.clone() });
            let peer = "a.example".parse().unwrap();
            let b = Certificates::unlooked(&pki.ca_pem, &cert, &key, peer);
            let says = ["not issued by the CA in", "ca-cert.pem", "pki check"];
            refused(&a, &b, &says, &["refused this end's certificate", "ca-cert.pem"]);
        }
    }
}

#[test]
fn a_usage_that_lacks_is_named() {
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    let only = |usage| Leaf { usages: vec![usage], ..Leaf::named("b.example") };
    let b = unlooked(&pki, &only(SERVER), "a.example");
    let outcome = handshake(&b, &a);
    has(&explained(&a, End::Listens, outcome.listener), &["clientAuth", "dials"]);
    has(&explained(&b, End::Dials, outcome.dialler), &["clientAuth", "-cert.pem"]);
    let b = unlooked(&pki, &only(CLIENT), "a.example");
    let outcome = handshake(&a, &b);
    has(&explained(&a, End::Dials, outcome.dialler), &["serverAuth", "listens"]);
    has(&explained(&b, End::Listens, outcome.listener), &["serverAuth", "-cert.pem"]);
}

#[test]
fn revoked_peers_are_refused_and_old_lists_are_no_lists() {
    let pki = Pki::new();
    let dir = pki.host_of("a", &Leaf { serial: 7, ..Leaf::named("a.example") });
    let b = load(&pki.host_of("b", &Leaf { serial: 8, ..Leaf::named("b.example") }), "a.example");
    let list = dir.join("ca-crl.pem");
    fs::write(&list, pki.revocations(&[9], DAY)).unwrap();
    let a = load(&dir, "b.example");
    let outcome = handshake(&a, &b);
    assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));

    fs::write(&list, pki.revocations(&[8, 9], DAY)).unwrap();
    let a = load(&dir, "b.example");
    let hears = ["its ca-crl.pem revokes it", "-cert.pem"];
    refused(&a, &b, &["is revoked by", "ca-crl.pem"], &hears);

    // Once its time has run out it says nothing of anybody.
    fs::write(&list, pki.revocations(&[9], DAY)).unwrap();
    let a = load(&dir, "b.example");
    let late = later(3 * DAY);
    let mut server = ServerConfig::clone(&a.unlooked_server());
    server.time_provider = Arc::new(late);
    let outcome = shake(b.unlooked_client(), Arc::new(server));
    let says = explained(&a, End::Listens, outcome.listener);
    has(&says, &["ca-crl.pem is out of date", "nextUpdate", "clock"]);
    has(&explained(&b, End::Dials, outcome.dialler), &["ca-crl.pem is out of date"]);
    let error = a.still_valid(a.own(End::Dials).unwrap(), End::Dials, late.0).unwrap_err();
    has(&error.to_string(), &["ca-crl.pem", "nextUpdate", "new list"]);
}

#[derive(Clone, Copy, Debug)]
struct Clock(UnixTime);

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

fn later(seconds: i64) -> Clock {
    let now = UnixTime::now().as_secs() + seconds.unsigned_abs();
    Clock(UnixTime::since_unix_epoch(std::time::Duration::from_secs(now)))
}

#[test]
fn what_runs_out_while_a_process_runs_is_noticed() {
    let pki = Pki::with("Short CA", (-DAY, 9 * DAY));
    let a = load(&pki.host("a.example"), "b.example");
    let b = load(&pki.host("b.example"), "a.example");
    let late = later(20 * DAY);
    let own = a.own(End::Listens).unwrap();
    let error = a.still_valid(own, End::Listens, late.0).unwrap_err().to_string();
    has(&error, &["ca-cert.pem", "CN=Short CA", "valid from", "clock"]);
    let mut client = ClientConfig::clone(&a.unlooked_client());
    client.time_provider = Arc::new(late);
    let outcome = shake(Arc::new(client), b.unlooked_server());
    let error = a.explain_at(End::Dials, &outcome.dialler.unwrap_err(), late.0).to_string();
    has(&error, &["ca-cert.pem", "CN=Short CA", "valid from"]);

    let pki = Pki::new();
    let brief = Leaf { valid: (-DAY, 9 * DAY), ..Leaf::named("a.example") };
    let a = load(&pki.host_of("a", &brief), "b.example");
    let own = a.own(End::Listens).unwrap();
    let error = a.still_valid(own, End::Listens, late.0).unwrap_err().to_string();
    has(&error, &["server-cert.pem", "notAfter", "new one"]);
}

#[test]
fn a_ca_in_between_stands_behind_the_host_and_needs_a_list_too() {
    let pki = Pki::new();
    let between = pki.between("Between CA");
    let dir = between.pki.host("a.example");
    spoilt(&dir, "server-cert.pem", &["issuer CN=Between CA", "behind the host's own"]);
    for end in ["server", "client"] {
        let path = dir.join(format!("{end}-cert.pem"));
        let own = fs::read_to_string(&path).unwrap();
        fs::write(path, own + &between.pem).unwrap();
    }
    let (a, dir_b) = (load(&dir, "b.example"), pki.host("b.example"));
    let b = load(&dir_b, "a.example");
    let outcome = handshake(&a, &b);
    assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));

    let list = dir_b.join("ca-crl.pem");
    fs::write(&list, pki.revocations(&[77], DAY)).unwrap();
    let hears = ["ca-crl.pem is out of date or of another CA"];
    let b = load(&dir_b, "a.example");
    refused(&b, &a, &["ca-crl.pem has no list of a CA"], &hears);
    let lists = pki.revocations(&[77], DAY) + &between.pki.revocations(&[77], DAY);
    fs::write(&list, lists).unwrap();
    let outcome = handshake(&a, &load(&dir_b, "a.example"));
    assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));
}

#[test]
fn a_stranger_learns_no_name() {
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    let mut client =
        ClientConnection::new(a.client_config().unwrap(), Certificates::server_name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let shown = String::from_utf8_lossy(&hello);
    assert!(!shown.contains("invalid") && !shown.contains("example"), "{shown}");
    assert!(shown.contains("sealane/1"));
    let verifier = super::verifier::Verifier::new(Arc::clone(&a.0.authorities), a.peer().clone());
    let verifier: &dyn rustls::server::danger::ClientCertVerifier = &verifier;
    assert!(verifier.client_auth_mandatory() && verifier.root_hint_subjects().is_empty());
}

#[test]
fn strangers_to_the_protocol_are_told_apart() {
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    let b = load(&pki.host("b.example"), "a.example");
    let changed = |change: fn(&mut ClientConfig)| {
        let mut config = ClientConfig::clone(&b.client_config().unwrap());
        change(&mut config);
        shake(Arc::new(config), a.server_config().unwrap())
    };
    let other = changed(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
    has(&explained(&a, End::Listens, other.listener), &["not Sealane"]);
    has(&explained(&b, End::Dials, other.dialler), &["not Sealane"]);
    let error = Certificates::check_protocol(None).unwrap_err();
    assert!(error.is_authentication());

    let silent = changed(|config| {
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
    });
    has(&explained(&a, End::Listens, silent.listener), &["showed no certificate"]);

    let mut server = ServerConnection::new(a.server_config().unwrap()).unwrap();
    server.read_tls(&mut &b"GET / HTTP/1.1\r\n\r\n"[..]).unwrap();
    let text = explained(&a, End::Listens, server.process_new_packets().map(drop));
    has(&text, &["does not speak TLS"]);
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn only_one_suite_group_and_version_is_spoken() {
    use rustls::crypto::{CryptoProvider, aws_lc_rs};
    let pki = Pki::new();
    let a = load(&pki.host("a.example"), "b.example");
    let b = load(&pki.host("b.example"), "a.example");
    let weaker = [
        CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..tls::provider() },
        CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..tls::provider()
        },
    ];
    for provider in weaker {
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let outcome = shake(Arc::new(config), a.server_config().unwrap());
        has(&explained(&a, End::Listens, outcome.listener), &["X25519MLKEM768"]);
        has(&explained(&b, End::Dials, outcome.dialler), &["same version"]);
    }
    let server = a.server_config().unwrap();
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.ticketer.enabled() && !server.session_storage.can_cache());
    let client = a.client_config().unwrap();
    assert!(!client.enable_early_data && !client.enable_sni);
    assert_eq!(client.alpn_protocols, [b"sealane/1"]);
}

/// The error of a directory, which the findings must say as well.
#[track_caller]
fn spoilt(directory: &Path, file: &str, parts: &[&str]) {
    let error = Certificates::from_directory(directory, "b.example".parse().unwrap());
    let error = error.expect_err(file).to_string();
    has(&error, &[file]);
    has(&error, parts);
    let findings = inspect(directory, None);
    let bad: Vec<_> = findings.iter().filter(|found| found.state == State::Bad).collect();
    let one = bad.iter().find(|found| found.file.ends_with(file));
    let one = one.unwrap_or_else(|| panic!("{file} is not bad in {findings:?}"));
    has(&format!("{}: {}", one.text, one.remedy), parts);
}

fn both(directory: &Path, what: &str, text: &str) {
    for end in ["server", "client"] {
        let path = directory.join(format!("{end}-{what}.pem"));
        if what == "key" { write_key(&path, text) } else { fs::write(path, text).unwrap() }
    }
}

#[test]
fn own_certificates_are_looked_at_when_loaded() {
    let pki = Pki::new();
    let leaf = Leaf::named("a.example");
    let spoil = |leaf: &Leaf, parts: &[&str]| {
        let dir = pki.host_of("own", leaf);
        spoilt(&dir, "server-cert.pem", parts);
    };
    let clock = "this machine's clock says 2";
    spoil(
        &Leaf { valid: (-9 * DAY, -DAY), ..leaf.clone() },
        &["notAfter 2", "past", clock, "new one"],
    );
    spoil(&Leaf { valid: (DAY, 9 * DAY), ..leaf.clone() }, &["notBefore 2", "to come", clock]);
    spoil(&Leaf { is_ca: true, ..leaf.clone() }, &["CA:TRUE", "CA:FALSE"]);
    spoil(
        &Leaf { usages: vec![ExtendedKeyUsagePurpose::CodeSigning], ..leaf.clone() },
        &["extendedKeyUsage codeSigning", "serverAuth"],
    );
    let dir = pki.host_of("own", &leaf);
    both(&dir, "key", &pki.issue(&leaf).1);
    spoilt(&dir, "server-key.pem", &["does not fit", "server-cert.pem", "one pair"]);
    both(&dir, "cert", "no PEM\n");
    spoilt(&dir, "server-cert.pem", &["BEGIN CERTIFICATE", "docs/certificates.md"]);
    both(&dir, "cert", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    spoilt(&dir, "server-cert.pem", &["damaged certificate"]);
    both(&dir, "cert", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    spoilt(&dir, "server-cert.pem", &["PEM that is damaged", "whole"]);
    for (name, reason) in [("Other CA", "issuer CN=Test CA"), ("Test CA", "another key")] {
        let dir = pki.host_of("own", &leaf);
        fs::write(dir.join("ca-cert.pem"), Pki::with(name, (-DAY, DAY)).ca_pem).unwrap();
        spoilt(&dir, "server-cert.pem", &[reason, "ca-cert.pem"]);
    }
}

#[test]
fn keys_are_private_and_files_are_files() {
    let pki = Pki::new();
    let leaf = Leaf::named("a.example");
    let dir = pki.host_of("own", &leaf);
    let mode = |mode| {
        for end in ["server", "client"] {
            let path = dir.join(format!("{end}-key.pem"));
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    mode(0o640);
    load(&dir, "b.example");
    mode(0o644);
    spoilt(&dir, "server-key.pem", &["mode 0644", "0640", "chmod o="]);
    both(
        &dir,
        "key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    spoilt(&dir, "server-key.pem", &["encrypted", "openssl pkey"]);
    both(&dir, "key", &pki.issue(&leaf).0);
    spoilt(&dir, "server-key.pem", &["no private key", "this is a certificate"]);
    for end in ["server", "client"] {
        fs::remove_file(dir.join(format!("{end}-key.pem"))).unwrap();
    }
    spoilt(&dir, "server-key.pem", &["No such file", "docs/certificates.md"]);
    let ca = dir.join("ca-cert.pem");
    fs::remove_file(&ca).unwrap();
    spoilt(&dir, "ca-cert.pem", &["No such file"]);
    nix::unistd::mkfifo(&ca, nix::sys::stat::Mode::S_IRWXU).unwrap();
    spoilt(&dir, "ca-cert.pem", &["no regular file"]);
    fs::remove_file(&ca).unwrap();
    fs::File::create(&ca).unwrap().set_len(1 << 30).unwrap();
    spoilt(&dir, "ca-cert.pem", &["1073741824 bytes", "at most"]);
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("ca-cert.pem"), &pki.ca_pem).unwrap();
    let name = empty.path().file_name().unwrap().to_str().unwrap().to_owned();
    spoilt(empty.path(), &name, &["no certificate of this host", "client-cert.pem"]);
    spoilt(Path::new("/nonexistent/pki"), "nonexistent/pki", &["No such file"]);
}

#[test]
fn the_ca_and_its_list_are_looked_at_when_loaded() {
    let pki = Pki::new();
    let dir = pki.host("a.example");
    let ca = |text: &str| fs::write(dir.join("ca-cert.pem"), text).unwrap();
    ca(&pki.issue(&Leaf::named("a.example")).0);
    spoilt(&dir, "ca-cert.pem", &["which is no CA", "keyCertSign"]);
    let old = Pki::with("Old CA", (-9 * DAY, -DAY));
    let dir = old.host("a.example");
    spoilt(&dir, "ca-cert.pem", &["CN=Old CA", "valid from", "clock"]);
    // Beside a valid one it is no more than a warning.
    let dir = pki.host("a.example");
    fs::write(dir.join("ca-cert.pem"), format!("{}{}", old.ca_pem, pki.ca_pem)).unwrap();
    load(&dir, "b.example");
    let findings = inspect(&dir, None);
    assert!(findings.iter().any(|f| f.state == State::Warning && f.text.contains("CN=Old CA")));

    let dir = pki.host("a.example");
    let list = |text: &str| fs::write(dir.join("ca-crl.pem"), text).unwrap();
    list("nothing");
    spoilt(&dir, "ca-crl.pem", &["BEGIN X509 CRL"]);
    list(&pki.revocations(&[], -DAY));
    spoilt(&dir, "ca-crl.pem", &["nextUpdate 2", "clock", "new list"]);
    list(&Pki::with("Other CA", (-DAY, DAY)).revocations(&[], DAY));
    spoilt(&dir, "ca-crl.pem", &["issuer CN=Other CA", "CN=Test CA"]);
    list(&Pki::with("Test CA", (-DAY, DAY)).revocations(&[], DAY));
    spoilt(&dir, "ca-crl.pem", &["not of the CA", "made anew"]);
    list(&pki.revocations(&[1], DAY));
    spoilt(&dir, "server-cert.pem", &["ca-crl.pem revokes", "new key"]);
}

#[test]
fn one_pair_serves_its_end_and_the_other_end_is_told() {
    let pki = Pki::new();
    let dir = pki.host("a.example");
    fs::remove_file(dir.join("client-cert.pem")).unwrap();
    fs::remove_file(dir.join("client-key.pem")).unwrap();
    let a = load(&dir, "b.example");
    a.server_config().unwrap();
    let error = a.client_config().unwrap_err().to_string();
    has(&error, &["no client-cert.pem", "client-key.pem", "dials", "clientAuth"]);
    let findings = inspect(&dir, Some(&"a.example".parse().unwrap()));
    let warned =
        |text: &str| findings.iter().any(|f| f.state == State::Warning && f.text.contains(text));
    assert!(warned("can listen and not dial") && warned("is this host itself"), "{findings:?}");
    assert!(findings.iter().all(|found| found.state != State::Bad), "{findings:?}");

    // Half spoilt: what concerns the other end alone waits until it is used.
    let dir = pki.host("a.example");
    let expired = Leaf { valid: (-9 * DAY, -DAY), ..Leaf::named("a.example") };
    fs::write(dir.join("client-cert.pem"), pki.issue(&expired).0).unwrap();
    let a = load(&dir, "b.example");
    a.server_config().unwrap();
    has(&a.client_config().unwrap_err().to_string(), &["client-cert.pem", "notAfter"]);
}

#[test]
fn single_files_serve_both_ends_as_far_as_their_usage_goes() {
    let pki = Pki::new();
    let files = |dir: &PathBuf| CertificateFiles {
        ca: dir.join("ca-cert.pem"),
        cert: dir.join("server-cert.pem"),
        key: dir.join("server-key.pem"),
        crl: None,
    };
    let peer = || "b.example".parse::<PeerName>().unwrap();
    let dir = pki.host("a.example");
    let a = Certificates::from_files(&files(&dir), peer()).unwrap();
    let b = load(&pki.host("b.example"), "a.example");
    for (dialler, listener) in [(&a, &b), (&b, &a)] {
        let outcome = handshake(dialler, listener);
        assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));
    }
    let half = Leaf { usages: vec![SERVER], ..Leaf::named("a.example") };
    let a = Certificates::from_files(&files(&pki.host_of("half", &half)), peer()).unwrap();
    a.server_config().unwrap();
    has(&a.client_config().unwrap_err().to_string(), &["clientAuth", "serverAuth"]);
    let missing = CertificateFiles { crl: Some(dir.join("none.pem")), ..files(&dir) };
    let error = Certificates::from_files(&missing, peer()).unwrap_err();
    assert!(matches!(error, Error::System(_)) && error.to_string().contains("none.pem"));
    let bad = Certificates::from_directory(&dir, PeerName::Dns("*".to_owned())).unwrap_err();
    has(&bad.to_string(), &["peer", "pattern"]);
}

#[test]
fn findings_tell_what_is_worth_knowing() {
    let pki = Pki::new();
    let soon = Leaf { valid: (-DAY, 10 * DAY), ..Leaf::named("*.example") };
    let dir = pki.host_of("soon", &soon);
    fs::write(dir.join("ca-key.pem"), "").unwrap();
    fs::write(dir.join("ca-crl.pem"), pki.revocations(&[5], DAY)).unwrap();
    let findings = inspect(&dir, Some(&"b.other".parse().unwrap()));
    let text = findings.iter().map(|f| format!("{:?} {} {}", f.state, f.text, f.remedy));
    let text = text.collect::<Vec<_>>().join("\n");
    has(
        &text,
        &[
            "Ok CA CN=Test CA, ECDSA P-256, sha256:",
            "Warning list of CN=Test CA: 1 revoked, next update 2",
            "Warning *.example; ECDSA P-256, sha256:",
            "(10 days); serverAuth, clientAuth; by CN=Test CA",
            "is that of many hosts",
            "Ok fits the certificate",
            "the private key of the CA, on a host",
            "Ok the peer b.other is another host",
        ],
    );
    let dir = pki.host_of("nameless", &Leaf { names: Vec::new(), ..Leaf::named("") });
    let findings = inspect(&dir, None);
    let found = findings.iter().find(|f| f.text.contains("no subjectAltName; subject")).unwrap();
    has(&found.remedy, &["--peer sha256:"]);
}
