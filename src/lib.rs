//! Sealane moves a running virtual machine's memory from host to host, sealed.

/// Declares a module that is private to the crate, and public (undocumented, unstable) for this
/// repository's own fuzz/ and benches/ under the feature `internals`.
macro_rules! internal {
    ($($name:ident),* $(,)?) => {$(
        #[cfg(feature = "internals")]
        #[doc(hidden)]
        #[allow(missing_docs)]
        pub mod $name;
        #[cfg(not(feature = "internals"))]
        mod $name;
    )*};
}

pub mod config;
pub mod error;
pub mod memory;

internal!(buffer, engine, lane, migrate, seal, session, trust, wire);

pub use config::Config;
pub use error::{Error, Result};
