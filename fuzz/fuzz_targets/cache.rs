//! What `--cache` takes: a method with its settings, a preset, a schedule in a file.
#![no_main]

mod check;

use std::str::from_utf8;

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let read = |text: &str| drop(navicache_engine::cache_argument(text));
    match kind % 3 {
        0 => from_utf8(bytes).into_iter().filter(|text| !text.contains(['@', ':'])).for_each(read),
        1 => check::in_file("preset.json", bytes, |path| read(&format!("@{}", path.display()))),
        _ => check::in_file("schedule.json", bytes, |path| read(&format!("schedule:{}", path.display()))),
    }
});
