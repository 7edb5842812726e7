//! A denoiser together with what the branches of a generation are conditioned on, whatever their types.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{Denoiser, Features, Observed, Result, Signal, Unit};

/// The object-safe face of a [`Denoiser`] with its conditions. Branches are counted from 0, in the order of the
/// conditions.
pub trait Branches: Send + Sync {
    /// The units of a forward, in the order they run.
    fn units(&self) -> &[Unit];
    /// Latent frames, rows and columns that make one token.
    fn patch(&self) -> [usize; 3];
    /// Numbers of one token's features.
    fn width(&self) -> usize;
    /// Which tensors step-level cache policies observe.
    fn observed(&self) -> Observed;
    /// Begins a branch's forward.
    ///
    /// * `latents` - (1, channels, latent frames, height, width), f32
    /// * `timestep` - the noise level as the model is conditioned on it, 0 to 1000
    fn begin(&self, branch: usize, latents: &Tensor, timestep: f64) -> Result<Box<dyn ForwardPass + '_>>;
    /// The same for latents of which some frames, rows and columns are left out: the indices that stay, as u32.
    fn begin_thinned(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: &[Tensor; 3],
    ) -> Result<Box<dyn ForwardPass + '_>>;
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

/// The one implementation.
pub struct Conditioned<D: Denoiser> {
    denoiser: Arc<D>,
    conditions: Vec<D::Cond>,
}

impl<D: Denoiser> Conditioned<D> {
    /// A denoiser with a condition for each branch.
    pub fn new(denoiser: Arc<D>, conditions: Vec<D::Cond>) -> Self {
        Conditioned { denoiser, conditions }
    }
}

impl<D: Denoiser + Send + 'static> Conditioned<D> {
    /// [`Branches::begin`], or with `stay` [`Branches::begin_thinned`], as a forward that keeps the denoiser itself.
    pub fn pass(
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

impl<D: Denoiser + Send + Sync + 'static> Branches for Conditioned<D>
where
    D::Cond: Send,
{
    fn units(&self) -> &[Unit] {
        self.denoiser.units()
    }

    fn patch(&self) -> [usize; 3] {
        self.denoiser.patch()
    }

    fn width(&self) -> usize {
        self.denoiser.width()
    }

    fn observed(&self) -> Observed {
        self.denoiser.observed()
    }

    fn begin(&self, branch: usize, latents: &Tensor, timestep: f64) -> Result<Box<dyn ForwardPass + '_>> {
        self.pass(branch, latents, timestep, None)
    }

    fn begin_thinned(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: &[Tensor; 3],
    ) -> Result<Box<dyn ForwardPass + '_>> {
        self.pass(branch, latents, timestep, Some(stay))
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
