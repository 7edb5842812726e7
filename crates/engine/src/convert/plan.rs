//! What becomes of every tensor: its name, its shape and the format of its numbers.

use candle_core::quantized::GgmlDType;
use navicache_weights::{Component, Format, Found, Stored, authors_name};

use super::packaging::Packaging;

/// What becomes of a tensor.
pub(super) struct Plan {
    /// Its name where it is read.
    pub name: String,
    /// Its name where it is written.
    pub to: String,
    pub shape: Vec<usize>,
    pub format: Format,
    /// Whether its bytes are copied as they are.
    pub copied: bool,
    /// Bytes of its numbers. Rows are whole blocks.
    pub bytes: usize,
}

impl Plan {
    /// Numbers in a row.
    pub fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Numbers up to which a tensor is too small to be worth narrowing, as in ComfyUI's GGUF files.
const SMALL: usize = 1024;

/// Plans all tensors of a set in the order of their names, and says what is not as it was asked for. `numbers`: what
/// matrices of the blocks are to be.
pub(super) fn of(
    found: &Found,
    packaging: Packaging,
    numbers: Option<Format>,
) -> Result<(Vec<Plan>, Vec<String>), String> {
    let component = found.recognised.component;
    if packaging == Packaging::Safetensors && matches!(numbers, Some(Format::Quantized(_))) {
        return Err("quantised numbers are written as GGUF; take the name of a .gguf file".to_string());
    }
    let mut plans = Vec::new();
    let mut wider = Vec::new();
    for (name, stored) in found.tensors.listed() {
        let as_is = !found.tensors.is_changed(name);
        let wanted = match numbers {
            // As ComfyUI's loaders want them: vectors, tables and the patch embedding.
            _ if packaging == Packaging::Gguf && (stored.shape.len() != 2 || stored.numbers() <= SMALL) => Format::F32,
            Some(format) if is_matrix(name, stored) => format,
            _ => stored.format,
        };
        let format = writable(wanted, stored, packaging, as_is);
        if !packaging.has(format) {
            return Err(format!("{name}: {format} has no place in {packaging} files"));
        }
        let copied = format == stored.format && as_is;
        let (block, size) = format.block().unwrap_or((1, 1));
        if format != wanted && is_matrix(name, stored) && numbers.is_some() {
            wider.push(format!("{name} ({format})"));
        }
        plans.push(Plan {
            to: match packaging {
                Packaging::Safetensors => name.to_string(),
                Packaging::Gguf => authors_name(component, name),
            },
            name: name.to_string(),
            shape: stored.shape.clone(),
            copied,
            bytes: if copied { stored.length } else { stored.numbers() / block * size },
            format,
        });
    }
    // Wide numbers first, so that all are aligned.
    plans.sort_by_key(|plan| std::cmp::Reverse(plan.format.block().map_or(8, |(_, size)| size)));
    let is_wan = matches!(component, Component::WanTransformer | Component::WanLowNoise);
    let mut notes = Vec::new();
    if packaging == Packaging::Gguf && !is_wan {
        notes.push("under Diffusers' names, which not all programs look for in GGUF files".to_string());
    }
    if let Some(first) = wider.first() {
        notes.push(format!(
            "{} matrices have rows that are no whole blocks, and were written wider, as {first}",
            wider.len()
        ));
    }
    Ok((plans, notes))
}

/// Whether it is a matrix of the blocks: most of a transformer, and what quantised files narrow.
fn is_matrix(name: &str, stored: &Stored) -> bool {
    stored.shape.len() == 2 && stored.numbers() > SMALL && name.contains("blocks.") && name.ends_with(".weight")
}

/// The nearest format that a tensor can be written in.
fn writable(wanted: Format, stored: &Stored, packaging: Packaging, as_is: bool) -> Format {
    let fits = |format: Format| {
        let (block, _) = format.block().unwrap_or((1, 1));
        stored.shape.last().is_some_and(|row| row.is_multiple_of(block))
    };
    let q8 = Format::Quantized(GgmlDType::Q8_0);
    match (wanted, packaging) {
        (Format::Quantized(_), Packaging::Gguf) if fits(wanted) => wanted,
        (Format::Quantized(_), Packaging::Gguf) if fits(q8) => q8,
        (Format::Quantized(_), Packaging::Gguf) => Format::F32,
        (Format::F8E4m3 | Format::F8E5m2, Packaging::Safetensors) if as_is => wanted,
        (Format::Quantized(_) | Format::F8E4m3 | Format::F8E5m2 | Format::I8, Packaging::Safetensors) => Format::Bf16,
        (Format::F8E4m3 | Format::F8E5m2 | Format::I8, Packaging::Gguf) => Format::F16,
        (Format::F64, _) => Format::F32,
        _ => wanted,
    }
}
