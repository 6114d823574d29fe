//! Sealane moves a running virtual machine's memory from host to host, sealed (AES-256-GCM), over
//! one or more TCP connections.
//!
//! A [`Source`] sends [`memory::Region`]s in rounds to a [`Target`] that names the same regions.
//! Both ends hold the same [`OneTimeSecret`], or [`Certificates`] of one CA that name each other
//! ([`PeerName`]), or both ([`Trust::both`]); whichever of them stands where the example has the
//! secret. One dials ([`Dial`]), the other listens ([`Listener`]), whoever is the source.
//!
//! ```
//! use sealane::memory::{DirtyBitmap, Region};
//! use sealane::{Canceller, Config, EngineChoice, Listener, OneTimeSecret, Role, Source, Target};
//! # use std::io::{Read, Write};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let secret = OneTimeSecret::generate()?;
//! // io_uring unless named otherwise; a sandbox may have only this.
//! let mut config = Config::default();
//! config.engine = EngineChoice::Syscalls;
//! let listener = Listener::bind("127.0.0.1:0")?;
//! let address = listener.local_address()?.to_string();
//!
//! let (theirs, other) = (secret.clone(), config.clone());
//! let target = std::thread::spawn(move || -> sealane::Result<Vec<u8>> {
//!     let cancel = Canceller::default();
//!     let lanes = listener.accept(Role::Target, &theirs, &other, &cancel)?;
//!     let mut target = Target::start(lanes, &other, &cancel)?;
//!     let file = tempfile::tempfile().expect("a file");
//!     file.set_len(1 << 20).expect("room");
//!     target.accept(vec![Region::from_file("ram", file, 0, 1 << 20)?])?;
//!     let state = target.receive()?; // every round, then the device state
//!     target.ready()?; // the source has let go: the guest may run here
//!     target.done()?;
//!     Ok(state)
//! });
//!
//! let cancel = Canceller::default();
//! let lanes = sealane::dial(&address.parse()?, Role::Source, &secret, &config, &cancel)?;
//! let mut file = tempfile::tempfile()?;
//! file.write_all(&vec![7; 1 << 20])?;
//! let region = Region::from_file("ram", file, 0, 1 << 20)?;
//! let everything = DirtyBitmap::all(region.pages());
//! let mut source = Source::start(lanes, vec![region], &config, &cancel)?;
//! source.send_round(&[everything])?; // more rounds while the guest runs
//! source.commit(b"device state")?; // the guest is paused
//! source.hand_over()?;
//! assert_eq!(target.join().unwrap()?, b"device state");
//! # Ok(())
//! # }
//! ```

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

pub mod check;
pub mod config;
pub mod error;
pub mod memory;
pub mod stream;
pub mod tunnel;

mod cancel;
internal!(buffer, engine, establish, lane, migrate, seal, session, trust, wire);

pub use cancel::Canceller;
#[doc(hidden)] // for the C ABI
pub use cancel::spawn;
pub use config::Config;
pub use config::{EngineChoice, ProviderChoice, ZeroCopy};
pub use engine::EngineStatistics;
pub use error::{Error, Result};
pub use establish::{Dial, Expected, Listener, passed_sockets};
pub use migrate::{
    LaneStatistics, Lanes, Progress, RoundReport, Source, SourceReport, Target, TargetReport, dial,
};
pub use trust::{CertificateFiles, Certificates, OneTimeSecret, PeerName, Trust};
pub use wire::Role;

/// What this machine has for Sealane: the facts behind `sealane doctor`.
pub mod doctor {
    pub use crate::engine::{MemoryLock, Operation, Probe, lane_locked_bytes};
    pub use crate::seal::{CpuFeatures, Provider};
}

/// What is wrong, and what is fine, with a directory of certificates: the facts behind `sealane pki
/// check`.
pub mod pki {
    pub use crate::trust::{Finding, State, inspect};
}
