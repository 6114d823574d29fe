//! Two guests that migrate over Sealane.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::Path;

use sealane_qemu::{Guest, Info, Options, Qemu, fitted};
use serde_json::json;

/// So slow that a migration of these guests takes seconds: there is time to disturb it.
pub const SLOW_BYTES_PER_S: u64 = 16 << 20;
const DISTURB_AFTER_BYTES: u64 = 4 << 20;

/// The QEMU that these tests are about.
pub fn qemu() -> Qemu {
    fitted().expect("cargo xtask qemu builds it, and names it in SEALANE_QEMU_FITTED")
}

/// What to move, and how.
#[derive(Clone)]
pub struct Case {
    pub options: Options,
    pub capabilities: &'static [&'static str],
    pub channels: u8,
    pub engine: &'static str,
}

impl Case {
    /// A stopped guest with 128 MiB of content.
    pub fn memory() -> Self {
        Self { options: Options::default(), capabilities: &[], channels: 2, engine: "uring" }
    }

    /// A guest that counts in its memory.
    pub fn live() -> Self {
        Self { options: Options::live(), ..Self::memory() }
    }

    pub fn with(self, capabilities: &'static [&'static str]) -> Self {
        Self { capabilities, ..self }
    }
}

/// A source and a target with the same secret, ready to migrate.
pub struct Pair {
    pub source: Guest,
    pub target: Guest,
}

impl Pair {
    pub fn new(case: &Case) -> Self {
        Self::with_source(case, start_source(case))
    }

    /// A target, with a secret of its own, for a source that is there and has none.
    pub fn with_source(case: &Case, source: Guest) -> Self {
        let pair = Self::without_trust(case, source);
        let secret = new_secret();
        for (end, name) in [(&pair.source, "client"), (&pair.target, "server")] {
            use_engine(end, name, &secret, case.engine).unwrap_or_else(|error| end.fail(&error));
        }
        pair
    }

    /// Neither of the two has what they would know each other by.
    pub fn without_trust(case: &Case, source: Guest) -> Self {
        let target = Guest::start(&qemu(), "target", &case.options.target());
        let pair = Self { source, target };
        for end in [&pair.source, &pair.target] {
            end.prepare(case.capabilities, case.channels);
        }
        pair
    }

    /// Lets the target listen; where the source finds it.
    pub fn listen(&self) -> String {
        self.target.listen("tcp:127.0.0.1:0");
        format!("tcp:127.0.0.1:{}", self.target.port())
    }

    pub fn start(&self) {
        let uri = self.listen();
        self.source.migrate(&uri);
    }

    /// Starts it slowly and waits until it is under way.
    pub fn start_slowly(&self) {
        let uri = self.listen();
        self.migrate_slowly(&uri);
    }

    pub fn migrate_slowly(&self, uri: &str) {
        self.source.slow_down(SLOW_BYTES_PER_S);
        self.source.migrate(uri);
        self.source.wait_transferred(DISTURB_AFTER_BYTES);
    }

    /// Switches to postcopy with most of the memory yet to come, and little of it each second.
    pub fn start_postcopy_slowly(&self, uri: &str) {
        self.source.set_parameters(json!({"max-postcopy-bandwidth": SLOW_BYTES_PER_S}));
        self.migrate_slowly(uri);
        self.source.start_postcopy();
        for guest in [&self.source, &self.target] {
            guest.wait_status("postcopy-active");
        }
    }

    /// Waits until both say that the migration is complete, and that nothing went wrong.
    pub fn finish(&self) -> Info {
        self.finish_after("no failure before")
    }

    /// As [`Self::finish`], where a line with that word was said before.
    pub fn finish_after(&self, word: &str) -> Info {
        let info = self.source.wait_status("completed");
        self.target.wait_status("completed");
        for guest in [&self.source, &self.target] {
            let said = guest.stderr();
            let mut lines = said.lines().filter(|line| line.contains("Sealane"));
            assert!(lines.all(|line| line.contains(word)), "{}: {said}", guest.name());
        }
        info
    }

    pub fn assert_memory_arrived(&self) {
        self.source.memory().assert_equal(self.target.memory());
    }

    /// The guest runs at the target, and lost nothing.
    pub fn assert_lives_at_target(&self) {
        self.target.assert_took_over_from(&self.source);
    }

    /// The guest runs at the source, as if there had been no migration.
    pub fn assert_lives_at_source(&self) {
        self.source.assert_runs_on();
    }
}

pub fn start_source(case: &Case) -> Guest {
    let source = Guest::start(&qemu(), "source", &case.options);
    if case.options.live {
        source.wait_counting();
    } else {
        source.memory().fill(1);
    }
    source
}

/// A secret's text.
pub fn new_secret() -> String {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives an end the secret as a file of its own.
pub fn use_secret(guest: &Guest, end: &str, secret: &str) -> Result<(), String> {
    use_engine(guest, end, secret, "uring")
}

fn use_engine(guest: &Guest, end: &str, secret: &str, engine: &str) -> Result<(), String> {
    let file = guest.path("secret");
    write_secret(&file, secret);
    // Its owner is who owns the guest's directory.
    let owner = fs::metadata(guest.path(".")).unwrap();
    chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    guest.try_use_sealane(end, &json!({"secret-file": file, "engine": engine}))
}

pub fn write_secret(path: &Path, secret: &str) {
    let _ = fs::remove_file(path);
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.unwrap(), secret.as_bytes()).unwrap();
}
