//! A model that predicts v, as one of a flow: see [`navicache_control::diffusion`].

use candle_core::Tensor;
use navicache_control::diffusion::{Conversion, Diffusion};
use navicache_control::schedule::Timestep;
use navicache_models::{Anatomy, Branches, Features, ForwardPass, Result, Signal};

/// The model, with the noise levels that it was trained with.
pub(super) struct OnFlow {
    pub model: Box<dyn Branches>,
    pub diffusion: Diffusion,
}

impl Branches for OnFlow {
    fn anatomy(&self) -> &Anatomy {
        self.model.anatomy()
    }

    fn begin(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: Option<&[Tensor; 3]>,
    ) -> Result<Box<dyn ForwardPass>> {
        let conversion = self.diffusion.conversion(Timestep(timestep));
        let seen = (latents * conversion.scale)?;
        let pass = self.model.begin(branch, &seen, timestep, stay)?;
        Ok(Box::new(Converted { pass, seen, conversion }))
    }
}

/// A forward whose prediction becomes a velocity.
struct Converted {
    pass: Box<dyn ForwardPass>,
    seen: Tensor, // (1, channels, latent frames, height, width)
    conversion: Conversion,
}

impl ForwardPass for Converted {
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
