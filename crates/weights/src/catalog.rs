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
    /// That of its weights, where it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// What it is made of.
    pub parts: Vec<ModelPart>,
    /// What its work follows from, where attention is among all tokens.
    #[serde(default)]
    pub shape: Option<Shape>,
}

/// The transformer's shape, and the video that a model makes where nothing else is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Frames.
    pub frames: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Forwards of a step: two with classifier-free guidance.
    pub forwards: usize,
    /// What a token stands for: frames, rows and columns of the video.
    pub stride: [usize; 3],
    /// Channels of a token.
    pub dim: usize,
    /// Attentions among all tokens.
    pub layers: usize,
}

impl Shape {
    /// Tokens of a video. The first frame has latents of its own.
    pub fn tokens(&self, width: usize, height: usize, frames: usize) -> usize {
        let [of_frames, of_rows, of_columns] = self.stride;
        (frames.saturating_sub(1) / of_frames + 1) * height.div_ceil(of_rows) * width.div_ceil(of_columns)
    }
}

/// A part of a model, by the numbers in its file. Parameters follow from the published configurations; formats are
/// those of the authors' files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    /// transformer, second transformer, text encoder, image encoder or vae.
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

    /// Bytes that what is here of it takes, whole or in part.
    pub fn here_bytes(&self, cache: &HubCache) -> u64 {
        self.repositories.iter().map(|repository| cache.bytes(repository)).sum()
    }

    /// As an object for programs.
    pub fn to_json(&self, cache: &HubCache) -> Value {
        json!({
            "name": self.name, "what": self.what, "repositories": self.repositories, "parts": self.parts,
            "licence": self.licence,
            "disk_bytes": self.disk_bytes(), "largest_part_bytes": self.largest_part_bytes(),
            "here_bytes": self.here_bytes(cache), "paths": self.paths(cache),
        })
    }

    /// Floating point operations of one forward over so many tokens: those of the matrices, each token meeting every
    /// weight once, and of attention. `None` where the shape is not known.
    pub fn forward_flop(&self, tokens: usize) -> Option<f64> {
        let (shape, n) = (self.shape.as_ref()?, tokens as f64);
        let transformer = self.parts.iter().find(|part| part.part == "transformer")?;
        Some(2.0 * n * transformer.parameters as f64 + 4.0 * n * n * (shape.dim * shape.layers) as f64)
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
        assert_eq!(models().len(), 14);
        assert_eq!(repositories("wan2.1-t2v-1.3b"), ["Wan-AI/Wan2.1-T2V-1.3B"]);
        assert_eq!(repositories("open-sora-1.2").len(), 3);
        assert_eq!(repositories("city96/Wan2.1-T2V-14B-gguf"), ["city96/Wan2.1-T2V-14B-gguf"]);
        for wrong in ["", "wan", "a/b/c", "../x", "a/..", "/a", "a/", "a b/c"] {
            assert!(repositories(wrong).is_empty(), "{wrong}");
        }
        // 81 frames of 832x480: 21 of 30 x 52 tokens; 2 x 32760 x 1.42e9 of matrices, 4 x 32760^2 x 1536 x 30 of
        // attention.
        let shape = models()[0].shape.as_ref().unwrap();
        assert_eq!(shape.tokens(shape.width, shape.height, shape.frames), 32760);
        let flop = models()[0].forward_flop(32760).unwrap();
        assert!((flop / 1e12 - (92.97 + 197.82)).abs() < 0.1, "{flop}");
        // 1.42 billion f32, 5.7 billion bf16, 0.13 billion f32.
        assert_eq!(models()[0].disk_bytes() / 1_000_000_000, 17);
    }
}
