//! A PyTorch archive as it comes.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|rest: &[u8]| {
    let bytes = [b"PK\x03\x04", rest].concat();
    check::listed_inside(&bytes);
});
