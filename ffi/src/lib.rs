//! The C ABI of Sealane: `include/sealane.h` is made from this crate by cbindgen
//! (`cargo xtask header`).
//!
//! Every exported function goes through a fence (`fence.rs`): null pointers, handles of another
//! process (after fork) and handles that a panic poisoned are errors, and no panic crosses into C.
#![allow(non_camel_case_types)]

mod config;
mod dialler;
mod doctor;
mod error;
mod fence;
mod fork;
mod handshake;
mod lanes;
mod listener;
mod log;
mod progress;
mod region;
mod secret;
mod source;
mod stream;
mod streams;
mod target;
mod trust;

pub use config::*;
pub use dialler::*;
pub use doctor::*;
pub use error::*;
pub use handshake::*;
pub use lanes::*;
pub use listener::*;
pub use log::*;
pub use progress::*;
pub use region::*;
pub use secret::*;
pub use source::*;
pub use stream::*;
pub use streams::*;
pub use target::*;
pub use trust::*;

/// Version of this header: major.
pub const SEALANE_VERSION_MAJOR: u32 = 0;
/// Version of this header: minor.
pub const SEALANE_VERSION_MINOR: u32 = 1;
/// Version of this header: patch.
pub const SEALANE_VERSION_PATCH: u32 = 0;
/// Version of this header as a number that grows with it: major << 16 | minor << 8 | patch.
pub const SEALANE_VERSION_NUMBER: u32 =
    SEALANE_VERSION_MAJOR << 16 | SEALANE_VERSION_MINOR << 8 | SEALANE_VERSION_PATCH;

/// The version of the library that is linked, as `0.1.0`. Valid for ever; any thread.
#[unsafe(no_mangle)]
pub extern "C" fn sealane_version() -> *const std::ffi::c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The version of the library that is linked, as SEALANE_VERSION_NUMBER is that of the header it
/// was compiled with. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn sealane_version_number() -> u32 {
    SEALANE_VERSION_NUMBER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_version_of_the_crate() {
        let macros =
            format!("{SEALANE_VERSION_MAJOR}.{SEALANE_VERSION_MINOR}.{SEALANE_VERSION_PATCH}");
        assert_eq!(macros, env!("CARGO_PKG_VERSION"));
        let of_crate: Vec<u32> = macros.split('.').map(|part| part.parse().unwrap()).collect();
        assert!(of_crate.iter().all(|part| *part < 256), "a part has a byte");
        let number = of_crate.iter().fold(0, |number, part| number << 8 | part);
        assert_eq!(sealane_version_number(), number);
    }
}
