//! What this CPU has for AES-GCM.

use std::fmt;

/// The instructions that decide which provider is the fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// AES and carry-less multiplication (AES-NI and PCLMULQDQ; ARMv8 AES and PMULL).
    pub aes: bool,
    /// The same on 256-bit vectors (VAES, VPCLMULQDQ, AVX2).
    pub vaes: bool,
    /// The same on 512-bit vectors.
    pub avx512: bool,
}

impl CpuFeatures {
    /// Asks the CPU that runs this.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let aes = has!("aes") && has!("pclmulqdq");
            let vaes = aes && has!("vaes") && has!("vpclmulqdq") && has!("avx2");
            let avx512 = vaes && has!("avx512f") && has!("avx512bw") && has!("avx512vl");
            Self { aes, vaes, avx512 }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            Self { aes: has!("aes") && has!("pmull"), ..Self::default() }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self::default()
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self { avx512: true, .. } => "AES, VAES, AVX-512",
            Self { vaes: true, .. } => "AES, VAES, no AVX-512",
            Self { aes: true, .. } => "AES, no VAES",
            _ => "no AES instructions",
        })
    }
}
