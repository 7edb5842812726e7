//! What a set of tensors is, and their names: every packaging's become those of Diffusers, which the models are written
//! in.

use std::collections::BTreeMap;

pub(crate) mod hunyuan;
pub(crate) mod table;
pub(crate) mod wan;

use self::table::{Way, translate};
use crate::component::{Component, Naming};
use crate::file::Stored;

/// Prefixes that packagings put before all names of a file.
const PREFIXES: [&str; 7] = [
    "model.diffusion_model.",
    "diffusion_model.",
    "vae.",
    "first_stage_model.",
    "language_model.model.",
    "model.language_model.",
    "model.",
];

/// A tensor that only this component in this naming has.
const SIGNATURES: [(&str, Component, Naming); 21] = [
    ("condition_embedder.time_proj.weight", Component::WanTransformer, Naming::Diffusers),
    ("blocks.0.attn1.to_q.weight", Component::WanTransformer, Naming::Diffusers),
    ("time_projection.1.weight", Component::WanTransformer, Naming::Authors),
    ("blocks.0.self_attn.q.weight", Component::WanTransformer, Naming::Authors),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", Component::Umt5, Naming::Diffusers),
    ("blocks.0.pos_embedding.embedding.weight", Component::Umt5, Naming::Authors),
    ("enc.blk.0.attn_q.weight", Component::Umt5, Naming::LlamaCpp),
    ("decoder.mid_block.resnets.0.norm1.gamma", Component::WanVae, Naming::Diffusers),
    ("decoder.middle.0.residual.0.gamma", Component::WanVae, Naming::Authors),
    // A whole CLIP has both halves; its text half is what is meant then.
    ("text_model.embeddings.token_embedding.weight", Component::ClipText, Naming::Diffusers),
    ("embeddings.token_embedding.weight", Component::ClipText, Naming::Diffusers),
    ("vision_model.embeddings.class_embedding", Component::ClipVision, Naming::Diffusers),
    ("embeddings.class_embedding", Component::ClipVision, Naming::Diffusers),
    ("visual.cls_embedding", Component::ClipVision, Naming::Authors),
    ("context_embedder.token_refiner.refiner_blocks.0.norm1.weight", Component::HunyuanTransformer, Naming::Diffusers),
    ("txt_in.individual_token_refiner.blocks.0.norm1.weight", Component::HunyuanTransformer, Naming::Authors),
    ("decoder.mid_block.resnets.0.conv1.conv.weight", Component::HunyuanVae, Naming::Diffusers),
    ("layers.0.self_attn.q_proj.weight", Component::Llama, Naming::Diffusers),
    ("blk.0.attn_q.weight", Component::Llama, Naming::LlamaCpp),
    ("spatial_blocks.0.attn.qkv.weight", Component::OpenSoraTransformer, Naming::Authors),
    ("temporal_vae.decoder.conv1.conv.weight", Component::OpenSoraVae, Naming::Authors),
];

/// Layers of a T5 encoder but for the first, in every naming, and the position bias that only UMT5 has there.
const T5_LAYERS: [(&str, &str); 3] = [
    (
        "encoder.block.1.layer.0.SelfAttention.q.weight",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    ("blocks.1.attn.q.weight", "blocks.1.pos_embedding.embedding.weight"),
    ("enc.blk.1.attn_q.weight", "enc.blk.1.attn_rel_b.weight"),
];

/// Tensors of models that people have, but that are not run. Some have the tensors of one that is, too.
const OTHERS: [(&str, &str); 4] = [
    ("vace_blocks.0.before_proj.weight", "a Wan VACE transformer, which is not supported yet"),
    ("decoder.mid.block_1.norm1.weight", "the VAE of an image model"),
    ("blocks.0.attn.qkv.weight", "another transformer"),
    ("double_stream_modulation_img.lin.weight", "another transformer"),
];

/// What a set of tensors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recognised {
    /// Which part of a pipeline.
    pub component: Component,
    /// Whose names.
    pub naming: Naming,
    /// What stands before every name.
    pub prefix: &'static str,
}

/// Recognises a set of tensors by their names; the error says what was found instead.
pub fn recognise(tensors: &BTreeMap<String, Stored>) -> Result<Recognised, String> {
    for prefix in [""].into_iter().chain(PREFIXES) {
        let has = |name: &str| tensors.contains_key(&format!("{prefix}{name}"));
        if let Some((_, what)) = OTHERS.iter().find(|(name, _)| has(name)) {
            return Err(format!("it is {what}"));
        }
        if let Some(&(_, component, naming)) = SIGNATURES.iter().find(|(name, ..)| has(name)) {
            let is_t5 = T5_LAYERS.iter().any(|(layer, bias)| has(layer) && !has(bias));
            let component = if component == Component::Umt5 && is_t5 { Component::T5 } else { component };
            return Ok(Recognised { component, naming, prefix });
        }
    }
    if tensors.contains_key("double_blocks.0.img_attn.qkv.weight") {
        return Err("it is a Flux transformer, which makes pictures".to_string());
    }
    if tensors.keys().any(|name| name.contains("lora_") || name.ends_with(".diff")) {
        return Err("it is a LoRA; give it as `lora`".to_string());
    }
    let names: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
    Err(format!(
        "its {} tensors are of no model that is known here; the first are {}",
        tensors.len(),
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    ))
}

impl Recognised {
    /// How names are translated, given all of them.
    pub(crate) fn modules(self, tensors: &BTreeMap<String, Stored>) -> Modules {
        Modules::of(self, tensors)
    }
}

/// How names are translated.
pub(crate) struct Modules {
    recognised: Recognised,
    /// Of a Wan2.1 decoder in the authors' naming: children of a level, its upsampler included.
    level: usize,
    /// Width of the transformer's streams.
    width: Option<usize>,
}

impl Modules {
    fn of(recognised: Recognised, tensors: &BTreeMap<String, Stored>) -> Self {
        let upsampler = format!("{}decoder.upsamples.", recognised.prefix);
        let level = tensors.keys().filter_map(|name| {
            let (index, rest) = name.strip_prefix(&upsampler)?.split_once('.')?;
            rest.starts_with("resample.").then(|| index.parse::<usize>().ok()).flatten()
        });
        let of_width = ["head.modulation", "scale_shift_table", "img_in.proj.bias", "x_embedder.proj.bias"];
        let width = of_width.iter().find_map(|name| tensors.get(&format!("{}{name}", recognised.prefix)));
        Modules {
            recognised,
            level: level.min().map_or(usize::MAX, |index| index.saturating_add(1)),
            width: width.and_then(|stored| stored.shape.last().copied()),
        }
    }

    /// Maps a stored tensor to its canonical names: one, several (fused queries, keys and values), or none. What has no
    /// meaning for the model keeps its name.
    pub fn canonical(&self, name: &str, stored: Stored) -> Result<Vec<(String, Stored)>, String> {
        let name = name.strip_prefix(self.recognised.prefix).unwrap_or(name);
        let renamed = match (self.recognised.component, self.recognised.naming) {
            (Component::WanTransformer, Naming::Authors) => translate(name, wan::TRANSFORMER, Way::ToDiffusers),
            (Component::Umt5 | Component::T5, Naming::Authors) => translate(name, wan::UMT5_AUTHORS, Way::ToDiffusers),
            (Component::Umt5 | Component::T5, Naming::LlamaCpp) => {
                translate(name, wan::UMT5_LLAMA_CPP, Way::ToDiffusers)
            }
            (Component::WanVae, Naming::Authors) => Some(wan::vae(name, self.level)),
            (Component::ClipVision, Naming::Authors) => return wan::clip(name, stored),
            (Component::HunyuanTransformer, Naming::Authors) => {
                return hunyuan::transformer(name, self.unfolded(name, stored)?, self.width);
            }
            (Component::Llama, Naming::LlamaCpp) => translate(name, hunyuan::LLAMA_CPP, Way::ToDiffusers),
            _ => None,
        };
        let name = renamed.unwrap_or_else(|| name.to_string());
        let stored = self.unfolded(&name, stored)?;
        Ok(vec![(name, stored)])
    }

    /// Some GGUF files fold the five dimensions of the patch embedding into four: (out * in, time, height, width).
    fn unfolded(&self, name: &str, stored: Stored) -> Result<Stored, String> {
        match (name, &stored.shape[..], self.width) {
            ("patch_embedding.weight" | "img_in.proj.weight", &[rows, time, height, width], Some(dim))
                if dim > 0 && rows.is_multiple_of(dim) =>
            {
                let unfolded = stored.reshaped(&[dim, rows / dim, time, height, width]);
                unfolded.ok_or_else(|| "a shape that does not add up".to_string())
            }
            _ => Ok(stored),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_one_to_one() {
        for table in
            [wan::TRANSFORMER, wan::UMT5_AUTHORS, wan::UMT5_LLAMA_CPP, hunyuan::TRANSFORMER, hunyuan::LLAMA_CPP]
        {
            for (diffusers, other) in table {
                let numbered = |name: &str| name.replace(".N.", ".17.") + ".weight";
                let (diffusers, other) = (numbered(diffusers), numbered(other));
                assert_eq!(translate(&other, table, Way::ToDiffusers).as_ref(), Some(&diffusers));
                assert_eq!(translate(&diffusers, table, Way::FromDiffusers).as_ref(), Some(&other));
            }
            assert_eq!(translate("something.else", table, Way::ToDiffusers), None);
        }
    }
}
