//! SeaCache (CVPR 2026, arXiv 2602.18993): TeaCache's controller without a polynomial, on a signal whose content is
//! weighted as the model sees it at that noise level.
//!
//! The first block's modulated input goes through a Wiener filter along time, height and width before its change is
//! measured: at high noise low frequencies count, later all of them. The filter is the engine's
//! ([`Subject::FilteredInput`]); it is a product of one gain an axis, as in the released utility (the paper's text
//! suggests a radial one), and it is applied at every step, where the released Wan script leaves it out at forced ones.
//!
//! | paper | here |
//! |---|---|
//! | spectral-evolution-aware distance | relative change of the filtered input since the step before |
//! | `delta` | `threshold` |

use super::approx::FOR_BLOCKS;
use super::path_sum::PathSum;
use super::per_branch::PerBranch;
use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Subject,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "seacache",
    line: "change of the Wiener-filtered modulated input",
    paper: "CVPR 2026, arXiv 2602.18993",
    source: "the released code",
    needs: None,
};

options! {
    /// Sum of relative changes at which a branch is computed again. 0 computes every step.
    threshold: f64,
    /// Number of initial steps that are always computed.
    #[serde(default = "one")]
    warmup_steps: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the blocks' work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

fn one() -> usize {
    1
}

const FILTERED_CHANGE: Quantity = Subject::FilteredInput.by(Measure::RelativeChangeSinceVisit);

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let question =
            Question { to_decide: vec![FILTERED_CHANGE], to_learn: vec![], to_reuse: vec![self.reuse.into()] };
        let asks = Asks::stack(run, question);
        Box::new(PerBranch::new(run, |_| SeaCache {
            asks: asks.clone(),
            reuse: self.reuse,
            change: PathSum::new(self.threshold),
        }))
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.check(FOR_BLOCKS)
    }
}

struct SeaCache {
    asks: Asks,
    reuse: Reuse,
    change: PathSum,
}

impl Policy for SeaCache {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, _: At, measured: &Measurements) -> Decision {
        match measured.get(FILTERED_CHANGE) {
            Some(change) if self.change.add(change) => Decision::Reuse(self.reuse.into()),
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.change.set_threshold(threshold);
        true
    }

    fn computed(&mut self, _: At, _: &Measurements) {
        self.change.reset();
    }
}
