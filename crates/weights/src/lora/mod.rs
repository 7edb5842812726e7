//! LoRA files (Hu et al. 2021, arXiv 2106.09685): small matrices whose product is added to those of a model,
//! `W + weight * alpha / rank * B A`.
//!
//! The change is added in f32 when a matrix is read: once for those that are kept as tensors, at every use for those
//! that stay in their file, so that quantised matrices stay quantised.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{Device, Tensor};

use crate::change::Change;
use crate::container;
use crate::error::{Error, Result};
use crate::file::{Stored, WeightFile};
use crate::names::table::{Table, Way, translate};
use crate::names::{hunyuan, wan};
use crate::tensors::Tensors;

/// A LoRA file, and how much of it is added.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The file.
    pub path: PathBuf,
    /// 1 is as it was trained.
    pub weight: f64,
}

impl FromStr for Lora {
    type Err = Error;

    /// `FILE` or `FILE:WEIGHT`.
    fn from_str(text: &str) -> Result<Self> {
        if let Some((path, weight)) = text.rsplit_once(':')
            && let Ok(weight) = weight.parse::<f64>()
        {
            return match weight.is_finite() && !path.is_empty() {
                true => Ok(Lora { path: path.into(), weight }),
                false => Err(Error::Lora { found: text.to_string() }),
            };
        }
        Ok(Lora { path: text.into(), weight: 1.0 })
    }
}

/// What a file holds for one module.
#[derive(Default)]
struct Parts {
    down: Option<Tensor>,
    up: Option<Tensor>,
    alpha: Option<f64>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

/// What stands before the modules' names.
const PREFIXES: [&str; 6] =
    ["base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_transformer.", "unet."];

/// Other names of modules.
const TABLES: [Table; 2] = [wan::TRANSFORMER, hunyuan::TRANSFORMER];

/// Ends of names, and what they are.
const LEAVES: [(&str, Leaf); 14] = [
    (".lora_A.weight", Leaf::Down),
    (".lora_A.default.weight", Leaf::Down),
    (".lora_down.weight", Leaf::Down),
    (".lora.down.weight", Leaf::Down),
    (".lora_B.weight", Leaf::Up),
    (".lora_B.default.weight", Leaf::Up),
    (".lora_up.weight", Leaf::Up),
    (".lora.up.weight", Leaf::Up),
    (".alpha", Leaf::Alpha),
    (".diff", Leaf::Weight),
    (".diff_b", Leaf::Bias),
    (".lora_B.bias", Leaf::Unknown),
    (".dora_scale", Leaf::Unknown),
    (".lora_mid.weight", Leaf::Unknown),
];

#[derive(Debug, Clone, Copy)]
enum Leaf {
    Down,
    Up,
    Alpha,
    /// Added to the module's weight as it is.
    Weight,
    /// Added to its bias as it is.
    Bias,
    /// Of a kind of change that is not done here.
    Unknown,
}

/// Adds a LoRA to the tensors of a transformer. Gives the modules that this model does not have.
pub fn add(tensors: &mut Tensors, lora: &Lora) -> Result<Vec<String>> {
    let path = &lora.path;
    let wrong = |reason: String| Error::file(path, reason);
    let file = WeightFile::map(path)?;
    let (_, listing) = container::open(&file)?;
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, stored) in &listing.tensors {
        let Some((module, leaf)) = LEAVES.iter().find_map(|(end, leaf)| Some((name.strip_suffix(end)?, *leaf))) else {
            return Err(wrong(format!(
                "{name}: expected a LoRA (lora_A and lora_B, lora_down and lora_up, alpha, diff), found this"
            )));
        };
        let parts = modules.entry(module.to_string()).or_default();
        match leaf {
            Leaf::Unknown => return Err(wrong(format!("{name}: this kind of LoRA is not supported"))),
            Leaf::Down => parts.down = Some(read(&file, name, stored)?),
            Leaf::Up => parts.up = Some(read(&file, name, stored)?),
            Leaf::Weight => parts.weight = Some(read(&file, name, stored)?),
            Leaf::Bias => parts.bias = Some(read(&file, name, stored)?),
            Leaf::Alpha => {
                let alpha = read(&file, name, stored)?.flatten_all()?.to_vec1::<f32>()?;
                parts.alpha = alpha.first().map(|&alpha| alpha as f64);
            }
        }
    }

    let names = Names::of(tensors);
    let mut unknown = Vec::new();
    let count = modules.len();
    for (module, parts) in modules {
        match names.canonical(&module) {
            Some(canonical) => change_all(tensors, canonical, parts, lora.weight)
                .map_err(|reason| wrong(format!("{module}: {reason}")))?,
            None => unknown.push(module),
        }
    }
    if unknown.len() == count {
        let first = unknown.first().map_or("(none)", String::as_str);
        return Err(wrong(format!("none of its {count} modules is in this model; the first is {first}")));
    }
    Ok(unknown)
}

/// Changes one module, or several that the LoRA has as one: its rows are theirs, one after another.
fn change_all(tensors: &mut Tensors, modules: &[String], parts: Parts, weight: f64) -> Result<(), String> {
    let [first, others @ ..] = modules else { return Ok(()) };
    if others.is_empty() {
        return change(tensors, first, parts, weight);
    }
    let mut begin = 0;
    for module in modules {
        let shape = tensors.entry_mut(&format!("{module}.weight")).map(|entry| entry.stored.shape.clone());
        let rows = shape.and_then(|shape| shape.first().copied()).unwrap_or(0);
        let part = |tensor: &Option<Tensor>| -> Result<Option<Tensor>, String> {
            let narrowed = tensor.as_ref().map(|tensor| tensor.narrow(0, begin, rows)?.contiguous()).transpose();
            narrowed.map_err(|_| format!("expected rows for {} modules, found {tensor:?}", modules.len()))
        };
        let of_module = Parts {
            down: parts.down.clone(),
            up: part(&parts.up)?,
            alpha: parts.alpha,
            weight: part(&parts.weight)?,
            bias: part(&parts.bias)?,
        };
        change(tensors, module, of_module, weight)?;
        begin += rows;
    }
    match parts.up.map(|up| up.dims().first().copied().unwrap_or(0)) {
        Some(found) if found != begin => Err(format!("expected {begin} rows, found {found}")),
        _ => Ok(()),
    }
}

fn change(tensors: &mut Tensors, module: &str, parts: Parts, weight: f64) -> Result<(), String> {
    let mut add = |name: String, change: Change, shape: &[usize]| {
        let entry = tensors.entry_mut(&name).ok_or_else(|| format!("{name} is not in this model"))?;
        let found = &entry.stored.shape;
        let matches = match &change {
            Change::Product { .. } => {
                found.first() == shape.first() && found.iter().skip(1).product::<usize>() == shape[1]
            }
            Change::Sum { .. } => found == shape,
        };
        if !matches {
            return Err(format!("expected {found:?}, the shape of {name}, found a change of {shape:?}"));
        }
        entry.changes.push(change);
        Ok(())
    };
    match (parts.up, parts.down) {
        (Some(up), Some(down)) => {
            let flat = |t: Tensor| t.flatten_from(1).map_err(|e| format!("expected a matrix, found {e}"));
            let (up, down) = (flat(up)?, flat(down)?);
            let (rank, inputs) = down.dims2().map_err(|e| e.to_string())?;
            let (outputs, columns) = up.dims2().map_err(|e| e.to_string())?;
            if columns != rank || rank == 0 {
                return Err(format!(
                    "expected matrices (out, rank) and (rank, in), found {:?} and {:?}",
                    up.dims(),
                    down.dims()
                ));
            }
            let factor = weight * parts.alpha.map_or(1.0, |alpha| alpha / rank as f64);
            add(format!("{module}.weight"), Change::Product { up, down, factor }, &[outputs, inputs])?;
        }
        (None, None) => {}
        _ => return Err("expected both of its matrices, found one".to_string()),
    }
    for (leaf, numbers) in [("weight", parts.weight), ("bias", parts.bias)] {
        if let Some(numbers) = numbers {
            let shape = numbers.dims().to_vec();
            add(format!("{module}.{leaf}"), Change::Sum { numbers, factor: weight }, &shape)?;
        }
    }
    Ok(())
}

fn read(file: &WeightFile, name: &str, stored: &Stored) -> Result<Tensor> {
    let values = file
        .numbers_of(stored)
        .ok_or_else(|| Error::file(&file.path, format!("{name}: expected numbers, found {}", stored.format)))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::file(&file.path, format!("{name}: expected finite numbers, found NaN or infinity")));
    }
    Ok(Tensor::from_vec(values, stored.shape.as_slice(), &Device::Cpu)?)
}

/// The modules of a model by the names that LoRA files give them, with `_` for `.`, as kohya's scripts write them.
struct Names(BTreeMap<String, Vec<String>>);

impl Names {
    fn of(tensors: &Tensors) -> Self {
        let mut names = BTreeMap::new();
        let modules: Vec<&str> = tensors.listed().filter_map(|(name, _)| Some(name.rsplit_once('.')?.0)).collect();
        for module in modules {
            let authors = TABLES.iter().filter_map(|table| translate(module, table, Way::FromDiffusers));
            for name in authors.chain([module.to_string()]) {
                names.insert(name.replace('.', "_"), vec![module.to_string()]);
            }
            if let Some((stacked, parts)) = hunyuan::stacked(module) {
                names.insert(stacked.replace('.', "_"), parts);
            }
        }
        Names(names)
    }

    /// The modules that one of a LoRA file stands for: one, or several whose rows it has one after another.
    fn canonical(&self, module: &str) -> Option<&[String]> {
        let bare = PREFIXES.iter().fold(module, |name, prefix| name.strip_prefix(prefix).unwrap_or(name));
        let flat = bare.strip_prefix("lora_unet_").unwrap_or(bare).replace('.', "_");
        self.0.get(&flat).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let read = |text: &str| text.parse::<Lora>().unwrap();
        assert_eq!(read("a.safetensors"), Lora { path: "a.safetensors".into(), weight: 1.0 });
        assert_eq!(read("a.safetensors:-0.5"), Lora { path: "a.safetensors".into(), weight: -0.5 });
        assert_eq!(read("C:/a.safetensors").path, PathBuf::from("C:/a.safetensors"));
        assert!("a:nan".parse::<Lora>().is_err() && ":1".parse::<Lora>().is_err());
    }
}
