//! AES-256-GCM by three providers behind one trait.

#[cfg(feature = "aws-lc")]
mod aws_lc;
#[cfg(feature = "danger-null-seal")]
mod null;
#[cfg(feature = "ring")]
mod ring;
mod rustcrypto;

use super::CpuFeatures;
use crate::config::ProviderChoice;
use crate::error::{ConfigError, Error, Result};

/// One AES-256-GCM key. The caller sees to it that no nonce comes twice.
pub trait AeadKey: Send {
    /// Encrypts `data` in place and returns the tag.
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16];

    /// Verifies `data_and_tag` and decrypts the data in place. After an error the data is spoilt.
    ///
    /// # Errors
    ///
    /// A tag mismatch where key, nonce, associated data or any byte differs.
    fn open(&self, nonce: [u8; 12], aad: &[u8], data_and_tag: &mut [u8])
    -> Result<(), TagMismatch>;
}

/// A tag did not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagMismatch;

/// An implementation of AES-256-GCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// aws-lc-rs.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// ring.
    #[cfg(feature = "ring")]
    Ring,
    /// RustCrypto's aes-gcm.
    RustCrypto,
    /// Nothing at all.
    #[cfg(feature = "danger-null-seal")]
    DangerNull,
}

impl Provider {
    /// The provider for this choice on this CPU.
    ///
    /// aws-lc has kernels for AVX-512 and not for VAES on AVX2, ring the other way round; without
    /// VAES they are alike, and aws-lc erases its keys.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the CPU has no AES instructions and `RustCrypto` was not named, and
    /// where this build lacks the one that was.
    pub fn resolve(choice: ProviderChoice, cpu: &CpuFeatures) -> Result<Self> {
        let provider = match choice {
            ProviderChoice::RustCrypto => return Ok(Self::RustCrypto),
            #[cfg(feature = "danger-null-seal")]
            ProviderChoice::DangerNull => return Ok(Self::DangerNull),
            #[cfg(feature = "aws-lc")]
            ProviderChoice::AwsLc => Self::AwsLc,
            #[cfg(not(feature = "aws-lc"))]
            ProviderChoice::AwsLc => return Err(left_out("aws-lc")),
            #[cfg(feature = "ring")]
            ProviderChoice::Ring => Self::Ring,
            #[cfg(not(feature = "ring"))]
            ProviderChoice::Ring => return Err(left_out("ring")),
            ProviderChoice::Auto => Self::fastest(cpu),
        };
        if cpu.aes {
            return Ok(provider);
        }
        Err(Error::Config(ConfigError {
            key: "provider",
            found: "a CPU without AES instructions".to_owned(),
            wanted: "AES and carry-less multiplication".to_owned(),
            remedy: "pass the CPU's features through to this machine, or name provider = \
                     aes-gcm and accept a tenth of the speed"
                .to_owned(),
        }))
    }

    #[cfg_attr(not(all(feature = "aws-lc", feature = "ring")), expect(unused_variables))]
    fn fastest(cpu: &CpuFeatures) -> Self {
        #[cfg(all(feature = "aws-lc", feature = "ring"))]
        return if cpu.vaes && !cpu.avx512 { Self::Ring } else { Self::AwsLc };
        #[cfg(all(feature = "aws-lc", not(feature = "ring")))]
        return Self::AwsLc;
        #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
        return Self::Ring;
        #[cfg(not(any(feature = "aws-lc", feature = "ring")))]
        Self::RustCrypto
    }

    /// Its name in settings and statistics.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc-rs",
            #[cfg(feature = "ring")]
            Self::Ring => "ring",
            Self::RustCrypto => "aes-gcm",
            #[cfg(feature = "danger-null-seal")]
            Self::DangerNull => "danger-null",
        }
    }

    /// Seals a buffer again and again in place for a tenth of a second: GB/s of one core.
    pub fn measure(self, bytes: usize) -> f64 {
        let (key, mut data) = (self.key(&[7; 32]), vec![0; bytes]);
        let begin = std::time::Instant::now();
        let mut sealed = 0u64;
        while begin.elapsed().as_millis() < 100 {
            // Not a frame: the key is thrown away with what it sealed.
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&sealed.to_be_bytes());
            std::hint::black_box(key.seal(nonce, &[], &mut data));
            sealed += bytes as u64;
        }
        sealed as f64 / begin.elapsed().as_secs_f64() / 1e9
    }

    /// A key of this provider.
    pub fn key(self, key: &[u8; 32]) -> Box<dyn AeadKey> {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => Box::new(aws_lc::Key::new(key)),
            #[cfg(feature = "ring")]
            Self::Ring => Box::new(ring::Key::new(key)),
            Self::RustCrypto => Box::new(rustcrypto::Key::new(key)),
            #[cfg(feature = "danger-null-seal")]
            Self::DangerNull => Box::new(null::Key),
        }
    }
}

#[cfg(not(all(feature = "aws-lc", feature = "ring")))]
fn left_out(name: &str) -> Error {
    Error::Config(ConfigError {
        key: "provider",
        found: format!("{name}, which this build of the library leaves out"),
        wanted: "a provider that it has".to_owned(),
        remedy: "name provider = auto, or build with the features aws-lc and ring".to_owned(),
    })
}
