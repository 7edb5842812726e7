//! A list of VBench's prompts.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check::in_file("prompts.json", bytes, navicache_study::vbench::read);
});
