//! The same small pipeline in every packaging that people have makes the same video: bit for bit where the numbers are
//! the same, within a stated bound where they are not. Names come from `tools/layouts/golden.py`, which has tables of
//! its own.

mod packed;
mod tiny;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{DType, Device, Tensor};
use navicache_engine::inspect::inspect;
use navicache_engine::{DtypeChoice, Files, LoadOptions};
use packed::{
    REFERENCE, Tensors, component, distance, golden, is_matrix, latents, renamed, write_gguf, write_safetensors,
    write_torch,
};
use tempfile::TempDir;

fn spiece() -> Vec<u8> {
    std::fs::read(golden().join("tokenizer/spiece.model")).unwrap()
}

/// The authors' repository.
fn authors() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config = r#"{"_class_name": "WanModel", "model_type": "i2v", "dim": 256, "num_heads": 2, "eps": 1e-06}"#;
    std::fs::write(at("config.json"), config).unwrap();
    write_safetensors(&at("diffusion_pytorch_model.safetensors"), renamed("transformer", "authors"), None);
    write_torch(&at("Wan2.1_VAE.pth"), &[("", &renamed("vae", "authors"))]);
    write_torch(&at("models_t5_umt5-xxl-enc-bf16.pth"), &[("", &renamed("text_encoder", "authors"))]);
    write_torch(
        &at("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
        &[("", &renamed("image_encoder", "authors"))],
    );
    std::fs::create_dir_all(at("google/umt5-xxl")).unwrap();
    std::fs::write(at("google/umt5-xxl/spiece.model"), spiece()).unwrap();
    folder
}

/// ComfyUI's folder of models, with `change` done to the matrices of transformer and text encoder.
fn comfy(prefix: &str, change: impl Fn(&str, &Tensor) -> Vec<(String, Tensor)>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let changed = |tensors: Tensors, prefix: &str| {
        let each = |(name, tensor): (String, Tensor)| match is_matrix(&name, &tensor) {
            true => change(&format!("{prefix}{name}"), &tensor),
            false => vec![(format!("{prefix}{name}"), tensor)],
        };
        tensors.into_iter().flat_map(each).collect::<Vec<_>>()
    };
    let at = |name: &str| folder.path().join(name);
    write_safetensors(
        &at("diffusion_models/wan.safetensors"),
        changed(renamed("transformer", "authors"), prefix),
        None,
    );
    let text = changed(component("text_encoder"), "");
    write_safetensors(&at("text_encoders/umt5.safetensors"), text, Some(("spiece_model", spiece())));
    write_safetensors(&at("vae/wan_vae.safetensors"), renamed("vae", "authors"), None);
    write_safetensors(&at("clip_vision/clip_h.safetensors"), component("image_encoder"), None);
    folder
}

fn unchanged(name: &str, tensor: &Tensor) -> Vec<(String, Tensor)> {
    vec![(name.to_string(), tensor.clone())]
}

fn of_folder(folder: &TempDir) -> Vec<f32> {
    latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap()
}

#[test]
fn the_authors_repository_is_the_same_bit_for_bit() {
    let folder = authors();
    assert_eq!(of_folder(&folder), REFERENCE.1);
    let inspected = inspect(folder.path().to_str().unwrap()).unwrap();
    assert!(inspected.missing.is_empty() && inspected.problem.is_none(), "{inspected:?}");
    assert_eq!(inspected.weights.len(), 4);
}

#[test]
fn the_authors_configuration_is_not_named_beside_their_other_parts() {
    let folder = authors();
    for name in
        ["models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"]
    {
        let inspected = inspect(folder.path().join(name).to_str().unwrap()).unwrap();
        assert_eq!((inspected.weights.len(), inspected.warnings), (1, vec![]), "{name}");
    }
    std::fs::write(folder.path().join("config.json"), r#"{"_class_name": "STDiT3"}"#).unwrap();
    let vae = inspect(folder.path().join("Wan2.1_VAE.pth").to_str().unwrap()).unwrap();
    assert!(vae.warnings[0].contains("not used, for it describes STDiT3"), "{vae:?}");
}

#[test]
fn single_files_are_the_same_bit_for_bit() {
    for prefix in ["", "model.diffusion_model."] {
        assert_eq!(of_folder(&comfy(prefix, unchanged)), REFERENCE.1, "{prefix}");
    }
}

#[test]
fn files_may_be_mixed() {
    let (comfy, authors, diffusers) = (comfy("", unchanged), authors(), &REFERENCE.0);
    let given = |files: Files| LoadOptions { files, ..LoadOptions::default() };
    let at = |folder: &TempDir, name: &str| Some(folder.path().join(name));
    let alone = Files {
        transformer: at(&comfy, "diffusion_models/wan.safetensors"),
        text_encoder: at(&authors, "models_t5_umt5-xxl-enc-bf16.pth"),
        vae: at(diffusers, "vae"),
        image_encoder: at(&comfy, "clip_vision/clip_h.safetensors"),
        tokenizer: at(diffusers, "tokenizer/tokenizer.json"),
        ..Files::default()
    };
    assert_eq!(latents("", given(alone.clone())).unwrap(), REFERENCE.1);
    let one = Files { vae: at(&authors, "Wan2.1_VAE.pth"), ..Files::default() };
    assert_eq!(latents(diffusers.path().to_str().unwrap(), given(one)).unwrap(), REFERENCE.1);

    let error = |files: Files| latents("", given(files)).unwrap_err().to_string();
    let swapped = Files { vae: alone.transformer.clone(), ..alone.clone() };
    let message = error(swapped);
    assert!(message.contains("`vae`: expected a Wan VAE, found a Wan transformer"), "{message}");
    let message = error(Files { text_encoder: None, tokenizer: None, ..alone });
    assert!(message.contains("`text_encoder` FILE") && message.contains("`tokenizer` FILE"), "{message}");
}

#[test]
fn a_file_that_cannot_be_read_is_the_reason_that_something_is_missing() {
    let folder = authors();
    std::fs::write(folder.path().join("Wan2.1_VAE.pth"), b"<html>").unwrap();
    let message = latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("missing: a VAE (`vae` FILE)") && message.contains("a web page"), "{message}");
}

#[test]
fn narrower_numbers_stay_within_their_bounds() {
    let narrow =
        |dtype: DType| move |name: &str, tensor: &Tensor| vec![(name.to_string(), tensor.to_dtype(dtype).unwrap())];
    // Relative distance of the final latents of this random pipeline; the bounds are 1.6 to 2 times what was measured.
    for (dtype, bound) in [(DType::F16, 6e-4), (DType::BF16, 5e-3), (DType::F8E4M3, 6e-2)] {
        let found = distance(&of_folder(&comfy("", narrow(dtype))), &REFERENCE.1);
        assert!(found > 0.0 && found < bound, "{dtype:?}: {found:.1e}");
    }
}

#[test]
fn factors_of_8_bit_weights_are_used() {
    // Weights a thousand times too small for 8 bits: lost without their factors.
    let scaled = |factor: &'static str, shape: &'static [usize]| {
        move |name: &str, tensor: &Tensor| {
            let largest = tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() / 448.0;
            let narrow = (tensor / largest as f64).unwrap().to_dtype(DType::F8E4M3).unwrap();
            let module = name.strip_suffix("weight").unwrap();
            let factor_of = Tensor::full(largest, shape, &Device::Cpu).unwrap();
            vec![(name.to_string(), narrow), (format!("{module}{factor}"), factor_of)]
        }
    };
    for folder in
        [comfy("model.diffusion_model.", scaled("scale_weight", &[1])), comfy("", scaled("weight_scale", &[]))]
    {
        let found = distance(&of_folder(&folder), &REFERENCE.1);
        assert!(found > 0.0 && found < 6e-2, "{found:.1e}");
    }
}

#[test]
fn quantised_files_stay_within_their_bounds() {
    use gguf_file::Value;
    let model = tokenizers::Tokenizer::from_file(golden().join("tokenizer/tokenizer.json")).unwrap();
    let tokens: Vec<String> = (0..model.get_vocab_size(true) as u32).map(|id| model.id_to_token(id).unwrap()).collect();
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden().join("tokenizer/tokenizer.json")).unwrap()).unwrap();
    let scores = json["model"]["vocab"].as_array().unwrap().iter().map(|piece| piece[1].as_f64().unwrap() as f32);
    let kinds = tokens.iter().map(|token| match token.as_str() {
        "<unk>" => 2,
        "<pad>" | "<s>" | "</s>" => 3,
        _ => 1,
    });
    let tokenizer = [
        ("general.architecture", Value::String("t5encoder".to_string())),
        ("tokenizer.ggml.scores", Value::Array(scores.map(Value::F32).collect())),
        ("tokenizer.ggml.token_type", Value::Array(kinds.map(Value::I32).collect())),
        ("tokenizer.ggml.tokens", Value::Array(tokens.iter().cloned().map(Value::String).collect())),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (transformer, text_encoder) = (folder.path().join("wan.gguf"), folder.path().join("umt5.gguf"));
    let options = || LoadOptions {
        files: Files {
            transformer: Some(transformer.clone()),
            text_encoder: Some(text_encoder.clone()),
            vae: Some(REFERENCE.0.path().join("vae")),
            image_encoder: Some(REFERENCE.0.path().join("image_encoder")),
            ..Files::default()
        },
        ..LoadOptions::default()
    };
    for (dtype, bound) in [
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 7e-4),
        (GgmlDType::BF16, 8e-3),
        (GgmlDType::Q8_0, 2e-2),
        (GgmlDType::Q6K, 5e-2),
        (GgmlDType::Q5K, 1e-1),
        (GgmlDType::Q5_0, 1e-1),
        (GgmlDType::Q5_1, 1.2e-1),
        (GgmlDType::Q4K, 2e-1),
        (GgmlDType::Q4_0, 2e-1),
        (GgmlDType::Q4_1, 2.5e-1),
        (GgmlDType::Q3K, 3.5e-1),
        (GgmlDType::Q2K, 5e-1),
    ] {
        write_gguf(&transformer, &renamed("transformer", "authors"), dtype, &[]);
        write_gguf(&text_encoder, &renamed("text_encoder", "llama_cpp"), dtype, &tokenizer);
        let found = distance(&latents("", options()).unwrap(), &REFERENCE.1);
        assert!(found <= bound && (found > 0.0) == (bound > 0.0), "{dtype:?}: {found:.1e}");
    }
    // What is quantised stays so whatever is asked for; what is not is converted.
    let rounded = LoadOptions { dtype: DtypeChoice::Bf16, ..options() };
    let found = distance(&latents("", rounded).unwrap(), &REFERENCE.1);
    assert!(found < 5e-1, "{found:.1e}");
}

#[test]
fn streaming_changes_nothing() {
    let folder = REFERENCE.0.path().to_str().unwrap();
    let streamed = LoadOptions { memory: Some(1_500_000), ..LoadOptions::default() };
    assert_eq!(latents(folder, streamed).unwrap(), REFERENCE.1);
}
