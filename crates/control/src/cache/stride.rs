//! Stride: our own method. The solver skips steps and says itself, for nothing, how wrong that was; the next stride is
//! as long as the wanted error allows.
//!
//! When a step ends a run of skipped ones, its sample moves once its velocity is known: the skipped steps are
//! integrated again between both ends (`reuse=corrected`), or the solver's corrector spans the jump
//! (`reuse=step_over`). The move is the difference of two solutions of different order, as embedded Runge-Kutta pairs
//! have it, and no model call is spent on it. Of a stride of `h` steps it grows as `h^3`, so the stride that meets a
//! tolerance is
//!
//! ```text
//! h' = h (tolerance / error)^(1/3)
//! ```
//!
//! with a tolerance that grows over the run, to three times the threshold: the later an error is made, the less of it
//! is passed on to the video. A stride is one step longer than the last at most. This is the step-size control of every
//! solver for differential equations (Hairer, Norsett, Wanner, *Solving Ordinary Differential Equations I*, II.4).
//! docs/skipping.md has the derivation and the measurements.

use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Subject,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "stride",
    line: "how wrong the solver's last stride was, which it finds out for nothing; longer ones until the error is as large as wanted",
    paper: "navicache",
    source: "ours",
    needs: None,
};

options! {
    /// Error of the latents that a stride may make, as the solver finds it: mean absolute error relative to their mean
    /// size; at the first step, and three times as much at the last. 0 computes every step.
    threshold: f64,
    /// Number of initial steps that are always computed.
    warmup_steps: usize,
    /// Longest run of skipped steps; absent: a tenth of the steps, at least 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How a skipped step is handled: step_over or corrected.
    reuse: Reuse,
}

/// The error of a stride of `h` steps grows as `h` to this power.
const ORDER: f64 = 3.0;
/// What the tolerance gains over the run, in thresholds (docs/skipping.md, "A tolerance that grows").
const GROWTH: f64 = 2.0;

const ERROR: Quantity = Subject::SolverError.by(Measure::Magnitude);
const SIZE: Quantity = Subject::Sample.by(Measure::Magnitude);

impl Method for Config {
    described!();

    fn guard(&self, steps: usize) -> Guard {
        let max_run = self.max_run.unwrap_or((steps / 10).max(2));
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: Some(max_run) }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        Box::new(Stride { config: self.clone(), steps: run.steps.len(), computed: None, stride: 1, error: None })
    }

    fn check(&self) -> Result<(), String> {
        match self.reuse.is_left_to_the_solver() {
            true => Ok(()),
            false => Err("reuse: expected step_over or corrected; nothing else says how wrong it was".to_string()),
        }
    }
}

struct Stride {
    config: Config,
    /// Of the run.
    steps: usize,
    /// The last computed step.
    computed: Option<usize>,
    /// Steps to it from the one computed before.
    stride: usize,
    /// How wrong that stride was, as the solver found: mean absolute error, and the mean size.
    error: Option<(f64, f64)>,
}

impl Stride {
    /// Steps to the next computed one, from that step.
    fn wanted(&self, computed: usize) -> usize {
        let threshold = self.config.threshold * (1.0 + GROWTH * computed as f64 / self.steps as f64);
        match self.error {
            _ if threshold.is_infinite() => usize::MAX,
            // No error at all is no measurement: a velocity that is zero throughout has no scale.
            Some((error, size)) if threshold > 0.0 && error > 0.0 => {
                let wanted = self.stride as f64 * (threshold * size / error).powf(1.0 / ORDER);
                (wanted.floor().max(1.0) as usize).min(self.stride + 1)
            }
            _ => 1,
        }
    }
}

impl Policy for Stride {
    fn asks(&self) -> Asks {
        let question =
            Question { to_decide: vec![], to_learn: vec![ERROR, SIZE], to_reuse: vec![self.config.reuse.into()] };
        Asks { step: Some(question), ..Asks::default() }
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        match self.computed {
            Some(computed) if at.step - computed < self.wanted(computed) => Decision::Reuse(self.config.reuse.into()),
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.config.threshold = threshold;
        true
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        self.stride = self.computed.map_or(1, |computed| at.step - computed);
        self.computed = Some(at.step);
        self.error = measured.get(ERROR).zip(measured.get(SIZE));
    }
}
