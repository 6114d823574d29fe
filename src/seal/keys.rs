//! The key schedule: HKDF-SHA256 (RFC 5869) with labels as in TLS 1.3 (RFC 8446 7.1).

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::aead::{AeadKey, Provider};

/// Bytes of every secret and key.
pub const KEY_BYTES: usize = 32;

/// Which way a lane's frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From source to target.
    FromSource,
    /// From target to source.
    FromTarget,
}

/// What both ends share after the handshake; all keys of a session come from it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SessionSecret([u8; KEY_BYTES]);

impl SessionSecret {
    /// HKDF-Extract. `salt` is the hash over the handshake, `ikm` what it agreed on (W-19).
    pub fn new(salt: &[u8], ikm: &[u8]) -> Self {
        let (mut prk, _) = Hkdf::<Sha256>::extract(Some(salt), ikm);
        let secret = Self(prk.as_slice().try_into().expect("SHA-256 gives 32 bytes"));
        prk.as_mut_slice().zeroize();
        secret
    }

    /// A public name of the session: joins carry it.
    pub fn id(&self) -> [u8; 16] {
        *expand::<16>(&self.0, "session id", &[])
    }

    /// A name for the migration where the caller gave none.
    pub fn migration_id(&self) -> [u8; 16] {
        *expand::<16>(&self.0, "migration id", &[])
    }

    /// The key of the macs that let further lanes join (W-17).
    pub fn join_mac_key(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        expand(&self.0, "join", &[])
    }

    /// The first secret of one direction of one lane (W-20).
    pub fn lane_secret(
        &self,
        direction: Direction,
        lane: u16,
        generation: u32,
        dialler_nonce: &[u8; 32],
        listener_nonce: &[u8; 32],
    ) -> LaneSecret {
        let label = match direction {
            Direction::FromSource => "from source",
            Direction::FromTarget => "from target",
        };
        let mut context = [0; 70];
        context[..2].copy_from_slice(&lane.to_be_bytes());
        context[2..6].copy_from_slice(&generation.to_be_bytes());
        context[6..38].copy_from_slice(dialler_nonce);
        context[38..].copy_from_slice(listener_nonce);
        LaneSecret(expand(&self.0, label, &context))
    }
}

/// The secret of one direction of one lane in one epoch.
pub struct LaneSecret(Zeroizing<[u8; KEY_BYTES]>);

impl LaneSecret {
    /// The next epoch's secret takes the place of this one, which is erased (W-24).
    pub(super) fn ratchet(&mut self) {
        self.0 = expand(&self.0, "upd", &[]);
    }

    pub(super) fn key_and_iv(&self, provider: Provider) -> (Box<dyn AeadKey>, [u8; 12]) {
        let key = expand::<KEY_BYTES>(&self.0, "key", &[]);
        (provider.key(&key), *expand::<12>(&self.0, "iv", &[]))
    }
}

/// HMAC-SHA256 over the parts, one after another.
pub fn mac(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> [u8; 32] {
    keyed(key, parts).finalize().into_bytes().into()
}

/// Whether `tag` is the mac of the parts, in constant time.
pub fn verify_mac(key: &[u8; KEY_BYTES], parts: &[&[u8]], tag: &[u8; 32]) -> bool {
    keyed(key, parts).verify_slice(tag).is_ok()
}

fn keyed(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// HKDF-Expand-Label: `u16 length | u8 n | "sealane1 " label | u8 n | context`.
fn expand<const N: usize>(
    secret: &[u8; KEY_BYTES],
    label: &str,
    context: &[u8],
) -> Zeroizing<[u8; N]> {
    const PREFIX: &[u8] = b"sealane1 ";
    let lengths = [(N >> 8) as u8, N as u8, (PREFIX.len() + label.len()) as u8];
    let context_bytes = [context.len() as u8];
    let info = [&lengths[..], PREFIX, label.as_bytes(), &context_bytes, context];
    let mut out = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::from_prk(secret)
        .and_then(|hkdf| {
            hkdf.expand_multi_info(&info, &mut out[..]).map_err(|_| hkdf::InvalidPrkLength)
        })
        .expect("32 bytes are a key, and less than 255 blocks are asked for");
    out
}

#[cfg(test)]
pub(super) fn expand_for_test(secret: &[u8; 32], label: &str, context: &[u8]) -> [u8; 32] {
    *expand::<32>(secret, label, context)
}

#[cfg(test)]
pub(super) fn lane_secret_for_test(bytes: [u8; 32]) -> LaneSecret {
    LaneSecret(Zeroizing::new(bytes))
}
