//! A trace, as `trace` writes it and `replay` reads it.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check::in_file("trace.jsonl", bytes, navicache_engine::trace::read);
});
