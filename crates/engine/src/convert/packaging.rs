//! What a file is written as.

use std::path::Path;

/// What a file is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packaging {
    /// safetensors under Diffusers' names.
    Safetensors,
    /// GGUF, as ComfyUI's loaders read it: Wan under its authors' names.
    Gguf,
}

impl Packaging {
    /// By the ending of a file's name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_lowercase().as_str() {
            "safetensors" => Some(Packaging::Safetensors),
            "gguf" => Some(Packaging::Gguf),
            _ => None,
        }
    }
}
