//! CLIP's `vocab.json` and `merges.txt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    if let Ok(tokenizer) = navicache_weights::tokenizer::clip(input.0, input.1) {
        let _ = tokenizer.encode("a größer  色调 <s>\u{0}\u{fffd} fi ﬁ", true);
    }
});
