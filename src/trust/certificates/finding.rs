//! What the look at certificate files finds, one source for errors and for `sealane pki check`.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// How grave a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and may be meant otherwise or end soon.
    Warning,
    /// Nobody can be met with it.
    Bad,
}

/// What is known of one file.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Finding {
    /// The file, or the directory where it concerns no single one.
    pub file: PathBuf,
    /// How grave it is.
    pub state: State,
    /// What was found.
    pub text: String,
    /// What can be done; empty where nothing need be.
    pub remedy: String,
}

impl Finding {
    /// What is as it should be.
    #[cfg(feature = "certificates")]
    pub(super) fn fine(file: &Path, text: String) -> Self {
        Self { file: file.to_owned(), state: State::Ok, text, remedy: String::new() }
    }

    /// What works and deserves a look.
    #[cfg(feature = "certificates")]
    pub(super) fn warning(file: &Path, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (text, remedy) = (text.into(), remedy.into());
        Self { file: file.to_owned(), state: State::Warning, text, remedy }
    }

    /// What an error says of a file.
    pub(super) fn bad(file: &Path, error: &Error) -> Self {
        let (text, remedy) = match error {
            Error::Config(e) => {
                let shown = format!("{}: ", file.display());
                let found = e.found.strip_prefix(&shown).unwrap_or(&e.found);
                (format!("{found}, wanted {}", e.wanted), e.remedy.clone())
            }
            Error::System(e) => {
                let reason = std::io::Error::from_raw_os_error(e.errno);
                (format!("{}: {reason}", e.operation), e.remedy.clone())
            }
            error => (error.to_string(), String::new()),
        };
        Self { file: file.to_owned(), state: State::Bad, text, remedy }
    }
}

/// The error of a file that cannot serve.
#[cfg(feature = "certificates")]
pub(super) fn unfit(
    file: &Path,
    found: impl std::fmt::Display,
    wanted: impl Into<String>,
    remedy: impl Into<String>,
) -> Error {
    Error::Config(crate::error::ConfigError {
        key: "certificates",
        found: format!("{}: {found}", file.display()),
        wanted: wanted.into(),
        remedy: remedy.into(),
    })
}
