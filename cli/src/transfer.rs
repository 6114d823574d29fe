//! `sealane send` and `sealane recv`: a RAM image from one host to another.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sealane::error::SystemError;
use sealane::memory::{DirtyBitmap, Region};
use sealane::{Canceller, Config, LaneStatistics, Lanes, Role, Source, Target, Trust, dial};

use crate::Failure;
use crate::arguments::{Common, RecvArguments, SendArguments};
use crate::meeting::Way;
use crate::output::{Watch, event, lanes_json, total};

/// The name of the one region that an image is.
const REGION: &str = "image";

pub(crate) fn send(arguments: &SendArguments, cancel: &Canceller) -> Result<(), Failure> {
    let common = &arguments.common;
    let trust = common.trust.trust()?;
    let (file, bytes) = open_image(&arguments.file)?;
    let region = Region::from_file(REGION, file, 0, bytes)?;
    let pages = region.pages();
    let config = arguments.tuning.config(&common.meeting);
    let lanes = meet(common, arguments.to.as_deref(), Role::Source, &trust, &config, cancel)?;
    let provider = lanes.provider();
    let begin = Instant::now();
    let mut source = Source::start(lanes, vec![region], &config, cancel)?;
    started(common, bytes, provider);
    let watch = Watch::new(source.progress(), pages, common.json, common.quiet);
    source.send_round(&[DirtyBitmap::all(pages)])?;
    source.commit(&[])?;
    let report = source.hand_over()?;
    drop(watch);
    finished(common, "sent", bytes, begin, &report.lanes);
    common.trust.spend()
}

/// A regular file that is not empty, and its size.
fn open_image(path: &Path) -> Result<(File, u64), Failure> {
    // A FIFO would wait for a writer in open(2).
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| io("open", path, &e))?;
    let metadata = file.metadata().map_err(|e| io("stat", path, &e))?;
    let wrong = match (metadata.is_file(), metadata.len()) {
        (true, bytes @ 1..) => return Ok((file, bytes)),
        (true, 0) => "an empty file",
        (false, _) => "no regular file",
    };
    Err(Failure::Text(format!(
        "{}: {wrong}: an image is wanted, as memory-backend-file or a snapshot leaves it",
        path.display()
    )))
}

pub(crate) fn recv(arguments: &RecvArguments, cancel: &Canceller) -> Result<(), Failure> {
    let common = &arguments.common;
    let trust = common.trust.trust()?;
    check_place(arguments)?;
    let config = arguments.tuning.config(&common.meeting);
    let lanes = meet(common, None, Role::Target, &trust, &config, cancel)?;
    let provider = lanes.provider();
    let begin = Instant::now();
    let mut target = Target::start(lanes, &config, cancel)?;
    let offer: Vec<_> = target.offer().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let [(name, bytes)] = &offer[..] else {
        return Err(target.refuse("one image is received at a time").into());
    };
    let room = room_for(arguments, *bytes);
    let partial = match room.and_then(|()| Partial::new(arguments, *bytes)) {
        Ok(partial) => partial,
        Err(failure) => {
            target.refuse(&failure.to_string());
            return Err(failure);
        }
    };
    let file = partial.file.try_clone().map_err(|e| io("dup", &partial.path, &e))?;
    let region = match Region::from_file(name, file, 0, *bytes) {
        Ok(region) => region,
        Err(error) => return Err(target.fail(error).into()),
    };
    let pages = region.pages();
    target.accept(vec![region])?;
    started(common, *bytes, provider);
    let watch = Watch::new(target.progress(), pages, common.json, common.quiet);
    target.receive()?;
    // On the disk before the source lets go.
    if let Err(e) = partial.file.sync_all() {
        let error = SystemError::from_io("fsync", partial.path.display().to_string(), &e);
        return Err(target.fail(error.into()).into());
    }
    target.ready()?;
    partial.finish()?;
    let report = target.done()?;
    drop(watch);
    finished(common, "received", *bytes, begin, &report.lanes);
    common.trust.spend()
}

/// Opens the lanes, whichever end connects.
fn meet(
    common: &Common,
    to: Option<&str>,
    role: Role,
    trust: &Trust,
    config: &Config,
    cancel: &Canceller,
) -> Result<Lanes, Failure> {
    let way = common.meeting.way(role, to)?;
    if let Some(address) = way.listens_at() {
        listening(common, &address);
    }
    Ok(match way {
        Way::Dials(to) => dial(&to, role, trust, config, cancel)?,
        Way::Listens(listener) => listener.accept(role, trust, config, cancel)?,
    })
}

pub(crate) fn listening(common: &Common, address: &str) {
    if common.json {
        event(&serde_json::json!({ "event": "listening", "address": address }));
    } else if !common.quiet {
        eprintln!("listening at {address}");
    }
}

/// Says before anybody connects what would be wrong with FILE at the end.
fn check_place(arguments: &RecvArguments) -> Result<(), Failure> {
    let (file, shown) = (&arguments.file, arguments.file.display());
    let wrong = |what: &str| Err(Failure::Text(format!("{shown}: {what}")));
    if file.file_name().is_none() || file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return wrong("names a directory: name a file in it");
    }
    match fs::symlink_metadata(file) {
        Ok(found) if !found.is_file() => {
            return wrong("is there and no regular file: name another file");
        }
        Ok(_) if !arguments.overwrite => {
            return wrong("exists and is left alone: name --overwrite or another file");
        }
        _ => {}
    }
    let directory = directory_of(file);
    if !fs::metadata(directory).map_err(|e| io("stat", directory, &e))?.is_dir() {
        return wrong("lies in no directory: name another place");
    }
    let partial = partial_of(file);
    if fs::symlink_metadata(&partial).is_ok() {
        return Err(partial_is_there(&partial));
    }
    Ok(())
}

fn partial_of(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    file.with_file_name(name)
}

fn partial_is_there(partial: &Path) -> Failure {
    Failure::Text(format!(
        "{} exists: another transfer writes it, or one was killed: remove it then",
        partial.display()
    ))
}

/// Refuses an image that the source offers larger than anybody here wants: memory for its bitmaps
/// is taken by its size.
fn room_for(arguments: &RecvArguments, bytes: u64) -> Result<(), Failure> {
    let directory = directory_of(&arguments.file);
    let most = match arguments.max_bytes {
        Some(most) => most,
        None => {
            let space = nix::sys::statvfs::statvfs(directory)
                .map_err(|e| io("statvfs", directory, &e.into()))?;
            // Their widths differ by platform.
            #[allow(clippy::unnecessary_cast)]
            (space.blocks_available() as u64).saturating_mul(space.fragment_size() as u64)
        }
    };
    if bytes <= most {
        return Ok(());
    }
    Err(Failure::Text(format!(
        "an image of {bytes} bytes was offered, at most {most} are accepted ({}): free space or \
         name --max-bytes",
        if arguments.max_bytes.is_some() { "--max-bytes" } else { "free space" }
    )))
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The image until it is whole: FILE.partial, gone if the transfer fails.
struct Partial {
    path: PathBuf,
    whole: PathBuf,
    file: File,
    keep: bool,
    overwrite: bool,
}

impl Partial {
    fn new(arguments: &RecvArguments, bytes: u64) -> Result<Self, Failure> {
        let whole = &arguments.file;
        let path = partial_of(whole);
        let mut options = OpenOptions::new();
        // Exclusive: another transfer may be writing there. Guest memory is nobody else's business.
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => partial_is_there(&path),
            _ => io("create", &path, &e),
        })?;
        let overwrite = arguments.overwrite;
        let partial = Self { path, whole: whole.to_owned(), file, keep: false, overwrite };
        partial.file.set_len(bytes).map_err(|e| io("ftruncate", &partial.path, &e))?;
        Ok(partial)
    }

    /// The image takes its name, for good.
    fn finish(mut self) -> Result<(), Failure> {
        // The bytes are whole and the source has let go: never remove them now.
        self.keep = true;
        self.rename().map_err(|e| {
            Failure::Text(format!(
                "{}: rename: {e}: the image is whole and stays at {}",
                self.whole.display(),
                self.path.display()
            ))
        })?;
        let directory = directory_of(&self.whole);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|e| io("fsync", directory, &e))
    }
}

impl Partial {
    /// A file that came to be there meanwhile is left alone too.
    fn rename(&self) -> std::io::Result<()> {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        if !self.overwrite {
            let flags = RenameFlags::RENAME_NOREPLACE;
            match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.whole, flags) {
                // A file system that does not know the flag (renameat2(2)).
                Err(nix::Error::EINVAL) if !self.whole.exists() => {}
                done => return done.map_err(Into::into),
            }
        }
        fs::rename(&self.path, &self.whole)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn started(common: &Common, bytes: u64, provider: &str) {
    if common.json {
        event(&serde_json::json!({ "event": "started", "bytes": bytes, "provider": provider }));
    }
}

fn finished(common: &Common, verb: &str, bytes: u64, begin: Instant, lanes: &[LaneStatistics]) {
    let seconds = begin.elapsed().as_secs_f64();
    if common.json {
        event(&serde_json::json!({
            "event": "done", "bytes": bytes, "seconds": seconds, "lanes": lanes_json(lanes),
        }));
    } else if !common.quiet {
        let sum = total(lanes);
        eprintln!(
            "{verb} {bytes} bytes in {seconds:.2} s: {:.2} GB/s, {} zero pages, {} lanes",
            bytes as f64 / seconds / 1e9,
            sum.zero_pages,
            lanes.len()
        );
    }
}

fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> Failure {
    let subject = path.display().to_string();
    Failure::Sealane(SystemError::from_io(operation, subject, error).into())
}
