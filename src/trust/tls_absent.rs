//! What stands for TLS in a build without certificates: values of these types cannot be made.

use super::{Certificates, OneTimeSecret, Trust};
use crate::error::Result;
use crate::seal::SessionSecret;
use crate::wire::{DIALLER_HELLO_BYTES, OpenReply};

/// As there.
pub const RECORD_HEADER_BYTES: usize = 5;

/// As there.
pub fn record_bytes(_: &[u8; RECORD_HEADER_BYTES]) -> Option<usize> {
    None
}

/// As there.
#[allow(dead_code)] // nothing makes one
pub enum Step<T> {
    /// Another record.
    More,
    /// This.
    Done(T),
}

/// As there.
pub enum TlsDialler {}

/// As there.
pub enum TlsListener {}

#[allow(missing_docs)]
impl TlsDialler {
    pub(super) fn new(
        certificates: &Certificates,
        _: Option<&OneTimeSecret>,
        _: &[u8; DIALLER_HELLO_BYTES],
    ) -> Result<Self> {
        certificates.never()
    }

    pub fn output(&mut self) -> Vec<u8> {
        match *self {}
    }

    pub fn record(&mut self, _: &[u8]) -> Result<Step<(OpenReply, SessionSecret)>> {
        match *self {}
    }
}

#[allow(missing_docs)]
impl TlsListener {
    pub(super) fn new(
        certificates: &Certificates,
        _: Option<&OneTimeSecret>,
        _: &[u8; DIALLER_HELLO_BYTES],
    ) -> Result<Self> {
        certificates.never()
    }

    pub fn output(&mut self) -> Vec<u8> {
        match *self {}
    }

    pub fn refused_one_of_ours(&self) -> bool {
        match *self {}
    }

    pub fn record(&mut self, _: &[u8]) -> Result<Step<()>> {
        match *self {}
    }

    pub(super) fn reply(&mut self, _: &OpenReply) -> Result<(Vec<u8>, SessionSecret)> {
        match *self {}
    }

    pub fn end(&mut self, _: &[u8]) -> Result<()> {
        match *self {}
    }

    pub fn trust(&self) -> Trust {
        match *self {}
    }
}
