//! The files that hold one set of weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file::read_description;

/// Where the factors of 8-bit weights stand whose file this is, if they are in one of their own: `NAME_map.pt` beside
/// `NAME.pt`, as HunyuanVideo's authors publish them.
pub(crate) fn factor_map(weights: &Path) -> Option<PathBuf> {
    let stem = weights.file_stem()?.to_str()?;
    let is_map = stem.ends_with(MAP);
    (weights.extension()? == "pt" && !is_map).then(|| weights.with_file_name(format!("{stem}{MAP}.pt")))
}

/// The weights whose factors a file has.
pub(crate) fn weights_of_map(map: &Path) -> Option<PathBuf> {
    let stem = map.file_stem()?.to_str()?.strip_suffix(MAP)?;
    (map.extension()? == "pt").then(|| map.with_file_name(format!("{stem}.pt")))
}

/// End of the name of a file of factors.
const MAP: &str = "_map";

/// The weights of a component in its folder, and what to call them together: `STEM.safetensors`, the shards that
/// `STEM.safetensors.index.json` lists, or else whatever set of weights there is (`STEM.fp16.safetensors`, shards
/// without an index, `pytorch_model.bin`).
pub(crate) fn stem_files(folder: &Path, stem: &str) -> Result<(String, Vec<PathBuf>)> {
    let single = folder.join(format!("{stem}.safetensors"));
    let index = folder.join(format!("{stem}.safetensors.index.json"));
    if index.exists() {
        return Ok((index.display().to_string(), shards(&index)?));
    }
    if single.exists() {
        return Ok((single.display().to_string(), vec![single]));
    }
    let mut files = Vec::new();
    if folder.is_dir() {
        weight_files(folder, 0, &mut files)?;
    }
    let best = files.iter().filter_map(|file| ending(file)).min();
    let mut groups = groups_of(&files.into_iter().filter(|file| ending(file) == best).collect::<Vec<_>>())?;
    match groups.len() {
        1 => Ok((groups[0][0].display().to_string(), groups.remove(0))),
        0 => {
            let reason = format!("expected {stem}.safetensors or {stem}.safetensors.index.json, found neither");
            Err(Error::file(folder, reason))
        }
        _ => {
            let found: Vec<String> = groups.iter().map(|group| name_of(&group[0])).collect();
            let reason = format!("expected one set of weights, found {}; leave one of them there", found.join(" and "));
            Err(Error::file(folder, reason))
        }
    }
}

/// The files that an index names, each once, in a fixed order.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index =
        serde_json::from_slice(&read_description(index)?).map_err(|e| Error::file(index, e.to_string()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        return Err(Error::file(index, format!("expected names of files in the same folder, found {name:?}")));
    }
    Ok(names.into_iter().map(|name| index.with_file_name(name)).collect())
}

/// Endings of weight files, those first that are taken where there are several.
const ENDINGS: [&str; 7] = ["safetensors", "sft", "gguf", "pth", "pt", "ckpt", "bin"];
/// Folders inside of folders that are searched.
const DEPTH: usize = 2;

/// The weight files at a path, those that belong together in one group.
pub fn groups(path: &Path) -> Result<Vec<Vec<PathBuf>>> {
    if path.is_file() {
        return Ok(vec![group_of(path)?]);
    }
    let mut files = Vec::new();
    weight_files(path, DEPTH, &mut files)?;
    groups_of(&files)
}

fn groups_of(files: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>> {
    let mut groups: Vec<Vec<PathBuf>> = Vec::new();
    for file in files {
        if !groups.iter().any(|group| group.contains(file)) {
            groups.push(group_of(file)?);
        }
    }
    Ok(groups)
}

/// Which of the endings a file has, upper case or not.
fn ending(path: &Path) -> Option<usize> {
    let found = path.extension()?.to_str()?.to_lowercase();
    ENDINGS.iter().position(|ending| *ending == found)
}

fn weight_files(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(Error::io(folder))?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() && depth > 0 {
            weight_files(&path, depth - 1, found)?;
        } else if ending(&path).is_some() && !path.is_dir() {
            found.push(path);
        }
    }
    Ok(())
}

/// A file and the shards beside it: `NAME-00001-of-00003.ENDING`, or those that `NAME.ENDING.index.json` lists. Of a
/// folder, the one set of weights in it.
pub(crate) fn group_of(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        let mut groups = groups(path)?;
        return match groups.len() {
            1 => Ok(groups.remove(0)),
            found => {
                Err(Error::file(path, format!("expected the weights of one component, found {found} sets of them")))
            }
        };
    }
    let name = name_of(path);
    if name.ends_with(".index.json") {
        return shards(path);
    }
    if let Some(weights) = weights_of_map(path).filter(|weights| weights.exists()) {
        return Ok(vec![weights, path.to_path_buf()]);
    }
    let Some((stem, first, count, ending)) = shard_name(&name) else {
        let map = factor_map(path).filter(|map| map.exists());
        return Ok([path.to_path_buf()].into_iter().chain(map).collect());
    };
    let digits = first.len();
    let numbered = |i: usize| path.with_file_name(format!("{stem}-{i:0digits$}-of-{count}{ending}"));
    let all: Vec<PathBuf> = (1..=count.parse().unwrap_or(0)).map(numbered).collect();
    match all.iter().find(|path| !path.exists()) {
        Some(missing) => {
            Err(Error::file(missing, format!("expected {count} shards, this one is missing; download it again")))
        }
        None => Ok(all),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Splits `NAME-00001-of-00003.ENDING`.
fn shard_name(name: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, after) = name.rsplit_once("-of-")?;
    let (stem, first) = before.rsplit_once('-')?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let (count, ending) = after.split_at(digits);
    let numbers = [first, count].iter().all(|n| (1..=5).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()));
    numbers.then_some((stem, first, count, ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert_eq!(shard_name("m-00001-of-00003.safetensors"), Some(("m", "00001", "00003", ".safetensors")));
        assert_eq!(shard_name("wan-Q4_K-00002-of-00002.gguf"), Some(("wan-Q4_K", "00002", "00002", ".gguf")));
        assert_eq!(shard_name("best-of-4.gguf"), None);
        assert_eq!(shard_name("models_t5_umt5-xxl-enc-bf16.pth"), None);
    }
}
