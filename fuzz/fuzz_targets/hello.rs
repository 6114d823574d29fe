//! See sealane::wire::fuzz_bodies for what it asserts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sealane::wire::fuzz_bodies::hello(data));
