//! Names of HunyuanVideo's parts in the authors' files, in ComfyUI's and in GGUF.

use super::table::{Table, Way, translate};
use crate::file::Stored;

/// The transformer in the authors' files, but for what is several matrices in one.
pub(crate) const TRANSFORMER: Table = &[
    ("x_embedder.proj", "img_in.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("context_embedder.proj_in", "txt_in.input_embedder"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
    ("context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.linear_1"),
    ("context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.linear_2"),
    ("context_embedder.token_refiner.refiner_blocks.N.norm1", "txt_in.individual_token_refiner.blocks.N.norm1"),
    ("context_embedder.token_refiner.refiner_blocks.N.norm2", "txt_in.individual_token_refiner.blocks.N.norm2"),
    (
        "context_embedder.token_refiner.refiner_blocks.N.ff.net.0.proj",
        "txt_in.individual_token_refiner.blocks.N.mlp.fc1",
    ),
    ("context_embedder.token_refiner.refiner_blocks.N.ff.net.2", "txt_in.individual_token_refiner.blocks.N.mlp.fc2"),
    (
        "context_embedder.token_refiner.refiner_blocks.N.attn.to_out.0",
        "txt_in.individual_token_refiner.blocks.N.self_attn_proj",
    ),
    (
        "context_embedder.token_refiner.refiner_blocks.N.norm_out.linear",
        "txt_in.individual_token_refiner.blocks.N.adaLN_modulation.1",
    ),
    ("transformer_blocks.N.norm1.linear", "double_blocks.N.img_mod.linear"),
    ("transformer_blocks.N.norm1_context.linear", "double_blocks.N.txt_mod.linear"),
    ("transformer_blocks.N.attn.norm_q", "double_blocks.N.img_attn_q_norm"),
    ("transformer_blocks.N.attn.norm_k", "double_blocks.N.img_attn_k_norm"),
    ("transformer_blocks.N.attn.norm_added_q", "double_blocks.N.txt_attn_q_norm"),
    ("transformer_blocks.N.attn.norm_added_k", "double_blocks.N.txt_attn_k_norm"),
    ("transformer_blocks.N.attn.to_out.0", "double_blocks.N.img_attn_proj"),
    ("transformer_blocks.N.attn.to_add_out", "double_blocks.N.txt_attn_proj"),
    ("transformer_blocks.N.ff.net.0.proj", "double_blocks.N.img_mlp.fc1"),
    ("transformer_blocks.N.ff.net.2", "double_blocks.N.img_mlp.fc2"),
    ("transformer_blocks.N.ff_context.net.0.proj", "double_blocks.N.txt_mlp.fc1"),
    ("transformer_blocks.N.ff_context.net.2", "double_blocks.N.txt_mlp.fc2"),
    ("single_transformer_blocks.N.proj_out", "single_blocks.N.linear2"),
    ("single_transformer_blocks.N.norm.linear", "single_blocks.N.modulation.linear"),
    ("single_transformer_blocks.N.attn.norm_q", "single_blocks.N.q_norm"),
    ("single_transformer_blocks.N.attn.norm_k", "single_blocks.N.k_norm"),
    ("proj_out", "final_layer.linear"),
];

/// Matrices whose rows are several of Diffusers', of equal size but for the last of `linear1`.
const STACKED: [(&str, &[&str]); 4] = [
    (
        "txt_in.individual_token_refiner.blocks.N.self_attn_qkv",
        &[
            "context_embedder.token_refiner.refiner_blocks.N.attn.to_q",
            "context_embedder.token_refiner.refiner_blocks.N.attn.to_k",
            "context_embedder.token_refiner.refiner_blocks.N.attn.to_v",
        ],
    ),
    (
        "double_blocks.N.img_attn_qkv",
        &["transformer_blocks.N.attn.to_q", "transformer_blocks.N.attn.to_k", "transformer_blocks.N.attn.to_v"],
    ),
    (
        "double_blocks.N.txt_attn_qkv",
        &[
            "transformer_blocks.N.attn.add_q_proj",
            "transformer_blocks.N.attn.add_k_proj",
            "transformer_blocks.N.attn.add_v_proj",
        ],
    ),
    (
        "single_blocks.N.linear1",
        &[
            "single_transformer_blocks.N.attn.to_q",
            "single_transformer_blocks.N.attn.to_k",
            "single_transformer_blocks.N.attn.to_v",
            "single_transformer_blocks.N.proj_mlp",
        ],
    ),
];

/// What ComfyUI calls modules that it has in common with Flux, and what the authors call them.
const LIKE_FLUX: [(&str, &str); 20] = [
    ("_mod.lin.", "_mod.linear."),
    (".modulation.lin.", ".modulation.linear."),
    ("_attn.qkv.", "_attn_qkv."),
    ("_attn.proj.", "_attn_proj."),
    ("_attn.norm.query_norm.scale", "_attn_q_norm.weight"),
    ("_attn.norm.key_norm.scale", "_attn_k_norm.weight"),
    (".norm.query_norm.scale", ".q_norm.weight"),
    (".norm.key_norm.scale", ".k_norm.weight"),
    ("_mlp.0.", "_mlp.fc1."),
    ("_mlp.2.", "_mlp.fc2."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.fc2."),
    ("t_embedder.in_layer.", "t_embedder.mlp.0."),
    ("t_embedder.out_layer.", "t_embedder.mlp.2."),
    ("c_embedder.in_layer.", "c_embedder.linear_1."),
    ("c_embedder.out_layer.", "c_embedder.linear_2."),
    ("time_in.in_layer.", "time_in.mlp.0."),
    ("time_in.out_layer.", "time_in.mlp.2."),
    ("guidance_in.in_layer.", "guidance_in.mlp.0."),
    ("guidance_in.out_layer.", "guidance_in.mlp.2."),
];

/// A tensor of the transformer. `width`: of its streams.
pub(super) fn transformer(name: &str, stored: Stored, width: Option<usize>) -> Result<Vec<(String, Stored)>, String> {
    let name = authors(name);
    for (stacked, parts) in STACKED {
        let Some(first) = translate(&name, &[(parts[0], stacked)], Way::ToDiffusers) else { continue };
        let rows = stored.shape.first().copied().unwrap_or(0);
        let each = width.filter(|width| rows >= width * parts.len()).ok_or("rows that are not several matrices")?;
        let index = first.split('.').find(|part| part.bytes().all(|b| b.is_ascii_digit())).unwrap_or_default();
        let leaf = name.rsplit('.').next().unwrap_or_default();
        let part = |(i, module): (usize, &&str)| {
            let count = if i + 1 == parts.len() { rows - i * each } else { each };
            let module = module.replacen('N', index, 1);
            Ok((format!("{module}.{leaf}"), stored.rows(i * each, count).ok_or("rows that cannot be told apart")?))
        };
        return parts.iter().enumerate().map(part).collect();
    }
    // The rows of `final_layer.adaLN_modulation.1` stand in another order than in Diffusers: the model knows it by this
    // name.
    Ok(vec![(translate(&name, TRANSFORMER, Way::ToDiffusers).unwrap_or(name), stored)])
}

/// The authors' module that a module is the first part of, and all of its parts.
pub(crate) fn stacked(module: &str) -> Option<(String, Vec<String>)> {
    STACKED.iter().find_map(|(stacked, parts)| {
        let all = parts.iter().map(|part| translate(module, &[(parts[0], part)], Way::FromDiffusers));
        Some((translate(module, &[(parts[0], stacked)], Way::FromDiffusers)?, all.collect::<Option<_>>()?))
    })
}

/// What ComfyUI calls a module of the authors'.
pub(crate) fn like_flux(module: &str) -> String {
    let name = LIKE_FLUX.iter().fold(format!("{module}."), |name, (flux, authors)| name.replace(authors, flux));
    name.trim_end_matches('.').to_string()
}

/// The authors' name.
fn authors(name: &str) -> String {
    let refines = name.contains("individual_token_refiner");
    // Elsewhere `mlp.0` is what the authors say too.
    let is_refiners = |part: &str| part.starts_with(".mlp.");
    let mut name = name.to_string();
    for (flux, authors) in LIKE_FLUX.iter().filter(|(flux, _)| refines || !is_refiners(flux)) {
        name = name.replace(flux, authors);
    }
    name
}

/// LLaMA in GGUF files. Their rows of queries and keys stand so that neighbouring channels are turned together.
pub(super) const LLAMA_CPP: Table = &[
    ("embed_tokens", "token_embd"),
    ("layers.N.input_layernorm", "blk.N.attn_norm"),
    ("layers.N.self_attn.q_proj", "blk.N.attn_q"),
    ("layers.N.self_attn.k_proj", "blk.N.attn_k"),
    ("layers.N.self_attn.v_proj", "blk.N.attn_v"),
    ("layers.N.self_attn.o_proj", "blk.N.attn_output"),
    ("layers.N.post_attention_layernorm", "blk.N.ffn_norm"),
    ("layers.N.mlp.gate_proj", "blk.N.ffn_gate"),
    ("layers.N.mlp.up_proj", "blk.N.ffn_up"),
    ("layers.N.mlp.down_proj", "blk.N.ffn_down"),
    ("norm", "output_norm"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;

    fn stored(shape: &[usize]) -> Stored {
        let numbers: usize = shape.iter().product();
        Stored { format: Format::F32, shape: shape.to_vec(), start: 0, length: 4 * numbers }
    }

    #[test]
    fn several_matrices_in_one() {
        let parts = transformer("single_blocks.12.linear1.weight", stored(&[14, 3]), Some(2)).unwrap();
        let found: Vec<_> = parts.iter().map(|(name, s)| (name.as_str(), s.shape[0], s.start)).collect();
        assert_eq!(
            found,
            [
                ("single_transformer_blocks.12.attn.to_q.weight", 2, 0),
                ("single_transformer_blocks.12.attn.to_k.weight", 2, 24),
                ("single_transformer_blocks.12.attn.to_v.weight", 2, 48),
                ("single_transformer_blocks.12.proj_mlp.weight", 8, 72),
            ]
        );
        assert!(transformer("single_blocks.12.linear1.weight", stored(&[5, 3]), Some(2)).is_err());
    }

    #[test]
    fn comfyui_and_the_authors_agree() {
        for (comfyui, authors_name) in [
            ("double_blocks.3.img_attn.norm.query_norm.scale", "double_blocks.3.img_attn_q_norm.weight"),
            ("double_blocks.3.txt_mlp.2.bias", "double_blocks.3.txt_mlp.fc2.bias"),
            ("single_blocks.7.norm.key_norm.scale", "single_blocks.7.k_norm.weight"),
            ("time_in.in_layer.weight", "time_in.mlp.0.weight"),
            ("guidance_in.out_layer.bias", "guidance_in.mlp.2.bias"),
            (
                "txt_in.individual_token_refiner.blocks.1.self_attn.qkv.weight",
                "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight",
            ),
            (
                "txt_in.individual_token_refiner.blocks.1.mlp.0.weight",
                "txt_in.individual_token_refiner.blocks.1.mlp.fc1.weight",
            ),
        ] {
            assert_eq!(authors(comfyui), authors_name);
            assert_eq!(authors(authors_name), authors_name);
            let module = |name: &str| name.rsplit_once('.').unwrap().0.to_string();
            if !authors_name.contains("_norm") {
                assert_eq!(like_flux(&module(authors_name)), module(comfyui));
            }
        }
    }
}
