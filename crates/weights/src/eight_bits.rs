//! What stands beside 8-bit weights in files: their factors, under the names that programs give them, and marks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entry::Entry;
use crate::factors::Factors;
use crate::file::Meta;
use crate::format::Format;

/// Ends of the names of what stands beside 8-bit weights.
const LEAVES: [(&str, Leaf); 16] = [
    ("scale_weight", Leaf::Factor(1.0)),
    ("weight_scale", Leaf::Factor(1.0)),
    // It is what weights are multiplied by, whatever its name.
    ("weight_scale_inv", Leaf::Factor(1.0)),
    // Quanto's, whose weights are `weight._data`.
    ("_scale", Leaf::Factor(1.0)),
    ("_data", Leaf::Weight),
    // The largest number of a row, which bitsandbytes stores as 127.
    ("SCB", Leaf::Factor(1.0 / 127.0)),
    ("weight_format", Leaf::Mark),
    // Of activations, which are not narrowed here.
    ("scale_input", Leaf::Mark),
    ("input_scale", Leaf::Mark),
    ("output_scale", Leaf::Mark),
    ("act_scale", Leaf::Mark),
    ("activation_scale", Leaf::Mark),
    ("k_scale", Leaf::Mark),
    ("v_scale", Leaf::Mark),
    ("scaled_fp8", Leaf::Mark),
    ("comfy_quant", Leaf::Description),
];

#[derive(Debug, Clone, Copy)]
enum Leaf {
    /// Factors of the weight beside it, times this.
    Factor(f32),
    /// The weight, under a name of its own.
    Weight,
    /// Of no use here.
    Mark,
    /// JSON that says how the weight was quantised.
    Description,
}

/// Gives 8-bit weights their factors, and takes out what else is no weight.
pub(crate) fn take(tensors: BTreeMap<String, Entry>) -> Result<BTreeMap<String, Entry>, String> {
    let mut factors: Vec<(String, String, f32, Entry)> = Vec::new();
    let mut weights = BTreeMap::new();
    for (name, entry) in tensors {
        let (module, end) = name.rsplit_once('.').unwrap_or(("", &name));
        let leaf = LEAVES.iter().find(|(leaf, _)| *leaf == end).map(|(_, leaf)| *leaf);
        match leaf {
            Some(Leaf::Factor(times)) => {
                let weight = if end.starts_with('_') { module.to_string() } else { format!("{module}.weight") };
                factors.push((name.clone(), weight, times, entry));
            }
            Some(Leaf::Weight) => add(&mut weights, module.to_string(), entry)?,
            Some(Leaf::Description) => {
                let said = entry.file.bytes_of(&entry.stored);
                check_formats(&serde_json::from_slice(said).map_err(|e| format!("{name}: {e}"))?)?;
            }
            Some(Leaf::Mark) => {}
            None => add(&mut weights, name, entry)?,
        }
    }
    for (name, weight, times, entry) in factors {
        let matrix =
            weights.get_mut(&weight).ok_or_else(|| format!("{name}: there is no {weight} that it belongs to"))?;
        let mut values = entry.values().map_err(|e| format!("{name}: {e}"))?;
        values.iter_mut().for_each(|value| *value *= times);
        let found = Factors::of(&matrix.stored, values, &entry.stored.shape).map_err(|e| format!("{name}: {e}"))?;
        if matrix.factors.replace(Arc::new(found)).is_some() {
            return Err(format!("{name}: {weight} has other factors too"));
        }
    }
    let bare = weights.iter().find(|(_, entry)| entry.stored.format == Format::I8 && entry.factors.is_none());
    match bare {
        Some((name, _)) => Err(format!("{name}: expected factors beside 8-bit integers (weight_scale), found none")),
        None => Ok(weights),
    }
}

fn add(weights: &mut BTreeMap<String, Entry>, name: String, entry: Entry) -> Result<(), String> {
    match weights.insert(name.clone(), entry) {
        Some(_) => Err(format!("{name}: there twice, once in 8 bits")),
        None => Ok(()),
    }
}

/// Refuses quantisations that a header speaks of and that would be read as something else.
pub(crate) fn check_header(metadata: &BTreeMap<String, Meta>) -> Result<(), String> {
    match metadata.get("_quantization_metadata") {
        Some(Meta::Text(text)) => {
            check_formats(&serde_json::from_str(text).map_err(|e| format!("_quantization_metadata: {e}"))?)
        }
        _ => Ok(()),
    }
}

fn check_formats(said: &serde_json::Value) -> Result<(), String> {
    use serde_json::Value;
    const READ: [&str; 4] = ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_blockwise"];
    let Value::Object(fields) = said else { return Ok(()) };
    fields.iter().try_for_each(|(key, value)| match (key.as_str(), value) {
        ("format", Value::String(format)) if !READ.contains(&format.as_str()) => {
            Err(format!("quantisation {format:?} is not supported; expected one of {}", READ.join(", ")))
        }
        ("convrot", Value::Bool(true)) => {
            Err("quantisation of rotated weights (convrot) is not supported; take another file of the model"
                .to_string())
        }
        _ => check_formats(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantisations_that_are_not_read_are_named() {
        let check = |text: &str| check_formats(&serde_json::from_str(text).unwrap());
        assert!(check(r#"{"layers": {"a": {"format": "float8_e4m3fn"}}}"#).is_ok());
        assert!(check(r#"{"layers": {"a": {"format": "nvfp4"}}}"#).unwrap_err().contains("nvfp4"));
        assert!(check(r#"{"format": "int8_tensorwise", "convrot": true}"#).unwrap_err().contains("convrot"));
    }
}
