//! Everything that is done with a weight file before a tensor is read: recognising, renaming, factors, configurations.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check::in_file("weights", bytes, |path| navicache_engine::inspect::inspect(path.to_str().unwrap()));
});
