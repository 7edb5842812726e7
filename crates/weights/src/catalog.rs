//! Models that are known by name.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::hub_cache::HubCache;

/// A published model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What it is called here.
    pub name: String,
    /// What it makes.
    pub what: String,
    /// Its repositories on the hub, `OWNER/NAME`.
    pub repositories: Vec<String>,
    /// What it is made of.
    pub parts: Vec<ModelPart>,
}

/// A part of a model, by the numbers in its file. Parameters follow from the published configurations; formats are
/// those of the authors' files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    /// transformer, text encoder, image encoder or vae.
    pub part: String,
    /// Number of scalars.
    pub parameters: u64,
    /// Bytes of each in the file.
    pub bytes_each: u64,
}

impl Model {
    /// About the bytes of its files.
    pub fn disk_bytes(&self) -> u64 {
        self.parts.iter().map(ModelPart::bytes).sum()
    }

    /// Bytes of the largest part: what memory holds when nothing is streamed, beside the activations. Parts are loaded
    /// one after another.
    pub fn largest_part_bytes(&self) -> u64 {
        self.parts.iter().map(ModelPart::bytes).max().unwrap_or(0)
    }
}

impl Model {
    /// Where its files are, if all its repositories have been downloaded.
    pub fn paths(&self, cache: &HubCache) -> Option<Vec<String>> {
        let snapshots = self.repositories.iter().map(|repository| cache.snapshot(repository));
        snapshots.map(|path| Some(path?.display().to_string())).collect()
    }

    /// As an object for programs.
    pub fn to_json(&self, cache: &HubCache) -> Value {
        json!({
            "name": self.name, "what": self.what, "repositories": self.repositories, "parts": self.parts,
            "disk_bytes": self.disk_bytes(), "largest_part_bytes": self.largest_part_bytes(),
            "paths": self.paths(cache),
        })
    }
}

impl ModelPart {
    fn bytes(&self) -> u64 {
        self.parameters * self.bytes_each
    }
}

/// All of them.
pub fn models() -> &'static [Model] {
    static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
        // A part of the program; a test reads it.
        serde_json::from_str(include_str!("catalog.json")).unwrap_or_default()
    });
    &MODELS
}

/// The repositories that a name stands for: a known model's, or the name itself if it looks like one, or none.
pub fn repositories(name: &str) -> Vec<&str> {
    if let Some(model) = models().iter().find(|model| model.name == name) {
        return model.repositories.iter().map(String::as_str).collect();
    }
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split_once('/').filter(|(owner, name)| is_part(owner) && is_part(name)).map(|_| name).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_repositories() {
        assert_eq!(models().len(), 7);
        assert_eq!(repositories("wan2.1-t2v-1.3b"), ["Wan-AI/Wan2.1-T2V-1.3B"]);
        assert_eq!(repositories("open-sora-1.2").len(), 3);
        assert_eq!(repositories("city96/Wan2.1-T2V-14B-gguf"), ["city96/Wan2.1-T2V-14B-gguf"]);
        for wrong in ["", "wan", "a/b/c", "../x", "a/..", "/a", "a/", "a b/c"] {
            assert!(repositories(wrong).is_empty(), "{wrong}");
        }
        // 1.42 billion f32, 5.7 billion bf16, 0.13 billion f32.
        assert_eq!(models()[0].disk_bytes() / 1_000_000_000, 17);
    }
}
