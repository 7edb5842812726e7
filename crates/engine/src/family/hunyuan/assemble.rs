//! What was found of a HunyuanVideo pipeline: a Diffusers folder, the authors' repository, ComfyUI's files, GGUF.

use std::path::{Path, PathBuf};

use navicache_control::solver::SolverKind;
use navicache_media::Rate;
use navicache_models::hunyuan::{TransformerConfig, VaeConfig};
use navicache_models::text::clip;
use navicache_models::text::llama::{self, Pairs};
use navicache_models::{Configuration, Precision};
use tokenizers::Tokenizer;

use super::pipeline::{Hunyuan, POSITIONS};
use crate::family::piece::piece;
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::{self, Scheduler};
use crate::sizes::Causal;
use crate::{Error, Result};
use navicache_weights::layout::{DEFAULTS_FILE, Parts, Piece, config, config_beside, folder_of, incomplete, missing};
use navicache_weights::tokenizer;
use navicache_weights::{Component, Folder, Found, Naming, Role};

/// Shift of the noise schedule that the model was published with.
const SHIFT: f64 = 7.0;

/// What was found of a pipeline.
#[derive(Default)]
struct Assembly {
    defaults: Option<Defaults>,
    scheduler: Option<Scheduler>,
    tokenizer: Option<Tokenizer>,
    tokenizer_2: Option<Tokenizer>,
    text_encoder: Option<Piece<llama::Config>>,
    text_encoder_2: Option<Piece<clip::Config>>,
    transformer: Option<Piece<TransformerConfig>>,
    vae: Option<Piece<VaeConfig>>,
    /// Configurations without weights, for weights that are given apart.
    like: Like,
    /// Files that hold no part of a pipeline, and why.
    unknown: Vec<String>,
    /// What the user should know of what was found.
    notes: Vec<String>,
}

#[derive(Default)]
struct Like {
    text_encoder: Option<llama::Config>,
    text_encoder_2: Option<clip::Config>,
    transformer: Option<TransformerConfig>,
    vae: Option<VaeConfig>,
}

/// What the authors' and the reference pipeline take where nothing is asked for.
fn published() -> Defaults {
    Defaults {
        width: 1280,
        height: 720,
        frames: 129,
        fps: Rate::whole(24),
        scale: None,
        steps: 50,
        guidance: 6.0,
        guidance_2: None,
        max_sequence_length: 256,
        presets: "hunyuanvideo".to_string(),
        trained: None,
    }
}

/// Understands what was found.
pub(super) fn read(mut parts: Parts) -> Result<Box<dyn seam::Assembly>> {
    let mut assembly = match &parts.folder {
        Some(folder) => diffusers(folder, &parts)?,
        None => loose(&parts)?,
    };
    assembly.notes.append(&mut parts.notes);
    let (notes, like) = (&mut assembly.notes, &assembly.like);
    if let Some(found) = parts.found.remove(&Role::Transformer) {
        refuse_image_to_video(&found.file.path)?;
        let piece = piece(found, "HunyuanVideoTransformer3DModel", notes, |Found { tensors, .. }| {
            let mut config = TransformerConfig::from_weights(tensors)?;
            if let Some(like) = like.transformer.as_ref().filter(|like| like.fits(tensors)) {
                config.rope_axes_dim = like.rope_axes_dim;
                config.rope_theta = like.rope_theta;
            }
            Ok(config)
        })?;
        assembly.transformer = Some(piece);
    }
    if let Some(found) = parts.found.remove(&Role::TextEncoder) {
        let is_of_llama_cpp = found.recognised.naming == Naming::LlamaCpp;
        let pairs = if is_of_llama_cpp { Pairs::Neighbours } else { Pairs::Halves };
        let beside: Option<llama::Config> = config_beside(&found, "llama", notes)?;
        let like = beside.as_ref().or(like.text_encoder.as_ref());
        let config = llama::Config::from_weights(&found.tensors, like, pairs)?;
        config.agree(&found.tensors)?;
        assembly.text_encoder = Some(Piece { config, tensors: found.tensors });
    }
    if let Some(found) = parts.found.remove(&Role::SecondTextEncoder) {
        let beside: Option<clip::Config> = match config_beside(&found, "clip_text_model", notes)? {
            Some(config) => Some(config),
            None => config_beside(&found, "clip", notes)?,
        };
        let like = beside.as_ref().or(like.text_encoder_2.as_ref());
        let config = clip::Config::from_weights(&found.tensors, like)?;
        config.agree(&found.tensors)?;
        assembly.text_encoder_2 = Some(Piece { config, tensors: found.tensors });
    }
    if let Some(found) = parts.found.remove(&Role::Vae) {
        let beside: Option<VaeConfig> = match config_beside(&found, "AutoencoderKLHunyuanVideo", notes)? {
            Some(config) => Some(config),
            None => config_beside(&found, "AutoencoderKLCausal3D", notes)?,
        };
        let like = beside.or(like.vae.clone().filter(|like| like.fits(&found.tensors)));
        let config = like.map_or_else(|| VaeConfig::from_weights(&found.tensors), Ok)?;
        config.agree(&found.tensors)?;
        assembly.vae = Some(Piece { config, tensors: found.tensors });
    }
    let [tokenizer, tokenizer_2] = parts.tokenizers;
    assembly.tokenizer = tokenizer.or(assembly.tokenizer);
    assembly.tokenizer_2 = tokenizer_2.or(assembly.tokenizer_2);
    assembly.unknown = parts.unknown;
    Ok(Box::new(assembly))
}

impl seam::Assembly for Assembly {
    fn missing(&self) -> Vec<String> {
        missing([
            (self.transformer.is_none(), "a transformer (`transformer` FILE)"),
            (self.text_encoder.is_none(), "a LLaMA text encoder (`text_encoder` FILE)"),
            (self.tokenizer.is_none(), "its tokenizer (`tokenizer` FILE: tokenizer.json)"),
            (self.text_encoder_2.is_none(), "a CLIP text encoder (`text_encoder_2` FILE)"),
            (
                self.tokenizer_2.is_none(),
                "its tokenizer (`tokenizer_2` FILE: tokenizer.json, or vocab.json beside merges.txt)",
            ),
            (self.vae.is_none(), "a VAE (`vae` FILE)"),
        ])
    }

    fn warnings(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn complete(self: Box<Self>, place: &str, host: Host) -> Result<Box<dyn Family>> {
        let missing = self.missing();
        let Assembly { text_encoder, text_encoder_2, transformer, vae, tokenizer, tokenizer_2, .. } = *self;
        let (Some(text_encoder), Some(text_encoder_2)) = (text_encoder, text_encoder_2) else {
            return Err(incomplete(place, &missing, &self.unknown).into());
        };
        let (Some(transformer), Some(vae), Some(tokenizer), Some(tokenizer_2)) =
            (transformer, vae, tokenizer, tokenizer_2)
        else {
            return Err(incomplete(place, &missing, &self.unknown).into());
        };
        check_channels(place, transformer.config.in_channels, vae.config.latent_channels)?;
        let sizes = Causal {
            channels: transformer.config.in_channels,
            temporal: vae.config.temporal_compression_ratio,
            spatial: vae.config.spatial_compression_ratio,
            patch: transformer.config.patch(),
            positions: POSITIONS,
        };
        let weights = [
            (Role::TextEncoder, text_encoder.tensors),
            (Role::SecondTextEncoder, text_encoder_2.tensors),
            (Role::Transformer, transformer.tensors),
            (Role::Vae, vae.tensors),
        ];
        let scheduler = self.scheduler.unwrap_or_else(|| Scheduler::published(SolverKind::Euler, SHIFT));
        let shared = Shared {
            host,
            defaults: self.defaults.unwrap_or_else(published),
            scheduler: scheduler.evenly(),
            sizes: Box::new(sizes),
            weights: weights.into(),
            narrowest_vae: Precision::F32,
            autoencoder: Resident::default(),
        };
        Ok(Box::new(Hunyuan {
            shared,
            tokenizer,
            tokenizer_2,
            text_encoder: text_encoder.config,
            text_encoder_2: text_encoder_2.config,
            transformer: transformer.config,
            vae: vae.config,
            transformer_model: Resident::default(),
        }))
    }
}

/// Reads a Diffusers folder, but for the parts that are given apart.
fn diffusers(folder: &Folder, parts: &Parts) -> Result<Assembly> {
    let scheduler = Scheduler::read(folder, scheduler::Path::Flow)?;
    let mut notes = Vec::new();
    let transformer: TransformerConfig = config(folder, "transformer", "HunyuanVideoTransformer3DModel", &mut notes)?;
    let vae: VaeConfig = config(folder, "vae", "AutoencoderKLHunyuanVideo", &mut notes)?;
    let text_encoder: llama::Config = config(folder, "text_encoder", "llama", &mut notes)?;
    let text_encoder_2: clip::Config = config(folder, "text_encoder_2", "clip_text_model", &mut notes)?;
    let weights = "diffusion_pytorch_model";
    Ok(Assembly {
        defaults: folder.contains(DEFAULTS_FILE).then(|| folder.json(DEFAULTS_FILE)).transpose()?,
        scheduler: Some(scheduler),
        tokenizer: parts.tokenizer_of(folder, 0, &["tokenizer/tokenizer.json"])?,
        tokenizer_2: match parts.tokenizers[1] {
            Some(_) => None,
            None if folder.contains("tokenizer_2/tokenizer.json") => {
                parts.tokenizer_of(folder, 1, &["tokenizer_2/tokenizer.json"])?
            }
            None => Some(clip_tokenizer(folder, "tokenizer_2")?),
        },
        text_encoder: parts.piece(folder, ("text_encoder", "model"), Component::Llama, &text_encoder)?,
        text_encoder_2: parts.piece(folder, ("text_encoder_2", "model"), Component::ClipText, &text_encoder_2)?,
        transformer: parts.piece(folder, ("transformer", weights), Component::HunyuanTransformer, &transformer)?,
        vae: parts.piece(folder, ("vae", weights), Component::HunyuanVae, &vae)?,
        like: Like {
            text_encoder: Some(text_encoder),
            text_encoder_2: Some(text_encoder_2),
            transformer: Some(transformer),
            vae: Some(vae),
        },
        unknown: Vec::new(),
        notes,
    })
}

/// What stands beside loose weights: tokenizers in the folders of their encoders.
fn loose(parts: &Parts) -> Result<Assembly> {
    let mut assembly = Assembly::default();
    for (role, place, name) in [
        (Role::TextEncoder, &mut assembly.tokenizer, "tokenizer"),
        (Role::SecondTextEncoder, &mut assembly.tokenizer_2, "tokenizer_2"),
    ] {
        for folder in folders(parts, role, name) {
            if folder.join("tokenizer.json").exists() {
                *place = Some(tokenizer::from_file(&folder.join("tokenizer.json"))?);
            } else if folder.join("vocab.json").exists() && folder.join("merges.txt").exists() {
                *place = Some(clip_tokenizer(&Folder::Disk(folder), "")?);
            }
            if place.is_some() {
                break;
            }
        }
    }
    Ok(assembly)
}

/// One of the published image-to-video models has the shapes of the text-to-video one, and would make something else.
fn refuse_image_to_video(path: &Path) -> Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.replace(['-', '_', ' '], "");
    if name.contains("i2v") || name.contains("imagetovideo") {
        let reason = "a HunyuanVideo transformer of pictures (I2V) by its name, which is not supported yet";
        return Err(Error::file(path, reason));
    }
    Ok(())
}

/// Where a tokenizer may be: beside its encoder, or in a folder of its own.
fn folders(parts: &Parts, role: Role, name: &str) -> Vec<PathBuf> {
    let beside = parts.found.get(&role).map(|found| folder_of(&found.file.path).to_path_buf());
    let apart = parts.searched.iter().map(|path: &PathBuf| Path::join(path, name));
    beside.into_iter().chain(apart).collect()
}

/// CLIP's tokenizer of `vocab.json` and `merges.txt`.
fn clip_tokenizer(folder: &Folder, name: &str) -> Result<Tokenizer> {
    let file = |file: &str| if name.is_empty() { file.to_string() } else { format!("{name}/{file}") };
    let (vocabulary, merges) = (file("vocab.json"), file("merges.txt"));
    let made = tokenizer::clip(&folder.bytes(&vocabulary)?, &folder.bytes(&merges)?);
    made.map_err(|reason| Error::file(folder.path(&vocabulary), reason))
}
