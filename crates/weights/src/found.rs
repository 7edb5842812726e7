//! A component as it was found: recognised, its 8-bit weights scaled, its tensors under canonical names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container;
use crate::entry::{Entry, add};
use crate::error::{Error, Result};
use crate::file::{Listing, Meta, Stored, WeightFile};
use crate::names::{Recognised, recognise};
use crate::tensors::Tensors;

/// A component as it was found: its tensors under canonical names, and what its files said.
pub struct Found {
    /// What it is.
    pub recognised: Recognised,
    /// Its tensors.
    pub tensors: Tensors,
    /// The first file's; texts in it are read from `file`.
    pub metadata: BTreeMap<String, Meta>,
    /// The first file.
    pub file: Arc<WeightFile>,
}

impl Found {
    /// Opens a component from its files, whatever container and names they have.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut first = None;
        for path in paths {
            let file = WeightFile::map(path)?;
            let Listing { tensors: mut listed, metadata } = container::open(&file)?.1;
            unfold(&mut listed, &metadata);
            let file = Arc::new(file);
            add(&mut tensors, &file, listed)?;
            first.get_or_insert((file, metadata));
        }
        let Some((file, metadata)) = first else {
            return Err(Error::file("", "expected a weight file, found none"));
        };
        let wrong = |reason: String| Error::file(&file.path, reason);
        let (tensors, scales) = take_scales(tensors, &metadata).map_err(wrong)?;
        let stored = tensors.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect();
        let recognised = recognise(&stored).map_err(wrong)?;
        let tensors = renamed(&recognised, tensors, &scales).map_err(wrong)?;
        let place = file.path.display().to_string();
        let tensors = Tensors::of_entries(place, tensors);
        Ok(Found { recognised, tensors, metadata, file })
    }
}

/// GGUF files for ComfyUI say of tensors that were folded what their shapes were: `comfy.gguf.orig_shape.NAME`.
fn unfold(listed: &mut BTreeMap<String, Stored>, metadata: &BTreeMap<String, Meta>) {
    for (name, stored) in listed {
        if let Some(Meta::Numbers(shape)) = metadata.get(&format!("comfy.gguf.orig_shape.{name}")) {
            let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            if let Some(unfolded) = stored.reshaped(&shape) {
                *stored = unfolded;
            }
        }
    }
}

/// Takes out the factors of 8-bit weights, by the weight that they belong to, and what else is no weight. In files of
/// ComfyUI a factor is `MODULE.scale_weight`, or `MODULE.weight_scale` in newer ones; those of activations have no use
/// here.
#[allow(clippy::type_complexity)]
fn take_scales(
    tensors: BTreeMap<String, Entry>,
    metadata: &BTreeMap<String, Meta>,
) -> Result<(BTreeMap<String, Entry>, BTreeMap<String, f32>), String> {
    if let Some(Meta::Text(text)) = metadata.get("_quantization_metadata") {
        check_formats(&serde_json::from_str(text).map_err(|e| format!("_quantization_metadata: {e}"))?)?;
    }
    let mut scales = BTreeMap::new();
    let mut weights = BTreeMap::new();
    for (name, entry) in tensors {
        let (module, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
        match leaf {
            "scale_weight" | "weight_scale" => {
                let values = entry.values().map_err(|e| format!("{name}: {e}"))?;
                let [scale] = values[..] else {
                    return Err(format!("{name}: expected one factor, found {} of them", values.len()));
                };
                if !scale.is_finite() {
                    return Err(format!("{name}: expected a finite factor, found {scale}"));
                }
                scales.insert(format!("{module}.weight"), scale);
            }
            "comfy_quant" => {
                let said =
                    serde_json::from_slice(entry.file.bytes_of(&entry.stored)).map_err(|e| format!("{name}: {e}"))?;
                check_formats(&said)?;
            }
            "scale_input" | "input_scale" | "scaled_fp8" => {}
            _ => drop(weights.insert(name, entry)),
        }
    }
    Ok((weights, scales))
}

/// Refuses quantisations that would be read as something else.
fn check_formats(said: &serde_json::Value) -> Result<(), String> {
    match said {
        serde_json::Value::Object(fields) => fields.iter().try_for_each(|(key, value)| match (key.as_str(), value) {
            ("format", serde_json::Value::String(format)) if !format.starts_with("float8_e") => {
                Err(format!("quantisation {format:?} is not supported; expected float8_e4m3fn or float8_e5m2"))
            }
            _ => check_formats(value),
        }),
        _ => Ok(()),
    }
}

/// The entries under canonical names. Renaming is told apart from reading, so it sees places only.
fn renamed(
    recognised: &Recognised,
    tensors: BTreeMap<String, Entry>,
    scales: &BTreeMap<String, f32>,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut renamed = BTreeMap::new();
    let places = tensors.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect();
    let modules = recognised.modules(&places);
    for (name, mut entry) in tensors {
        entry.scale = scales.get(&name).copied().unwrap_or(1.0);
        for (canonical, stored) in modules.canonical(&name, entry.stored.clone()).map_err(|e| format!("{name}: {e}"))? {
            if renamed.insert(canonical.clone(), Entry { stored, ..entry.clone() }).is_some() {
                return Err(format!("{canonical}: there twice, the second time as {name}"));
            }
        }
    }
    Ok(renamed)
}
