//! Streams of bytes between both ends: bare TCP, and TLS 1.3 over it.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls::{StreamOwned, crypto::aws_lc_rs as provider};

/// Bytes that a plain end reads and writes at once.
pub const CHUNK_BYTES: usize = 256 << 10;
/// More than a chunk and its records' heads, so that one is written whole.
const BUFFER_BYTES: usize = 2 * CHUNK_BYTES;
/// The only cipher that takes part.
#[cfg(feature = "openssl")]
const CIPHER: &str = "TLS_AES_256_GCM_SHA384";

/// Both ways.
pub trait Pipe: Read + Write {}
impl<P: Read + Write> Pipe for P {}

/// A socket that reads more than it is asked for.
pub struct Ahead(BufReader<TcpStream>);

impl Ahead {
    pub fn of(socket: TcpStream) -> Self {
        Self(BufReader::with_capacity(CHUNK_BYTES, socket))
    }
}

impl Read for Ahead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Ahead {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(from)
    }

    fn write_vectored(&mut self, from: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

/// The end that dials, by rustls: records of 16 KiB, which is TLS's most.
pub fn rustls_client<S: Pipe + 'static>(socket: S, place: &Path) -> io::Result<Box<dyn Pipe>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(place)?).map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(Arc::new(one_cipher()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut end = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    end.set_buffer_limit(Some(BUFFER_BYTES));
    Ok(Box::new(StreamOwned::new(end, socket)))
}

/// The end that listens, by rustls.
pub fn rustls_server<S: Pipe + 'static>(socket: S, place: &Path) -> io::Result<Box<dyn Pipe>> {
    let key = PrivateKeyDer::from_pem_file(place.join("key.pem")).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(Arc::new(one_cipher()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(place)?], key)
        .map_err(io::Error::other)?;
    let mut end = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
    end.set_buffer_limit(Some(BUFFER_BYTES));
    Ok(Box::new(StreamOwned::new(end, socket)))
}

fn certificate(place: &Path) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(place.join("cert.pem")).map_err(io::Error::other)
}

fn one_cipher() -> rustls::crypto::CryptoProvider {
    let cipher_suites = vec![provider::cipher_suite::TLS13_AES_256_GCM_SHA384];
    rustls::crypto::CryptoProvider { cipher_suites, ..provider::default_provider() }
}

/// The end that dials, by OpenSSL.
#[cfg(feature = "openssl")]
pub fn openssl_client(socket: TcpStream, place: &Path) -> io::Result<Box<dyn Pipe>> {
    use openssl::ssl::{SslConnector, SslMethod};
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_ca_file(place.join("cert.pem"))?;
    openssl_settings(&mut builder)?;
    let end = builder.build().connect("localhost", socket).map_err(io::Error::other)?;
    Ok(Box::new(end))
}

/// The end that listens, by OpenSSL.
#[cfg(feature = "openssl")]
pub fn openssl_server(socket: TcpStream, place: &Path) -> io::Result<Box<dyn Pipe>> {
    use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
    let mut builder = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server())?;
    builder.set_private_key_file(place.join("key.pem"), SslFiletype::PEM)?;
    builder.set_certificate_file(place.join("cert.pem"), SslFiletype::PEM)?;
    openssl_settings(&mut builder)?;
    let end = builder.build().accept(socket).map_err(io::Error::other)?;
    Ok(Box::new(end))
}

/// Reads ahead, which saves a system call a record.
#[cfg(feature = "openssl")]
fn openssl_settings(builder: &mut openssl::ssl::SslContextBuilder) -> io::Result<()> {
    builder.set_min_proto_version(Some(openssl::ssl::SslVersion::TLS1_3))?;
    builder.set_ciphersuites(CIPHER)?;
    builder.set_read_ahead(true);
    Ok(())
}

/// What TLS's ends and the helpers find at `place`: `cert.pem` and `key.pem`, one certificate that
/// signs itself, for `localhost`.
pub fn certificates(place: &Path) {
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    let key = rcgen::KeyPair::generate().expect("a key");
    let cert = params.self_signed(&key).expect("a certificate");
    std::fs::write(place.join("cert.pem"), cert.pem()).expect("a file");
    std::fs::write(place.join("key.pem"), key.serialize_pem()).expect("a file");
}
