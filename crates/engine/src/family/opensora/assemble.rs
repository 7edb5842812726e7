//! What was found of an Open-Sora pipeline: its three repositories, as folders in one folder or as files given apart.

use navicache_models::opensora::{TransformerConfig, VaeConfig};
use navicache_models::text::t5;
use tokenizers::Tokenizer;

use super::pipeline::{OpenSora, Rounded};
use super::sizes;
use crate::family::seam::{self, Family, check_channels};
use crate::host::Host;
use crate::request::Defaults;
use crate::{Error, Result};
use navicache_weights::layout::{Parts, Piece, folder_of, incomplete, missing};
use navicache_weights::tokenizer;
use navicache_weights::{Component, Found, Role};

/// What was found of a pipeline.
#[derive(Default)]
struct Pieces {
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<Piece<t5::Config>>,
    transformer: Option<Piece<TransformerConfig>>,
    vae: Option<Piece<VaeConfig>>,
    /// Files that hold no part of a pipeline, and why.
    unknown: Vec<String>,
}

/// What the authors' preset is.
fn published(max_sequence_length: usize) -> Result<Defaults> {
    let (width, height) = sizes::of(sizes::RESOLUTION, sizes::ASPECT_RATIO)?;
    Ok(Defaults {
        width,
        height,
        frames: 51,
        fps: 24,
        steps: 30,
        guidance: 7.0,
        max_sequence_length,
        presets: "opensora".to_string(),
    })
}

/// Understands what was found.
pub(super) fn read(mut parts: Parts) -> Result<Box<dyn seam::Pieces>> {
    let mut pieces = Pieces::default();
    // A configuration says what shapes do not; weights without one are the published ones.
    let transformer: Option<TransformerConfig> = parts.config_beside(Role::Transformer)?;
    let vae: Option<VaeConfig> = parts.config_beside(Role::Vae)?;
    let beside = parts.found.get(&Role::TextEncoder).map(|found| folder_of(&found.file.path));
    for folder in beside.into_iter().chain(parts.searched.iter().map(|path| path.as_path())) {
        let file = ["tokenizer.json", "spiece.model"].map(|name| folder.join(name)).into_iter().find(|f| f.exists());
        if let Some(file) = file {
            pieces.tokenizer = Some(tokenizer::from_file(&file)?);
            break;
        }
    }
    for (_, Found { recognised, tensors, file, .. }) in std::mem::take(&mut parts.found) {
        match recognised.component {
            Component::OpenSoraTransformer => {
                let config = match &transformer {
                    Some(config) => config.clone(),
                    None => TransformerConfig::from_weights(&tensors)?,
                };
                config.check()?;
                pieces.transformer = Some(Piece { config, tensors });
            }
            Component::T5 => {
                let config = t5::Config::from_weights(&tensors)?;
                pieces.text_encoder = Some(Piece { config, tensors });
            }
            Component::OpenSoraVae => {
                let config = vae.clone().unwrap_or_default();
                config.check()?;
                pieces.vae = Some(Piece { config, tensors });
            }
            other => return Err(Error::file(&file.path, format!("{other} is no part of Open-Sora"))),
        }
    }
    let [tokenizer, _] = parts.tokenizers;
    pieces.tokenizer = tokenizer.or(pieces.tokenizer);
    pieces.unknown = parts.unknown;
    Ok(Box::new(pieces))
}

impl seam::Pieces for Pieces {
    fn missing(&self) -> Vec<String> {
        missing([
            (self.transformer.is_none(), "a transformer (--transformer FILE)"),
            (self.text_encoder.is_none(), "a T5 text encoder (--text-encoder FILE)"),
            (self.tokenizer.is_none(), "a tokenizer (--tokenizer FILE: tokenizer.json or spiece.model)"),
            (self.vae.is_none(), "a VAE (--vae FILE)"),
        ])
    }

    fn complete(self: Box<Self>, place: &str, host: Host) -> Result<Box<dyn Family>> {
        let missing = self.missing();
        let Pieces { tokenizer, text_encoder, transformer, vae, unknown } = *self;
        let (Some(transformer), Some(text_encoder), Some(vae), Some(tokenizer)) =
            (transformer, text_encoder, vae, tokenizer)
        else {
            return Err(incomplete(place, &missing, &unknown).into());
        };
        check_channels(place, transformer.config.in_channels, vae.config.vae_temporal.embed_dim)?;
        let TransformerConfig { in_channels: channels, patch_size: patch, .. } = transformer.config;
        Ok(Box::new(OpenSora {
            host,
            sizes: Rounded { channels, patch, vae: vae.config.clone() },
            defaults: published(transformer.config.model_max_length)?,
            tokenizer,
            text_encoder,
            transformer,
            vae,
            transformer_model: Default::default(),
            vae_model: Default::default(),
        }))
    }
}
