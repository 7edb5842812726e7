//! A tokenizer in the key-value pairs of a GGUF file that is well formed.
#![no_main]

mod check;

use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use navicache_weights::{Found, tokenizer};

libfuzzer_sys::fuzz_target!(|input: (Vec<(String, f32, i32)>, Vec<u8>, bool)| {
    let (pieces, charsmap, dummy) = input;
    let bytes = charsmap.into_iter().map(Value::U8).collect();
    let pairs = [
        ("general.architecture", Value::String("t5encoder".to_string())),
        ("tokenizer.ggml.tokens", Value::Array(pieces.iter().map(|(text, ..)| Value::String(text.clone())).collect())),
        ("tokenizer.ggml.scores", Value::Array(pieces.iter().map(|(_, score, _)| Value::F32(*score)).collect())),
        ("tokenizer.ggml.token_type", Value::Array(pieces.iter().map(|(.., kind)| Value::I32(*kind)).collect())),
        ("tokenizer.ggml.precompiled_charsmap", Value::Array(bytes)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(dummy)),
    ];
    let matrix = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let matrix = QTensor::quantize(&matrix, GgmlDType::F32).unwrap();
    let mut file = Cursor::new(Vec::new());
    let pairs: Vec<(&str, &Value)> = pairs.iter().map(|(key, value)| (*key, value)).collect();
    if gguf_file::write(&mut file, &pairs, &[("enc.blk.0.attn_q.weight", &matrix)]).is_err() {
        return;
    }
    let found = check::in_file("gguf", &file.into_inner(), |path| Found::open(&[path.to_path_buf()]));
    if let Some(tokenizer) = found.ok().and_then(|found| tokenizer::from_weights(&found).ok().flatten()) {
        let _ = tokenizer.encode("a größer  色调 <s>\u{0}\u{fffd} fi ﬁ", true);
    }
});
