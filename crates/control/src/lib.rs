//! The decisions of a video-diffusion sampler, without its tensors: noise schedules, solvers, guidance, and the cache
//! policies that say which computations run and which are approximated from earlier ones.
//!
//! Scalars go in, decisions come out. There is no tensor, file, clock, random number or log message in this crate, so
//! that every decision can be tested with plain numbers and replayed from a recorded trace.
#![warn(missing_docs)]

pub mod cache;
pub mod diffusion;
mod exact;
pub mod guidance;
pub mod interpolate;
pub mod nearest;
pub mod resume;
pub mod schedule;
pub mod solver;
pub mod strip;
pub mod target;
