//! Copies between guest memory and slots. Guest memory comes from and goes to DRAM, slots stay in
//! the L2 cache, and neither `memcpy` nor the hardware prefetcher knows: the prefetcher stops at
//! each page's end, and plain stores first read the line that they overwrite.
//!
//! `cargo xtask bench copy` shows what these loops gain over `memcpy`.

use crate::config::PAGE_BYTES;

/// How far ahead the source of a copy out of guest memory is prefetched.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 2 * PAGE_BYTES;
/// Bytes of a cache line, and of one turn of the loops.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Copies one page out of guest memory and says whether the copy is all zero. The pages behind it
/// are on their way to the cache then.
///
/// # Safety
///
/// - `from` is a page, aligned as one, that can be read; `into` has room for it.
/// - `into` is private; whoever writes to `from` meanwhile leaves a torn copy and no more.
pub unsafe fn page_out_of_guest(from: *const u8, into: *mut u8) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _MM_HINT_T1, _mm_cmpeq_epi8, _mm_load_si128, _mm_movemask_epi8, _mm_or_si128,
            _mm_prefetch, _mm_setzero_si128, _mm_storeu_si128,
        };
        let (mut from, mut into) = (from.cast::<__m128i>(), into.cast::<__m128i>());
        // SAFETY: every x86-64 CPU has SSE2, here and below.
        let zero = unsafe { _mm_setzero_si128() };
        let mut folded = [zero; 4];
        for _ in 0..PAGE_BYTES / LINE_BYTES {
            // SAFETY: a prefetch reads nothing that the program could see and faults nowhere; the
            // loads and stores cover the two pages once, by the contract of this function.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(from.wrapping_byte_add(PREFETCH_BYTES).cast());
                let line = [0, 1, 2, 3].map(|part| _mm_load_si128(from.add(part)));
                for (part, bytes) in line.into_iter().enumerate() {
                    _mm_storeu_si128(into.add(part), bytes);
                    folded[part] = _mm_or_si128(folded[part], bytes);
                }
            }
            (from, into) = (from.wrapping_add(4), into.wrapping_add(4));
        }
        // SAFETY: no memory is touched.
        unsafe {
            let (low, high) =
                (_mm_or_si128(folded[0], folded[1]), _mm_or_si128(folded[2], folded[3]));
            _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_or_si128(low, high), zero)) == 0xFFFF
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the contract of this function; the copy is private.
    unsafe {
        std::ptr::copy_nonoverlapping(from, into, PAGE_BYTES);
        super::is_zero_page(std::slice::from_raw_parts(into, PAGE_BYTES))
    }
}

/// Copies whole pages into guest memory, past the cache: the guest wants its cache for itself.
///
/// # Safety
///
/// - `from` can be read and `into` written for `bytes`, a multiple of 4096; `into` begins a page.
/// - `from` is private; whoever touches `into` meanwhile sees old or new bytes.
pub unsafe fn pages_into_guest(from: *const u8, into: *mut u8, bytes: usize) {
    debug_assert!(bytes.is_multiple_of(PAGE_BYTES));
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        let (mut from, mut into) = (from.cast::<__m128i>(), into.cast::<__m128i>());
        for _ in 0..bytes / LINE_BYTES {
            // SAFETY: loads and stores cover both ranges once, by the contract of this function.
            unsafe {
                for part in 0..4 {
                    _mm_stream_si128(into.add(part), _mm_loadu_si128(from.add(part)));
                }
            }
            (from, into) = (from.wrapping_add(4), into.wrapping_add(4));
        }
        // Streamed stores are not ordered with what follows: whoever hears that the pages are
        // placed must see them.
        // SAFETY: every x86-64 CPU has SSE.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the contract of this function.
    unsafe {
        std::ptr::copy_nonoverlapping(from, into, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Pages([u8; 4 * PAGE_BYTES]);

    #[test]
    fn a_page_is_zero_only_without_a_set_bit_anywhere() {
        let (mut from, mut into) = (Pages([0; 4 * PAGE_BYTES]), Pages([0xEE; 4 * PAGE_BYTES]));
        // SAFETY: a page of each of two arrays of this test.
        let mut copy =
            |from: &Pages| unsafe { page_out_of_guest(from.0.as_ptr(), into.0.as_mut_ptr()) };
        assert!(copy(&from));
        for at in 0..PAGE_BYTES {
            from.0[at] = 1 << (at % 8);
            assert!(!copy(&from), "byte {at}");
            from.0[at] = 0;
        }
    }

    #[test]
    fn both_ways_copy_every_byte_and_no_more() {
        let mut from = Pages([0; 4 * PAGE_BYTES]);
        from.0.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 7 + n / 256) as u8);
        for pages in 1..3 {
            let mut into = Pages([0xEE; 4 * PAGE_BYTES]);
            let (first, end) = (PAGE_BYTES, (1 + pages) * PAGE_BYTES);
            // SAFETY: pages of two arrays of this test.
            unsafe {
                let at = into.0.as_mut_ptr().add(first);
                pages_into_guest(from.0.as_ptr().add(first), at, end - first);
            }
            assert!(into.0[first..end] == from.0[first..end]);
            assert!(into.0[..first].iter().chain(&into.0[end..]).all(|&byte| byte == 0xEE));
        }
        let mut into = Pages([0xEE; 4 * PAGE_BYTES]);
        // SAFETY: as above. What is prefetched past the array's end is not there, and no harm.
        unsafe {
            let at = into.0.as_mut_ptr().add(3 * PAGE_BYTES);
            assert!(!page_out_of_guest(from.0.as_ptr().add(3 * PAGE_BYTES), at));
        }
        assert!(into.0[3 * PAGE_BYTES..] == from.0[3 * PAGE_BYTES..]);
        assert!(into.0[..3 * PAGE_BYTES].iter().all(|&byte| byte == 0xEE));
    }
}
