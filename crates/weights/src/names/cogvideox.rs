//! Names of CogVideoX's parts in the authors' files, which SwissArmyTransformer made, and ComfyUI's of the transformer.

use super::table::{Table, Way, translate};
use crate::file::Stored;

/// The transformer, but for what is several matrices in one.
const TRANSFORMER: Table = &[
    ("patch_embed.proj", "mixins.patch_embed.proj"),
    ("patch_embed.text_proj", "mixins.patch_embed.text_proj"),
    ("patch_embed.pos_embedding", "mixins.pos_embed.pos_embedding"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("ofs_embedding.linear_1", "ofs_embed.0"),
    ("ofs_embedding.linear_2", "ofs_embed.2"),
    ("transformer_blocks.N.norm1.norm", "transformer.layers.N.input_layernorm"),
    ("transformer_blocks.N.norm2.norm", "transformer.layers.N.post_attention_layernorm"),
    ("transformer_blocks.N.attn1.to_out.0", "transformer.layers.N.attention.dense"),
    ("transformer_blocks.N.attn1.norm_q", "mixins.adaln_layer.query_layernorm_list.N"),
    ("transformer_blocks.N.attn1.norm_k", "mixins.adaln_layer.key_layernorm_list.N"),
    ("transformer_blocks.N.ff.net.0.proj", "transformer.layers.N.mlp.dense_h_to_4h"),
    ("transformer_blocks.N.ff.net.2", "transformer.layers.N.mlp.dense_4h_to_h"),
    ("norm_final", "transformer.final_layernorm"),
    ("norm_out.norm", "mixins.final_layer.norm_final"),
    ("norm_out.linear", "mixins.final_layer.adaLN_modulation.1"),
    ("proj_out", "mixins.final_layer.linear"),
];

/// Matrices whose rows are several, of equal size. The vectors of both norms of a block are one in these files, those
/// of the text after those of the video: parts of what Diffusers has, which the model knows by names of their own.
const STACKED: [(&str, &[&str]); 2] = [
    (
        "transformer.layers.N.attention.query_key_value",
        &["transformer_blocks.N.attn1.to_q", "transformer_blocks.N.attn1.to_k", "transformer_blocks.N.attn1.to_v"],
    ),
    (
        "mixins.adaln_layer.adaLN_modulations.N.1",
        &[
            "transformer_blocks.N.norm1.linear_of_video",
            "transformer_blocks.N.norm2.linear_of_video",
            "transformer_blocks.N.norm1.linear_of_text",
            "transformer_blocks.N.norm2.linear_of_text",
        ],
    ),
];

/// The transformer as ComfyUI's own code names it (comfy/ldm/cogvideo/model.py); all else is as in Diffusers.
pub(crate) const COMFYUI: Table = &[
    ("time_embedding.linear_1", "time_embedding_linear_1"),
    ("time_embedding.linear_2", "time_embedding_linear_2"),
    ("ofs_embedding.linear_1", "ofs_embedding_linear_1"),
    ("ofs_embedding.linear_2", "ofs_embedding_linear_2"),
    ("transformer_blocks.N.norm1", "blocks.N.norm1"),
    ("transformer_blocks.N.norm2", "blocks.N.norm2"),
    ("transformer_blocks.N.attn1.to_q", "blocks.N.q"),
    ("transformer_blocks.N.attn1.to_k", "blocks.N.k"),
    ("transformer_blocks.N.attn1.to_v", "blocks.N.v"),
    ("transformer_blocks.N.attn1.norm_q", "blocks.N.norm_q"),
    ("transformer_blocks.N.attn1.norm_k", "blocks.N.norm_k"),
    ("transformer_blocks.N.attn1.to_out.0", "blocks.N.attn_out"),
    ("transformer_blocks.N.ff.net.0.proj", "blocks.N.ff_proj"),
    ("transformer_blocks.N.ff.net.2", "blocks.N.ff_out"),
];

/// A tensor of the transformer.
pub(super) fn transformer(name: &str, stored: Stored) -> Result<Vec<(String, Stored)>, String> {
    for (stacked, parts) in STACKED {
        if translate(name, &[(parts[0], stacked)], Way::ToDiffusers).is_none() {
            continue;
        }
        let rows = stored.shape.first().copied().unwrap_or(0);
        let each = rows / parts.len();
        if each * parts.len() != rows {
            return Err("rows that are not several matrices".to_string());
        }
        let part = |(i, module): (usize, &&str)| {
            let module = translate(name, &[(module, stacked)], Way::ToDiffusers).ok_or("a name of no module")?;
            Ok((module, stored.rows(i * each, each).ok_or("rows that cannot be told apart")?))
        };
        return parts.iter().enumerate().map(part).collect();
    }
    Ok(vec![(translate(name, TRANSFORMER, Way::ToDiffusers).unwrap_or(name.to_string()), stored)])
}

/// Levels of the autoencoder, which the decoder counts from the other end.
const LEVELS: usize = 4;

/// A tensor of the autoencoder.
pub(super) fn vae(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let renamed = match parts[..] {
        [half @ ("encoder" | "decoder"), "mid", block, ref rest @ ..] => {
            let index = if block == "block_1" { 0 } else { 1 };
            format!("{half}.mid_block.resnets.{index}.{}", rest.join("."))
        }
        ["encoder", "down", level, ref rest @ ..] => format!("encoder.down_blocks.{level}.{}", in_level(rest)),
        ["decoder", "up", level, ref rest @ ..] => {
            let level = level.parse().ok().and_then(|level: usize| (LEVELS - 1).checked_sub(level));
            level.map_or(name.to_string(), |level| format!("decoder.up_blocks.{level}.{}", in_level(rest)))
        }
        _ => name.to_string(),
    };
    renamed.replace("nin_shortcut", "conv_shortcut")
}

/// What is in a level.
fn in_level(rest: &[&str]) -> String {
    match rest {
        ["block", rest @ ..] => format!("resnets.{}", rest.join(".")),
        ["downsample", rest @ ..] => format!("downsamplers.0.{}", rest.join(".")),
        ["upsample", rest @ ..] => format!("upsamplers.0.{}", rest.join(".")),
        _ => rest.join("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;

    fn stored(rows: usize) -> Stored {
        Stored { format: Format::F32, shape: vec![rows, 2], start: 0, length: 8 * rows }
    }

    #[test]
    fn several_matrices_in_one() {
        let parts = |name: &str, rows: usize| {
            let parts = transformer(name, stored(rows)).unwrap();
            parts.into_iter().map(|(name, stored)| (name, stored.start / 8, stored.shape[0])).collect::<Vec<_>>()
        };
        let found = parts("transformer.layers.7.attention.query_key_value.weight", 6);
        assert_eq!(found[1], ("transformer_blocks.7.attn1.to_k.weight".to_string(), 2, 2));
        let found = parts("mixins.adaln_layer.adaLN_modulations.3.1.weight", 12);
        assert_eq!(found[2], ("transformer_blocks.3.norm1.linear_of_text.weight".to_string(), 6, 3));
        assert!(transformer("mixins.adaln_layer.adaLN_modulations.3.1.weight", stored(13)).is_err());
        let found = parts("mixins.adaln_layer.key_layernorm_list.3.weight", 4);
        assert_eq!(found, [("transformer_blocks.3.attn1.norm_k.weight".to_string(), 0, 4)]);
    }

    #[test]
    fn levels_of_the_decoder_are_counted_from_the_other_end() {
        for (authors, diffusers) in [
            ("decoder.up.3.block.2.norm1.conv_y.conv.weight", "decoder.up_blocks.0.resnets.2.norm1.conv_y.conv.weight"),
            ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.2.upsamplers.0.conv.bias"),
            ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
            ("encoder.down.0.downsample.conv.bias", "encoder.down_blocks.0.downsamplers.0.conv.bias"),
            ("decoder.mid.block_2.conv1.conv.weight", "decoder.mid_block.resnets.1.conv1.conv.weight"),
            ("decoder.norm_out.norm_layer.weight", "decoder.norm_out.norm_layer.weight"),
        ] {
            assert_eq!(vae(authors), diffusers);
        }
    }
}
