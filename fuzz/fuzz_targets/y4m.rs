//! A video in `.y4m`: what it says of itself, and its first frames.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::frames("video.y4m", bytes));
