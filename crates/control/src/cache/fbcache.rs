//! FBCache, first-block cache: what the first block adds tells whether the rest must run (ParaAttention, chengzeyi;
//! also in diffusers).
//!
//! The first block runs at every step. While its residual stays close to that of the last step that was computed in
//! full, the rest of the blocks is approximated. It is a distance to that step, not a sum along the path. The
//! comparison is strict, as in ParaAttention, so that 0 computes everything; diffusers alone lets an equal distance
//! pass.

use super::approx::FOR_PROBED;
use super::dbcache::{Probed, ProbedCut};
use super::per_branch::PerBranch;
use super::{About, Guard, Method, Policy, Reuse, Run};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "fbcache",
    line: "change of the first block's residual since the last computed step",
    paper: "ParaAttention, chengzeyi 2024",
    source: "the released code",
    needs: None,
};

options! {
    /// Relative change of the first block's residual at which the rest is computed again. 0 computes every step.
    threshold: f64,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the other blocks' work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { max_run: self.max_run, ..Guard::NONE }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let cut = ProbedCut::new(run, 1, 0);
        Box::new(PerBranch::new(run, |_| Probed::new(&cut, self.threshold, self.reuse)))
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.check(FOR_PROBED)
    }
}
