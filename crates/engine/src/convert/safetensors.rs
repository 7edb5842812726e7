//! The header of a safetensors file: its length, then JSON of names, formats, shapes and places.

use navicache_weights::safetensors_dtype;
use serde_json::{Map, json};

use super::plan::Plan;

/// What stands before the numbers, which follow in the order of the plan.
pub(super) fn header(plan: &[Plan]) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_string(), json!({"format": "pt"}))]);
    let mut at = 0;
    for tensor in plan {
        let end = at + tensor.bytes;
        let entry =
            json!({"dtype": safetensors_dtype(tensor.format), "shape": tensor.shape, "data_offsets": [at, end]});
        entries.insert(tensor.to.clone(), entry);
        at = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' '); // numbers are aligned
    }
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
