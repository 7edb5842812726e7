//! CogVideoX in other packagings, and with LoRAs: the video of the Diffusers folder, bit for bit where the numbers are
//! the same.

mod packed;
mod tiny;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use navicache_engine::convert::{Conversion, convert};
use navicache_engine::{Files, LoadOptions, Lora, Pipeline, Request, Tiling, generate, noise};
use packed::{Tensors, distance, write_gguf, write_safetensors};
use tempfile::TempDir;

/// The 5B model in a Diffusers folder, and what it makes.
static DIFFUSERS: LazyLock<(TempDir, Vec<f32>)> = LazyLock::new(|| {
    let folder = tiny::cogvideox("5b", "ddim");
    let made = latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap();
    (folder, made)
});

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cogvideox")
}

fn latents(model: &str, options: LoadOptions) -> Result<Vec<f32>, String> {
    let request = Request {
        size: Some((48, 32).into()),
        frames: Some(9),
        steps: Some(5),
        seed: Some(7),
        max_sequence_length: Some(20),
        cache: Some("none".parse().unwrap()),
        tile: Tiling::Off,
        ..Request::new("a red circle bouncing on a navy background")
    };
    let pipeline = Pipeline::open(model, &options).map_err(|e| e.to_string())?;
    let video = generate(&pipeline, &request, &mut |_| ControlFlow::Continue(())).map_err(|e| e.to_string())?;
    Ok(video.latents.flatten_all().unwrap().to_vec1().unwrap())
}

/// What the folder makes with other weights in place of the transformer's.
fn with_transformer(path: &Path, loras: Vec<Lora>) -> Vec<f32> {
    let files = Files { transformer: Some(path.to_path_buf()), ..Files::default() };
    let options = LoadOptions { files, loras, ..LoadOptions::default() };
    latents(DIFFUSERS.0.path().to_str().unwrap(), options).unwrap()
}

fn weights_of(part: &str) -> PathBuf {
    let stem = if part == "text_encoder" { "model" } else { "diffusion_pytorch_model" };
    DIFFUSERS.0.path().join(part).join(format!("{stem}.safetensors"))
}

/// Tensors of a component under other names; several of one name are stacked.
fn renamed(component: &str, other: impl Fn(&str) -> Vec<(usize, String)>) -> Tensors {
    type Part = (usize, Vec<usize>, Vec<f32>); // which, shape, values
    let mut parts: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for (name, shape) in &tiny::index_in(&golden())[component] {
        let values = tiny::values(component, name, shape);
        let names = other(name);
        let (rows, numbers) = (shape[0] / names.len(), values.len() / names.len());
        for (i, (place, other)) in names.into_iter().enumerate() {
            let shape = [&[rows], &shape[1..]].concat();
            let values = values[i * numbers..(i + 1) * numbers].to_vec();
            parts.entry(other).or_default().push((place, shape, values));
        }
    }
    let stacked = parts.into_iter().map(|(name, mut parts)| {
        parts.sort_by_key(|(place, ..)| *place);
        let rows = parts.iter().map(|(_, shape, _)| shape[0]).sum();
        let shape = [&[rows], &parts[0].1[1..]].concat();
        let values: Vec<f32> = parts.into_iter().flat_map(|(.., values)| values).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    stacked.collect()
}

/// A name of the transformer in the authors' files, with its place among what is one there.
fn authors_transformer(name: &str) -> Vec<(usize, String)> {
    let prefix = "model.diffusion_model.";
    let parts: Vec<&str> = name.split('.').collect();
    let one = |name: String| vec![(0, format!("{prefix}{name}"))];
    match parts[..] {
        ["transformer_blocks", n, "attn1", part @ ("to_q" | "to_k" | "to_v"), leaf] => {
            let place = ["to_q", "to_k", "to_v"].iter().position(|name| *name == part).unwrap();
            vec![(place, format!("{prefix}transformer.layers.{n}.attention.query_key_value.{leaf}"))]
        }
        ["transformer_blocks", n, norm, "linear", leaf] => {
            let first = if norm == "norm1" { 0 } else { 1 };
            let name = format!("{prefix}mixins.adaln_layer.adaLN_modulations.{n}.1.{leaf}");
            vec![(first, name.clone()), (first + 2, name)]
        }
        ["transformer_blocks", n, "attn1", "norm_q", leaf] => {
            one(format!("mixins.adaln_layer.query_layernorm_list.{n}.{leaf}"))
        }
        ["transformer_blocks", n, "attn1", "norm_k", leaf] => {
            one(format!("mixins.adaln_layer.key_layernorm_list.{n}.{leaf}"))
        }
        ["transformer_blocks", n, ref rest @ .., leaf] => {
            let module = match rest.join(".").as_str() {
                "norm1.norm" => "input_layernorm",
                "norm2.norm" => "post_attention_layernorm",
                "attn1.to_out.0" => "attention.dense",
                "ff.net.0.proj" => "mlp.dense_h_to_4h",
                _ => "mlp.dense_4h_to_h",
            };
            one(format!("transformer.layers.{n}.{module}.{leaf}"))
        }
        ["patch_embed", ref rest @ ..] => one(format!("mixins.patch_embed.{}", rest.join("."))),
        ["time_embedding", layer, leaf] => {
            one(format!("time_embed.{}.{leaf}", if layer == "linear_1" { 0 } else { 2 }))
        }
        ["norm_final", leaf] => one(format!("transformer.final_layernorm.{leaf}")),
        ["norm_out", "norm", leaf] => one(format!("mixins.final_layer.norm_final.{leaf}")),
        ["norm_out", "linear", leaf] => one(format!("mixins.final_layer.adaLN_modulation.1.{leaf}")),
        ["proj_out", leaf] => one(format!("mixins.final_layer.linear.{leaf}")),
        _ => panic!("{name}"),
    }
}

/// A name of the autoencoder there.
fn authors_vae(name: &str) -> Vec<(usize, String)> {
    let mut name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2");
    for level in 0..4 {
        name = name.replace(&format!("up_blocks.{level}"), &format!("up.{}", 3 - level));
    }
    for (diffusers, authors) in [
        ("down_blocks", "down"),
        ("resnets", "block"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
    ] {
        name = name.replace(diffusers, authors);
    }
    vec![(0, name)]
}

#[test]
fn the_authors_files_make_the_same_video() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_safetensors(&path("1000.safetensors"), renamed("transformer_5b", authors_transformer), None);
    std::fs::create_dir(path("vae")).unwrap();
    write_safetensors(&path("vae/3d-vae.safetensors"), renamed("vae", authors_vae), None);
    std::fs::copy(golden().join("vae/config.json"), path("vae/config.json")).unwrap();
    let files = Files {
        transformer: Some(path("1000.safetensors")),
        vae: Some(path("vae/3d-vae.safetensors")),
        text_encoder: Some(weights_of("text_encoder")),
        tokenizer: Some(golden().join("tokenizer/tokenizer.json")),
        ..Files::default()
    };
    let options = LoadOptions { files, ..LoadOptions::default() };
    let defaults = Pipeline::open("", &options).unwrap().defaults().clone();
    assert_eq!((defaults.frames, defaults.width), (49, 720));
    assert_eq!(latents("", options).unwrap(), DIFFUSERS.1);
}

/// A name of the transformer in ComfyUI's own code.
fn comfyui_transformer(name: &str) -> Vec<(usize, String)> {
    let mut name = name.replace("transformer_blocks.", "blocks.").replace("embedding.linear_", "embedding_linear_");
    for (diffusers, comfyui) in [
        ("attn1.to_out.0", "attn_out"),
        ("attn1.to_", ""),
        ("attn1.", ""),
        ("ff.net.0.proj", "ff_proj"),
        ("ff.net.2", "ff_out"),
    ] {
        name = name.replace(diffusers, comfyui);
    }
    vec![(0, format!("model.diffusion_model.{name}"))]
}

#[test]
fn comfyuis_files_make_the_same_video() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cogvideox_5b.safetensors");
    let tensors = renamed("transformer_5b", comfyui_transformer);
    for name in
        ["blocks.0.q.weight", "blocks.1.ff_out.bias", "time_embedding_linear_2.weight", "patch_embed.proj.weight"]
    {
        assert!(tensors.contains_key(&format!("model.diffusion_model.{name}")), "{name}: {:?}", tensors.keys());
    }
    write_safetensors(&path, tensors, None);
    assert_eq!(with_transformer(&path, vec![]), DIFFUSERS.1);
    // Diffusers' names in one file, as some publish it.
    write_safetensors(&path, renamed("transformer_5b", |name| vec![(0, name.to_string())]), None);
    assert_eq!(with_transformer(&path, vec![]), DIFFUSERS.1);
}

#[test]
fn gguf_with_any_names_makes_the_same_video() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, tensors) in [
        ("authors", renamed("transformer_5b", authors_transformer)),
        ("comfyui", renamed("transformer_5b", comfyui_transformer)),
    ] {
        let path = path(&format!("{name}.gguf"));
        write_gguf(&path, &tensors, GgmlDType::F32, &[]);
        assert_eq!(with_transformer(&path, vec![]), DIFFUSERS.1, "{name}");
    }
    // Written here, there and back.
    let made = |from: &Path, to: &str, numbers: Option<&str>| {
        let numbers = numbers.map(|name| name.parse().unwrap());
        let (from, to) = (from.display().to_string(), path(to));
        convert(&Conversion { from, to: to.clone(), numbers, loras: vec![] }, &mut |_| ()).unwrap();
        to
    };
    let there = made(&weights_of("transformer"), "there.gguf", None);
    assert_eq!(with_transformer(&there, vec![]), DIFFUSERS.1);
    assert_eq!(with_transformer(&made(&there, "back.safetensors", None), vec![]), DIFFUSERS.1);
    let quantised = with_transformer(&made(&weights_of("transformer"), "q8_0.gguf", Some("q8_0")), vec![]);
    let off = distance(&quantised, &DIFFUSERS.1);
    assert!(off > 0.0 && off < 5e-2, "{off:.1e}");
}

/// Names of a LoRA's matrices in a style, given the module.
fn lora_names(style: &str, module: &str) -> [String; 2] {
    let comfyui = comfyui_transformer(module).remove(0).1;
    let (module, leaves) = match style {
        "diffusers" => (format!("transformer.{module}"), ["lora_A.weight", "lora_B.weight"]),
        "peft" => (format!("base_model.model.{module}"), ["lora_A.default.weight", "lora_B.default.weight"]),
        "comfyui" => (comfyui.replacen("model.", "", 1), ["lora_down.weight", "lora_up.weight"]),
        _ => (format!("lora_unet_{}", module.replace('.', "_")), ["lora_down.weight", "lora_up.weight"]),
    };
    leaves.map(|leaf| format!("{module}.{leaf}"))
}

#[test]
fn loras_are_added_whatever_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let randn = |seed, shape: [usize; 2]| {
        Tensor::from_vec(noise::randn(seed, shape[0] * shape[1]), &shape, &Device::Cpu).unwrap()
    };
    let plain = renamed("transformer_5b", |name| vec![(0, name.to_string())]);
    let modules =
        ["transformer_blocks.0.attn1.to_k", "transformer_blocks.1.attn1.to_out.0", "transformer_blocks.1.ff.net.2"];
    let matrices = modules.map(|module| {
        let (rows, columns) = plain[&format!("{module}.weight")].dims2().unwrap();
        let seed = module.len() as u64;
        (module, (randn(seed, [2, columns]) * 0.2).unwrap(), randn(seed + 100, [rows, 2]))
    });
    let mut merged = plain.clone();
    for (module, down, up) in &matrices {
        let weight = merged.get_mut(&format!("{module}.weight")).unwrap();
        *weight = (&*weight + (up.matmul(down).unwrap() * 0.5).unwrap()).unwrap();
    }
    write_safetensors(&path("merged.safetensors"), merged, None);
    let expected = with_transformer(&path("merged.safetensors"), vec![]);
    assert!(distance(&expected, &DIFFUSERS.1) > 1e-3, "it has to change something");

    write_safetensors(&path("authors.safetensors"), renamed("transformer_5b", authors_transformer), None);
    for style in ["diffusers", "peft", "comfyui", "kohya"] {
        let file = path(&format!("{style}.safetensors"));
        let tensors = matrices.iter().flat_map(|(module, down, up)| {
            let [name_down, name_up] = lora_names(style, module);
            [(name_down, down.clone()), (name_up, up.clone())]
        });
        write_safetensors(&file, tensors, None);
        let lora = vec![Lora { path: file, weight: 0.5, expert: None }];
        let off = distance(&with_transformer(&weights_of("transformer"), lora.clone()), &expected);
        assert!(off < 1e-5, "{style}: {off:.1e}");
        // Of rows of a matrix that is three in the authors' files, too.
        let off = distance(&with_transformer(&path("authors.safetensors"), lora), &expected);
        assert!(off < 1e-5, "{style} on the authors' file: {off:.1e}");
    }
}

#[test]
fn a_lora_that_the_authors_library_trained_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sat.safetensors");
    let module = "model.diffusion_model.transformer.layers.0.attention.dense";
    let matrix = |shape: (usize, usize)| Tensor::full(1f32, shape, &Device::Cpu).unwrap();
    let tensors =
        [(format!("{module}.matrix_A.0"), matrix((2, 32))), (format!("{module}.matrix_B.0"), matrix((32, 2)))];
    write_safetensors(&path, tensors, None);
    let loras = vec![Lora { path, weight: 1.0, expert: None }];
    let options = LoadOptions { loras, ..LoadOptions::default() };
    let message = latents(DIFFUSERS.0.path().to_str().unwrap(), options).unwrap_err();
    assert!(message.contains("a LoRA of SwissArmyTransformer"), "{message}");
}
