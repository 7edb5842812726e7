//! Cache policies: which steps are computed, and how the others are made up.
//!
//! A [`Method`] is a method as configured; [`Method::start`] makes its running state, a [`Policy`], for one generation. The
//! policy is dropped when the generation ends. There is no `reset`, so nothing can leak from one video into the next.
//!
//! To add a method: one file here with its paper, its `Config` and its policy; one line in [`CacheConfig`].

mod config;
pub mod easycache;
mod guard;
pub mod navicache;
pub mod none;
pub mod presets;
mod quantity;

pub use config::{CacheConfig, CacheError, CacheSpec};
pub use guard::{Guard, Guarded};
pub use quantity::{Quantity, Seen};

use serde::{Deserialize, Serialize};

use crate::guidance::Branch;

/// What a policy may know of the run before it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Number of steps.
    pub steps: usize,
    /// The branches of every step, in the order they run.
    pub branches: Vec<Branch>,
}

/// Where a question stands: at the start of a step, about the whole of it (all branches, all blocks).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Index of the step, 0 is the noisiest.
    pub step: usize,
}

/// What a policy wants measured and kept. Nothing else is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asks {
    /// Before it decides.
    pub to_decide: Vec<Quantity>,
    /// After a step was computed.
    pub to_learn: Vec<Quantity>,
    /// The forms in which computed predictions are kept for later. A decision may only name one of these.
    pub to_reuse: Vec<Approx>,
}

/// What is to be done with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Run the denoiser, for every branch.
    Compute,
    /// Make the prediction of every branch up from that branch's last computed one.
    Reuse(Approx),
}

/// How a prediction is made up from the branch's last computed step `c`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Approx {
    /// `x_i + (o_c - x_c)`: the residual of the whole forward is kept.
    #[default]
    Residual,
    /// `o_c`: the prediction is kept as it was.
    Output,
    /// `x_i + r(sigma_i)`: a straight line in sigma through the residuals of the last two computed steps; with one, its residual.
    Linear,
}

/// A method as configured.
pub trait Method {
    /// Lower-case name, as given to `--cache`.
    fn name(&self) -> &str;
    /// The rules common to all methods, with this method's numbers.
    fn guard(&self) -> Guard;
    /// The running state for one generation, not yet guarded.
    fn policy(&self, run: &Run) -> Box<dyn Policy>;
    /// Every option with its value, for the report.
    fn options(&self) -> serde_json::Value;

    /// The guarded policy for one generation.
    fn start(&self, run: &Run) -> Guarded {
        self.guard().around(self.policy(run), run)
    }
}

/// The running state of a method, for one generation.
pub trait Policy {
    /// What it wants to see.
    fn asks(&self) -> Asks;
    /// Whether to compute a step. Called once a step, in order.
    fn decide(&mut self, at: At, seen: &Seen) -> Decision;
    /// A step was computed, by this policy's wish or the guard's; learn from it.
    fn computed(&mut self, at: At, seen: &Seen) {
        let _ = (at, seen);
    }
}
