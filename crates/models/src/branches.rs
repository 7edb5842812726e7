//! A denoiser together with what the branches of a generation are conditioned on, whatever their types.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{Denoiser, Features, Observed, Result, Signal, Unit};

/// What of a model is the same whatever it is conditioned on.
#[derive(Debug, Clone)]
pub struct Anatomy {
    /// The units of a forward, in the order they run.
    pub units: Vec<Unit>,
    /// Latent frames, rows and columns that make one token.
    pub patch: [usize; 3],
    /// Numbers of one token's features.
    pub width: usize,
    /// Which tensors step-level cache policies observe.
    pub observed: Observed,
}

/// The object-safe face of a [`Denoiser`] with its conditions. Branches are counted from 0, in the order of the
/// conditions.
pub trait Branches: Send + Sync {
    /// What is the same in every forward.
    fn anatomy(&self) -> &Anatomy;
    /// Begins a branch's forward.
    ///
    /// * `latents` - (1, channels, latent frames, height, width), f32
    /// * `timestep` - the noise level as the model is conditioned on it, 0 to 1000
    /// * `stay` - where some frames, rows and columns of the latents were left out, the indices that stay, as u32
    fn begin(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: Option<&[Tensor; 3]>,
    ) -> Result<Box<dyn ForwardPass>>;
}

/// A forward under way: what [`Denoiser`] does with its state.
pub trait ForwardPass: Send {
    /// Runs one unit.
    fn run_unit(&mut self, unit: usize) -> Result<()>;
    /// Output head: the predicted velocity, of the latents' shape, f32.
    fn finish(self: Box<Self>) -> Result<Tensor>;
    /// What is known before the first unit runs.
    fn signal(&self, signal: Signal) -> Result<Tensor>;
    /// The features as they stand. Shares storage; nothing is copied.
    fn features(&self) -> Features;
    /// Puts other features in their place.
    fn set_features(&mut self, to: Features);
}

/// A denoiser with a condition for each branch.
pub struct Conditioned<D: Denoiser> {
    denoiser: Arc<D>,
    conditions: Vec<D::Cond>,
    anatomy: Anatomy,
}

impl<D: Denoiser> Conditioned<D> {
    /// Puts them together.
    pub fn new(denoiser: Arc<D>, conditions: Vec<D::Cond>) -> Self {
        let anatomy = Anatomy {
            units: denoiser.units().to_vec(),
            patch: denoiser.patch(),
            width: denoiser.width(),
            observed: denoiser.observed(),
        };
        Conditioned { denoiser, conditions, anatomy }
    }
}

impl<D: Denoiser + Send + Sync + 'static> Branches for Conditioned<D>
where
    D::Cond: Send,
{
    fn anatomy(&self) -> &Anatomy {
        &self.anatomy
    }

    fn begin(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: Option<&[Tensor; 3]>,
    ) -> Result<Box<dyn ForwardPass>> {
        let condition = &self.conditions[branch];
        let state = match stay {
            None => self.denoiser.begin(latents, timestep, condition)?,
            Some(stay) => self.denoiser.begin(latents, timestep, &self.denoiser.thinned(condition, stay)?)?,
        };
        Ok(Box::new(Running { denoiser: self.denoiser.clone(), state }))
    }
}

struct Running<D: Denoiser> {
    denoiser: Arc<D>,
    state: D::State,
}

impl<D: Denoiser + Send> ForwardPass for Running<D> {
    fn run_unit(&mut self, unit: usize) -> Result<()> {
        self.denoiser.run_unit(unit, &mut self.state)
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        self.denoiser.finish(self.state)
    }

    fn signal(&self, signal: Signal) -> Result<Tensor> {
        self.denoiser.signal(signal, &self.state)
    }

    fn features(&self) -> Features {
        self.denoiser.features(&self.state)
    }

    fn set_features(&mut self, to: Features) {
        self.denoiser.set_features(&mut self.state, to);
    }
}
