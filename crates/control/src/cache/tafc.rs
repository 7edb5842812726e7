//! TAFC, trajectory-aligned flow caching (2026; code bijiw515/TAFC): residuals go on along a line in the timestep, and a gate
//! asks how risky that is.
//!
//! | released controller | here |
//! |---|---|
//! | velocity `V` | `(R_c - R_b) / h`, the residual's change a timestep |
//! | extrapolation risk `E_pre` | `m(V) h / m(R_c)`, at most `3 median G brake` |
//! | curvature | `| |R_c| - |R_b| | / |R_b| + 2 (1 - cos)`, at most `threshold (0.7 + 1.3 u) G brake` |
//! | gain `G` | moved by a PID loop on what the forecast missed at the last compute |
//! | `max_cache` | `max_cache`: longest run `1 + max_cache u`, `u` the part of the steps done |
//!
//! Baselines of risk and miss are medians over pairs of neighbouring steps that were computed by rule; without any (one warm-up
//! step), the risk has no budget and the gain stays 1. The line's miss is measured by the engine ([`Measure::LineError`]). Every
//! branch decides for itself.

use super::approx::FOR_BLOCKS;
use super::per_branch::PerBranch;
use super::{
    About, Approx, Asks, At, Decision, Guard, Measure, Method, Policy, Quantity, Question, Reuse, Run, Seen, Subject,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "tafc",
    line: "line through two computed residuals; risk and curvature against budgets that a PID loop moves",
    paper: "2026, bijiw515/TAFC",
    source: "the released controller",
    needs: "nothing",
};

options! {
    /// Curvature budget. 0 computes every step.
    threshold: f64,
    /// So many steps at the start are computed.
    warmup_steps: usize,
    /// How much longer than one step a run may be at the end.
    #[serde(default = "six")]
    max_cache: usize,
    /// How the blocks' work is made up; absent: on the line in the timestep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reuse: Option<Reuse>,
}

fn six() -> usize {
    6
}

/// Baselines remembered.
const WINDOW: usize = 8;
/// Curvature where only one step was computed.
const UNKNOWN_CURVATURE: f64 = 0.01;
/// Bounds of the gain and of the loop's integral.
const GAIN: (f64, f64) = (0.3, 3.0);
const INTEGRAL: f64 = 2.0;

const CHANGE: Quantity = Subject::SpanResidual.by(Measure::ChangeSinceCompute);
const MAGNITUDE: Quantity = Subject::SpanResidual.by(Measure::Magnitude);
const NORM: Quantity = Subject::SpanResidual.by(Measure::Norm);
const COSINE: Quantity = Subject::SpanResidual.by(Measure::CosineSinceCompute);
const MISSED: Quantity = Subject::SpanResidual.by(Measure::LineError);

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: None }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let approx = self.reuse.map_or(Approx::TwoAnchors { weight: 1.0 }, Approx::from);
        let question = Question {
            to_decide: vec![],
            to_learn: vec![CHANGE, MAGNITUDE, NORM, COSINE, MISSED],
            to_reuse: vec![approx],
        };
        let asks = Asks::stack(run, question);
        let steps = run.steps.len();
        Box::new(PerBranch::new(run, |_| Tafc {
            config: self.clone(),
            asks: asks.clone(),
            steps,
            last: None,
            speed: None,
            curvature: None,
            growth: 0.0,
            risks: Vec::new(),
            misses: Vec::new(),
            gain: Gain::default(),
        }))
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.map_or(Ok(()), |reuse| reuse.check(FOR_BLOCKS))
    }
}

struct Tafc {
    config: Config,
    asks: Asks,
    steps: usize,
    last: Option<Computed>,
    /// `m(V)`, and the timesteps between the two computed steps it comes from.
    speed: Option<(f64, f64)>,
    curvature: Option<f64>,
    /// Relative growth of the curvature a step.
    growth: f64,
    risks: Vec<f64>,
    misses: Vec<f64>,
    gain: Gain,
}

/// The last computed step.
#[derive(Clone, Copy)]
struct Computed {
    step: usize,
    timestep: f64,
    magnitude: f64,
    norm: f64,
}

impl Tafc {
    fn is_forced(&self, step: usize) -> bool {
        step < self.config.warmup_steps || step + 1 >= self.steps
    }

    /// The weight of the newer anchor on the line, if every gate opens.
    fn line(&self, at: At) -> Option<f64> {
        let (last, (speed, between)) = (self.last?, self.speed?);
        let ahead = (at.timestep.0 - last.timestep).abs();
        let done = at.step as f64 / (self.steps - 1).max(1) as f64;
        let brake = (1.0 / (1.0 + 2.0 * self.growth.max(0.0))).max(0.3);
        let scale = self.gain.value * brake;
        let risk = speed * ahead / last.magnitude;
        let risk_budget = median(&self.risks).map_or(f64::INFINITY, |usual| 3.0 * usual * scale);
        let curvature_budget = self.config.threshold * (0.7 + 1.3 * done) * scale;
        let run = (at.step - last.step - 1) as f64;
        let opens = risk <= risk_budget
            && self.curvature.unwrap_or(UNKNOWN_CURVATURE) < curvature_budget
            && run < 1.0 + self.config.max_cache as f64 * done;
        opens.then_some(1.0 + ahead / between)
    }
}

impl Policy for Tafc {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, at: At, _: &Seen) -> Decision {
        match (self.line(at), self.config.reuse) {
            (Some(_), Some(reuse)) => Decision::Reuse(reuse.into()),
            (Some(weight), None) => Decision::Reuse(Approx::TwoAnchors { weight }),
            (None, _) => Decision::Compute,
        }
    }

    fn computed(&mut self, at: At, seen: &Seen) {
        let (Some(magnitude), Some(norm)) = (seen.get(MAGNITUDE), seen.get(NORM)) else { return };
        if let (Some(last), Some(change)) = (self.last, seen.get(CHANGE)) {
            let ahead = (at.timestep.0 - last.timestep).abs();
            let gap = at.step - last.step;
            if let (Some((speed, _)), Some(missed)) = (self.speed, seen.get(MISSED)) {
                if self.is_forced(at.step) && gap == 1 {
                    remember(&mut self.risks, speed * ahead / last.magnitude);
                    remember(&mut self.misses, missed);
                } else if gap > 1
                    && let Some(usual) = median(&self.misses)
                {
                    self.gain.learn(2.5 * usual, missed);
                }
            }
            if let Some(cosine) = seen.get(COSINE) {
                let curvature = (norm - last.norm).abs() / last.norm + 2.0 * (1.0 - cosine).max(0.0);
                self.growth = self.curvature.map_or(0.0, |before| (curvature - before) / before / gap as f64);
                self.curvature = Some(curvature);
            }
            // Two steps may be told of as the same timestep in a long run.
            if ahead > 0.0 {
                self.speed = Some((change / ahead, ahead));
            }
        }
        self.last = Some(Computed { step: at.step, timestep: at.timestep.0, magnitude, norm });
    }
}

/// The factor on both budgets.
struct Gain {
    value: f64,
    integral: f64,
    before: Option<f64>,
}

impl Default for Gain {
    fn default() -> Self {
        Gain { value: 1.0, integral: 0.0, before: None }
    }
}

impl Gain {
    /// A forecast missed by `missed` where `target` is fine.
    fn learn(&mut self, target: f64, missed: f64) {
        let error = (target / missed).ln();
        if !error.is_finite() {
            return;
        }
        let saturated = self.value <= GAIN.0 || self.value >= GAIN.1;
        if !saturated {
            self.integral = (self.integral + error).clamp(-INTEGRAL, INTEGRAL);
        }
        let change = 0.4 * error + 0.05 * self.integral + 0.2 * (error - self.before.unwrap_or(error));
        self.before = Some(error);
        self.value = (self.value * change.exp()).clamp(GAIN.0, GAIN.1);
    }
}

fn remember(window: &mut Vec<f64>, value: f64) {
    window.push(value);
    if window.len() > WINDOW {
        window.remove(0);
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}
