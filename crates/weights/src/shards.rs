//! The files that hold one set of weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// `STEM.safetensors` of a folder, or the shards that `STEM.safetensors.index.json` lists; and what to call them
/// together.
pub(crate) fn stem_files(folder: &Path, stem: &str) -> Result<(String, Vec<PathBuf>)> {
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
