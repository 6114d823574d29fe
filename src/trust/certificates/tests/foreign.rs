//! Certificates that other programs made: OpenSSL and GnuTLS, every kind of key and of file.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{End, explained, handshake, has, load, spoilt};

/// Runs a program with its output out of the way; `false`, aloud, where it is not there.
fn there(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIP: {test}: {program} is not installed");
    }
    found
}

#[track_caller]
fn run(directory: &Path, program: &str, arguments: &str) {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).current_dir(directory);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
}

const SERVER_AND_CLIENT: &str = "extendedKeyUsage=serverAuth,clientAuth\n\
                                 basicConstraints=critical,CA:FALSE\n\
                                 keyUsage=critical,digitalSignature\n";

/// A CA in `directory` and hosts a.example and b.example, with keys that `key` makes.
fn openssl(directory: &Path, key: &str) {
    let cnf = "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\n\
               keyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
    fs::write(directory.join("cnf"), cnf).unwrap();
    run(directory, "openssl", &format!("{key} -out ca.key"));
    let request = "req -config cnf -new -subj /CN=Tool-CA";
    let more = "-x509 -extensions ca -key ca.key -days 30 -out ca.pem";
    run(directory, "openssl", &format!("{request} {more}"));
    for host in ["a.example", "b.example"] {
        let extensions = format!("{SERVER_AND_CLIENT}subjectAltName=DNS:{host},IP:192.0.2.1\n");
        fs::write(directory.join("ext"), extensions).unwrap();
        run(directory, "openssl", &format!("{key} -out host.key"));
        run(directory, "openssl", "req -config cnf -new -subj /CN=x -key host.key -out host.csr");
        let issue = "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -set_serial 5 -days 20";
        run(directory, "openssl", &format!("{issue} -extfile ext -out host.pem"));
        lay_out(directory, host);
    }
}

fn lay_out(directory: &Path, host: &str) {
    let place = directory.join(host);
    fs::create_dir(&place).unwrap();
    fs::copy(directory.join("ca.pem"), place.join("ca-cert.pem")).unwrap();
    for end in ["server", "client"] {
        fs::copy(directory.join("host.pem"), place.join(format!("{end}-cert.pem"))).unwrap();
        let key = fs::read_to_string(directory.join("host.key")).unwrap();
        super::write_key(&place.join(format!("{end}-key.pem")), &key);
    }
}

#[track_caller]
fn meet(directory: &Path) {
    let a = load(&directory.join("a.example"), "b.example");
    let b = load(&directory.join("b.example"), "a.example");
    for (dialler, listener) in [(&a, &b), (&b, &a)] {
        let outcome = handshake(dialler, listener);
        assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())));
    }
}

#[test]
fn hosts_with_certificates_of_openssl_meet() {
    if !there("hosts_with_certificates_of_openssl_meet", "openssl") {
        return;
    }
    for (key, begin) in [
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "BEGIN PRIVATE"),
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072", "BEGIN PRIVATE"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", "BEGIN PRIVATE"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384", "BEGIN PRIVATE"),
        ("genpkey -algorithm ED25519", "BEGIN PRIVATE"),
        ("ecparam -genkey -noout -name prime256v1", "BEGIN EC PRIVATE"),
        ("ecparam -genkey -noout -name secp384r1", "BEGIN EC PRIVATE"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        openssl(directory.path(), key);
        let text = fs::read_to_string(directory.path().join("host.key")).unwrap();
        assert!(text.contains(begin), "{key}: {begin}");
        meet(directory.path());
    }
}

#[test]
fn old_kinds_of_openssl_are_read_or_refused_with_the_reason() {
    if !there("old_kinds_of_openssl_are_read_or_refused_with_the_reason", "openssl") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    openssl(root, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048");
    // PKCS#1.
    for end in ["server", "client"] {
        let file = format!("a.example/{end}-key.pem");
        run(root, "openssl", &format!("rsa -traditional -in {file} -out pkcs1"));
        let text = fs::read_to_string(root.join("pkcs1")).unwrap();
        assert!(text.contains("BEGIN RSA PRIVATE"), "{end}");
        super::write_key(&root.join(file), &text);
    }
    meet(root);
    // `openssl x509 -req` without an extension file.
    let issue = "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -set_serial 6 -days 20";
    run(root, "openssl", &format!("{issue} -out host.pem"));
    fs::remove_dir_all(root.join("b.example")).unwrap();
    lay_out(root, "b.example");
    spoilt(&root.join("b.example"), "server-cert.pem", &["version 1", "subjectAltName"]);
}

#[test]
fn hosts_with_certificates_of_gnutls_meet_and_its_list_counts() {
    if !there("hosts_with_certificates_of_gnutls_meet_and_its_list_counts", "certtool") {
        return;
    }
    for key in [
        "--key-type=rsa --bits=2048",
        "--key-type=rsa --bits=3072",
        "--key-type=ecdsa --curve=secp256r1",
        "--key-type=ecdsa --curve=secp384r1",
        "--key-type=ed25519",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        certtool(root, key);
        meet(root);

        let list = "crl_next_update = 20\ncrl_number = 1\n";
        fs::write(root.join("list"), list).unwrap();
        let ca = "--load-ca-privkey ca.key --load-ca-certificate ca.pem --template list";
        // The last host that was issued is b.example.
        let more = "--load-certificate host.pem --outfile crl.pem";
        run(root, "certtool", &format!("--generate-crl {ca} {more}"));
        fs::copy(root.join("crl.pem"), root.join("a.example/ca-crl.pem")).unwrap();
        let a = load(&root.join("a.example"), "b.example");
        let b = load(&root.join("b.example"), "a.example");
        let outcome = handshake(&a, &b);
        has(&explained(&a, End::Dials, outcome.dialler), &["revoked by", "ca-crl.pem"]);
    }
}

fn certtool(root: &Path, key: &str) {
    let key = format!("--generate-privkey {key} --outfile");
    run(root, "certtool", &format!("{key} ca.key"));
    let ca = "cn = Tool CA\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 30\n";
    fs::write(root.join("ca.template"), ca).unwrap();
    let new = "--generate-self-signed --load-privkey ca.key --template ca.template";
    run(root, "certtool", &format!("{new} --outfile ca.pem"));
    for (host, serial) in [("a.example", 2), ("b.example", 3)] {
        run(root, "certtool", &format!("{key} host.key"));
        let template = format!(
            "organization = Us\ncn = {host}\ndns_name = {host}\nip_address = 192.0.2.1\n\
             serial = {serial}\ntls_www_server\ntls_www_client\nsigning_key\n\
             expiration_days = 20\n"
        );
        fs::write(root.join("template"), template).unwrap();
        let ca = "--load-ca-certificate ca.pem --load-ca-privkey ca.key --template template";
        let own = "--load-privkey host.key --outfile host.pem";
        run(root, "certtool", &format!("--generate-certificate {ca} {own}"));
        lay_out(root, host);
    }
}

/// The commands of docs/certificates.md, as they stand.
#[test]
fn the_commands_of_the_docs_make_hosts_that_meet() {
    let docs = include_str!("../../../../docs/certificates.md");
    let blocks: Vec<_> =
        docs.split("```sh\n").skip(1).filter_map(|b| b.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    for (program, block) in ["openssl", "certtool"].into_iter().zip(blocks) {
        assert!(block.contains(program));
        if !there("the_commands_of_the_docs_make_hosts_that_meet", program) {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("script"), block).unwrap();
        run(root, "sh", "-eu script");
        let a = load(&root.join("source.example"), "target.example");
        let b = load(&root.join("target.example"), "source.example");
        for (dialler, listener) in [(&a, &b), (&b, &a)] {
            let outcome = handshake(dialler, listener);
            assert_eq!((outcome.dialler, outcome.listener), (Ok(()), Ok(())), "{program}");
        }
    }
}
