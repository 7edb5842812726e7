//! What was found of a Wan pipeline: a Diffusers folder, the authors' repository, ComfyUI's files, GGUF.

use std::path::Path;

use navicache_models::Configuration;
use navicache_models::image::clip;
use navicache_models::text::t5;
use navicache_models::wan::{TransformerConfig, VaeConfig};
use tokenizers::Tokenizer;

use super::image::Preprocessor;
use super::pipeline::Wan;
use super::published::Published;
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::Scheduler;
use crate::sizes::Causal;
use crate::{Error, Result};
use navicache_weights::layout::{DEFAULTS_FILE, Parts, Piece, config, incomplete, missing};
use navicache_weights::tokenizer;
use navicache_weights::{Component, Folder, Found, Role, read_description};

/// What was found of a pipeline.
#[derive(Default)]
pub(super) struct Assembly {
    published: Option<Published>,
    defaults: Option<Defaults>,
    scheduler: Option<Scheduler>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<Piece<t5::Config>>,
    transformer: Option<Piece<TransformerConfig>>,
    vae: Option<Piece<VaeConfig>>,
    image_encoder: Option<Piece<clip::Config>>,
    preprocessor: Option<Preprocessor>,
    /// Files that hold no part of a pipeline, and why.
    unknown: Vec<String>,
    /// Configurations without weights, for weights that are given apart.
    like: Like,
    /// Whether some name speaks of 720P: the one thing that tells two published models apart that are not the same
    /// size.
    is_720p: bool,
}

/// What configurations a base has for parts that are given apart.
#[derive(Default)]
struct Like {
    transformer: Option<TransformerConfig>,
    vae: Option<VaeConfig>,
    image_encoder: Option<clip::Config>,
}

/// Understands what was found.
pub(super) fn read(mut parts: Parts) -> Result<Box<dyn seam::Assembly>> {
    let mut assembly = match &parts.folder {
        Some(folder) => diffusers(folder, &parts)?,
        None => loose(&parts)?,
    };
    if parts
        .found
        .values()
        .any(|found| matches!(found.recognised.component, Component::WanTransformer | Component::WanVae))
    {
        assembly.published = None; // the parts say so themselves
    }
    for found in std::mem::take(&mut parts.found).into_values() {
        assembly.take(found)?;
    }
    let [tokenizer, _] = parts.tokenizers;
    assembly.tokenizer = tokenizer.or(assembly.tokenizer);
    assembly.unknown = parts.unknown;
    Ok(Box::new(assembly))
}

impl Assembly {
    /// Adds a component that was recognised.
    fn take(&mut self, found: Found) -> Result<()> {
        match found.recognised.component {
            Component::WanTransformer => {
                refuse_half(&found.file.path)?;
                self.is_720p |= found.file.path.to_string_lossy().to_lowercase().contains("720p");
                let config = TransformerConfig::from_weights(&found.tensors, self.like.transformer.as_ref())?;
                config.agree(&found.tensors)?;
                self.transformer = Some(Piece { config, tensors: found.tensors });
            }
            Component::Umt5 => {
                if let Some(tokenizer) = tokenizer::from_weights(&found)? {
                    self.tokenizer.get_or_insert(tokenizer);
                }
                let config = t5::Config::from_weights(&found.tensors)?;
                config.agree(&found.tensors)?;
                self.text_encoder = Some(Piece { config, tensors: found.tensors });
            }
            Component::WanVae => {
                let config = VaeConfig::from_weights(&found.tensors, self.like.vae.as_ref())?;
                config.agree(&found.tensors)?;
                self.vae = Some(Piece { config, tensors: found.tensors });
            }
            Component::ClipVision => {
                let config = clip::Config::from_weights(&found.tensors, self.like.image_encoder.as_ref())?;
                config.agree(&found.tensors)?;
                self.image_encoder = Some(Piece { config, tensors: found.tensors });
            }
            other => return Err(Error::file(&found.file.path, format!("{other} is no part of Wan"))),
        }
        Ok(())
    }
}

impl seam::Assembly for Assembly {
    fn missing(&self) -> Vec<String> {
        let needs_image = self.transformer.as_ref().is_some_and(|piece| piece.config.image_dim.is_some());
        missing([
            (self.transformer.is_none(), "a transformer (`transformer` FILE)"),
            (self.text_encoder.is_none(), "a UMT5 text encoder (`text_encoder` FILE)"),
            (self.tokenizer.is_none(), "a tokenizer (`tokenizer` FILE: tokenizer.json or spiece.model)"),
            (self.vae.is_none(), "a VAE (`vae` FILE)"),
            (needs_image && self.image_encoder.is_none(), "a CLIP image encoder (`image_encoder` FILE)"),
        ])
    }

    /// Two published models have the same shapes, and their names tell them apart; a name can be changed.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(Piece { config, .. }) = &self.transformer
            && config.has_small_heads()
            && self.like.transformer.as_ref().is_none_or(|like| like.dim() != config.dim())
        {
            warnings.push(format!(
                "no published Wan transformer is {} wide, and no weight says how many heads it has: taken to be of {} \
                 channels; its config.json says so surely, in a Diffusers folder given as `model`",
                config.dim(),
                config.attention_head_dim
            ));
        }
        let is_image_to_video = self.transformer.as_ref().is_some_and(|piece| piece.config.image_dim.is_some());
        if self.scheduler.is_some() || !is_image_to_video || self.is_720p {
            return warnings;
        }
        let shift = |is_720p| Published::Wan21I2v.scheduler(is_720p).shift;
        warnings.push(format!(
            "taken for the 480P model, whose noise schedule has a shift of {}, because no folder or file is named 720P; if it is \
             the 720P model, ask for a shift of {}",
            shift(false),
            shift(true)
        ));
        warnings
    }

    fn complete(self: Box<Self>, place: &str, host: Host) -> Result<Box<dyn Family>> {
        let missing = self.missing();
        let (Some(transformer), Some(text_encoder), Some(vae), Some(tokenizer), true) =
            (self.transformer, self.text_encoder, self.vae, self.tokenizer, missing.is_empty())
        else {
            return Err(incomplete(place, &missing, &self.unknown).into());
        };
        let published = self.published.unwrap_or_else(|| Published::of(&transformer.config, &vae.config));
        check_channels(place, transformer.config.out_channels, vae.config.z_dim)?;
        let scheduler = self.scheduler.unwrap_or_else(|| published.scheduler(self.is_720p));
        let layers = transformer.config.num_layers;
        let sizes = Causal {
            channels: transformer.config.out_channels,
            temporal: vae.config.scale_factor_temporal(),
            spatial: vae.config.scale_factor_spatial(),
            patch: transformer.config.patch_size,
            positions: transformer.config.rope_max_seq_len,
        };
        let image_encoder = self.image_encoder.filter(|_| published == Published::Wan21I2v);
        let (clip, image_weights) = image_encoder.map(|piece| (piece.config, piece.tensors)).unzip();
        let weights = [
            (Role::TextEncoder, text_encoder.tensors),
            (Role::Transformer, transformer.tensors),
            (Role::Vae, vae.tensors),
        ];
        let shared = Shared {
            host,
            defaults: self.defaults.unwrap_or_else(|| published.defaults(layers, scheduler.shift)),
            scheduler,
            sizes: Box::new(sizes),
            weights: weights.into_iter().chain(image_weights.map(|weights| (Role::ImageEncoder, weights))).collect(),
        };
        Ok(Box::new(Wan {
            shared,
            published,
            tokenizer,
            text_encoder: text_encoder.config,
            transformer: transformer.config,
            vae: vae.config,
            image_encoder: clip,
            preprocessor: self.preprocessor.unwrap_or_default(),
            transformer_model: Resident::default(),
            autoencoder: Resident::default(),
        }))
    }
}

/// Reads a Diffusers folder, but for the parts that are given apart.
fn diffusers(folder: &Folder, parts: &Parts) -> Result<Assembly> {
    let published = Published::of_index(folder)?;
    let scheduler = Scheduler::read(folder)?;
    let transformer: TransformerConfig = config(folder, "transformer", "_class_name", "WanTransformer3DModel")?;
    let vae: VaeConfig = config(folder, "vae", "_class_name", "AutoencoderKLWan")?;
    let defaults = match folder.contains(DEFAULTS_FILE) {
        true => folder.json(DEFAULTS_FILE)?,
        false => published.defaults(transformer.num_layers, scheduler.shift),
    };
    let text_encoder: t5::Config = config(folder, "text_encoder", "model_type", "umt5")?;
    let has_image_encoder = published == Published::Wan21I2v;
    let image_encoder: Option<clip::Config> =
        has_image_encoder.then(|| folder.json("image_encoder/config.json")).transpose()?;
    let preprocessor =
        image_encoder.as_ref().map(|encoder| Preprocessor::read(folder, encoder.image_size)).transpose()?;
    let weights = "diffusion_pytorch_model";
    let piece_of_image = |config| parts.piece(folder, ("image_encoder", "model"), Component::ClipVision, config);
    Ok(Assembly {
        tokenizer: parts.tokenizer_of(folder, 0, &["tokenizer/tokenizer.json", "tokenizer/spiece.model"])?,
        text_encoder: parts.piece(folder, ("text_encoder", "model"), Component::Umt5, &text_encoder)?,
        transformer: parts.piece(folder, ("transformer", weights), Component::WanTransformer, &transformer)?,
        vae: parts.piece(folder, ("vae", weights), Component::WanVae, &vae)?,
        image_encoder: image_encoder.as_ref().map(piece_of_image).transpose()?.flatten(),
        preprocessor,
        published: Some(published),
        defaults: Some(defaults),
        scheduler: Some(scheduler),
        like: Like { transformer: Some(transformer), vae: Some(vae), image_encoder },
        ..Assembly::default()
    })
}

/// What stands beside loose weights.
fn loose(parts: &Parts) -> Result<Assembly> {
    let mut assembly = Assembly::default();
    for path in &parts.searched {
        assembly.is_720p |= path.to_string_lossy().to_lowercase().contains("720p");
        assembly.like.transformer = authors_config(&path.join("config.json"))?;
        assembly.tokenizer = assembly.tokenizer.or(tokenizer_in(path)?);
    }
    Ok(assembly)
}

/// The configuration of the authors' repositories: `config.json` of the class `WanModel`.
fn authors_config(path: &Path) -> Result<Option<TransformerConfig>> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(rename = "_class_name")]
        class_name: String,
        model_type: String,
        dim: usize,
        num_heads: usize,
        #[serde(default = "eps")]
        eps: f64,
    }
    fn eps() -> f64 {
        1e-6
    }
    if !path.exists() {
        return Ok(None);
    }
    let text = read_description(path)?;
    // Other repositories have a config.json too; theirs is not this one's business.
    let Ok(file) = serde_json::from_slice::<File>(&text) else { return Ok(None) };
    if file.class_name != "WanModel" {
        return Ok(None);
    }
    if !["t2v", "i2v", "ti2v"].contains(&file.model_type.as_str()) {
        let reason = format!("model_type: expected t2v, i2v or ti2v, found {}, not supported yet", file.model_type);
        return Err(Error::file(path, reason));
    }
    Ok(Some(TransformerConfig::with_heads(file.dim, file.num_heads, file.eps)))
}

/// The UMT5 tokenizer of a folder of the authors' repositories, or of one that was made like it.
fn tokenizer_in(folder: &Path) -> Result<Option<Tokenizer>> {
    let places = ["google/umt5-xxl", "umt5-xxl", "tokenizer", ""];
    let files =
        places.iter().flat_map(|place| ["tokenizer.json", "spiece.model"].map(|name| folder.join(place).join(name)));
    Ok(files.into_iter().find(|file| file.exists()).map(|file| tokenizer::from_file(&file)).transpose()?)
}

/// Of Wan2.2 A14B one half has the shapes of a whole model, and would make noise.
fn refuse_half(path: &Path) -> Result<()> {
    let name = path.to_string_lossy().to_lowercase().replace(['-', '_', ' '], "");
    if name.contains("highnoise") || name.contains("lownoise") {
        let reason = "one of the two transformers of Wan2.2 A14B by its name, which is not supported yet";
        return Err(Error::file(path, reason));
    }
    Ok(())
}
