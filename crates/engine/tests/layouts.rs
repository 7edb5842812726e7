//! The same small pipeline in every packaging that people have makes the same video: bit for bit where the numbers are
//! the same, within a stated bound where they are not. Names come from `tools/layouts/golden.py`, which has tables of
//! its own.

mod tiny;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use navicache_engine::control::cache::CacheSpec;
use navicache_engine::inspect::inspect;
use navicache_engine::{DtypeChoice, Error, Files, LoadOptions, Lora, Pipeline, Request, generate};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

type Tensors = BTreeMap<String, Tensor>;
/// Packaging's name -> shape, and the Diffusers names that it is made of.
type Names = BTreeMap<String, Renamed>;

#[derive(serde::Deserialize)]
struct Renamed {
    shape: Vec<usize>,
    from: Vec<String>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layouts")
}

/// The pipeline in the Diffusers layout, and what it makes.
static REFERENCE: LazyLock<(TempDir, Vec<f32>)> = LazyLock::new(|| {
    let folder = tiny::pipeline_of(&golden());
    let made = latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap();
    (folder, made)
});

fn request() -> Request {
    Request {
        image: Some(tiny::golden().join("picture.png")),
        size: Some((48, 32).into()),
        frames: Some(5),
        steps: Some(4),
        guidance: Some(1.0),
        max_sequence_length: Some(20),
        cache: Some("none".parse::<CacheSpec>().unwrap()),
        ..Request::new("a blue star on niño")
    }
}

fn latents(model: &str, options: LoadOptions) -> Result<Vec<f32>, Error> {
    let pipeline = Pipeline::open(model, &options)?;
    let video = generate(&pipeline, &request(), &mut |_| ControlFlow::Continue(()))?;
    Ok(video.latents.flatten_all()?.to_vec1()?)
}

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| (v as f64).powi(2)).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

fn component(name: &str) -> Tensors {
    let stem = if name.ends_with("_encoder") { "model" } else { "diffusion_pytorch_model" };
    let path = REFERENCE.0.path().join(name).join(format!("{stem}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

/// A component under the names of another packaging.
fn renamed(name: &str, naming: &str) -> Tensors {
    let tensors = component(name);
    let names: BTreeMap<String, BTreeMap<String, Names>> =
        serde_json::from_slice(&std::fs::read(golden().join("names.json")).unwrap()).unwrap();
    let made = names[name][naming].iter().map(|(new, Renamed { shape, from })| {
        let parts: Vec<&Tensor> = from.iter().map(|old| &tensors[old]).collect();
        (new.clone(), Tensor::cat(&parts, 0).unwrap().reshape(shape.as_slice()).unwrap())
    });
    made.collect()
}

/// What the packagings narrow: the blocks' matrices.
fn is_matrix(name: &str, tensor: &Tensor) -> bool {
    let wide = ["time_", "text_embedding", "img_emb", "head", "norm", "embed", "_rel_b", "visual", "shared"];
    tensor.rank() == 2 && tensor.elem_count() > 1024 && !wide.iter().any(|part| name.contains(part))
}

fn write_safetensors(path: &Path, tensors: impl IntoIterator<Item = (String, Tensor)>, extra: Option<(&str, Vec<u8>)>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let (dtype, shape) = (tensor.dtype(), tensor.dims().to_vec());
            let flat = tensor.flatten_all().unwrap();
            let (dtype, bytes) = match dtype {
                DType::F16 => (Dtype::F16, bytes_of(&flat.to_vec1::<half::f16>().unwrap(), |v| v.to_le_bytes())),
                DType::BF16 => (Dtype::BF16, bytes_of(&flat.to_vec1::<half::bf16>().unwrap(), |v| v.to_le_bytes())),
                DType::F8E4M3 => {
                    (Dtype::F8_E4M3, bytes_of(&flat.to_vec1::<float8::F8E4M3>().unwrap(), |v| [v.to_bits()]))
                }
                _ => (Dtype::F32, bytes_of(&flat.to_vec1::<f32>().unwrap(), |v| v.to_le_bytes())),
            };
            (name, dtype, shape, bytes)
        })
        .chain(extra.map(|(name, bytes)| (name.to_string(), Dtype::U8, vec![bytes.len()], bytes)))
        .collect();
    let views = stored.iter().map(|(n, dtype, shape, data)| (n, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| bytes(v)).collect()
}

/// What `torch.save` writes for a flat dictionary of f32 tensors.
fn write_torch(path: &Path, tensors: &Tensors) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(".to_vec();
    let text = |pickle: &mut Vec<u8>, text: &str| {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
    };
    let integers = |pickle: &mut Vec<u8>, values: &[usize]| {
        pickle.push(b'(');
        values.iter().for_each(|&v| pickle.extend([&b"J"[..], &(v as u32).to_le_bytes()].concat()));
        pickle.push(b't');
    };
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(b"ctorch\nFloatStorage\n");
        text(&mut pickle, &key.to_string());
        text(&mut pickle, "cpu");
        pickle.extend([&b"J"[..], &(tensor.elem_count() as u32).to_le_bytes(), b"tQK\x00"].concat());
        integers(&mut pickle, tensor.dims());
        integers(&mut pickle, tensor.stride());
        pickle.extend(b"\x89h\x00)RtR");
    }
    pickle.extend(b"u}X\x09\x00\x00\x00_metadatah\x01sb.");
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(&pickle).unwrap();
    for (key, tensor) in tensors.values().enumerate() {
        zip.start_file(format!("archive/data/{key}"), options).unwrap();
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        zip.write_all(&bytes_of(&values, f32::to_le_bytes)).unwrap();
    }
    zip.finish().unwrap();
}

/// A GGUF file as converters write it: the blocks' matrices quantised, the rest wide, five dimensions folded into four.
fn write_gguf(path: &Path, tensors: &Tensors, dtype: GgmlDType, extra: &[(&str, gguf_file::Value)]) {
    let quantised: Vec<(&str, QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = if is_matrix(name, tensor) { dtype } else { GgmlDType::F32 };
            let tensor = match tensor.dims() {
                &[a, b, c, d, e] => tensor.reshape((a * b, c, d, e)).unwrap(),
                _ => tensor.clone(),
            };
            (name.as_str(), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let extra: Vec<(&str, &gguf_file::Value)> = extra.iter().map(|(key, value)| (*key, value)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(path).unwrap()), &extra, &tensors).unwrap();
}

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
    write_torch(&at("Wan2.1_VAE.pth"), &renamed("vae", "authors"));
    write_torch(&at("models_t5_umt5-xxl-enc-bf16.pth"), &renamed("text_encoder", "authors"));
    write_torch(&at("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"), &renamed("image_encoder", "authors"));
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

/// Two blocks of a LoRA in a style of naming, and the same added to the weights.
fn lora(folder: &Path, style: &str) -> (PathBuf, Tensors) {
    let mut merged = component("transformer");
    let mut file = Vec::new();
    let randn = |seed: u64, shape: &[usize]| {
        let values = navicache_engine::noise::randn(seed, shape.iter().product());
        (Tensor::from_vec(values, shape, &Device::Cpu).unwrap() * 0.05).unwrap()
    };
    let modules = [
        ("blocks.0.attn1.to_q", "blocks.0.self_attn.q", 256, 256),
        ("blocks.1.ffn.net.2", "blocks.1.ffn.2", 256, 512),
        ("blocks.1.attn2.to_out.0", "blocks.1.cross_attn.o", 256, 256),
    ];
    for (seed, (diffusers, authors, outputs, inputs)) in modules.into_iter().enumerate() {
        let (down, up) = (randn(seed as u64, &[4, inputs]), randn(seed as u64 + 10, &[outputs, 4]));
        let (names, alpha) = match style {
            "diffusers" => (
                [format!("transformer.{diffusers}.lora_A.weight"), format!("transformer.{diffusers}.lora_B.weight")],
                None,
            ),
            "comfy" => (
                [
                    format!("diffusion_model.{authors}.lora_down.weight"),
                    format!("diffusion_model.{authors}.lora_up.weight"),
                ],
                Some((format!("diffusion_model.{authors}.alpha"), 2.0)),
            ),
            _ => {
                let flat = authors.replace('.', "_");
                let of = |leaf: &str| format!("lora_unet_{flat}.{leaf}");
                ([of("lora_down.weight"), of("lora_up.weight")], Some((of("alpha"), 2.0)))
            }
        };
        let factor = alpha.as_ref().map_or(1.0, |(_, alpha)| alpha / 4.0);
        let weight = merged.get_mut(&format!("{diffusers}.weight")).unwrap();
        *weight = (&*weight + (up.matmul(&down).unwrap() * (0.5 * factor)).unwrap()).unwrap();
        let [name_down, name_up] = names;
        file.extend([(name_down, down), (name_up, up)]);
        file.extend(alpha.map(|(name, alpha)| (name, Tensor::new(alpha as f32, &Device::Cpu).unwrap())));
    }
    let path = folder.join(format!("{style}.safetensors"));
    write_safetensors(&path, file, None);
    (path, merged)
}

#[test]
fn loras_are_added_to_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let diffusers = REFERENCE.0.path().to_str().unwrap();
    for style in ["diffusers", "comfy", "kohya"] {
        let (path, merged) = lora(folder.path(), style);
        let file = folder.path().join("merged.safetensors");
        write_safetensors(&file, merged, None);
        let files = Files { transformer: Some(file), ..Files::default() };
        let expected = latents(diffusers, LoadOptions { files, ..LoadOptions::default() }).unwrap();
        assert!(distance(&expected, &REFERENCE.1) > 1e-3, "it has to change something");
        let with = |weight: f64, memory: Option<u64>| {
            let loras = vec![Lora { path: path.clone(), weight }];
            latents(diffusers, LoadOptions { loras, memory, ..LoadOptions::default() }).unwrap()
        };
        assert!(distance(&with(0.5, None), &expected) < 1e-5, "{style}: {:.1e}", distance(&with(0.5, None), &expected));
        assert_eq!(with(0.5, Some(1_500_000)), with(0.5, None), "{style}, on weights that are streamed");
        assert_eq!(with(0.0, None), REFERENCE.1, "{style}");
    }
}

#[test]
fn loras_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = |tensors: Vec<(&str, &[usize])>| {
        let path = folder.path().join("wrong.safetensors");
        let made = tensors
            .into_iter()
            .map(|(n, shape)| (n.to_string(), Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()));
        write_safetensors(&path, made, None);
        let loras = vec![Lora { path, weight: 1.0 }];
        Pipeline::open(REFERENCE.0.path().to_str().unwrap(), &LoadOptions { loras, ..LoadOptions::default() })
            .err()
            .unwrap()
            .to_string()
    };
    let q = "diffusion_model.blocks.0.self_attn.q";
    let (down, up) = (&format!("{q}.lora_down.weight"), &format!("{q}.lora_up.weight"));
    let says = |message: String, part: &str| assert!(message.contains(part), "{message}");
    says(error(vec![(down, &[4, 128]), (up, &[256, 4])]), "expected [256, 256]");
    says(error(vec![(down, &[4, 256]), (up, &[256, 8])]), "(out, rank) and (rank, in)");
    says(error(vec![(down, &[4, 256])]), "expected both");
    says(
        error(vec![("lora_unet_other.lora_down.weight", &[4, 8]), ("lora_unet_other.lora_up.weight", &[8, 4])]),
        "none of its 1 modules",
    );
    says(error(vec![("blocks.0.self_attn.q.weight", &[4, 8])]), "expected a LoRA");
    says(error(vec![(down, &[4, 256]), (up, &[256, 4]), (&format!("{q}.dora_scale"), &[256])]), "not supported");
}
