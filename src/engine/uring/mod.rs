//! The io_uring engine (io_uring(7), Linux 6.1 or newer; what is there is probed, not assumed).
//!
//! # Who owns a slot
//!
//! A slot that an operation uses sits in `operations` until the kernel's last completion for it:
//! for SEND_ZC that is the notification (`IORING_CQE_F_NOTIF`), which comes after an error too.
//! `Drop` cancels everything and waits for those completions; a slot whose completion does not
//! come is never given back (leaked), because the kernel may still use it.

mod completions;
mod setup;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::{
    Done, Endpoint, Engine, EngineSetup, EngineStatistics, Extent, FileId, Until, first_error,
};
use crate::buffer::Slot;
use crate::config::{PAGE_BYTES, ZeroCopy};
use crate::error::{Error, Result, SystemError};

pub(super) use setup::{OPERATIONS, RING_ENTRIES, ring};

/// A read is cut into pieces, so that the disk sees at least this many at once where all slots of
/// the pool are being read into. A write is not: writers of one file wait for each other in the
/// kernel.
const PIECES_WANTED: usize = 16;
/// Shortest and longest piece, in bytes.
const PIECE_BYTES: std::ops::RangeInclusive<usize> = 8 << 10..=64 << 10;
/// Pieces with the kernel at a time; with a send and a receive they fit the ring.
const PIECES_MAX: usize = 32;
/// Extents shorter than this on average are written by pwrite(2) in this thread: a WRITE_FIXED to
/// a file goes through a kernel worker, whose wake-up costs more than a few pages' copy.
const WRITE_BYTES_MIN: usize = 32 << 10;
/// Sends shorter than this are not worth it, unless it is required.
const ZERO_COPY_BYTES_MIN: usize = 16 << 10;
/// How long `Drop` waits for completions.
const DRAIN: Duration = Duration::from_secs(2);
/// `user_data` of what nobody waits for.
const NOBODY: u64 = u64::MAX;
/// The registered files: where it sends to, where it receives from, regions' files.
const TO: Fixed = Fixed(0);
const FROM: Fixed = Fixed(1);
const FILES_FROM: u32 = 2;
const MSG_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
/// io_uring_enter(2)
const ENTER_GETEVENTS: u32 = 1;

pub(super) struct Uring {
    ring: IoUring,
    /// The ring has their sockets as files 0 and 1.
    to: Endpoint,
    from: Endpoint,
    files: Vec<(Arc<OwnedFd>, String)>,
    operations: Vec<Option<Operation>>,
    groups: Vec<Option<Group>>,
    waiting: VecDeque<usize>,
    in_kernel: usize,
    pieces_in_kernel: usize,
    sending: bool,
    receiving: bool,
    /// A zero-copy send gave its slot back.
    slot_came_back: bool,
    zero_copy: ZeroCopySend,
    zero_copy_allowed: bool,
    piece_bytes: usize,
    sqpoll: bool,
    done: VecDeque<Result<Done>>,
    statistics: EngineStatistics,
}

/// Whether sends try to go without a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ZeroCopySend {
    Off,
    /// Until the kernel says that it copied.
    Trying,
    Required,
}

/// What the kernel has, by `user_data`.
enum Operation {
    Send(Transfer),
    /// Its bytes may be taken while its slot is still in use.
    SendZeroCopy {
        transfer: Transfer,
        slot_only: bool,
    },
    Recv(Transfer, Until),
    Piece {
        group: usize,
        extent: Extent,
    },
}

struct Transfer {
    slot: Slot,
    range: Range<usize>,
    bytes: usize,
}

/// The pieces of one read or write.
struct Group {
    slot: Slot,
    file: FileId,
    write: bool,
    token: u64,
    left: usize,
    error: Option<Error>,
}

impl Uring {
    pub(super) fn new(setup: &EngineSetup<'_>) -> Result<Self> {
        let ring = setup::for_lane(setup)?;
        let zero_copy = match setup.zero_copy {
            ZeroCopy::Off => ZeroCopySend::Off,
            ZeroCopy::Auto => ZeroCopySend::Trying,
            ZeroCopy::Require => ZeroCopySend::Required,
        };
        Ok(Self {
            ring,
            to: setup.to.clone(),
            from: setup.from.clone(),
            files: Vec::new(),
            operations: Vec::new(),
            groups: Vec::new(),
            waiting: VecDeque::new(),
            in_kernel: 0,
            pieces_in_kernel: 0,
            sending: false,
            receiving: false,
            slot_came_back: false,
            zero_copy,
            zero_copy_allowed: true,
            piece_bytes: piece_bytes(setup.pool.slots(), setup.pool.payload_bytes()),
            sqpoll: setup.sqpoll,
            done: VecDeque::new(),
            statistics: EngineStatistics::default(),
        })
    }

    /// Stores an operation and gives it to the kernel.
    fn start(&mut self, operation: Operation) -> Result<()> {
        let index = insert(&mut self.operations, operation);
        self.push(index)
    }

    /// Gives the operation at `index` to the kernel, again after a short count.
    fn push(&mut self, index: usize) -> Result<()> {
        let entry = self.entry(index).user_data(index as u64);
        loop {
            // SAFETY: the buffer is a part of a slot that `operations` or `groups` keeps until
            // the completion (see the head of this file); files are registered.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.in_kernel += 1;
                return Ok(());
            }
            self.enter(0, None)?;
        }
    }

    fn entry(&self, index: usize) -> squeue::Entry {
        // By address: a reference to a slot that the kernel is writing to must not exist.
        let part = |slot: &Slot, from: usize, bytes: usize| {
            assert!(from + bytes <= slot.stride_bytes(), "{bytes} bytes at {from} of a slot");
            slot.address().wrapping_add(from)
        };
        let at = |transfer: &Transfer| {
            let Range { start, end } = transfer.range;
            let address = part(&transfer.slot, start, end - start);
            (address, (end - start) as u32, transfer.slot.index() as u16)
        };
        match self.operations[index].as_ref().expect("stored before it is pushed") {
            Operation::Send(transfer) => {
                let (address, bytes, _) = at(transfer);
                opcode::Send::new(TO, address, bytes).flags(MSG_FLAGS).build()
            }
            Operation::SendZeroCopy { transfer, .. } => {
                let (address, bytes, buffer) = at(transfer);
                opcode::SendZc::new(TO, address, bytes)
                    .buf_index(Some(buffer))
                    .flags(MSG_FLAGS)
                    .zc_flags(setup::SEND_ZC_REPORT_USAGE)
                    .build()
            }
            Operation::Recv(transfer, until) => {
                let (address, bytes, _) = at(transfer);
                let flags = match until {
                    Until::Full => libc::MSG_WAITALL,
                    Until::Some => 0,
                    Until::Now => libc::MSG_DONTWAIT,
                };
                opcode::Recv::new(FROM, address, bytes).flags(flags).build()
            }
            Operation::Piece { group, extent } => {
                let group = self.groups[*group].as_ref().expect("it lives as long as its pieces");
                let address = part(&group.slot, extent.slot_offset, extent.bytes);
                let bytes = extent.bytes as u32;
                let (file, buffer) = (Fixed(group.file.0 + FILES_FROM), group.slot.index() as u16);
                if group.write {
                    opcode::WriteFixed::new(file, address, bytes, buffer)
                        .offset(extent.file_offset)
                        .build()
                } else {
                    opcode::ReadFixed::new(file, address, bytes, buffer)
                        .offset(extent.file_offset)
                        .build()
                }
            }
        }
    }

    fn start_group(
        &mut self,
        write: bool,
        slot: Slot,
        file: FileId,
        extents: &[Extent],
        token: u64,
    ) -> Result<()> {
        let group = Group { slot, file, write, token, left: 0, error: None };
        let group = insert(&mut self.groups, group);
        let mut pieces = 0;
        for extent in extents {
            let mut left = *extent;
            while left.bytes > 0 {
                let piece_bytes = if write { left.bytes } else { left.bytes.min(self.piece_bytes) };
                let piece = Extent { bytes: piece_bytes, ..left };
                left = after(left, piece.bytes);
                let operation = Operation::Piece { group, extent: piece };
                self.waiting.push_back(insert(&mut self.operations, operation));
                pieces += 1;
            }
        }
        self.groups[group].as_mut().expect("just stored").left = pieces;
        if pieces == 0 {
            self.end_group(group);
        }
        self.feed()?;
        self.enter(0, None)
    }

    /// Gives waiting pieces to the kernel, as many as it may have.
    fn feed(&mut self) -> Result<()> {
        while self.pieces_in_kernel < PIECES_MAX {
            let Some(index) = self.waiting.pop_front() else { break };
            self.push(index)?;
            self.pieces_in_kernel += 1;
        }
        Ok(())
    }

    /// Submits, runs the kernel's deferred work, and waits for `wanted` completions.
    fn enter(&mut self, wanted: usize, timeout: Option<Duration>) -> Result<()> {
        self.statistics.system_calls += 1;
        let timespec = timeout.map(Timespec::from);
        let result = match (wanted, &timespec) {
            (1.., Some(timespec)) => {
                let args = SubmitArgs::new().timespec(timespec);
                self.ring.submitter().submit_with_args(wanted, &args)
            }
            (1.., None) => self.ring.submitter().submit_and_wait(wanted),
            // The kernel's thread is woken where it sleeps; it defers nothing.
            (0, _) if self.sqpoll => self.ring.submitter().submit(),
            (0, _) => {
                let queued = self.ring.submission().len() as u32;
                // SAFETY: no argument is a pointer; GETEVENTS runs what DEFER_TASKRUN deferred.
                unsafe {
                    self.ring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None)
                }
            }
        };
        let error = match result {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.raw_os_error() {
            // The time is over; a signal; completions to reap first: the caller looks again.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => {
                let error = SystemError::from_io("io_uring_enter", &*self.to.name, &error);
                Err(setup::with_remedy(error).into())
            }
        }
    }
}

impl Engine for Uring {
    fn register_file(&mut self, file: Arc<OwnedFd>, subject: &str) -> Result<FileId> {
        let id = FileId(self.files.len() as u32);
        self.ring
            .submitter()
            .register_files_update(id.0 + FILES_FROM, &[file.as_raw_fd()])
            .map_err(|e| SystemError::from_io("io_uring_register(FILES_UPDATE)", subject, &e))?;
        self.files.push((file, subject.to_owned()));
        Ok(id)
    }

    fn send(&mut self, slot: Slot, range: Range<usize>) -> Result<()> {
        if self.sending {
            return Err(Error::Misuse("one send at a time".to_owned()));
        }
        // What went wrong while nobody waited, a zero-copy send that was copied for one.
        first_error(&mut self.done)?;
        self.sending = true;
        let bytes = range.len();
        let transfer = Transfer { slot, range, bytes };
        let zero_copy = match self.zero_copy {
            _ if !self.zero_copy_allowed => false,
            ZeroCopySend::Off => false,
            ZeroCopySend::Trying => bytes >= ZERO_COPY_BYTES_MIN,
            ZeroCopySend::Required => true,
        };
        self.start(match zero_copy {
            true => Operation::SendZeroCopy { transfer, slot_only: false },
            false => Operation::Send(transfer),
        })?;
        self.enter(0, None)?;
        self.reap()?;
        // Refused at once: nobody need wait to learn it.
        first_error(&mut self.done)
    }

    fn can_send(&self) -> bool {
        !self.sending
    }

    fn allow_zero_copy(&mut self, allow: bool) {
        self.zero_copy_allowed = allow;
    }

    fn recv(&mut self, slot: Slot, range: Range<usize>, until: Until) -> Result<()> {
        if self.receiving {
            return Err(Error::Misuse("one receive at a time".to_owned()));
        }
        self.receiving = true;
        let bytes = range.len();
        // Submitted by the wait that follows: one system call for both.
        self.start(Operation::Recv(Transfer { slot, range, bytes }, until))
    }

    fn read(&mut self, slot: Slot, file: FileId, extents: &[Extent], token: u64) -> Result<()> {
        self.start_group(false, slot, file, extents, token)
    }

    fn write(
        &mut self,
        mut slot: Slot,
        file: FileId,
        extents: &[Extent],
        token: u64,
    ) -> Result<()> {
        let bytes: usize = extents.iter().map(|extent| extent.bytes).sum();
        if bytes >= extents.len() * WRITE_BYTES_MIN {
            return self.start_group(true, slot, file, extents, token);
        }
        let file = &self.files[file.0 as usize];
        let calls = &mut self.statistics.system_calls;
        let written = super::syscalls::file_io(true, &mut slot, file, extents, calls);
        self.done.push_back(written.map(|()| Done::Written { slot, token }));
        Ok(())
    }

    fn complete(&mut self, deadline: Option<Instant>) -> Result<Option<Done>> {
        loop {
            self.reap()?;
            if let Some(done) = self.done.pop_front() {
                return done.map(Some);
            }
            self.feed()?;
            if std::mem::take(&mut self.slot_came_back) || self.in_kernel == 0 {
                return Ok(None);
            }
            match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => {
                    self.enter(0, None)?;
                    self.reap()?;
                    return self.done.pop_front().transpose();
                }
                left => self.enter(1, left)?,
            }
        }
    }

    fn statistics(&self) -> EngineStatistics {
        self.statistics
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What was never submitted has no completion.
        while let Some(index) = self.waiting.pop_front() {
            if let Some(Operation::Piece { group, .. }) = self.operations[index].take()
                && let Some(group) = self.groups[group].as_mut()
            {
                group.left -= 1;
            }
        }
        let deadline = Instant::now() + DRAIN;
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(NOBODY);
        // SAFETY: the entry has no buffer.
        while unsafe { self.ring.submission().push(&cancel) }.is_err() {
            let _ = self.enter(0, None);
        }
        while self.in_kernel > 0 && Instant::now() < deadline {
            let _ = self.enter(1, Some(Duration::from_millis(50)));
            let _ = self.reap();
        }
        if self.in_kernel > 0 {
            // The kernel still has some: their slots must never be used again.
            std::mem::forget(std::mem::take(&mut self.operations));
            std::mem::forget(std::mem::take(&mut self.groups));
        }
    }
}

/// How long a piece of a read is, so that a pool of these slots makes enough of them.
fn piece_bytes(slots: usize, slot_bytes: usize) -> usize {
    let bytes = slots * slot_bytes / PIECES_WANTED;
    let whole_pages = bytes / PAGE_BYTES * PAGE_BYTES;
    whole_pages.clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end())
}

fn insert<T>(slab: &mut Vec<Option<T>>, value: T) -> usize {
    let free = slab.iter().position(Option::is_none);
    let index = free.unwrap_or_else(|| {
        slab.push(None);
        slab.len() - 1
    });
    slab[index] = Some(value);
    index
}

/// What is left of an extent.
fn after(extent: Extent, bytes: usize) -> Extent {
    Extent {
        file_offset: extent.file_offset + bytes as u64,
        slot_offset: extent.slot_offset + bytes,
        bytes: extent.bytes - bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_reads_at_least_eight_pieces_at_a_time() {
        for frame_kib in [64, 128, 256, 512, 1024] {
            for slots in 2..=64 {
                let piece = piece_bytes(slots, frame_kib << 10);
                assert!(piece.is_multiple_of(PAGE_BYTES));
                // One slot may be with the network meanwhile.
                let busy = (slots - 1).max(1) * (frame_kib << 10).div_ceil(piece);
                let pieces = busy.min(PIECES_MAX);
                assert!(pieces >= 8, "{pieces} of {frame_kib} KiB, {slots} slots");
            }
        }
    }
}
