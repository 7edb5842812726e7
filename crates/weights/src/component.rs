//! The parts of a pipeline, and whose names their tensors have.

/// A part of a pipeline of some family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The Wan transformer; of two, the one for high noise.
    WanTransformer,
    /// Of two Wan transformers, the one for low noise.
    WanLowNoise,
    /// The UMT5 encoder.
    Umt5,
    /// The Wan2.1 or Wan2.2 autoencoder.
    WanVae,
    /// The vision half of CLIP.
    ClipVision,
    /// The HunyuanVideo transformer.
    HunyuanTransformer,
    /// LLaMA.
    Llama,
    /// The text half of CLIP.
    ClipText,
    /// The HunyuanVideo autoencoder.
    HunyuanVae,
    /// The Open-Sora transformer, STDiT3.
    OpenSoraTransformer,
    /// The T5 encoder.
    T5,
    /// The Open-Sora autoencoder.
    OpenSoraVae,
    /// The CogVideoX transformer.
    CogVideoXTransformer,
    /// The CogVideoX autoencoder.
    CogVideoXVae,
}

/// What a component does in its pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Predicts.
    Transformer,
    /// Predicts in the steps of low noise, where there are two.
    SecondTransformer,
    /// Encodes the prompt.
    TextEncoder,
    /// Encodes it once more.
    SecondTextEncoder,
    /// Decodes latents.
    Vae,
    /// Encodes a picture.
    ImageEncoder,
}

impl Role {
    /// What a front calls the file that gives it.
    pub fn field(self) -> &'static str {
        match self {
            Role::Transformer => "transformer",
            Role::SecondTransformer => "transformer_2",
            Role::TextEncoder => "text_encoder",
            Role::SecondTextEncoder => "text_encoder_2",
            Role::Vae => "vae",
            Role::ImageEncoder => "image_encoder",
        }
    }
}

/// What is known of a component.
pub(crate) struct About {
    pub component: Component,
    pub role: Role,
    /// What it is called in messages.
    pub name: &'static str,
    /// What its `config.json` calls it.
    pub described: &'static [&'static str],
    /// Tensors that only this component has, in a naming.
    pub signatures: &'static [(Naming, &'static str)],
}

/// Every component. A set of tensors is the first whose signature it has.
pub(crate) static COMPONENTS: [About; 14] = [
    About {
        component: Component::WanTransformer,
        role: Role::Transformer,
        name: "a Wan transformer",
        described: &["WanTransformer3DModel", "WanModel"],
        signatures: &[
            (Naming::Diffusers, "condition_embedder.time_proj.weight"),
            (Naming::Diffusers, "blocks.0.attn1.to_q.weight"),
            (Naming::Authors, "time_projection.1.weight"),
            (Naming::Authors, "blocks.0.self_attn.q.weight"),
        ],
    },
    // Its tensors have the other one's names; the file's name tells them apart: `Expert`.
    About {
        component: Component::WanLowNoise,
        role: Role::SecondTransformer,
        name: "a Wan transformer for low noise",
        described: &["WanTransformer3DModel", "WanModel"],
        signatures: &[],
    },
    About {
        component: Component::Umt5,
        role: Role::TextEncoder,
        name: "a UMT5 text encoder",
        described: &["umt5"],
        signatures: &[
            (Naming::Diffusers, "encoder.block.0.layer.0.SelfAttention.q.weight"),
            (Naming::Authors, "blocks.0.pos_embedding.embedding.weight"),
            (Naming::LlamaCpp, "enc.blk.0.attn_q.weight"),
        ],
    },
    // Its tensors have UMT5's names; position biases tell them apart.
    About {
        component: Component::T5,
        role: Role::TextEncoder,
        name: "a T5 text encoder",
        described: &["t5"],
        signatures: &[],
    },
    About {
        component: Component::WanVae,
        role: Role::Vae,
        name: "a Wan VAE",
        described: &["AutoencoderKLWan"],
        signatures: &[
            (Naming::Diffusers, "decoder.mid_block.resnets.0.norm1.gamma"),
            (Naming::Authors, "decoder.middle.0.residual.0.gamma"),
        ],
    },
    // A whole CLIP has both halves; its text half is what is meant then.
    About {
        component: Component::ClipText,
        role: Role::SecondTextEncoder,
        name: "a CLIP text encoder",
        described: &["clip_text_model", "clip"],
        signatures: &[
            (Naming::Diffusers, "text_model.embeddings.token_embedding.weight"),
            (Naming::Diffusers, "embeddings.token_embedding.weight"),
        ],
    },
    About {
        component: Component::ClipVision,
        role: Role::ImageEncoder,
        name: "a CLIP image encoder",
        described: &["clip_vision_model"],
        signatures: &[
            (Naming::Diffusers, "vision_model.embeddings.class_embedding"),
            (Naming::Diffusers, "embeddings.class_embedding"),
            (Naming::Authors, "visual.cls_embedding"),
        ],
    },
    About {
        component: Component::HunyuanTransformer,
        role: Role::Transformer,
        name: "a HunyuanVideo transformer",
        described: &["HunyuanVideoTransformer3DModel"],
        signatures: &[
            (Naming::Diffusers, "context_embedder.token_refiner.refiner_blocks.0.norm1.weight"),
            (Naming::Authors, "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
        ],
    },
    About {
        component: Component::CogVideoXTransformer,
        role: Role::Transformer,
        name: "a CogVideoX transformer",
        described: &["CogVideoXTransformer3DModel"],
        signatures: &[
            (Naming::ComfyUi, "time_embedding_linear_1.weight"), // before Diffusers', some of whose names it has
            (Naming::Diffusers, "patch_embed.text_proj.weight"),
            (Naming::Authors, "mixins.patch_embed.text_proj.weight"),
        ],
    },
    // Before HunyuanVideo's, which has some of its names.
    About {
        component: Component::CogVideoXVae,
        role: Role::Vae,
        name: "a CogVideoX VAE",
        described: &["AutoencoderKLCogVideoX"],
        signatures: &[
            (Naming::Diffusers, "decoder.mid_block.resnets.0.norm1.conv_y.conv.weight"),
            (Naming::Authors, "decoder.mid.block_1.norm1.conv_y.conv.weight"),
        ],
    },
    About {
        component: Component::HunyuanVae,
        role: Role::Vae,
        name: "a HunyuanVideo VAE",
        described: &["AutoencoderKLHunyuanVideo", "AutoencoderKLCausal3D"],
        signatures: &[(Naming::Diffusers, "decoder.mid_block.resnets.0.conv1.conv.weight")],
    },
    About {
        component: Component::Llama,
        role: Role::TextEncoder,
        name: "a LLaMA text encoder",
        described: &["llama"],
        signatures: &[
            (Naming::Diffusers, "layers.0.self_attn.q_proj.weight"),
            (Naming::LlamaCpp, "blk.0.attn_q.weight"),
        ],
    },
    About {
        component: Component::OpenSoraTransformer,
        role: Role::Transformer,
        name: "an Open-Sora transformer",
        described: &["STDiT3"],
        signatures: &[(Naming::Authors, "spatial_blocks.0.attn.qkv.weight")],
    },
    About {
        component: Component::OpenSoraVae,
        role: Role::Vae,
        name: "an Open-Sora VAE",
        described: &["VideoAutoencoderPipeline"],
        signatures: &[(Naming::Authors, "temporal_vae.decoder.conv1.conv.weight")],
    },
];

impl Component {
    fn about(self) -> Option<&'static About> {
        COMPONENTS.iter().find(|about| about.component == self)
    }

    /// What its `config.json` calls it: `_class_name` of Diffusers and of authors, `model_type` of transformers.
    pub fn described(self) -> &'static [&'static str] {
        self.about().map_or(&[], |about| about.described)
    }

    /// What it does.
    pub fn role(self) -> Role {
        self.about().map_or(Role::Transformer, |about| about.role)
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.about().map_or("", |about| about.name))
    }
}

/// Whose names the tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Diffusers and transformers.
    Diffusers,
    /// The authors' repositories, and ComfyUI's files for the transformer and the VAE.
    Authors,
    /// llama.cpp's, for text encoders in GGUF.
    LlamaCpp,
    /// ComfyUI's own, where they are neither of the first two.
    ComfyUi,
}

impl std::fmt::Display for Naming {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Naming::Diffusers => "Diffusers",
            Naming::Authors => "the authors'",
            Naming::LlamaCpp => "llama.cpp's",
            Naming::ComfyUi => "ComfyUI's",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_has_its_row_and_every_signature_is_of_one() {
        let all = [
            Component::WanTransformer,
            Component::WanLowNoise,
            Component::Umt5,
            Component::WanVae,
            Component::ClipVision,
            Component::HunyuanTransformer,
            Component::Llama,
            Component::ClipText,
            Component::HunyuanVae,
            Component::OpenSoraTransformer,
            Component::T5,
            Component::OpenSoraVae,
            Component::CogVideoXTransformer,
            Component::CogVideoXVae,
        ];
        assert_eq!(all.len(), COMPONENTS.len());
        assert!(all.iter().all(|component| component.about().is_some()));
        let signatures: Vec<_> = COMPONENTS.iter().flat_map(|about| about.signatures).collect();
        let names: std::collections::BTreeSet<_> = signatures.iter().map(|(_, name)| name).collect();
        assert_eq!(names.len(), signatures.len());
    }
}
