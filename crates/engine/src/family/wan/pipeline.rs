//! A Wan pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_control::guidance::{Branch, Guidance};
use navicache_control::schedule::Schedule;
use navicache_control::solver::SolverKind;
use navicache_models::image::clip;
use navicache_models::text::t5::{self, T5};
use navicache_models::wan::tiling::{SMALLEST, Window, largest_window, windows};
use navicache_models::wan::{PictureCond, Transformer, TransformerConfig, Vae, VaeConfig};
use navicache_models::{Denoiser, Observed, Unit};
use tokenizers::Tokenizer;

use super::image::{Encoders, Preprocessor, condition_on};
use super::published::Published;
use crate::denoise::{Sampled, Start};
use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditions, Family, Pictured, Steps, Text, t5_bytes};
use crate::film::{Blend, DecodePlan, FrameSink};
use crate::host::{Host, Resident};
use crate::machine::computing;
use crate::probe::{self, Probe};
use crate::prompt::{self, tokenize};
use crate::request::{Defaults, Resolved, Tiling};
use crate::scheduler::Scheduler;
use crate::sizes::{Causal, Sizes};
use crate::{Error, Result};
use navicache_media::Picture;
use navicache_weights::Tensors;
use navicache_weights::layout::Piece;

/// A Wan pipeline.
pub(super) struct Wan {
    pub(super) host: Host,
    pub(super) published: Published,
    pub(super) defaults: Defaults,
    pub(super) scheduler: Scheduler,
    pub(super) sizes: Causal,
    pub(super) tokenizer: Tokenizer,
    pub(super) text_encoder: Piece<t5::Config>,
    pub(super) transformer: Piece<TransformerConfig>,
    pub(super) vae: Piece<VaeConfig>,
    pub(super) image_encoder: Option<Piece<clip::Config>>,
    pub(super) preprocessor: Preprocessor,
    pub(super) transformer_model: Resident<Transformer>,
    pub(super) vae_model: Resident<Vae>,
}

impl Wan {
    fn transformer(&self) -> Result<Arc<Transformer>> {
        let Piece { config, tensors } = &self.transformer;
        self.transformer_model.get(|| Ok(Transformer::new(config, self.host.weights(tensors))?))
    }

    fn vae(&self) -> Result<Arc<Vae>> {
        let Piece { config, tensors } = &self.vae;
        self.vae_model.get(|| Ok(Vae::new(config, self.host.weights_as_stored(tensors))?))
    }

    /// About the most bytes that decoding takes beside the weights, window by window of latents of a size.
    fn decode_bytes(&self, window: &Window, [_, _, frames, rows, columns]: &[usize; 5]) -> u64 {
        let config = &self.vae.config;
        let widest = config.decoder_base_dim.unwrap_or(config.base_dim) * config.dim_mult.last().copied().unwrap_or(1);
        let is_whole = window.rows.len() == *rows && window.columns.len() == *columns;
        let features = if is_whole { 0 } else { 4 * frames * widest * rows * columns };
        let (width, height, frames) = self.sizes.video_shape(&[1, 1, *frames, *rows, *columns]);
        let pixels = 3 * width * height * frames;
        config.decode_bytes(window.rows.len(), window.columns.len()) + (features + pixels) as u64
    }
}

impl Family for Wan {
    fn host(&self) -> &Host {
        &self.host
    }

    fn weights(&self) -> Vec<(Stage, &Tensors)> {
        let image_encoder = self.image_encoder.as_ref().map(|piece| (Stage::Picture, &piece.tensors));
        let text = (Stage::Text, &self.text_encoder.tensors);
        let others = [(Stage::Denoise, &self.transformer.tensors), (Stage::Decode, &self.vae.tensors)];
        [text].into_iter().chain(image_encoder).chain(others).collect()
    }

    fn weights_mut(&mut self) -> Vec<(Stage, &mut Tensors)> {
        let image_encoder = self.image_encoder.as_mut().map(|piece| (Stage::Picture, &mut piece.tensors));
        let text = (Stage::Text, &mut self.text_encoder.tensors);
        let others = [(Stage::Denoise, &mut self.transformer.tensors), (Stage::Decode, &mut self.vae.tensors)];
        [text].into_iter().chain(image_encoder).chain(others).collect()
    }

    fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    fn sizes(&self) -> &dyn Sizes {
        &self.sizes
    }

    fn solver(&self) -> SolverKind {
        self.scheduler.solver
    }

    fn shift(&self, _: usize, _: usize, _: usize) -> f64 {
        self.scheduler.shift
    }

    fn check(&self, request: &Resolved, _: &mut Reporter) -> Result<()> {
        request.refuse_true_guidance("this model has no other guidance; take --guidance")?;
        match (self.published, &request.image) {
            (Published::Wan21, _) => request.refuse_picture(),
            (Published::Wan21I2v, None) => Err(Error::Request {
                what: "--image",
                found: "(none)".to_string(),
                expected: "this model starts from a picture; give one".to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn schedule(&self, request: &Resolved) -> Result<Schedule> {
        self.scheduler.schedule(request.solver, request.steps, request.shift)
    }

    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)> {
        Guidance::from_scale(request.guidance).branches()
    }

    /// Each text is `max_sequence_length` tokens long, zero beyond its end.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Text>> {
        let Piece { config, tensors } = &self.text_encoder;
        let encoder = T5::new(config, self.host.weights(tensors))?;
        let longest = request.max_sequence_length;
        let texts = request.prompts(branches).map(|prompt| {
            let tokens = tokenize(&self.tokenizer, &prompt::clean(prompt), longest)?;
            tokens.warn_if_cut(longest, "--max-sequence-length", reporter);
            let hidden = encoder.forward(&tokens.ids)?; // (1, ids, text dim)
            let padding = longest - hidden.dim(1)?;
            Ok(Text { hidden: hidden.pad_with_zeros(1, 0, padding)?, pooled: None })
        });
        texts.collect()
    }

    fn look_at(&self, picture: &Picture, request: &Resolved) -> Result<Pictured> {
        let encoders = Encoders {
            host: &self.host,
            published: self.published,
            sizes: &self.sizes,
            vae: &self.vae,
            image_encoder: self.image_encoder.as_ref(),
            preprocessor: &self.preprocessor,
        };
        condition_on(&encoders, picture, request)
    }

    fn load_transformer(&self) -> Result<()> {
        self.transformer().map(drop)
    }

    fn units(&self) -> Result<Vec<Unit>> {
        Ok(self.transformer()?.units().to_vec())
    }

    fn width(&self) -> usize {
        self.transformer.config.dim()
    }

    fn observed(&self) -> Observed {
        Observed::Latents
    }

    /// A block holds its input, queries, keys, values, output and the feed-forward's middle at once, in f32.
    fn activation_bytes(&self, tokens: usize) -> u64 {
        let config = &self.transformer.config;
        (tokens * (6 * config.dim() + config.ffn_dim) * 4) as u64
    }

    fn sample(&self, conditions: Conditions, steps: Steps, latents: Tensor) -> Result<Sampled> {
        let transformer = self.transformer()?;
        let pictured = &conditions.pictured;
        let inputs = conditions.inputs(|_, text| Ok(transformer.cond_with_picture(&text.hidden, &pictured.cond)?))?;
        steps.run(&*transformer, &inputs, Start { latents, still: pictured.still.clone() })
    }

    fn free_transformer(&self) {
        self.transformer_model.free();
    }

    fn load_vae(&self) -> Result<()> {
        self.vae().map(drop)
    }

    fn decode_plan(&self, latents: &[usize; 5], tiling: Tiling) -> DecodePlan {
        let [_, _, _, rows, columns] = *latents;
        let room = self.host.room();
        let window = match tiling {
            Tiling::Off => rows.max(columns),
            Tiling::Pixels(pixels) => (pixels / self.sizes.spatial).max(SMALLEST),
            Tiling::Auto => largest_window(rows, columns, |window| self.decode_bytes(window, latents) <= room),
        };
        let largest = windows(rows, columns, window).swap_remove(0);
        DecodePlan::new(window, latents, self.sizes.spatial, self.decode_bytes(&largest, latents))
    }

    fn decode(&self, latents: &Tensor, frames: usize, plan: &DecodePlan, reporter: &mut Reporter) -> Result<Vec<u8>> {
        let vae = self.vae()?;
        let (_, _, _, rows, columns) = latents.dims5()?;
        let windows = windows(rows, columns, plan.window);
        let denormalized = vae.denormalize(latents)?;
        let factor = self.sizes.spatial;
        let mut sink = FrameSink::new(columns * factor, rows * factor, frames, reporter);
        if windows.len() == 1 {
            let mut decoding = vae.decoder(&denormalized)?;
            while let Some(chunk) = computing(|| decoding.next_chunk())? {
                sink.push(&chunk)?;
            }
            return Ok(sink.finish());
        }
        let features = vae.features(&denormalized)?;
        for (index, window) in windows.iter().enumerate() {
            let blend = Blend::new(&windows, window, factor);
            let mut decoding = vae.window_decoder(&features, window.clone());
            let mut first = 0;
            while let Some(chunk) = computing(|| decoding.next_chunk())? {
                first = sink.paste(&chunk, first, &blend)?;
            }
            sink.tile_done(index, windows.len());
        }
        Ok(sink.finish())
    }

    fn free_vae(&self) {
        self.vae_model.free();
    }

    fn encoding_bytes(&self, stage: Stage, request: &Resolved) -> u64 {
        const F32: usize = 4;
        if stage == Stage::Picture {
            let [_, _, _, rows, columns] = self.sizes.latents_shape(request.width, request.height, request.frames);
            let encoding = self.vae.config.encode_bytes(rows, columns).min(self.host.room());
            return self.vae.tensors.parameters() * F32 as u64 + encoding;
        }
        t5_bytes(&self.text_encoder.config, request.max_sequence_length)
    }

    fn probe(&self, request: &Resolved, latents: &[usize; 5]) -> Result<Probe> {
        let [_, _, frames, rows, columns] = *latents;
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.host.device);
        let text = zeros(&[1, request.max_sequence_length, self.text_encoder.config.d_model])?;
        let clip = self.image_encoder.as_ref().map(|piece| &piece.config);
        let embedding = clip.map(|clip| zeros(&[1, clip.tokens(), clip.hidden_size])).transpose()?;
        let config = &self.transformer.config;
        let channels = match config.in_channels - config.out_channels {
            0 => None,
            channels => Some(zeros(&[1, channels, frames, rows, columns])?),
        };
        let transformer = self.transformer()?;
        let cond = transformer.cond_with_picture(&text, &PictureCond { embedding, channels, still_frames: 0 })?;
        probe::probe(&*transformer, &cond, latents, self.sizes.tokens(latents), &self.host.device)
    }

    /// From a few latent frames of a small square.
    fn decode_seconds(&self, latents: &[usize; 5]) -> Result<f64> {
        let vae = self.vae()?;
        let (_, _, frames) = self.sizes.video_shape(latents);
        probe::decode_seconds(latents, frames, 3, &self.host.device, |part, clock| {
            let mut decoding = vae.decoder(&vae.denormalize(part)?)?;
            while let Some(chunk) = computing(|| decoding.next_chunk())? {
                clock.chunk(&chunk)?;
            }
            Ok(())
        })
    }
}
