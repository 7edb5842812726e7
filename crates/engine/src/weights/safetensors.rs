//! Safetensors files, mapped into memory, alone or sharded with an index.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// The tensors of one or more safetensors files.
pub struct SafetensorsFiles {
    /// What is searched, for messages about missing tensors.
    place: String,
    files: Vec<File>,
    tensors: BTreeMap<String, Entry>,
}

struct File {
    path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

struct Entry {
    file: usize,
    start: usize,
    length: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl SafetensorsFiles {
    /// Opens `STEM.safetensors` of a folder, or the shards that `STEM.safetensors.index.json` lists. Headers and lengths are
    /// checked here, so a truncated file is found before anything is computed.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let single = folder.join(format!("{stem}.safetensors"));
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        let (place, paths) = if index.exists() {
            (index.display().to_string(), shards(folder, &index)?)
        } else if single.exists() {
            (single.display().to_string(), vec![single])
        } else {
            let reason = format!("expected {stem}.safetensors or {stem}.safetensors.index.json, found neither");
            return Err(Error::file(folder, reason));
        };
        let files = paths.into_iter().map(|path| Ok(File { bytes: map(&path)?, path })).collect::<Result<Vec<_>>>()?;
        Self::read(place, files)
    }

    /// Reads a file that is part of the program.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::read(name.to_string(), vec![File { path: name.into(), bytes: Bytes::Static(bytes) }])
    }

    fn read(place: String, files: Vec<File>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (file, File { path, bytes }) in files.iter().enumerate() {
            let bytes = bytes.as_slice();
            let header = SafeTensors::deserialize(bytes).map_err(|e| {
                Error::file(
                    path,
                    format!("not a whole safetensors file of {} bytes ({e}); download it again", bytes.len()),
                )
            })?;
            for (name, view) in header.iter() {
                let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                let (length, dtype, shape) = (view.data().len(), view.dtype(), view.shape().to_vec());
                tensors.insert(name.to_string(), Entry { file, start, length, dtype, shape });
            }
        }
        Ok(Self { place, files, tensors })
    }

    /// Number of scalars in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    fn path_of(&self, entry: &Entry) -> String {
        self.files[entry.file].path.display().to_string()
    }

    /// Tells the system that a tensor's pages, now copied, are not needed in memory: the peak is one copy, not two.
    fn release(&self, entry: &Entry) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.files[entry.file].bytes {
            release_pages(map, entry.start, entry.length);
        }
    }
}

impl navicache_models::Source for SafetensorsFiles {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.shape.clone())
    }

    fn load(&self, name: &str, dtype: Option<DType>, device: &Device) -> navicache_models::Result<Tensor> {
        let unreadable = |reason: String| {
            let place = self.place(name);
            navicache_models::Error::UnreadableWeight { name: name.to_string(), reason, place }
        };
        let entry = self.tensors.get(name).ok_or_else(|| unreadable("there is no such tensor".to_string()))?;
        let stored = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => return Err(unreadable(format!("expected f32, f16 or bf16, found {other:?}"))),
        };
        let bytes = &self.files[entry.file].bytes.as_slice()[entry.start..entry.start + entry.length];
        let tensor = Tensor::from_raw_buffer(bytes, stored, &entry.shape, &Device::Cpu)?;
        self.release(entry);
        let tensor = match dtype {
            Some(dtype) => tensor.to_dtype(dtype)?,
            None => tensor,
        };
        Ok(tensor.to_device(device)?)
    }

    fn place(&self, name: &str) -> String {
        self.tensors.get(name).map_or_else(|| self.place.clone(), |entry| self.path_of(entry))
    }
}

/// The files that an index names, each once, in a fixed order.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
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

#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Bytes> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is read-only. Should another process shorten or rewrite the file meanwhile, the system ends this one or
    // the weights change; both are the reader's risk with any mapped file, and copying gigabytes first would be worse.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Bytes::Mapped(map))
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn release_pages(map: &memmap2::Mmap, start: usize, length: usize) {
    // SAFETY: the map is read-only and backed by a file, so that dropped pages are read again when they are touched again.
    // A failure only means that more memory stays in use.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use navicache_models::Source;

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
        let files = SafetensorsFiles::open(folder.path(), "m").unwrap();
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
    fn broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |folder: &Path| SafetensorsFiles::open(folder, "m").err().unwrap().to_string();
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
