//! Solvers of the flow's differential equation, as coefficients; one of them adds noise on its way.
//!
//! Every solver here moves along linear combinations of the current sample and the last few *data predictions* `m_i =
//! x_i - sigma_i v_i` (the clean sample that velocity `v_i` points to). The coefficients depend on the schedule alone,
//! so a run is planned before it begins, in f64; whoever holds the tensors only adds them up.

mod ddim;
mod dpmpp;
mod dpmpp_sde;
mod euler;
mod history;
pub mod skipping;
mod step;
mod unipc;

use serde::{Deserialize, Serialize};

use crate::nearest::did_you_mean;
use crate::schedule::{self, NoiseLevel, Schedule, ScheduleError, Sigma};

use step::Levels;

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
    /// DDIM.
    Ddim,
    /// The stochastic DPM-Solver++ 2M.
    #[serde(rename = "dpmpp_sde")]
    #[strum(serialize = "dpmpp_sde")]
    DpmPp2MSde,
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
            SolverKind::Euler | SolverKind::Ddim | SolverKind::DpmPp2MSde => false,
        }
    }

    /// Whether it adds fresh noise in every step. No step can be left to such a solver: what noise the model would have
    /// answered is not known once it has passed.
    pub fn adds_noise(self) -> bool {
        self == SolverKind::DpmPp2MSde
    }

    /// The grid that the solver's reference implementation uses on a flow.
    pub fn schedule(self, steps: usize, shift: f64, train_timesteps: usize) -> Result<Schedule, ScheduleError> {
        match self {
            SolverKind::UniPc => schedule::flow_unipc(steps, shift, train_timesteps),
            SolverKind::DpmPp2M | SolverKind::DpmPp2MSde => schedule::flow_dpmpp(steps, shift, train_timesteps),
            SolverKind::Euler | SolverKind::Ddim => schedule::flow_euler(steps, shift, train_timesteps),
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
            plan_step(kind, before_last, last, sigma(i), schedule.end(i))
        })
        .collect()
}

/// Plans one step between any noise levels: from the one `before_last` and the `last`, where predictions were made,
/// over `now` to `next`; without `next` to no noise at all. The sample comes out in the scale of `next`.
pub fn plan_step(
    kind: SolverKind,
    before_last: Option<Sigma>,
    last: Option<Sigma>,
    now: Sigma,
    next: Option<NoiseLevel>,
) -> StepPlan {
    let levels = Levels {
        next,
        now: NoiseLevel::of_flow(now),
        last: last.map(NoiseLevel::of_flow),
        before_last: before_last.map(NoiseLevel::of_flow),
    };
    let (correct, advance) = match kind {
        SolverKind::UniPc => (unipc::correct(&levels), unipc::advance(&levels)),
        SolverKind::DpmPp2M => (None, dpmpp::advance(&levels)),
        SolverKind::Euler => (None, euler::advance(&levels)),
        SolverKind::Ddim => (None, ddim::advance(&levels)),
        SolverKind::DpmPp2MSde => (None, dpmpp_sde::advance(&levels)),
    };
    StepPlan { to_data: DataPrediction { sample: 1.0, velocity: -levels.now.sigma }, correct, advance }
}
