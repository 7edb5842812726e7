//! What was found of a CogVideoX pipeline: a Diffusers folder, the authors' files, ComfyUI's, GGUF.

use navicache_models::cogvideox::{TransformerConfig, VaeConfig};
use navicache_models::text::t5;
use navicache_models::{Configuration, Precision};
use tokenizers::Tokenizer;

use super::pipeline::CogVideoX;
use super::published::{Padded, Published};
use crate::family::piece::piece;
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::{self, Scheduler};
use crate::{Error, Result};
use navicache_weights::layout::{
    DEFAULTS_FILE, INDEX, Parts, Piece, config, config_beside, folder_of, incomplete, missing,
};
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
    /// What the user should know of what was found.
    notes: Vec<String>,
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
    assembly.notes.append(&mut parts.notes);
    let (notes, like) = (&mut assembly.notes, &assembly.like);
    // A configuration that is there counts where it fits; that beside the weights first.
    if let Some(found) = parts.found.remove(&Role::Transformer) {
        let piece = piece(found, "CogVideoXTransformer3DModel", notes, |Found { tensors, .. }| {
            let like = like.transformer.clone().filter(|like| like.fits(tensors));
            Ok(like.map_or_else(|| TransformerConfig::from_weights(tensors), Ok)?)
        })?;
        assembly.transformer = Some(piece);
    }
    if let Some(found) = parts.found.remove(&Role::TextEncoder) {
        assembly.tokenizer = assembly.tokenizer.or(tokenizer::from_weights(&found)?);
        let piece = piece(found, "t5", notes, |found| Ok(t5::Config::from_weights(&found.tensors)?))?;
        assembly.text_encoder = Some(piece);
    }
    if let Some(found) = parts.found.remove(&Role::Vae) {
        let beside: Option<VaeConfig> = config_beside(&found, "AutoencoderKLCogVideoX", notes)?;
        let like = beside.or(like.vae.clone().filter(|like| like.fits(&found.tensors)));
        assembly.is_scaled = like.is_some();
        let config = like.map_or_else(|| VaeConfig::from_weights(&found.tensors), Ok)?;
        config.agree(&found.tensors)?;
        assembly.vae = Some(Piece { config, tensors: found.tensors });
    }
    let [tokenizer, _] = parts.tokenizers;
    assembly.tokenizer = tokenizer.or(assembly.tokenizer);
    assembly.unknown = parts.unknown;
    Ok(Box::new(assembly))
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

    fn warnings(&self) -> Vec<String> {
        self.notes.clone()
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
            narrowest_vae: Precision::Bf16,
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
    let mut notes = Vec::new();
    let transformer: TransformerConfig = config(folder, "transformer", "CogVideoXTransformer3DModel", &mut notes)?;
    let vae: VaeConfig = config(folder, "vae", "AutoencoderKLCogVideoX", &mut notes)?;
    let text_encoder: t5::Config = config(folder, "text_encoder", "t5", &mut notes)?;
    let index: serde_json::Value = folder.json(INDEX)?;
    let said = index["_class_name"].as_str() == Some("CogVideoXImageToVideoPipeline");
    if said != transformer.takes_picture() {
        let reason = format!(
            "_class_name: the transformer takes {} channels and makes {}, which is a model {}",
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
        notes,
    })
}

/// What stands beside loose weights: the tokenizer.
fn loose(parts: &Parts) -> Result<Assembly> {
    let mut assembly = Assembly::default();
    let beside = parts.found.get(&Role::TextEncoder).map(|found| folder_of(&found.file.path).to_path_buf());
    let apart = parts.searched.iter().flat_map(|path| ["tokenizer", ""].map(|name| path.join(name)));
    let files = beside.into_iter().chain(apart);
    let files = files.flat_map(|folder| ["tokenizer.json", "spiece.model"].map(|name| folder.join(name)));
    let file = files.into_iter().find(|file| file.exists());
    assembly.tokenizer = file.map(|file| tokenizer::from_file(&file)).transpose()?;
    Ok(assembly)
}
