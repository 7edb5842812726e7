//! A HunyuanVideo pipeline: what it does at each stage of a generation.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_control::guidance::{Branch, Guidance};
use navicache_control::schedule::{Schedule, flow_even};
use navicache_control::solver::SolverKind;
use navicache_models::hunyuan::{Tiles, Transformer, TransformerConfig, Vae, VaeConfig};
use navicache_models::text::clip::{self, ClipText};
use navicache_models::text::llama::{self, Llama};
use navicache_models::{Denoiser, Observed, Unit};
use tokenizers::Tokenizer;

use crate::denoise::{Sampled, Start};
use crate::event::{Reporter, Stage};
use crate::family::seam::{Conditions, Family, Steps, Text};
use crate::film::{DecodePlan, FrameSink};
use crate::host::{Host, Resident};
use crate::machine::computing;
use crate::probe::{self, Probe};
use crate::prompt::tokenize;
use crate::request::{Defaults, Resolved, Tiling};
use crate::scheduler::Scheduler;
use crate::sizes::{Causal, Sizes};
use crate::{Error, Result};
use navicache_weights::Tensors;
use navicache_weights::layout::Piece;

/// What stands before a prompt for LLaMA. Its tokens, and the one that begins a text, are cut off again.
const BEFORE_PROMPT: &str = "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: \
1. The main content and theme of the video.\
2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.\
3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.\
4. background environment, light, style and atmosphere.\
5. camera angles, movements, and transitions used in the video:<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n";
const AFTER_PROMPT: &str = "<|eot_id|>";
/// So many tokens are cut off.
const CROP: usize = 95;
/// Layers of LLaMA that do not run: hidden states are taken before the last two.
const SKIPPED_LAYERS: usize = 2;
/// Most tokens of a prompt that CLIP takes, the first and the last included.
const CLIP_TOKENS: usize = 77;
/// Positions that the rotary embedding has for each axis.
pub(super) const POSITIONS: usize = 1024;
/// Tiles smaller than this are no use: most of them would be what they share.
const SMALLEST_TILE: usize = 16;

/// A HunyuanVideo pipeline.
pub(super) struct Hunyuan {
    pub(super) host: Host,
    pub(super) defaults: Defaults,
    pub(super) scheduler: Scheduler,
    pub(super) sizes: Causal,
    pub(super) tokenizer: Tokenizer,
    pub(super) tokenizer_2: Tokenizer,
    pub(super) text_encoder: Piece<llama::Config>,
    pub(super) text_encoder_2: Piece<clip::Config>,
    pub(super) transformer: Piece<TransformerConfig>,
    pub(super) vae: Piece<VaeConfig>,
    pub(super) transformer_model: Resident<Transformer>,
    pub(super) vae_model: Resident<Vae>,
}

impl Hunyuan {
    fn transformer(&self) -> Result<Arc<Transformer>> {
        let Piece { config, tensors } = &self.transformer;
        self.transformer_model.get(|| Ok(Transformer::new(config, self.host.weights(tensors))?))
    }

    fn vae(&self) -> Result<Arc<Vae>> {
        let Piece { config, tensors } = &self.vae;
        self.vae_model.get(|| Ok(Vae::new(config, self.host.weights_as_stored(tensors))?))
    }

    /// Bytes of decoding tiles of so many latents each way.
    fn decode_bytes(&self, tile: usize, latents: &[usize; 5]) -> u64 {
        let [_, _, frames, rows, columns] = *latents;
        let (width, height, count) = self.sizes.video_shape(latents);
        // Windows of time are blended as f32, whole frames of them.
        let kept = 3 * width * height * (count + 3 * 4 * 17);
        self.vae.config.decode_bytes(rows.min(tile), columns.min(tile), frames) + kept as u64
    }
}

/// Tiles of so many latents each way; a quarter of a tile is shared with the next, as in the published ones.
fn tiles(size: usize) -> Tiles {
    Tiles { size, stride: size - size / 4 }
}

impl Family for Hunyuan {
    fn host(&self) -> &Host {
        &self.host
    }

    fn weights(&self) -> Vec<(Stage, &Tensors)> {
        vec![
            (Stage::Text, &self.text_encoder.tensors),
            (Stage::Text, &self.text_encoder_2.tensors),
            (Stage::Denoise, &self.transformer.tensors),
            (Stage::Decode, &self.vae.tensors),
        ]
    }

    fn weights_mut(&mut self) -> Vec<(Stage, &mut Tensors)> {
        vec![
            (Stage::Text, &mut self.text_encoder.tensors),
            (Stage::Text, &mut self.text_encoder_2.tensors),
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

    fn solver(&self) -> SolverKind {
        self.scheduler.solver
    }

    fn shift(&self, _: usize, _: usize, _: usize) -> f64 {
        self.scheduler.shift
    }

    fn check(&self, request: &Resolved, reporter: &mut Reporter) -> Result<()> {
        request.refuse_picture()?;
        if !self.transformer.config.guidance_embeds {
            return request.refuse_true_guidance("this model is told no guidance; take --guidance");
        }
        if !request.negative_prompt.is_empty() && self.branches(request).len() < 2 {
            reporter.warn("the negative prompt is not heard without --true-guidance above 1".to_string());
        }
        Ok(())
    }

    /// Euler runs on the pipeline's own grid; the other solvers on theirs.
    fn schedule(&self, request: &Resolved) -> Result<Schedule> {
        match request.solver {
            SolverKind::Euler => Ok(flow_even(request.steps, request.shift, self.scheduler.train_timesteps)?),
            solver => self.scheduler.schedule(solver, request.steps, request.shift),
        }
    }

    /// A model that is told the guidance scale needs one branch; a second one, when it is asked for.
    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)> {
        let scale = match self.transformer.config.guidance_embeds {
            true => request.true_guidance.unwrap_or(1.0),
            false => request.guidance,
        };
        Guidance::from_scale(scale).branches()
    }

    /// LLaMA describes the prompt within a template, token by token; CLIP gives one vector. One encoder is loaded at a time.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Text>> {
        let longest = request.max_sequence_length;
        let Piece { config, tensors } = &self.text_encoder;
        let llama = Llama::new(config, SKIPPED_LAYERS, self.host.weights(tensors))?;
        let mut hidden = Vec::with_capacity(branches.len());
        for prompt in request.prompts(branches) {
            let whole = format!("{BEFORE_PROMPT}{prompt}{AFTER_PROMPT}");
            let tokens = tokenize(&self.tokenizer, &whole, longest + CROP)?;
            tokens.warn_if_cut(longest + CROP, "template included; --max-sequence-length", reporter);
            let states = llama.forward(&tokens.ids)?; // (1, ids, hidden)
            let kept = states.dim(1)?.checked_sub(CROP).filter(|&kept| kept > 0).ok_or_else(|| Error::Request {
                what: "--tokenizer",
                found: format!("makes {} tokens of the prompt within its template", tokens.ids.len()),
                expected: format!("expected more than {CROP}; it is not the tokenizer of this model"),
            })?;
            hidden.push(states.narrow(1, CROP, kept)?);
        }
        drop(llama);

        let Piece { config, tensors } = &self.text_encoder_2;
        let clip = ClipText::new(config, self.host.weights(tensors))?;
        let longest = CLIP_TOKENS.min(config.max_position_embeddings);
        let texts = request.prompts(branches).zip(hidden).map(|(prompt, hidden)| {
            let tokens = tokenize(&self.tokenizer_2, prompt, longest)?;
            tokens.warn_if_cut(longest, "by CLIP; LLaMA sees more of it", reporter);
            Ok(Text { hidden, pooled: Some(clip.forward(&tokens.ids)?) })
        });
        texts.collect()
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

    /// A single block holds its input, its norm, queries, keys, values, what they become beside the feed-forward's middle, and that twice.
    fn activation_bytes(&self, tokens: usize) -> u64 {
        let config = &self.transformer.config;
        (tokens * (8 * config.dim() + 2 * config.mlp_dim()) * 4) as u64
    }

    fn sample(&self, conditions: Conditions, steps: Steps, latents: Tensor) -> Result<Sampled> {
        let transformer = self.transformer()?;
        let guidance = conditions.request.guidance;
        let inputs = conditions.inputs(|_, text| {
            let pooled = text.pooled.as_ref().unwrap_or(&text.hidden);
            Ok(transformer.cond(&text.hidden, pooled, guidance)?)
        })?;
        steps.run(&*transformer, &inputs, Start { latents, still: None })
    }

    fn free_transformer(&self) {
        self.transformer_model.free();
    }

    fn load_vae(&self) -> Result<()> {
        self.vae().map(drop)
    }

    /// Whole frames where they fit, else the published tiles, else smaller ones.
    fn decode_plan(&self, latents: &[usize; 5], tiling: Tiling) -> DecodePlan {
        let [_, _, _, rows, columns] = *latents;
        let (factor, whole, room) = (self.sizes.spatial, rows.max(columns), self.host.room());
        let tile = match tiling {
            Tiling::Off => whole,
            Tiling::Pixels(pixels) => (pixels / factor).max(SMALLEST_TILE),
            Tiling::Auto => {
                let smaller = (SMALLEST_TILE..=Tiles::PUBLISHED.size).rev().step_by(4);
                let mut sizes = std::iter::once(whole).chain(smaller);
                sizes.find(|&size| self.decode_bytes(size, latents) <= room).unwrap_or(SMALLEST_TILE)
            }
        };
        DecodePlan::new(tile, latents, factor, self.decode_bytes(tile, latents))
    }

    fn decode(&self, latents: &Tensor, frames: usize, plan: &DecodePlan, reporter: &mut Reporter) -> Result<Vec<u8>> {
        let vae = self.vae()?;
        let (_, _, _, rows, columns) = latents.dims5()?;
        let factor = self.sizes.spatial;
        let mut sink = FrameSink::new(columns * factor, rows * factor, frames, reporter);
        let mut decoding = vae.decoder(&vae.denormalize(latents)?, Some(tiles(plan.window)))?;
        while let Some(chunk) = computing(|| decoding.next_chunk())? {
            sink.push(&chunk)?;
        }
        Ok(sink.finish())
    }

    fn free_vae(&self) {
        self.vae_model.free();
    }

    fn encoding_bytes(&self, _: Stage, request: &Resolved) -> u64 {
        const F32: usize = 4;
        let config = &self.text_encoder.config;
        let tokens = request.max_sequence_length + CROP;
        let width = 6 * config.hidden_size + 2 * config.intermediate_size + config.num_attention_heads * tokens;
        ((tokens * width + config.hidden_size * config.intermediate_size) * F32) as u64
    }

    fn probe(&self, request: &Resolved, latents: &[usize; 5]) -> Result<Probe> {
        let config = &self.transformer.config;
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.host.device);
        let text = zeros(&[1, request.max_sequence_length, config.text_embed_dim])?;
        let pooled = zeros(&[1, config.pooled_projection_dim])?;
        let transformer = self.transformer()?;
        let cond = transformer.cond(&text, &pooled, request.guidance)?;
        probe::probe(&*transformer, &cond, latents, self.sizes.tokens(latents), &self.host.device)
    }

    /// From a window of time of a small square.
    fn decode_seconds(&self, latents: &[usize; 5]) -> Result<f64> {
        let vae = self.vae()?;
        let (_, _, frames) = self.sizes.video_shape(latents);
        probe::decode_seconds(latents, frames, 4, &self.host.device, |part, clock| {
            let mut decoding = vae.decoder(&vae.denormalize(part)?, None)?;
            while let Some(chunk) = computing(|| decoding.next_chunk())? {
                clock.chunk(&chunk)?;
            }
            Ok(())
        })
    }
}
