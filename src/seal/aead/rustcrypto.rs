//! RustCrypto: no C and no assembly; picks AES instructions at run time and does without.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Tag};

use super::{AeadKey, TagMismatch};

pub(super) struct Key(Box<Aes256Gcm>);

impl Key {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Box::new(Aes256Gcm::new(key.into())))
    }
}

impl AeadKey for Key {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        self.0
            .encrypt_inout_detached(&nonce.into(), aad, data.into())
            .expect("a frame is shorter than GCM's limit of 64 GiB")
            .into()
    }

    fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        data_and_tag: &mut [u8],
    ) -> Result<(), TagMismatch> {
        let (data, tag) = data_and_tag.split_last_chunk_mut::<16>().ok_or(TagMismatch)?;
        let tag = Tag::from(*tag);
        self.0
            .decrypt_inout_detached(&nonce.into(), aad, data.into(), &tag)
            .map_err(|_| TagMismatch)
    }
}
