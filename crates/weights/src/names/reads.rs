//! Which tensors the models read, by their canonical names, so that none is left aside without a word.
//!
//! In a pattern `N` is an index, `{a,b}` either of them, and a `*` at the end all that may follow.

use std::collections::{BTreeMap, BTreeSet};

use crate::component::Component;

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The model reads it.
    Read,
    /// It is known, and makes no difference to what the model is used for.
    Harmless,
    /// Nobody knows what it is for.
    Unknown,
}

/// What a model reads, and what may be there beside it.
struct Patterns {
    read: &'static [&'static str],
    harmless: &'static [&'static str],
}

const WAN_TRANSFORMER: Patterns = Patterns {
    read: &[
        "patch_embedding.{weight,bias}",
        "condition_embedder.time_embedder.linear_{1,2}.{weight,bias}",
        "condition_embedder.time_proj.{weight,bias}",
        "condition_embedder.text_embedder.linear_{1,2}.{weight,bias}",
        "condition_embedder.image_embedder.{norm1,norm2,ff.net.0.proj,ff.net.2}.{weight,bias}",
        "blocks.N.attn{1,2}.{to_q,to_k,to_v,to_out.0}.{weight,bias}",
        "blocks.N.attn{1,2}.norm_{q,k}.weight",
        "blocks.N.attn2.{add_k_proj,add_v_proj}.{weight,bias}",
        "blocks.N.attn2.norm_added_k.weight",
        "blocks.N.norm2.{weight,bias}",
        "blocks.N.ffn.{net.0.proj,net.2}.{weight,bias}",
        "blocks.N.scale_shift_table",
        "scale_shift_table",
        "proj_out.{weight,bias}",
    ],
    // A tensor without numbers whose name says which model it is.
    harmless: &["model_type.*"],
};

const T5: Patterns = Patterns {
    read: &[
        "shared.weight",
        "encoder.embed_tokens.weight",
        "encoder.block.N.layer.0.SelfAttention.{q,k,v,o,relative_attention_bias}.weight",
        "encoder.block.N.layer.{0,1}.layer_norm.weight",
        "encoder.block.N.layer.1.DenseReluDense.{wi_0,wi_1,wo}.weight",
        "encoder.final_layer_norm.weight",
    ],
    // The decoder of the whole model, in two namings, and ComfyUI's tokenizer.
    harmless: &["decoder.*", "lm_head.weight", "dec.*", "output.weight", "spiece_model", "logit_scale"],
};

const LLAMA: Patterns = Patterns {
    read: &[
        "embed_tokens.weight",
        "layers.N.{input_layernorm,post_attention_layernorm}.weight",
        "layers.N.self_attn.{q,k,v,o}_proj.weight",
        "layers.N.mlp.{gate,up,down}_proj.weight",
        "norm.weight",
    ],
    // What continues the text, tables that follow from the configuration, and LLaVA's eyes.
    harmless: &[
        "lm_head.weight",
        "output.weight",
        "rotary_emb.inv_freq",
        "layers.N.self_attn.rotary_emb.inv_freq",
        "vision_tower.*",
        "multi_modal_projector.*",
    ],
};

const CLIP_TEXT: Patterns = Patterns {
    read: &[
        "{text_model.,}embeddings.{token,position}_embedding.weight",
        "{text_model.,}encoder.layers.N.self_attn.{q,k,v,out}_proj.{weight,bias}",
        "{text_model.,}encoder.layers.N.{layer_norm1,layer_norm2,mlp.fc1,mlp.fc2}.{weight,bias}",
        "{text_model.,}final_layer_norm.{weight,bias}",
    ],
    // The other half, and what compares the two.
    harmless: &[
        "vision_model.*",
        "{visual,text}_projection.weight",
        "logit_scale",
        "{text_model.,}embeddings.position_ids",
    ],
};

const CLIP_VISION: Patterns = Patterns {
    read: &[
        "{vision_model.,}embeddings.{class_embedding,patch_embedding.weight,position_embedding.weight}",
        "{vision_model.,}pre_layrnorm.{weight,bias}",
        "{vision_model.,}encoder.layers.N.self_attn.{q,k,v,out}_proj.{weight,bias}",
        "{vision_model.,}encoder.layers.N.{layer_norm1,layer_norm2,mlp.fc1,mlp.fc2}.{weight,bias}",
    ],
    // What comes after the layer that is taken, the other half, and what compares the two.
    harmless: &[
        "{vision_model.,}post_layernorm.{weight,bias}",
        "text_model.*",
        "{visual,text}_projection.weight",
        "logit_scale",
        "{vision_model.,}embeddings.position_ids",
    ],
};

const WAN_VAE: Patterns = Patterns {
    read: &[
        "{quant_conv,post_quant_conv}.{weight,bias}",
        "{encoder,decoder}.{conv_in,conv_out}.{weight,bias}",
        "{encoder,decoder}.norm_out.gamma",
        "{encoder,decoder}.mid_block.resnets.N.{norm1.gamma,norm2.gamma}",
        "{encoder,decoder}.mid_block.resnets.N.{conv1,conv2,conv_shortcut}.{weight,bias}",
        "{encoder,decoder}.mid_block.attentions.0.{norm.gamma,to_qkv.weight,to_qkv.bias,proj.weight,proj.bias}",
        "encoder.down_blocks.N.{norm1,norm2}.gamma",
        "encoder.down_blocks.N.{conv1,conv2,conv_shortcut,resample.1,time_conv}.{weight,bias}",
        "encoder.down_blocks.N.resnets.N.{norm1,norm2}.gamma",
        "encoder.down_blocks.N.resnets.N.{conv1,conv2,conv_shortcut}.{weight,bias}",
        "encoder.down_blocks.N.downsampler.{resample.1,time_conv}.{weight,bias}",
        "decoder.up_blocks.N.resnets.N.{norm1,norm2}.gamma",
        "decoder.up_blocks.N.resnets.N.{conv1,conv2,conv_shortcut}.{weight,bias}",
        "decoder.up_blocks.N.{upsampler,upsamplers.0}.{resample.1,time_conv}.{weight,bias}",
    ],
    harmless: &[],
};

const HUNYUAN_TRANSFORMER: Patterns = Patterns {
    read: &[
        "x_embedder.proj.{weight,bias}",
        "time_text_embed.{timestep,guidance,text}_embedder.linear_{1,2}.{weight,bias}",
        "context_embedder.proj_in.{weight,bias}",
        "context_embedder.time_text_embed.{timestep,text}_embedder.linear_{1,2}.{weight,bias}",
        "context_embedder.token_refiner.refiner_blocks.N.{norm1,norm2,norm_out.linear}.{weight,bias}",
        "context_embedder.token_refiner.refiner_blocks.N.attn.{to_q,to_k,to_v,to_out.0}.{weight,bias}",
        "context_embedder.token_refiner.refiner_blocks.N.ff.{net.0.proj,net.2}.{weight,bias}",
        "transformer_blocks.N.{norm1,norm1_context}.linear.{weight,bias}",
        "transformer_blocks.N.attn.{to_q,to_k,to_v,to_out.0,to_add_out}.{weight,bias}",
        "transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}.{weight,bias}",
        "transformer_blocks.N.attn.{norm_q,norm_k,norm_added_q,norm_added_k}.weight",
        "transformer_blocks.N.{ff,ff_context}.{net.0.proj,net.2}.{weight,bias}",
        "single_transformer_blocks.N.attn.{to_q,to_k,to_v}.{weight,bias}",
        "single_transformer_blocks.N.attn.{norm_q,norm_k}.weight",
        "single_transformer_blocks.N.{norm.linear,proj_mlp,proj_out}.{weight,bias}",
        "{norm_out.linear,final_layer.adaLN_modulation.1}.{weight,bias}",
        "proj_out.{weight,bias}",
    ],
    harmless: &[],
};

const HUNYUAN_VAE: Patterns = Patterns {
    read: &[
        "post_quant_conv.{weight,bias}",
        "decoder.{conv_in.conv,conv_norm_out,conv_out.conv}.{weight,bias}",
        "decoder.mid_block.attentions.0.{group_norm,to_q,to_k,to_v,to_out.0}.{weight,bias}",
        "decoder.mid_block.resnets.N.{norm1,norm2,conv1.conv,conv2.conv}.{weight,bias}",
        "decoder.up_blocks.N.resnets.N.{norm1,norm2,conv1.conv,conv2.conv,conv_shortcut.conv}.{weight,bias}",
        "decoder.up_blocks.N.upsamplers.0.conv.conv.{weight,bias}",
    ],
    // The half that makes latents of frames.
    harmless: &["encoder.*", "quant_conv.{weight,bias}"],
};

const OPENSORA_TRANSFORMER: Patterns = Patterns {
    read: &[
        "x_embedder.proj.{weight,bias}",
        "{t_embedder,fps_embedder}.mlp.{0,2}.{weight,bias}",
        "t_block.1.{weight,bias}",
        "y_embedder.y_embedding",
        "y_embedder.y_proj.{fc1,fc2}.{weight,bias}",
        "{spatial,temporal}_blocks.N.scale_shift_table",
        "{spatial,temporal}_blocks.N.attn.{q_norm,k_norm}.weight",
        "{spatial,temporal}_blocks.N.attn.{qkv,proj}.{weight,bias}",
        "{spatial,temporal}_blocks.N.cross_attn.{q_linear,kv_linear,proj}.{weight,bias}",
        "{spatial,temporal}_blocks.N.mlp.{fc1,fc2}.{weight,bias}",
        "rope.freqs",
        "final_layer.scale_shift_table",
        "final_layer.linear.{weight,bias}",
    ],
    // Marks and tables that follow from the configuration.
    harmless: &["rope.dummy", "pos_embed.*", "pos_embed_temporal"],
};

const OPENSORA_VAE: Patterns = Patterns {
    read: &[
        "{scale,shift}",
        "spatial_vae.module.post_quant_conv.{weight,bias}",
        "spatial_vae.module.decoder.{conv_in,conv_norm_out,conv_out}.{weight,bias}",
        "spatial_vae.module.decoder.mid_block.attentions.0.{group_norm,to_q,to_k,to_v,to_out.0}.{weight,bias}",
        "spatial_vae.module.decoder.mid_block.resnets.N.{norm1,norm2,conv1,conv2}.{weight,bias}",
        "spatial_vae.module.decoder.up_blocks.N.resnets.N.{norm1,norm2,conv1,conv2,conv_shortcut}.{weight,bias}",
        "spatial_vae.module.decoder.up_blocks.N.upsamplers.0.conv.{weight,bias}",
        "temporal_vae.post_quant_conv.conv.{weight,bias}",
        "temporal_vae.decoder.{conv1.conv,norm1,conv_out.conv}.{weight,bias}",
        "temporal_vae.decoder.conv_blocks.N.conv.{weight,bias}",
        "temporal_vae.decoder.{res_blocks.N,block_res_blocks.N.N}.{norm1,norm2}.{weight,bias}",
        "temporal_vae.decoder.{res_blocks.N,block_res_blocks.N.N}.{conv1,conv2,conv3}.conv.weight",
    ],
    // The half that makes latents of frames.
    harmless: &[
        "spatial_vae.module.encoder.*",
        "spatial_vae.module.quant_conv.{weight,bias}",
        "temporal_vae.encoder.*",
        "temporal_vae.quant_conv.conv.{weight,bias}",
    ],
};

const COGVIDEOX_TRANSFORMER: Patterns = Patterns {
    read: &[
        "patch_embed.{proj,text_proj}.{weight,bias}",
        "patch_embed.pos_embedding",
        "{time_embedding,ofs_embedding}.linear_{1,2}.{weight,bias}",
        "transformer_blocks.N.{norm1,norm2}.{linear,linear_of_video,linear_of_text,norm}.{weight,bias}",
        "transformer_blocks.N.attn1.{to_q,to_k,to_v,to_out.0,norm_q,norm_k}.{weight,bias}",
        "transformer_blocks.N.ff.{net.0.proj,net.2}.{weight,bias}",
        "{norm_final,norm_out.linear,norm_out.norm,proj_out}.{weight,bias}",
    ],
    // Angles of places, and embeddings that the authors' library makes for every model.
    harmless: &[
        "mixins.pos_embed.freqs_{sin,cos}",
        "transformer.{position_embeddings,word_embeddings}.weight",
        "{model.,}embed_tokens.*",
    ],
};

const COGVIDEOX_VAE: Patterns = Patterns {
    read: &[
        "{encoder,decoder}.{conv_in,conv_out}.conv.{weight,bias}",
        "encoder.norm_out.{weight,bias}",
        "decoder.norm_out.{norm_layer,conv_y.conv,conv_b.conv}.{weight,bias}",
        "encoder.{mid_block,down_blocks.N}.resnets.N.{norm1,norm2,conv1.conv,conv2.conv,conv_shortcut}.{weight,bias}",
        "encoder.down_blocks.N.downsamplers.0.conv.{weight,bias}",
        "decoder.{mid_block,up_blocks.N}.resnets.N.{norm1,norm2}.{norm_layer,conv_y.conv,conv_b.conv}.{weight,bias}",
        "decoder.{mid_block,up_blocks.N}.resnets.N.{conv1.conv,conv2.conv,conv_shortcut}.{weight,bias}",
        "decoder.up_blocks.N.upsamplers.0.conv.{weight,bias}",
    ],
    // What it was trained against.
    harmless: &["loss.*"],
};

fn patterns(component: Component) -> &'static Patterns {
    match component {
        Component::WanTransformer | Component::WanLowNoise => &WAN_TRANSFORMER,
        Component::Umt5 | Component::T5 => &T5,
        Component::WanVae => &WAN_VAE,
        Component::ClipVision => &CLIP_VISION,
        Component::HunyuanTransformer => &HUNYUAN_TRANSFORMER,
        Component::Llama => &LLAMA,
        Component::ClipText => &CLIP_TEXT,
        Component::HunyuanVae => &HUNYUAN_VAE,
        Component::OpenSoraTransformer => &OPENSORA_TRANSFORMER,
        Component::OpenSoraVae => &OPENSORA_VAE,
        Component::CogVideoXTransformer => &COGVIDEOX_TRANSFORMER,
        Component::CogVideoXVae => &COGVIDEOX_VAE,
    }
}

/// The patterns of a component, without braces, with what they say.
pub(crate) struct Reads(Vec<(String, Use)>);

impl Reads {
    /// Those of a component.
    pub fn of(component: Component) -> Self {
        let Patterns { read, harmless } = patterns(component);
        let all = |patterns: &[&str], meaning: Use| {
            patterns.iter().flat_map(|pattern| expanded(pattern)).map(|pattern| (pattern, meaning)).collect::<Vec<_>>()
        };
        Reads([all(read, Use::Read), all(harmless, Use::Harmless)].concat())
    }

    /// A number that is missing of a row of modules, as 1 of `blocks.0` and `blocks.2`: what follows would not be read.
    pub fn missing<'a>(&self, names: impl Iterator<Item = &'a String>) -> Option<String> {
        let mut rows: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for name in names {
            let Some((pattern, _)) = self.0.iter().find(|(pattern, _)| matches(pattern, name)) else { continue };
            let Some(place) = pattern.split('.').position(|part| part == "N") else { continue };
            let before: Vec<&str> = name.split('.').take(place).collect();
            if let Some(index) = name.split('.').nth(place).and_then(|index| index.parse().ok()) {
                rows.entry(before.join(".")).or_default().insert(index);
            }
        }
        rows.into_iter().find_map(|(row, found)| {
            let missing = (0..found.len()).find(|index| !found.contains(index))?;
            Some(format!("{row}.{missing}"))
        })
    }

    /// What becomes of a tensor.
    pub fn what_of(&self, name: &str) -> Use {
        self.0.iter().find(|(pattern, _)| matches(pattern, name)).map_or(Use::Unknown, |(_, meaning)| *meaning)
    }
}

/// A pattern without braces for each that it stands for.
fn expanded(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_string()] };
    let Some((inside, after)) = rest.split_once('}') else { return vec![pattern.to_string()] };
    let after = expanded(after);
    inside.split(',').flat_map(|part| after.iter().map(move |after| format!("{before}{part}{after}"))).collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    if let Some(begin) = pattern.strip_suffix('*') {
        return name.starts_with(begin);
    }
    let mut parts = name.split('.');
    let is_index = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    pattern.split('.').all(|expected| match parts.next() {
        Some(part) => part == expected || expected == "N" && is_index(part),
        None => false,
    }) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_missing_is_found() {
        let missing = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            Reads::of(Component::WanTransformer).missing(names.iter())
        };
        let (first, second, third) =
            ("blocks.0.scale_shift_table", "blocks.1.attn1.to_q.weight", "blocks.2.scale_shift_table");
        assert_eq!(missing(&[first, second, third, "proj_out.bias"]), None);
        assert_eq!(missing(&[first, third]), Some("blocks.1".to_string()));
    }

    #[test]
    fn names_are_read_harmless_or_unknown() {
        let wan = Reads::of(Component::WanTransformer);
        assert_eq!(wan.what_of("blocks.17.attn2.to_out.0.bias"), Use::Read);
        assert_eq!(wan.what_of("blocks.17.attn2.to_out.1.bias"), Use::Unknown);
        assert_eq!(wan.what_of("blocks.17.scale_shift_table"), Use::Read);
        assert_eq!(wan.what_of("blocks.17.scale_shift_table.weight"), Use::Unknown);
        assert_eq!(wan.what_of("blocks.x.scale_shift_table"), Use::Unknown);
        assert_eq!(wan.what_of("model_type.Wan2_1-I2V-14B-480P"), Use::Harmless);
        let clip = Reads::of(Component::ClipVision);
        assert_eq!(clip.what_of("vision_model.pre_layrnorm.bias"), Use::Read);
        assert_eq!(clip.what_of("pre_layrnorm.bias"), Use::Read);
        assert_eq!(clip.what_of("text_model.final_layer_norm.bias"), Use::Harmless);
        assert_eq!(Reads::of(Component::Llama).what_of("layers.0.self_attn.q_proj.bias"), Use::Unknown);
    }
}
