//! A pipeline on disk or inside the program, ready to generate.

use std::path::Path;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use navicache_control::cache;
use navicache_models::image::clip::{self, ClipVision};
use navicache_models::text::umt5::{self, Umt5};
use navicache_models::wan::{Cond, PictureCond, Transformer, TransformerConfig, Vae, VaeConfig, VaeEncoder};
use navicache_models::{Denoiser, Part, Weights};
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::device::{DeviceChoice, DtypeChoice};
use crate::picture::{Filter, Picture};
use crate::prompt::tokenize;
use crate::request::{Defaults, Limits, Resolved};
use crate::scheduler::Scheduler;
use crate::store::Bill;
use crate::weights::{Folder, SafetensorsFiles};
use crate::{Error, Result, demo, machine};

/// How a pipeline is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Where tensors live.
    pub device: DeviceChoice,
    /// In which format matrices are kept.
    pub dtype: DtypeChoice,
}

/// A Wan pipeline: video from text, or from text and a picture.
///
/// Opening it reads configurations and checks that every weight file is whole. Weights are read when they are first needed: the
/// text encoder for each generation and freed after it, transformer and VAE once.
pub struct Bundle {
    name: String,
    device: Device,
    dtype: DtypeChoice,
    defaults: Defaults,
    scheduler: Scheduler,
    tokenizer: Tokenizer,
    text_config: umt5::Config,
    text_weights: SafetensorsFiles,
    transformer_config: TransformerConfig,
    transformer_weights: SafetensorsFiles,
    transformer: OnceLock<Transformer>,
    vae_config: VaeConfig,
    vae_weights: SafetensorsFiles,
    vae: OnceLock<Vae>,
    published: Published,
    image_encoder: Option<ImageEncoder>,
}

/// The encoder of a picture, its weights, and what it expects of pixels.
struct ImageEncoder {
    config: clip::Config,
    weights: SafetensorsFiles,
    preprocessor: Preprocessor,
}

/// `image_processor/preprocessor_config.json`.
#[derive(serde::Deserialize)]
struct Preprocessor {
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

/// What a picture means for a generation.
#[derive(Default)]
pub(crate) struct Pictured {
    pub cond: PictureCond,
    /// Latent frames that are known. // (1, z, few, height, width)
    pub still: Option<Tensor>,
}

impl Bundle {
    /// Opens `demo`, the embedded model, or a Diffusers folder (the one with `model_index.json`).
    pub fn open(model: &str, options: &LoadOptions) -> Result<Self> {
        let folder = if model == demo::NAME { Folder::Embedded(demo::FILES) } else { disk_folder(model)? };
        let published = check_pipeline(&folder)?;
        let transformer_config: TransformerConfig =
            config(&folder, "transformer", "_class_name", "WanTransformer3DModel")?;
        let scheduler = Scheduler::read(&folder)?;
        let defaults = match folder.contains(DEFAULTS_FILE) {
            true => folder.json(DEFAULTS_FILE)?,
            false => published.defaults(transformer_config.num_layers, scheduler.shift),
        };
        let tokenizer_file = "tokenizer/tokenizer.json";
        let tokenizer = Tokenizer::from_bytes(folder.bytes(tokenizer_file)?)
            .map_err(|e| Error::file(folder.path(tokenizer_file), e.to_string()))?;
        Ok(Bundle {
            name: model.to_string(),
            device: options.device.open()?,
            dtype: options.dtype,
            defaults,
            scheduler,
            tokenizer,
            text_config: config(&folder, "text_encoder", "model_type", "umt5")?,
            text_weights: folder.tensors("text_encoder", "model")?,
            transformer_config,
            transformer_weights: folder.tensors("transformer", "diffusion_pytorch_model")?,
            transformer: OnceLock::new(),
            vae_config: config(&folder, "vae", "_class_name", "AutoencoderKLWan")?,
            vae_weights: folder.tensors("vae", "diffusion_pytorch_model")?,
            vae: OnceLock::new(),
            published,
            image_encoder: match published {
                Published::Wan21I2v => Some(ImageEncoder {
                    config: folder.json("image_encoder/config.json")?,
                    weights: folder.tensors("image_encoder", "model")?,
                    preprocessor: folder.json("image_processor/preprocessor_config.json")?,
                }),
                Published::Wan21 | Published::Wan22Ti2v => None,
            },
        })
    }

    /// Name or path, as it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a request leaves open.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The schedule and solver it was published with.
    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Format of the transformer's matrices, for the report.
    pub(crate) fn dtype_name(&self) -> &'static str {
        self.dtype.for_parameters(self.transformer_weights.parameters()).map_or("stored", |dtype| dtype.as_str())
    }

    /// What sizes it can make.
    pub(crate) fn limits(&self) -> Limits {
        let [patch_t, patch_h, patch_w] = self.transformer_config.patch_size;
        let (temporal, spatial) = (self.vae_config.scale_factor_temporal(), self.vae_config.scale_factor_spatial());
        let positions = self.transformer_config.rope_max_seq_len;
        Limits {
            temporal_factor: temporal,
            // The reference pipeline asks for multiples of 16 whatever the patch.
            width_multiple: least_common_multiple(16, spatial * patch_w),
            height_multiple: least_common_multiple(16, spatial * patch_h),
            latent_frames_multiple: patch_t,
            largest: (
                (positions * patch_t - 1) * temporal + 1,
                positions * patch_h * spatial,
                positions * patch_w * spatial,
            ),
        }
    }

    /// Shape of the latents for a size. // (1, channels, latent frames, height, width)
    pub(crate) fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5] {
        let (temporal, spatial) = (self.vae_config.scale_factor_temporal(), self.vae_config.scale_factor_spatial());
        let channels = self.transformer_config.out_channels;
        [1, channels, (frames - 1) / temporal + 1, height / spatial, width / spatial]
    }

    /// Width, height and frames of latents of a shape.
    pub(crate) fn video_shape(&self, latents: &[usize; 5]) -> (usize, usize, usize) {
        let (temporal, spatial) = (self.vae_config.scale_factor_temporal(), self.vae_config.scale_factor_spatial());
        let [_, _, frames, height, width] = *latents;
        (width * spatial, height * spatial, frames.saturating_sub(1) * temporal + 1)
    }

    /// Refuses a video whose activations alone are beyond the memory there is, before anything is loaded.
    pub(crate) fn check_memory(&self, request: &Resolved) -> Result<()> {
        let Some(available) = machine::available_memory_bytes().filter(|_| self.device.is_cpu()) else { return Ok(()) };
        let config = &self.transformer_config;
        let tokens = self.tokens(&self.latents_shape(request.width, request.height, request.frames)) as u64;
        // A block holds its input, queries, keys, values, output and the feed-forward's middle at once, in f32.
        let widths = (6 * config.num_attention_heads * config.attention_head_dim + config.ffn_dim) as u64;
        let needed = tokens * widths * 4;
        if needed <= available {
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        Err(Error::Request {
            what: "--size and --frames",
            found: format!("{}x{}, {} frames", request.width, request.height, request.frames),
            expected: format!(
                "{tokens} tokens need at least {:.1} GiB beside the weights, {:.1} GiB are free; ask for a smaller or shorter video",
                gib(needed),
                gib(available)
            ),
        })
    }

    /// Encodes prompts, each to (1, `max_sequence_length`, text dim), zero beyond its end. Loads the text encoder and frees it.
    /// `warn` is told of a prompt that was cut.
    pub(crate) fn encode(&self, prompts: &[&str], longest: usize, warn: &mut dyn FnMut(String)) -> Result<Vec<Tensor>> {
        let dtype = self.dtype.for_parameters(self.text_weights.parameters());
        let encoder = Umt5::new(&self.text_config, Weights::new(&self.text_weights, &self.device, dtype))?;
        prompts
            .iter()
            .map(|prompt| {
                let tokens = tokenize(&self.tokenizer, prompt, longest)?;
                if let Some(whole) = tokens.truncated_from {
                    warn(format!(
                        "prompt of {whole} tokens cut to {longest}: the rest is not seen (--max-sequence-length)"
                    ));
                }
                let hidden = encoder.forward(&tokens.ids)?; // (1, ids, text dim)
                let padding = longest - hidden.dim(1)?;
                Ok(hidden.pad_with_zeros(1, 0, padding)?)
            })
            .collect()
    }

    /// The transformer, read on first use.
    pub(crate) fn transformer(&self) -> Result<&Transformer> {
        load_once(&self.transformer, || {
            let dtype = self.dtype.for_parameters(self.transformer_weights.parameters());
            Ok(Transformer::new(
                &self.transformer_config,
                Weights::new(&self.transformer_weights, &self.device, dtype),
            )?)
        })
    }

    /// A prompt's conditioning of the transformer, and a picture's.
    pub(crate) fn cond(&self, text: &Tensor, picture: &PictureCond) -> Result<Cond> {
        Ok(self.transformer()?.cond_with_picture(text, picture)?)
    }

    /// Refuses a picture where the pipeline takes none, and none where it takes one.
    pub(crate) fn check_picture(&self, image: Option<&Path>) -> Result<()> {
        let refuse = |found: String, expected: &str| {
            Err(Error::Request { what: "--image", found, expected: expected.to_string() })
        };
        match (self.published, image) {
            (Published::Wan21, Some(path)) => {
                refuse(path.display().to_string(), "this model makes video from text alone; leave the picture out")
            }
            (Published::Wan21I2v, None) => refuse("(none)".to_string(), "this model starts from a picture; give one"),
            _ => Ok(()),
        }
    }

    /// Encodes the picture that a video starts from. Loads the encoders and frees them.
    pub(crate) fn condition_on(&self, picture: &Picture, request: &Resolved) -> Result<Pictured> {
        let first = picture.resized(request.width, request.height, Filter::Lanczos).tensor(&self.device)?;
        let [_, _, frames, ..] = self.latents_shape(request.width, request.height, request.frames);
        if self.published == Published::Wan22Ti2v {
            let still = self.encode_clip(&first, 1)?;
            let cond = PictureCond { still_frames: 1, ..PictureCond::default() };
            return Ok(Pictured { cond, still: Some(still) });
        }
        let latents = self.encode_clip(&first, frames)?; // (1, z, f, h, w)
        let (_, _, frames, height, width) = latents.dims5()?;
        // Which pixels are known: all of those that the first latent frame stands for, none of the others.
        let factor = self.vae_config.scale_factor_temporal();
        let known = Tensor::ones((1, factor, 1, height, width), DType::F32, &self.device)?;
        let mask = known.pad_with_zeros(2, 0, frames - 1)?;
        let channels = Some(Tensor::cat(&[&mask, &latents], 1)?);
        let embedding = self.image_encoder.as_ref().map(|encoder| self.look_at(picture, encoder)).transpose()?;
        Ok(Pictured { cond: PictureCond { embedding, channels, still_frames: 0 }, still: None })
    }

    /// A clip that begins with a frame and goes on grey, as latents of a length. // (1, 3, h, w) -> (1, z, f, h, w)
    fn encode_clip(&self, first: &Tensor, latent_frames: usize) -> Result<Tensor> {
        let encoder = VaeEncoder::new(&self.vae_config, Weights::new(&self.vae_weights, &self.device, None))?;
        let (_, colors, height, width) = first.dims4()?;
        let nothing = Tensor::zeros((encoder.temporal_factor(), colors, height, width), DType::F32, &self.device)?;
        let mut encoding = encoder.encoder();
        let mut latents = vec![encoding.next_latent(first)?];
        for _ in 1..latent_frames {
            latents.push(encoding.next_latent(&nothing)?);
        }
        Ok(Tensor::cat(&latents, 2)?)
    }

    /// The features of a picture. // (1, tokens, dim)
    fn look_at(&self, picture: &Picture, encoder: &ImageEncoder) -> Result<Tensor> {
        let Preprocessor { image_mean, image_std } = &encoder.preprocessor;
        let square = picture.middle_square(encoder.config.image_size, Filter::Bicubic);
        let dtype = self.dtype.for_parameters(encoder.weights.parameters());
        let model = ClipVision::new(&encoder.config, Weights::new(&encoder.weights, &self.device, dtype))?;
        Ok(model.forward(&square.normalized(image_mean, image_std, &self.device)?)?)
    }

    /// Units of one forward, as policies know them.
    pub(crate) fn units(&self) -> Result<Vec<cache::Unit>> {
        let part = |part| match part {
            Part::Whole => cache::Part::Whole,
            Part::SelfAttn => cache::Part::SelfAttn,
            Part::CrossAttn => cache::Part::CrossAttn,
            Part::Mlp => cache::Part::Mlp,
        };
        Ok(self.transformer()?.units().iter().map(|u| cache::Unit { block: u.block, part: part(u.part) }).collect())
    }

    /// What caching will take of memory.
    pub(crate) fn bill(&self, asks: &cache::Asks, run: &cache::Run, request: &Resolved) -> Result<Bill> {
        const F32: usize = 4;
        let shape = self.latents_shape(request.width, request.height, request.frames);
        let latents = shape.iter().product::<usize>() * F32;
        let features = self.tokens(&shape) * self.transformer()?.width() * F32;
        Ok(Bill::new(asks, run.branches.len(), latents as u64, features as u64, run.block_count()))
    }

    /// Most bytes that caching may keep.
    pub(crate) fn cache_budget(&self, request: &Resolved) -> u64 {
        let free = || machine::available_memory_bytes().filter(|_| self.device.is_cpu()).unwrap_or(u64::MAX);
        request.cache_memory.unwrap_or_else(free)
    }

    /// Tokens of latents of a shape.
    fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.transformer_config.patch_size;
        (frames / patch_t) * (height / patch_h) * (width / patch_w)
    }

    /// The VAE, read on first use.
    pub(crate) fn vae(&self) -> Result<&Vae> {
        load_once(&self.vae, || Ok(Vae::new(&self.vae_config, Weights::new(&self.vae_weights, &self.device, None))?))
    }
}

fn load_once<T>(cell: &OnceLock<T>, load: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(loaded) = cell.get() {
        return Ok(loaded);
    }
    let loaded = load()?;
    Ok(cell.get_or_init(|| loaded))
}

/// Optional file of a pipeline's own defaults, beside `model_index.json`.
const DEFAULTS_FILE: &str = "navicache.json";

/// The published pipelines that differ in more than size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    /// Wan2.1 text-to-video, 1.3B and 14B.
    Wan21,
    /// Wan2.1 image-to-video, 14B.
    Wan21I2v,
    /// Wan2.2 TI2V-5B: from text, or from text and a picture.
    Wan22Ti2v,
}

impl Published {
    /// The defaults of the reference pipeline and of the model's card. The number of layers tells the sizes of text-to-video apart,
    /// the schedule's shift those of image-to-video.
    fn defaults(self, layers: usize, shift: f64) -> Defaults {
        let (width, height, frames, fps, presets) = match self {
            Published::Wan21 if layers == 40 => (832, 480, 81, 16, "wan-t2v-14b"),
            Published::Wan21 => (832, 480, 81, 16, "wan-t2v-1.3b"),
            Published::Wan21I2v if shift >= 5.0 => (1280, 720, 81, 16, "wan-i2v-720p"),
            Published::Wan21I2v => (832, 480, 81, 16, "wan-i2v-480p"),
            Published::Wan22Ti2v => (1280, 704, 121, 24, "wan2.2-ti2v-5b"),
        };
        let presets = presets.to_string();
        Defaults { width, height, frames, fps, steps: 50, guidance: 5.0, max_sequence_length: 512, presets }
    }
}

fn disk_folder(model: &str) -> Result<Folder> {
    let path = Path::new(model);
    if !path.exists() {
        let expected =
            format!("expected {}, or the path of a Diffusers folder; there is no such file or folder", demo::NAME);
        return Err(Error::Request { what: "--model", found: model.to_string(), expected });
    }
    if !path.join("model_index.json").exists() {
        return Err(Error::file(path, "expected a Diffusers folder, found no model_index.json in it"));
    }
    Ok(Folder::Disk(path.to_path_buf()))
}

/// A JSON file that says in `key` what it describes. That comes first: fields of another model's make no sense.
fn identified(folder: &Folder, file: &str, key: &str, expected: &str) -> Result<serde_json::Value> {
    let json: serde_json::Value = folder.json(file)?;
    match json[key].as_str().unwrap_or("nothing") {
        found if found == expected => Ok(json),
        found => Err(Error::file(folder.path(file), format!("{key}: expected {expected}, found {found}"))),
    }
}

/// A component's `config.json`.
fn config<T: DeserializeOwned>(folder: &Folder, component: &str, key: &str, expected: &str) -> Result<T> {
    let file = format!("{component}/config.json");
    let json = identified(folder, &file, key, expected)?;
    serde_json::from_value(json).map_err(|e| Error::file(folder.path(&file), e.to_string()))
}

/// Says which pipeline it is; refuses those that would load but sample something else.
fn check_pipeline(folder: &Folder) -> Result<Published> {
    const INDEX: &str = "model_index.json";
    let index: serde_json::Value = folder.json(INDEX)?;
    let refuse = |reason: String| Err(Error::file(folder.path(INDEX), reason));
    if index["transformer_2"].get(0).is_some_and(|library| !library.is_null()) {
        return refuse(
            "transformer_2: expected one transformer, found two (Wan2.2 A14B), not supported yet".to_string(),
        );
    }
    let expands = index["expand_timesteps"].as_bool() == Some(true);
    match index["_class_name"].as_str().unwrap_or("nothing") {
        "WanPipeline" | "WanImageToVideoPipeline" if expands => Ok(Published::Wan22Ti2v),
        "WanPipeline" => Ok(Published::Wan21),
        "WanImageToVideoPipeline" => Ok(Published::Wan21I2v),
        found => refuse(format!("_class_name: expected WanPipeline or WanImageToVideoPipeline, found {found}")),
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b) * b
}
