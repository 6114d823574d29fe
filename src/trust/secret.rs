//! The one-time secret and the file that it comes in.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

use crate::error::{ConfigError, Error, Result, SystemError};
use crate::seal::SessionSecret;

/// Fewest bytes of a secret: 256 bits.
const SECRET_BYTES_MIN: usize = 32;
const SECRET_BYTES_MAX: usize = 64;
/// How long another process may take to change a file of secrets.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of a file that holds secrets.
const FILE_BYTES_MAX: u64 = 64 << 10;

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
        let mut lines = lines(text);
        let line = lines.next().ok_or_else(|| unfit("nothing".to_owned()))?;
        if lines.next().is_some() {
            return Err(unfit("several lines: --psk-identity says which is meant".to_owned()));
        }
        Self::from_hex(line.rsplit_once(':').map_or(line, |(_, hex)| hex))
    }

    fn from_hex(hex: &str) -> Result<Self> {
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
        Self::from_text(&read_private(path)?).map_err(|error| found_in(error, path))
    }

    /// Reads the secret of one identity from a file of lines `identity:hex`, as QEMU's
    /// tls-creds-psk has in `keys.psk`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]; [`Error::Config`] with the identities that are there where this one is
    /// not, or is there twice.
    pub fn read_identity(path: &Path, identity: &str) -> Result<Self> {
        let text = read_private(path)?;
        let named: Vec<_> = lines(&text).filter_map(|line| line.rsplit_once(':')).collect();
        let mut own = named.iter().filter(|(name, _)| *name == identity);
        match (own.next(), own.next()) {
            (Some((_, hex)), None) => Self::from_hex(hex).map_err(|error| found_in(error, path)),
            (first, _) => {
                let names: Vec<_> = named.iter().map(|(name, _)| *name).collect();
                let count = if first.is_some() { "several" } else { "no" };
                Err(Error::Config(ConfigError {
                    key: "secret",
                    found: format!(
                        "{count} lines of {identity:?} in {}, which has {names:?}",
                        path.display()
                    ),
                    wanted: "one line identity:hex".to_owned(),
                    remedy: "name one of its identities with --psk-identity".to_owned(),
                }))
            }
        }
    }

    /// Removes what a completed migration has used: the file, or the line of one identity where
    /// others are beside it. One that is gone already is no error.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: the secret is still there.
    pub fn remove(path: &Path, identity: Option<&str>) -> Result<()> {
        const STILL: &str = "the migration is done, and its secret is still there: remove it";
        let failed = |operation, path: &Path, e: &std::io::Error| {
            SystemError::from_io(operation, path.display().to_string(), e).remedy(STILL)
        };
        let unlink = |path: &Path| match std::fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::from(failed("unlink", path, &e)))
            }
            _ => Ok(()),
        };
        // A link is not the secret: what it leads to is, and goes first.
        let link = path;
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let unlink_both = || unlink(path).and_then(|()| unlink(link));
        let Some(identity) = identity else { return unlink_both() };
        if !path.exists() {
            return unlink(link);
        }
        // Others may remove their lines at this moment: one at a time, or a line would come back.
        let beside = Beside::new(path).map_err(|(beside, e)| failed("create", &beside, &e))?;
        let text = match read_private(path) {
            Err(Error::System(e)) if e.errno == libc::ENOENT => return Ok(()),
            text => text?,
        };
        let mut rest = Zeroizing::new(String::with_capacity(text.len() + 1));
        let own = |line: &str| line.trim().rsplit_once(':').is_some_and(|(n, _)| n == identity);
        for line in text.lines().filter(|line| !own(line)) {
            rest.push_str(line);
            rest.push('\n');
        }
        if lines(&rest).next().is_none() {
            return unlink_both();
        }
        Ok(beside.replace(path, &rest).map_err(|e| failed("write", path, &e))?)
    }

    /// The secret as hexadecimal digits. Whoever sees them can take the guest.
    pub fn to_text(&self) -> Zeroizing<String> {
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16).expect("below 16");
        let mut text = Zeroizing::new(String::with_capacity(2 * self.bytes.len() + 1));
        for byte in self.bytes.iter() {
            text.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        text
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
                    ErrorKind::AlreadyExists => error
                        .remedy("it exists and is left alone: choose another name or remove it"),
                    _ => error,
                }
            })?;
        Ok(())
    }

    /// The same, as if it were new.
    pub(super) fn renewed(&self) -> Self {
        Self { bytes: self.bytes.clone(), spent: Spent::default() }
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

/// The lines that say something.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The text of a file that nobody but its owner may read.
fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    let shown = path.display().to_string();
    let system = |operation, e: &std::io::Error| SystemError::from_io(operation, &shown, e);
    // A FIFO would wait for a writer in open(2).
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| {
        system("open", &e).remedy("make one with `sealane secret new` and copy it to both hosts")
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
    if metadata.len() > FILE_BYTES_MAX {
        return Err(unfit(format!("{shown} of {} bytes", metadata.len())));
    }
    match std::io::read_to_string(file) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(e) if e.kind() == ErrorKind::InvalidData => {
            Err(unfit(format!("{shown}, which is no text")))
        }
        Err(e) => Err(system("read", &e).into()),
    }
}

/// A new file beside one that is to be changed; whoever has it changes that one alone.
struct Beside {
    path: PathBuf,
    file: File,
    /// It has taken the other's name, and its own may be somebody else's.
    renamed: bool,
}

impl Beside {
    /// Waits for a while for somebody else's to go.
    fn new(of: &Path) -> Result<Self, (PathBuf, std::io::Error)> {
        let mut path = of.as_os_str().to_owned();
        path.push(".new");
        let path = PathBuf::from(path);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut options = OpenOptions::new();
            match options.write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok(Self { path, file, renamed: false }),
                Err(e) if e.kind() == ErrorKind::AlreadyExists && Instant::now() < deadline => {
                    std::thread::sleep(PATIENCE / 100);
                }
                Err(e) => return Err((path, e)),
            }
        }
    }

    /// Puts a text in the place of that file's, whole or not at all, as private and of the same
    /// owner.
    fn replace(mut self, of: &Path, text: &str) -> std::io::Result<()> {
        let was = std::fs::metadata(of)?;
        std::os::unix::fs::fchown(&self.file, Some(was.uid()), Some(was.gid()))?;
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()?;
        std::fs::rename(&self.path, of)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn found_in(error: Error, path: &Path) -> Error {
    match error {
        Error::Config(e) => {
            let found = format!("{} in {}", e.found, path.display());
            Error::Config(ConfigError { found, ..e })
        }
        error => error,
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
    fn one_identity_of_a_psk_file_is_read_and_its_line_alone_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.psk");
        let (one, two) = ("ab".repeat(32), "cd".repeat(32));
        let text = format!("# of two guests\nqemu:{one}\na:b:{two}\n");
        fs::write(&path, &text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let read = |identity| OneTimeSecret::read_identity(&path, identity);
        assert_eq!(*read("qemu").unwrap().to_text(), one);
        assert_eq!(*read("a:b").unwrap().to_text(), two);
        let error = read("other").unwrap_err().to_string();
        assert!(error.contains("qemu") && error.contains("--psk-identity"), "{error}");
        assert!(!error.contains(&one), "{error}");
        assert!(OneTimeSecret::read(&path).unwrap_err().to_string().contains("--psk-identity"));

        OneTimeSecret::remove(&path, Some("qemu")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("# of two guests\na:b:{two}\n"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        read("qemu").unwrap_err();
        // One that was killed while it changed the file leaves this.
        fs::write(dir.path().join("keys.psk.new"), "").unwrap();
        let error = OneTimeSecret::remove(&path, Some("a:b")).unwrap_err().to_string();
        assert!(error.contains("keys.psk.new") && error.contains("still there"), "{error}");
        fs::remove_file(dir.path().join("keys.psk.new")).unwrap();
        OneTimeSecret::remove(&path, Some("a:b")).unwrap();
        assert!(!path.exists() && !dir.path().join("keys.psk.new").exists());
        OneTimeSecret::remove(&path, Some("a:b")).unwrap();
        OneTimeSecret::remove(&path, None).unwrap();
    }

    #[test]
    fn a_link_is_removed_with_the_secret_that_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("secret"), dir.path().join("link"));
        for identity in [None, Some("qemu")] {
            fs::write(&path, format!("qemu:{}\n", "ab".repeat(32))).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::symlink(&path, &link).unwrap();
            OneTimeSecret::remove(&link, identity).unwrap();
            assert!(!path.exists() && fs::symlink_metadata(&link).is_err(), "{identity:?}");
        }
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
