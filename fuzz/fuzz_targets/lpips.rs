//! Weights of LPIPS.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check::in_file("lpips", bytes, |path| navicache_engine::open_lpips(&[path.to_path_buf()]));
});
