//! A LoRA of any names, shapes and header, added to a model of two matrices, which are read afterwards.
#![no_main]

mod check;

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use navicache_models::Source;
use navicache_weights::{Lora, Tensors, add_lora};

#[derive(Arbitrary, Debug)]
struct Input {
    tensors: Vec<Named>,
    metadata: Vec<(u8, String)>,
}

/// A tensor whose name is mostly one that means something.
#[derive(Arbitrary, Debug)]
struct Named {
    prefix: u8,
    module: u8,
    leaf: u8,
    other: String,
    dims: [u8; 3],
}

const PREFIXES: [&str; 5] = ["", "transformer.", "diffusion_model.", "lora_unet_", "base_model.model."];
const MODULES: [&str; 5] = ["blocks.0.attn1.to_q", "blocks.0.self_attn.k", "blocks_0_self_attn_q", "blocks.0", "head"];
const LEAVES: [&str; 22] = [
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora_B.bias", "alpha", "dora_scale", "diff",
    "diff_b", "diff_m", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2",
    "lokr_w2_a", "lokr_w2_b", "lora_magnitude_vector.weight", "lora_A.default.weight",
];
const KEYS: [&str; 5] = ["lora_adapter_metadata", "r", "lora_alpha", "alpha_pattern", "rank_pattern"];

static MODEL: LazyLock<&'static [u8]> = LazyLock::new(|| {
    let matrix = |name: &str| (format!("blocks.0.attn1.{name}.weight"), vec![4, 6]);
    let table = ("blocks.0.scale_shift_table".to_string(), vec![1, 6, 4]);
    Box::leak(check::safetensors(&[matrix("to_q"), matrix("to_k"), table], &[]).into_boxed_slice())
});

libfuzzer_sys::fuzz_target!(|input: Input| {
    let named = |Named { prefix, module, leaf, other, dims }: &Named| {
        let pick = |from: &[&str], index: u8| from.get(index as usize).map_or(other.clone(), |text| text.to_string());
        let name = format!("{}{}.{}", pick(&PREFIXES, *prefix), pick(&MODULES, *module), pick(&LEAVES, *leaf));
        let shape = dims.iter().map(|&dim| dim as usize % 9).take_while(|&dim| dim != 8).collect();
        (name, shape)
    };
    let tensors: Vec<(String, Vec<usize>)> = input.tensors.iter().map(named).collect();
    let metadata = input.metadata.into_iter().map(|(key, text)| (KEYS[key as usize % KEYS.len()].to_string(), text));
    let bytes = check::safetensors(&tensors, &metadata.collect::<Vec<_>>());
    let mut model = Tensors::embedded(Path::new("model"), *MODEL).unwrap();
    let lora = |path: &Path| Lora { path: path.to_path_buf(), weight: 0.5 };
    if check::in_file("lora", &bytes, |path| add_lora(&mut model, &lora(path))).is_ok() {
        let names: Vec<String> = model.listed().map(|(name, _)| name.to_string()).collect();
        for name in names {
            model.load(&name, None, &candle_core::Device::Cpu).unwrap();
        }
    }
});
