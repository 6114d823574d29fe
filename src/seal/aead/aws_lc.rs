//! AWS-LC: VAES on AVX-512, else AES-NI; ARMv8 AES. It erases its keys itself.

use ::aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{AeadKey, TagMismatch};

pub(super) struct Key(LessSafeKey);

impl Key {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are a key")))
    }
}

impl AeadKey for Key {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
            .expect("a frame is shorter than GCM's limit of 64 GiB");
        tag.as_ref().try_into().expect("a tag has 16 bytes")
    }

    fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        data_and_tag: &mut [u8],
    ) -> Result<(), TagMismatch> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place(nonce, Aad::from(aad), data_and_tag).map_err(|_| TagMismatch)?;
        Ok(())
    }
}
