//! The random numbers of a generation, in the order in which the reference pipelines draw them from one generator:
//! perhaps a picture's, then the starting latents, then those of a solver that adds noise.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::noise::Generator;

/// How numbers fill latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// All frames of a channel, then the next one.
    ChannelsFirst,
    /// All channels of a frame, then the next one.
    FramesFirst,
}

/// What is drawn in a generation.
#[derive(Debug, Clone)]
pub(crate) struct Draws {
    pub seed: u64,
    /// (1, channels, latent frames, height, width)
    pub shape: [usize; 5],
    pub order: Order,
    /// Numbers that are drawn before the starting latents, for something else.
    pub before: usize,
    /// Whether the starting latents come from a file: then none are drawn.
    pub given: bool,
}

/// Draws of the reference's stochastic solver a step, of which it uses the last; of the first step there is one.
const DRAWS_A_STEP: usize = 2;

impl Draws {
    /// Those of most models.
    pub fn of(seed: u64, shape: &[usize; 5]) -> Self {
        Draws { seed, shape: *shape, order: Order::ChannelsFirst, before: 0, given: false }
    }

    /// The starting latents. // (1, channels, latent frames, height, width)
    pub fn start(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&mut self.generator(), device)
    }

    /// What a stochastic solver adds, from the first step on.
    pub fn of_steps(&self) -> OfSteps<'_> {
        OfSteps { draws: self, made: 0, generator: self.generator() }
    }

    fn generator(&self) -> Generator {
        let mut generator = Generator::new(self.seed);
        if self.before > 0 {
            generator.skip(self.before);
        }
        generator
    }

    fn tensor(&self, generator: &mut Generator, device: &Device) -> Result<Tensor> {
        let [one, channels, frames, height, width] = self.shape;
        let values = generator.randn(self.shape.iter().product());
        let latents = match self.order {
            Order::ChannelsFirst => Tensor::from_vec(values, &self.shape, &Device::Cpu)?,
            Order::FramesFirst => {
                let frames_first = Tensor::from_vec(values, (one, frames, channels, height, width), &Device::Cpu)?;
                frames_first.transpose(1, 2)?.contiguous()?
            }
        };
        Ok(latents.to_device(device)?)
    }
}

/// What a stochastic solver adds at the ends of steps. Steps that follow one another draw on; an earlier one begins
/// anew.
pub(crate) struct OfSteps<'a> {
    draws: &'a Draws,
    /// Draws of latents that the generator has made.
    made: usize,
    generator: Generator,
}

impl OfSteps<'_> {
    /// What is added at the end of a step. // (1, channels, latent frames, height, width)
    pub fn at(&mut self, step: usize, device: &Device) -> Result<Tensor> {
        let before = usize::from(!self.draws.given) + DRAWS_A_STEP * step;
        if before < self.made {
            *self = self.draws.of_steps();
        }
        (self.made..before).for_each(|_| self.generator.skip(self.draws.shape.iter().product()));
        self.made = before + 1;
        self.draws.tensor(&mut self.generator, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_one_another() {
        let shape = [1, 2, 3, 2, 3]; // 36 numbers: the last sixteen of a draw are made twice
        let draws = Draws { order: Order::FramesFirst, before: 40, ..Draws::of(5, &shape) };
        let mut generator = Generator::new(5);
        let mut next = |n: usize| generator.randn(n);
        next(40);
        let values = |t: Tensor| t.transpose(1, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(draws.start(&Device::Cpu).unwrap()), next(36));
        let mut of_steps = draws.of_steps();
        let first = next(36);
        assert_eq!(values(of_steps.at(0, &Device::Cpu).unwrap()), first);
        next(36); // drawn in the second step, and not used
        let second = next(36);
        assert_eq!(values(of_steps.at(1, &Device::Cpu).unwrap()), second);
        // The same again, one that is gone back to, and one that nothing was asked of before.
        assert_eq!(values(of_steps.at(1, &Device::Cpu).unwrap()), second);
        assert_eq!(values(of_steps.at(0, &Device::Cpu).unwrap()), first);
        assert_eq!(values(draws.of_steps().at(1, &Device::Cpu).unwrap()), second);
        let given = Draws { given: true, ..draws.clone() };
        assert_eq!(values(given.of_steps().at(0, &Device::Cpu).unwrap()), values(draws.start(&Device::Cpu).unwrap()));
    }
}
