//! Numbers from one file to another, some rows at a time, and a second look at what was written.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};
use navicache_models::{Matrix, Source};
use navicache_weights::{Component, Format, Found, Tensors, WeightFile, list_file};
use sha2::{Digest, Sha256};

use super::gguf::ALIGNMENT;
use super::packaging::Packaging;
use super::plan::Plan;
use crate::{Error, Result};

/// Numbers that are held at once, about.
const CHUNK: usize = 1 << 22;
/// A matrix that quantising changes by more than this, relative to its size, is broken: Q4_K changes normal ones by
/// 0.07.
const ERROR_MAX: f64 = 0.5;

/// What was written.
#[derive(Default)]
pub(super) struct Written {
    digests: Vec<[u8; 32]>,
    /// Sums of squares, of what changed and of what it is of.
    changed: f64,
    all: f64,
}

impl Written {
    /// What rounding changed, relative to all that was rounded.
    pub fn error(&self) -> f64 {
        if self.all > 0.0 { (self.changed / self.all).sqrt() } else { 0.0 }
    }
}

/// Writes the header and all tensors of a plan.
pub(super) fn all(
    tensors: &Tensors,
    plan: &[Plan],
    header: &[u8],
    (path, to): (&Path, &mut dyn Write),
    on_tensor: &mut dyn FnMut(usize),
) -> Result<Written> {
    let place = |name: &str| tensors.place(name);
    let is_gguf = header.starts_with(b"GGUF");
    to.write_all(header).map_err(Error::io(path))?;
    let mut written = Written::default();
    for (done, tensor) in plan.iter().enumerate() {
        let mut digest = Sha256::new();
        let mut put = |bytes: &[u8]| {
            digest.update(bytes);
            to.write_all(bytes).map_err(Error::io(path))
        };
        if tensor.copied {
            tensors.raw_pieces(&tensor.name, put)?;
        } else {
            let (changed, all) = converted(tensors, tensor, &mut put)?;
            if !(changed.is_finite() && all.is_finite()) || changed > ERROR_MAX * ERROR_MAX * all {
                let reason = format!("{}: its numbers are not finite, or too large for {}", tensor.name, tensor.format);
                return Err(Error::file(place(&tensor.name), reason));
            }
            (written.changed, written.all) = (written.changed + changed, written.all + all);
        }
        written.digests.push(digest.finalize().into());
        if is_gguf {
            let left = tensor.bytes.next_multiple_of(ALIGNMENT) - tensor.bytes;
            to.write_all(&[0; ALIGNMENT][..left]).map_err(Error::io(path))?;
        }
        on_tensor(done + 1);
    }
    Ok(written)
}

/// Writes a tensor in its new format; the sums of squares of what that changed, and of its numbers.
fn converted(tensors: &Tensors, plan: &Plan, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(f64, f64)> {
    let (mut changed, mut all) = (0.0, 0.0);
    let mut part = |values: Vec<f32>| -> Result<()> {
        let (bytes, back) = narrowed(&values, plan)?;
        for (value, back) in values.iter().zip(&back) {
            let (value, back) = (f64::from(*value), f64::from(*back));
            (changed, all) = (changed + (value - back).powi(2), all + value.powi(2));
        }
        put(&bytes)
    };
    match (&plan.shape[..], tensors.matrix(&plan.name, None, &Device::Cpu)) {
        (&[rows, width], Ok(Matrix::Packed(matrix))) => {
            let opened = matrix.open()?;
            let at_once = (CHUNK / width.max(1)).max(1);
            for first in (0..rows).step_by(at_once) {
                let mut values = vec![0.0; at_once.min(rows - first) * width];
                opened.read(first, &mut values)?;
                part(values)?;
            }
        }
        _ => part(tensors.load(&plan.name, Some(DType::F32), &Device::Cpu)?.flatten_all()?.to_vec1()?)?,
    }
    Ok((changed, all))
}

/// Numbers in another format, and what they are now.
fn narrowed(values: &[f32], plan: &Plan) -> Result<(Vec<u8>, Vec<f32>)> {
    let tensor = Tensor::from_slice(values, (values.len() / plan.row().max(1), plan.row().max(1)), &Device::Cpu)?;
    if let Format::Quantized(dtype) = plan.format {
        let quantised = QTensor::quantize(&tensor, dtype)?;
        let back = quantised.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        return Ok((quantised.data()?.into_owned(), back));
    }
    let flat = tensor.flatten_all()?;
    let two = |dtype: DType| -> Result<(Vec<u8>, Vec<f32>)> {
        let narrow = flat.to_dtype(dtype)?;
        let back = narrow.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let bytes = match dtype {
            DType::F16 => narrow.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => narrow.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Ok((bytes, back))
    };
    match plan.format {
        Format::F16 => two(DType::F16),
        Format::Bf16 => two(DType::BF16),
        _ => Ok((values.iter().flat_map(|v| v.to_le_bytes()).collect(), values.to_vec())),
    }
}

/// Reads a file again: every tensor has the format, shape and bytes that were meant, and all together are the component
/// that they were.
pub(super) fn check(path: &Path, from: &Found, plan: &[Plan], written: &Written) -> Result<(), String> {
    let (_, listing) = list_file(path).map_err(|e| e.to_string())?;
    let file = WeightFile::map(path).map_err(|e| e.to_string())?;
    for (tensor, digest) in plan.iter().zip(&written.digests) {
        let stored = listing.tensors.get(&tensor.to).ok_or_else(|| format!("{} is missing", tensor.to))?;
        if stored.format != tensor.format {
            return Err(format!("{}: expected {}, found {}", tensor.to, tensor.format, stored.format));
        }
        let mut found = Sha256::new();
        file.pieces_of(stored, |piece| {
            found.update(piece);
            Ok::<_, String>(())
        })?;
        if found.finalize()[..] != digest[..] {
            return Err(format!("{}: its bytes are other ones", tensor.to));
        }
    }
    let again = Found::open(&[path.to_path_buf()]).map_err(|e| e.to_string())?;
    let shapes = |found: &Found| -> BTreeMap<String, Vec<usize>> {
        found.tensors.listed().map(|(name, stored)| (name.to_string(), stored.shape.clone())).collect()
    };
    let is_same = Packaging::of(path) == Some(Packaging::Gguf) || shapes(&again) == shapes(from);
    // Of two transformers only names say which one it is.
    let kind = |found: &Found| match found.recognised.component {
        Component::WanLowNoise => Component::WanTransformer,
        component => component,
    };
    match (kind(&again) == kind(from), is_same) {
        (true, true) => Ok(()),
        _ => Err(format!("expected {}, found {}", from.recognised.component, again.recognised.component)),
    }
}
