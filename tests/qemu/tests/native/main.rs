//! QEMU with Sealane fitted into it, from and to itself and others: what goes through a tunnel
//! between stock QEMUs, without one.
#![allow(missing_docs)]

#[path = "../../../support/pki.rs"]
mod pki;

mod certificates;
mod confined;
mod docs;
mod failures;
mod moves;
mod pair;
mod strangers;
