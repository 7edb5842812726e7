//! TAFC, trajectory-aligned flow caching (2026; code bijiw515/TAFC, read at commit a8f01f2): residuals go on along a
//! line in the timestep, and a gate asks how risky that is.
//!
//! | released controller | here |
//! |---|---|
//! | velocity `V` | `(R_c - R_b) / h`, the residual's change a timestep |
//! | extrapolation risk `E_pre` | `m(V) h / m(R_c)`, at most `3 median G brake` |
//! | curvature | `| |R_c| - |R_b| | / |R_b| + 2 (1 - cos)`, below `threshold (0.7 + 1.3 u) G brake` |
//! | brake | `1 / (1 + 2 growth)`, at least 0.3; growth of the curvature a step, from one judged step to the next |
//! | gain `G` | moved by a PID loop on what the forecast missed at the last compute |
//! | `tafc_max_cache` | `max_cache`: longest run `1 + max_cache u`, `u` the part of the steps done |
//! | `tafc_calib_steps` | `calibration_steps`: computed at the start while a branch has no baselines |
//!
//! Baselines of risk and miss are medians over pairs of neighbouring steps that were computed by rule. Every branch has
//! a loop of its own, but a step is approximated in all branches or in none: it takes every branch's consent (the
//! release: branches that cache at different steps make guidance compare residuals of different steps, and quality
//! collapses).
//!
//! Where the release differs: on Wan it asks the unconditional branch twice a step, and each time counts one more step
//! of its run (its comment says that the first time changes nothing), so that the longest run is often shorter than `1
//! + max_cache u` and sometimes has no end; here it is the rule that the comment and the paper state. Its Wan script
//! does not force the last step when it forces the first five (`use_ret_steps`), all others do. Its evaluation on Wan
//! sets `max_cache` to 4.

use super::approx::FOR_BLOCKS;
use super::{
    About, Approx, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run,
    Scope, Subject,
};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "tafc",
    line: "line through two computed residuals; risk and curvature against budgets that a PID loop moves",
    paper: "2026, bijiw515/TAFC",
    source: "the released controller",
    needs: None,
};

options! {
    /// Curvature budget. 0 computes every step.
    threshold: f64,
    /// Number of initial steps that are always computed.
    warmup_steps: usize,
    /// Number of initial steps that are always computed while a branch has no baselines to judge by.
    #[serde(default = "three")]
    calibration_steps: usize,
    /// How much longer than one step a run may be at the end.
    #[serde(default = "six")]
    max_cache: usize,
    /// How the blocks' work is approximated; absent: on the line in the timestep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reuse: Option<Reuse>,
}

fn three() -> usize {
    3
}

fn six() -> usize {
    6
}

/// Baselines remembered.
const WINDOW: usize = 8;
/// Curvature where only one step was computed.
const UNKNOWN_CURVATURE: f64 = 0.01;
/// Least curvature that growth is measured against, and least miss that the loop learns from.
const LEAST_CURVATURE: f64 = 1e-6;
const LEAST_MISS: f64 = 1e-12;
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
        Box::new(Tafc {
            config: self.clone(),
            asks: Asks::stack(run, question),
            steps: run.steps.len(),
            loops: run.branches.iter().map(|&branch| (branch, Loop::default())).collect(),
            decided: None,
        })
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.map_or(Ok(()), |reuse| reuse.check(FOR_BLOCKS))
    }
}

struct Tafc {
    config: Config,
    asks: Asks,
    steps: usize,
    loops: Vec<(Branch, Loop)>,
    /// The last step that was judged, and whether it is approximated.
    decided: Option<(usize, bool)>,
}

impl Tafc {
    fn is_forced(&self, step: usize) -> bool {
        let uncalibrated = || self.loops.iter().any(|(_, l)| l.risks.is_empty() || l.misses.is_empty());
        step < self.config.warmup_steps
            || step + 1 >= self.steps
            || (step < self.config.calibration_steps && uncalibrated())
    }

    /// Whether the step is approximated, in all branches: decided once, at the first that is asked about.
    fn opens(&mut self, at: At) -> bool {
        if let Some((_, opens)) = self.decided.filter(|(step, _)| *step == at.step) {
            return opens;
        }
        let begun = self.loops.iter().any(|(_, l)| l.last.is_some_and(|last| last.step == at.step));
        let mut opens = !begun && !self.is_forced(at.step);
        if opens {
            let done = at.step as f64 / (self.steps - 1).max(1) as f64;
            for (_, branch) in &mut self.loops {
                opens &= branch.judge(at, done, &self.config);
            }
        }
        self.decided = Some((at.step, opens));
        opens
    }

    fn branch(&mut self, scope: Scope) -> Option<&mut Loop> {
        let Scope::Span { branch, .. } = scope else { return None };
        self.loops.iter_mut().find(|(b, _)| *b == branch).map(|(_, l)| l)
    }
}

impl Policy for Tafc {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        if !self.opens(at) {
            return Decision::Compute;
        }
        let weight = self.branch(at.scope).and_then(|branch| branch.weight(at));
        match (weight, self.config.reuse) {
            (Some(_), Some(reuse)) => Decision::Reuse(reuse.into()),
            (Some(weight), None) => Decision::Reuse(Approx::TwoAnchors { weight }),
            (None, _) => Decision::Compute,
        }
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        let forced = self.is_forced(at.step);
        if let Some(branch) = self.branch(at.scope) {
            branch.computed(at, measured, forced);
        }
    }
}

/// The control loop of a branch.
#[derive(Default)]
struct Loop {
    last: Option<Computed>,
    /// `m(V)`, and the timesteps between the two computed steps it comes from.
    speed: Option<(f64, f64)>,
    curvature: Option<f64>,
    /// The computed step and the curvature that were judged last.
    judged: Option<(usize, f64)>,
    /// Relative growth of the curvature a step, between the last two that were judged.
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

impl Computed {
    /// Timesteps from it.
    fn ahead(&self, at: At) -> f64 {
        (at.timestep.0 - self.timestep).abs()
    }
}

impl Loop {
    /// Whether every gate of this branch opens.
    fn judge(&mut self, at: At, done: f64, config: &Config) -> bool {
        let Some(last) = self.last else { return false };
        let curvature = self.curvature.unwrap_or(UNKNOWN_CURVATURE);
        if self.judged.is_none_or(|(step, _)| step != last.step) {
            let growth = |(step, before): (usize, f64)| {
                (curvature - before) / before.abs().max(LEAST_CURVATURE) / (last.step - step) as f64
            };
            self.growth = self.judged.map_or(0.0, growth);
            self.judged = Some((last.step, curvature));
        }
        let Some((speed, _)) = self.speed else { return false };
        let brake = (1.0 / (1.0 + 2.0 * self.growth.max(0.0))).max(0.3);
        let scale = self.gain.value() * brake;
        let risk_budget = median(&self.risks).map_or(f64::INFINITY, |usual| 3.0 * usual * scale);
        let run = (at.step - last.step - 1) as f64;
        speed * last.ahead(at) / last.magnitude <= risk_budget
            && curvature < config.threshold * (0.7 + 1.3 * done) * scale
            && run < 1.0 + config.max_cache as f64 * done
    }

    /// The weight of the newer anchor on the line.
    fn weight(&self, at: At) -> Option<f64> {
        Some(1.0 + self.last?.ahead(at) / self.speed?.1)
    }

    fn computed(&mut self, at: At, measured: &Measurements, forced: bool) {
        let (Some(magnitude), Some(norm)) = (measured.get(MAGNITUDE), measured.get(NORM)) else { return };
        if let (Some(last), Some(change)) = (self.last, measured.get(CHANGE)) {
            let ahead = last.ahead(at);
            let gap = at.step - last.step;
            if let (Some((speed, _)), Some(missed)) = (self.speed, measured.get(MISSED)) {
                if forced && gap == 1 {
                    remember(&mut self.risks, speed * ahead / last.magnitude);
                    remember(&mut self.misses, missed);
                } else if gap > 1
                    && let Some(usual) = median(&self.misses)
                {
                    self.gain.learn(2.5 * usual, missed);
                }
            }
            if let Some(cosine) = measured.get(COSINE) {
                self.curvature = Some((norm - last.norm).abs() / last.norm + 2.0 * (1.0 - cosine).max(0.0));
            }
            // Two steps of a long run may have the same timestep.
            if ahead > 0.0 {
                self.speed = Some((change / ahead, ahead));
            }
        }
        self.last = Some(Computed { step: at.step, timestep: at.timestep.0, magnitude, norm });
    }
}

/// The factor on both budgets.
#[derive(Default)]
struct Gain {
    logarithm: f64,
    integral: f64,
    before: Option<f64>,
}

impl Gain {
    fn value(&self) -> f64 {
        self.logarithm.exp()
    }

    /// A forecast missed by `missed` where `target` is fine.
    fn learn(&mut self, target: f64, missed: f64) {
        let error = (target / missed.max(LEAST_MISS)).ln();
        let integral = self.integral + error;
        let moved = self.logarithm + 0.4 * error + 0.05 * integral + 0.2 * (error - self.before.unwrap_or(error));
        self.logarithm = moved.clamp(GAIN.0.ln(), GAIN.1.ln());
        // The integral rests while the gain is at a bound.
        if self.logarithm == moved {
            self.integral = integral.clamp(-INTEGRAL, INTEGRAL);
        }
        self.before = Some(error);
    }
}

fn remember(window: &mut Vec<f64>, value: f64) {
    if value > 0.0 && value.is_finite() {
        window.push(value);
    }
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
