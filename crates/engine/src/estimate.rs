//! What a generation will take, before it is begun: memory by stage from the shapes, time from a probe.
//!
//! The probe runs one block of the transformer on two small numbers of tokens. A block's time is a part that grows with
//! the tokens (the matrices) and one that grows with their square (attention), so two sizes say both. How much caching
//! saves depends on the video; what is said is what the method computed in a run of the built-in model with as many
//! steps.

use std::ops::ControlFlow;

use navicache_models::DecodePlan;
use serde::Serialize;

use crate::decode::room;
use crate::event::Stage;
use crate::generate::start;
use crate::probe::{decode_seconds, probe};
use crate::request::{Request, Resolved};
use crate::{LoadOptions, Pipeline, Result, demo, generate, machine};
use navicache_weights::Tensors;

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
pub fn estimate(pipeline: &Pipeline, request: &Request) -> Result<Estimate> {
    let family = pipeline.family();
    let resolved = pipeline.resolve(request)?;
    let shape = family.shared().sizes.latents_shape(resolved.width, resolved.height, resolved.frames);
    let branches = family.branches(&resolved);

    // Memory
    let method = resolved.cache.method();
    let steps = family.shared().scheduler.schedule(resolved.solver, resolved.steps, resolved.shift)?.steps;
    let denoiser = family.denoiser(&resolved, &family.blank(&resolved, &shape)?)?;
    let cache_bytes = start(pipeline, &resolved, method, steps, &branches, &*denoiser)?.memory.bytes;
    let autoencoder = family.autoencoder()?;
    let plan = autoencoder.plan(&shape, room(resolved.tile, &family.shared().host));
    let memory = stage_memory(pipeline, &resolved, &plan, cache_bytes);

    // Time
    let forward_seconds = forward_seconds(pipeline, &resolved, &shape)?;
    let forwards = resolved.steps * branches.len();
    let computed_part = computed_part(&resolved, request)?;
    let denoise_seconds_uncached = forward_seconds * forwards as f64;
    Ok(Estimate {
        peak_bytes: memory.iter().map(StageMemory::bytes).max().unwrap_or(0),
        available_bytes: family.shared().host.memory().or_else(machine::available_memory_bytes),
        tile: plan.tile,
        memory,
        forward_seconds,
        forwards,
        method: method.name().to_string(),
        computed_part,
        denoise_seconds_uncached,
        denoise_seconds: denoise_seconds_uncached * computed_part,
        decode_seconds: decode_seconds(&*autoencoder, &*family.shared().sizes, &shape, pipeline.device())?,
        request: resolved,
    })
}

/// Memory of every stage, on the CPU: weights as they are kept, and the most that is computed at once.
fn stage_memory(pipeline: &Pipeline, request: &Resolved, plan: &DecodePlan, cache_bytes: u64) -> Vec<StageMemory> {
    const F32: u64 = 4;
    let family = pipeline.family();
    let of_stage = |(stage, tensors): (Stage, &Tensors)| {
        let (weights_bytes, working_bytes) = match stage {
            Stage::Decode => (tensors.decoder_bytes(), plan.bytes),
            _ => {
                // One matrix of the transformer is widened at a time.
                let widened = if stage == Stage::Denoise { tensors.largest() as u64 * F32 } else { 0 };
                let working = family.working_bytes(stage, request) + widened;
                (family.shared().host.kept_bytes(tensors), working)
            }
        };
        StageMemory {
            stage: stage.name(),
            weights_bytes,
            streamed: tensors.is_streamed(),
            working_bytes,
            cache_bytes: if stage == Stage::Denoise { cache_bytes } else { 0 },
        }
    };
    family.shared().stages().map(of_stage).collect()
}

/// Part of the work that the method computes on the built-in model, in as many steps.
fn computed_part(resolved: &Resolved, request: &Request) -> Result<f64> {
    if !resolved.cache.method().caches() {
        return Ok(1.0);
    }
    let demo = Pipeline::open(demo::NAME, &LoadOptions::default())?;
    // A promise was measured on other videos than this one; what it led to is known.
    let (cache, target) = match &resolved.promised {
        Some(promised) => (Some(promised.spec.clone()), None),
        None => (request.cache.clone(), request.target.clone()),
    };
    let asked = Request {
        steps: Some(resolved.steps),
        guidance: Some(resolved.guidance),
        cache,
        target,
        ..Request::new("a red circle bouncing on a navy background")
    };
    let totals = generate(&demo, &asked, &mut |_| ControlFlow::Continue(()))?.report.totals;
    let units = totals.units_computed + totals.units_reused;
    Ok(totals.units_computed as f64 / units.max(1) as f64)
}

/// Seconds of a forward at the size of the video.
fn forward_seconds(pipeline: &Pipeline, request: &Resolved, shape: &[usize; 5]) -> Result<f64> {
    let family = pipeline.family();
    let sizes = &family.shared().sizes;
    let timed = |shape: &[usize; 5]| {
        let denoiser = family.denoiser(request, &family.blank(request, shape)?)?;
        probe(&*denoiser, shape, sizes.tokens(shape), pipeline.device())
    };
    let tokens = sizes.tokens(shape) as f64;
    if tokens <= 2.0 * PROBE_TOKENS as f64 {
        return Ok(timed(shape)?.seconds(1.0, tokens));
    }
    let [one, channels, _, rows, columns] = *shape;
    let [patch_frames, patch_rows, patch_columns] = family.shared().sizes.patch();
    let wide = columns.div_ceil(patch_columns);
    let tall = (PROBE_TOKENS / wide).clamp(1, rows.div_ceil(patch_rows));
    // The second one is twice as long in time.
    let small = [one, channels, patch_frames, (tall * patch_rows).min(rows), columns];
    let large = [one, channels, 2 * patch_frames, small[3], columns];
    let (first, second) = (timed(&small)?, timed(&large)?);
    Ok(first.and(&second).seconds(tokens))
}
