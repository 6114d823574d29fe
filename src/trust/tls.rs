//! The handshake with certificates, without I/O: TLS records in, TLS records and a secret out.
//!
//! The dialler is TLS's client and the listener its server, whichever of them is the source. When
//! the handshake is over the listener sends its answer (W-18) as the one piece of application data,
//! both ends say close_notify, and the connection goes on with frames.

use std::io::{Read, Write};

use rustls::{ClientConnection, ServerConnection};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::certificates::End;
use super::{Certificates, OneTimeSecret, Trust, not_authenticated};
use crate::error::{Error, Result};
use crate::seal::SessionSecret;
use crate::wire::{DIALLER_HELLO_BYTES, OpenReply, REPLY_PLAIN_BYTES};

/// Bytes before the body of a record (RFC 8446, 5.1).
pub const RECORD_HEADER_BYTES: usize = 5;
/// Most bytes of a sealed record's body (RFC 8446, 5.2).
const RECORD_BODY_BYTES_MAX: usize = (1 << 14) + 256;

/// Bytes of the answer: W-18, and the hash of the first message, which is no part of TLS.
const ANSWER_BYTES: usize = REPLY_PLAIN_BYTES + 32;

/// Bytes of the record with this header; none where no record can be so large. Records are read
/// one by one, because what follows the last one is no TLS.
pub fn record_bytes(header: &[u8; RECORD_HEADER_BYTES]) -> Option<usize> {
    let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
    (1..=RECORD_BODY_BYTES_MAX).contains(&body).then_some(RECORD_HEADER_BYTES + body)
}

/// What follows a record of the other end's.
pub enum Step<T> {
    /// Another record of it.
    More,
    /// This.
    Done(T),
}

/// The end that dials.
pub struct TlsDialler {
    connection: ClientConnection,
    common: Common,
    reply: Option<OpenReply>,
}

/// What both ends need beside TLS.
struct Common {
    certificates: Certificates,
    secret: Option<OneTimeSecret>,
    hello: [u8; DIALLER_HELLO_BYTES],
}

impl TlsDialler {
    pub(super) fn new(
        certificates: &Certificates,
        secret: Option<&OneTimeSecret>,
        hello: &[u8; DIALLER_HELLO_BYTES],
    ) -> Result<Self> {
        let config = certificates.client_config()?;
        let name = Certificates::server_name();
        let connection = ClientConnection::new(config, name).map_err(internal)?;
        Ok(Self { connection, common: Common::new(certificates, secret, hello), reply: None })
    }

    /// Records to send now.
    pub fn output(&mut self) -> Vec<u8> {
        output(&mut self.connection)
    }

    /// Takes one record. Whatever comes of it, [`Self::output`] is to be sent: an alert too.
    ///
    /// # Errors
    ///
    /// [`PeerError::Certificate`] with what is wrong with whose certificate;
    /// [`PeerError::NotAuthenticated`].
    pub fn record(&mut self, record: &[u8]) -> Result<Step<(OpenReply, SessionSecret)>> {
        take(&mut &*record, |bytes| self.connection.read_tls(bytes))?;
        let state = self.connection.process_new_packets();
        let state = state.map_err(|e| self.common.certificates.explain(End::Dials, &e))?;
        let waiting = state.plaintext_bytes_to_read();
        if waiting > 0 {
            let mut plain = [0; ANSWER_BYTES];
            if waiting != plain.len() || self.reply.is_some() {
                return Err(not_authenticated("its answer in TLS has another length"));
            }
            self.connection.reader().read_exact(&mut plain).expect("they are there");
            let (reply, heard) = plain.split_first_chunk().expect("32 of 64");
            if heard != self.common.hello_hash() {
                return Err(not_authenticated("it heard another first message than this end sent"));
            }
            self.reply = Some(OpenReply::parse(reply)?);
        }
        if !state.peer_has_closed() {
            return Ok(Step::More);
        }
        let reply =
            self.reply.ok_or_else(|| not_authenticated("it ended TLS without an answer"))?;
        Certificates::check_protocol(self.connection.alpn_protocol())?;
        self.connection.send_close_notify();
        let secret = self.common.secret(&reply, |out, label, context| {
            self.connection.export_keying_material(out, label, Some(context)).map(drop)
        })?;
        Ok(Step::Done((reply, secret)))
    }
}

/// The end that listens.
pub struct TlsListener {
    connection: ServerConnection,
    common: Common,
    refused_one_of_ours: bool,
}

impl TlsListener {
    pub(super) fn new(
        certificates: &Certificates,
        secret: Option<&OneTimeSecret>,
        hello: &[u8; DIALLER_HELLO_BYTES],
    ) -> Result<Self> {
        let config = certificates.server_config()?;
        let connection = ServerConnection::new(config).map_err(internal)?;
        let common = Common::new(certificates, secret, hello);
        Ok(Self { connection, common, refused_one_of_ours: false })
    }

    /// Records to send now.
    pub fn output(&mut self) -> Vec<u8> {
        output(&mut self.connection)
    }

    /// Whether the other end showed a certificate that our CA issued, and was refused for what is
    /// in it.
    pub fn refused_one_of_ours(&self) -> bool {
        self.refused_one_of_ours
    }

    /// Takes one record, until the dialler has shown who it is. Whatever comes of it,
    /// [`Self::output`] is to be sent: an alert too.
    ///
    /// # Errors
    ///
    /// As [`TlsDialler::record`].
    pub fn record(&mut self, record: &[u8]) -> Result<Step<()>> {
        let state = self.process(record)?;
        if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
            return Err(not_authenticated("it does not wait for the answer in TLS"));
        }
        if self.connection.is_handshaking() {
            return Ok(Step::More);
        }
        Certificates::check_protocol(self.connection.alpn_protocol())?;
        Ok(Step::Done(()))
    }

    /// The answer's records, the last of TLS, and the secret.
    pub(super) fn reply(&mut self, reply: &OpenReply) -> Result<(Vec<u8>, SessionSecret)> {
        let secret = self.common.secret(reply, |out, label, context| {
            self.connection.export_keying_material(out, label, Some(context)).map(drop)
        })?;
        let io = |e: std::io::Error| Error::Bug(format!("TLS takes no answer: {e}"));
        let answer = [reply.encode(), self.common.hello_hash()].concat();
        self.connection.writer().write_all(&answer).map_err(io)?;
        self.connection.send_close_notify();
        Ok((self.output(), secret))
    }

    /// Takes the dialler's last record: the end of TLS.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`] where it is anything else.
    pub fn end(&mut self, record: &[u8]) -> Result<()> {
        let state = self.process(record)?;
        match state.peer_has_closed() && state.plaintext_bytes_to_read() == 0 {
            true => Ok(()),
            false => Err(not_authenticated("it goes on with TLS after the answer")),
        }
    }

    /// What the session is trusted by.
    pub fn trust(&self) -> Trust {
        match &self.common.secret {
            Some(secret) => Trust::both(secret.clone(), self.common.certificates.clone()),
            None => (&self.common.certificates).into(),
        }
    }

    fn process(&mut self, record: &[u8]) -> Result<rustls::IoState> {
        take(&mut &*record, |bytes| self.connection.read_tls(bytes))?;
        let state = self.connection.process_new_packets();
        state.map_err(|e| {
            use rustls::CertificateError as E;
            self.refused_one_of_ours = matches!(
                e,
                rustls::Error::InvalidCertificate(
                    E::NotValidForNameContext { .. }
                        | E::Revoked
                        | E::ExpiredContext { .. }
                        | E::NotValidYetContext { .. }
                )
            );
            self.common.certificates.explain(End::Listens, &e)
        })
    }
}

impl Common {
    fn new(
        certificates: &Certificates,
        secret: Option<&OneTimeSecret>,
        hello: &[u8; DIALLER_HELLO_BYTES],
    ) -> Self {
        Self { certificates: certificates.clone(), secret: secret.cloned(), hello: *hello }
    }

    fn hello_hash(&self) -> [u8; 32] {
        Sha256::digest(self.hello).into()
    }

    fn secret(
        &self,
        reply: &OpenReply,
        export: impl FnOnce(&mut [u8], &[u8], &[u8]) -> Result<(), rustls::Error>,
    ) -> Result<SessionSecret> {
        session_secret(self.secret.as_ref(), &self.hello, reply, export)
    }
}

/// W-19: what TLS exports over both messages, under the one-time secret where there is one.
fn session_secret(
    secret: Option<&OneTimeSecret>,
    hello: &[u8; DIALLER_HELLO_BYTES],
    reply: &OpenReply,
    export: impl FnOnce(&mut [u8], &[u8], &[u8]) -> Result<(), rustls::Error>,
) -> Result<SessionSecret> {
    let context = Sha256::new().chain_update(hello).chain_update(reply.encode()).finalize();
    let mut exported = Zeroizing::new([0; 64]);
    export(&mut exported[..], b"EXPORTER-sealane session", &context).map_err(internal)?;
    Ok(match secret {
        Some(secret) => SessionSecret::new(&*secret.psk(), &exported[..]),
        None => SessionSecret::new(b"sealane1 certificates", &exported[..]),
    })
}

/// What a connection of either end would send.
fn output<Data>(connection: &mut rustls::ConnectionCommon<Data>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() && connection.write_tls(&mut bytes).is_ok() {}
    bytes
}

fn take(
    record: &mut &[u8],
    mut read: impl FnMut(&mut dyn Read) -> std::io::Result<usize>,
) -> Result<()> {
    while !record.is_empty() {
        if read(record).map_or(true, |bytes| bytes == 0) {
            return Err(not_authenticated("it sends more TLS than there is a use for"));
        }
    }
    Ok(())
}

fn internal(error: rustls::Error) -> Error {
    Error::Bug(format!("TLS: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Features;

    #[test]
    fn secrets_are_those_of_another_implementation() {
        // W-19, from tests/golden_vectors.py
        let (required, supported) = (Features::default(), Features::KNOWN);
        let (refusal, version, lanes, frame_bytes) = (None, 1, 2, 65536);
        let reply = OpenReply { refusal, version, lanes, frame_bytes, required, supported };
        let secret = OneTimeSecret::from_bytes(&[7; 32]).unwrap();
        let agreed = |secret| {
            let export = |out: &mut [u8], label: &[u8], context: &[u8]| {
                assert_eq!(label, b"EXPORTER-sealane session");
                assert_eq!(context[..4], [0x2c, 0x56, 0x59, 0x23]);
                (0..).zip(out).for_each(|(n, byte)| *byte = n);
                Ok(())
            };
            session_secret(secret, &[3; DIALLER_HELLO_BYTES], &reply, export).unwrap().id()
        };
        let certificates = 0xe67f_ed4b_efae_7e66_f9da_5e2b_183c_75a0_u128;
        assert_eq!(agreed(None), certificates.to_be_bytes());
        let both = 0xea99_1853_5dc5_78f8_0112_391e_5dc0_b33b_u128;
        assert_eq!(agreed(Some(&secret)), both.to_be_bytes());
    }
}
