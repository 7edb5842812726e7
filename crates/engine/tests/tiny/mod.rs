//! A random Wan2.1 pipeline of a few thousand weights, written to a folder as `tools/golden/pipeline.py` made it.

#![allow(dead_code)] // not every test needs all of it

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use navicache_engine::{Request, Size, noise};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// Name -> shape.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// This crate's folder: where the variable says that it is now, for a test that runs on another machine.
fn crate_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// What the reference implementation made of it.
pub fn golden() -> PathBuf {
    crate_folder().join("tests/golden/tiny")
}

/// Shapes by component.
pub fn index() -> BTreeMap<String, Shapes> {
    index_in(&golden())
}

/// The same of others.
pub fn index_in(golden: &Path) -> BTreeMap<String, Shapes> {
    serde_json::from_slice(&std::fs::read(golden.join("index.json")).unwrap()).unwrap()
}

/// Configurations and weights in a folder of their own.
pub fn pipeline() -> TempDir {
    pipeline_of(&golden())
}

/// The same of other configurations.
pub fn pipeline_of(golden: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(golden, folder.path());
    for (component, shapes) in index_in(golden) {
        if !folder.path().join(&component).exists() {
            continue;
        }
        let stem = if component.contains("_encoder") { "model" } else { "diffusion_pytorch_model" };
        let path = folder.path().join(&component).join(format!("{stem}.safetensors"));
        write(&path, shapes.iter().map(|(name, shape)| (name.clone(), shape.clone(), values(&component, name, shape))));
    }
    folder
}

/// The pipeline with other parts: an image-to-video one from the pieces that the script left beside the text-to-video
/// one.
pub fn with_parts(class: &str, expands: bool, parts: &[(&str, &str)]) -> TempDir {
    let folder = pipeline();
    for (part, from) in parts {
        std::fs::remove_dir_all(folder.path().join(part)).unwrap();
        std::fs::rename(folder.path().join(from), folder.path().join(part)).unwrap();
    }
    let index = format!(r#"{{"_class_name": "{class}", "expand_timesteps": {expands}}}"#);
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    folder
}

/// A Wan2.2 A14B pipeline, whose two transformers share the steps: from text, or from a picture.
pub fn experts(class: &str) -> TempDir {
    let folder = pipeline();
    let golden = golden().join("../experts");
    let mut index = index();
    index.extend(index_in(&golden));
    let (first, config, boundary) = match class {
        "WanPipeline" => ("transformer", self::golden().join("transformer"), 0.875),
        _ => ("transformer_a14b", golden.join("transformer_a14b"), 0.9),
    };
    for (place, component) in [("transformer", first.to_string()), ("transformer_2", format!("{first}_2"))] {
        let place = folder.path().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(config.join("config.json"), place.join("config.json")).unwrap();
        let shapes = index[&component].iter();
        let weights = shapes.map(|(name, shape)| (name.clone(), shape.clone(), values(&component, name, shape)));
        write(&place.join("diffusion_pytorch_model.safetensors"), weights);
    }
    let index = serde_json::json!({
        "_class_name": class, "boundary_ratio": boundary,
        "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": ["diffusers", "WanTransformer3DModel"],
    });
    std::fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    folder
}

/// An Open-Sora 1.2 pipeline: three folders, as its repositories are.
pub fn opensora() -> TempDir {
    let golden = crate_folder().join("../models/tests/golden/opensora");
    let mut configs: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("configs.json")).unwrap()).unwrap();
    let mut index = index_in(&golden);
    // As many rows as the tokenizer has tokens.
    configs["text_encoder"]["vocab_size"] = 128.into();
    index.get_mut("text_encoder").unwrap().get_mut("shared.weight").unwrap()[0] = 128;
    let folder = tempfile::tempdir().unwrap();
    for (component, name) in
        [("transformer", "OpenSora-STDiT-v3"), ("vae", "OpenSora-VAE-v1.2"), ("text_encoder", "t5-v1_1-xxl")]
    {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("config.json"), configs[component].to_string()).unwrap();
        let shapes = index[component].iter();
        write(
            &place.join("model.safetensors"),
            shapes.map(|(name, shape)| (name.clone(), shape.clone(), values(component, name, shape))),
        );
    }
    let tokenizer = self::golden().join("tokenizer/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("t5-v1_1-xxl/tokenizer.json")).unwrap();
    folder
}

/// A CogVideoX pipeline: one of the five transformers of `tools/golden/cogvideox.py`, with a scheduler of its own.
pub fn cogvideox(model: &str, solver: &str) -> TempDir {
    let folder = pipeline_of(&golden().join("../cogvideox"));
    let path = |name: &str| folder.path().join(name);
    std::fs::rename(path(&format!("transformer_{model}")), path("transformer")).unwrap();
    std::fs::create_dir(path("scheduler")).unwrap();
    let shift = if model == "2b" { 3 } else { 1 };
    let scheduler = path(&format!("scheduler_{solver}")).join(format!("shift{shift}.json"));
    std::fs::copy(scheduler, path("scheduler/scheduler_config.json")).unwrap();
    let class = if model.ends_with("i2v") { "CogVideoXImageToVideoPipeline" } else { "CogVideoXPipeline" };
    std::fs::write(path("model_index.json"), format!(r#"{{"_class_name": "{class}"}}"#)).unwrap();
    if model.starts_with("15") {
        let config = std::fs::read_to_string(path("vae/config.json")).unwrap();
        let config = config.replace(r#""invert_scale_latents": false"#, r#""invert_scale_latents": true"#);
        std::fs::write(path("vae/config.json"), config).unwrap();
    }
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("transformer_") || name.starts_with("scheduler_") {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    folder
}

/// A tiny random pipeline of every kind there is, with what is asked of it beside a request.
pub fn every_kind(request: &Request) -> Vec<(&'static str, TempDir, Request)> {
    let small = |(width, height), frames| Request {
        size: Some(Size { width, height }),
        frames: Some(frames),
        max_sequence_length: Some(512),
        ..request.clone()
    };
    // From a picture: features beside the text, or latents that are known.
    let pictured = |name, folder: TempDir, request: Request| {
        let image = Some(folder.path().join("picture.png"));
        (name, folder, Request { image, ..request })
    };
    let of_its_own = |request: Request| Request { max_sequence_length: None, ..request };
    let i2v = with_parts("WanImageToVideoPipeline", false, &[("transformer", "transformer_i2v")]);
    let ti2v = with_parts("WanPipeline", true, &[("vae", "vae22")]);
    // The template alone is longer than what a prompt has room for: the tiny tokenizer knows letters only.
    let hunyuan = Request { max_sequence_length: Some(600), ..small((48, 32), 9) };
    vec![
        ("hunyuan", pipeline_of(&golden().join("../hunyuan")), hunyuan),
        ("opensora", opensora(), of_its_own(small((44, 36), 17))),
        ("cogvideox", cogvideox("2b", "ddim"), of_its_own(small((48, 32), 9))),
        // Noise is added at every step.
        pictured("cogvideox i2v", cogvideox("5b_i2v", "dpm"), of_its_own(small((48, 32), 9))),
        pictured("wan i2v", i2v, small((48, 32), 9)),
        pictured("wan ti2v", ti2v, small((64, 32), 9)),
        // Another transformer takes over on the way.
        ("wan a14b", experts("WanPipeline"), small((48, 32), 9)),
    ]
}

/// Writes f32 tensors: name, shape, values.
pub fn write(path: &Path, tensors: impl Iterator<Item = (String, Vec<usize>, Vec<f32>)>) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .map(|(name, shape, values)| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views =
        bytes.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The weight of a name: see `fill` in the script.
pub fn values(component: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = format!("{component}.{name}")
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ byte as u32).wrapping_mul(0x0100_0193));
    let row: usize = shape.iter().skip(1).product();
    let mut values = noise::randn(seed as u64, shape.iter().product());
    if shape.len() > 1 && row > 1 {
        let root = (row as f64).sqrt() as f32;
        values.iter_mut().for_each(|v| *v /= root);
    } else {
        let one = if name.contains("norm") && !name.contains("bias") { 1.0 } else { 0.0 };
        values.iter_mut().for_each(|v| *v = 0.1 * *v + one);
    }
    values
}

/// Copies a folder's files, and those of folders in it, into another.
pub fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
        let target = to.join(name);
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
