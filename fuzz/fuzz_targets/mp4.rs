//! A video in `.mp4`: what it says of itself, and its first frames.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::frames("video.mp4", bytes));
