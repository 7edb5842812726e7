//! A `tokenizer.json`, and text that is encoded with it.
#![no_main]

libfuzzer_sys::fuzz_target!(|rest: &[u8]| {
    if let Ok(tokenizer) = navicache_weights::tokenizer::from_bytes(&[b"{", rest].concat()) {
        let _ = tokenizer.encode("a größer  色调 <s>\u{0}\u{fffd} fi ﬁ", true);
    }
});
