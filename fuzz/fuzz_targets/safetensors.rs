//! A safetensors file, its header's length always right.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (data, header) = input;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data as usize, 0);
    check::listed_inside(&bytes);
});
