//! What was found of an Open-Sora pipeline: its three repositories, as folders in one folder or as files given apart.

use navicache_control::solver::SolverKind;
use navicache_media::Rate;
use navicache_models::Precision;
use navicache_models::opensora::{TransformerConfig, VaeConfig};
use navicache_models::text::t5;
use tokenizers::Tokenizer;

use super::pipeline::{OpenSora, Rounded};
use super::sizes;
use crate::Result;
use crate::family::piece::piece;
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::Scheduler;
use crate::size::Size;
use navicache_weights::Role;
use navicache_weights::layout::{Parts, Piece, folder_of, incomplete, missing};
use navicache_weights::tokenizer;

/// What was found of a pipeline.
#[derive(Default)]
struct Assembly {
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<Piece<t5::Config>>,
    transformer: Option<Piece<TransformerConfig>>,
    vae: Option<Piece<VaeConfig>>,
    /// Files that hold no part of a pipeline, and why.
    unknown: Vec<String>,
    /// What the user should know of what was found.
    notes: Vec<String>,
}

/// What the authors' preset is.
fn published(max_sequence_length: usize) -> Result<Defaults> {
    let Size { width, height } = sizes::of(None, None)?;
    Ok(Defaults {
        width,
        height,
        frames: 51,
        fps: Rate::whole(24),
        scale: None,
        steps: 30,
        guidance: 7.0,
        guidance_2: None,
        max_sequence_length,
        presets: "opensora".to_string(),
        trained: None,
    })
}

/// Understands what was found.
pub(super) fn read(mut parts: Parts) -> Result<Box<dyn seam::Assembly>> {
    let mut assembly = Assembly::default();
    let beside = parts.found.get(&Role::TextEncoder).map(|found| folder_of(&found.file.path));
    for folder in beside.into_iter().chain(parts.searched.iter().map(|path| path.as_path())) {
        let file = ["tokenizer.json", "spiece.model"].map(|name| folder.join(name)).into_iter().find(|f| f.exists());
        if let Some(file) = file {
            assembly.tokenizer = Some(tokenizer::from_file(&file)?);
            break;
        }
    }
    assembly.notes.append(&mut parts.notes);
    let notes = &mut assembly.notes;
    // A configuration says what shapes do not; weights without one are the published ones.
    if let Some(found) = parts.found.remove(&Role::Transformer) {
        let piece = piece(found, "STDiT3", notes, |found| Ok(TransformerConfig::from_weights(&found.tensors)?))?;
        assembly.transformer = Some(piece);
    }
    if let Some(found) = parts.found.remove(&Role::TextEncoder) {
        let piece = piece(found, "t5", notes, |found| Ok(t5::Config::from_weights(&found.tensors)?))?;
        assembly.text_encoder = Some(piece);
    }
    if let Some(found) = parts.found.remove(&Role::Vae) {
        assembly.vae = Some(piece(found, "VideoAutoencoderPipeline", notes, |_| Ok(VaeConfig::default()))?);
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
        let Assembly { tokenizer, text_encoder, transformer, vae, unknown, .. } = *self;
        let (Some(transformer), Some(text_encoder), Some(vae), Some(tokenizer)) =
            (transformer, text_encoder, vae, tokenizer)
        else {
            return Err(incomplete(place, &missing, &unknown).into());
        };
        check_channels(place, transformer.config.in_channels, vae.config.vae_temporal.embed_dim)?;
        let TransformerConfig { in_channels: channels, patch_size: patch, .. } = transformer.config;
        let weights = [
            (Role::TextEncoder, text_encoder.tensors),
            (Role::Transformer, transformer.tensors),
            (Role::Vae, vae.tensors),
        ];
        let shared = Shared {
            host,
            defaults: published(transformer.config.model_max_length)?,
            // The shift depends on the size.
            scheduler: Scheduler::published(SolverKind::Euler, 1.0).evenly(),
            sizes: Box::new(Rounded { channels, patch, vae: vae.config.clone() }),
            weights: weights.into(),
            narrowest_vae: Precision::F32,
            autoencoder: Resident::default(),
        };
        Ok(Box::new(OpenSora {
            shared,
            tokenizer,
            text_encoder: text_encoder.config,
            transformer: transformer.config,
            vae: vae.config,
            transformer_model: Resident::default(),
        }))
    }
}
