//! Source: pages out of a region, into a private slot, zero pages left out.

use super::copy::page_out_of_guest;
use super::region::next_data;
use super::{Region, Run, is_zero_page};
use crate::config::PAGE_BYTES;
use crate::wire::PageRun;

/// How to get at pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residency {
    /// They are in memory and mapped: copy them.
    Mapped,
    /// Read them from the file.
    File,
    /// A hole: zero, known without reading.
    Hole,
}

impl Region {
    /// Splits a run by how to get at its pages.
    pub(crate) fn plan_gather(&self, run: Run, out: &mut Vec<(Run, Residency)>) {
        self.check_run(run);
        let Some(backing) = &self.0.file else {
            out.push((run, Residency::Mapped));
            return;
        };
        let Some(resident) = self.resident(run) else {
            return self.plan_file(run, out);
        };
        let mut page = run.first_page;
        for same in resident.chunk_by(|one, two| one & 1 == two & 1) {
            let part = Run { first_page: page, pages: same.len() as u64 };
            page = part.end();
            if same[0] & 1 == 1 {
                out.push((part, Residency::Mapped));
            } else {
                self.plan_file(part, out);
            }
        }
        debug_assert!(backing.offset.is_multiple_of(PAGE_BYTES as u64));
    }

    /// One byte a page with bit 0 set where it is in memory (mincore(2)); none without a mapping.
    fn resident(&self, run: Run) -> Option<Vec<u8>> {
        let mapping = self.0.mapping.as_ref()?;
        let mut resident = vec![0u8; run.pages as usize];
        // SAFETY: the range lies in the mapping by `check_run`; the vector has a byte a page.
        let result = unsafe {
            libc::mincore(
                mapping.address.add(run.first_page as usize * PAGE_BYTES).cast(),
                run.pages as usize * PAGE_BYTES,
                resident.as_mut_ptr(),
            )
        };
        (result == 0).then_some(resident)
    }

    fn plan_file(&self, run: Run, out: &mut Vec<(Run, Residency)>) {
        let backing = self.0.file.as_ref().expect("planned only where there is a file");
        let page = PAGE_BYTES as u64;
        let to_byte = |page_index: u64| backing.offset + page_index * page;
        let mut at = run.first_page;
        while at < run.end() {
            let data = next_data(&backing.file, to_byte(at), to_byte(run.end()));
            // Whole pages: a hole counts only as far as it fills them.
            let (from, to) = data.map_or((run.end(), run.end()), |(from, to)| {
                let from = ((from - backing.offset) / page).max(at);
                (from, (to - backing.offset).div_ceil(page).min(run.end()))
            });
            if from > at {
                let part = Run { first_page: at, pages: from - at };
                // Past the file's end there is no hole: reading it will say that it shrank.
                let inside = self.reaches(part);
                out.push((part, if inside { Residency::Hole } else { Residency::File }));
            }
            if to > from {
                out.push((Run { first_page: from, pages: to - from }, Residency::File));
            }
            at = to.max(from);
        }
    }

    /// Whether the file is still as long as the run wants it.
    fn reaches(&self, run: Run) -> bool {
        let (offset, bytes) = self.file_range(run);
        let file = self.file().expect("asked only where there is a file");
        nix::sys::stat::fstat(file).is_ok_and(|stat| stat.st_size as u64 >= offset + bytes as u64)
    }

    /// Copies the pages of `run` back to back to the front of `into`, zero pages left out, and
    /// adds what they are to `runs`, until either is full. Returns pages taken and bytes used.
    pub(crate) fn gather_mapped(
        &self,
        run: Run,
        into: &mut [u8],
        runs: &mut Vec<PageRun>,
        runs_max: usize,
    ) -> (u64, usize) {
        self.check_run(run);
        let mapping = self.0.mapping.as_ref().expect("gathered only where mapped");
        let mut used = 0;
        for taken in 0..run.pages {
            let Some(room) = into.get_mut(used..used + PAGE_BYTES) else { return (taken, used) };
            let page = run.first_page + taken;
            let from = page as usize * PAGE_BYTES;
            debug_assert!(from + PAGE_BYTES <= mapping.bytes);
            // SAFETY: the page lies in the mapping by `check_run`; `room` is private and apart
            // from it. Guests may write meanwhile: see the rules at the head of this module.
            let zero = unsafe { page_out_of_guest(mapping.address.add(from), room.as_mut_ptr()) };
            if !push_run(runs, page, 1, zero, runs_max) {
                return (taken, used);
            }
            used += if zero { 0 } else { PAGE_BYTES };
        }
        (run.pages, used)
    }
}

/// After reading: `payload` holds the pages of `read` back to back. Squeezes the zero pages out
/// and adds what the pages are to `runs`. Returns the bytes left. As many runs as pages can come.
pub(crate) fn compact_zero_pages(
    payload: &mut [u8],
    read: &[Run],
    runs: &mut Vec<PageRun>,
) -> usize {
    let (mut at, mut used) = (0, 0);
    for page in read.iter().flat_map(|run| run.first_page..run.end()) {
        let zero = is_zero_page(&payload[at..at + PAGE_BYTES]);
        push_run(runs, page, 1, zero, usize::MAX);
        if !zero {
            if at != used {
                payload.copy_within(at..at + PAGE_BYTES, used);
            }
            used += PAGE_BYTES;
        }
        at += PAGE_BYTES;
    }
    used
}

/// Adds pages to the last run where they continue it, else as a new run; false where that would
/// be one too many.
pub(crate) fn push_run(
    runs: &mut Vec<PageRun>,
    first_page: u64,
    pages: u32,
    zero: bool,
    runs_max: usize,
) -> bool {
    if let Some(last) = runs.last_mut()
        && last.zero == zero
        && last.first_page + u64::from(last.pages) == first_page
        && let Some(sum) = last.pages.checked_add(pages)
    {
        last.pages = sum;
        return true;
    }
    if runs.len() == runs_max {
        return false;
    }
    runs.push(PageRun { first_page, pages, zero });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    pub(super) fn memfd(bytes: u64) -> File {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let fd = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let file = File::from(fd);
        file.set_len(bytes).unwrap();
        file
    }

    fn fill(file: &File, zero: &[bool]) -> Vec<Vec<u8>> {
        let page = |n: usize| if zero[n] { vec![0; 4096] } else { vec![n as u8 | 1; 4096] };
        let pages: Vec<_> = (0..zero.len()).map(page).collect();
        for (n, page) in pages.iter().enumerate() {
            file.write_all_at(page, n as u64 * 4096).unwrap();
        }
        pages
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn both_ways_gather_the_same(
            zero in prop::collection::vec(any::<bool>(), 1..40),
            room in 1usize..50,
            most in 1usize..50,
        ) {
            let file = memfd(zero.len() as u64 * 4096);
            let pages = fill(&file, &zero);
            let region = Region::from_file("r", file, 0, zero.len() as u64 * 4096).unwrap();
            let all = Run { first_page: 0, pages: zero.len() as u64 };
            let mut into = vec![0xEE; room * 4096];
            let mut runs = Vec::new();
            let (taken, used) = region.gather_mapped(all, &mut into, &mut runs, most);
            let kept: Vec<u8> =
                pages[..taken as usize].iter().zip(&zero).filter(|(_, z)| !**z)
                    .flat_map(|(p, _)| p.clone()).collect();
            prop_assert_eq!(&into[..used], &kept[..]);
            prop_assert!(runs.len() <= most);
            let sum: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
            prop_assert_eq!(sum, taken);
            prop_assert!(taken > 0);

            let part = Run { first_page: 0, pages: taken };
            let mut read: Vec<u8> = pages[..taken as usize].concat();
            let mut again = Vec::new();
            prop_assert_eq!(compact_zero_pages(&mut read, &[part], &mut again), used);
            prop_assert_eq!(&read[..used], &kept[..]);
            prop_assert_eq!(again, runs);
        }
    }

    #[test]
    fn holes_are_known_and_never_read() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(&[1; 4096], 32 << 20).unwrap();
        let region = Region::from_file("disk", disk, 0, 64 << 20).unwrap();
        assert!(region.0.mapping.is_none(), "a file that can shrink is not mapped");
        let mut plan = Vec::new();
        region.plan_gather(Run { first_page: 0, pages: 16384 }, &mut plan);
        let read: u64 =
            plan.iter().filter(|(_, how)| *how == Residency::File).map(|(run, _)| run.pages).sum();
        let hole: u64 =
            plan.iter().filter(|(_, how)| *how == Residency::Hole).map(|(run, _)| run.pages).sum();
        assert_eq!(read + hole, 16384);
        assert!((1..=512).contains(&read), "{plan:?}");

        let memfd = memfd(1 << 20);
        memfd.write_all_at(&[1; 4096], 8192).unwrap();
        let region = Region::from_file("memfd", memfd, 0, 1 << 20).unwrap();
        let mut plan = Vec::new();
        region.plan_gather(Run { first_page: 0, pages: 256 }, &mut plan);
        let run = |first_page, pages| Run { first_page, pages };
        assert_eq!(
            plan,
            [
                (run(0, 2), Residency::Hole),
                (run(2, 1), Residency::Mapped),
                (run(3, 253), Residency::Hole)
            ]
        );
    }

    #[test]
    fn a_mapped_file_cannot_be_truncated_under_us() {
        let file = memfd(8192);
        let other = file.try_clone().unwrap();
        let region = Region::from_file("r", file, 0, 8192).unwrap();
        assert!(region.0.mapping.is_some());
        assert!(other.set_len(0).is_err(), "F_SEAL_SHRINK");
    }

    #[test]
    fn ranges_outside_the_file_are_refused() {
        for (offset, bytes) in [(0, 0), (0, 8193), (4096, 8192), (1, 4096), (u64::MAX - 4095, 4096)]
        {
            let error = Region::from_file("r", memfd(8192), offset, bytes).unwrap_err();
            assert!(matches!(error, crate::Error::Misuse(_)), "{offset} {bytes}");
        }
    }
}
