//! Families of models: what each of them does in its own way. Everything else is the same for all of them.
//!
//! A family is a folder here and a line in [`FAMILIES`].

pub(crate) mod hunyuan;
pub(crate) mod opensora;
pub(crate) mod wan;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};
use navicache_control::cache::{Guarded, Run};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Schedule;
use navicache_control::solver::{SolverKind, StepPlan};
use navicache_models::text::t5;
use navicache_models::{Denoiser, Observed, Precision, Unit};

use crate::decode::{DecodePlan, Tiling};
use crate::device::{DtypeChoice, free_bytes};
use crate::estimate::Probe;
use crate::generate::{Stage, Teller};
use crate::layout::{INDEX, Parts};
use navicache_media::Picture;
use crate::request::{Defaults, Limits, Resolved};
use crate::sampler::{Sampled, Start, StepDone, sample};
use crate::scoped::BranchInput;
use crate::weights::{Component, Folder, Role, Tensors};
use crate::{Error, Request, Result};

/// All families.
const FAMILIES: [&About; 3] = [&wan::ABOUT, &hunyuan::ABOUT, &opensora::ABOUT];

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
    fn check(&self, request: &Resolved, teller: &mut Teller) -> Result<()>;
    /// The noise levels of a run.
    fn schedule(&self, request: &Resolved) -> Result<Schedule>;
    /// The branches of a step and their weights.
    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)>;

    // 2. Conditions

    /// Encodes the prompts of a run's branches. Loads the text encoders and frees them.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], teller: &mut Teller) -> Result<Vec<Text>>;
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
    fn decode(&self, latents: &Tensor, frames: usize, plan: &DecodePlan, teller: &mut Teller) -> Result<Vec<u8>>;
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

/// Sizes of videos, latents and tokens.
pub(crate) trait Sizes: Send + Sync {
    /// What can be made.
    fn limits(&self) -> Limits;
    /// Shape of the latents for a size. // (1, channels, latent frames, height, width)
    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5];
    /// Width, height and most frames of latents of a shape.
    fn video_shape(&self, latents: &[usize; 5]) -> (usize, usize, usize);
    /// Latents to a token, along time, height and width.
    fn patch(&self) -> [usize; 3];
    /// Tokens of latents of a shape.
    fn tokens(&self, latents: &[usize; 5]) -> usize;
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
    fn inputs<C>(&self, cond: impl Fn(Branch, &Text) -> Result<C>) -> Result<Vec<BranchInput<C>>> {
        let branches = self.branches.iter().zip(&self.texts);
        branches
            .map(|(&(branch, weight), text)| Ok(BranchInput { branch, weight, cond: cond(branch, text)? }))
            .collect()
    }
}

/// The steps of a run, and who decides about them.
pub(crate) struct Steps<'a> {
    pub run: &'a Run,
    pub plans: &'a [StepPlan],
    pub policy: Guarded,
    pub on_step: &'a mut dyn FnMut(StepDone) -> ControlFlow<()>,
}

impl Steps<'_> {
    /// Runs them.
    fn run<D: Denoiser>(self, denoiser: &D, inputs: &[BranchInput<D::Cond>], start: Start) -> Result<Sampled> {
        sample(denoiser, inputs, start, self.run, self.plans, self.policy, self.on_step)
    }
}

/// Where models run, and with how much memory.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub device: Device,
    pub dtype: DtypeChoice,
    pub memory: Option<u64>,
}

impl Host {
    /// Format that matrices of some weights are kept in; `None` is as stored. A GPU has no use for what is as stored: its products are of
    /// bf16, as the reference pipelines run, or of f32.
    pub fn dtype_of(&self, tensors: &Tensors) -> Option<DType> {
        let dtype = self.dtype.for_parameters(tensors.parameters());
        if self.device.is_cpu() { dtype } else { dtype.or(Some(DType::BF16)) }
    }

    /// Bytes that some weights take of it: what is quantised stays so on the CPU only.
    pub fn kept_bytes(&self, tensors: &Tensors) -> u64 {
        match self.dtype_of(tensors) {
            Some(dtype) if !self.device.is_cpu() => tensors.parameters() * dtype.size_in_bytes() as u64,
            dtype => tensors.kept_bytes(dtype),
        }
    }

    /// What their products multiply.
    pub fn precision_of(&self, tensors: &Tensors) -> Precision {
        self.dtype.precision(self.dtype_of(tensors), tensors.main_format())
    }

    /// The weights of a component, for a model to read.
    pub fn weights<'a>(&self, tensors: &'a Tensors) -> navicache_models::Weights<'a> {
        let weights = navicache_models::Weights::new(tensors, &self.device, self.dtype_of(tensors));
        weights.with_precision(self.precision_of(tensors))
    }

    /// The same, every matrix as it is stored; on a GPU in f32, so that its products are.
    pub fn weights_as_stored<'a>(&self, tensors: &'a Tensors) -> navicache_models::Weights<'a> {
        let dtype = (!self.device.is_cpu()).then_some(DType::F32);
        navicache_models::Weights::new(tensors, &self.device, dtype)
    }

    /// Bytes of the device's memory that may be used, if they are known.
    pub fn memory(&self) -> Option<u64> {
        self.memory.or_else(|| free_bytes(&self.device))
    }

    /// Bytes that one thing may take of it, so that there is some left for all others.
    pub fn room(&self) -> u64 {
        self.memory().map_or(u64::MAX, |memory| memory / 4 * 3)
    }
}

/// Understands what was found, as a pipeline of the family that it is of.
pub(crate) fn read(parts: Parts) -> Result<Box<dyn Pieces>> {
    let about = match &parts.folder {
        Some(folder) => of_index(folder)?,
        None => of_weights(&parts)?,
    };
    for (role, found) in &parts.found {
        let component = found.recognised.component;
        if about.components.contains(&component) && component.role() == *role {
            continue;
        }
        let expected = about.components.iter().find(|expected| expected.role() == *role);
        let reason = match expected {
            Some(expected) if parts.given.contains(role) => {
                format!("{}: expected {expected}, found {component}", role.option())
            }
            Some(expected) => format!("expected {expected}, found {component}: they do not belong together"),
            None => format!("{component} is no part of {}", about.name),
        };
        return Err(Error::file(&found.file.path, reason));
    }
    (about.read)(parts)
}

/// The family of a Diffusers folder.
fn of_index(folder: &Folder) -> Result<&'static About> {
    let index: serde_json::Value = folder.json(INDEX)?;
    let class = index["_class_name"].as_str().unwrap_or("nothing");
    FAMILIES.into_iter().find(|about| about.pipelines.contains(&class)).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|about| about.pipelines).copied().collect();
        Error::file(folder.path(INDEX), format!("_class_name: expected one of {}, found {class}", known.join(", ")))
    })
}

/// The family of loose weights: that of the transformer, or of whatever else there is.
fn of_weights(parts: &Parts) -> Result<&'static About> {
    let found = parts.found.get(&Role::Transformer).or_else(|| parts.found.values().next());
    let family = found
        .and_then(|found| FAMILIES.into_iter().find(|about| about.components.contains(&found.recognised.component)));
    family.ok_or_else(|| Error::file("", "expected weights, found none"))
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

/// Sizes of a model whose latent frames stand for 1, `temporal`, `temporal`, ... frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Causal {
    /// Channels of the latents.
    pub channels: usize,
    /// Frames to a latent frame, after the first.
    pub temporal: usize,
    /// Pixels to a latent.
    pub spatial: usize,
    /// Latents to a token, along time, height and width.
    pub patch: [usize; 3],
    /// Tokens along any axis, at most.
    pub positions: usize,
}

impl Sizes for Causal {
    fn limits(&self) -> Limits {
        let Causal { temporal, spatial, patch: [patch_t, patch_h, patch_w], positions, .. } = *self;
        Limits {
            frames: crate::request::Frames::Causal { factor: temporal, latent_multiple: patch_t },
            // The reference pipelines ask for multiples of 16 whatever the patch.
            width_multiple: least_common_multiple(16, spatial * patch_w),
            height_multiple: least_common_multiple(16, spatial * patch_h),
            largest: (
                (positions * patch_t - 1) * temporal + 1,
                positions * patch_h * spatial,
                positions * patch_w * spatial,
            ),
        }
    }

    fn latents_shape(&self, width: usize, height: usize, frames: usize) -> [usize; 5] {
        let latent_frames = (frames - 1) / self.temporal + 1;
        [1, self.channels, latent_frames, height / self.spatial, width / self.spatial]
    }

    fn video_shape(&self, [_, _, frames, height, width]: &[usize; 5]) -> (usize, usize, usize) {
        (width * self.spatial, height * self.spatial, frames.saturating_sub(1) * self.temporal + 1)
    }

    fn tokens(&self, [_, _, frames, height, width]: &[usize; 5]) -> usize {
        let [patch_t, patch_h, patch_w] = self.patch;
        (frames / patch_t) * (height / patch_h) * (width / patch_w)
    }

    fn patch(&self) -> [usize; 3] {
        self.patch
    }
}

/// Working bytes of a T5 encoder on so many tokens: activations, scores and one widened matrix.
fn t5_bytes(config: &t5::Config, tokens: usize) -> u64 {
    const F32: usize = 4;
    let width = 6 * config.d_model + 2 * config.d_ff + config.num_heads * tokens;
    ((tokens * width + config.d_model * config.d_ff) * F32) as u64
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

/// A model that is read on first use, and kept until room is needed.
pub(crate) struct Kept<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    pub fn get(&self, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut kept = self.lock();
        match &*kept {
            Some(model) => Ok(model.clone()),
            None => Ok(kept.insert(Arc::new(load()?)).clone()),
        }
    }

    pub fn free(&self) {
        *self.lock() = None;
    }

    /// A panic while a model was read leaves nothing half done behind: it is only put here when it is whole.
    fn lock(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
