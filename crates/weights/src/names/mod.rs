//! What a set of tensors is, and their names: every packaging's become those of Diffusers, which the models are written
//! in.

use std::collections::BTreeMap;

pub(crate) mod cogvideox;
pub(crate) mod hunyuan;
pub(crate) mod reads;
pub(crate) mod table;
pub(crate) mod variants;
pub(crate) mod wan;
pub(crate) mod wrapping;

use self::table::{Way, translate};
use crate::component::{About, COMPONENTS, Component, Naming, Role};
use crate::file::Stored;

/// Layers of a T5 encoder but for the first, in every naming, and the position bias that only UMT5 has there.
const T5_LAYERS: [(&str, &str); 3] = [
    (
        "encoder.block.1.layer.0.SelfAttention.q.weight",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    ("blocks.1.attn.q.weight", "blocks.1.pos_embedding.embedding.weight"),
    ("enc.blk.1.attn_q.weight", "enc.blk.1.attn_rel_b.weight"),
];

/// What a set of tensors is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognised {
    /// Which part of a pipeline.
    pub component: Component,
    /// Whose names.
    pub naming: Naming,
    /// What stands before every name.
    pub prefix: String,
}

/// Recognises a set of tensors by their names; the error says what was found instead. Of several parts of a pipeline in
/// one file the transformer is meant.
pub fn recognise(tensors: &BTreeMap<String, Stored>) -> Result<Recognised, String> {
    let prefixes = wrapping::prefixes(tensors.keys());
    let found: Vec<Recognised> = prefixes.iter().filter_map(|prefix| signed(tensors, prefix)).collect();
    let transformer = found.iter().find(|found| found.component.role() == Role::Transformer);
    let Some(recognised) = transformer.or(found.first()) else { return Err(what_else(tensors, &prefixes)) };
    if recognised.component.role() == Role::Transformer {
        let names = tensors.keys().filter_map(|name| name.strip_prefix(&recognised.prefix));
        if let Some((name, what)) = names.filter_map(|name| Some((name, variants::marked(name)?))).next() {
            return Err(format!("it is {what}, which is not supported: {name}"));
        }
    }
    Ok(recognised.clone())
}

/// What tensors behind a prefix are.
fn signed(tensors: &BTreeMap<String, Stored>, prefix: &str) -> Option<Recognised> {
    let has = |name: &str| tensors.contains_key(&format!("{prefix}{name}"));
    let signed = |about: &'static About| {
        about.signatures.iter().find(|(_, name)| has(name)).map(|(naming, _)| (about.component, *naming))
    };
    let (component, naming) = COMPONENTS.iter().find_map(signed)?;
    let is_t5 = T5_LAYERS.iter().any(|(layer, bias)| has(layer) && !has(bias));
    let component = if component == Component::Umt5 && is_t5 { Component::T5 } else { component };
    Some(Recognised { component, naming, prefix: prefix.to_string() })
}

/// What tensors are that are no part of a pipeline.
fn what_else(tensors: &BTreeMap<String, Stored>, prefixes: &[&str]) -> String {
    let names = || tensors.keys().map(String::as_str);
    if names().any(crate::lora::is_part_of_one) {
        return "it is a LoRA; give it as `lora`".to_string();
    }
    let bare = names().flat_map(|name| prefixes.iter().filter_map(move |prefix| name.strip_prefix(prefix)));
    if let Some((name, what)) = bare.filter_map(|name| Some((name, variants::marked(name)?))).next() {
        return format!("it is {what}, which is not supported: {name}");
    }
    if tensors.contains_key("double_blocks.0.img_attn.qkv.weight") {
        return "it is a Flux transformer, which makes pictures".to_string();
    }
    let first: Vec<&str> = names().take(3).collect();
    let first = if first.is_empty() { "none".to_string() } else { first.join(", ") };
    format!("its {} tensors are of no model that is known here; the first are {first}", tensors.len())
}

impl Recognised {
    /// How names are translated, given all of them.
    pub(crate) fn modules(&self, tensors: &BTreeMap<String, Stored>) -> Modules {
        Modules::of(self.clone(), tensors)
    }

    /// The other part of a pipeline, or the other copy of the weights, that a tensor of the same file belongs to; and
    /// its name there.
    pub(crate) fn other_part<'a>(&self, name: &'a str) -> Option<(&'static str, &'a str)> {
        if name.starts_with(&self.prefix) && !self.prefix.is_empty() {
            return None;
        }
        wrapping::part_of(name)
    }
}

/// What GGUF files call a tensor: Wan's as its authors do, others as Diffusers does.
pub fn authors_name(component: Component, name: &str) -> String {
    let translated = match component {
        Component::WanTransformer | Component::WanLowNoise => translate(name, wan::TRANSFORMER, Way::FromDiffusers),
        _ => None,
    };
    translated.unwrap_or_else(|| name.to_string())
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
        let name = name.strip_prefix(&self.recognised.prefix).unwrap_or(name);
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
            (Component::CogVideoXTransformer, Naming::Authors) => return cogvideox::transformer(name, stored),
            (Component::CogVideoXTransformer, Naming::ComfyUi) => translate(name, cogvideox::COMFYUI, Way::ToDiffusers),
            (Component::CogVideoXVae, Naming::Authors) => Some(cogvideox::vae(name)),
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
    use crate::format::Format;

    fn named(names: &[&str]) -> BTreeMap<String, Stored> {
        let stored = Stored { format: Format::F32, shape: vec![1], start: 0, length: 4 };
        names.iter().map(|name| (name.to_string(), stored.clone())).collect()
    }

    #[test]
    fn models_that_look_like_hunyuanvideo_are_named() {
        const AUTHORS: &str = "txt_in.individual_token_refiner.blocks.0.norm1.weight";
        const DIFFUSERS: &str = "context_embedder.token_refiner.refiner_blocks.0.norm1.weight";
        for (names, what) in [
            ([DIFFUSERS, "clean_x_embedder.proj.weight"], "FramePack"),
            ([DIFFUSERS, "image_projection.up.weight"], "FramePack"),
            ([AUTHORS, "byt5_in.fc1.weight"], "HunyuanVideo-1.5"),
            ([AUTHORS, "vision_in.proj.0.weight"], "HunyuanVideo-1.5"),
            ([DIFFUSERS, "cond_type_embed.weight"], "HunyuanVideo-1.5"),
            ([AUTHORS, "audio_adapter_blocks.0.to_q.weight"], "HunyuanVideo-Avatar"),
        ] {
            let reason = recognise(&named(&names)).unwrap_err();
            assert!(reason.contains(what) && reason.contains(names[1]), "{reason}");
        }
        let prefixed = [AUTHORS, "img_in.proj.bias"].map(|name| format!("model.diffusion_model.{name}"));
        let found = recognise(&named(&prefixed.each_ref().map(String::as_str))).unwrap();
        assert_eq!((found.component, found.prefix.as_str()), (Component::HunyuanTransformer, "model.diffusion_model."));
    }

    #[test]
    fn what_is_no_part_of_a_pipeline_is_named() {
        let reason = |name: &str| recognise(&named(&[name])).unwrap_err();
        assert!(reason("transformer.blocks.0.attn1.to_q.lora_A.weight").contains("it is a LoRA"));
        assert!(reason("lora_unet_blocks_0_ffn_0.lokr_w1").contains("it is a LoRA"));
        assert!(reason("first_stage_model.decoder.mid.block_1.norm1.weight").contains("the VAE of an image model"));
        assert!(reason("double_blocks.0.img_attn.qkv.weight").contains("a Flux transformer"));
        assert!(reason("a").contains("its 1 tensors are of no model that is known here; the first are a"));
    }

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
