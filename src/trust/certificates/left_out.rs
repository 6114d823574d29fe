//! Certificates in a build without them: the types are there and say what is missing.

use std::path::Path;

use super::{CertificateFiles, Finding, PeerName};
use crate::error::{ConfigError, Error, Result};

/// This host's certificates, its CA and the peer that it expects. This build has none.
#[derive(Clone, Debug)]
pub struct Certificates(std::convert::Infallible);

impl Certificates {
    /// Always an error in this build.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn from_directory(_: &Path, _: PeerName) -> Result<Self> {
        Err(left_out())
    }

    /// Always an error in this build.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn from_files(_: &CertificateFiles, _: PeerName) -> Result<Self> {
        Err(left_out())
    }

    /// Whatever one of these would give: there is none.
    pub(crate) fn never<T>(&self) -> T {
        match self.0 {}
    }

    /// The peer that is expected.
    pub fn peer(&self) -> &PeerName {
        match self.0 {}
    }

    /// Nothing: there are none.
    ///
    /// # Errors
    ///
    /// None.
    pub fn check_dials(&self) -> Result<()> {
        match self.0 {}
    }

    /// Nothing: there are none.
    ///
    /// # Errors
    ///
    /// None.
    pub fn check_listens(&self) -> Result<()> {
        match self.0 {}
    }
}

/// One finding in this build: that it has no certificates.
pub fn inspect(directory: &Path, _: Option<&PeerName>) -> Vec<Finding> {
    vec![Finding::bad(directory, &left_out())]
}

fn left_out() -> Error {
    Error::Config(ConfigError {
        key: "certificates",
        found: "this build has no certificates".to_owned(),
        wanted: "a build of the library that has them".to_owned(),
        remedy: "build with the feature certificates, or use a one-time secret".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_certificates_says_so() {
        let peer = || "host.example".parse().unwrap();
        let error = Certificates::from_directory(Path::new("/"), peer()).unwrap_err();
        assert!(error.to_string().contains("feature certificates"), "{error}");
        assert_eq!(inspect(Path::new("/"), None)[0].state, super::super::State::Bad);
    }
}
