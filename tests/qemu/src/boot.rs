//! What the live guest runs: one sector of our own, loaded by SeaBIOS to 7C00.
//!
//! It enters 32-bit protected mode and adds 1 to the first word of each page of [`TOUCHED`], over
//! and over. A page that a migration loses stays behind for ever, which a written counter would
//! make good with the next sweep.

use std::ops::Range;

/// Addresses of the pages that the live guest counts in.
pub const TOUCHED: Range<u64> = 1 << 20..101 << 20;

const SECTOR_BYTES: usize = 512;
/// Smaller disks have no geometry.
const DISK_BYTES: usize = 64 << 10;

/// The code, its operands in little-endian order.
#[rustfmt::skip]
const CODE: &[u8] = &[
    // 16-bit real mode, entered at 0000:7C00
    0xFA,                                            // 00         cli
    0x31, 0xC0,                                      // 01         xor ax, ax
    0x8E, 0xD8,                                      // 03         mov ds, ax
    0xE4, 0x92,                                      // 05         in al, 0x92
    0x0C, 0x02,                                      // 07         or al, 2            ; A20
    0xE6, 0x92,                                      // 09         out 0x92, al
    0x0F, 0x01, 0x16, 0x58, 0x7C,                    // 0B         lgdt [pointer]
    0x0F, 0x20, 0xC0,                                // 10         mov eax, cr0
    0x0C, 0x01,                                      // 13         or al, 1            ; PE
    0x0F, 0x22, 0xC0,                                // 15         mov cr0, eax
    0xEA, 0x1D, 0x7C, 0x08, 0x00,                    // 18         jmp 0x0008:protected
    // 32-bit protected mode
    0x66, 0xB8, 0x10, 0x00,                          // 1D protected: mov ax, 0x10
    0x8E, 0xD8,                                      // 21         mov ds, ax
    0xBF, 0x00, 0x00, 0x10, 0x00,                    // 23 sweep:  mov edi, 0x00100000
    0xFF, 0x07,                                      // 28 page:   inc dword [edi]
    0x81, 0xC7, 0x00, 0x10, 0x00, 0x00,              // 2A         add edi, 0x1000
    0x81, 0xFF, 0x00, 0x00, 0x50, 0x06,              // 30         cmp edi, 0x06500000
    0x72, 0xF0,                                      // 36         jb page
    0xEB, 0xE9,                                      // 38         jmp sweep
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90,              // 3A         nop
    // 40: the table, base 0 and 4 GiB each
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // 40         null
    0xFF, 0xFF, 0x00, 0x00, 0x00, 0x9A, 0xCF, 0x00,  // 48         0x08: code
    0xFF, 0xFF, 0x00, 0x00, 0x00, 0x92, 0xCF, 0x00,  // 50         0x10: data
    0x17, 0x00, 0x40, 0x7C, 0x00, 0x00,              // 58 pointer: 3 * 8 - 1, 0x00007C40
];

/// The disk image.
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    disk[..CODE.len()].copy_from_slice(CODE);
    disk[SECTOR_BYTES - 2..SECTOR_BYTES].copy_from_slice(&[0x55, 0xAA]);
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_counts_where_the_tests_look() {
        let operand =
            |at: usize| u64::from(u32::from_le_bytes(CODE[at..at + 4].try_into().unwrap()));
        assert_eq!(operand(0x24)..operand(0x32), TOUCHED);
        assert_eq!(operand(0x2C), crate::PAGE_BYTES);
        assert_eq!(disk()[CODE.len()..510], [0; 510 - 0x5E]);
    }
}
