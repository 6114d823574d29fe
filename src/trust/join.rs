//! Further lanes of a session: each end shows that it holds the session secret (W-17).

use crate::error::{Error, PeerError, Result, SystemError};
use crate::seal::{SessionSecret, mac, verify_mac};
use crate::wire::{DIALLER_HELLO_BYTES, JOIN_REPLY_BYTES, JoinHello, JoinReply};

/// A lane that both ends agreed on; the nonces go into its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The lane.
    pub lane: u16,
    /// How often it was joined before.
    pub generation: u32,
    /// The dialler's nonce.
    pub dialler_nonce: [u8; 32],
    /// The listener's nonce.
    pub listener_nonce: [u8; 32],
}

impl Joined {
    /// Lane 0: the handshake itself made its keys fresh.
    pub fn first_lane() -> Self {
        Self { lane: 0, generation: 0, dialler_nonce: [0; 32], listener_nonce: [0; 32] }
    }
}

/// The dialler's side of a join, between request and answer.
pub struct JoinRequest(JoinHello);

impl JoinRequest {
    /// The request and its bytes.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where the random source fails.
    pub fn new(secret: &SessionSecret, lane: u16) -> Result<(Self, [u8; DIALLER_HELLO_BYTES])> {
        let mut hello = JoinHello {
            lane,
            generation: 0,
            session_id: secret.id(),
            nonce: random()?,
            mac: [0; 32],
        };
        hello.mac = mac(&secret.join_mac_key(), &[&hello.signed_bytes()]);
        Ok((Self(hello), hello.encode()))
    }

    /// Reads the answer.
    ///
    /// # Errors
    ///
    /// [`PeerError::NotAuthenticated`].
    pub fn finish(self, secret: &SessionSecret, reply: &[u8; JOIN_REPLY_BYTES]) -> Result<Joined> {
        let reply = JoinReply::parse(reply);
        let parts: [&[u8]; 2] = [&self.0.encode(), &reply.nonce];
        if !verify_mac(&secret.join_mac_key(), &parts, &reply.mac) {
            let reason = "its answer to a further lane does not verify";
            return Err(PeerError::NotAuthenticated { reason }.into());
        }
        Ok(joined(&self.0, reply.nonce))
    }
}

/// The listener's side: checks a request and answers it.
///
/// # Errors
///
/// [`PeerError::NotAuthenticated`]; the listener answers nothing then.
pub fn answer_join(
    secret: &SessionSecret,
    hello: &JoinHello,
) -> Result<(Joined, [u8; JOIN_REPLY_BYTES])> {
    let key = secret.join_mac_key();
    let ours = hello.session_id == secret.id();
    if !ours || !verify_mac(&key, &[&hello.signed_bytes()], &hello.mac) {
        let reason = "its request for a further lane does not verify";
        return Err(PeerError::NotAuthenticated { reason }.into());
    }
    let nonce = random()?;
    let reply = JoinReply { nonce, mac: mac(&key, &[&hello.encode(), &nonce]) };
    Ok((joined(hello, nonce), reply.encode()))
}

fn joined(hello: &JoinHello, listener_nonce: [u8; 32]) -> Joined {
    Joined {
        lane: hello.lane,
        generation: hello.generation,
        dialler_nonce: hello.nonce,
        listener_nonce,
    }
}

pub(super) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::System(SystemError::from_errno("getrandom", "nonce", e.raw_os_error().unwrap_or(0)))
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::DiallerHello;

    #[test]
    fn joins_agree_and_strangers_cannot() {
        let secret = SessionSecret::new(b"a", b"b");
        let (request, bytes) = JoinRequest::new(&secret, 3).unwrap();
        let DiallerHello::Join(hello) = DiallerHello::parse(&bytes).unwrap() else { panic!() };
        let (ours, reply) = answer_join(&secret, &hello).unwrap();
        assert_eq!(request.finish(&secret, &reply).unwrap(), ours);
        assert_eq!(ours.lane, 3);

        let other = SessionSecret::new(b"a", b"c");
        assert!(answer_join(&other, &hello).unwrap_err().is_authentication());
        let moved = JoinHello { lane: 4, ..hello };
        assert!(answer_join(&secret, &moved).unwrap_err().is_authentication());
        let (request, _) = JoinRequest::new(&secret, 3).unwrap();
        assert!(request.finish(&secret, &reply).unwrap_err().is_authentication(), "a replay");
    }
}
