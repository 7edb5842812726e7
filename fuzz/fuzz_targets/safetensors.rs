//! A safetensors file, its header's length always right.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (data, header) = input;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data as usize, 0);
    check(&bytes);
});

fn check(bytes: &[u8]) {
    if let Ok((_, listing)) = navicache_engine::weights::list(bytes) {
        for stored in listing.tensors.values() {
            assert!(stored.start.checked_add(stored.length).is_some_and(|end| end <= bytes.len()));
        }
    }
}
