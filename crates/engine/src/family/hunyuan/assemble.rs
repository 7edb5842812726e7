//! What was found of a HunyuanVideo pipeline: a Diffusers folder, the authors' repository, ComfyUI's files, GGUF.

use std::path::{Path, PathBuf};

use navicache_control::solver::SolverKind;
use navicache_models::Configuration;
use navicache_models::hunyuan::{TransformerConfig, VaeConfig};
use navicache_models::text::clip;
use navicache_models::text::llama::{self, Pairs};
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::pipeline::{Hunyuan, POSITIONS};
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::{self, Scheduler};
use crate::sizes::Causal;
use crate::{Error, Result};
use navicache_weights::layout::{DEFAULTS_FILE, Parts, Piece, config, folder_of, incomplete, missing};
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
        fps: 24,
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
    for found in std::mem::take(&mut parts.found).into_values() {
        assembly.take(found)?;
    }
    let [tokenizer, tokenizer_2] = parts.tokenizers;
    assembly.tokenizer = tokenizer.or(assembly.tokenizer);
    assembly.tokenizer_2 = tokenizer_2.or(assembly.tokenizer_2);
    assembly.unknown = parts.unknown;
    Ok(Box::new(assembly))
}

impl Assembly {
    /// Adds a component that was recognised.
    fn take(&mut self, Found { recognised, tensors, file, .. }: Found) -> Result<()> {
        match recognised.component {
            Component::HunyuanTransformer => {
                refuse_image_to_video(&file.path)?;
                let mut config = TransformerConfig::from_weights(&tensors)?;
                if let Some(like) = self.like.transformer.take().filter(|like| like.dim() == config.dim()) {
                    config.rope_axes_dim = like.rope_axes_dim;
                }
                config.agree(&tensors)?;
                self.transformer = Some(Piece { config, tensors });
            }
            Component::Llama => {
                let pairs = if recognised.naming == Naming::LlamaCpp { Pairs::Neighbours } else { Pairs::Halves };
                let config = llama::Config::from_weights(&tensors, self.like.text_encoder.as_ref(), pairs)?;
                config.agree(&tensors)?;
                self.text_encoder = Some(Piece { config, tensors });
            }
            Component::ClipText => {
                let config = clip::Config::from_weights(&tensors, self.like.text_encoder_2.as_ref())?;
                config.agree(&tensors)?;
                self.text_encoder_2 = Some(Piece { config, tensors });
            }
            Component::HunyuanVae => {
                let found = VaeConfig::from_weights(&tensors)?;
                let config = match self.like.vae.take() {
                    Some(like) if like.block_out_channels == found.block_out_channels => like,
                    _ => found,
                };
                config.agree(&tensors)?;
                self.vae = Some(Piece { config, tensors });
            }
            other => return Err(Error::file(&file.path, format!("{other} is no part of HunyuanVideo"))),
        }
        Ok(())
    }
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
    let class = "_class_name";
    let transformer: TransformerConfig = config(folder, "transformer", class, "HunyuanVideoTransformer3DModel")?;
    let vae: VaeConfig = config(folder, "vae", class, "AutoencoderKLHunyuanVideo")?;
    let text_encoder: llama::Config = config(folder, "text_encoder", "model_type", "llama")?;
    let text_encoder_2: clip::Config = config(folder, "text_encoder_2", "model_type", "clip_text_model")?;
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
    })
}

/// What stands beside loose weights: configurations, and tokenizers in the folders of their encoders.
fn loose(parts: &Parts) -> Result<Assembly> {
    let mut assembly = Assembly::default();
    assembly.like.text_encoder = beside(parts, Role::TextEncoder);
    assembly.like.text_encoder_2 = beside(parts, Role::SecondTextEncoder);
    assembly.like.vae = beside(parts, Role::Vae);
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

/// The `config.json` beside some weights, if it is theirs: others' have other fields.
fn beside<T: DeserializeOwned>(parts: &Parts, role: Role) -> Option<T> {
    parts.config_beside(role).ok().flatten()
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
