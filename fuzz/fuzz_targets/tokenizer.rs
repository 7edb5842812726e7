//! A SentencePiece model, and text that is encoded with it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = navicache_weights::tokenizer::encode_with(bytes, "a größer  色调 <s>\u{0}\u{fffd} fi ﬁ");
});
