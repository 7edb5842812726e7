//! Containers of tensors, recognised by their first bytes: a function each from all bytes to a [`Listing`].

mod gguf;
mod safetensors;
mod torch;

use std::path::Path;

pub use gguf::ggml_kind;
pub use safetensors::safetensors_dtype;

use crate::error::{Error, Result};
use crate::file::{Listing, WeightFile};

/// The containers that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// Safetensors.
    Safetensors,
    /// As PyTorch writes it: a pickle that describes tensors, and their bytes, in a zip archive; or one after the
    /// other, as until 2020.
    Torch,
    /// GGUF.
    Gguf,
}

impl std::fmt::Display for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Container::Safetensors => "safetensors",
            Container::Torch => "PyTorch",
            Container::Gguf => "GGUF",
        })
    }
}

/// Reads the list of tensors of a weight file from all its bytes; no tensor is read. The container is recognised by its
/// first bytes. The error is a reason without the file's name.
pub fn list(bytes: &[u8]) -> Result<(Container, Listing), String> {
    match bytes {
        [b'G', b'G', b'U', b'F', ..] => Ok((Container::Gguf, gguf::list(bytes)?)),
        [b'P', b'K', 3, 4, ..] => Ok((Container::Torch, torch::list(bytes)?)),
        _ if bytes.starts_with(torch::MAGIC) => Ok((Container::Torch, torch::list_old(bytes)?)),
        [_, _, _, _, _, _, _, _, b'{', ..] => Ok((Container::Safetensors, safetensors::list(bytes)?)),
        _ => Err(what_else(bytes)),
    }
}

/// The same of a file on disk.
pub fn list_file(path: &Path) -> Result<(Container, Listing)> {
    open(&WeightFile::map(path)?)
}

/// The same of a file that is mapped.
pub fn open(file: &WeightFile) -> Result<(Container, Listing)> {
    list(file.bytes()).map_err(|reason| Error::file(&file.path, reason))
}

/// What a file that holds no weights is most likely to be.
fn what_else(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).trim_start().to_lowercase();
    let found = match bytes {
        [] => "an empty file; download it again",
        _ if text.starts_with("version https://git-lfs") => "a pointer of Git LFS; run `git lfs pull` in its folder",
        _ if text.starts_with('<') => "a web page; download the file itself",
        [0x80, 2..=5, ..] => "a pickle that PyTorch did not write; save it again with torch.save, or as safetensors",
        [0, 0, 0, 0, ..] => "a file that begins with zeros; download it again",
        _ => "something else; is it a weight file, and whole?",
    };
    format!("expected safetensors, a PyTorch file or GGUF, found {found} ({} bytes)", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_weight_file_is_named() {
        let reason = |bytes: &[u8]| list(bytes).unwrap_err();
        assert!(reason(b"").contains("an empty file"));
        assert!(reason(b"<!DOCTYPE html><html>").contains("a web page"));
        assert!(reason(b"version https://git-lfs.github.com/spec/v1\noid sha256:").contains("git lfs pull"));
        assert!(reason(b"\x80\x02}q\x00.").contains("a pickle"));
        assert!(reason(&[0; 64]).contains("begins with zeros"));
        assert!(reason(b"hello").contains("something else"));
    }
}
