//! A folder of files, on disk or inside the program, so that the embedded model is read by the same code as any other.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::component::Component;
use crate::error::{Error, Result};
use crate::file::read_description;
use crate::found::Found;
use crate::shards::stem_files;
use crate::tensors::Tensors;

/// A pipeline's folder.
pub enum Folder {
    /// On disk.
    Disk(PathBuf),
    /// In the program: (path inside the folder, content).
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Folder {
    /// How a file of this folder is called in messages.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Folder::Disk(folder) => folder.join(file),
            Folder::Embedded(_) => Path::new("(embedded)").join(file),
        }
    }

    /// Whether there is such a file.
    pub fn contains(&self, file: &str) -> bool {
        match self {
            Folder::Disk(folder) => folder.join(file).exists(),
            Folder::Embedded(files) => files.iter().any(|(path, _)| *path == file),
        }
    }

    /// A file's content.
    pub fn bytes(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Folder::Disk(folder) => read_description(&folder.join(file)).map(Cow::Owned),
            Folder::Embedded(files) => files
                .iter()
                .find(|(path, _)| *path == file)
                .map(|(_, bytes)| Cow::Borrowed(*bytes))
                .ok_or_else(|| Error::file(self.path(file), "there is no such file")),
        }
    }

    /// A JSON file.
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        serde_json::from_slice(&self.bytes(file)?).map_err(|e| Error::file(self.path(file), e.to_string()))
    }

    /// The tensors of a component: `FOLDER/STEM.safetensors`, or its shards.
    pub fn tensors(&self, component: &str, stem: &str, expected: Component) -> Result<Tensors> {
        match self {
            Folder::Disk(folder) => {
                let folder = folder.join(component);
                let found = Found::open(&stem_files(&folder, stem)?.1)?;
                match found.recognised.component {
                    component if component == expected => Ok(found.tensors),
                    component => Err(Error::file(folder, format!("expected {expected}, found {component}"))),
                }
            }
            Folder::Embedded(files) => {
                let file = format!("{component}/{stem}.safetensors");
                let found = files.iter().find(|(path, _)| *path == file);
                let (_, bytes) = found.ok_or_else(|| Error::file(self.path(&file), "there is no such file"))?;
                Tensors::embedded(&self.path(&file), bytes)
            }
        }
    }
}
