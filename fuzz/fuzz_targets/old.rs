//! A PyTorch file of the old kind, after its magic number.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|rest: &[u8]| {
    let bytes = [b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", rest].concat();
    check::listed_inside(&bytes);
});
