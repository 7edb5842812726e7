//! A GGUF file behind its magic.
#![no_main]

libfuzzer_sys::fuzz_target!(|rest: &[u8]| {
    let bytes = [b"GGUF\x03\x00\x00\x00", rest].concat();
    if let Ok((_, listing)) = navicache_engine::weights::list(&bytes) {
        for stored in listing.tensors.values() {
            assert!(stored.start.checked_add(stored.length).is_some_and(|end| end <= bytes.len()));
        }
    }
});
