//! Bytes that a guest may write to while they are copied.

use std::fmt;
use std::marker::PhantomData;

/// Bytes that somebody may write to at any time: guest memory that is sent where it lies. A copy
/// of them may be torn and is no more than that; whoever wrote meanwhile sends them again.
#[derive(Clone, Copy)]
pub struct LiveSlice<'a> {
    base: *const u8,
    bytes: usize,
    memory: PhantomData<&'a u8>,
}

// SAFETY: it is read alone, by any thread, and nothing is assumed of what others write.
unsafe impl Send for LiveSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for LiveSlice<'_> {}

impl<'a> LiveSlice<'a> {
    /// `bytes` bytes from `base`.
    ///
    /// # Safety
    ///
    /// They are mapped and can be read for `'a`. Nobody need refrain from writing to them. Where
    /// `bytes` is 0, `base` may be anything.
    pub unsafe fn from_raw(base: *const u8, bytes: usize) -> Self {
        Self { base, bytes, memory: PhantomData }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies the bytes from `at` on into all of `into`.
    ///
    /// # Panics
    ///
    /// Where they do not reach so far.
    pub(crate) fn copy_to(&self, at: usize, into: &mut [u8]) {
        let end = at.checked_add(into.len()).filter(|end| *end <= self.bytes);
        assert!(end.is_some(), "{} bytes from {at} of {}", into.len(), self.bytes);
        if !into.is_empty() {
            // SAFETY: within what can be read, by the contract of `from_raw`; `into` is a unique
            // reference and therefore elsewhere. No reference is formed over the source.
            unsafe { self.base.add(at).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        }
    }
}

impl<'a> From<&'a [u8]> for LiveSlice<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        // SAFETY: a reference can be read for its lifetime.
        unsafe { Self::from_raw(bytes.as_ptr(), bytes.len()) }
    }
}

impl fmt::Debug for LiveSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveSlice({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::LiveSlice;

    #[test]
    fn what_is_copied_lies_within() {
        let slice = LiveSlice::from(&b"sealed"[..]);
        let mut two = [0; 2];
        slice.copy_to(4, &mut two);
        assert_eq!((&two, slice.len(), slice.is_empty()), (b"ed", 6, false));
        slice.copy_to(6, &mut []);
        for at in [5, usize::MAX] {
            let past = std::panic::catch_unwind(|| slice.copy_to(at, &mut [0; 2]));
            assert!(past.is_err(), "{at}");
        }
        // SAFETY: no bytes.
        let none = unsafe { LiveSlice::from_raw(std::ptr::null(), 0) };
        none.copy_to(0, &mut []);
        assert!(none.is_empty());
    }
}
