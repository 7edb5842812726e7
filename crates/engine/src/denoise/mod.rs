//! From noise to latents: the sampling loop, and the tensors under the walk of [`navicache_control::cache::walk`].

pub(crate) mod arithmetic;
mod forward;
mod sampler;
mod spectrum;
#[cfg(test)]
mod tests;
mod trial;

pub(crate) use sampler::{Sampled, Sampler, Setup, Start, State, StepDone};
