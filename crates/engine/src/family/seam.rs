//! What differs between families of models.

use std::ops::ControlFlow;

use candle_core::Tensor;
use navicache_control::cache::{Guarded, Run};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Schedule;
use navicache_control::solver::SolverKind;
use navicache_models::text::t5;
use navicache_models::{Denoiser, Observed, Unit};

use crate::denoise::{BranchInput, Sampled, Start, StepDone, sample};
use crate::event::{Reporter, Stage};
use crate::film::DecodePlan;
use crate::host::Host;
use crate::probe::Probe;
use crate::request::{Defaults, Resolved, Tiling};
use crate::sizes::Sizes;
use crate::{Error, Request, Result};
use navicache_media::Picture;
use navicache_weights::layout::Parts;
use navicache_weights::{Component, Tensors};

/// A family, before anything of it is read.
pub(crate) struct About {
    /// What it is called.
    pub name: &'static str,
    /// What its pipelines are made of; at most one for a role.
    pub components: &'static [Component],
    /// `_class_name` in the index of Diffusers folders.
    pub pipelines: &'static [&'static str],
    /// Understands what was found.
    pub read: fn(Parts) -> Result<Box<dyn Pieces>>,
}

/// What was found of a pipeline of some family.
pub(crate) trait Pieces {
    /// What a generation would still need: what it is, and how to give it.
    fn missing(&self) -> Vec<String>;

    /// All of a pipeline, or what is missing. `place`: what was looked at.
    fn complete(self: Box<Self>, place: &str, host: Host) -> Result<Box<dyn Family>>;
}

/// A complete pipeline: what a generation asks of it, in the order of a generation.
pub(crate) trait Family: Send + Sync {
    /// Where it runs.
    fn host(&self) -> &Host;
    /// Weights by the stage that they are for, in the order of a generation.
    fn weights(&self) -> Vec<(Stage, &Tensors)>;
    /// The same, to be changed.
    fn weights_mut(&mut self) -> Vec<(Stage, &mut Tensors)>;

    // 1. What is meant

    /// What a request leaves open.
    fn defaults(&self) -> &Defaults;
    /// What sizes it can make, and what they are as latents.
    fn sizes(&self) -> &dyn Sizes;
    /// Width and height by their names, `None` where the request names none.
    fn named_size(&self, request: &Request) -> Result<Option<(usize, usize)>> {
        request.size_by_name(self.defaults(), &self.sizes().limits())
    }
    /// The solver it was published with.
    fn solver(&self) -> SolverKind;
    /// The shift of the schedule that it was published with, for a size.
    fn shift(&self, width: usize, height: usize, frames: usize) -> f64;
    /// Refuses what the pipeline cannot do, and says what will not be heard.
    fn check(&self, request: &Resolved, reporter: &mut Reporter) -> Result<()>;
    /// The noise levels of a run.
    fn schedule(&self, request: &Resolved) -> Result<Schedule>;
    /// The branches of a step and their weights.
    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)>;

    // 2. Conditions

    /// Encodes the prompts of a run's branches. Loads the text encoders and frees them.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Text>>;
    /// Encodes the picture that a video starts from, in families that take one.
    fn look_at(&self, picture: &Picture, request: &Resolved) -> Result<Pictured> {
        let _ = (picture, request);
        Ok(Pictured::default())
    }

    // 3. Steps

    /// Reads the transformer on first use.
    fn load_transformer(&self) -> Result<()>;
    /// Units of one forward.
    fn units(&self) -> Result<Vec<Unit>>;
    /// Numbers of one token's features.
    fn width(&self) -> usize;
    /// What cache policies see of a forward.
    fn observed(&self) -> Observed;
    /// Most bytes of activations at once, beside the weights.
    fn activation_bytes(&self, tokens: usize) -> u64;
    /// Runs all steps.
    fn sample(&self, conditions: Conditions, steps: Steps, latents: Tensor) -> Result<Sampled>;
    /// Frees the transformer.
    fn free_transformer(&self);

    // 4. Frames

    /// Reads the VAE on first use.
    fn load_vae(&self) -> Result<()>;
    /// In which parts latents are decoded, and what that takes.
    fn decode_plan(&self, latents: &[usize; 5], tiling: Tiling) -> DecodePlan;
    /// So many frames of latents, 8-bit RGB. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
    fn decode(&self, latents: &Tensor, frames: usize, plan: &DecodePlan, reporter: &mut Reporter) -> Result<Vec<u8>>;
    /// Frees the VAE.
    fn free_vae(&self);

    // For estimates

    /// Working bytes of a stage of [`Family::weights`] that is neither `denoise` nor `decode`.
    fn encoding_bytes(&self, stage: Stage, request: &Resolved) -> u64;
    /// Runs a block of the transformer on latents of a shape.
    fn probe(&self, request: &Resolved, latents: &[usize; 5]) -> Result<Probe>;
    /// Seconds of decoding latents of a shape, from a small part of them.
    fn decode_seconds(&self, latents: &[usize; 5]) -> Result<f64>;
}

/// An encoded prompt.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// A vector for each token. // (1, tokens, dim)
    pub hidden: Tensor,
    /// One for all of them, in families that have it. // (1, dim)
    pub pooled: Option<Tensor>,
}

/// What a picture means for a generation.
#[derive(Default)]
pub(crate) struct Pictured {
    pub cond: navicache_models::wan::PictureCond,
    /// Latent frames that are known. // (1, z, few, height, width)
    pub still: Option<Tensor>,
}

/// What a generation is conditioned on.
pub(crate) struct Conditions<'a> {
    pub request: &'a Resolved,
    pub branches: &'a [(Branch, f64)],
    /// One a branch.
    pub texts: Vec<Text>,
    pub pictured: Pictured,
}

impl Conditions<'_> {
    /// The branches with what a transformer makes of their texts.
    pub fn inputs<C>(&self, cond: impl Fn(Branch, &Text) -> Result<C>) -> Result<Vec<BranchInput<C>>> {
        let branches = self.branches.iter().zip(&self.texts);
        branches
            .map(|(&(branch, weight), text)| Ok(BranchInput { branch, weight, cond: cond(branch, text)? }))
            .collect()
    }
}

/// The steps of a run, and who decides about them.
pub(crate) struct Steps<'a> {
    pub run: &'a Run,
    pub solver: SolverKind,
    pub policy: Guarded,
    pub on_step: &'a mut dyn FnMut(StepDone) -> ControlFlow<()>,
}

impl Steps<'_> {
    /// Runs them.
    pub fn run<D: Denoiser>(self, denoiser: &D, inputs: &[BranchInput<D::Cond>], start: Start) -> Result<Sampled> {
        sample(denoiser, inputs, start, self.run, self.solver, self.policy, self.on_step)
    }
}

/// Refuses a transformer and a VAE whose latents differ.
pub(crate) fn check_channels(place: &str, transformer: usize, vae: usize) -> Result<()> {
    if transformer == vae {
        return Ok(());
    }
    let reason = format!(
        "the transformer makes latents of {transformer} channels, the VAE takes {vae}: they do not belong together"
    );
    Err(Error::file(place, reason))
}

/// Working bytes of a T5 encoder on so many tokens: activations, scores and one widened matrix.
pub(crate) fn t5_bytes(config: &t5::Config, tokens: usize) -> u64 {
    const F32: usize = 4;
    let width = 6 * config.d_model + 2 * config.d_ff + config.num_heads * tokens;
    ((tokens * width + config.d_model * config.d_ff) * F32) as u64
}
