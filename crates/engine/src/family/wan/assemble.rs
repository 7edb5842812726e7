//! What was found of a Wan pipeline: a Diffusers folder, the authors' repository, ComfyUI's files, GGUF.

use std::path::Path;

use navicache_models::image::clip;
use navicache_models::text::t5;
use navicache_models::wan::{AuthorsConfig, TransformerConfig, VaeConfig};
use navicache_models::{Configuration, Precision};
use tokenizers::Tokenizer;

use super::experts::InMemory;
use super::image::Preprocessor;
use super::pipeline::Wan;
use super::published::Published;
use crate::family::piece::piece;
use crate::family::seam::{self, Family, Shared, check_channels};
use crate::host::{Host, Resident};
use crate::request::Defaults;
use crate::scheduler::{self, Scheduler};
use crate::sizes::Causal;
use crate::{Error, Result};
use navicache_weights::layout::{DEFAULTS_FILE, Parts, Piece, config, config_beside, incomplete, missing};
use navicache_weights::tokenizer;
use navicache_weights::{Component, Expert, Folder, Found, Role};

/// What was found of a pipeline.
#[derive(Default)]
pub(super) struct Assembly {
    published: Option<Published>,
    defaults: Option<Defaults>,
    scheduler: Option<Scheduler>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<Piece<t5::Config>>,
    transformer: Option<Piece<TransformerConfig>>,
    /// The second of two, for the steps of low noise.
    transformer_2: Option<Piece<TransformerConfig>>,
    /// Where it takes over, as a part of the training's timesteps, where a Diffusers folder says so.
    boundary: Option<f64>,
    /// Whether the transformer is by its name one of two.
    is_half: bool,
    vae: Option<Piece<VaeConfig>>,
    image_encoder: Option<Piece<clip::Config>>,
    preprocessor: Option<Preprocessor>,
    /// Files that hold no part of a pipeline, and why.
    unknown: Vec<String>,
    /// What the user should know of what was found.
    notes: Vec<String>,
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
    if parts.found.keys().any(|role| !matches!(role, Role::TextEncoder | Role::ImageEncoder)) {
        assembly.published = None; // the parts say so themselves
    }
    assembly.notes.append(&mut parts.notes);
    if let Some(found) = parts.found.remove(&Role::Transformer) {
        assembly.is_half = Expert::of_path(&found.file.path).is_some();
        assembly.transformer = Some(assembly.take_transformer(found)?);
    }
    if let Some(found) = parts.found.remove(&Role::SecondTransformer) {
        assembly.transformer_2 = Some(assembly.take_transformer(found)?);
    }
    if let Some(found) = parts.found.remove(&Role::TextEncoder) {
        assembly.tokenizer = assembly.tokenizer.or(tokenizer::from_weights(&found)?);
        let notes = &mut assembly.notes;
        let piece = piece(found, "umt5", notes, |found| Ok(t5::Config::from_weights(&found.tensors)?))?;
        assembly.text_encoder = Some(piece);
    }
    if let Some(found) = parts.found.remove(&Role::Vae) {
        let beside: Option<VaeConfig> = config_beside(&found, "AutoencoderKLWan", &mut assembly.notes)?;
        let like = beside.as_ref().or(assembly.like.vae.as_ref());
        let config = VaeConfig::from_weights(&found.tensors, like)?;
        config.agree(&found.tensors)?;
        assembly.vae = Some(Piece { config, tensors: found.tensors });
    }
    if let Some(found) = parts.found.remove(&Role::ImageEncoder) {
        let beside: Option<clip::Config> = config_beside(&found, "clip_vision_model", &mut assembly.notes)?;
        let like = beside.as_ref().or(assembly.like.image_encoder.as_ref());
        let config = clip::Config::from_weights(&found.tensors, like)?;
        config.agree(&found.tensors)?;
        assembly.image_encoder = Some(Piece { config, tensors: found.tensors });
        let is_asked_for = parts.given.contains(&Role::ImageEncoder);
        if is_asked_for && assembly.transformer.as_ref().is_some_and(|piece| piece.config.image_dim.is_none()) {
            assembly
                .notes
                .push("the image encoder is not used: this transformer looks at no picture by it".to_string());
        }
    }
    let [tokenizer, _] = parts.tokenizers;
    assembly.tokenizer = tokenizer.or(assembly.tokenizer);
    assembly.unknown = parts.unknown;
    Ok(Box::new(assembly))
}

impl Assembly {
    /// Adds a transformer that was recognised. What stands beside it says more of it than the base does.
    fn take_transformer(&mut self, found: Found) -> Result<Piece<TransformerConfig>> {
        self.is_720p |= found.file.path.to_string_lossy().to_lowercase().contains("720p");
        let (config, has_heads) = match config_beside(&found, "WanTransformer3DModel", &mut self.notes)? {
            Some(config) => (config, true),
            None => {
                let authors: Option<AuthorsConfig> = config_beside(&found, "WanModel", &mut self.notes)?;
                let authors = authors.map(|authors| authors.like());
                let like = authors.as_ref().or(self.like.transformer.as_ref());
                let config = TransformerConfig::from_weights(&found.tensors, like)?;
                let has_heads = like.is_some_and(|like| like.dim() == config.dim());
                (config, has_heads)
            }
        };
        config.agree(&found.tensors)?;
        if !has_heads && config.has_small_heads() {
            self.notes.push(format!(
                "no published Wan transformer is {} wide, and no weight says how many heads it has: taken to be of {} \
                 channels; its config.json says so surely, beside the weights",
                config.dim(),
                config.attention_head_dim
            ));
        }
        Ok(Piece { config, tensors: found.tensors })
    }
}

impl seam::Assembly for Assembly {
    fn missing(&self) -> Vec<String> {
        let needs_image = self.transformer.as_ref().is_some_and(|piece| piece.config.image_dim.is_some());
        // Of Wan2.2 A14B one transformer has the shapes of a whole model, and would make noise.
        let is_alone = |Piece { config, .. }: &Piece<TransformerConfig>| {
            self.is_half || config.image_dim.is_none() && config.in_channels > config.out_channels
        };
        let lacks_second = self.transformer_2.is_none() && self.transformer.as_ref().is_some_and(is_alone);
        let lacks_first = self.transformer.is_none() && self.transformer_2.is_some();
        missing([
            (lacks_first, "the transformer for high noise of Wan2.2 A14B, which has two (`transformer` FILE)"),
            (lacks_second, "the transformer for low noise of Wan2.2 A14B, which has two (`transformer_2` FILE)"),
            (self.transformer.is_none() && !lacks_first, "a transformer (`transformer` FILE)"),
            (self.text_encoder.is_none(), "a UMT5 text encoder (`text_encoder` FILE)"),
            (self.tokenizer.is_none(), "a tokenizer (`tokenizer` FILE: tokenizer.json or spiece.model)"),
            (self.vae.is_none(), "a VAE (`vae` FILE)"),
            (needs_image && self.image_encoder.is_none(), "a CLIP image encoder (`image_encoder` FILE)"),
        ])
    }

    /// Two published models have the same shapes, and their names tell them apart; a name can be changed.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.notes.clone();
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
        let has_two = self.transformer_2.is_some();
        let published = self.published.unwrap_or_else(|| Published::of(&transformer.config, &vae.config, has_two));
        if let Some(second) = &self.transformer_2 {
            check_pair(place, &transformer.config, &second.config)?;
        }
        check_channels(place, transformer.config.out_channels, vae.config.z_dim)?;
        let scheduler = self.scheduler.unwrap_or_else(|| published.scheduler(self.is_720p));
        let boundary = published.boundary().filter(|_| has_two);
        let boundary = boundary.map(|ratio| self.boundary.unwrap_or(ratio) * scheduler.train_timesteps as f64);
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
        let others = [
            image_weights.map(|weights| (Role::ImageEncoder, weights)),
            self.transformer_2.map(|piece| (Role::SecondTransformer, piece.tensors)),
        ];
        let shared = Shared {
            host,
            defaults: self.defaults.unwrap_or_else(|| published.defaults(layers, scheduler.shift)),
            scheduler,
            sizes: Box::new(sizes),
            weights: weights.into_iter().chain(others.into_iter().flatten()).collect(),
            narrowest_vae: Precision::Bf16,
            autoencoder: Resident::default(),
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
            boundary,
            in_memory: InMemory::default(),
        }))
    }
}

/// Reads a Diffusers folder, but for the parts that are given apart.
fn diffusers(folder: &Folder, parts: &Parts) -> Result<Assembly> {
    let (published, boundary) = Published::of_index(folder)?;
    let scheduler = Scheduler::read(folder, scheduler::Path::Flow)?;
    let mut notes = Vec::new();
    let transformer: TransformerConfig = config(folder, "transformer", "WanTransformer3DModel", &mut notes)?;
    let has_two = boundary.is_some();
    let second: Option<TransformerConfig> = match has_two {
        true => Some(config(folder, "transformer_2", "WanTransformer3DModel", &mut notes)?),
        false => None,
    };
    let vae: VaeConfig = config(folder, "vae", "AutoencoderKLWan", &mut notes)?;
    let defaults = match folder.contains(DEFAULTS_FILE) {
        true => folder.json(DEFAULTS_FILE)?,
        false => published.defaults(transformer.num_layers, scheduler.shift),
    };
    let text_encoder: t5::Config = config(folder, "text_encoder", "umt5", &mut notes)?;
    let has_image_encoder = published == Published::Wan21I2v;
    let image_encoder: Option<clip::Config> = match has_image_encoder {
        true => Some(config(folder, "image_encoder", "clip_vision_model", &mut notes)?),
        false => None,
    };
    let preprocessor =
        image_encoder.as_ref().map(|encoder| Preprocessor::read(folder, encoder.image_size)).transpose()?;
    let weights = "diffusion_pytorch_model";
    let second_piece = |config| parts.piece(folder, ("transformer_2", weights), Component::WanLowNoise, config);
    let piece_of_image = |config| parts.piece(folder, ("image_encoder", "model"), Component::ClipVision, config);
    Ok(Assembly {
        tokenizer: parts.tokenizer_of(folder, 0, &["tokenizer/tokenizer.json", "tokenizer/spiece.model"])?,
        text_encoder: parts.piece(folder, ("text_encoder", "model"), Component::Umt5, &text_encoder)?,
        transformer: parts.piece(folder, ("transformer", weights), Component::WanTransformer, &transformer)?,
        transformer_2: second.as_ref().map(second_piece).transpose()?.flatten(),
        boundary,
        vae: parts.piece(folder, ("vae", weights), Component::WanVae, &vae)?,
        image_encoder: image_encoder.as_ref().map(piece_of_image).transpose()?.flatten(),
        preprocessor,
        published: Some(published),
        defaults: Some(defaults),
        scheduler: Some(scheduler),
        notes,
        like: Like { transformer: Some(transformer), vae: Some(vae), image_encoder },
        ..Assembly::default()
    })
}

/// What stands beside loose weights.
fn loose(parts: &Parts) -> Result<Assembly> {
    let mut assembly = Assembly::default();
    for path in &parts.searched {
        assembly.is_720p |= path.to_string_lossy().to_lowercase().contains("720p");
        assembly.tokenizer = assembly.tokenizer.or(tokenizer_in(path)?);
    }
    Ok(assembly)
}

/// The UMT5 tokenizer of a folder of the authors' repositories, or of one that was made like it.
fn tokenizer_in(folder: &Path) -> Result<Option<Tokenizer>> {
    let places = ["google/umt5-xxl", "umt5-xxl", "tokenizer", ""];
    let files =
        places.iter().flat_map(|place| ["tokenizer.json", "spiece.model"].map(|name| folder.join(place).join(name)));
    Ok(files.into_iter().find(|file| file.exists()).map(|file| tokenizer::from_file(&file)).transpose()?)
}

/// Refuses two transformers that are not of one model: that of one kind of video for high noise, of another for low.
fn check_pair(place: &str, first: &TransformerConfig, second: &TransformerConfig) -> Result<()> {
    let sizes = |c: &TransformerConfig| {
        [
            ("in_channels", c.in_channels),
            ("out_channels", c.out_channels),
            ("width", c.dim()),
            ("num_layers", c.num_layers),
            ("text_dim", c.text_dim),
        ]
    };
    let differs = sizes(first).into_iter().zip(sizes(second)).find(|(one, other)| one != other);
    if let Some(((what, one), (_, other))) = differs {
        let reason = format!(
            "{what} of the transformer for high noise is {one}, that of the one for low noise {other}: they do not belong \
             together"
        );
        return Err(Error::file(place, reason));
    }
    // Both are made by the first's.
    if first != second {
        let reason = "the configurations of the two transformers differ: they do not belong together";
        return Err(Error::file(place, reason));
    }
    Ok(())
}
