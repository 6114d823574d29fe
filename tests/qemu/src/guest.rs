//! A QEMU process with one guest.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Memory, PATIENCE, Qemu, Qmp, boot};

/// The same at both ends, or `validate-uuid` refuses the migration.
const UUID: &str = "5ea1a9e0-0000-4000-8000-000000000001";

/// The user `nobody`.
const NOBODY: u32 = 65534;

/// What kind of guest; begin with `Options::default()`: 128 MiB of memory, nothing runs in it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory in MiB, a multiple of 1.
    pub mib: u64,
    /// Whether the boot sector of this crate runs in it, as soon as it may.
    pub live: bool,
    /// Whether a target stays stopped after the migration, so that memory can be compared.
    pub paused: bool,
    /// Whether it waits for a migration.
    pub incoming: bool,
    /// Whether the machine's own virtualization runs it, and not TCG.
    pub kvm: bool,
    /// Another UUID than all others have.
    pub uuid: Option<&'static str>,
    /// The machine type, `pc-i440fx-7.2`; else the newest of this QEMU.
    pub machine: &'static str,
    /// Bytes that QEMU may lock into memory, as an ordinary user and not as root.
    pub ordinary_user: Option<u64>,
    /// Whether memory is touched before the guest starts.
    pub prealloc: bool,
    /// More arguments of QEMU's.
    pub more: &'static [&'static str],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mib: 128,
            live: false,
            paused: false,
            incoming: false,
            kvm: false,
            uuid: None,
            machine: "pc",
            ordinary_user: None,
            prealloc: true,
            more: &[],
        }
    }
}

impl Options {
    /// A guest that counts in its memory.
    pub fn live() -> Self {
        Self { live: true, ..Self::default() }
    }

    /// The same guest, waiting for a migration.
    pub fn target(&self) -> Self {
        Self { incoming: true, ..self.clone() }
    }
}

/// A QEMU process; killed when dropped, and when the thread ends that started it.
pub struct Guest {
    name: String,
    child: RefCell<Child>,
    qmp: RefCell<Qmp>,
    memory: Memory,
    directory: TempDir,
}

impl Guest {
    /// Starts it and speaks to its monitor; `name` is for messages.
    ///
    /// # Panics
    ///
    /// Where it does not start, with what QEMU says.
    pub fn start(qemu: &Qemu, name: &str, options: &Options) -> Self {
        let name = format!("{name} ({})", qemu.name);
        let directory = tempfile::Builder::new().prefix("sealane-qemu").tempdir_in("/dev/shm");
        let directory = directory.expect("a directory in /dev/shm");
        let memory = Memory::create(&directory.path().join("ram"), options.mib << 20);
        fs::write(directory.path().join("disk"), boot::disk()).expect("a disk in /dev/shm");
        let listener = UnixListener::bind(directory.path().join("qmp")).expect("a QMP socket");
        let stderr = File::create(directory.path().join("stderr")).expect("a file in /dev/shm");
        let mut command = command(qemu, options, directory.path().to_str().expect("UTF-8"));
        if let Some(bytes) = options.ordinary_user {
            confine(&mut command, directory.path(), bytes);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let qmp = accept(&listener, &mut child).unwrap_or_else(|error| {
            let _ = child.kill();
            let said = fs::read_to_string(directory.path().join("stderr")).unwrap_or_default();
            panic!("{name}: {error}: {said}\n{command:?}")
        });
        Self { name, child: child.into(), qmp: qmp.into(), memory, directory }
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What the guest is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.borrow().id()
    }

    /// A path in a directory that goes with the guest.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// # Errors
    ///
    /// What QEMU says, or that it is gone.
    pub fn try_execute(&self, command: &str, arguments: Value) -> Result<Value, String> {
        self.qmp.borrow_mut().execute(command, arguments)
    }

    /// # Panics
    ///
    /// Where QEMU refuses.
    pub fn execute(&self, command: &str, arguments: Value) -> Value {
        let result = self.try_execute(command, arguments);
        result.unwrap_or_else(|error| self.fail(&error))
    }

    /// QMP events that came since the last call.
    pub fn take_events(&self) -> Vec<Value> {
        self.qmp.borrow_mut().take_events()
    }

    /// Waits for an event of that name that fits; those before it are forgotten.
    pub(crate) fn wait_event(&self, name: &str, fits: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = self.qmp.borrow_mut().next_event(deadline);
            match event {
                Ok(Some(event)) if event["event"] == name && fits(&event) => return,
                Ok(Some(_)) => {}
                Ok(None) => self.fail(&format!("waited {PATIENCE:?} for the event {name}")),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// What query-status says: `running`, `paused`, `postmigrate`..
    pub fn run_state(&self) -> String {
        let state = self.execute("query-status", json!({}));
        state["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.execute("query-status", json!({}))["running"] == true
    }

    /// Stops the guest.
    pub fn stop(&self) {
        self.execute("stop", json!({}));
    }

    /// Lets the guest run.
    pub fn cont(&self) {
        self.execute("cont", json!({}));
    }

    /// Waits until a live guest has counted over all its pages.
    pub fn wait_counting(&self) {
        self.wait_counting_on(&vec![0; self.memory.counters().len()]);
    }

    /// Waits until each page's counter is some sweeps beyond what it was.
    pub fn wait_counting_on(&self, since: &[u32]) {
        let on = |_: &Self| self.memory.are_counters_beyond(since, 2).then_some(());
        self.wait_for("the counters to go on", on);
    }

    /// Asks `ready` until it has something.
    ///
    /// # Panics
    ///
    /// After [`PATIENCE`], with all there is to know.
    pub fn wait_for<T>(&self, what: &str, mut ready: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = ready(self) {
                return value;
            }
            if Instant::now() > deadline {
                self.fail(&format!("waited {PATIENCE:?} for {what}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// # Panics
    ///
    /// Always: `what`, the state of the migration, QEMU's standard error.
    pub fn fail(&self, what: &str) -> ! {
        let migration = match self.try_execute("query-migrate", json!({})) {
            Ok(value) => value.to_string(),
            Err(error) => error,
        };
        let state = self.try_execute("query-status", json!({})).map(|value| value.to_string());
        let ended = self.child.borrow_mut().try_wait();
        panic!(
            "{}: {what}\nmigration: {migration}\nstate: {state:?}, ended: {ended:?}\nstderr: {}",
            self.name,
            self.stderr()
        );
    }

    /// What QEMU wrote to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) {
        let mut child = self.child.borrow_mut();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// How the process ended, if it did.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.borrow_mut().try_wait().expect("a child can be waited for")
    }

    /// Waits for the end of the process.
    pub fn wait_ended(&self) -> ExitStatus {
        self.wait_for("the end of the process", Self::ended)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

fn command(qemu: &Qemu, options: &Options, directory: &str) -> Command {
    let mut command = Command::new(&qemu.binary);
    command.env("LD_LIBRARY_PATH", &qemu.libraries).env_remove("QEMU_MODULE_DIR");
    for directory in &qemu.firmware {
        command.args(["-L", directory]);
    }
    let accelerator: &[&str] =
        if options.kvm { &["-accel", "kvm", "-cpu", "kvm64"] } else { &["-accel", "tcg"] };
    let size = options.mib;
    let memory = format!(
        "memory-backend-file,id=ram,size={size}M,mem-path={directory}/ram,share=on,prealloc={}",
        if options.prealloc { "on" } else { "off" }
    );
    command
        .args(accelerator)
        .args(["-machine", &format!("{},memory-backend=ram", options.machine)])
        .args(["-object", &memory, "-m", &format!("{size}M")])
        .args(["-no-user-config", "-nodefaults", "-display", "none", "-name", "debug-threads=on"])
        .args(["-uuid", options.uuid.unwrap_or(UUID)])
        .args(["-chardev", &format!("socket,id=qmp,path={directory}/qmp,server=off")])
        .args(["-mon", "chardev=qmp,mode=control"]);
    if options.live {
        command.args(["-drive", &format!("if=ide,format=raw,file={directory}/disk")]);
    }
    if options.incoming {
        command.args(["-incoming", "defer"]);
    }
    if !options.live || options.paused && options.incoming {
        command.arg("-S");
    }
    command.args(options.more);
    // SAFETY: prctl(2) alone, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let signal = nix::sys::signal::Signal::SIGKILL;
            Ok(nix::sys::prctl::set_pdeathsig(signal)?)
        });
    }
    command
}

/// Lets it run as `nobody`, if this is root, who owns the guest's directory then.
fn confine(command: &mut Command, directory: &Path, locked_bytes: u64) {
    if geteuid().is_root() {
        let files = fs::read_dir(directory).expect("a directory").flatten();
        for path in files.map(|file| file.path()).chain([directory.to_owned()]) {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    // SAFETY: setrlimit(2) alone, which is safe between fork and exec.
    unsafe {
        command
            .pre_exec(move || Ok(setrlimit(Resource::RLIMIT_MEMLOCK, locked_bytes, locked_bytes)?));
    }
}

/// The monitor's connection, or why there is none.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<Qmp, String> {
    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).map_err(|e| e.to_string())?;
            return Qmp::new(stream);
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Err(format!("QEMU ended at once: {status}"));
        }
        if Instant::now() > deadline {
            return Err("QEMU does not connect to its monitor".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
