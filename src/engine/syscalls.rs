//! The engine of ordinary system calls: `send`, `recv`, `pread`, `pwrite`, `poll`. Chosen by name
//! only. Files are read and written at once, sockets when there is something to wait for.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Done, Endpoint, Engine, EngineSetup, EngineStatistics, Extent, FileId, Until, file_error,
    first_error, no_progress, socket_error,
};
use crate::buffer::Slot;
use crate::error::{Error, Result};

pub(super) struct Syscalls {
    to: Endpoint,
    from: Endpoint,
    files: Vec<(Arc<OwnedFd>, String)>,
    sending: Option<Transfer>,
    receiving: Option<(Transfer, Until)>,
    done: VecDeque<Result<Done>>,
    statistics: EngineStatistics,
}

/// A send or a receive that is under way: `range.start` moves up.
struct Transfer {
    slot: Slot,
    range: Range<usize>,
    bytes: usize,
}

impl Syscalls {
    pub(super) fn new(setup: &EngineSetup<'_>) -> Self {
        Self {
            to: setup.to.clone(),
            from: setup.from.clone(),
            files: Vec::new(),
            sending: None,
            receiving: None,
            done: VecDeque::new(),
            statistics: EngineStatistics::default(),
        }
    }

    /// Moves what the socket takes now; true where a transfer ended.
    fn advance_send(&mut self) -> bool {
        let Some(mut transfer) = self.sending.take() else { return false };
        while !transfer.range.is_empty() {
            let part = &transfer.slot.bytes()[transfer.range.clone()];
            self.statistics.system_calls += 1;
            // SAFETY: `part` is valid for its length during the call.
            let sent = unsafe {
                libc::send(
                    self.to.socket.as_raw_fd(),
                    part.as_ptr().cast(),
                    part.len(),
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            };
            match check(sent) {
                Ok(bytes) => transfer.range.start += bytes,
                Err(libc::EAGAIN) => {
                    self.sending = Some(transfer);
                    return false;
                }
                Err(libc::EINTR) => {}
                Err(errno) => {
                    self.done.push_back(Err(socket_error("send", &self.to, errno)));
                    return true;
                }
            }
        }
        self.done.push_back(Ok(Done::Sent));
        true
    }

    fn advance_recv(&mut self) -> bool {
        let Some((mut transfer, until)) = self.receiving.take() else { return false };
        let begin = transfer.range.start;
        while !transfer.range.is_empty() && (until == Until::Full || transfer.range.start == begin)
        {
            let part = &mut transfer.slot.bytes_mut()[transfer.range.clone()];
            self.statistics.system_calls += 1;
            // SAFETY: `part` is valid for its length during the call.
            let got = unsafe {
                libc::recv(
                    self.from.socket.as_raw_fd(),
                    part.as_mut_ptr().cast(),
                    part.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            match check(got) {
                Ok(0) => break,
                Err(libc::ECONNRESET) if self.from.reset_is_end => break,
                Ok(bytes) => transfer.range.start += bytes,
                Err(libc::EAGAIN) if until == Until::Now => {
                    self.done.push_back(Ok(Done::Empty { slot: transfer.slot }));
                    return true;
                }
                Err(libc::EAGAIN) => {
                    self.receiving = Some((transfer, until));
                    return false;
                }
                Err(libc::EINTR) => {}
                Err(errno) => {
                    self.done.push_back(Err(socket_error("recv", &self.from, errno)));
                    return true;
                }
            }
        }
        let bytes = transfer.bytes - transfer.range.len();
        self.done.push_back(Ok(Done::Received { slot: transfer.slot, bytes }));
        true
    }

    /// Waits until a socket can do what is under way; false at the deadline.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        // poll(2) passes over negative descriptors.
        let entry = |wanted: bool, endpoint: &Endpoint, events| libc::pollfd {
            fd: if wanted { endpoint.socket.as_raw_fd() } else { -1 },
            events,
            revents: 0,
        };
        let mut polls = [
            entry(self.sending.is_some(), &self.to, libc::POLLOUT),
            entry(self.receiving.is_some(), &self.from, libc::POLLIN),
        ];
        loop {
            let timeout_ms = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => -1,
                Some(Duration::ZERO) => 0,
                // Rounded up, so that a wait never ends before its deadline and spins.
                Some(left) => left.as_millis().saturating_add(1).min(i32::MAX as u128) as i32,
            };
            self.statistics.system_calls += 1;
            // SAFETY: two pollfds, valid during the call.
            match unsafe { libc::poll(polls.as_mut_ptr(), 2, timeout_ms) } {
                0 => return Ok(false),
                1.. => return Ok(true),
                _ => match errno() {
                    libc::EINTR => {}
                    errno => return Err(socket_error("poll", &self.to, errno)),
                },
            }
        }
    }
}

/// Reads or writes extents by `pread(2)` or `pwrite(2)`, at once.
pub(super) fn file_io(
    write: bool,
    slot: &mut Slot,
    (file, subject): &(Arc<OwnedFd>, String),
    extents: &[Extent],
    system_calls: &mut u64,
) -> Result<()> {
    for extent in extents {
        let mut left = *extent;
        while left.bytes > 0 {
            let part = &mut slot.bytes_mut()[left.slot_offset..][..left.bytes];
            let (fd, offset) = (file.as_raw_fd(), left.file_offset as libc::off_t);
            *system_calls += 1;
            // SAFETY: `part` is valid for its length during the call.
            let moved = unsafe {
                if write {
                    libc::pwrite(fd, part.as_ptr().cast(), part.len(), offset)
                } else {
                    libc::pread(fd, part.as_mut_ptr().cast(), part.len(), offset)
                }
            };
            match check(moved) {
                Ok(0) => return Err(no_progress(write, subject, left)),
                Ok(bytes) => {
                    left.file_offset += bytes as u64;
                    left.slot_offset += bytes;
                    left.bytes -= bytes;
                }
                Err(libc::EINTR) => {}
                Err(errno) => return Err(file_error(write, subject, errno)),
            }
        }
    }
    Ok(())
}

impl Engine for Syscalls {
    fn register_file(&mut self, file: Arc<OwnedFd>, subject: &str) -> Result<FileId> {
        self.files.push((file, subject.to_owned()));
        Ok(FileId(self.files.len() as u32 - 1))
    }

    fn send(&mut self, slot: Slot, range: Range<usize>) -> Result<()> {
        if self.sending.is_some() {
            return Err(Error::Misuse("one send at a time".to_owned()));
        }
        first_error(&mut self.done)?;
        let bytes = range.len();
        self.sending = Some(Transfer { slot, range, bytes });
        self.advance_send();
        first_error(&mut self.done)
    }

    fn can_send(&self) -> bool {
        self.sending.is_none()
    }

    fn allow_zero_copy(&mut self, _allow: bool) {}

    fn recv(&mut self, slot: Slot, range: Range<usize>, until: Until) -> Result<()> {
        if self.receiving.is_some() {
            return Err(Error::Misuse("one receive at a time".to_owned()));
        }
        let bytes = range.len();
        self.receiving = Some((Transfer { slot, range, bytes }, until));
        Ok(())
    }

    fn read(&mut self, mut slot: Slot, file: FileId, extents: &[Extent], token: u64) -> Result<()> {
        let file = &self.files[file.0 as usize];
        let calls = &mut self.statistics.system_calls;
        let done = file_io(false, &mut slot, file, extents, calls);
        self.done.push_back(done.map(|()| Done::Read { slot, token }));
        Ok(())
    }

    fn write(
        &mut self,
        mut slot: Slot,
        file: FileId,
        extents: &[Extent],
        token: u64,
    ) -> Result<()> {
        let file = &self.files[file.0 as usize];
        let calls = &mut self.statistics.system_calls;
        let done = file_io(true, &mut slot, file, extents, calls);
        self.done.push_back(done.map(|()| Done::Written { slot, token }));
        Ok(())
    }

    fn complete(&mut self, deadline: Option<Instant>) -> Result<Option<Done>> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return done.map(Some);
            }
            let ended = self.advance_send() | self.advance_recv();
            if ended {
                continue;
            }
            let idle = self.sending.is_none() && self.receiving.is_none();
            if idle || !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    fn statistics(&self) -> EngineStatistics {
        self.statistics
    }
}

fn check(result: isize) -> std::result::Result<usize, i32> {
    usize::try_from(result).map_err(|_| errno())
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
