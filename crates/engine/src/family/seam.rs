//! What differs between families of models, and what all of them have.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use navicache_control::guidance::{Branch, Guidance};
use navicache_control::schedule::Step;
use navicache_models::{Autoencoder, Branches, Conditioned, Denoiser, Error as ModelError, Level, Precision, Weights};
use navicache_weights::layout::Parts;
use navicache_weights::{Component, Role, Tensors};

use crate::draws::Draws;
use crate::event::{Reporter, Stage};
use crate::field::Field;
use crate::host::{Host, Resident};
use crate::request::{Defaults, Resolved};
use crate::scheduler::Scheduler;
use crate::size::Size;
use crate::sizes::Sizes;
use crate::{Error, Request, Result};
use navicache_media::Picture;

/// A family, before anything of it is read.
pub(crate) struct About {
    /// What it is called.
    pub name: &'static str,
    /// What its pipelines are made of; at most one for a role.
    pub components: &'static [Component],
    /// `_class_name` in the index of Diffusers folders.
    pub pipelines: &'static [&'static str],
    /// Understands what was found.
    pub read: fn(Parts) -> Result<Box<dyn Assembly>>,
}

/// What was found of a pipeline of some family.
pub(crate) trait Assembly {
    /// What a generation would still need: what it is, and how to give it.
    fn missing(&self) -> Vec<String>;

    /// What the user should know of what was found.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// All of a pipeline, or what is missing. `place`: what was looked at.
    fn complete(self: Box<Self>, place: &str, host: Host) -> Result<Box<dyn Family>>;
}

/// What pipelines of all families have.
pub(crate) struct Shared {
    /// Where it runs.
    pub host: Host,
    /// What a request leaves open.
    pub defaults: Defaults,
    /// The schedule and solver that it was published with.
    pub scheduler: Scheduler,
    /// What sizes it can make, and what they are as latents.
    pub sizes: Box<dyn Sizes>,
    /// Weights by what they are for.
    pub weights: BTreeMap<Role, Tensors>,
    /// The narrowest that the VAE's convolutions may multiply: bf16 only where it was measured that frames stay within
    /// 50 dB of PSNR (docs/results.md).
    pub narrowest_vae: Precision,
    /// The VAE's decoder, once it was read.
    pub autoencoder: Resident<dyn Autoencoder>,
}

/// Roles in the order of a generation.
const ROLES: [(Role, Stage); 6] = [
    (Role::TextEncoder, Stage::Text),
    (Role::SecondTextEncoder, Stage::Text),
    (Role::ImageEncoder, Stage::Picture),
    (Role::Transformer, Stage::Denoise),
    (Role::SecondTransformer, Stage::Denoise),
    (Role::Vae, Stage::Decode),
];

impl Shared {
    /// The weights of a part.
    pub fn weights(&self, role: Role) -> Result<&Tensors> {
        let missing = || Error::file("", format!("this pipeline has no {role:?}"));
        self.weights.get(&role).ok_or_else(missing)
    }

    /// What the VAE's convolutions multiply: bf16 where the transformer's products do, frames allow it, and this
    /// machine is much faster so.
    pub fn vae_precision(&self) -> Precision {
        let is_faster = || self.host.device.is_cpu() && Level::current().convolves_bf16();
        match self.weights(Role::Transformer) {
            Ok(transformer) if self.narrowest_vae == Precision::Bf16 && is_faster() => {
                self.host.precision_of(transformer)
            }
            _ => Precision::F32,
        }
    }

    /// Weights by the stage that they are for, in the order of a generation.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, &Tensors)> {
        ROLES.iter().filter_map(|(role, stage)| Some((*stage, self.weights.get(role)?)))
    }
}

/// A complete pipeline: what a generation asks of it, in the order of a generation.
pub(crate) trait Family: Send + Sync {
    /// What it has in the same form as all others.
    fn shared(&self) -> &Shared;
    /// The same, to be changed.
    fn shared_mut(&mut self) -> &mut Shared;

    /// Its configurations in full, so that another pipeline of the same weights is told from it.
    fn configuration(&self) -> String;

    // 1. What is meant

    /// Width and height by their names, `None` where the request names none.
    fn named_size(&self, request: &Request) -> Result<Option<Size>> {
        let Shared { defaults, sizes, .. } = self.shared();
        request.size_by_name(defaults, &sizes.limits())
    }
    /// The shift of the schedule that it was published with, for a size.
    fn shift(&self, _width: usize, _height: usize, _frames: usize) -> f64 {
        self.shared().scheduler.shift
    }
    /// Refuses what the pipeline cannot do, and says what will not be heard.
    fn check(&self, request: &Resolved, reporter: &mut Reporter) -> Result<()>;
    /// The branches of a step and their weights.
    fn branches(&self, request: &Resolved) -> Vec<(Branch, f64)> {
        Guidance::from_scale(request.guidance).branches()
    }
    /// The same at each of some steps, where the weights are not those of all.
    fn guided(&self, request: &Resolved, steps: &[Step]) -> Vec<Vec<(Branch, f64)>> {
        vec![self.branches(request); steps.len()]
    }
    /// Those of some steps at which another transformer takes over.
    fn segments(&self, _steps: &[Step]) -> Vec<usize> {
        Vec::new()
    }

    /// Refuses a guidance scale that follows the timestep, where a model was published without.
    fn check_dynamic_guidance(&self, request: &Resolved) -> Result<()> {
        if !request.dynamic_guidance {
            return Ok(());
        }
        Err(Error::Invalid {
            field: Field::DynamicGuidance,
            found: "true".to_string(),
            expected: "this model was published with one scale for all steps; leave it out".to_string(),
        })
    }
    /// The random numbers of a generation, for latents of a shape.
    fn draws(&self, request: &Resolved, shape: &[usize; 5]) -> Draws {
        Draws::of(request.seed, shape)
    }

    // 2. Conditions

    /// Encodes the prompts of a run's branches. Loads the text encoders and frees them.
    fn encode(&self, request: &Resolved, branches: &[(Branch, f64)], reporter: &mut Reporter) -> Result<Vec<Inputs>>;
    /// Encodes the picture that a video starts from, in families that take one.
    fn encode_image(&self, _picture: &Picture, _request: &Resolved) -> Result<ImageConditioning> {
        Ok(ImageConditioning::default())
    }
    /// Conditions of the right shapes without meaning, of one branch, to time a forward on latents of a shape.
    fn blank(&self, request: &Resolved, latents: &[usize; 5]) -> Result<Conditioning>;

    // 3. Steps

    /// The transformer under its conditions. Reads it on first use.
    fn denoiser(&self, request: &Resolved, conditioning: &Conditioning) -> Result<Box<dyn Branches + '_>>;
    /// Frees the transformer.
    fn free_transformer(&self);

    // 4. Frames

    /// Makes the VAE's decoder of its weights.
    fn read_autoencoder(&self, weights: Weights) -> Result<Arc<dyn Autoencoder>>;
    /// The VAE's decoder. Reads it on first use.
    fn autoencoder(&self) -> Result<Arc<dyn Autoencoder>> {
        let shared = self.shared();
        let weights = || Ok::<_, Error>(shared.host.weights_as_stored(shared.weights(Role::Vae)?));
        shared.autoencoder.get(|| self.read_autoencoder(weights()?.with_precision(shared.vae_precision())))
    }
    /// Frees it.
    fn free_autoencoder(&self) {
        self.shared().autoencoder.free();
    }

    // For estimates

    /// Most bytes that a stage before decoding takes beside its weights.
    fn working_bytes(&self, stage: Stage, request: &Resolved) -> u64;
}

/// What something is conditioned on: tensors by the family's own names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs(BTreeMap<&'static str, Tensor>);

impl Inputs {
    pub fn get(&self, name: &'static str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// All of them by their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (*name, tensor))
    }

    /// The same names with other tensors, of the formats and shapes of these; texts may have fewer tokens.
    ///
    /// * `found` - what there is under a name
    ///
    /// # Errors
    /// One is not there, or of another shape.
    pub fn filled(&self, found: impl Fn(&str) -> Option<Tensor>) -> Result<Inputs, String> {
        let filled = self.0.iter().map(|(name, like)| {
            let tensor = found(name).ok_or_else(|| format!("{name}: there is no such tensor"))?;
            let (shape, most) = (tensor.dims(), like.dims());
            let is_text = most.len() == 3; // (1, tokens, features)
            let fits = |(axis, (size, most)): (usize, (&usize, &usize))| match is_text && axis == 1 {
                true => (1..=*most).contains(size),
                false => size == most,
            };
            let alike = shape.len() == most.len() && shape.iter().zip(most).enumerate().all(fits);
            match alike && tensor.dtype() == like.dtype() {
                true => Ok((*name, tensor)),
                false => {
                    let expected = format!("expected {:?} of {most:?} at most", like.dtype());
                    Err(format!("{name}: {expected}, found {:?} of {shape:?}", tensor.dtype()))
                }
            }
        });
        filled.collect::<Result<_, String>>().map(Inputs)
    }

    /// One without which nothing can be done.
    pub fn require(&self, name: &'static str) -> Result<&Tensor> {
        let missing =
            || ModelError::Input { what: "conditions", expected: name.to_string(), found: "none".to_string() };
        Ok(self.get(name).ok_or_else(missing)?)
    }
}

impl<const N: usize> From<[(&'static str, Tensor); N]> for Inputs {
    fn from(inputs: [(&'static str, Tensor); N]) -> Self {
        Inputs(inputs.into())
    }
}

impl Extend<(&'static str, Tensor)> for Inputs {
    fn extend<T: IntoIterator<Item = (&'static str, Tensor)>>(&mut self, inputs: T) {
        self.0.extend(inputs);
    }
}

/// What a picture means for a generation.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageConditioning {
    /// What all branches are conditioned on.
    pub inputs: Inputs,
    /// Latent frames that are known. // (1, z, few, height, width)
    pub known_latents: Option<Tensor>,
}

/// What a generation is conditioned on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditioning {
    /// What each branch alone is conditioned on.
    pub branches: Vec<(Branch, Inputs)>,
    pub image: ImageConditioning,
}

impl Conditioning {
    /// A transformer under what `condition` makes of each branch's inputs.
    pub fn apply<D>(
        &self,
        transformer: Arc<D>,
        condition: impl Fn(&D, Branch, &Inputs) -> Result<D::Cond>,
    ) -> Result<Box<dyn Branches>>
    where
        D: Denoiser + Send + 'static,
        D::Cond: Send + 'static,
    {
        let conditions = self.branches.iter().map(|(branch, inputs)| condition(&transformer, *branch, inputs));
        let conditions = conditions.collect::<Result<Vec<_>>>()?;
        Ok(Box::new(Conditioned::new(transformer, conditions)))
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
