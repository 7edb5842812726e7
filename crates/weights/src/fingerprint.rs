//! What a set of weights is, wherever it lies: enough to tell another one from it, without reading gigabytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::change::{Change, Form};
use crate::tensors::Tensors;

/// What a set of weights is. Where its files lie, and when they were written, is no part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// How many tensors there are in each number format.
    pub formats: BTreeMap<String, usize>,
    /// SHA-256 of names, formats and shapes.
    pub listing: String,
    /// SHA-256 of samples of the files, and of what is added to them.
    pub content: String,
}

impl Tensors {
    /// What these weights are.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut formats = BTreeMap::new();
        let (mut listing, mut content) = (Sha256::new(), Sha256::new());
        let mut files = BTreeMap::new();
        for (name, entry) in self.entries() {
            *formats.entry(entry.stored.format.to_string()).or_default() += 1;
            listing.update(format!("{name} {} {:?}\n", entry.stored.format, entry.stored.shape));
            let factors = entry.factors.iter().flat_map(|factors| factors.values());
            factors.for_each(|factor| content.update(factor.to_le_bytes()));
            files.insert(Arc::as_ptr(&entry.file), &entry.file);
            for change in &entry.changes {
                content.update(name);
                add_change(&mut content, change);
            }
        }
        // Shards may be found in any order, and lie anywhere in memory.
        let files: BTreeSet<String> = files.into_values().map(|file| sample(file.bytes())).collect();
        files.iter().for_each(|sample| content.update(sample));
        Fingerprint { formats, listing: hex(listing), content: hex(content) }
    }
}

/// Blocks that are looked at of a file, and bytes of each.
const BLOCKS: usize = 64;
const BLOCK: usize = 4096;

/// SHA-256 of how long a file is, and of blocks of it at even distances. A file that was trained further, rounded or
/// compiled again differs in all of its blocks.
pub fn sample(bytes: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update((bytes.len() as u64).to_le_bytes());
    let last = bytes.len().saturating_sub(BLOCK);
    for i in 0..BLOCKS {
        let start = (last as u128 * i as u128 / (BLOCKS as u128 - 1)) as usize;
        digest.update(&bytes[start..bytes.len().min(start + BLOCK)]);
    }
    hex(digest)
}

/// How much a change adds, and the beginning of what.
fn add_change(digest: &mut Sha256, change: &Change) {
    let Change { form, factor, rows, magnitudes, weight } = change;
    let (kind, tensors) = match form {
        Form::Product { up, down } => ("product", vec![up, down]),
        Form::Hadamard([[a, b], [c, d]]) => ("hadamard", vec![a, b, c, d]),
        Form::Kronecker { left, right } => ("kronecker", vec![left, right]),
        Form::Sum(numbers) => ("sum", vec![numbers]),
    };
    digest.update(format!("{kind} {factor} {weight} {rows:?}"));
    let tensors = tensors.into_iter().chain(magnitudes);
    for tensor in tensors {
        digest.update(format!("{:?}", tensor.dims()));
        let beginning = |tensor: &Tensor| {
            let all = tensor.flatten_all()?;
            all.narrow(0, 0, all.elem_count().min(BLOCK))?.to_vec1::<f32>()
        };
        beginning(tensor).into_iter().flatten().for_each(|number| digest.update(number.to_le_bytes()));
    }
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device};

    use super::*;

    fn weights(folder: &Path, name: &str, values: &[f32], dtype: DType) -> Fingerprint {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let path = folder.join(format!("{name}.safetensors"));
        candle_core::safetensors::save(&std::collections::HashMap::from([("a", tensor)]), path).unwrap();
        Tensors::open(folder, name).unwrap().fingerprint()
    }

    #[test]
    fn the_same_weights_elsewhere_are_the_same_and_others_are_not() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
        let here = weights(one.path(), "m", &values, DType::F32);
        assert_eq!(here, weights(two.path(), "n", &values, DType::F32));
        assert_eq!(here.formats, BTreeMap::from([("f32".to_string(), 1)]));

        let other = weights(one.path(), "other", &values.iter().map(|v| v * 1.01).collect::<Vec<_>>(), DType::F32);
        assert_eq!(here.listing, other.listing);
        assert_ne!(here.content, other.content);
        let rounded = weights(one.path(), "rounded", &values, DType::BF16);
        assert_ne!(here.listing, rounded.listing);
        assert_ne!(here.formats, rounded.formats);
    }

    #[test]
    fn files_of_any_length_are_sampled() {
        let lengths = [0, 1, 4095, 4096, 4097, 1 << 20];
        let samples: BTreeSet<String> = lengths.into_iter().map(|length| sample(&vec![7; length])).collect();
        assert_eq!(samples.len(), lengths.len());
    }
}
