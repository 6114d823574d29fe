//! The one-time secret and the file that it comes in.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::{Zeroize, Zeroizing};

use crate::error::{ConfigError, Error, Result, SystemError};
use crate::seal::SessionSecret;

/// Fewest bytes of a secret: 256 bits.
const SECRET_BYTES_MIN: usize = 32;
const SECRET_BYTES_MAX: usize = 64;

/// The secret that the control plane hands to both hosts, for one migration. Erased on drop.
///
/// A failed or cancelled attempt may be repeated with it; a completed migration spends it, for
/// all clones of it in this process.
#[derive(Clone)]
pub struct OneTimeSecret {
    bytes: Zeroizing<Vec<u8>>,
    spent: Spent,
}

/// Whether a secret has carried a migration to its end. Clones are the same mark.
#[derive(Clone, Default)]
pub struct Spent(Arc<AtomicBool>);

impl Spent {
    /// The migration is complete.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether one was.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl OneTimeSecret {
    /// 32 fresh random bytes.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where the kernel gives no randomness.
    pub fn generate() -> Result<Self> {
        let mut bytes = Zeroizing::new(vec![0; SECRET_BYTES_MIN]);
        getrandom::fill(&mut bytes).map_err(|e| {
            SystemError::from_errno("getrandom", "one-time secret", e.raw_os_error().unwrap_or(0))
        })?;
        Ok(Self { bytes, spent: Spent::default() })
    }

    /// A secret from 32 to 64 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where it is shorter or longer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
            let bytes = Zeroizing::new(bytes.to_vec());
            return Ok(Self { bytes, spent: Spent::default() });
        }
        Err(unfit(format!("{} bytes", bytes.len())))
    }

    /// A secret from its text: hexadecimal digits, or a line `identity:hex` as in QEMU's
    /// `keys.psk`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where that is not what it holds.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines =
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let line = lines.next().ok_or_else(|| unfit("nothing".to_owned()))?;
        if lines.next().is_some() {
            return Err(unfit("several lines".to_owned()));
        }
        let hex = line.rsplit_once(':').map_or(line, |(_, hex)| hex);
        let mut bytes = Zeroizing::new(Vec::with_capacity(hex.len() / 2));
        for pair in hex.as_bytes().chunks(2) {
            match (pair.len(), std::str::from_utf8(pair).map(|p| u8::from_str_radix(p, 16))) {
                (2, Ok(Ok(byte))) if pair.iter().all(u8::is_ascii_hexdigit) => bytes.push(byte),
                _ => return Err(unfit("something that is not pairs of hex digits".to_owned())),
            }
        }
        Self::from_bytes(&bytes)
    }

    /// Reads a secret from a file that nobody but its owner may read.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where it cannot be read, [`Error::Config`] where others may read it or
    /// it holds no secret.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let system = |operation, e: &std::io::Error| SystemError::from_io(operation, &shown, e);
        // A FIFO would wait for a writer in open(2).
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| {
            system("open", &e)
                .remedy("make one with `sealane secret new` and copy it to both hosts")
        })?;
        // Of the open file and not of the path, which somebody could exchange in between.
        let metadata = file.metadata().map_err(|e| system("stat", &e))?;
        if !metadata.is_file() {
            return Err(unfit(format!("{shown}, which is no regular file")));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(Error::Config(ConfigError {
                key: "secret file",
                found: format!("{shown} with mode {:04o}", metadata.mode() & 0o7777),
                wanted: "a file that only its owner can read (mode 0600)".to_owned(),
                remedy: format!(
                    "make a new secret: others may have read this one; else chmod 600 {shown}"
                ),
            }));
        }
        if metadata.len() > 4096 {
            return Err(unfit(format!("{shown} of {} bytes", metadata.len())));
        }
        let text = match std::io::read_to_string(file) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                return Err(unfit(format!("{shown}, which is no text")));
            }
            Err(e) => return Err(system("read", &e).into()),
        };
        Self::from_text(&text).map_err(|error| match error {
            Error::Config(e) => {
                Error::Config(ConfigError { found: format!("{} in {shown}", e.found), ..e })
            }
            error => error,
        })
    }

    /// The secret as hexadecimal digits. Whoever sees them can take the guest.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes the secret to a new file with mode 0600, as hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where the file exists or cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<()> {
        let shown = path.display().to_string();
        let mut text = self.to_text();
        text.push('\n');
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(|e| {
                let error = SystemError::from_io("create", &shown, &e);
                match e.kind() {
                    std::io::ErrorKind::AlreadyExists => error
                        .remedy("it exists and is left alone: choose another name or remove it"),
                    _ => error,
                }
            })?;
        Ok(())
    }

    /// The mark that a completed migration sets.
    pub(crate) fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Refuses a secret that was used.
    pub(crate) fn check_unspent(&self) -> Result<()> {
        if !self.spent.get() {
            return Ok(());
        }
        Err(Error::Config(ConfigError {
            key: "secret",
            found: "one that a completed migration has used".to_owned(),
            wanted: "a secret for this migration alone".to_owned(),
            remedy: "make a new one with `sealane secret new` and give it to both hosts".to_owned(),
        }))
    }

    /// The key that Noise takes, whatever the length of the secret.
    pub(super) fn psk(&self) -> Zeroizing<[u8; 32]> {
        let mut key = SessionSecret::new(b"sealane1 one-time secret", &self.bytes).join_mac_key();
        let psk = Zeroizing::new(*key);
        key.zeroize();
        psk
    }
}

impl std::fmt::Debug for OneTimeSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OneTimeSecret(..)")
    }
}

fn unfit(found: String) -> Error {
    Error::Config(ConfigError {
        key: "secret",
        found,
        wanted: "one line of 64 to 128 hex digits (32 to 64 bytes), or identity:hex".to_owned(),
        remedy: "make one with `sealane secret new`".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_written_secret_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let secret = OneTimeSecret::generate().unwrap();
        secret.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(OneTimeSecret::read(&path).unwrap().bytes, secret.bytes);
        assert!(secret.write_new(&path).unwrap_err().to_string().contains("left alone"));
        let directory = OneTimeSecret::read(dir.path()).unwrap_err().to_string();
        assert!(directory.contains("no regular file"), "{directory}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = OneTimeSecret::read(&path).unwrap_err().to_string();
        assert!(refused.contains("0640") && refused.contains("0600"), "{refused}");
        assert_eq!(format!("{secret:?}"), "OneTimeSecret(..)");
    }

    #[test]
    fn texts_that_are_no_secret_are_refused() {
        let hex = "ab".repeat(32);
        let plain = OneTimeSecret::from_text(&hex).unwrap();
        assert_eq!(
            OneTimeSecret::from_text(&format!("# c\nvm1:{hex}\n")).unwrap().bytes,
            plain.bytes
        );
        for bad in [
            "",
            "abc",
            &"ab".repeat(31),
            &"zz".repeat(32),
            &format!("{hex}\n{hex}"),
            &"+1".repeat(32),
        ] {
            assert!(OneTimeSecret::from_text(bad).is_err(), "{bad}");
        }
    }
}
