//! What was found of a CogVideoX pipeline: a Diffusers folder, the authors' files, ComfyUI's, GGUF.

use navicache_models::Configuration;
use navicache_models::cogvideox::{TransformerConfig, VaeConfig};
use navicache_models::text::t5;
use tokenizers::Tokenizer;

use super::pipeline::CogVideoX;
use super::published::{Padded, Published};
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::{self, Scheduler};
use crate::{Error, Result};
use navicache_weights::layout::{DEFAULTS_FILE, INDEX, Parts, Piece, config, folder_of, incomplete, missing};
use navicache_weights::tokenizer;
use navicache_weights::{Component, Folder, Found, Role};

/// What was found of a pipeline.
#[derive(Default)]
struct Assembly {
    defaults: Option<Defaults>,
    scheduler: Option<Scheduler>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<Piece<t5::Config>>,
    transformer: Option<Piece<TransformerConfig>>,
    vae: Option<Piece<VaeConfig>>,
    /// Whether the VAE's configuration says what its latents are scaled by.
    is_scaled: bool,
    /// Configurations without weights, for weights that are given apart.
    like: Like,
    /// Files that hold no part of a pipeline, and why.
    unknown: Vec<String>,
}

#[derive(Default)]
struct Like {
    transformer: Option<TransformerConfig>,
    vae: Option<VaeConfig>,
}

/// Understands what was found.
pub(super) fn read(mut parts: Parts) -> Result<Box<dyn seam::Assembly>> {
    let mut assembly = match &parts.folder {
        Some(folder) => diffusers(folder, &parts)?,
        None => loose(&parts)?,
    };
    for found in std::mem::take(&mut parts.found).into_values() {
        assembly.take(found)?;
    }
    let [tokenizer, _] = parts.tokenizers;
    assembly.tokenizer = tokenizer.or(assembly.tokenizer);
    assembly.unknown = parts.unknown;
    Ok(Box::new(assembly))
}

impl Assembly {
    /// Adds a component that was recognised. A configuration that is there counts where it fits.
    fn take(&mut self, found: Found) -> Result<()> {
        let Found { recognised, tensors, file, .. } = &found;
        match recognised.component {
            Component::CogVideoXTransformer => {
                let shapes = TransformerConfig::from_weights(tensors)?;
                let fits = |like: &TransformerConfig| like.dim() == shapes.dim() && like.patch() == shapes.patch();
                let config = self.like.transformer.take().filter(fits).unwrap_or(shapes);
                config.agree(tensors)?;
                self.transformer = Some(Piece { config, tensors: found.tensors });
            }
            Component::T5 => {
                if let Some(tokenizer) = tokenizer::from_weights(&found)? {
                    self.tokenizer.get_or_insert(tokenizer);
                }
                let config = t5::Config::from_weights(tensors)?;
                config.agree(tensors)?;
                self.text_encoder = Some(Piece { config, tensors: found.tensors });
            }
            Component::CogVideoXVae => {
                let shapes = VaeConfig::from_weights(tensors)?;
                let fits = |like: &VaeConfig| like.block_out_channels == shapes.block_out_channels;
                let like = self.like.vae.take().filter(fits);
                self.is_scaled = like.is_some();
                let config = like.unwrap_or(shapes);
                config.agree(tensors)?;
                self.vae = Some(Piece { config, tensors: found.tensors });
            }
            other => return Err(Error::file(&file.path, format!("{other} is no part of CogVideoX"))),
        }
        Ok(())
    }
}

impl seam::Assembly for Assembly {
    fn missing(&self) -> Vec<String> {
        missing([
            (self.transformer.is_none(), "a transformer (`transformer` FILE)"),
            (self.text_encoder.is_none(), "a T5 text encoder (`text_encoder` FILE)"),
            (self.tokenizer.is_none(), "a tokenizer (`tokenizer` FILE: tokenizer.json or spiece.model)"),
            (self.vae.is_none(), "a VAE (`vae` FILE)"),
        ])
    }

    fn complete(self: Box<Self>, place: &str, host: Host) -> Result<Box<dyn Family>> {
        let missing = self.missing();
        let Assembly { defaults, scheduler, tokenizer, text_encoder, transformer, vae, is_scaled, unknown, .. } = *self;
        let (Some(transformer), Some(text_encoder), Some(vae), Some(tokenizer)) =
            (transformer, text_encoder, vae, tokenizer)
        else {
            return Err(incomplete(place, &missing, &unknown).into());
        };
        check_channels(place, transformer.config.out_channels, vae.config.latent_channels)?;
        let published = Published::of(&transformer.config);
        let vae_config = if is_scaled { vae.config } else { published.scaled(vae.config) };
        let sizes = Padded { transformer: transformer.config.clone(), vae: vae_config.clone() };
        let weights = [
            (Role::TextEncoder, text_encoder.tensors),
            (Role::Transformer, transformer.tensors),
            (Role::Vae, vae.tensors),
        ];
        let shared = Shared {
            host,
            defaults: defaults.unwrap_or_else(|| published.defaults(&transformer.config)),
            scheduler: scheduler.unwrap_or_else(|| published.scheduler()),
            sizes: Box::new(sizes),
            weights: weights.into(),
            autoencoder: Resident::default(),
        };
        Ok(Box::new(CogVideoX {
            shared,
            tokenizer,
            text_encoder: text_encoder.config,
            transformer: transformer.config,
            vae: vae_config,
            transformer_model: Resident::default(),
        }))
    }
}

/// Reads a Diffusers folder, but for the parts that are given apart.
fn diffusers(folder: &Folder, parts: &Parts) -> Result<Assembly> {
    let scheduler = Scheduler::read(folder, scheduler::Path::Diffusion)?;
    let class = "_class_name";
    let transformer: TransformerConfig = config(folder, "transformer", class, "CogVideoXTransformer3DModel")?;
    let vae: VaeConfig = config(folder, "vae", class, "AutoencoderKLCogVideoX")?;
    let text_encoder: t5::Config = config(folder, "text_encoder", "model_type", "t5")?;
    let index: serde_json::Value = folder.json(INDEX)?;
    let said = index[class].as_str() == Some("CogVideoXImageToVideoPipeline");
    if said != transformer.takes_picture() {
        let reason = format!(
            "{class}: the transformer takes {} channels and makes {}, which is a model {}",
            transformer.in_channels,
            transformer.out_channels,
            if transformer.takes_picture() { "of pictures" } else { "of text alone" }
        );
        return Err(Error::file(folder.path(INDEX), reason));
    }
    let weights = "diffusion_pytorch_model";
    Ok(Assembly {
        defaults: folder.contains(DEFAULTS_FILE).then(|| folder.json(DEFAULTS_FILE)).transpose()?,
        scheduler: Some(scheduler),
        tokenizer: parts.tokenizer_of(folder, 0, &["tokenizer/tokenizer.json", "tokenizer/spiece.model"])?,
        text_encoder: parts.piece(folder, ("text_encoder", "model"), Component::T5, &text_encoder)?,
        transformer: parts.piece(folder, ("transformer", weights), Component::CogVideoXTransformer, &transformer)?,
        vae: parts.piece(folder, ("vae", weights), Component::CogVideoXVae, &vae)?,
        is_scaled: true,
        like: Like { transformer: Some(transformer), vae: Some(vae) },
        unknown: Vec::new(),
    })
}

/// What stands beside loose weights: configurations of their own, and the tokenizer.
fn loose(parts: &Parts) -> Result<Assembly> {
    let mut assembly = Assembly::default();
    assembly.like.transformer = parts.config_beside(Role::Transformer).ok().flatten();
    assembly.like.vae = parts.config_beside(Role::Vae).ok().flatten();
    let beside = parts.found.get(&Role::TextEncoder).map(|found| folder_of(&found.file.path).to_path_buf());
    let apart = parts.searched.iter().flat_map(|path| ["tokenizer", ""].map(|name| path.join(name)));
    let files = beside.into_iter().chain(apart);
    let files = files.flat_map(|folder| ["tokenizer.json", "spiece.model"].map(|name| folder.join(name)));
    let file = files.into_iter().find(|file| file.exists());
    assembly.tokenizer = file.map(|file| tokenizer::from_file(&file)).transpose()?;
    Ok(assembly)
}
