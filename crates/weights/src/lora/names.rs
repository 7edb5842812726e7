//! Names in LoRA files: what stands before the modules' names, what behind them, and the modules of a model by the
//! names that such files give them.

use std::collections::BTreeMap;

use crate::names::table::{Table, Way, translate};
use crate::names::{cogvideox, hunyuan, wan};
use crate::tensors::Tensors;

/// What stands before the modules' names; often several of them, one after the other.
const PREFIXES: [&str; 15] = [
    "base_model.model.",
    "base_model.",
    "model.",
    "module.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "pipe.",
    "dit.",
    "lora_unet__",
    "lora_unet_",
    "lora_transformer_",
    "lora_transformer.",
    "lora_prior_unet_",
    "lycoris_",
];
/// How many of them may stand one after the other.
const DEPTH: usize = 4;

/// What a tensor of a LoRA file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaf {
    /// The matrices of LoRA.
    Down,
    Up,
    /// Times the scale added to the bias.
    UpBias,
    /// What the change is multiplied by, over its rank.
    Alpha,
    /// Norms of the rows of the changed matrix: DoRA.
    Magnitude,
    /// Added to the module's weight, or to its bias, as it is.
    Weight,
    Bias,
    /// Added to the module's modulation.
    Modulation,
    /// The matrices of LoHa, first of one product, then of the other.
    HadaUp1,
    HadaDown1,
    HadaUp2,
    HadaDown2,
    /// The matrices of LoKr, each perhaps a product of two.
    Left,
    LeftUp,
    LeftDown,
    Right,
    RightUp,
    RightDown,
    /// Of a kind of change that is not done here.
    Unsupported(&'static str),
}

/// Ends of names, and what they are.
const LEAVES: [(&str, Leaf); 51] = [
    (".lora_A.weight", Leaf::Down),
    (".lora_A", Leaf::Down),
    (".lora_down.weight", Leaf::Down),
    (".lora.down.weight", Leaf::Down),
    ("_lora.down.weight", Leaf::Down),
    (".lora_linear_layer.down.weight", Leaf::Down),
    (".lora_B.weight", Leaf::Up),
    (".lora_B", Leaf::Up),
    (".lora_up.weight", Leaf::Up),
    (".lora.up.weight", Leaf::Up),
    ("_lora.up.weight", Leaf::Up),
    (".lora_linear_layer.up.weight", Leaf::Up),
    (".lora_B.bias", Leaf::UpBias),
    (".lora_up.bias", Leaf::UpBias),
    (".alpha", Leaf::Alpha),
    (".dora_scale", Leaf::Magnitude),
    (".lora_magnitude_vector.weight", Leaf::Magnitude),
    (".lora_magnitude_vector", Leaf::Magnitude),
    (".diff", Leaf::Weight),
    (".w_norm", Leaf::Weight),
    (".diff_b", Leaf::Bias),
    (".b_norm", Leaf::Bias),
    (".diff_m", Leaf::Modulation),
    (".hada_w1_a", Leaf::HadaUp1),
    (".hada_w1_b", Leaf::HadaDown1),
    (".hada_w2_a", Leaf::HadaUp2),
    (".hada_w2_b", Leaf::HadaDown2),
    (".lokr_w1", Leaf::Left),
    (".lokr_w1_a", Leaf::LeftUp),
    (".lokr_w1_b", Leaf::LeftDown),
    (".lokr_w2", Leaf::Right),
    (".lokr_w2_a", Leaf::RightUp),
    (".lokr_w2_b", Leaf::RightDown),
    (".lora_mid.weight", Leaf::Unsupported("LoCon with a middle matrix")),
    (".hada_t1", Leaf::Unsupported("LoHa of convolutions (Tucker)")),
    (".hada_t2", Leaf::Unsupported("LoHa of convolutions (Tucker)")),
    (".lokr_t2", Leaf::Unsupported("LoKr of convolutions (Tucker)")),
    (".oft_blocks", Leaf::Unsupported("OFT")),
    (".oft_diag", Leaf::Unsupported("OFT")),
    (".oft_R.weight", Leaf::Unsupported("OFT")),
    (".rescale", Leaf::Unsupported("OFT")),
    (".a1.weight", Leaf::Unsupported("GLoRA")),
    (".a2.weight", Leaf::Unsupported("GLoRA")),
    (".b1.weight", Leaf::Unsupported("GLoRA")),
    (".b2.weight", Leaf::Unsupported("GLoRA")),
    (".ia3_l", Leaf::Unsupported("IA3")),
    (".on_input", Leaf::Unsupported("IA3")),
    (".matrix_A.0", Leaf::Unsupported("a LoRA of SwissArmyTransformer (export it to Diffusers)")),
    (".matrix_B.0", Leaf::Unsupported("a LoRA of SwissArmyTransformer (export it to Diffusers)")),
    (".set_weight", Leaf::Unsupported("a LoRA that replaces weights")),
    (".reshape_weight", Leaf::Unsupported("a LoRA that changes the shape of weights")),
];

/// Whether a tensor is a part of a LoRA by its name.
pub(crate) fn is_part_of_one(name: &str) -> bool {
    name.contains("lora_") || split(name).is_some_and(|(_, leaf)| leaf != Leaf::Alpha)
}

/// The module of a tensor, and what of it the tensor is.
pub(super) fn split(name: &str) -> Option<(String, Leaf)> {
    let name = without_adapter(name);
    let (end, leaf) = LEAVES.iter().filter(|(end, _)| name.ends_with(end)).max_by_key(|(end, _)| end.len())?;
    Some((name[..name.len() - end.len()].to_string(), *leaf))
}

/// PEFT puts an adapter's name between: `lora_A.default.weight`.
fn without_adapter(name: &str) -> String {
    for mark in [".lora_A.", ".lora_B.", ".lora_magnitude_vector."] {
        let Some((module, rest)) = name.split_once(mark) else { continue };
        return match rest.split_once('.') {
            Some((_, leaf @ ("weight" | "bias"))) => format!("{module}{mark}{leaf}"),
            None if rest != "weight" && rest != "bias" => format!("{module}{}", mark.trim_end_matches('.')),
            _ => name.to_string(),
        };
    }
    name.to_string()
}

/// Other names of modules.
const TABLES: [Table; 3] = [wan::TRANSFORMER, hunyuan::TRANSFORMER, cogvideox::COMFYUI];

/// The modules of a model by the names that LoRA files give them, with `_` for `.`, as kohya's scripts write them.
pub(super) struct Names(BTreeMap<String, Vec<String>>);

impl Names {
    /// Those of a transformer.
    pub fn of(tensors: &Tensors) -> Self {
        let mut names = BTreeMap::new();
        let flat = |name: &str| name.replace('.', "_");
        for (tensor, _) in tensors.listed() {
            let module = tensor.strip_suffix(".weight").or(tensor.strip_suffix(".bias")).unwrap_or(tensor);
            names.insert(flat(module), vec![module.to_string()]);
            for table in TABLES {
                let Some(authors) = translate(module, table, Way::FromDiffusers) else { continue };
                names.insert(flat(&authors), vec![module.to_string()]);
                names.insert(flat(&hunyuan::like_flux(&authors)), vec![module.to_string()]);
            }
            if let Some((stacked, parts)) = hunyuan::stacked(module) {
                names.insert(flat(&hunyuan::like_flux(&stacked)), parts.clone());
                names.insert(flat(&stacked), parts);
            }
        }
        Names(names)
    }

    /// The modules that one of a LoRA file stands for: one, or several whose rows it has one after another.
    pub fn canonical(&self, module: &str) -> Option<&[String]> {
        let mut bare = module;
        for _ in 0..=DEPTH {
            if let Some(found) = self.0.get(&bare.replace('.', "_")) {
                return Some(found);
            }
            bare = PREFIXES.iter().find_map(|prefix| bare.strip_prefix(prefix))?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_leaves() {
        for (name, module, leaf) in [
            ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q", Leaf::Down),
            ("base_model.model.blocks.0.ffn.0.lora_B.default.weight", "base_model.model.blocks.0.ffn.0", Leaf::Up),
            ("a.lora_B.bias", "a", Leaf::UpBias),
            ("a.lora_B.style.bias", "a", Leaf::UpBias),
            ("a.lora_magnitude_vector", "a", Leaf::Magnitude),
            ("a.lora_magnitude_vector.default", "a", Leaf::Magnitude),
            ("a.lora_magnitude_vector.default.weight", "a", Leaf::Magnitude),
            ("lora_unet_blocks_0_ffn_0.lokr_w1_a", "lora_unet_blocks_0_ffn_0", Leaf::LeftUp),
            ("blocks.3.diff_m", "blocks.3", Leaf::Modulation),
        ] {
            assert_eq!(split(name), Some((module.to_string(), leaf)), "{name}");
        }
        assert_eq!(split("blocks.0.self_attn.q.weight"), None);
        assert!(is_part_of_one("a.hada_w1_a") && !is_part_of_one("blocks.0.attn1.to_q.weight"));
    }
}
