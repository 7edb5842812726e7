//! HunyuanVideo, its parts and the whole, against the reference implementation (diffusers and transformers, f32, CPU),
//! on the same random weights.

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use navicache_engine::models::hunyuan::{Tiles, Transformer, TransformerConfig, Vae, VaeConfig};
use navicache_engine::models::text::clip::{self, ClipText};
use navicache_engine::models::text::llama::{self, Llama};
use navicache_engine::models::{Denoiser, Weights};
use navicache_engine::noise;
use navicache_engine::weights::{Found, Tensors};
use navicache_engine::{LoadOptions, Pipeline, Request, Tiling, Video, generate};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tiny::pipeline_of(&golden()));

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hunyuan")
}

fn expected(name: &str) -> Tensor {
    candle_core::safetensors::load(golden().join("expected.safetensors"), &Device::Cpu).unwrap()[name].clone()
}

fn ids(name: &str) -> Vec<u32> {
    expected(name).to_vec1::<i64>().unwrap().iter().map(|&id| id as u32).collect()
}

fn is_close(found: &Tensor, name: &str) {
    // The reference clamps frames later.
    let expected = if name.starts_with("vae") { expected(name).clamp(-1.0, 1.0).unwrap() } else { expected(name) };
    assert_eq!(found.dims(), expected.dims());
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
    let error = norm(&(found - &expected).unwrap()) / norm(&expected);
    // A guidance of 6000 turns angles by more than f32 can tell apart: the sinusoid alone differs by 1e-5.
    assert!(error < 3e-5, "{name}: {error:.1e}");
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn component<C: DeserializeOwned>(name: &str) -> (C, Tensors) {
    let folder = FOLDER.path().join(name);
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let stem = if name.contains("_encoder") { "model" } else { "diffusion_pytorch_model" };
    (config, Tensors::open(&folder, stem).unwrap())
}

fn transformer() -> Transformer {
    let (config, files): (TransformerConfig, _) = component("transformer");
    Transformer::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap()
}

#[test]
fn llama_before_its_last_two_layers() {
    let (config, files): (llama::Config, _) = component("text_encoder");
    let encoder = Llama::new(&config, 2, Weights::new(&files, &Device::Cpu, None)).unwrap();
    is_close(&encoder.forward(&ids("llama.ids")).unwrap(), "llama.hidden");
    assert!(encoder.forward(&[261]).unwrap_err().to_string().contains("vocab_size 261"));
}

#[test]
fn clip_text() {
    let (config, files): (clip::Config, _) = component("text_encoder_2");
    let encoder = ClipText::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    is_close(&encoder.forward(&ids("clip.ids")).unwrap(), "clip.pooled");
    assert!(encoder.forward(&[1; 78]).unwrap_err().to_string().contains("1 to 77"));
}

#[test]
fn transformer_at_three_timesteps() {
    let transformer = transformer();
    let cond = transformer.cond(&randn(2, &[1, 9, 24]), &randn(3, &[1, 16]), 6.0).unwrap();
    for timestep in [999, 421, 3] {
        let velocity = transformer.forward(&randn(1, &[1, 4, 3, 4, 6]), timestep as f64, &cond).unwrap();
        is_close(&velocity, &format!("transformer.{timestep}"));
    }
}

/// Decodes, and compares with what the reference makes of the same latents.
fn decodes(latents: &Tensor, tiles: Option<Tiles>, name: &str) {
    let (config, files): (VaeConfig, _) = component("vae");
    let vae = Vae::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let mut decoding = vae.decoder(latents, tiles).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = decoding.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    let frames = Tensor::cat(&chunks, 0).unwrap().transpose(0, 1).unwrap().unsqueeze(0).unwrap();
    is_close(&frames, name);
}

#[test]
fn vae_decoder_in_windows_of_time() {
    let latents = randn(5, &[1, 4, 7, 3, 4]);
    for frames in [1, 4, 5, 7] {
        decodes(&latents.narrow(2, 0, frames).unwrap(), None, &format!("vae.frames.{frames}"));
    }
}

#[test]
fn vae_decoder_in_windows_of_space() {
    decodes(&randn(6, &[1, 4, 2, 5, 10]), Some(Tiles { size: 8, stride: 6 }), "vae.tiled");
}

#[test]
fn a_forward_is_its_units() {
    let transformer = transformer();
    let latents = randn(1, &[1, 4, 3, 4, 6]);
    let cond = transformer.cond(&randn(2, &[1, 9, 24]), &randn(3, &[1, 16]), 6.0).unwrap();
    let mut state = transformer.begin(&latents, 500.0, &cond).unwrap();
    assert_eq!(transformer.units().len(), 2 * 2 + 2);
    for unit in 0..transformer.units().len() {
        // Taking the features out and putting them back, into a state of its own, changes nothing.
        let features = transformer.features(&state);
        state = transformer.begin(&latents, 500.0, &cond).unwrap();
        transformer.set_features(&mut state, features);
        transformer.run_unit(unit, &mut state).unwrap();
    }
    let numbers = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let whole = transformer.forward(&latents, 500.0, &cond).unwrap();
    assert_eq!(numbers(transformer.finish(state).unwrap()), numbers(whole));
}

/// The prompt of the script.
fn request() -> Request {
    Request {
        size: Some((48, 32).into()),
        frames: Some(9),
        seed: Some(7),
        max_sequence_length: Some(600),
        cache: Some("none".parse().unwrap()),
        tile: Tiling::Off,
        ..Request::new("a Red circle, bouncing  on niño's desk 42!")
    }
}

fn make(request: &Request) -> Video {
    let pipeline = Pipeline::open(FOLDER.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
    generate(&pipeline, request, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_whole_pipeline() {
    let video = make(&request());
    assert_eq!((video.report.request.steps, video.report.request.guidance, video.report.request.shift), (50, 6.0, 7.0));
    assert_eq!(video.report.totals.forwards_computed, 50, "one branch");
    is_close(&video.latents, "pipeline.latents");
    let frames = expected("pipeline.frames").flatten_all().unwrap().to_vec1::<u8>().unwrap();
    assert_eq!(video.frames.len(), frames.len());
    assert!(video.frames.iter().zip(frames).all(|(&a, b)| a.abs_diff(b) <= 1));
}

#[test]
fn true_guidance_is_a_second_branch() {
    let request =
        Request { negative_prompt: Some("blue".to_string()), true_guidance: Some(3.0), steps: Some(8), ..request() };
    let video = make(&request);
    assert_eq!(video.report.totals.forwards_computed, 16);
    is_close(&video.latents, "pipeline.true_guidance");
}

#[test]
fn what_is_not_heard_is_said() {
    let request = Request { negative_prompt: Some("blue".to_string()), steps: Some(1), ..request() };
    let warnings = make(&request).report.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("`true_guidance`")), "{warnings:?}");
}

/// The transformer in the authors' file, as diffusers converts it, and in ComfyUI's.
#[test]
fn other_names_of_the_transformer() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = tiny::index_in(&golden()).remove("authors").unwrap();
    let (config, _): (TransformerConfig, _) = component("transformer");
    let like_flux = |name: &str| {
        let name = name.replace("_mod.linear", "_mod.lin").replace("modulation.linear", "modulation.lin");
        let name = name.replace("_attn_qkv", "_attn.qkv").replace("_attn_proj", "_attn.proj");
        let name = name.replace("attn_q_norm.weight", "attn.norm.query_norm.scale");
        let name = name.replace("attn_k_norm.weight", "attn.norm.key_norm.scale");
        let name = name.replace(".q_norm.weight", ".norm.query_norm.scale");
        let name = name.replace(".k_norm.weight", ".norm.key_norm.scale");
        let name = name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2");
        let name = name.replace("_in.mlp.0", "_in.in_layer").replace("_in.mlp.2", "_in.out_layer");
        let name =
            name.replace("t_embedder.mlp.0", "t_embedder.in_layer").replace("t_embedder.mlp.2", "t_embedder.out_layer");
        let name = name.replace("c_embedder.linear_1", "c_embedder.in_layer");
        format!("model.diffusion_model.{}", name.replace("c_embedder.linear_2", "c_embedder.out_layer"))
    };
    let check = |file: &str, renamed: &dyn Fn(&str) -> String| {
        let path = folder.path().join(file);
        let tensors = shapes.iter();
        tiny::write(
            &path,
            tensors.map(|(name, shape)| (renamed(name), shape.clone(), tiny::values("authors", name, shape))),
        );
        let Found { recognised, tensors, .. } = Found::open(&[path]).unwrap();
        assert_eq!(recognised.component.to_string(), "a HunyuanVideo transformer");
        let found = TransformerConfig::from_weights(&tensors).unwrap();
        assert_eq!((found.num_layers, found.num_single_layers, found.rope_axes_dim), (2, 2, config.rope_axes_dim));
        let transformer = Transformer::new(&found, Weights::new(&tensors, &Device::Cpu, None)).unwrap();
        let cond = transformer.cond(&randn(2, &[1, 9, 24]), &randn(3, &[1, 16]), 6.0).unwrap();
        is_close(&transformer.forward(&randn(1, &[1, 4, 3, 4, 6]), 421.0, &cond).unwrap(), "authors.421");
    };
    check("authors.safetensors", &|name| name.to_string());
    check("comfyui.safetensors", &like_flux);
}

/// llama.cpp's names, and its order of the rows of queries and keys: those of a head that turn together stand together.
#[test]
fn llama_as_gguf_files_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama.safetensors");
    let (config, _): (llama::Config, _) = component("text_encoder");
    let shapes = tiny::index_in(&golden()).remove("text_encoder").unwrap();
    let tensors = shapes.iter().map(|(name, shape)| {
        let values = tiny::values("text_encoder", name, shape);
        let head_rows = config.hidden_size / config.num_attention_heads;
        let turned = name.contains("q_proj") || name.contains("k_proj");
        let values = if turned {
            let rows: Vec<&[f32]> = values.chunks(shape[1]).collect();
            let heads = rows.chunks(head_rows);
            let half = head_rows / 2;
            heads.flat_map(|rows| (0..half).flat_map(|i| [rows[i], rows[i + half]])).flatten().copied().collect()
        } else {
            values
        };
        let renamed = [
            ("embed_tokens", "token_embd"),
            ("layers", "blk"),
            ("input_layernorm", "attn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        let name = renamed.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
        (if name == "norm.weight" { "output_norm.weight".to_string() } else { name }, shape.clone(), values)
    });
    tiny::write(&path, tensors);
    let Found { recognised, tensors, .. } = Found::open(&[path]).unwrap();
    assert_eq!(recognised.component.to_string(), "a LLaMA text encoder");
    let found = llama::Config::from_weights(&tensors, Some(&config), llama::Pairs::Neighbours).unwrap();
    let encoder = Llama::new(&found, 2, Weights::new(&tensors, &Device::Cpu, None)).unwrap();
    is_close(&encoder.forward(&ids("llama.ids")).unwrap(), "llama.hidden");
}

/// A LoRA for a matrix that the authors have as one changes each of its parts.
#[test]
fn lora_of_several_matrices_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let dim = 40;
    let lora = |file: &str, modules: &[(&str, std::ops::Range<usize>)]| {
        let path = folder.path().join(file);
        let up = tiny::values("lora", "up", &[7 * dim, 2]);
        let tensors = modules.iter().flat_map(|(module, rows)| {
            let part = up[rows.start * 2..rows.end * 2].to_vec();
            [
                (format!("{module}.lora_up.weight"), vec![rows.len(), 2], part),
                (format!("{module}.lora_down.weight"), vec![2, dim], tiny::values("lora", "down", &[2, dim])),
            ]
        });
        tiny::write(&path, tensors);
        let options = LoadOptions { loras: vec![path.to_str().unwrap().parse().unwrap()], ..LoadOptions::default() };
        let pipeline = Pipeline::open(FOLDER.path().to_str().unwrap(), &options).unwrap();
        let video = generate(&pipeline, &Request { steps: Some(2), ..request() }, &mut |_| ControlFlow::Continue(()));
        video.unwrap().latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let apart = lora(
        "apart.safetensors",
        &[
            ("transformer.single_transformer_blocks.1.attn.to_q", 0..dim),
            ("transformer.single_transformer_blocks.1.attn.to_k", dim..2 * dim),
            ("transformer.single_transformer_blocks.1.attn.to_v", 2 * dim..3 * dim),
            ("transformer.single_transformer_blocks.1.proj_mlp", 3 * dim..7 * dim),
        ],
    );
    assert_eq!(lora("authors.safetensors", &[("diffusion_model.single_blocks.1.linear1", 0..7 * dim)]), apart);
    assert_eq!(lora("kohya.safetensors", &[("lora_unet_single_blocks_1_linear1", 0..7 * dim)]), apart);
    // The authors' names and ComfyUI's, of the same module.
    let one = lora("fc1.safetensors", &[("diffusion_model.double_blocks.0.img_mlp.fc1", 0..4 * dim)]);
    for (file, module) in [
        ("flux.safetensors", "diffusion_model.double_blocks.0.img_mlp.0"),
        ("kohya_flux.safetensors", "lora_unet_double_blocks_0_img_mlp_0"),
        ("diffusers.safetensors", "transformer.transformer_blocks.0.ff.net.0.proj"),
    ] {
        assert_eq!(lora(file, &[(module, 0..4 * dim)]), one, "{module}");
    }
    assert_ne!(one, apart);
    let plain = make(&Request { steps: Some(2), ..request() });
    assert_ne!(plain.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap(), apart);
}
