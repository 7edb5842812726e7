//! Steps that the model does not compute: what the solver does at one, and what it does when the next one is computed.

use candle_core::Tensor;
use navicache_engine::control::solver::skipping::{Keeps, Skip, Stepper};
use navicache_engine::control::solver::{Linear, SolverKind};
use navicache_engine::{mean_abs, weighted};

use super::timing::{Run, Timing, grid, random, timed};
use crate::error::{Error, Result};

/// Steps of the run, and the shift of its schedule: Wan2.1's.
const STEPS: usize = 50;
const SHIFT: f64 = 3.0;
/// Computed steps at the beginning, and skipped ones after them: as many as corrections mostly span.
const COMPUTED: usize = 4;
const SKIPPED: usize = 2;
/// Channels of the latents, and rows and columns of a token.
const CHANNELS: usize = 16;
const PATCH: usize = 2;

/// Times a skipped step: the jump to the next one.
pub(super) fn skip(run: &Run) -> Result<Timing> {
    let walk = Walk::new(run)?;
    walk.timed("a step that UniPC skips", run, || {
        let skipped = walk.stepper.clone().skip(COMPUTED, Skip::Corrected, &mut Sums)?;
        skipped.ok_or_else(nowhere)
    })
}

/// Times what a computed step does for the skipped ones before it: the way back, all of them again, the step itself,
/// and how large the error was.
pub(super) fn correction(run: &Run) -> Result<Timing> {
    let mut walk = Walk::new(run)?;
    let mut x = walk.latents.clone();
    for step in COMPUTED..COMPUTED + SKIPPED {
        x = walk.stepper.skip(step, Skip::Corrected, &mut Sums)?.ok_or_else(nowhere)?;
    }
    let step = COMPUTED + SKIPPED;
    walk.timed("a correction of two steps that UniPC skipped", run, || {
        let mut stepper = walk.stepper.clone();
        let sample = stepper.arrive(step, &x, &walk.velocity, &mut Sums)?.ok_or_else(nowhere)?;
        let error = stepper.error(&x, &mut Sums)?.ok_or_else(nowhere)?;
        let found = (mean_abs(&error)? / mean_abs(&sample)?)?;
        // Read, as the policy reads it.
        found.to_scalar::<f64>()?;
        stepper.leave(step, &mut Sums)?.ok_or_else(nowhere)
    })
}

/// A run whose first steps are computed.
struct Walk {
    stepper: Stepper<Tensor>,
    /// What the next step starts from, and a velocity. // (1, channels, frames, height, width)
    latents: Tensor,
    velocity: Tensor,
    /// Tokens as frames of rows and columns.
    places: [usize; 3],
}

impl Walk {
    fn new(run: &Run) -> Result<Self> {
        let places @ [frames, rows, columns] = grid(run.tokens);
        let shape = [1, CHANNELS, frames, PATCH * rows, PATCH * columns];
        let (mut latents, velocity) = (random(5, &shape, &run.device)?, random(6, &shape, &run.device)?);
        let schedule = SolverKind::UniPc.schedule(STEPS, SHIFT, 1000);
        let schedule = schedule.map_err(|e| Error::invalid("bench", "the schedule", e.to_string()))?;
        let mut stepper = Stepper::new(SolverKind::UniPc, schedule, Keeps::WhatCorrects);
        for step in 0..COMPUTED {
            stepper.arrive(step, &latents, &velocity, &mut Sums)?;
            latents = stepper.leave(step, &mut Sums)?.ok_or_else(nowhere)?;
        }
        Ok(Walk { stepper, latents, velocity, places })
    }

    fn timed(&self, what: &str, run: &Run, step: impl FnMut() -> Result<Tensor>) -> Result<Timing> {
        let run = Run { tokens: self.places.iter().product(), device: run.device.clone(), ..*run };
        Ok(Timing { grid: Some(self.places), ..timed(what, None, &run, step)? })
    }
}

/// The sums of the engine.
struct Sums;

impl Linear for Sums {
    type Value = Tensor;
    type Error = Error;

    fn sum(&mut self, terms: &[(f64, &Tensor)]) -> Result<Tensor> {
        Ok(weighted(terms)?)
    }

    fn noise(&mut self, _: usize) -> Result<Tensor> {
        Err(Error::invalid("bench", "noise", "UniPC draws none"))
    }
}

fn nowhere() -> Error {
    Error::invalid("bench", "the solver", "has nothing to go on from")
}
