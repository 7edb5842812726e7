//! What a file is written as.

use std::fmt;
use std::path::Path;

use navicache_weights::{Format, ggml_kind, safetensors_dtype};

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

    /// Whether numbers of a format can stand in it.
    pub fn has(self, format: Format) -> bool {
        match self {
            Packaging::Safetensors => safetensors_dtype(format).is_some(),
            Packaging::Gguf => ggml_kind(format).is_some(),
        }
    }
}

impl fmt::Display for Packaging {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Packaging::Safetensors => "safetensors",
            Packaging::Gguf => "GGUF",
        })
    }
}
