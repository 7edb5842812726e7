//! The tensors of a component, from one file or several, under the names that the models are written in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use navicache_models::{Matrix, Packed, Rows, Source};

use super::file::{Listing, Meta, Stored, WeightFile};
use super::format::{Format, to_f32};
use super::lora::Change;
use super::names::{Recognised, recognise};
use crate::{Error, Result};

/// Named tensors.
#[derive(Debug)]
pub struct Tensors {
    /// What was searched, for messages about missing tensors.
    place: String,
    tensors: BTreeMap<String, Entry>,
    residence: Residence,
}

/// Where matrices that are not converted stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// In the mapped file; the system keeps in memory what there is room for.
    Mapped,
    /// In the file; what was read is given back to the system after every use.
    Streamed,
}

/// A tensor, where it is, and what is done to it when it is read.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    file: Arc<WeightFile>,
    pub stored: Stored,
    /// Factor of all numbers.
    scale: f32,
    pub changes: Vec<Change>,
}

impl Entry {
    /// All numbers, f32, in their order.
    fn values(&self) -> Result<Vec<f32>, String> {
        let mut values = vec![0.0; self.stored.numbers()];
        self.read(&self.stored, &mut values)?;
        for change in &self.changes {
            change.add_to(&mut values)?;
        }
        Ok(values)
    }

    /// Reads a part of them, without changes.
    fn read(&self, part: &Stored, to: &mut [f32]) -> Result<(), String> {
        to_f32(self.file.bytes_of(part), part.format, to)
            .ok_or_else(|| format!("expected f32, f16, bf16, fp8 or a quantised format, found {}", part.format))?;
        if self.scale != 1.0 {
            to.iter_mut().for_each(|value| *value *= self.scale);
        }
        Ok(())
    }

    fn tensor(&self) -> Result<Tensor, String> {
        Tensor::from_vec(self.values()?, self.stored.shape.as_slice(), &Device::Cpu).map_err(|e| e.to_string())
    }
}

impl Tensors {
    /// Opens `STEM.safetensors` of a folder, or the shards that `STEM.safetensors.index.json` lists. Headers and lengths are
    /// checked here, so a truncated file is found before anything is computed.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let (place, paths) = stem_files(folder, stem)?;
        let files = paths.iter().map(|path| WeightFile::map(path)).collect::<Result<Vec<_>>>()?;
        Self::of_files(place, files)
    }

    /// Opens the files of one component, whatever container and names they have, and says what it is.
    pub fn recognised(paths: &[PathBuf]) -> Result<(Recognised, Self)> {
        Found::open(paths).map(|found| (found.recognised, found.tensors))
    }

    /// Opens files under names that `rename` gives; tensors that get none are left out.
    pub(crate) fn with_names(paths: &[PathBuf], rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for path in paths {
            let file = WeightFile::map(path)?;
            let listed = file.list()?.1.tensors.into_iter();
            let listed = listed.filter_map(|(name, stored)| Some((rename(&name)?, stored))).collect();
            add(&mut tensors, &Arc::new(file), listed)?;
        }
        let place = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ");
        Ok(Self { place, tensors, residence: Residence::Mapped })
    }

    /// Reads a file that is part of the program.
    pub(crate) fn embedded(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        Self::of_files(path.display().to_string(), vec![WeightFile::embedded(path, bytes)])
    }

    fn of_files(place: String, files: Vec<WeightFile>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for file in files {
            let listing = file.list()?.1;
            let file = Arc::new(file);
            add(&mut tensors, &file, listing.tensors)?;
        }
        Ok(Self { place, tensors, residence: Residence::Mapped })
    }

    /// Number of scalars in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|entry| entry.stored.numbers() as u64).sum()
    }

    /// Bytes that the decoder of an autoencoder takes on the CPU, all f32: its convolutions keep 16 numbers of a 3x3 kernel for 9.
    pub(crate) fn decoder_bytes(&self) -> u64 {
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
    pub(crate) fn main_format(&self) -> Option<Format> {
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
    pub(crate) fn kept_bytes(&self, dtype: Option<DType>) -> u64 {
        let each = |stored: &Stored| match dtype {
            Some(dtype) if !stored.format.is_packed() => (stored.numbers() * dtype.size_in_bytes()) as u64,
            _ => stored.length as u64,
        };
        self.tensors.values().map(|entry| each(&entry.stored)).sum()
    }

    /// Numbers of the largest tensor.
    pub(crate) fn largest(&self) -> usize {
        self.tensors.values().map(|entry| entry.stored.numbers()).max().unwrap_or(0)
    }

    /// Whether matrices are given back to the system after every use.
    pub(crate) fn is_streamed(&self) -> bool {
        self.residence == Residence::Streamed
    }

    /// Names and where they are, in order.
    pub fn listed(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), &entry.stored))
    }

    /// Where matrices stay that are not converted.
    pub fn reside(&mut self, residence: Residence) {
        self.residence = residence;
    }

    pub(super) fn entry_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.tensors.get_mut(name)
    }

    /// Bytes of a tensor of bytes.
    pub(crate) fn raw(&self, name: &str) -> Option<&[u8]> {
        let entry = self.tensors.get(name)?;
        Some(entry.file.bytes_of(&entry.stored))
    }

    fn found(&self, name: &str) -> navicache_models::Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| self.unreadable(name, "there is no such tensor".to_string()))
    }

    fn unreadable(&self, name: &str, reason: String) -> navicache_models::Error {
        navicache_models::Error::UnreadableWeight { name: name.to_string(), reason, place: self.place(name) }
    }
}

/// A component as it was found: its tensors under canonical names, and what its files said.
pub(crate) struct Found {
    pub recognised: Recognised,
    pub tensors: Tensors,
    /// The first file's; texts in it are read from `file`.
    pub metadata: BTreeMap<String, Meta>,
    pub file: Arc<WeightFile>,
}

impl Found {
    /// Opens a component from its files, whatever container and names they have.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut first = None;
        for path in paths {
            let file = WeightFile::map(path)?;
            let Listing { tensors: mut listed, metadata } = file.list()?.1;
            unfold(&mut listed, &metadata);
            let file = Arc::new(file);
            add(&mut tensors, &file, listed)?;
            first.get_or_insert((file, metadata));
        }
        let Some((file, metadata)) = first else {
            return Err(Error::file("", "expected a weight file, found none"));
        };
        let wrong = |reason: String| Error::file(&file.path, reason);
        let (tensors, scales) = take_scales(tensors, &metadata).map_err(wrong)?;
        let stored = tensors.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect();
        let recognised = recognise(&stored).map_err(wrong)?;
        let tensors = renamed(&recognised, tensors, &scales).map_err(wrong)?;
        let place = file.path.display().to_string();
        let tensors = Tensors { place, tensors, residence: Residence::Mapped };
        Ok(Found { recognised, tensors, metadata, file })
    }
}

fn add(tensors: &mut BTreeMap<String, Entry>, file: &Arc<WeightFile>, listed: BTreeMap<String, Stored>) -> Result<()> {
    for (name, stored) in listed {
        let entry = Entry { file: file.clone(), stored, scale: 1.0, changes: Vec::new() };
        if let Some(other) = tensors.insert(name.clone(), entry) {
            let reason = format!("{name}: there already, in {}", other.file.path.display());
            return Err(Error::file(&file.path, reason));
        }
    }
    Ok(())
}

/// GGUF files for ComfyUI say of tensors that were folded what their shapes were: `comfy.gguf.orig_shape.NAME`.
fn unfold(listed: &mut BTreeMap<String, Stored>, metadata: &BTreeMap<String, Meta>) {
    for (name, stored) in listed {
        if let Some(Meta::Numbers(shape)) = metadata.get(&format!("comfy.gguf.orig_shape.{name}")) {
            let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            if let Some(unfolded) = stored.reshaped(&shape) {
                *stored = unfolded;
            }
        }
    }
}

/// Takes out the factors of 8-bit weights, by the weight that they belong to, and what else is no weight. In files of ComfyUI a
/// factor is `MODULE.scale_weight`, or `MODULE.weight_scale` in newer ones; those of activations have no use here.
#[allow(clippy::type_complexity)]
fn take_scales(
    tensors: BTreeMap<String, Entry>,
    metadata: &BTreeMap<String, Meta>,
) -> Result<(BTreeMap<String, Entry>, BTreeMap<String, f32>), String> {
    if let Some(Meta::Text(text)) = metadata.get("_quantization_metadata") {
        check_formats(&serde_json::from_str(text).map_err(|e| format!("_quantization_metadata: {e}"))?)?;
    }
    let mut scales = BTreeMap::new();
    let mut weights = BTreeMap::new();
    for (name, entry) in tensors {
        let (module, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
        match leaf {
            "scale_weight" | "weight_scale" => {
                let values = entry.values().map_err(|e| format!("{name}: {e}"))?;
                let [scale] = values[..] else {
                    return Err(format!("{name}: expected one factor, found {} of them", values.len()));
                };
                if !scale.is_finite() {
                    return Err(format!("{name}: expected a finite factor, found {scale}"));
                }
                scales.insert(format!("{module}.weight"), scale);
            }
            "comfy_quant" => {
                let said =
                    serde_json::from_slice(entry.file.bytes_of(&entry.stored)).map_err(|e| format!("{name}: {e}"))?;
                check_formats(&said)?;
            }
            "scale_input" | "input_scale" | "scaled_fp8" => {}
            _ => drop(weights.insert(name, entry)),
        }
    }
    Ok((weights, scales))
}

/// Refuses quantisations that would be read as something else.
fn check_formats(said: &serde_json::Value) -> Result<(), String> {
    match said {
        serde_json::Value::Object(fields) => fields.iter().try_for_each(|(key, value)| match (key.as_str(), value) {
            ("format", serde_json::Value::String(format)) if !format.starts_with("float8_e") => {
                Err(format!("quantisation {format:?} is not supported; expected float8_e4m3fn or float8_e5m2"))
            }
            _ => check_formats(value),
        }),
        _ => Ok(()),
    }
}

/// The entries under canonical names. Renaming is told apart from reading, so it sees places only.
fn renamed(
    recognised: &Recognised,
    tensors: BTreeMap<String, Entry>,
    scales: &BTreeMap<String, f32>,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut renamed = BTreeMap::new();
    let places = tensors.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect();
    let modules = recognised.modules(&places);
    for (name, mut entry) in tensors {
        entry.scale = scales.get(&name).copied().unwrap_or(1.0);
        for (canonical, stored) in modules.canonical(&name, entry.stored.clone()).map_err(|e| format!("{name}: {e}"))? {
            if renamed.insert(canonical.clone(), Entry { stored, ..entry.clone() }).is_some() {
                return Err(format!("{canonical}: there twice, the second time as {name}"));
            }
        }
    }
    Ok(renamed)
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

    /// On the CPU a matrix that keeps its format stays in its file: the system's page cache is the only copy. One that is converted
    /// is a tensor, and so is every one on a GPU that has room for all.
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

/// A matrix that stays in its file.
#[derive(Debug)]
struct InFile {
    name: String,
    entry: Entry,
    /// Its numbers are those of this dtype.
    rounded: Option<DType>,
    residence: Residence,
    /// Where it is used.
    device: Device,
}

impl Packed for InFile {
    /// What changes them has to be added to all rows at once.
    fn open(&self) -> navicache_models::Result<Box<dyn Rows + '_>> {
        let stored = &self.entry.stored;
        let &[outputs, inputs] = stored.shape.as_slice() else {
            return Err(self.unreadable(format!("expected a matrix, found {:?}", stored.shape)));
        };
        if self.entry.changes.is_empty() && stored.rows(0, outputs).is_some() {
            return Ok(Box::new(Opened { matrix: self, outputs, inputs, changed: None }));
        }
        let values = self.entry.values().map_err(|reason| self.unreadable(reason))?;
        Ok(Box::new(Opened { matrix: self, outputs, inputs, changed: Some(values) }))
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

impl InFile {
    fn unreadable(&self, reason: String) -> navicache_models::Error {
        let place = self.entry.file.path.display().to_string();
        navicache_models::Error::UnreadableWeight { name: self.name.clone(), reason, place }
    }
}

/// A matrix in a file that is being used.
struct Opened<'a> {
    matrix: &'a InFile,
    outputs: usize,
    inputs: usize,
    /// All its numbers, where rows cannot be read alone.
    changed: Option<Vec<f32>>,
}

impl Opened<'_> {
    /// The rows that `count` numbers are, from the first one on.
    fn rows(&self, first: usize, count: usize) -> candle_core::Result<Stored> {
        let rows = self.matrix.entry.stored.rows(first, count / self.inputs.max(1));
        rows.ok_or_else(|| {
            self.error(format!("expected at most {} rows, found {first} and {count} numbers", self.outputs))
        })
    }

    fn error(&self, reason: String) -> candle_core::Error {
        candle_core::Error::wrap(self.matrix.unreadable(reason))
    }
}

impl Rows for Opened<'_> {
    fn dims(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    fn read(&self, first: usize, to: &mut [f32]) -> candle_core::Result<()> {
        let InFile { entry, rounded, residence, .. } = self.matrix;
        let rows = self.rows(first, to.len())?;
        match &self.changed {
            Some(values) => to.copy_from_slice(&values[first * self.inputs..][..to.len()]),
            None => entry.read(&rows, to).map_err(|reason| self.error(reason))?,
        }
        match rounded {
            Some(DType::BF16) => to.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Some(DType::F16) => to.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            _ => {}
        }
        if *residence == Residence::Streamed {
            entry.file.release(&rows);
        }
        Ok(())
    }

    /// Numbers that are bf16 already are copied.
    fn read_bf16(&self, first: usize, to: &mut [bf16]) -> candle_core::Result<()> {
        let InFile { entry, residence, .. } = self.matrix;
        if entry.stored.format == Format::Bf16 && self.changed.is_none() && entry.scale == 1.0 {
            let rows = self.rows(first, to.len())?;
            for (to, bytes) in to.iter_mut().zip(entry.file.bytes_of(&rows).as_chunks().0) {
                *to = bf16::from_le_bytes(*bytes);
            }
            if *residence == Residence::Streamed {
                entry.file.release(&rows);
            }
            return Ok(());
        }
        let mut wide = vec![0.0; to.len()];
        self.read(first, &mut wide)?;
        to.convert_from_f32_slice(&wide);
        Ok(())
    }
}

/// `STEM.safetensors` of a folder, or the shards that `STEM.safetensors.index.json` lists; and what to call them together.
pub(super) fn stem_files(folder: &Path, stem: &str) -> Result<(String, Vec<PathBuf>)> {
    let single = folder.join(format!("{stem}.safetensors"));
    let index = folder.join(format!("{stem}.safetensors.index.json"));
    if index.exists() {
        return Ok((index.display().to_string(), shards(folder, &index)?));
    }
    if single.exists() {
        return Ok((single.display().to_string(), vec![single]));
    }
    let reason = format!("expected {stem}.safetensors or {stem}.safetensors.index.json, found neither");
    Err(Error::file(folder, reason))
}

/// The files that an index names, each once, in a fixed order.
pub(crate) fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| Error::file(index, e.to_string()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        return Err(Error::file(index, format!("expected names of files in the same folder, found {name:?}")));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
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
