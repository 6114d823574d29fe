//! The search for zero pages.

/// Whether every byte is zero. Leaves at the first block of 256 bytes that is not.
///
/// Written so that the compiler makes vector code of the inner loop on every CPU.
pub fn is_zero_page(page: &[u8]) -> bool {
    let (blocks, rest) = page.as_chunks::<256>();
    for block in blocks {
        let words = block.as_chunks::<8>().0;
        let folded = words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word));
        if folded != 0 {
            return false;
        }
    }
    rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::is_zero_page;

    #[test]
    fn one_set_bit_anywhere_shows() {
        let mut page = vec![0u8; 4096];
        assert!(is_zero_page(&page));
        for at in 0..page.len() {
            page[at] = 0x10;
            assert!(!is_zero_page(&page), "byte {at}");
            page[at] = 0;
        }
        assert!(is_zero_page(&[0; 300]));
        assert!(!is_zero_page(&[[0; 299].as_slice(), &[1]].concat()));
    }
}
