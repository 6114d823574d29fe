//! The handshake with a one-time secret, without I/O: messages in, messages and a secret out.

use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use super::{OneTimeSecret, not_authenticated};
use crate::error::{Error, Result};
use crate::seal::SessionSecret;
use crate::wire::{
    DIALLER_HELLO_BYTES, OPEN_CLEAR_BYTES, OPEN_REPLY_BYTES, OpenHello, OpenReply, PROOF_BYTES,
    REPLY_PLAIN_BYTES,
};

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// The end that dials, between its message and the answer.
pub struct Dialler(HandshakeState);

impl Dialler {
    /// The state and the first message.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`] cannot come here; [`Error::Misuse`] where the random source fails.
    pub fn new(
        secret: &OneTimeSecret,
        hello: &OpenHello,
    ) -> Result<(Self, [u8; DIALLER_HELLO_BYTES])> {
        let clear = hello.encode();
        let psk = secret.psk();
        let mut state = builder(&psk, &clear)?.build_initiator().map_err(internal)?;
        let mut message = [0; DIALLER_HELLO_BYTES];
        message[..OPEN_CLEAR_BYTES].copy_from_slice(&clear);
        let bytes = state.write_message(&[], &mut message[OPEN_CLEAR_BYTES..]).map_err(internal)?;
        debug_assert_eq!(bytes, PROOF_BYTES);
        Ok((Self(state), message))
    }

    /// Reads the answer.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`] where the other end does not hold the same secret or
    /// anything of the exchange was changed on its way.
    pub fn finish(mut self, reply: &[u8; OPEN_REPLY_BYTES]) -> Result<(OpenReply, SessionSecret)> {
        let mut plain = [0; OPEN_REPLY_BYTES];
        match self.0.read_message(reply, &mut plain) {
            Ok(REPLY_PLAIN_BYTES) => {}
            _ => return Err(not_authenticated("its answer does not verify")),
        }
        let reply = OpenReply::parse(plain.first_chunk().expect("32 of 80"))?;
        Ok((reply, session_secret(&mut self.0)))
    }
}

/// The end that listens, after the dialler's message has verified.
pub struct Listener(HandshakeState);

impl Listener {
    /// Reads a dialler's message.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`]; the listener answers nothing then.
    pub fn new(
        secret: &OneTimeSecret,
        clear: &[u8; OPEN_CLEAR_BYTES],
        noise: &[u8; PROOF_BYTES],
    ) -> Result<Self> {
        let psk = secret.psk();
        let mut state = builder(&psk, clear)?.build_responder().map_err(internal)?;
        match state.read_message(noise, &mut [0; PROOF_BYTES]) {
            Ok(0) => Ok(Self(state)),
            _ => Err(not_authenticated("its first message does not verify")),
        }
    }

    /// The answer and what both ends share from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where the random source fails.
    pub fn reply(mut self, reply: &OpenReply) -> Result<([u8; OPEN_REPLY_BYTES], SessionSecret)> {
        let mut message = [0; OPEN_REPLY_BYTES];
        let bytes = self.0.write_message(&reply.encode(), &mut message).map_err(internal)?;
        debug_assert_eq!(bytes, OPEN_REPLY_BYTES);
        Ok((message, session_secret(&mut self.0)))
    }
}

fn builder<'a>(psk: &'a [u8; 32], clear: &'a [u8]) -> Result<Builder<'a>> {
    let params = PATTERN.parse().expect("a pattern that snow knows");
    // W-16: the whole clear hello is the prologue.
    Builder::new(params).psk(0, psk).and_then(|b| b.prologue(clear)).map_err(internal)
}

/// W-19: the hash over the handshake is the salt; both transport keys are the input. snow's own
/// transport is not used, so the keys serve nothing else.
fn session_secret(state: &mut HandshakeState) -> SessionSecret {
    let (mut first, mut second) = state.dangerously_get_raw_split();
    let mut agreed = Zeroizing::new([0; 64]);
    agreed[..32].copy_from_slice(&first);
    agreed[32..].copy_from_slice(&second);
    first.zeroize();
    second.zeroize();
    SessionSecret::new(state.get_handshake_hash(), &agreed[..])
}

fn internal(error: snow::Error) -> Error {
    Error::Misuse(format!("the handshake cannot be made here: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{DiallerHello, Features, Refusal, Role, TrustKind};

    fn hello() -> OpenHello {
        OpenHello {
            version: 1,
            role: Role::Source,
            trust: TrustKind::Secret,
            required: Features::default(),
            optional: Features::default(),
            lanes: 2,
            frame_bytes: 65536,
            migration_id: [0; 16],
        }
    }

    fn answer(refusal: Option<Refusal>) -> OpenReply {
        let (required, supported) = (Features::default(), Features::KNOWN);
        OpenReply { refusal, version: 1, lanes: 2, frame_bytes: 65536, required, supported }
    }

    fn listen(secret: &OneTimeSecret, message: &[u8; DIALLER_HELLO_BYTES]) -> Result<Listener> {
        match DiallerHello::parse(message)? {
            DiallerHello::Open(_, clear, noise) => Listener::new(secret, &clear, &noise),
            DiallerHello::Join(_) => panic!("an open became a join"),
        }
    }

    #[test]
    fn both_ends_share_a_secret_and_two_runs_do_not() {
        let secret = OneTimeSecret::generate().unwrap();
        let accepted = answer(None);
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (dialler, message) = Dialler::new(&secret, &hello()).unwrap();
            let (reply, ours) = listen(&secret, &message).unwrap().reply(&accepted).unwrap();
            let (read, theirs) = dialler.finish(&reply).unwrap();
            assert_eq!(read, accepted);
            assert_eq!(ours.id(), theirs.id());
            ids.push(ours.id());
        }
        assert_ne!(ids[0], ids[1], "forward secrecy: ephemeral keys differ");
    }

    #[test]
    fn wrong_secret_and_every_flipped_bit_are_not_authenticated() {
        let secret = OneTimeSecret::generate().unwrap();
        let (_, message) = Dialler::new(&secret, &hello()).unwrap();
        assert!(listen(&OneTimeSecret::generate().unwrap(), &message).is_err());
        for bit in 0..message.len() * 8 {
            let mut bad = message;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(listen(&secret, &bad).is_err(), "bit {bit}"); // W-16
        }
        let refusal = answer(Some(Refusal::Limits));
        for byte in 0..OPEN_REPLY_BYTES {
            let (dialler, message) = Dialler::new(&secret, &hello()).unwrap();
            let (mut reply, _) = listen(&secret, &message).unwrap().reply(&refusal).unwrap();
            reply[byte] ^= 1;
            assert!(dialler.finish(&reply).err().unwrap().is_authentication(), "byte {byte}");
        }
    }
}
