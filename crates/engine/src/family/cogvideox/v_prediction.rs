//! A model that predicts v, as one of a flow: see [`navicache_control::diffusion`].

use candle_core::Tensor;
use navicache_control::diffusion::{Conversion, Diffusion};
use navicache_control::schedule::Timestep;
use navicache_models::{Branches, Features, ForwardPass, Observed, Result, Signal, Unit};

/// The model, with the noise levels that it was trained with.
pub(super) struct OnFlow {
    pub model: Box<dyn Branches>,
    pub diffusion: Diffusion,
}

impl OnFlow {
    /// What the model sees of a flow's latents, and what leads back.
    fn seen(&self, latents: &Tensor, timestep: f64) -> Result<(Tensor, Conversion)> {
        let conversion = self.diffusion.conversion(Timestep(timestep));
        Ok(((latents * conversion.scale)?, conversion))
    }
}

impl Branches for OnFlow {
    fn units(&self) -> &[Unit] {
        self.model.units()
    }

    fn patch(&self) -> [usize; 3] {
        self.model.patch()
    }

    fn width(&self) -> usize {
        self.model.width()
    }

    fn observed(&self) -> Observed {
        self.model.observed()
    }

    fn begin(&self, branch: usize, latents: &Tensor, timestep: f64) -> Result<Box<dyn ForwardPass + '_>> {
        let (seen, conversion) = self.seen(latents, timestep)?;
        let pass = self.model.begin(branch, &seen, timestep)?;
        Ok(Box::new(Converted { pass, seen, conversion }))
    }

    fn begin_thinned(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: &[Tensor; 3],
    ) -> Result<Box<dyn ForwardPass + '_>> {
        let (seen, conversion) = self.seen(latents, timestep)?;
        let pass = self.model.begin_thinned(branch, &seen, timestep, stay)?;
        Ok(Box::new(Converted { pass, seen, conversion }))
    }
}

/// A forward whose prediction becomes a velocity.
struct Converted<'a> {
    pass: Box<dyn ForwardPass + 'a>,
    seen: Tensor, // (1, channels, latent frames, height, width)
    conversion: Conversion,
}

impl ForwardPass for Converted<'_> {
    fn run_unit(&mut self, unit: usize) -> Result<()> {
        self.pass.run_unit(unit)
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        let Conversion { sample, prediction, .. } = self.conversion;
        Ok(((self.seen * sample)? + (self.pass.finish()? * prediction)?)?)
    }

    fn signal(&self, signal: Signal) -> Result<Tensor> {
        self.pass.signal(signal)
    }

    fn features(&self) -> Features {
        self.pass.features()
    }

    fn set_features(&mut self, to: Features) {
        self.pass.set_features(to);
    }
}
