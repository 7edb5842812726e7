//! Names of Wan's parts in the authors' files, in ComfyUI's and in GGUF.

use super::table::Table;
use crate::file::Stored;

/// The Wan transformer in the authors' files.
pub(crate) const TRANSFORMER: Table = &[
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("blocks.N.scale_shift_table", "blocks.N.modulation"),
    ("blocks.N.attn1.to_q", "blocks.N.self_attn.q"),
    ("blocks.N.attn1.to_k", "blocks.N.self_attn.k"),
    ("blocks.N.attn1.to_v", "blocks.N.self_attn.v"),
    ("blocks.N.attn1.to_out.0", "blocks.N.self_attn.o"),
    ("blocks.N.attn1.norm_q", "blocks.N.self_attn.norm_q"),
    ("blocks.N.attn1.norm_k", "blocks.N.self_attn.norm_k"),
    ("blocks.N.attn2.to_q", "blocks.N.cross_attn.q"),
    ("blocks.N.attn2.to_k", "blocks.N.cross_attn.k"),
    ("blocks.N.attn2.to_v", "blocks.N.cross_attn.v"),
    ("blocks.N.attn2.to_out.0", "blocks.N.cross_attn.o"),
    ("blocks.N.attn2.norm_q", "blocks.N.cross_attn.norm_q"),
    ("blocks.N.attn2.norm_k", "blocks.N.cross_attn.norm_k"),
    ("blocks.N.attn2.add_k_proj", "blocks.N.cross_attn.k_img"),
    ("blocks.N.attn2.add_v_proj", "blocks.N.cross_attn.v_img"),
    ("blocks.N.attn2.norm_added_k", "blocks.N.cross_attn.norm_k_img"),
    ("blocks.N.norm2", "blocks.N.norm3"),
    ("blocks.N.ffn.net.0.proj", "blocks.N.ffn.0"),
    ("blocks.N.ffn.net.2", "blocks.N.ffn.2"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
];

/// UMT5 in the authors' file.
pub(super) const UMT5_AUTHORS: Table = &[
    ("shared", "token_embedding"),
    ("encoder.block.N.layer.0.SelfAttention.q", "blocks.N.attn.q"),
    ("encoder.block.N.layer.0.SelfAttention.k", "blocks.N.attn.k"),
    ("encoder.block.N.layer.0.SelfAttention.v", "blocks.N.attn.v"),
    ("encoder.block.N.layer.0.SelfAttention.o", "blocks.N.attn.o"),
    ("encoder.block.N.layer.0.SelfAttention.relative_attention_bias", "blocks.N.pos_embedding.embedding"),
    ("encoder.block.N.layer.0.layer_norm", "blocks.N.norm1"),
    ("encoder.block.N.layer.1.layer_norm", "blocks.N.norm2"),
    ("encoder.block.N.layer.1.DenseReluDense.wi_0", "blocks.N.ffn.gate.0"),
    ("encoder.block.N.layer.1.DenseReluDense.wi_1", "blocks.N.ffn.fc1"),
    ("encoder.block.N.layer.1.DenseReluDense.wo", "blocks.N.ffn.fc2"),
    ("encoder.final_layer_norm", "norm"),
];

/// UMT5 in GGUF files.
pub(super) const UMT5_LLAMA_CPP: Table = &[
    ("shared", "token_embd"),
    ("encoder.block.N.layer.0.SelfAttention.q", "enc.blk.N.attn_q"),
    ("encoder.block.N.layer.0.SelfAttention.k", "enc.blk.N.attn_k"),
    ("encoder.block.N.layer.0.SelfAttention.v", "enc.blk.N.attn_v"),
    ("encoder.block.N.layer.0.SelfAttention.o", "enc.blk.N.attn_o"),
    ("encoder.block.N.layer.0.SelfAttention.relative_attention_bias", "enc.blk.N.attn_rel_b"),
    ("encoder.block.N.layer.0.layer_norm", "enc.blk.N.attn_norm"),
    ("encoder.block.N.layer.1.layer_norm", "enc.blk.N.ffn_norm"),
    ("encoder.block.N.layer.1.DenseReluDense.wi_0", "enc.blk.N.ffn_gate"),
    ("encoder.block.N.layer.1.DenseReluDense.wi_1", "enc.blk.N.ffn_up"),
    ("encoder.block.N.layer.1.DenseReluDense.wo", "enc.blk.N.ffn_down"),
    ("encoder.final_layer_norm", "enc.output_norm"),
];

/// A name of a Wan VAE in the authors' file. `level`: children of a level of a Wan2.1 decoder.
pub(super) fn vae(name: &str, level: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let index = |text: &str| text.parse::<usize>().ok();
    let is_sampler = |leaf: &[&str]| matches!(leaf.first(), Some(&"resample" | &"time_conv"));
    match &parts[..] {
        ["conv1", leaf @ ..] => joined("quant_conv", leaf),
        ["conv2", leaf @ ..] => joined("post_quant_conv", leaf),
        [half, "conv1", leaf @ ..] => joined(&format!("{half}.conv_in"), leaf),
        [half, "head", "0", leaf @ ..] => joined(&format!("{half}.norm_out"), leaf),
        [half, "head", "2", leaf @ ..] => joined(&format!("{half}.conv_out"), leaf),
        [half, "middle", "0", leaf @ ..] => joined(&format!("{half}.mid_block.resnets.0"), &resnet(leaf)),
        [half, "middle", "1", leaf @ ..] => joined(&format!("{half}.mid_block.attentions.0"), leaf),
        [half, "middle", "2", leaf @ ..] => joined(&format!("{half}.mid_block.resnets.1"), &resnet(leaf)),
        ["encoder", "downsamples", n, "downsamples", _, leaf @ ..] if is_sampler(leaf) => {
            joined(&format!("encoder.down_blocks.{n}.downsampler"), leaf)
        }
        ["encoder", "downsamples", n, "downsamples", j, leaf @ ..] => {
            joined(&format!("encoder.down_blocks.{n}.resnets.{j}"), &resnet(leaf))
        }
        ["encoder", "downsamples", n, leaf @ ..] => joined(&format!("encoder.down_blocks.{n}"), &resnet(leaf)),
        ["decoder", "upsamples", n, "upsamples", _, leaf @ ..] if is_sampler(leaf) => {
            joined(&format!("decoder.up_blocks.{n}.upsampler"), leaf)
        }
        ["decoder", "upsamples", n, "upsamples", j, leaf @ ..] => {
            joined(&format!("decoder.up_blocks.{n}.resnets.{j}"), &resnet(leaf))
        }
        ["decoder", "upsamples", n, leaf @ ..] if index(n).is_some() => {
            let n = index(n).unwrap_or(0);
            match is_sampler(leaf) {
                true => joined(&format!("decoder.up_blocks.{}.upsamplers.0", n / level), leaf),
                false => joined(&format!("decoder.up_blocks.{}.resnets.{}", n / level, n % level), &resnet(leaf)),
            }
        }
        _ => name.to_string(),
    }
}

fn joined(module: &str, leaf: &[&str]) -> String {
    [&[module], leaf].concat().join(".")
}

/// The children of a residual block.
fn resnet<'a>(leaf: &[&'a str]) -> Vec<&'a str> {
    match leaf {
        ["residual", "0", rest @ ..] => [&["norm1"], rest].concat(),
        ["residual", "2", rest @ ..] => [&["conv1"], rest].concat(),
        ["residual", "3", rest @ ..] => [&["norm2"], rest].concat(),
        ["residual", "6", rest @ ..] => [&["conv2"], rest].concat(),
        ["shortcut", rest @ ..] => [&["conv_shortcut"], rest].concat(),
        _ => leaf.to_vec(),
    }
}

/// A tensor of CLIP in the authors' file; its text half has no part here.
pub(super) fn clip(name: &str, stored: Stored) -> Result<Vec<(String, Stored)>, String> {
    let parts: Vec<&str> = name.split('.').collect();
    let one = |name: String, stored: Stored| Ok(vec![(name, stored)]);
    let flat = || {
        let shape: Vec<usize> = stored.shape.iter().copied().skip_while(|&n| n == 1).collect();
        stored.reshaped(&shape).ok_or_else(|| "a shape that does not add up".to_string())
    };
    match &parts[..] {
        ["visual", "cls_embedding"] => one("vision_model.embeddings.class_embedding".to_string(), flat()?),
        ["visual", "pos_embedding"] => one("vision_model.embeddings.position_embedding.weight".to_string(), flat()?),
        ["visual", "patch_embedding", leaf] => one(format!("vision_model.embeddings.patch_embedding.{leaf}"), stored),
        ["visual", "pre_norm", leaf] => one(format!("vision_model.pre_layrnorm.{leaf}"), stored),
        ["visual", "post_norm", leaf] => one(format!("vision_model.post_layernorm.{leaf}"), stored),
        ["visual", "transformer", n, "attn", "to_qkv", leaf] => {
            let part = |(i, part)| {
                let name = format!("vision_model.encoder.layers.{n}.self_attn.{part}.{leaf}");
                Ok((name, stored.part(i, 3).ok_or("rows that are no three matrices")?))
            };
            ["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(part).collect()
        }
        ["visual", "transformer", n, module @ .., leaf] => {
            let module = match module {
                ["attn", "proj"] => "self_attn.out_proj",
                ["norm1"] => "layer_norm1",
                ["norm2"] => "layer_norm2",
                ["mlp", "0"] => "mlp.fc1",
                ["mlp", "2"] => "mlp.fc2",
                _ => return Ok(Vec::new()),
            };
            one(format!("vision_model.encoder.layers.{n}.{module}.{leaf}"), stored)
        }
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoencoders() {
        for (authors, diffusers) in [
            ("conv2.bias", "post_quant_conv.bias"),
            ("encoder.conv1.weight", "encoder.conv_in.weight"),
            ("decoder.head.0.gamma", "decoder.norm_out.gamma"),
            ("decoder.middle.1.to_qkv.weight", "decoder.mid_block.attentions.0.to_qkv.weight"),
            ("decoder.middle.2.residual.6.bias", "decoder.mid_block.resnets.1.conv2.bias"),
            ("encoder.downsamples.3.residual.3.gamma", "encoder.down_blocks.3.norm2.gamma"),
            ("encoder.downsamples.5.resample.1.weight", "encoder.down_blocks.5.resample.1.weight"),
            ("decoder.upsamples.2.shortcut.weight", "decoder.up_blocks.0.resnets.2.conv_shortcut.weight"),
            ("decoder.upsamples.3.time_conv.bias", "decoder.up_blocks.0.upsamplers.0.time_conv.bias"),
            ("decoder.upsamples.4.residual.2.weight", "decoder.up_blocks.1.resnets.0.conv1.weight"),
            ("decoder.upsamples.1.upsamples.3.resample.1.bias", "decoder.up_blocks.1.upsampler.resample.1.bias"),
            ("encoder.downsamples.2.downsamples.1.residual.0.gamma", "encoder.down_blocks.2.resnets.1.norm1.gamma"),
        ] {
            assert_eq!(vae(authors, 4), diffusers);
        }
    }
}
