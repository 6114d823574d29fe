//! Which pages were written: bitmaps as KVM gives them, and the runs in them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Run;
use crate::error::{Error, Result, SystemError};

/// One bit a page, as `KVM_GET_DIRTY_LOG` fills it: bit `n % 64` of word `n / 64` is page `n`.
///
/// ```
/// use sealane::memory::{DirtyBitmap, Run};
/// let dirty = DirtyBitmap::from_words(vec![0b0110], 8)?;
/// assert_eq!(dirty.runs().collect::<Vec<_>>(), [Run { first_page: 1, pages: 2 }]);
/// # Ok::<(), sealane::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    pages: u64,
}

impl DirtyBitmap {
    /// A bitmap of `pages` clean pages.
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// A bitmap of `pages` dirty pages: what a first round sends.
    pub fn all(pages: u64) -> Self {
        let mut bitmap = Self::new(pages);
        bitmap.words.fill(u64::MAX);
        if let (Some(last), used @ 1..) = (bitmap.words.last_mut(), pages % 64) {
            *last = u64::MAX >> (64 - used);
        }
        bitmap
    }

    /// Takes a bitmap as words of the host's byte order (KVM's are little-endian on every
    /// machine that this runs on).
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] where the number of words is not that of `pages`, or a bit past the last
    /// page is set.
    pub fn from_words(words: Vec<u64>, pages: u64) -> Result<Self> {
        let wanted = pages.div_ceil(64);
        if words.len() as u64 != wanted {
            return Err(Error::Misuse(format!(
                "a dirty bitmap of {} words for {pages} pages: {wanted} are wanted",
                words.len()
            )));
        }
        let stray = match (words.last(), pages % 64) {
            (Some(last), used @ 1..) => last >> used,
            _ => 0,
        };
        if stray != 0 {
            return Err(Error::Misuse(format!(
                "a dirty bitmap marks pages past the last of {pages}: is it another region's?"
            )));
        }
        Ok(Self { words, pages })
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Marks a run.
    ///
    /// # Panics
    ///
    /// Where it reaches past the last page.
    pub fn set_run(&mut self, run: Run) {
        assert!(run.end() <= self.pages, "{run:?} of {} pages", self.pages);
        for (word, mask) in masks(run) {
            self.words[word] |= mask;
        }
    }

    /// Whether a page is marked.
    pub fn get(&self, page: u64) -> bool {
        self.words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Number of pages marked.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The marked pages as runs, rising, none touching the next.
    pub fn runs(&self) -> Runs<'_> {
        Runs { bitmap: self, page: 0 }
    }

    /// First page at or after `page` whose mark is `marked`; the number of pages if none.
    fn find(&self, page: u64, marked: bool) -> u64 {
        let mut index = (page / 64) as usize;
        let mut keep = u64::MAX << (page % 64);
        while let Some(&word) = self.words.get(index) {
            let found = if marked { word } else { !word } & keep;
            if found != 0 {
                return (index as u64 * 64 + u64::from(found.trailing_zeros())).min(self.pages);
            }
            index += 1;
            keep = u64::MAX;
        }
        self.pages
    }
}

/// The runs of a [`DirtyBitmap`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a DirtyBitmap,
    page: u64,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first_page = self.bitmap.find(self.page, true);
        if first_page >= self.bitmap.pages {
            return None;
        }
        self.page = self.bitmap.find(first_page, false);
        Some(Run { first_page, pages: self.page - first_page })
    }
}

/// A bitmap that any thread may mark: a dirty log in software.
///
/// A writer stores to the page first and marks it then; who drains the bitmap and copies the page
/// afterwards sees that store.
#[derive(Debug)]
pub struct AtomicBitmap {
    words: Vec<AtomicU64>,
    pages: u64,
}

impl AtomicBitmap {
    /// A bitmap of `pages` clean pages.
    pub fn new(pages: u64) -> Self {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, pages }
    }

    /// As [`Self::new`], of a size that somebody said: nothing ends where there is no such memory.
    pub(super) fn for_region(name: &str, pages: u64) -> Result<Self> {
        let (count, mut words) = (pages.div_ceil(64), Vec::new());
        let room = usize::try_from(count).ok().and_then(|n| words.try_reserve_exact(n).ok());
        if room.is_none() {
            let what = format!("region {name}: a bit for each of {pages} pages");
            return Err(SystemError::from_errno("malloc", what, libc::ENOMEM).into());
        }
        words.resize_with(count as usize, AtomicU64::default);
        Ok(Self { words, pages })
    }

    /// Marks a page.
    ///
    /// # Panics
    ///
    /// Where there is no such page.
    pub fn set(&self, page: u64) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::AcqRel);
    }

    /// Takes all marks away and returns them.
    pub fn drain(&self) -> DirtyBitmap {
        let words = self.words.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect();
        DirtyBitmap { words, pages: self.pages }
    }

    pub(super) fn get(&self, page: u64) -> bool {
        self.words[(page / 64) as usize].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    pub(super) fn set_run(&self, run: Run) {
        for (word, mask) in masks(run) {
            self.words[word].fetch_or(mask, Ordering::AcqRel);
        }
    }

    pub(super) fn clear_run(&self, run: Run) {
        for (word, mask) in masks(run) {
            self.words[word].fetch_and(!mask, Ordering::AcqRel);
        }
    }
}

/// The words that a run covers, each with the bits that are the run's.
fn masks(run: Run) -> impl Iterator<Item = (usize, u64)> {
    let end = run.end();
    (run.first_page / 64..end.div_ceil(64)).map(move |word| {
        let from = run.first_page.max(word * 64) - word * 64;
        let to = end.min(word * 64 + 64) - word * 64;
        (word as usize, (u64::MAX >> (64 - (to - from))) << from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_the_bitmap(bits in prop::collection::vec(any::<bool>(), 1..500)) {
            let pages = bits.len() as u64;
            let atomic = AtomicBitmap::new(pages);
            for (page, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
                atomic.set(page as u64);
            }
            let bitmap = atomic.drain();
            prop_assert_eq!(atomic.drain().count(), 0);
            let runs: Vec<_> = bitmap.runs().collect();
            prop_assert!(runs.iter().all(|run| run.pages > 0));
            prop_assert!(runs.windows(2).all(|two| two[0].end() < two[1].first_page));
            let mut again = DirtyBitmap::new(pages);
            runs.iter().for_each(|run| again.set_run(*run));
            prop_assert_eq!(&again, &bitmap);
            for (page, bit) in bits.iter().enumerate() {
                prop_assert_eq!(bitmap.get(page as u64), *bit);
            }
            let words = bitmap.words.clone();
            prop_assert_eq!(DirtyBitmap::from_words(words, pages).unwrap(), bitmap);
        }
    }

    #[test]
    fn all_marks_every_page_and_no_more() {
        for pages in [0, 1, 63, 64, 65, 128, 1000] {
            let all = DirtyBitmap::all(pages);
            assert_eq!(all.count(), pages);
            DirtyBitmap::from_words(all.words, pages).unwrap();
        }
    }

    #[test]
    fn bitmaps_of_another_size_are_refused() {
        let error = DirtyBitmap::from_words(vec![0; 3], 64).unwrap_err().to_string();
        assert!(error.contains("3 words") && error.contains("1 are wanted"), "{error}");
        assert!(DirtyBitmap::from_words(vec![1 << 10], 10).is_err());
    }

    #[test]
    fn a_region_of_any_size_is_an_error_and_no_abort() {
        let none = AtomicBitmap::for_region("ram", u64::MAX / 4096).unwrap_err();
        assert!(none.to_string().contains("region ram"), "{none}");
        assert_eq!(AtomicBitmap::for_region("ram", 65).unwrap().words.len(), 2);
    }
}
