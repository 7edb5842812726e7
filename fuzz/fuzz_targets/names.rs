//! Names and shapes of tensors, in a safetensors file that is well formed: recognising, renaming, factors of 8-bit
//! weights, what is not read.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|tensors: Vec<(String, [u8; 2])>| {
    let shape = |[rows, columns]: [u8; 2]| vec![rows as usize % 8, columns as usize % 8];
    let tensors: Vec<(String, Vec<usize>)> = tensors.into_iter().map(|(name, dims)| (name, shape(dims))).collect();
    let bytes = check::safetensors(&tensors, &[]);
    let _ = check::in_file("names", &bytes, |path| navicache_weights::Found::open(&[path.to_path_buf()]));
});
