//! `cargo xtask qemu --stock`: QEMU as it comes in the distribution's packages, unpacked below
//! target/qemu; and the source package of another release's, for `fitted.rs`.
//!
//! Nothing is installed and nobody need be root. apt gets a configuration and a state of its own
//! in target/qemu/apt: the machine's own sources of this release, and the same mirror's backports
//! beside them, which on Debian 12 gives QEMU 7.2 and 10.0. `apt-get --download-only` resolves
//! what this machine lacks, `dpkg-deb` unpacks it. To fetch again: remove target/qemu.
//!
//! target/qemu/installed has a line for each QEMU, four fields with a tab between them:
//! its version (`7.2`), its binary, the directories for `-L` and those for `LD_LIBRARY_PATH`,
//! each with `:` between. Where apt is missing, that file can be written by hand.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, output, run};

/// What the tests read to learn where [`ensure`] put that file.
pub const VARIABLE: &str = "SEALANE_QEMU";
const PLACE: &str = "target/qemu";
const PACKAGE: &str = "qemu-system-x86";
/// Packages that a machine may have already, in another version: here they count as missing.
const UNPACKED: [&str; 3] = ["qemu-", "seabios", "ipxe-qemu"];
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
const REMEDY: &str = "QEMU is unpacked with apt-get and dpkg-deb from the machine's own sources \
    (Debian, or a relative): make `apt-get update` work, or write target/qemu/installed by hand, \
    see xtask/src/qemu.rs";

/// The list of QEMUs, made at the first call.
///
/// # Errors
///
/// Where apt cannot be had or reached, with the remedy.
pub fn ensure() -> Result<PathBuf> {
    let place = env::current_dir().map_err(|e| e.to_string())?.join(PLACE);
    let list = place.join("installed");
    if fs::read_to_string(&list).is_ok_and(|text| is_whole(&text)) {
        return Ok(list);
    }
    let lines = fetch(&place).map_err(|error| format!("{error}\n{REMEDY}"))?;
    write(&list, &lines)?;
    Ok(list)
}

/// The source package of `suite`'s QEMU, from the machine's own mirror, into a new directory.
///
/// # Errors
///
/// Where apt cannot be had or reached.
pub fn source(apt: &Path, suite: &str, into: &Path) -> Result {
    remove(into)?;
    fs::create_dir_all(into).map_err(|e| format!("{}: {e}", into.display()))?;
    let apt = Apt::new(apt, &codename()?)?;
    apt.update(
        &|text, release| as_source(&stanzas(text, release, None), release, suite),
        &|text, release| as_source(&one_liners(text, release, None), release, suite),
    )?;
    let fetch = ["source", "--quiet", "--download-only", "qemu"];
    run(apt.command("apt-get").args(fetch).current_dir(into)).map_err(|error| {
        format!("{error}\nthe source of QEMU comes from {suite} of the mirror in /etc/apt")
    })?;
    remove(&apt.place)
}

/// The verb: says what there is.
pub fn show() -> Result {
    let list = ensure()?;
    let text = fs::read_to_string(&list).map_err(|e| format!("{}: {e}", list.display()))?;
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (name, binary) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        println!("QEMU {name}: {binary}");
    }
    println!("{VARIABLE}={}", list.display());
    Ok(())
}

/// Whether there is a line, and a binary for each.
fn is_whole(list: &str) -> bool {
    let there = |line: &str| line.split('\t').nth(1).is_some_and(|path| Path::new(path).exists());
    !list.is_empty() && list.lines().all(there)
}

fn fetch(place: &Path) -> Result<String> {
    let release = codename()?;
    let backports = format!("{release}-backports");
    let apt = Apt::new(&place.join("apt"), &release)?;
    let mut suites = vec![release, backports];
    if let Err(error) = apt.update_binaries(Some(&suites[1])) {
        eprintln!("xtask: no backports: {error}");
        suites.pop();
        apt.update_binaries(None)?;
    }
    let mut lines = String::new();
    for suite in &suites {
        let new = place.join("new");
        remove(&new)?;
        apt.unpack(suite, &new)?;
        let name = version(&new)?;
        let root = place.join(&name);
        if lines.lines().any(|line| line.split('\t').next() == Some(&name)) {
            remove(&new)?; // these backports have the same version
            continue;
        }
        remove(&root)?;
        fs::rename(&new, &root).map_err(|e| format!("{}: {e}", root.display()))?;
        let firmware: Vec<_> = FIRMWARE.iter().map(|path| root.join(path)).collect();
        let (binary, firmware, libraries) = (binary(&root), join(&firmware), libraries(&root));
        let _ = writeln!(lines, "{name}\t{}\t{firmware}\t{libraries}", binary.display());
    }
    remove(&place.join("apt"))?;
    Ok(lines)
}

/// What is left of the text of a file of sources, for a release.
type Cut<'a> = dyn Fn(&str, &str) -> String + 'a;

/// apt with a configuration, sources and a state of its own.
struct Apt {
    place: PathBuf,
    release: String,
}

impl Apt {
    fn new(place: &Path, release: &str) -> Result<Self> {
        remove(place)?;
        for directory in ["sources", "none", "state/lists/partial", "cache/archives/partial"] {
            let path = place.join(directory);
            fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        // How the machine reaches its mirror stays, its hooks and pins do not.
        let dump = output(Command::new("apt-config").arg("dump"))?;
        let reach = |line: &&str| {
            line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets")
        };
        let mut config: String =
            dump.lines().filter(reach).map(|line| format!("{line}\n")).collect();
        let (shown, none) = (place.display(), place.join("none"));
        for (key, value) in [("Dir::Etc::main", "none/none"), ("Dir::Etc::parts", "none")] {
            let _ = writeln!(config, "{key} \"{shown}/{value}\";");
        }
        let _ = writeln!(
            config,
            "Dir::Etc::preferences \"{none}/none\";\nDir::Etc::preferencesparts \"{none}\";\n\
             Dir::Etc::sourcelist \"{none}/none\";\nDir::Etc::sourceparts \"{shown}/sources\";\n\
             Dir::State \"{shown}/state\";\nDir::State::status \"{shown}/status\";\n\
             Dir::Cache \"{shown}/cache\";\nAPT::Sandbox::User \"\";",
            none = none.display(),
        );
        write(&place.join("apt.conf"), &config)?;
        let status = fs::read_to_string("/var/lib/dpkg/status")
            .map_err(|e| format!("/var/lib/dpkg/status: {e}"))?;
        write(&place.join("status"), &without_qemu(&status))?;
        Ok(Self { place: place.to_owned(), release: release.to_owned() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.place.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    /// Gets the lists of what is left of the machine's sources: of `.sources` files, and of
    /// others.
    fn update(&self, stanzas: &Cut<'_>, one_liners: &Cut<'_>) -> Result {
        let mut found = false;
        for path in machine_sources() {
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let (name, own) = match path.extension() {
                Some(kind) if kind == "sources" => (".sources", stanzas(&text, &self.release)),
                _ => (".list", one_liners(&text, &self.release)),
            };
            let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned() + name;
            found |= !own.is_empty();
            write(&self.place.join("sources").join(file), &own)?;
        }
        if !found {
            return Err(format!("/etc/apt names no source of {} main", self.release));
        }
        run(self.command("apt-get").args(["update", "-qq", "--error-on=any"]))
    }

    fn update_binaries(&self, backports: Option<&str>) -> Result {
        self.update(&|text, release| stanzas(text, release, backports), &|text, release| {
            one_liners(text, release, backports)
        })
    }

    /// Downloads what `suite` has and unpacks it at `root`.
    fn unpack(&self, suite: &str, root: &Path) -> Result {
        let archives = self.place.join("cache/archives");
        remove(&archives)?;
        fs::create_dir_all(archives.join("partial")).map_err(|e| e.to_string())?;
        let how = ["install", "--download-only", "-qq", "--yes", "--no-install-recommends"];
        run(self.command("apt-get").args(how).args([
            "--allow-downgrades",
            "--target-release",
            suite,
            PACKAGE,
        ]))?;
        let entries = fs::read_dir(&archives).map_err(|e| e.to_string())?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("--extract").arg(path).arg(root))?;
            }
        }
        Ok(())
    }
}

/// The release's name, `bookworm`.
fn codename() -> Result<String> {
    let text =
        fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.map(|name| name.trim_matches('"').to_owned());
    name.filter(|name| !name.is_empty()).ok_or_else(|| "no VERSION_CODENAME here".to_owned())
}

fn machine_sources() -> Vec<PathBuf> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut paths: Vec<_> = parts.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "list" || kind == "sources"));
    paths.push("/etc/apt/sources.list".into());
    paths.retain(|path| path.is_file());
    paths.sort();
    paths
}

/// Which of `suites` to ask, and `extra` beside the release itself.
fn chosen(suites: &[&str], release: &str, extra: Option<&str>) -> Vec<String> {
    let ours = |suite: &&&str| {
        let rest = suite.strip_prefix(release);
        matches!(rest, Some("" | "-updates" | "-security" | "/updates"))
    };
    let mut chosen: Vec<String> = suites.iter().filter(ours).map(|s| (*s).to_string()).collect();
    if suites.contains(&release) {
        chosen.extend(extra.map(str::to_owned));
    }
    chosen
}

/// The stanzas (deb822) of the release, cut down to it.
fn stanzas(text: &str, release: &str, extra: Option<&str>) -> String {
    let mut own = String::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let mut lines = stanza.lines().filter(|line| !line.starts_with('#'));
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("").split_whitespace().collect::<Vec<_>>()
        };
        let suites = chosen(&field("Suites"), release, extra);
        let off = field("Enabled") == ["no"] || !field("Components").contains(&"main");
        if suites.is_empty() || off || !field("Types").contains(&"deb") {
            continue;
        }
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            match line.split(':').next() {
                Some("Types") => own.push_str("Types: deb\n"),
                Some("Suites") => {
                    let _ = writeln!(own, "Suites: {}", suites.join(" "));
                }
                _ => {
                    let _ = writeln!(own, "{line}");
                }
            }
        }
        own.push('\n');
    }
    own
}

/// The lines `deb [options] URI SUITE main` of the release.
fn one_liners(text: &str, release: &str, extra: Option<&str>) -> String {
    let mut own = String::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let (options, rest) = match rest.trim_start().strip_prefix('[') {
            Some(rest) => rest.split_once(']').unwrap_or(("", "")),
            None => ("", rest),
        };
        let words: Vec<_> = rest.split('#').next().unwrap_or("").split_whitespace().collect();
        let [uri, suite, components @ ..] = &words[..] else { continue };
        if !components.contains(&"main") {
            continue;
        }
        let components = components.join(" ");
        for suite in chosen(&[suite], release, extra) {
            let _ = writeln!(own, "deb [{options}] {uri} {suite} {components}");
        }
    }
    own.replace("deb [] ", "deb ")
}

/// The same mirror's source packages of another release: of what `stanzas` or `one_liners` left,
/// that of the release itself.
fn as_source(text: &str, release: &str, suite: &str) -> String {
    let stanza = |stanza: &str| {
        let of_release = |line: &str| {
            line.strip_prefix("Suites:").is_some_and(|s| s.split_whitespace().any(|s| s == release))
        };
        stanza.lines().any(of_release).then(|| {
            let line = |line: &str| match line.split(':').next() {
                Some("Types") => "Types: deb-src\n".to_owned(),
                Some("Suites") => format!("Suites: {suite}\n"),
                _ => format!("{line}\n"),
            };
            stanza.lines().map(line).collect::<String>() + "\n"
        })
    };
    if text.contains("Types:") {
        return text.split("\n\n").filter_map(stanza).collect();
    }
    let one = |line: &str| {
        let (before, after) = line.split_once(&format!(" {release} "))?;
        Some(format!("{} {suite} {after}\n", before.replacen("deb", "deb-src", 1)))
    };
    text.lines().filter_map(one).collect()
}

/// dpkg's status as if no QEMU were installed.
fn without_qemu(status: &str) -> String {
    let of_qemu = |stanza: &&str| {
        let name = stanza.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap_or("");
        !UNPACKED.iter().any(|begin| name.starts_with(begin))
    };
    status.split("\n\n").filter(of_qemu).collect::<Vec<_>>().join("\n\n")
}

fn binary(root: &Path) -> PathBuf {
    root.join("usr/bin/qemu-system-x86_64")
}

/// Where the libraries lie that were unpacked, with `:` between.
fn libraries(root: &Path) -> String {
    let mut found = Vec::new();
    for parent in ["lib", "usr/lib"] {
        let entries = fs::read_dir(root.join(parent)).into_iter().flatten().flatten();
        let is_triple = |path: &PathBuf| path.to_string_lossy().contains("-linux-gnu");
        found.extend(entries.map(|entry| entry.path()).filter(is_triple));
    }
    found.sort();
    join(&found)
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

/// `10.0`, as the unpacked binary itself says: so it runs, too.
fn version(root: &Path) -> Result<String> {
    let mut command = Command::new(binary(root));
    let text = output(command.arg("--version").env("LD_LIBRARY_PATH", libraries(root)))?;
    let number = text.split("version ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let parts: Vec<_> = number.unwrap_or("").split('.').take(2).collect();
    match parts[..] {
        [major, minor] => Ok(format!("{major}.{minor}")),
        _ => Err(format!("{}: no version in {text:?}", binary(root).display())),
    }
}

fn remove(path: &Path) -> Result {
    match fs::remove_dir_all(path) {
        Err(error) if path.exists() => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_cut_down_to_the_release_and_its_backports() {
        let text = "Types: deb deb-src\n# here\nURIs: file:/m\nSuites: r r-updates s\n\
                    Components: main contrib\nSigned-By: /k\n\nTypes: deb\nURIs: file:/o\n\
                    Suites: r\nComponents: stable\n";
        let wanted = "Types: deb\nURIs: file:/m\nSuites: r r-updates r-backports\n\
                      Components: main contrib\nSigned-By: /k\n\n";
        assert_eq!(stanzas(text, "r", Some("r-backports")), wanted);
        let text = "# deb file:/m r main\ndeb [a=b] file:/m r main x # y\n\
                    deb file:/m r-security main\ndeb file:/m s main\ndeb file:/o r stable\n";
        let wanted = "deb [a=b] file:/m r main x\ndeb [a=b] file:/m r-backports main x\n\
                      deb file:/m r-security main\n";
        assert_eq!(one_liners(text, "r", Some("r-backports")), wanted);
        assert!(!one_liners(text, "r", None).contains("backports"));
    }

    #[test]
    fn source_packages_of_another_release_come_from_the_same_mirror() {
        let text = "Types: deb\nURIs: file:/m\nSuites: r r-updates\nComponents: main\n\n\
                    Types: deb\nURIs: file:/s\nSuites: r-security\nComponents: main\n";
        let wanted = "Types: deb-src\nURIs: file:/m\nSuites: t\nComponents: main\n\n";
        assert_eq!(as_source(&stanzas(text, "r", None), "r", "t"), wanted);
        let text = "deb [a=b] file:/m r main\ndeb file:/m r-security main\n";
        let wanted = "deb-src [a=b] file:/m t main\n";
        assert_eq!(as_source(&one_liners(text, "r", None), "r", "t"), wanted);
    }

    #[test]
    fn a_qemu_of_the_machine_does_not_count() {
        let status = "Package: libc6\nStatus: ok\n\nPackage: qemu-utils\nX: y\n\nPackage: z\n";
        assert_eq!(without_qemu(status), "Package: libc6\nStatus: ok\n\nPackage: z\n");
        assert!(!is_whole("") && !is_whole("7.2\t/no/such\t\t\n"));
    }
}
