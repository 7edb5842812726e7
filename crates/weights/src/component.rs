//! The parts of a pipeline, and whose names their tensors have.

/// A part of a pipeline of some family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The Wan transformer.
    WanTransformer,
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
}

/// What a component does in its pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Predicts.
    Transformer,
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
            Role::TextEncoder => "text_encoder",
            Role::SecondTextEncoder => "text_encoder_2",
            Role::Vae => "vae",
            Role::ImageEncoder => "image_encoder",
        }
    }
}

impl Component {
    /// What it does.
    pub fn role(self) -> Role {
        match self {
            Component::WanTransformer | Component::HunyuanTransformer | Component::OpenSoraTransformer => {
                Role::Transformer
            }
            Component::Umt5 | Component::Llama | Component::T5 => Role::TextEncoder,
            Component::ClipText => Role::SecondTextEncoder,
            Component::WanVae | Component::HunyuanVae | Component::OpenSoraVae => Role::Vae,
            Component::ClipVision => Role::ImageEncoder,
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Component::WanTransformer => "a Wan transformer",
            Component::Umt5 => "a UMT5 text encoder",
            Component::WanVae => "a Wan VAE",
            Component::ClipVision => "a CLIP image encoder",
            Component::HunyuanTransformer => "a HunyuanVideo transformer",
            Component::Llama => "a LLaMA text encoder",
            Component::ClipText => "a CLIP text encoder",
            Component::HunyuanVae => "a HunyuanVideo VAE",
            Component::OpenSoraTransformer => "an Open-Sora transformer",
            Component::T5 => "a T5 text encoder",
            Component::OpenSoraVae => "an Open-Sora VAE",
        })
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
}

impl std::fmt::Display for Naming {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Naming::Diffusers => "Diffusers",
            Naming::Authors => "the authors'",
            Naming::LlamaCpp => "llama.cpp's",
        })
    }
}
