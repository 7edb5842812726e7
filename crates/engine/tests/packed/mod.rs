//! The small image-to-video pipeline of `tests/golden/layouts`, and its weights in files of other packagings.

#![allow(dead_code)] // not every test needs all of it

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use navicache_engine::control::cache::CacheSpec;
use navicache_engine::{Error, LoadOptions, Pipeline, Request, generate};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use crate::tiny;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;
/// Packaging's name -> shape, and the Diffusers names that it is made of.
type Names = BTreeMap<String, Renamed>;

#[derive(serde::Deserialize)]
struct Renamed {
    shape: Vec<usize>,
    from: Vec<String>,
}

/// What the pipeline follows from.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layouts")
}

/// The pipeline in the Diffusers layout, and what it makes.
pub static REFERENCE: LazyLock<(TempDir, Vec<f32>)> = LazyLock::new(|| {
    let folder = tiny::pipeline_of(&golden());
    let made = latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap();
    (folder, made)
});

/// A copy of its folder, to be changed.
pub fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::copy(REFERENCE.0.path(), folder.path());
    folder
}

/// What is asked for.
pub fn request() -> Request {
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

/// Final latents of it.
pub fn latents(model: &str, options: LoadOptions) -> Result<Vec<f32>, Error> {
    let pipeline = Pipeline::open(model, &options)?;
    let video = generate(&pipeline, &request(), &mut |_| ControlFlow::Continue(()))?;
    Ok(video.latents.flatten_all()?.to_vec1()?)
}

/// Relative L2 distance.
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| (v as f64).powi(2)).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// Where a component of the pipeline is.
pub fn file_of(name: &str) -> PathBuf {
    let stem = if name.ends_with("_encoder") { "model" } else { "diffusion_pytorch_model" };
    REFERENCE.0.path().join(name).join(format!("{stem}.safetensors"))
}

/// Its tensors.
pub fn component(name: &str) -> Tensors {
    candle_core::safetensors::load(file_of(name), &Device::Cpu).unwrap().into_iter().collect()
}

/// A component under the names of another packaging.
pub fn renamed(name: &str, naming: &str) -> Tensors {
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
pub fn is_matrix(name: &str, tensor: &Tensor) -> bool {
    let wide = ["time_", "text_embedding", "img_emb", "head", "norm", "embed", "_rel_b", "visual", "shared"];
    tensor.rank() == 2 && tensor.elem_count() > 1024 && !wide.iter().any(|part| name.contains(part))
}

/// A tensor as a file has it: name, format, shape, bytes.
pub type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// A tensor as a safetensors file has it.
pub fn raw(name: &str, tensor: &Tensor) -> Raw {
    let flat = tensor.flatten_all().unwrap();
    let (dtype, bytes) = match tensor.dtype() {
        DType::F16 => (Dtype::F16, bytes_of(&flat.to_vec1::<half::f16>().unwrap(), |v| v.to_le_bytes())),
        DType::BF16 => (Dtype::BF16, bytes_of(&flat.to_vec1::<half::bf16>().unwrap(), |v| v.to_le_bytes())),
        DType::F8E4M3 => (Dtype::F8_E4M3, bytes_of(&flat.to_vec1::<float8::F8E4M3>().unwrap(), |v| [v.to_bits()])),
        _ => (Dtype::F32, bytes_of(&flat.to_vec1::<f32>().unwrap(), |v| v.to_le_bytes())),
    };
    (name.to_string(), dtype, tensor.dims().to_vec(), bytes)
}

/// Writes a safetensors file.
pub fn write_raw(path: &Path, tensors: &[Raw], metadata: Option<HashMap<String, String>>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

/// The same of tensors.
pub fn write_safetensors(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    extra: Option<(&str, Vec<u8>)>,
) {
    let tensors = tensors.into_iter().map(|(name, tensor)| raw(&name, &tensor));
    let extra = extra.map(|(name, bytes)| (name.to_string(), Dtype::U8, vec![bytes.len()], bytes));
    write_raw(path, &tensors.chain(extra).collect::<Vec<_>>(), None);
}

/// The bytes of numbers.
pub fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| bytes(v)).collect()
}

/// What `torch.save` writes for dictionaries of f32 and fp8 tensors, each under a key; under "" alone without one.
pub fn write_torch(path: &Path, dictionaries: &[(&str, &Tensors)]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)R".to_vec();
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
    let mut storages = Vec::new();
    for (key, tensors) in dictionaries {
        if !key.is_empty() {
            text(&mut pickle, key);
            pickle.extend(b"h\x00)R");
        }
        pickle.push(b'(');
        for (name, tensor) in *tensors {
            let narrow = tensor.dtype() == DType::F8E4M3;
            text(&mut pickle, name);
            let (call, storage): (&[u8], &[u8]) = match narrow {
                true => (b"ctorch._utils\n_rebuild_tensor_v3\n((", b"ctorch.storage\nUntypedStorage\n"),
                false => (b"ctorch._utils\n_rebuild_tensor_v2\n((", b"ctorch\nFloatStorage\n"),
            };
            pickle.extend(call);
            text(&mut pickle, "storage");
            pickle.extend(storage);
            text(&mut pickle, &storages.len().to_string());
            text(&mut pickle, "cpu");
            pickle.extend([&b"J"[..], &(tensor.elem_count() as u32).to_le_bytes(), b"tQK\x00"].concat());
            integers(&mut pickle, tensor.dims());
            integers(&mut pickle, tensor.stride());
            pickle.extend(b"\x89h\x00)R");
            pickle.extend(if narrow { &b"ctorch\nfloat8_e4m3fn\ntR"[..] } else { &b"tR"[..] });
            storages.push(raw(name, tensor).3);
        }
        pickle.push(b'u');
        match key.is_empty() {
            true => pickle.extend(b"}X\x09\x00\x00\x00_metadatah\x00)Rsb"), // attributes of the dictionary
            false => pickle.push(b's'),
        }
    }
    pickle.push(b'.');
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(&pickle).unwrap();
    for (key, bytes) in storages.iter().enumerate() {
        zip.start_file(format!("archive/data/{key}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// A GGUF file as converters write it: the blocks' matrices quantised, the rest wide, five dimensions folded into four.
pub fn write_gguf(path: &Path, tensors: &Tensors, dtype: GgmlDType, extra: &[(&str, gguf_file::Value)]) {
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
