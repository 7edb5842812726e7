//! Weights of LPIPS.
#![no_main]

mod check;

use navicache_metrics::Lpips;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check::in_file("lpips", bytes, |path| Lpips::open(&[path.to_path_buf()]));
});
