//! The C ABI of Sealane: `include/sealane.h` is made from this crate by cbindgen
//! (`cargo xtask header`).
//!
//! Every exported function goes through a fence (`fence.rs`): null pointers, handles of another
//! process (after fork) and handles that a panic poisoned are errors, and no panic crosses into C.
#![allow(non_camel_case_types)]

mod config;
mod doctor;
mod error;
mod fence;
mod handshake;
mod lanes;
mod log;
mod region;
mod secret;
mod source;
mod stream;
mod streams;
mod target;

pub use config::*;
pub use doctor::*;
pub use error::*;
pub use handshake::*;
pub use lanes::*;
pub use log::*;
pub use region::*;
pub use secret::*;
pub use source::*;
pub use stream::*;
pub use streams::*;
pub use target::*;

/// Version of this header: major.
pub const SEALANE_VERSION_MAJOR: u32 = 0;
/// Version of this header: minor.
pub const SEALANE_VERSION_MINOR: u32 = 1;
/// Version of this header: patch.
pub const SEALANE_VERSION_PATCH: u32 = 0;

/// The version of the library that is linked, as `0.1.0`. Valid for ever; any thread.
#[unsafe(no_mangle)]
pub extern "C" fn sealane_version() -> *const std::ffi::c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_version_of_the_crate() {
        let macros =
            format!("{SEALANE_VERSION_MAJOR}.{SEALANE_VERSION_MINOR}.{SEALANE_VERSION_PATCH}");
        assert_eq!(macros, env!("CARGO_PKG_VERSION"));
    }
}
