//! A GGUF file behind its magic.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|rest: &[u8]| {
    let bytes = [b"GGUF\x03\x00\x00\x00", rest].concat();
    check::listed_inside(&bytes);
});
