//! A Open-Sora pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::Tensor;
use navicache_control::guidance::{Branch, Guidance};
use navicache_control::schedule::{Schedule, flow_even};
use navicache_control::solver::SolverKind;
use navicache_models::opensora::{Transformer, TransformerConfig, Vae, VaeConfig, VideoSize};
use navicache_models::text::t5::{self, T5};
use navicache_models::{Denoiser, Observed, Unit};
use tokenizers::Tokenizer;

use super::{prompt, sizes};
use crate::denoise::{Sampled, Start};
use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditions, Family, Steps, Text, t5_bytes};
use crate::film::{DecodePlan, FrameSink};
use crate::host::{Host, Resident};
use crate::machine::computing;
use crate::probe::{self, Probe};
use crate::prompt::tokenize;
use crate::request::{Defaults, Frames, Limits, Resolved, Tiling};
use crate::sizes::Sizes;
use crate::{Error, Request, Result};
use navicache_weights::Tensors;
use navicache_weights::layout::Piece;

/// Timesteps that the model was trained with.
const TRAIN_TIMESTEPS: usize = 1000;
/// A clip is one frame, or at least as many as one chunk of the VAE: in between the schedule is not defined.
const FEWEST_FRAMES: usize = 17;
/// Longest and largest clip that is taken.
const LARGEST: (usize, usize, usize) = (4080, 16384, 16384);
/// Smallest side: one token.
const SMALLEST: usize = 16;
/// What the model is told of a single frame, in frames a second.
const STILL_FPS: f64 = 120.0;
/// Side of the square that the schedule's shift is relative to, and the latent frames that stand for a chunk there.
const SHIFT_SIDE: f64 = 512.0;
const SHIFT_LATENT_FRAMES: usize = 5;

/// An Open-Sora pipeline.
pub(super) struct OpenSora {
    pub(super) host: Host,
    pub(super) defaults: Defaults,
    pub(super) sizes: Rounded,
    pub(super) tokenizer: Tokenizer,
    pub(super) text_encoder: Piece<t5::Config>,
    pub(super) transformer: Piece<TransformerConfig>,
    pub(super) vae: Piece<VaeConfig>,
    pub(super) transformer_model: Resident<Transformer>,
    pub(super) vae_model: Resident<Vae>,
}

impl OpenSora {
    fn transformer(&self) -> Result<Arc<Transformer>> {
        let Piece { config, tensors } = &self.transformer;
        self.transformer_model.get(|| Ok(Transformer::new(config, self.host.weights(tensors))?))
    }

    fn vae(&self) -> Result<Arc<Vae>> {
        let Piece { config, tensors } = &self.vae;
        self.vae_model.get(|| Ok(Vae::new(config, self.host.weights_as_stored(tensors))?))
    }

    /// What the transformer is told of the video.
    fn told(&self, request: &Resolved) -> VideoSize {
        let fps = if request.frames == 1 { STILL_FPS } else { request.fps as f64 };
        VideoSize { height: request.height, width: request.width, fps }
    }
}

/// Latents are rounded down to whole ones, tokens up: any size is taken.
pub(super) struct Rounded {
    pub(super) channels: usize,
    pub(super) patch: [usize; 3],
    pub(super) vae: VaeConfig,
}

impl Sizes for Rounded {
    fn limits(&self) -> Limits {
        Limits { width_multiple: 1, height_multiple: 1, frames: Frames::From(FEWEST_FRAMES), largest: LARGEST }
    }

    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5] {
        let factor = self.vae.space_factor();
        [1, self.channels, self.vae.latent_frames(frames), height / factor, width / factor]
    }

    fn video_shape(&self, [_, _, frames, height, width]: &[usize; 5]) -> (usize, usize, usize) {
        let factor = self.vae.space_factor();
        (width * factor, height * factor, self.vae.frames_of(*frames))
    }

    fn patch(&self) -> [usize; 3] {
        self.patch
    }

    fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.patch;
        frames.div_ceil(patch_t) * height.div_ceil(patch_h) * width.div_ceil(patch_w)
    }
}

impl Family for OpenSora {
    fn host(&self) -> &Host {
        &self.host
    }

    fn weights(&self) -> Vec<(Stage, &Tensors)> {
        vec![
            (Stage::Text, &self.text_encoder.tensors),
            (Stage::Denoise, &self.transformer.tensors),
            (Stage::Decode, &self.vae.tensors),
        ]
    }

    fn weights_mut(&mut self) -> Vec<(Stage, &mut Tensors)> {
        vec![
            (Stage::Text, &mut self.text_encoder.tensors),
            (Stage::Denoise, &mut self.transformer.tensors),
            (Stage::Decode, &mut self.vae.tensors),
        ]
    }

    fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    fn sizes(&self) -> &dyn Sizes {
        &self.sizes
    }

    fn named_size(&self, request: &Request) -> Result<Option<(usize, usize)>> {
        match (&request.resolution, &request.aspect_ratio) {
            (None, None) => Ok(None),
            (resolution, ratio) => sizes::of(
                resolution.as_deref().unwrap_or(sizes::RESOLUTION),
                ratio.as_deref().unwrap_or(sizes::ASPECT_RATIO),
            )
            .map(Some),
        }
    }

    fn solver(&self) -> SolverKind {
        SolverKind::Euler
    }

    /// Larger and longer clips spend more steps at high noise.
    fn shift(&self, width: usize, height: usize, frames: usize) -> f64 {
        let latent_frames = if frames == 1 { 1 } else { frames / FEWEST_FRAMES * SHIFT_LATENT_FRAMES };
        ((height * width) as f64 / (SHIFT_SIDE * SHIFT_SIDE)).sqrt() * (latent_frames as f64).sqrt()
    }

    fn check(&self, request: &Resolved, _: &mut Reporter) -> Result<()> {
        request.refuse_picture()?;
        request.refuse_true_guidance("this model has no other guidance; take --guidance")?;
        let refuse = |what, found: String, expected: String| Err(Error::Request { what, found, expected });
        if request.width.min(request.height) < SMALLEST {
            let found = format!("{}x{}", request.width, request.height);
            return refuse("--size", found, format!("expected at least {SMALLEST} each way"));
        }
        if !request.negative_prompt.is_empty() {
            let expected = "this model has a learned text in its place and hears no other; leave it out".to_string();
            return refuse("--negative-prompt", format!("{:?}", request.negative_prompt), expected);
        }
        let longest = self.transformer.config.model_max_length;
        if request.max_sequence_length > longest {
            let expected = format!("expected at most {longest}, which this model was made for");
            return refuse("--max-sequence-length", request.max_sequence_length.to_string(), expected);
        }
        Ok(())
    }

    /// Euler runs on the model's own grid; the other solvers on theirs.
    fn schedule(&self, request: &Resolved) -> Result<Schedule> {
        Ok(match request.solver {
            SolverKind::Euler => flow_even(request.steps, request.shift, TRAIN_TIMESTEPS)?,
            solver => solver.schedule(request.steps, request.shift, TRAIN_TIMESTEPS)?,
        })
    }

    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)> {
        Guidance::from_scale(request.guidance).branches()
    }

    /// The prompt's tokens alone, without padding. The other branch has a learned text of as many.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Text>> {
        let longest = request.max_sequence_length;
        let prepared = prompt::prepare(&request.prompt).map_err(|expected| Error::Request {
            what: "prompt",
            found: format!("{:?}", request.prompt),
            expected,
        })?;
        let tokens = tokenize(&self.tokenizer, &prepared, longest)?;
        tokens.warn_if_cut(longest, "--max-sequence-length", reporter);
        let Piece { config, tensors } = &self.text_encoder;
        let hidden = T5::new(config, self.host.weights(tensors))?.forward(&tokens.ids)?; // (1, tokens, caption channels)
        Ok(vec![Text { hidden, pooled: None }; branches.len()])
    }

    fn load_transformer(&self) -> Result<()> {
        self.transformer().map(drop)
    }

    fn units(&self) -> Result<Vec<Unit>> {
        Ok(self.transformer()?.units().to_vec())
    }

    fn width(&self) -> usize {
        self.transformer.config.hidden_size
    }

    fn observed(&self) -> Observed {
        Observed::Tokens
    }

    /// A block holds its input, queries, keys, values and output, and the feed-forward's middle before and after its activation.
    fn activation_bytes(&self, tokens: usize) -> u64 {
        let config = &self.transformer.config;
        (tokens * (6 * config.hidden_size + 2 * config.mlp_dim()) * 4) as u64
    }

    fn sample(&self, conditions: Conditions, steps: Steps, latents: Tensor) -> Result<Sampled> {
        let transformer = self.transformer()?;
        let told = self.told(conditions.request);
        let inputs = conditions.inputs(|branch, text| {
            Ok(match branch {
                Branch::Cond => transformer.cond(&text.hidden, told)?,
                Branch::Uncond | Branch::Other(_) => transformer.null_cond(text.hidden.dim(1)?, told)?,
            })
        })?;
        steps.run(&*transformer, &inputs, Start { latents, still: None })
    }

    fn free_transformer(&self) {
        self.transformer_model.free();
    }

    fn load_vae(&self) -> Result<()> {
        self.vae().map(drop)
    }

    /// Whole frames always, one at a time: the VAE's norms look at all of a frame.
    fn decode_plan(&self, latents: &[usize; 5], _: Tiling) -> DecodePlan {
        let [_, _, frames, rows, columns] = *latents;
        let (width, height, count) = self.sizes.video_shape(latents);
        let bytes = self.vae.config.decode_bytes(rows, columns, frames) + (3 * width * height * count) as u64;
        DecodePlan::new(rows.max(columns), latents, self.vae.config.space_factor(), bytes)
    }

    fn decode(&self, latents: &Tensor, frames: usize, _: &DecodePlan, reporter: &mut Reporter) -> Result<Vec<u8>> {
        let vae = self.vae()?;
        let (_, _, _, rows, columns) = latents.dims5()?;
        let factor = self.vae.config.space_factor();
        let mut sink = FrameSink::new(columns * factor, rows * factor, frames, reporter);
        let mut decoding = vae.decoder(&vae.denormalize(latents)?, frames)?;
        while let Some(chunk) = computing(|| decoding.next_chunk())? {
            sink.push(&chunk)?;
        }
        Ok(sink.finish())
    }

    fn free_vae(&self) {
        self.vae_model.free();
    }

    fn encoding_bytes(&self, _: Stage, request: &Resolved) -> u64 {
        t5_bytes(&self.text_encoder.config, request.max_sequence_length)
    }

    fn probe(&self, request: &Resolved, latents: &[usize; 5]) -> Result<Probe> {
        let transformer = self.transformer()?;
        let cond = transformer.null_cond(request.max_sequence_length, self.told(request))?;
        probe::probe(&*transformer, &cond, latents, self.sizes.tokens(latents), &self.host.device)
    }

    /// From a chunk of a small square.
    fn decode_seconds(&self, latents: &[usize; 5]) -> Result<f64> {
        let vae = self.vae()?;
        let (_, _, frames) = self.sizes.video_shape(latents);
        let chunk = self.vae.config.micro_latent_frames();
        probe::decode_seconds(latents, frames, chunk, &self.host.device, |part, clock| {
            let frames = self.vae.config.frames_of(part.dim(2)?);
            let mut decoding = vae.decoder(&vae.denormalize(part)?, frames)?;
            while let Some(chunk) = computing(|| decoding.next_chunk())? {
                clock.chunk(&chunk)?;
            }
            Ok(())
        })
    }
}
