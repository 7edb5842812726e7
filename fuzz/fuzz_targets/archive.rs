//! A PyTorch archive as it comes.
#![no_main]

libfuzzer_sys::fuzz_target!(|rest: &[u8]| {
    let bytes = [b"PK\x03\x04", rest].concat();
    if let Ok((_, listing)) = navicache_engine::weights::list(&bytes) {
        for stored in listing.tensors.values() {
            assert!(stored.start.checked_add(stored.length).is_some_and(|end| end <= bytes.len()));
        }
    }
});
