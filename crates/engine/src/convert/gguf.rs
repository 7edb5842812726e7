//! The header of a GGUF file (version 3): key-value pairs, then names, shapes, formats and places of tensors.

use navicache_weights::{Component, ggml_kind};

use super::plan::Plan;

/// Where tensors begin: at multiples of it.
pub(super) const ALIGNMENT: usize = 32;
/// Most dimensions that ggml reads; more are folded, and a key says what they were.
const DIMENSIONS_MAX: usize = 4;

/// Kinds of values.
const UINT32: u32 = 4;
const INT32: u32 = 5;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// What stands before the numbers, which follow in the order of the plan, each tensor aligned.
pub(super) fn header(component: Component, plan: &[Plan]) -> Vec<u8> {
    let folded: Vec<&Plan> = plan.iter().filter(|tensor| tensor.shape.len() > DIMENSIONS_MAX).collect();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((plan.len() as u64).to_le_bytes());
    bytes.extend((2 + folded.len() as u64).to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(STRING.to_le_bytes());
    text(&mut bytes, architecture(component));
    text(&mut bytes, "general.quantization_version");
    bytes.extend([UINT32.to_le_bytes(), 2u32.to_le_bytes()].concat());
    for tensor in folded {
        text(&mut bytes, &format!("comfy.gguf.orig_shape.{}", tensor.to));
        bytes.extend([ARRAY.to_le_bytes(), INT32.to_le_bytes()].concat());
        bytes.extend((tensor.shape.len() as u64).to_le_bytes());
        tensor.shape.iter().for_each(|&n| bytes.extend((n as i32).to_le_bytes()));
    }
    let mut at = 0usize;
    for tensor in plan {
        text(&mut bytes, &tensor.to);
        let shape = folded_shape(&tensor.shape);
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| bytes.extend((n as u64).to_le_bytes())); // ggml counts from the fastest
        bytes.extend(ggml_kind(tensor.format).unwrap_or_default().to_le_bytes());
        bytes.extend((at as u64).to_le_bytes());
        at = (at + tensor.bytes).next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// Five dimensions become four: (out * in, time, height, width).
fn folded_shape(shape: &[usize]) -> Vec<usize> {
    match shape.len() {
        0..=DIMENSIONS_MAX => shape.to_vec(),
        count => {
            let (first, rest) = shape.split_at(count - DIMENSIONS_MAX + 1);
            [&[first.iter().product()], rest].concat()
        }
    }
}

/// As ComfyUI's loaders know models.
fn architecture(component: Component) -> &'static str {
    match component {
        Component::WanTransformer | Component::WanLowNoise => "wan",
        Component::HunyuanTransformer => "hyvid",
        _ => "navicache",
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
