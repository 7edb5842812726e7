//! Frames in a safetensors file.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::frames("frames.safetensors", bytes));
