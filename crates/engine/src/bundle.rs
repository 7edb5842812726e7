//! A pipeline on disk or inside the program, ready to generate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};
use navicache_control::cache;
use navicache_models::text::umt5::Umt5;
use navicache_models::wan::tiling::Window;
use navicache_models::wan::{Cond, PictureCond, Transformer, Vae};
use navicache_models::{Denoiser, Part, Weights};

use crate::device::{DeviceChoice, DtypeChoice};
use crate::hub::Hub;
use crate::layout::{Base, Files, Piece, Pieces, Pipeline};
use crate::prompt::tokenize;
use crate::published::Published;
use crate::request::{Defaults, Limits, Resolved};
use crate::scheduler::Scheduler;
use crate::store::Bill;
use crate::weights::{Folder, Lora, Residence, Tensors, add_lora};
use crate::{Error, Result, catalog, demo, machine};

/// How a pipeline is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Where tensors live.
    pub device: DeviceChoice,
    /// In which format matrices are kept; those that are quantised stay so.
    pub dtype: DtypeChoice,
    /// Weights that take the place of the pipeline's own, or make one up.
    pub files: Files,
    /// What is added to the transformer's weights.
    pub loras: Vec<Lora>,
    /// Most bytes of memory to use; `None`: what is free. Weights that would take more than three quarters of it are streamed from their
    /// files, and the VAE works in tiles that fit.
    pub memory: Option<u64>,
}

/// A Wan pipeline: video from text, or from text and a picture.
///
/// Opening it reads configurations and checks that every weight file is whole. Weights are read when they are first needed: the
/// text encoder for each generation and freed after it, transformer and VAE once.
pub struct Bundle {
    name: String,
    device: Device,
    dtype: DtypeChoice,
    memory: Option<u64>,
    pipeline: Pipeline,
    transformer: Kept<Transformer>,
    vae: Kept<Vae>,
    warnings: Vec<String>,
}

impl Bundle {
    /// Opens `demo`, the embedded model; a Diffusers folder (the one with `model_index.json`); or another folder or file of weights, which
    /// are recognised by what is in them. An empty name stands for what [`LoadOptions::files`] give alone.
    pub fn open(model: &str, options: &LoadOptions) -> Result<Self> {
        let base = match model {
            "" => None,
            demo::NAME => Some(Base::Diffusers(Folder::Embedded(demo::FILES))),
            name => Some(Base::at(&located(name)?)?),
        };
        let place = [Some(Path::new(model)), options.files.transformer.as_deref(), options.files.vae.as_deref()];
        let place = place.into_iter().flatten().find(|path| !path.as_os_str().is_empty());
        let name = place.map(|path| path.display().to_string()).unwrap_or_default();
        let mut pipeline = Pieces::read(base, &options.files)?.complete(&name)?;

        let mut warnings = Vec::new();
        for lora in &options.loras {
            let unknown = add_lora(&mut pipeline.transformer.tensors, lora)?;
            if let Some(first) = unknown.first() {
                let (count, file) = (unknown.len(), lora.path.display());
                warnings.push(format!(
                    "{file}: {count} of its modules are not in this model, as {first}; they change nothing"
                ));
            }
        }
        let bundle = Bundle {
            name,
            device: options.device.open()?,
            dtype: options.dtype,
            memory: options.memory,
            pipeline,
            transformer: Kept::default(),
            vae: Kept::default(),
            warnings,
        };
        Ok(bundle.with_residence())
    }

    /// Decides which weights are kept and which are streamed.
    fn with_residence(mut self) -> Self {
        let (room, dtype) = (self.room(), self.dtype);
        let Pipeline { text_encoder, transformer, image_encoder, .. } = &mut self.pipeline;
        let image_encoder = image_encoder.as_mut().map(|piece| &mut piece.tensors);
        for tensors in
            [Some(&mut text_encoder.tensors), Some(&mut transformer.tensors), image_encoder].into_iter().flatten()
        {
            let kept = tensors.kept_bytes(dtype.for_parameters(tensors.parameters()));
            tensors.reside(if kept > room { Residence::Streamed } else { Residence::Mapped });
        }
        self
    }

    /// What it is made of.
    pub(crate) fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Format that matrices of some weights are kept in; `None` is as stored.
    pub(crate) fn dtype_of(&self, tensors: &Tensors) -> Option<DType> {
        self.dtype.for_parameters(tensors.parameters())
    }

    /// Bytes of memory that may be used, if they are known.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory.or_else(machine::available_memory_bytes).filter(|_| self.device.is_cpu())
    }

    /// Bytes that one thing may take of it, so that there is some left for all others.
    pub(crate) fn room(&self) -> u64 {
        self.memory().map_or(u64::MAX, |memory| memory / 4 * 3)
    }

    /// What the user should know of what was loaded.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Name or path, as it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a request leaves open.
    pub fn defaults(&self) -> &Defaults {
        &self.pipeline.defaults
    }

    /// The schedule and solver it was published with.
    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.pipeline.scheduler
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Format of the transformer's matrices, for the report.
    pub(crate) fn dtype_name(&self) -> String {
        let tensors = &self.pipeline.transformer.tensors;
        match (tensors.main_format(), self.dtype_of(tensors)) {
            (Some(format), dtype) if format.is_packed() || dtype.is_none() => format.to_string(),
            (_, dtype) => dtype.map_or("stored", |dtype| dtype.as_str()).to_string(),
        }
    }

    /// What sizes it can make.
    pub(crate) fn limits(&self) -> Limits {
        let [patch_t, patch_h, patch_w] = self.pipeline.transformer.config.patch_size;
        let (temporal, spatial) =
            (self.pipeline.vae.config.scale_factor_temporal(), self.pipeline.vae.config.scale_factor_spatial());
        let positions = self.pipeline.transformer.config.rope_max_seq_len;
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
        let (temporal, spatial) =
            (self.pipeline.vae.config.scale_factor_temporal(), self.pipeline.vae.config.scale_factor_spatial());
        let channels = self.pipeline.transformer.config.out_channels;
        [1, channels, (frames - 1) / temporal + 1, height / spatial, width / spatial]
    }

    /// What a shape of latents has to be for this model, with its length, height and width.
    pub(crate) fn latents_shape_like(&self, [_, _, frames, height, width]: &[usize; 5]) -> [usize; 5] {
        [1, self.pipeline.vae.config.z_dim, *frames, *height, *width]
    }

    /// Pixels to a latent, along height and width.
    pub(crate) fn spatial_factor(&self) -> usize {
        self.pipeline.vae.config.scale_factor_spatial()
    }

    /// About the most bytes that decoding takes beside the weights, window by window of latents of a size.
    pub(crate) fn decode_bytes(&self, window: &Window, latent_frames: usize, rows: usize, columns: usize) -> u64 {
        let config = &self.pipeline.vae.config;
        let widest = config.decoder_base_dim.unwrap_or(config.base_dim) * config.dim_mult.last().copied().unwrap_or(1);
        let is_whole = window.rows.len() == rows && window.columns.len() == columns;
        let features = if is_whole { 0 } else { 4 * latent_frames * widest * rows * columns };
        let (width, height, frames) = self.video_shape(&[1, 1, latent_frames, rows, columns]);
        let pixels = 3 * width * height * frames;
        config.decode_bytes(window.rows.len(), window.columns.len()) + (features + pixels) as u64
    }

    /// Width, height and frames of latents of a shape.
    pub(crate) fn video_shape(&self, latents: &[usize; 5]) -> (usize, usize, usize) {
        let (temporal, spatial) =
            (self.pipeline.vae.config.scale_factor_temporal(), self.pipeline.vae.config.scale_factor_spatial());
        let [_, _, frames, height, width] = *latents;
        (width * spatial, height * spatial, frames.saturating_sub(1) * temporal + 1)
    }

    /// Refuses a video whose activations alone are beyond the memory there is, before anything is loaded.
    pub(crate) fn check_memory(&self, request: &Resolved) -> Result<()> {
        let Some(available) = self.memory() else { return Ok(()) };
        let tokens = self.tokens(&self.latents_shape(request.width, request.height, request.frames));
        let needed = self.activation_bytes(request);
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
        let Piece { config, tensors } = &self.pipeline.text_encoder;
        let encoder = Umt5::new(config, Weights::new(tensors, &self.device, self.dtype_of(tensors)))?;
        prompts
            .iter()
            .map(|prompt| {
                let tokens = tokenize(&self.pipeline.tokenizer, prompt, longest)?;
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
    pub(crate) fn transformer(&self) -> Result<Arc<Transformer>> {
        self.transformer.get(|| {
            let Piece { config, tensors } = &self.pipeline.transformer;
            Ok(Transformer::new(config, Weights::new(tensors, &self.device, self.dtype_of(tensors)))?)
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
        match (self.pipeline.published, image) {
            (Published::Wan21, Some(path)) => {
                refuse(path.display().to_string(), "this model makes video from text alone; leave the picture out")
            }
            (Published::Wan21I2v, None) => refuse("(none)".to_string(), "this model starts from a picture; give one"),
            _ => Ok(()),
        }
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
        request.cache_memory.unwrap_or_else(|| self.memory().unwrap_or(u64::MAX))
    }

    /// Most bytes of activations of the transformer: a block holds its input, queries, keys, values, output and the feed-forward's
    /// middle at once, in f32.
    pub(crate) fn activation_bytes(&self, request: &Resolved) -> u64 {
        let config = &self.pipeline.transformer.config;
        let tokens = self.tokens(&self.latents_shape(request.width, request.height, request.frames)) as u64;
        let widths = (6 * config.num_attention_heads * config.attention_head_dim + config.ffn_dim) as u64;
        tokens * widths * 4
    }

    /// Tokens of latents of a shape.
    pub(crate) fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.pipeline.transformer.config.patch_size;
        (frames / patch_t) * (height / patch_h) * (width / patch_w)
    }

    /// The VAE, read on first use.
    pub(crate) fn vae(&self) -> Result<Arc<Vae>> {
        self.vae.get(|| {
            let Piece { config, tensors } = &self.pipeline.vae;
            Ok(Vae::new(config, Weights::new(tensors, &self.device, None))?)
        })
    }

    /// Frees the transformer when what comes next needs much of the memory there is.
    pub(crate) fn make_room_for_decoding(&self, needed: u64) {
        if self.memory().is_some_and(|memory| needed > memory / 2) {
            self.transformer.free();
        }
    }

    /// Frees the VAE, which was read to see that it is whole, when the transformer needs much of the memory there is.
    pub(crate) fn make_room_for_denoising(&self) {
        let needed = self.pipeline.transformer.tensors.bytes();
        if self.memory().is_some_and(|memory| needed > memory / 2) {
            self.vae.free();
        }
    }
}

/// A model that is read on first use, and kept until room is needed.
struct Kept<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    fn get(&self, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut kept = self.lock();
        match &*kept {
            Some(model) => Ok(model.clone()),
            None => Ok(kept.insert(Arc::new(load()?)).clone()),
        }
    }

    fn free(&self) {
        *self.lock() = None;
    }

    /// A panic while a model was read leaves nothing half done behind: it is only put here when it is whole.
    fn lock(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The path of a model: one that is there, or that of a known name which has been downloaded.
pub(crate) fn located(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let known = catalog::repository(model);
    if let Some(repository) = known
        && let Some(snapshot) = Hub::from_env()?.snapshot(repository)
    {
        return Ok(snapshot);
    }
    let expected = match known {
        Some(_) => format!(
            "it is not here yet: `navicache pull {model}` downloads it; or give the path of a folder or file of weights"
        ),
        None => format!(
            "expected {}, a name that `navicache models` lists, or the path of a folder or file of weights; there is no such file or folder",
            demo::NAME
        ),
    };
    Err(Error::Request { what: "--model", found: model.to_string(), expected })
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
