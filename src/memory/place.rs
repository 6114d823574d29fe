//! Target: opened pages into a region.

use std::os::fd::AsRawFd;

use super::copy::pages_into_guest;
use super::{Region, Run};
use crate::config::PAGE_BYTES;
use crate::error::{Result, SystemError};

/// How pages get into a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// They are populated and mapped: copy them in.
    Copy,
    /// First touch, or not mapped: write them to the file, which is faster than a page fault.
    Write,
}

impl Region {
    /// Splits a run by how its pages get in.
    pub(crate) fn plan_place(&self, run: Run, out: &mut Vec<(Run, Placement)>) {
        self.check_run(run);
        if self.0.mapping.is_none() {
            out.push((run, Placement::Write));
            return;
        }
        if self.0.file.is_none() {
            out.push((run, Placement::Copy));
            return;
        }
        for (part, populated) in self.by_population(run) {
            out.push((part, if populated { Placement::Copy } else { Placement::Write }));
        }
    }

    /// Copies pages in that lie back to back in `from`.
    pub(crate) fn copy_in(&self, run: Run, from: &[u8]) {
        self.check_run(run);
        let mapping = self.0.mapping.as_ref().expect("copied only where mapped");
        let bytes = run.pages as usize * PAGE_BYTES;
        assert_eq!(from.len(), bytes, "as many bytes as the run has");
        // SAFETY: the run lies in the mapping by `check_run`; `from` is a private slot.
        unsafe {
            let into = mapping.address.add(run.first_page as usize * PAGE_BYTES);
            pages_into_guest(from.as_ptr(), into, bytes);
        }
    }

    /// Pages have been written to the file: from now on they are populated.
    pub(crate) fn mark_populated(&self, run: Run) {
        self.0.populated.set_run(run);
    }

    /// Makes pages zero. A hole that was never touched is zero already.
    pub(crate) fn place_zero(&self, run: Run) -> Result<()> {
        self.check_run(run);
        for (part, populated) in self.by_population(run) {
            match &self.0.mapping {
                _ if !populated => {}
                Some(mapping) => {
                    let at = part.first_page as usize * PAGE_BYTES;
                    // SAFETY: the run lies in the mapping by `check_run`.
                    unsafe {
                        let into = mapping.address.add(at);
                        std::ptr::write_bytes(into, 0, part.pages as usize * PAGE_BYTES);
                    }
                }
                None => self.punch(part)?,
            }
        }
        Ok(())
    }

    fn punch(&self, run: Run) -> Result<()> {
        let (offset, bytes) = self.file_range(run);
        let fd = self.0.file.as_ref().expect("no mapping, so a file").file.as_raw_fd();
        for mode in [
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        ] {
            // SAFETY: fallocate on a descriptor that the region keeps open.
            let result = unsafe { libc::fallocate(fd, mode, offset as i64, bytes as i64) };
            if result == 0 {
                self.0.populated.clear_run(run);
                return Ok(());
            }
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
                return Err(SystemError::from_io("fallocate", self.name(), &error).into());
            }
        }
        self.write_zeros(offset, bytes)
    }

    /// For file systems that cannot punch holes.
    fn write_zeros(&self, offset: u64, bytes: usize) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let backing = self.0.file.as_ref().expect("no mapping, so a file");
        let file = std::fs::File::from(
            backing.file.try_clone().map_err(|e| SystemError::from_io("dup", self.name(), &e))?,
        );
        let zeros = [0; 16 * PAGE_BYTES];
        let mut done = 0;
        while done < bytes {
            let part = zeros.len().min(bytes - done);
            file.write_all_at(&zeros[..part], offset + done as u64)
                .map_err(|e| SystemError::from_io("write", self.name(), &e))?;
            done += part;
        }
        Ok(())
    }

    fn by_population(&self, run: Run) -> impl Iterator<Item = (Run, bool)> {
        let mut page = run.first_page;
        std::iter::from_fn(move || {
            let first_page = page;
            let populated = (first_page < run.end()).then(|| self.0.populated.get(first_page))?;
            while page < run.end() && self.0.populated.get(page) == populated {
                page += 1;
            }
            Some((Run { first_page, pages: page - first_page }, populated))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn run(first_page: u64, pages: u64) -> Run {
        Run { first_page, pages }
    }

    fn content(file: &File, page: u64) -> u8 {
        let mut bytes = [0xEE; 4096];
        let got = file.read_at(&mut bytes, page * 4096).unwrap();
        assert!(bytes[..got].iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    #[test]
    fn first_touch_is_written_and_populated_pages_are_copied() {
        let file = File::from(
            nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING)
                .unwrap(),
        );
        file.set_len(16 * 4096).unwrap();
        file.write_all_at(&[9; 4096], 4 * 4096).unwrap();
        let region = Region::from_file("r", file.try_clone().unwrap(), 0, 16 * 4096).unwrap();
        let mut plan = Vec::new();
        region.plan_place(run(3, 3), &mut plan);
        let expected = [
            (run(3, 1), Placement::Write),
            (run(4, 1), Placement::Copy),
            (run(5, 1), Placement::Write),
        ];
        assert_eq!(plan, expected);
        region.copy_in(run(4, 1), &[5; 4096]);
        assert_eq!(content(&file, 4), 5);
        region.place_zero(run(0, 16)).unwrap();
        assert_eq!(content(&file, 4), 0);
        region.mark_populated(run(5, 1));
        plan.clear();
        region.plan_place(run(4, 2), &mut plan);
        assert_eq!(plan, [(run(4, 2), Placement::Copy)]);
    }

    #[test]
    fn zeros_reach_a_disk_file_and_its_short_end() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 10_000], 0).unwrap();
        let region = Region::from_file("disk", file.try_clone().unwrap(), 0, 10_000).unwrap();
        assert_eq!(region.pages(), 3);
        assert_eq!(region.file_range(run(2, 1)), (8192, 1808));
        let mut plan = Vec::new();
        region.plan_place(run(0, 3), &mut plan);
        assert_eq!(plan, [(run(0, 3), Placement::Write)]);
        region.place_zero(run(1, 2)).unwrap();
        assert_eq!([0, 1, 2].map(|page| content(&file, page)), [7, 0, 0]);
        assert_eq!(file.metadata().unwrap().len(), 10_000);
    }
}
