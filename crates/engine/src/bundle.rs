//! A pipeline on disk or inside the program, ready to generate.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};
use navicache_control::cache;
use navicache_models::image::clip::{self, ClipVision};
use navicache_models::text::umt5::Umt5;
use navicache_models::wan::tiling::{Window, largest_window, shares, windows};
use navicache_models::wan::{Cond, PictureCond, Transformer, Vae, VaeEncoder};
use navicache_models::{Denoiser, Part, Weights};

use crate::device::{DeviceChoice, DtypeChoice};
use crate::estimate::StageMemory;
use crate::hub::Hub;
use crate::layout::{Base, Files, Piece, Pieces, Pipeline, Preprocessor, Published};
use crate::picture::{Filter, Picture};
use crate::prompt::tokenize;
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

/// What a picture means for a generation.
#[derive(Default)]
pub(crate) struct Pictured {
    pub cond: PictureCond,
    /// Latent frames that are known. // (1, z, few, height, width)
    pub still: Option<Tensor>,
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
        let budget = self.memory();
        let Pipeline { text_encoder, transformer, image_encoder, .. } = &mut self.pipeline;
        let image_encoder = image_encoder.as_mut().map(|piece| &mut piece.tensors);
        for tensors in
            [Some(&mut text_encoder.tensors), Some(&mut transformer.tensors), image_encoder].into_iter().flatten()
        {
            let large = budget.is_some_and(|budget| tensors.bytes() > budget / 4 * 3);
            tensors.reside(if large { Residence::Streamed } else { Residence::Mapped });
        }
        self
    }

    /// Bytes of memory that may be used, if they are known.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory.or_else(machine::available_memory_bytes).filter(|_| self.device.is_cpu())
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
        match (tensors.main_format(), self.dtype.for_parameters(tensors.parameters())) {
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
        let dtype = self.dtype.for_parameters(self.pipeline.text_encoder.tensors.parameters());
        let encoder = Umt5::new(
            &self.pipeline.text_encoder.config,
            Weights::new(&self.pipeline.text_encoder.tensors, &self.device, dtype),
        )?;
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
            let dtype = self.dtype.for_parameters(tensors.parameters());
            Ok(Transformer::new(config, Weights::new(tensors, &self.device, dtype))?)
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

    /// Encodes the picture that a video starts from. Loads the encoders and frees them.
    pub(crate) fn condition_on(&self, picture: &Picture, request: &Resolved) -> Result<Pictured> {
        let first = picture.resized(request.width, request.height, Filter::Lanczos).tensor(&self.device)?;
        let [_, _, frames, ..] = self.latents_shape(request.width, request.height, request.frames);
        if self.pipeline.published == Published::Wan22Ti2v {
            let still = self.encode_clip(&first, 1)?;
            let cond = PictureCond { still_frames: 1, ..PictureCond::default() };
            return Ok(Pictured { cond, still: Some(still) });
        }
        let latents = self.encode_clip(&first, frames)?; // (1, z, f, h, w)
        let (_, _, frames, height, width) = latents.dims5()?;
        // Which pixels are known: all of those that the first latent frame stands for, none of the others.
        let factor = self.pipeline.vae.config.scale_factor_temporal();
        let known = Tensor::ones((1, factor, 1, height, width), DType::F32, &self.device)?;
        let mask = known.pad_with_zeros(2, 0, frames - 1)?;
        let channels = Some(Tensor::cat(&[&mask, &latents], 1)?);
        let embedding =
            self.pipeline.image_encoder.as_ref().map(|encoder| self.look_at(picture, encoder)).transpose()?;
        Ok(Pictured { cond: PictureCond { embedding, channels, still_frames: 0 }, still: None })
    }

    /// A clip that begins with a frame and goes on grey, as latents of a length; in windows where memory is short.
    /// // (1, 3, h, w) -> (1, z, f, h, w)
    fn encode_clip(&self, first: &Tensor, latent_frames: usize) -> Result<Tensor> {
        let config = &self.pipeline.vae.config;
        let encoder = VaeEncoder::new(config, Weights::new(&self.pipeline.vae.tensors, &self.device, None))?;
        let (_, _, height, width) = first.dims4()?;
        let factor = self.spatial_factor();
        let (rows, columns) = (height / factor, width / factor);
        let fits = |window: &Window| match self.memory() {
            Some(memory) => config.encode_bytes(window.rows.len(), window.columns.len()) <= memory / 4 * 3,
            None => true,
        };
        let window = largest_window(rows, columns, fits);
        let features = self.encode_features(&encoder, first, latent_frames, &windows(rows, columns, window))?;
        let mut encoding = encoder.upper_encoder();
        let latents = features.iter().map(|features| encoding.next_latent(features)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&latents, 2)?)
    }

    /// The features of whole frames, from those of windows. // (1, channels, h, w) for each latent frame
    fn encode_features(
        &self,
        encoder: &VaeEncoder,
        first: &Tensor,
        latent_frames: usize,
        windows: &[Window],
    ) -> Result<Vec<Tensor>> {
        let (_, colors, height, width) = first.dims4()?;
        let factor = self.spatial_factor();
        let ranges = |axis: fn(&Window) -> Range<usize>| windows.iter().map(axis).collect::<Vec<_>>();
        let (rows, columns) = (ranges(|window| window.rows.clone()), ranges(|window| window.columns.clone()));
        let mut whole: Vec<Tensor> = Vec::new();
        for window in windows {
            let (top, left) = (window.rows.start, window.columns.start);
            let (h, w) = (window.rows.len(), window.columns.len());
            let part = first.narrow(2, top * factor, h * factor)?.narrow(3, left * factor, w * factor)?.contiguous()?;
            let grey =
                Tensor::zeros((encoder.temporal_factor(), colors, h * factor, w * factor), DType::F32, &self.device)?;
            let down = Tensor::new(shares(&rows, &window.rows, 1), &self.device)?.reshape((1, 1, h, 1))?;
            let across = Tensor::new(shares(&columns, &window.columns, 1), &self.device)?.reshape((1, 1, 1, w))?;
            let mut encoding = encoder.lower_encoder();
            for frame in 0..latent_frames {
                let features = encoding.next_features(if frame == 0 { &part } else { &grey })?;
                if windows.len() == 1 {
                    whole.push(features);
                    continue;
                }
                let share = features.broadcast_mul(&down)?.broadcast_mul(&across)?;
                let share = share.pad_with_zeros(2, top, height / factor - top - h)?.pad_with_zeros(
                    3,
                    left,
                    width / factor - left - w,
                )?;
                match whole.get_mut(frame) {
                    Some(sum) => *sum = (&*sum + share)?,
                    None => whole.push(share),
                }
            }
        }
        Ok(whole)
    }

    /// The features of a picture. // (1, tokens, dim)
    fn look_at(&self, picture: &Picture, encoder: &Piece<clip::Config>) -> Result<Tensor> {
        let Preprocessor { image_mean, image_std } = &self.pipeline.preprocessor;
        let square = picture.middle_square(encoder.config.image_size, Filter::Bicubic);
        let dtype = self.dtype.for_parameters(encoder.tensors.parameters());
        let model = ClipVision::new(&encoder.config, Weights::new(&encoder.tensors, &self.device, dtype))?;
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

    /// Width of the encoded text.
    pub(crate) fn text_dim(&self) -> usize {
        self.pipeline.text_encoder.config.d_model
    }

    /// Tokens of a picture and their width, for models that attend to one.
    pub(crate) fn image_tokens(&self) -> Option<(usize, usize)> {
        self.pipeline.image_encoder.as_ref().map(|piece| (piece.config.tokens(), piece.config.hidden_size))
    }

    /// Channels of a picture that stand beside those of the latents.
    pub(crate) fn picture_channels(&self) -> usize {
        let config = &self.pipeline.transformer.config;
        config.in_channels - config.out_channels
    }

    /// Memory of every stage, on the CPU: weights as they are kept, and the most that is computed at once.
    pub(crate) fn stage_memory(&self, request: &Resolved, window: usize, cache_bytes: u64) -> Vec<StageMemory> {
        const F32: u64 = 4;
        let Pipeline { text_encoder, transformer, vae, image_encoder, .. } = &self.pipeline;
        let kept = |tensors: &Tensors| tensors.kept_bytes(self.dtype.for_parameters(tensors.parameters()));
        let shape = self.latents_shape(request.width, request.height, request.frames);
        let [_, _, latent_frames, rows, columns] = shape;
        let stage = |stage, tensors: &Tensors, working_bytes| StageMemory {
            stage,
            weights_bytes: kept(tensors),
            streamed: tensors.is_streamed(),
            working_bytes,
            cache_bytes: 0,
        };
        let text_tokens = request.max_sequence_length as u64;
        let text = &text_encoder.config;
        let text_width = (6 * text.d_model + 2 * text.d_ff + text.num_heads * request.max_sequence_length) as u64;
        let text_matrix = (text.d_model * text.d_ff) as u64 * F32;
        let mut stages = vec![stage("text", &text_encoder.tensors, text_tokens * text_width * F32 + text_matrix)];
        let vae_weights = vae.tensors.parameters() * F32;
        let budget = self.memory().map_or(u64::MAX, |memory| memory / 4 * 3);
        let encoding = vae_weights + vae.config.encode_bytes(rows, columns).min(budget);
        if let Some(image_encoder) = image_encoder {
            stages.push(stage("picture", &image_encoder.tensors, encoding));
        }
        let config = &transformer.config;
        let matrix = (config.dim() * config.ffn_dim) as u64 * F32;
        let denoise = self.activation_bytes(request) + matrix;
        stages.push(StageMemory { cache_bytes, ..stage("denoise", &transformer.tensors, denoise) });
        let largest = windows(rows, columns, window).swap_remove(0);
        stages.push(StageMemory {
            stage: "decode",
            weights_bytes: vae_weights,
            streamed: false,
            working_bytes: self.decode_bytes(&largest, latent_frames, rows, columns),
            cache_bytes: 0,
        });
        stages
    }

    /// Most bytes of activations of the transformer: a block holds its input, queries, keys, values, output and the feed-forward's
    /// middle at once, in f32.
    fn activation_bytes(&self, request: &Resolved) -> u64 {
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
