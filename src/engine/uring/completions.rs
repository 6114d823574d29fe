//! What the kernel says of the operations that it had.

use io_uring::cqueue;

use super::super::{Done, Extent, Until, file_error, no_progress, socket_error};
use super::{Group, NOBODY, Operation, Transfer, Uring, ZeroCopySend, after, insert, setup};
use crate::error::{ConfigError, Error, Result};

impl Uring {
    pub(super) fn reap(&mut self) -> Result<()> {
        loop {
            let Some(completion) = self.ring.completion().next() else { return Ok(()) };
            if completion.user_data() == NOBODY {
                continue;
            }
            let index = completion.user_data() as usize;
            let (result, flags) = (completion.result(), completion.flags());
            if cqueue::notif(flags) {
                self.notified(index, result);
            } else if cqueue::more(flags) {
                self.zero_copy_taken(index, result)?;
            } else {
                self.in_kernel -= 1;
                self.ended(index, result)?;
            }
        }
    }

    /// The bytes of a zero-copy send were taken, or not; its notification will follow.
    fn zero_copy_taken(&mut self, index: usize, result: i32) -> Result<()> {
        let Some(Operation::SendZeroCopy { transfer, slot_only }) = &mut self.operations[index]
        else {
            return Ok(());
        };
        *slot_only = true;
        match usize::try_from(result) {
            Ok(sent) if sent == transfer.range.len() => {
                self.sending = false;
                self.done.push_back(Ok(Done::Sent));
            }
            // A short count comes before a signal or an error; the next send will show which. The
            // rest waits for the notification, when the slot is ours again.
            Ok(sent) => transfer.range.start += sent,
            Err(_) if retry(result) => {}
            // AF_UNIX says so here.
            Err(_) if unknown(result) && self.zero_copy != ZeroCopySend::Required => {
                self.zero_copy = ZeroCopySend::Off;
            }
            Err(_) if unknown(result) => {
                self.sending = false;
                self.done.push_back(Err(zero_copy_unknown(&self.to.name)));
                transfer.range.start = transfer.range.end;
            }
            Err(_) => {
                self.sending = false;
                self.done.push_back(Err(socket_error("send", &self.to, -result)));
                transfer.range.start = transfer.range.end;
            }
        }
        if let Some(Operation::SendZeroCopy { transfer, .. }) = &mut self.operations[index]
            && !self.sending
        {
            transfer.range.start = transfer.range.end;
        }
        Ok(())
    }

    /// The kernel is done with the slot of a zero-copy send.
    fn notified(&mut self, index: usize, result: i32) {
        self.in_kernel -= 1;
        let Some(Operation::SendZeroCopy { transfer, .. }) = self.operations[index].take() else {
            return;
        };
        let nothing_sent = transfer.range.len() == transfer.bytes;
        if nothing_sent {
            // Refused or interrupted: neither kept nor copied.
        } else if result as u32 & setup::NOTIF_USAGE_ZC_COPIED == 0 {
            self.statistics.zero_copy_kept += 1;
        } else {
            self.statistics.zero_copy_copied += 1;
            match self.zero_copy {
                ZeroCopySend::Required => self.done.push_back(Err(not_zero_copy(&self.to.name))),
                ZeroCopySend::Off => {}
                ZeroCopySend::Trying => {
                    self.zero_copy = ZeroCopySend::Off;
                    tracing::debug!(
                        to = &*self.to.name,
                        "the kernel copied: plain sends from here"
                    );
                }
            }
        }
        if transfer.range.is_empty() {
            self.slot_came_back = true;
        } else {
            let rest = self.start(Operation::Send(transfer));
            self.done.extend(rest.err().map(Err));
        }
    }

    fn ended(&mut self, index: usize, result: i32) -> Result<()> {
        match self.operations[index].take().expect("completed once") {
            Operation::Send(transfer) => self.sent(transfer, result),
            // Without F_MORE no notification follows: refused before it began.
            Operation::SendZeroCopy { transfer, .. } => self.zero_copy_refused(transfer, result),
            Operation::Recv(transfer, until) => self.received(transfer, until, result),
            Operation::Piece { group, extent } => {
                self.pieces_in_kernel -= 1;
                self.piece_ended(group, extent, result)?;
                self.feed()
            }
        }
    }

    /// Linux before 6.2 does not report whether it copied (EINVAL), some sockets know no
    /// zero-copy send (EOPNOTSUPP).
    fn zero_copy_refused(&mut self, transfer: Transfer, result: i32) -> Result<()> {
        match (unknown(result), self.zero_copy) {
            (true, ZeroCopySend::Trying) => {
                self.zero_copy = ZeroCopySend::Off;
                tracing::debug!(to = &*self.to.name, "no zero-copy send here: plain sends");
                self.start(Operation::Send(transfer))
            }
            (true, ZeroCopySend::Required) => {
                self.sending = false;
                self.done.push_back(Err(zero_copy_unknown(&self.to.name)));
                Ok(())
            }
            _ => self.sent(transfer, result),
        }
    }

    fn sent(&mut self, mut transfer: Transfer, result: i32) -> Result<()> {
        match result {
            1.. => transfer.range.start += result as usize,
            0 if transfer.range.is_empty() => {}
            _ if retry(result) => {}
            _ => {
                self.sending = false;
                self.done.push_back(Err(socket_error("send", &self.to, -result)));
                return Ok(());
            }
        }
        if !transfer.range.is_empty() {
            return self.start(Operation::Send(transfer));
        }
        self.sending = false;
        self.done.push_back(Ok(Done::Sent));
        Ok(())
    }

    fn received(&mut self, mut transfer: Transfer, until: Until, result: i32) -> Result<()> {
        let is_end = self.from.reset_is_end && -result == libc::ECONNRESET;
        let result = if is_end { 0 } else { result };
        match result {
            0.. => transfer.range.start += result as usize,
            _ if until == Until::Now && -result == libc::EAGAIN => {
                self.receiving = false;
                self.done.push_back(Ok(Done::Empty { slot: transfer.slot }));
                return Ok(());
            }
            _ if retry(result) => {}
            _ => {
                self.receiving = false;
                self.done.push_back(Err(socket_error("recv", &self.from, -result)));
                return Ok(());
            }
        }
        let over = result == 0 || (until != Until::Full && result > 0);
        if !over && !transfer.range.is_empty() {
            return self.start(Operation::Recv(transfer, until));
        }
        self.receiving = false;
        let bytes = transfer.bytes - transfer.range.len();
        self.done.push_back(Ok(Done::Received { slot: transfer.slot, bytes }));
        Ok(())
    }

    fn piece_ended(&mut self, index: usize, extent: Extent, result: i32) -> Result<()> {
        let group = self.groups[index].as_mut().expect("it lives as long as its pieces");
        let subject = &self.files[group.file.0 as usize].1;
        let error = match result {
            0 => Some(no_progress(group.write, subject, extent)),
            _ if retry(result) => None,
            1.. if result as usize == extent.bytes => {
                group.left -= 1;
                if group.left == 0 {
                    self.end_group(index);
                }
                return Ok(());
            }
            1.. => None,
            _ => Some(file_error(group.write, subject, -result)),
        };
        if error.is_some() {
            group.error = group.error.take().or(error);
            group.left -= 1;
            if group.left == 0 {
                self.end_group(index);
            }
            return Ok(());
        }
        let extent = after(extent, result.max(0) as usize);
        let operation = Operation::Piece { group: index, extent };
        self.waiting.push_back(insert(&mut self.operations, operation));
        Ok(())
    }

    pub(super) fn end_group(&mut self, index: usize) {
        let Group { slot, write, token, error, .. } = self.groups[index].take().expect("ends once");
        self.done.push_back(match error {
            Some(error) => Err(error),
            None if write => Ok(Done::Written { slot, token }),
            None => Ok(Done::Read { slot, token }),
        });
    }
}

fn retry(result: i32) -> bool {
    matches!(-result, libc::EINTR | libc::EAGAIN)
}

/// A kernel or a socket that knows no zero-copy send.
fn unknown(result: i32) -> bool {
    matches!(-result, libc::EINVAL | libc::EOPNOTSUPP)
}

fn zero_copy_unknown(lane: &str) -> Error {
    Error::Config(ConfigError {
        key: "zero_copy = require",
        found: format!("{lane}: a kernel or socket without IORING_SEND_ZC_REPORT_USAGE"),
        wanted: "Linux 6.2 or newer and TCP".to_owned(),
        remedy: "update the kernel, or zero_copy = auto".to_owned(),
    })
}

fn not_zero_copy(lane: &str) -> Error {
    Error::Config(ConfigError {
        key: "zero_copy = require",
        found: format!("{lane}: the kernel copied what was sent"),
        wanted: "a network path that sends from the slots themselves".to_owned(),
        remedy: "loopback and veth always copy; use a NIC with scatter-gather and checksum \
                 offload, or zero_copy = auto"
            .to_owned(),
    })
}
