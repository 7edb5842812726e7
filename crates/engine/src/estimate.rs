//! What a generation will take, before it is begun: memory by stage from the shapes, time from a probe.
//!
//! The probe runs one block of the transformer on two small numbers of tokens. A block's time is a part that grows with the tokens (the
//! matrices) and one that grows with their square (attention), so two sizes say both. How much caching saves depends on the video; what is
//! said is what the method computed in a run of the built-in model with as many steps.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::{DType, Tensor};
use navicache_control::guidance::Guidance;
use navicache_models::Denoiser;
use navicache_models::wan::tiling::windows;
use navicache_models::wan::{Cond, PictureCond};
use serde::Serialize;

use crate::decode::window_for;
use crate::generate::{resolve, start};
use crate::layout::Pipeline;
use crate::request::{Request, Resolved};
use crate::weights::Tensors;
use crate::{Bundle, LoadOptions, Result, demo, generate, latents, machine};

/// What a generation is expected to take.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// The request as it is understood.
    pub request: Resolved,
    /// Stages in their order.
    pub memory: Vec<StageMemory>,
    /// The largest stage.
    pub peak_bytes: u64,
    /// Memory that may be used; `None` where the system does not say.
    pub available_bytes: Option<u64>,
    /// Of the frames, the part that is decoded at once: pixels each way.
    pub tile: [usize; 2],
    /// Seconds of one forward of the transformer.
    pub forward_seconds: f64,
    /// Forwards without caching.
    pub forwards: usize,
    /// The cache method.
    pub method: String,
    /// Part of the work that the method computed on the built-in model.
    pub computed_part: f64,
    /// Seconds of all steps without caching.
    pub denoise_seconds_uncached: f64,
    /// Seconds of all steps with the method, if it computes as much here.
    pub denoise_seconds: f64,
    /// Seconds of decoding.
    pub decode_seconds: f64,
}

/// Memory of a stage.
#[derive(Debug, Clone, Serialize)]
pub struct StageMemory {
    /// text, picture, denoise or decode.
    pub stage: &'static str,
    /// Of its weights.
    pub weights_bytes: u64,
    /// Whether they are streamed from disk, and so need not all be there.
    pub streamed: bool,
    /// Of what is computed, at the most.
    pub working_bytes: u64,
    /// Of what caching keeps.
    pub cache_bytes: u64,
}

impl StageMemory {
    /// What has to be there at once.
    pub fn bytes(&self) -> u64 {
        let weights = if self.streamed { 0 } else { self.weights_bytes };
        weights + self.working_bytes + self.cache_bytes
    }
}

/// Tokens of the two probes; a smaller video is probed whole.
const PROBE_TOKENS: usize = 1024;

/// Estimates a request. Reads weights for the probe, and runs the built-in model once.
pub fn estimate(bundle: &Bundle, request: &Request) -> Result<Estimate> {
    let (resolved, _) = resolve(bundle, request)?;
    let shape = bundle.latents_shape(resolved.width, resolved.height, resolved.frames);
    let [_, _, latent_frames, rows, columns] = shape;
    let branches = Guidance::from_scale(resolved.guidance).branches();

    // Memory
    let method = resolved.cache.method();
    let schedule = bundle.scheduler().schedule(resolved.solver, resolved.steps, resolved.shift)?;
    let cache_bytes = start(bundle, &resolved, method, schedule.steps, &branches)?.bill.bytes;
    let window = window_for(bundle, latent_frames, rows, columns);
    let memory = stage_memory(bundle, &resolved, window, cache_bytes);

    // Time
    let forward_seconds = forward_seconds(bundle, &resolved, &shape)?;
    let forwards = resolved.steps * branches.len();
    let computed_part = computed_part(&resolved, request)?;
    let denoise_seconds_uncached = forward_seconds * forwards as f64;
    let factor = bundle.spatial_factor();
    Ok(Estimate {
        peak_bytes: memory.iter().map(StageMemory::bytes).max().unwrap_or(0),
        available_bytes: bundle.memory().or_else(machine::available_memory_bytes),
        tile: [columns.min(window) * factor, rows.min(window) * factor],
        memory,
        forward_seconds,
        forwards,
        method: method.name().to_string(),
        computed_part,
        denoise_seconds_uncached,
        denoise_seconds: denoise_seconds_uncached * computed_part,
        decode_seconds: decode_seconds(bundle, &shape)?,
        request: resolved,
    })
}

/// Memory of every stage, on the CPU: weights as they are kept, and the most that is computed at once.
fn stage_memory(bundle: &Bundle, request: &Resolved, window: usize, cache_bytes: u64) -> Vec<StageMemory> {
    const F32: u64 = 4;
    let Pipeline { text_encoder, transformer, vae, image_encoder, .. } = bundle.pipeline();
    let kept = |tensors: &Tensors| tensors.kept_bytes(bundle.dtype_of(tensors));
    let shape = bundle.latents_shape(request.width, request.height, request.frames);
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
    let encoding = vae_weights + vae.config.encode_bytes(rows, columns).min(bundle.room());
    if let Some(image_encoder) = image_encoder {
        stages.push(stage("picture", &image_encoder.tensors, encoding));
    }
    let config = &transformer.config;
    let matrix = (config.dim() * config.ffn_dim) as u64 * F32;
    let denoise = bundle.activation_bytes(request) + matrix;
    stages.push(StageMemory { cache_bytes, ..stage("denoise", &transformer.tensors, denoise) });
    let largest = windows(rows, columns, window).swap_remove(0);
    stages.push(StageMemory {
        stage: "decode",
        weights_bytes: vae_weights,
        streamed: false,
        working_bytes: bundle.decode_bytes(&largest, latent_frames, rows, columns),
        cache_bytes: 0,
    });
    stages
}

/// Part of the work that the method computes on the built-in model, in as many steps.
fn computed_part(resolved: &Resolved, request: &Request) -> Result<f64> {
    if !resolved.cache.method().caches() {
        return Ok(1.0);
    }
    let demo = Bundle::open(demo::NAME, &LoadOptions::default())?;
    let asked = Request {
        steps: Some(resolved.steps),
        guidance: Some(resolved.guidance),
        cache: request.cache.clone(),
        ..Request::new("a red circle bouncing on a navy background")
    };
    let totals = generate(&demo, &asked, &mut |_| ControlFlow::Continue(()))?.report.totals;
    let units = totals.units_computed + totals.units_reused;
    Ok(totals.units_computed as f64 / units.max(1) as f64)
}

/// Seconds of a forward at the size of the video.
fn forward_seconds(bundle: &Bundle, request: &Resolved, shape: &[usize; 5]) -> Result<f64> {
    let tokens = bundle.tokens(shape) as f64;
    if tokens <= 2.0 * PROBE_TOKENS as f64 {
        return Ok(probe(bundle, request, shape)?.seconds(1.0, tokens));
    }
    let [one, channels, _, rows, columns] = *shape;
    let [_, patch_rows, patch_columns] = bundle.transformer()?.patch();
    let wide = (columns / patch_columns).max(1);
    let tall = (PROBE_TOKENS / wide).clamp(1, rows / patch_rows);
    // The second one is twice as long in time.
    let small = [one, channels, bundle.transformer()?.patch()[0], tall * patch_rows, columns];
    let large = [one, channels, 2 * small[2], small[3], columns];
    let (first, second) = (probe(bundle, request, &small)?, probe(bundle, request, &large)?);
    Ok(first.and(&second).seconds(tokens))
}

/// What one run of one block took.
struct Probe {
    tokens: f64,
    /// Before and after the blocks.
    around: f64,
    block: f64,
    blocks: f64,
}

/// Seconds as a polynomial of tokens: of what is around the blocks, and of all blocks.
struct Fit {
    around: f64,
    linear: f64,
    square: f64,
}

impl Probe {
    /// Seconds of a forward at `tokens` if all of it grew with their power `exponent`.
    fn seconds(&self, exponent: f64, tokens: f64) -> f64 {
        (self.around + self.blocks * self.block) * (tokens / self.tokens).powf(exponent)
    }

    fn and(&self, other: &Probe) -> Fit {
        // block = linear * n + square * n^2 at both; noise must not make either negative.
        let (a, b) = (self.block / self.tokens, other.block / other.tokens);
        let square = ((b - a) / (other.tokens - self.tokens)).max(0.0);
        let linear = (b - square * other.tokens).max(0.0);
        Fit { around: other.around / other.tokens, linear: self.blocks * linear, square: self.blocks * square }
    }
}

impl Fit {
    fn seconds(&self, tokens: f64) -> f64 {
        tokens * (self.around + self.linear + self.square * tokens)
    }
}

/// Runs the first block twice, the first time to have its weights at hand, and times the second.
fn probe(bundle: &Bundle, request: &Resolved, shape: &[usize; 5]) -> Result<Probe> {
    let transformer = bundle.transformer()?;
    let cond = probe_cond(bundle, request, shape)?;
    let latents = latents::from_seed(0, shape, bundle.device())?;
    let units = transformer.units();
    let first_block = units.iter().take_while(|unit| unit.block == 0).count();
    let blocks = units.last().map_or(1, |unit| unit.block + 1) as f64;
    let mut timed = (0.0, 0.0);
    for _ in 0..2 {
        let clock = Instant::now();
        let mut state = transformer.begin(&latents, 500.0, &cond)?;
        let begun = clock.elapsed().as_secs_f64();
        for unit in 0..first_block {
            transformer.run_unit(unit, &mut state)?;
        }
        let block = clock.elapsed().as_secs_f64() - begun;
        // Finishing reads values back, so that nothing is still running when the clock is read.
        transformer.finish(state)?.flatten_all()?.get(0)?.to_scalar::<f32>()?;
        timed = (clock.elapsed().as_secs_f64() - block, block);
    }
    Ok(Probe { tokens: bundle.tokens(shape) as f64, around: timed.0, block: timed.1, blocks })
}

/// A conditioning of the right shape.
fn probe_cond(bundle: &Bundle, request: &Resolved, [_, _, frames, rows, columns]: &[usize; 5]) -> Result<Cond> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, bundle.device());
    let text = zeros(&[1, request.max_sequence_length, bundle.pipeline().text_encoder.config.d_model])?;
    let Pipeline { transformer, image_encoder, .. } = bundle.pipeline();
    let clip = image_encoder.as_ref().map(|piece| &piece.config);
    let embedding = clip.map(|clip| zeros(&[1, clip.tokens(), clip.hidden_size])).transpose()?;
    let channels = match transformer.config.in_channels - transformer.config.out_channels {
        0 => None,
        channels => Some(zeros(&[1, channels, *frames, *rows, *columns])?),
    };
    bundle.cond(&text, &PictureCond { embedding, channels, still_frames: 0 })
}

/// Latents each way of the decoder's probe.
const PROBE_LATENTS: usize = 8;

/// Seconds of decoding, from two latent frames of a small square.
fn decode_seconds(bundle: &Bundle, shape: &[usize; 5]) -> Result<f64> {
    let [one, channels, frames, rows, columns] = *shape;
    let small = [one, channels, 3.min(frames), rows.min(PROBE_LATENTS), columns.min(PROBE_LATENTS)];
    let vae = bundle.vae()?;
    let latents = latents::from_seed(0, &small, bundle.device())?;
    let mut decoding = vae.decoder(&vae.denormalize(&latents)?)?;
    // The first latent frame stands for one frame, every later one for several: the last is the typical one.
    let mut last = 0.0;
    loop {
        let clock = Instant::now();
        let Some(chunk) = decoding.next_chunk()? else { break };
        chunk.flatten_all()?.get(0)?.to_scalar::<f32>()?;
        last = clock.elapsed().as_secs_f64();
    }
    Ok(last * frames as f64 * (rows * columns) as f64 / (small[3] * small[4]) as f64)
}
