//! The tensors of a component, from one file or several, under the names that the models are written in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use navicache_models::{Matrix, Source};

use crate::container;
use crate::entry::{Entry, add};
use crate::error::Result;
use crate::file::{Stored, WeightFile};
use crate::format::Format;
use crate::matrix::{InFile, Residence};
use crate::shards::stem_files;

/// Named tensors.
#[derive(Debug)]
pub struct Tensors {
    /// What was searched, for messages about missing tensors.
    place: String,
    tensors: BTreeMap<String, Entry>,
    residence: Residence,
    notes: Vec<String>,
}

impl Tensors {
    /// Opens `STEM.safetensors` of a folder, or the shards that `STEM.safetensors.index.json` lists. Headers and
    /// lengths are checked here, so a truncated file is found before anything is computed.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let (place, paths) = stem_files(folder, stem)?;
        let files = paths.iter().map(|path| WeightFile::map(path)).collect::<Result<Vec<_>>>()?;
        Self::of_files(place, files)
    }

    /// Opens files under names that `rename` gives; tensors that get none are left out.
    pub fn with_names(paths: &[PathBuf], rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for path in paths {
            let file = WeightFile::map(path)?;
            let listed = container::open(&file)?.1.tensors.into_iter();
            let listed = listed.filter_map(|(name, stored)| Some((rename(&name)?, stored)));
            add(&mut tensors, &Arc::new(file), listed)?;
        }
        let place = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ");
        Ok(Self::of_entries(place, tensors, Vec::new()))
    }

    /// Reads a file that is part of the program.
    pub fn embedded(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        Self::of_files(path.display().to_string(), vec![WeightFile::embedded(path, bytes)])
    }

    /// What was read already, by name.
    pub(crate) fn of_entries(place: String, tensors: BTreeMap<String, Entry>, notes: Vec<String>) -> Self {
        Self { place, tensors, residence: Residence::Mapped, notes }
    }

    fn of_files(place: String, files: Vec<WeightFile>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for file in files {
            let listing = container::open(&file)?.1;
            let file = Arc::new(file);
            add(&mut tensors, &file, listing.tensors)?;
        }
        Ok(Self::of_entries(place, tensors, Vec::new()))
    }

    /// What the user should know of how they were read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Number of scalars in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|entry| entry.stored.numbers() as u64).sum()
    }

    /// Bytes that the decoder of an autoencoder takes on the CPU, all f32: its convolutions keep 16 numbers of a 3x3
    /// kernel for 9.
    pub fn decoder_bytes(&self) -> u64 {
        const F32: u64 = 4;
        let parts =
            self.tensors.iter().filter(|(name, _)| name.contains("decoder") || name.contains("post_quant_conv"));
        let bytes = parts.map(|(_, Entry { stored, .. })| match stored.shape[..] {
            [.., _, _, 3, 3] => stored.numbers() as u64 / 9 * 16 * F32,
            _ => stored.numbers() as u64 * F32,
        });
        bytes.sum()
    }

    /// Bytes they take in their files.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.stored.length as u64).sum()
    }

    /// The format that most numbers have.
    pub fn main_format(&self) -> Option<Format> {
        let mut counts: Vec<(Format, usize)> = Vec::new();
        for stored in self.tensors.values().map(|entry| &entry.stored) {
            match counts.iter_mut().find(|(format, _)| *format == stored.format) {
                Some((_, count)) => *count += stored.numbers(),
                None => counts.push((stored.format, stored.numbers())),
            }
        }
        counts.into_iter().max_by_key(|&(_, count)| count).map(|(format, _)| format)
    }

    /// Bytes they take in memory when matrices are kept in `dtype` (`None`: as stored).
    pub fn kept_bytes(&self, dtype: Option<DType>) -> u64 {
        let each = |stored: &Stored| match dtype {
            Some(dtype) if !stored.format.is_packed() => (stored.numbers() * dtype.size_in_bytes()) as u64,
            _ => stored.length as u64,
        };
        self.tensors.values().map(|entry| each(&entry.stored)).sum()
    }

    /// Numbers of the largest tensor.
    pub fn largest(&self) -> usize {
        self.tensors.values().map(|entry| entry.stored.numbers()).max().unwrap_or(0)
    }

    /// Whether matrices are given back to the system after every use.
    pub fn is_streamed(&self) -> bool {
        self.residence == Residence::Streamed
    }

    /// Names and where they are, in order.
    pub fn listed(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), &entry.stored))
    }

    /// The tensors with what is done to them, in the order of their names.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Where matrices stay that are not converted.
    pub fn reside(&mut self, residence: Residence) {
        self.residence = residence;
    }

    pub(crate) fn entry_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.tensors.get_mut(name)
    }

    /// Bytes of a tensor as they are in its file.
    pub fn raw(&self, name: &str) -> Option<&[u8]> {
        let entry = self.tensors.get(name)?;
        Some(entry.file.bytes_of(&entry.stored))
    }

    /// The same a piece at a time; memory holds one.
    pub fn raw_pieces<E>(&self, name: &str, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.tensors.get(name).map_or(Ok(()), |entry| entry.file.pieces_of(&entry.stored, take))
    }

    /// Whether a tensor's numbers are others than those in its file: multiplied by factors, or changed by a LoRA.
    pub fn is_changed(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|entry| entry.factors.is_some() || !entry.changes.is_empty())
    }

    /// Tells the system that a tensor's bytes, now read, are not needed in memory.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            entry.file.release(&entry.stored);
        }
    }

    fn found(&self, name: &str) -> navicache_models::Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| self.unreadable(name, "there is no such tensor".to_string()))
    }

    fn unreadable(&self, name: &str, reason: String) -> navicache_models::Error {
        navicache_models::Error::UnreadableWeight { name: name.to_string(), reason, place: self.place(name) }
    }
}

impl Source for Tensors {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|entry| entry.stored.shape.clone())
    }

    fn load(&self, name: &str, dtype: Option<DType>, device: &Device) -> navicache_models::Result<Tensor> {
        let entry = self.found(name)?;
        let tensor = entry.tensor().map_err(|reason| self.unreadable(name, reason))?;
        entry.file.release(&entry.stored);
        let dtype = dtype.or(entry.stored.format.dtype()).unwrap_or(DType::BF16);
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    /// On the CPU a matrix that keeps its format stays in its file: the system's page cache is the only copy. One that
    /// is converted is a tensor, and so is every one on a GPU that has room for all.
    fn matrix(&self, name: &str, dtype: Option<DType>, device: &Device) -> navicache_models::Result<Matrix> {
        let entry = self.found(name)?;
        let format = entry.stored.format;
        let converted = dtype.is_some_and(|dtype| Some(dtype) != format.dtype() || dtype == DType::F32);
        let packed = format.is_packed() || !converted || self.residence == Residence::Streamed;
        if !packed || (!device.is_cpu() && self.residence != Residence::Streamed) {
            return self.load(name, dtype, device).map(Matrix::Dense);
        }
        if format.block().is_none() {
            return Err(self.unreadable(name, format!("expected weights, found {format}")));
        }
        let rounded = dtype.filter(|_| converted && !format.is_packed());
        Ok(Matrix::Packed(Arc::new(InFile {
            name: name.to_string(),
            entry: entry.clone(),
            rounded,
            residence: self.residence,
            device: device.clone(),
        })))
    }

    fn place(&self, name: &str) -> String {
        self.tensors.get(name).map_or_else(|| self.place.clone(), |entry| entry.file.path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, tensors: &[(&str, Tensor)]) {
        let map = tensors.iter().map(|(n, t)| (n.to_string(), t.clone())).collect::<std::collections::HashMap<_, _>>();
        candle_core::safetensors::save(&map, folder.join(file)).unwrap();
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn shards_are_one_set_of_tensors() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "m-1.safetensors", &[("a", tensor(&[1.0, 2.0]))]);
        write(folder.path(), "m-2.safetensors", &[("b", tensor(&[3.0]).to_dtype(DType::BF16).unwrap())]);
        let index = r#"{"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
        std::fs::write(folder.path().join("m.safetensors.index.json"), index).unwrap();
        let files = Tensors::open(folder.path(), "m").unwrap();
        assert_eq!(files.parameters(), 3);
        let read = |name: &str, dtype| files.load(name, dtype, &Device::Cpu).unwrap();
        assert_eq!(read("a", None).to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(read("a", None).to_vec1::<f32>().unwrap(), [1.0, 2.0], "again, after its pages were released");
        assert_eq!(read("b", None).dtype(), DType::BF16);
        assert_eq!(read("b", Some(DType::F32)).to_vec1::<f32>().unwrap(), [3.0]);
        assert!(files.place("b").ends_with("m-2.safetensors"));
        assert!(files.place("c").ends_with("m.safetensors.index.json"));
    }

    #[test]
    fn kernels_of_a_decoder_are_larger_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let tensors = [
            ("encoder.conv.weight", zeros(&[2, 2, 3, 3])),
            ("decoder.conv.weight", zeros(&[2, 5, 3, 3])),
            ("decoder.conv.bias", zeros(&[2])),
            ("post_quant_conv.weight", zeros(&[5, 5, 1, 1, 1])),
        ];
        write(folder.path(), "vae.safetensors", &tensors);
        assert_eq!(Tensors::open(folder.path(), "vae").unwrap().decoder_bytes(), 4 * (160 + 2 + 25));
    }

    #[test]
    fn a_matrix_is_the_same_wherever_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = Tensor::new(&[[1.01f32, -2.5], [3.25, 1e-3], [0.1, 7.0]], &Device::Cpu).unwrap();
        write(
            folder.path(),
            "m.safetensors",
            &[("wide", numbers.clone()), ("narrow", numbers.to_dtype(DType::BF16).unwrap())],
        );
        let mut files = Tensors::open(folder.path(), "m").unwrap();
        for residence in [Residence::Mapped, Residence::Streamed] {
            files.reside(residence);
            for name in ["wide", "narrow"] {
                for dtype in [None, Some(DType::F32), Some(DType::BF16), Some(DType::F16)] {
                    let expected = files.load(name, dtype, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
                    let matrix = files.matrix(name, dtype, &Device::Cpu).unwrap();
                    let all = |t: &Tensor| t.to_vec2::<f32>().unwrap();
                    assert_eq!(all(&matrix.widened(DType::F32).unwrap()), all(&expected));
                    assert_eq!(
                        all(&matrix.rows(&[2, 0]).unwrap()),
                        [all(&expected)[2].clone(), all(&expected)[0].clone()]
                    );
                    let stays = residence == Residence::Streamed
                        || dtype.is_none()
                        || (name == "narrow" && dtype == Some(DType::BF16));
                    assert_eq!(matches!(matrix, Matrix::Packed(_)), stays, "{name} {dtype:?} {residence:?}");
                }
            }
        }
        assert!(files.matrix("wide", None, &Device::Cpu).unwrap().rows(&[3]).is_err());
    }

    #[test]
    fn broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |folder: &Path| Tensors::open(folder, "m").err().unwrap().to_string();
        assert!(error(folder.path()).contains("found neither"));

        write(folder.path(), "m.safetensors", &[("a", tensor(&[1.0; 100]))]);
        let path = folder.path().join("m.safetensors");
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 4, 8, 60, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let message = error(folder.path());
            assert!(message.contains("m.safetensors") && message.contains(&format!("{length} bytes")), "{message}");
        }
        let mut huge_header = whole.clone();
        huge_header[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        std::fs::write(&path, huge_header).unwrap();
        assert!(error(folder.path()).contains("not a whole safetensors file"));

        let escape = r#"{"weight_map": {"a": "../m.safetensors"}}"#;
        std::fs::write(folder.path().join("m.safetensors.index.json"), escape).unwrap();
        assert!(error(folder.path()).contains("same folder"));
    }
}
