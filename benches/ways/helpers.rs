//! What an administrator would put between two plain ends: programs that seal, a process or more at
//! each side, with keys of this run alone. Nothing of the user's, least of all `~/.ssh`, is read.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::contestants::Helper;
use crate::processes::tree;

/// Where xtask unpacked the programs that the machine lacks.
const PEERS: &str = "SEALANE_PEERS";
/// As root, sshd wants a user of its own, whom its package makes; `nobody` is everywhere.
const NOBODY: u32 = 65534;
/// How long a program may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Programs at work; they are ended when this is dropped.
pub struct Helpers {
    /// Where the source dials.
    pub port: u16,
    source_side: Vec<Child>,
    target_side: Vec<Child>,
    /// Whose connection becomes the standard input and output of `openssl s_client`.
    waiting: Option<(TcpListener, Command)>,
}

impl Helpers {
    /// Those between a source and a target that listens at `target_port`.
    ///
    /// # Errors
    ///
    /// What is missing, or why one did not start.
    pub fn start(helper: Helper, place: &Path, target_port: u16) -> Result<Self, String> {
        let (near, far) = (free_port()?, free_port()?);
        let mut all =
            Self { port: near, source_side: Vec::new(), target_side: Vec::new(), waiting: None };
        match helper {
            Helper::Stunnel => all.stunnel(place, [near, far, target_port])?,
            Helper::Socat => all.socat(place, [near, far, target_port])?,
            Helper::SClient => all.s_client(place, far, target_port)?,
            Helper::Ssh => all.ssh(place, [near, far, target_port])?,
        }
        Ok(all)
    }

    /// The source has dialled.
    pub fn after_dial(&mut self) -> Result<(), String> {
        let Some((listener, mut command)) = self.waiting.take() else { return Ok(()) };
        let (socket, _) = listener.accept().map_err(|e| e.to_string())?;
        self.source_side.push(on_socket(&mut command, socket)?);
        Ok(())
    }

    /// Process ids of both sides.
    pub fn sides(&self) -> [Vec<u32>; 2] {
        [&self.source_side, &self.target_side].map(|side| side.iter().map(Child::id).collect())
    }

    fn stunnel(&mut self, place: &Path, [near, far, target]: [u16; 3]) -> Result<(), String> {
        let program = need("stunnel")?;
        let shown = place.display();
        let common = "foreground = yes\nsyslog = no\ndebug = 3\npid =\nsslVersionMin = TLSv1.3\n\
             ciphersuites = TLS_AES_256_GCM_SHA384\nsocket = l:TCP_NODELAY=1\n\
             socket = r:TCP_NODELAY=1\n";
        let server = format!(
            "{common}[s]\naccept = 127.0.0.1:{far}\nconnect = 127.0.0.1:{target}\n\
             cert = {shown}/cert.pem\nkey = {shown}/key.pem\n"
        );
        let client = format!(
            "{common}[c]\nclient = yes\naccept = 127.0.0.1:{near}\nconnect = 127.0.0.1:{far}\n\
             verifyChain = yes\nCAfile = {shown}/cert.pem\n"
        );
        for (name, text, port) in [("server", server, far), ("client", client, near)] {
            let path = place.join(format!("stunnel-{name}"));
            fs::write(&path, text).map_err(|e| e.to_string())?;
            let child = started(command(&program).arg(&path), place, name, port)?;
            if name == "server" { &mut self.target_side } else { &mut self.source_side }
                .push(child);
        }
        Ok(())
    }

    /// With a buffer of 64 KiB: with its default of 8 KiB it is slower.
    fn socat(&mut self, place: &Path, [near, far, target]: [u16; 3]) -> Result<(), String> {
        let program = need("socat")?;
        let shown = place.display();
        let tls = "openssl-min-proto-version=TLS1.3,nodelay";
        let sides = [
            (
                format!(
                    "OPENSSL-LISTEN:{far},bind=127.0.0.1,verify=0,{tls},cert={shown}/cert.pem,\
                         key={shown}/key.pem"
                ),
                format!("TCP:127.0.0.1:{target},nodelay"),
                far,
            ),
            (
                format!("TCP-LISTEN:{near},bind=127.0.0.1,nodelay"),
                format!(
                    "OPENSSL:127.0.0.1:{far},verify=1,commonname=localhost,{tls},\
                         cafile={shown}/cert.pem"
                ),
                near,
            ),
        ];
        for (side, (from, to, port)) in
            [&mut self.target_side, &mut self.source_side].into_iter().zip(sides)
        {
            let mut run = command(&program);
            side.push(started(run.args(["-b", "65536", &from, &to]), place, "socat", port)?);
        }
        Ok(())
    }

    fn s_client(&mut self, place: &Path, far: u16, target: u16) -> Result<(), String> {
        let program = need("openssl")?;
        let (cert, key) = (place.join("cert.pem"), place.join("key.pem"));
        let mut server = command(&program);
        server.args(["s_server", "-quiet", "-tls1_3", "-naccept", "1", "-accept"]);
        server.arg(format!("127.0.0.1:{far}")).arg("-cert").arg(&cert).arg("-key").arg(key);
        server.args(["-ciphersuites", "TLS_AES_256_GCM_SHA384"]);
        let socket = TcpStream::connect(("127.0.0.1", target)).map_err(|e| e.to_string())?;
        self.target_side.push(on_socket(&mut server, socket)?);
        listens(far, &mut self.target_side[0])?;
        let mut client = command(&program);
        client.args(["s_client", "-quiet", "-tls1_3", "-verify_return_error", "-connect"]);
        client.arg(format!("127.0.0.1:{far}")).arg("-CAfile").arg(cert);
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        self.port = listener.local_addr().map_err(|e| e.to_string())?.port();
        self.waiting = Some((listener, client));
        Ok(())
    }

    /// A forwarding of ports through a daemon that is this run's alone. With PAM, or the daemon
    /// takes `nobody` for locked.
    fn ssh(&mut self, place: &Path, [near, far, target]: [u16; 3]) -> Result<(), String> {
        let (ssh, sshd) = (need("ssh")?, need("sshd")?);
        let keys = ssh_keys(place)?;
        let (shown, user) = (keys.display(), user());
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {far}\nHostKey {shown}/host\nPidFile none\n\
             AuthorizedKeysFile {shown}/user.pub\nStrictModes no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nUsePAM yes\nCiphers aes256-gcm@openssh.com\n\
             AllowTcpForwarding yes\nAllowUsers {user}\n"
        );
        let path = keys.join("sshd_config");
        fs::write(&path, config).map_err(|e| e.to_string())?;
        let mut daemon = command(&sshd);
        daemon.args(["-D", "-e", "-f"]).arg(&path);
        if is_root() {
            daemon.uid(NOBODY).gid(NOBODY);
        }
        self.target_side.push(started(&mut daemon, place, "sshd", far)?);
        let mut client = command(&ssh);
        client.args(["-F", "none", "-N", "-T", "-c", "aes256-gcm@openssh.com"]);
        for option in [
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "ExitOnForwardFailure=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("UserKnownHostsFile={shown}/known"),
            format!("HostKeyAlias={HOST}"),
        ] {
            client.arg("-o").arg(option);
        }
        client.arg("-i").arg(place.join("ssh-user")).arg("-p").arg(far.to_string());
        client.arg("-L").arg(format!("127.0.0.1:{near}:127.0.0.1:{target}"));
        client.arg(format!("{user}@127.0.0.1"));
        self.source_side.push(started(&mut client, place, "ssh", near)?);
        Ok(())
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        let end = |child: &mut Child| {
            let _ = child.kill();
            let _ = child.wait();
        };
        self.source_side.iter_mut().for_each(end);
        // A daemon's children end with their connections, and the daemon buries them.
        let begin = Instant::now();
        let ids = self.sides()[1].clone();
        while tree(&ids).len() > ids.len() && begin.elapsed() < PATIENCE / 5 {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.target_side.iter_mut().for_each(end);
    }
}

/// The name by which ssh knows this run's host key.
const HOST: &str = "sealane-bench";

/// Keys of host and user, made at the first call. The daemon's are readable by whom it runs as.
fn ssh_keys(place: &Path) -> Result<PathBuf, String> {
    let keys = place.join("sshd");
    if keys.exists() {
        return Ok(keys);
    }
    let system = |e: io::Error| format!("ssh's keys: {e}");
    fs::create_dir(&keys).map_err(system)?;
    for path in [keys.join("host"), place.join("ssh-user")] {
        let mut keygen = command(&need("ssh-keygen")?);
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&path);
        let made = keygen.status().map_err(system)?;
        if !made.success() {
            return Err(format!("ssh-keygen: {made}"));
        }
    }
    fs::copy(place.join("ssh-user.pub"), keys.join("user.pub")).map_err(system)?;
    let host = fs::read_to_string(keys.join("host.pub")).map_err(system)?;
    fs::write(keys.join("known"), format!("{HOST} {host}")).map_err(system)?;
    if is_root() {
        // The way to the directory, and in it the one private key that is the daemon's.
        for open in [place, &keys] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o711)).map_err(system)?;
        }
        chown(keys.join("host"), Some(NOBODY), Some(NOBODY)).map_err(system)?;
    }
    Ok(keys)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn user() -> String {
    let id = if is_root() { nix::unistd::Uid::from_raw(NOBODY) } else { nix::unistd::geteuid() };
    let user = nix::unistd::User::from_uid(id).ok().flatten();
    user.map_or_else(|| "nobody".to_owned(), |user| user.name)
}

/// Where a program is: on the path, where daemons are, or where xtask unpacked it.
pub fn need(name: &str) -> Result<PathBuf, String> {
    let mut places: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    places.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Some(peers) = std::env::var_os(PEERS).map(PathBuf::from) {
        places.extend(["usr/bin", "usr/sbin"].map(|part| peers.join(part)));
    }
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is not there: cargo xtask bench unpacks it"))
}

/// To run it; what xtask unpacked finds its libraries.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(peers) = std::env::var_os(PEERS).map(PathBuf::from)
        && program.starts_with(&peers)
    {
        let libraries = fs::read_dir(peers.join("usr/lib")).into_iter().flatten().flatten();
        let list: Vec<OsString> = libraries.map(|entry| entry.path().into()).collect();
        if let Ok(joined) = std::env::join_paths(list) {
            command.env("LD_LIBRARY_PATH", joined);
        }
    }
    command
}

/// Starts it and waits until it listens.
fn started(command: &mut Command, place: &Path, name: &str, port: u16) -> Result<Child, String> {
    let said = place.join(format!("said-{name}"));
    let file = File::create(&said).map_err(|e| e.to_string())?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    let mut child = command.spawn().map_err(|e| format!("{name}: {e}"))?;
    listens(port, &mut child).map_err(|error| {
        let _ = child.kill();
        let _ = child.wait();
        format!("{name}: {error}: {}", fs::read_to_string(&said).unwrap_or_default().trim())
    })?;
    Ok(child)
}

/// With a socket as its standard input and output.
fn on_socket(command: &mut Command, socket: TcpStream) -> Result<Child, String> {
    socket.set_nodelay(true).map_err(|e| e.to_string())?;
    let other = socket.try_clone().map_err(|e| e.to_string())?;
    command.stdin(OwnedFd::from(socket)).stdout(OwnedFd::from(other)).stderr(Stdio::null());
    command.spawn().map_err(|e| format!("{command:?}: {e}"))
}

/// Without dialling, which the program would pass on.
fn listens(port: u16, child: &mut Child) -> Result<(), String> {
    let begin = Instant::now();
    let wanted = format!("0100007F:{port:04X} 00000000:0000 0A");
    while begin.elapsed() < PATIENCE {
        let mut table = String::new();
        let file = File::open("/proc/net/tcp").and_then(|mut f| f.read_to_string(&mut table));
        file.map_err(|e| format!("/proc/net/tcp: {e}"))?;
        if table.contains(&wanted) {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("ended with {status}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(format!("does not listen at port {port}"))
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}
