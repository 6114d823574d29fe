//! `sealane tunnel` between stock QEMUs: everything that they migrate by a socket goes sealed.
//!
//! Each case runs with each QEMU that `cargo xtask qemu` found, and is skipped aloud without one.
#![allow(missing_docs)]

mod docs;
mod failures;
mod moves;
mod rig;
mod tunnel;
mod user;
