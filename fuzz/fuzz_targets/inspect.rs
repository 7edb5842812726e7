//! Everything that is done with a weight file before a tensor is read: recognising, renaming, configurations.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("navicache-fuzz-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let _ = navicache_engine::inspect::inspect(path.to_str().unwrap());
});
