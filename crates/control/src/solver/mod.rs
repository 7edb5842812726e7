//! Solvers of the flow's differential equation, as coefficients.
//!
//! Every solver here moves along linear combinations of the current sample and the last few *data predictions* `m_i =
//! x_i - sigma_i v_i` (the clean sample that velocity `v_i` points to). The coefficients depend on the schedule alone,
//! so a run is planned before it begins, in f64; whoever holds the tensors only adds them up.

mod dpmpp;
mod euler;
mod history;
pub mod skipping;
mod step;
mod unipc;

use serde::{Deserialize, Serialize};

use crate::nearest::did_you_mean;
use crate::schedule::{self, Schedule, ScheduleError, Sigma};

use step::{Levels, NoiseLevel};

pub use history::{History, Linear};
pub use step::{Combination, DataPrediction, HISTORY, StepPlan};

/// A solver.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::VariantArray,
    strum::VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownSolver, parse_err_fn = UnknownSolver::new)]
pub enum SolverKind {
    /// UniPC of order 2, predictor and corrector.
    UniPc,
    /// DPM-Solver++ 2M.
    #[serde(rename = "dpmpp")]
    #[strum(serialize = "dpmpp")]
    DpmPp2M,
    /// Euler.
    Euler,
}

impl SolverKind {
    /// All of them.
    pub const ALL: &[SolverKind] = <SolverKind as strum::VariantArray>::VARIANTS;

    /// Their names.
    pub const NAMES: &[&'static str] = <SolverKind as strum::VariantNames>::VARIANTS;

    /// Whether steps may be stepped over: whether a long step of the solver is nearly as good as several short ones.
    pub fn steps_over(self) -> bool {
        match self {
            SolverKind::UniPc | SolverKind::DpmPp2M => true,
            SolverKind::Euler => false,
        }
    }

    /// The grid that the solver's reference implementation uses.
    pub fn schedule(self, steps: usize, shift: f64, train_timesteps: usize) -> Result<Schedule, ScheduleError> {
        match self {
            SolverKind::UniPc => schedule::flow_unipc(steps, shift, train_timesteps),
            SolverKind::DpmPp2M => schedule::flow_dpmpp(steps, shift, train_timesteps),
            SolverKind::Euler => schedule::flow_euler(steps, shift, train_timesteps),
        }
    }
}

/// No solver has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("solver {found:?} is not known; known are {}{}", SolverKind::NAMES.join(", "), did_you_mean(found, SolverKind::NAMES.iter().copied()))]
pub struct UnknownSolver {
    found: String,
}

impl UnknownSolver {
    fn new(found: &str) -> Self {
        UnknownSolver { found: found.to_string() }
    }
}

/// Plans a run. Every coefficient is finite.
pub fn plan(kind: SolverKind, schedule: &Schedule) -> Vec<StepPlan> {
    let sigma = |index: usize| schedule.steps[index].sigma;
    (0..schedule.steps.len())
        .map(|i| {
            let [last, before_last] = [1, 2].map(|back| i.checked_sub(back).map(sigma));
            plan_step(kind, before_last, last, sigma(i), schedule.steps.get(i + 1).map(|step| step.sigma))
        })
        .collect()
}

/// Plans one step between any noise levels: from the one `before_last` and the `last`, where predictions were made,
/// over `now` to `next`; without `next` to no noise at all.
pub fn plan_step(
    kind: SolverKind,
    before_last: Option<Sigma>,
    last: Option<Sigma>,
    now: Sigma,
    next: Option<Sigma>,
) -> StepPlan {
    let levels = Levels {
        next: next.map(NoiseLevel::new),
        now: NoiseLevel::new(now),
        last: last.map(NoiseLevel::new),
        before_last: before_last.map(NoiseLevel::new),
    };
    let (correct, advance) = match kind {
        SolverKind::UniPc => (unipc::correct(&levels), unipc::advance(&levels)),
        SolverKind::DpmPp2M => (None, dpmpp::advance(&levels)),
        SolverKind::Euler => (None, euler::advance(&levels)),
    };
    StepPlan { to_data: DataPrediction { sample: 1.0, velocity: -levels.now.sigma }, correct, advance }
}
