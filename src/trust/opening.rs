//! The first messages of a session, whichever trust it is of (W-16).

use zeroize::Zeroizing;

use super::join::random;
use super::{Of, OneTimeSecret, TlsDialler, TlsListener, Trust, noise, not_authenticated};
use crate::error::Result;
use crate::seal::{SessionSecret, mac, verify_mac};
use crate::wire::{
    DIALLER_HELLO_BYTES, OPEN_CLEAR_BYTES, OpenHello, OpenReply, PROOF_BYTES, TrustKind,
};

/// The dialler's side, after its first message.
pub enum Opening {
    /// The answer is one message.
    Secret(Box<noise::Dialler>),
    /// TLS records follow.
    Tls(Box<TlsDialler>),
}

impl Opening {
    /// The state and the first message.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Config`] where the certificates do not serve an end that dials;
    /// [`crate::Error::System`] where the random source fails.
    pub fn new(trust: &Trust, hello: &OpenHello) -> Result<(Self, [u8; DIALLER_HELLO_BYTES])> {
        debug_assert_eq!(trust.kind(), hello.trust);
        let (secret, certificates) = match &trust.0 {
            Of::Secret(secret) => {
                let (dialler, message) = noise::Dialler::new(secret, hello)?;
                return Ok((Self::Secret(Box::new(dialler)), message));
            }
            Of::Certificates(certificates) => (None, certificates),
            Of::Both(secret, certificates) => (Some(secret), certificates),
        };
        let mut message = [0; DIALLER_HELLO_BYTES];
        let clear = hello.encode();
        message[..OPEN_CLEAR_BYTES].copy_from_slice(&clear);
        if let Some(secret) = secret {
            message[OPEN_CLEAR_BYTES..].copy_from_slice(&proof(secret, &clear)?);
        }
        let dialler = TlsDialler::new(certificates, secret, &message)?;
        Ok((Self::Tls(Box::new(dialler)), message))
    }
}

/// What a first message is to a listener.
pub enum Greeted {
    /// Its sender has shown who it is.
    Proven(Proven),
    /// It has yet to: TLS records follow.
    Tls(Box<TlsListener>),
}

/// The listener's side, once the dialler has shown who it is.
pub enum Proven {
    /// By the one-time secret alone.
    Secret(Box<noise::Listener>),
    /// By certificates.
    Tls(Box<TlsListener>),
}

impl Proven {
    /// The answer's bytes and what both ends share from now on. Where TLS carries it, one record
    /// of the dialler's follows: the end of TLS.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Misuse`] where the random source fails.
    pub fn reply(self, reply: &OpenReply) -> Result<Replied> {
        match self {
            Self::Secret(listener) => {
                let (bytes, secret) = listener.reply(reply)?;
                Ok(Replied { bytes: bytes.to_vec(), secret, tls: None })
            }
            Self::Tls(mut tls) => {
                let (bytes, secret) = tls.reply(reply)?;
                Ok(Replied { bytes, secret, tls: Some(tls) })
            }
        }
    }
}

/// An answer on its way.
pub struct Replied {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What both ends share.
    pub secret: SessionSecret,
    /// TLS, whose end is yet to come.
    pub tls: Option<Box<TlsListener>>,
}

/// The listener reads a first message that opens a session.
///
/// # Errors
///
/// [`crate::error::PeerError::NotAuthenticated`] where it is of another trust or does not verify;
/// a listener with a one-time secret answers nothing then.
/// [`crate::Error::Config`] where the certificates do not serve an end that listens.
pub fn greet(
    trust: &Trust,
    message: &[u8; DIALLER_HELLO_BYTES],
    hello: &OpenHello,
) -> Result<Greeted> {
    if hello.trust != trust.kind() {
        let reason = match hello.trust {
            TrustKind::Secret => "it has a one-time secret alone, this end has certificates",
            TrustKind::Certificates => "it has certificates alone, this end has a one-time secret",
            TrustKind::Both => "it has a one-time secret and certificates, this end one of them",
        };
        return Err(not_authenticated(reason));
    }
    let (clear, proof) = message.split_first_chunk::<OPEN_CLEAR_BYTES>().expect("64 of 112");
    let proof: &[u8; PROOF_BYTES] = proof.try_into().expect("48 of 112");
    let (secret, certificates) = match &trust.0 {
        Of::Secret(secret) => {
            let listener = noise::Listener::new(secret, clear, proof)?;
            return Ok(Greeted::Proven(Proven::Secret(Box::new(listener))));
        }
        Of::Certificates(certificates) => (None, certificates),
        Of::Both(secret, certificates) => (Some(secret), certificates),
    };
    let is_proof = match secret {
        Some(secret) => verifies(secret, clear, proof),
        None => *proof == [0; PROOF_BYTES],
    };
    if !is_proof {
        return Err(not_authenticated("its first message does not verify"));
    }
    Ok(Greeted::Tls(Box::new(TlsListener::new(certificates, secret, message)?)))
}

/// `nonce 16 | HMAC-SHA256 32`: whoever lacks the one-time secret gets no TLS.
fn proof(secret: &OneTimeSecret, clear: &[u8; OPEN_CLEAR_BYTES]) -> Result<[u8; PROOF_BYTES]> {
    let mut proof = [0; PROOF_BYTES];
    proof[..16].copy_from_slice(&random()?[..16]);
    let (nonce, tag) = proof.split_first_chunk_mut::<16>().expect("16 of 48");
    tag.copy_from_slice(&mac(&proof_key(secret), &[clear, nonce]));
    Ok(proof)
}

fn verifies(
    secret: &OneTimeSecret,
    clear: &[u8; OPEN_CLEAR_BYTES],
    proof: &[u8; PROOF_BYTES],
) -> bool {
    let (nonce, tag) = proof.split_first_chunk::<16>().expect("16 of 48");
    let tag = tag.try_into().expect("32 of 48");
    verify_mac(&proof_key(secret), &[clear, nonce], tag)
}

fn proof_key(secret: &OneTimeSecret) -> Zeroizing<[u8; 32]> {
    SessionSecret::new(b"sealane1 proof", &*secret.psk()).join_mac_key()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_of_another_implementation_verifies() {
        // W-16, from tests/golden_vectors.py
        let secret = OneTimeSecret::from_bytes(&[7; 32]).unwrap();
        let clear = std::array::from_fn(|at| at as u8);
        let mut golden = [9; PROOF_BYTES];
        let tag = [
            0xa4, 0x0d, 0x77, 0xda, 0x02, 0x15, 0x22, 0xa6, 0x40, 0x06, 0x31, 0x69, 0xa7, 0x4b,
            0x45, 0xdc, 0xdc, 0x28, 0xc8, 0x97, 0xf9, 0x1c, 0xe3, 0xaa, 0x35, 0x09, 0x9a, 0xa2,
            0xf0, 0x85, 0xa5, 0xe5,
        ];
        golden[16..].copy_from_slice(&tag);
        assert!(verifies(&secret, &clear, &golden));
        assert!(verifies(&secret, &clear, &proof(&secret, &clear).unwrap()));
        for bit in 0..golden.len() * 8 {
            let mut bad = golden;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!verifies(&secret, &clear, &bad), "bit {bit}");
        }
    }
}
