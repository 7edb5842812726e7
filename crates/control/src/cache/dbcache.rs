//! DBCache, dual-block cache (vipshop/cache-dit, read at commit f86744a): the first `F` blocks run at every step and
//! decide, the last `B` run at every step and repair; between them the last computed residual stands in, or a forecast
//! of it (`reuse=taylor` is its TaylorSeer calibrator).
//!
//! | cache-dit | here |
//! |---|---|
//! | `Fn_compute_blocks`, `Bn_compute_blocks` | `first_blocks`, `last_blocks` |
//! | `residual_diff_threshold` | `threshold` |
//! | `max_warmup_steps` | `warmup_steps` |
//! | `max_cached_steps` | `max_reused` |
//! | `max_continuous_cached_steps` | `max_run` |
//! | `max_accumulated_residual_diff_threshold` | `max_accumulated` |
//!
//! The sum that `max_accumulated` bounds is one over the generation: every change that was compared with the threshold
//! counts, also where the step was computed then, and none of those steps that were computed by an earlier rule. When
//! it has reached its bound, everything that follows is computed. (In the release it outlives the generation; here no
//! state does.) The run of reused steps is counted anew after every computed step; the release counts on after one that
//! the threshold computed.
//!
//! Every branch decides for itself.

use super::approx::FOR_PROBED;
use super::per_branch::PerBranch;
use super::{
    About, Approx, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run,
    Scope, Span, Spans, Subject,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "dbcache",
    line: "change of the first blocks' residual since the last computed step; the last blocks always run",
    paper: "cache-dit, vipshop 2025",
    source: "the released code",
    needs: None,
};

options! {
    /// Relative change of the first blocks' residual at which the middle is computed again. 0 computes every step.
    threshold: f64,
    /// Blocks at the start that run at every step and decide.
    first_blocks: usize,
    /// Blocks at the end that run at every step.
    last_blocks: usize,
    /// Number of initial steps that are always computed.
    warmup_steps: usize,
    /// Most reused steps in all; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_reused: Option<usize>,
    /// Sum of all changes so far, in the whole generation, at which nothing is reused any more; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_accumulated: Option<f64>,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the middle blocks' work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 0, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let cut = ProbedCut::new(run, self.first_blocks, self.last_blocks);
        Box::new(PerBranch::new(run, |_| Probed {
            reused_left: self.max_reused,
            max_accumulated: self.max_accumulated,
            ..Probed::new(&cut, self.threshold, self.reuse)
        }))
    }

    fn check(&self) -> Result<(), String> {
        if self.first_blocks == 0 {
            return Err("first_blocks is 0, expected at least 1: they decide".to_string());
        }
        if self.reuse == Reuse::Output && self.last_blocks > 0 {
            return Err("reuse=output and last_blocks do not go together".to_string());
        }
        self.reuse.check(FOR_PROBED)
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        let blocks = run.block_count();
        if self.first_blocks + self.last_blocks < blocks {
            return Ok(());
        }
        let asked = self.first_blocks + self.last_blocks;
        Err(format!("first_blocks and last_blocks are {asked} of {blocks} blocks, expected some between them"))
    }
}

/// First blocks that always run, and those after them that may be approximated.
#[derive(Debug, Clone)]
pub(super) struct ProbedCut(Vec<Span>);

/// Index of the span of the first blocks.
const PROBE: usize = 0;

impl ProbedCut {
    pub fn new(run: &Run, first_blocks: usize, last_blocks: usize) -> Self {
        let blocks = run.block_count();
        let middle = first_blocks.min(blocks)..blocks.saturating_sub(last_blocks).max(first_blocks.min(blocks));
        ProbedCut(vec![Span::probe(run.blocks(0..middle.start)), Span::of(run.blocks(middle))])
    }
}

/// A branch of a method whose first blocks decide by their distance to the last computed step.
pub(super) struct Probed {
    cut: Vec<Span>,
    threshold: f64,
    reuse: Reuse,
    change: Option<f64>,
    position: Option<f64>,
    /// Sum of the changes that were compared.
    accumulated: f64,
    max_accumulated: Option<f64>,
    reused_left: Option<usize>,
}

const PROBE_CHANGE: Quantity = Subject::SpanResidual.by(Measure::RelativeChangeSinceCompute);
/// Where the probe stands between the last two computed steps, and beyond.
pub(super) const PROBE_POSITION: Quantity = Subject::SpanResidual.by(Measure::AnchorPosition);

impl Probed {
    pub fn new(cut: &ProbedCut, threshold: f64, reuse: Reuse) -> Self {
        Probed {
            cut: cut.0.clone(),
            threshold,
            reuse,
            change: None,
            position: None,
            accumulated: 0.0,
            max_accumulated: None,
            reused_left: None,
        }
    }
}

impl Policy for Probed {
    fn asks(&self) -> Asks {
        let mut to_learn = vec![PROBE_CHANGE];
        if self.reuse == Reuse::TwoAnchors {
            to_learn.push(PROBE_POSITION);
        }
        let question = Question { to_decide: vec![], to_learn, to_reuse: vec![self.reuse.into()] };
        Asks { spans: Some(Spans { cut: self.cut.clone(), question }), ..Asks::default() }
    }

    fn decide(&mut self, _: At, _: &Measurements) -> Decision {
        let Some(change) = self.change else { return Decision::Compute };
        if self.reused_left == Some(0) || self.max_accumulated.is_some_and(|most| self.accumulated >= most) {
            return Decision::Compute;
        }
        self.accumulated += change;
        if change >= self.threshold {
            return Decision::Compute;
        }
        self.reused_left = self.reused_left.map(|left| left - 1);
        Decision::Reuse(between(self.reuse, self.position, FARTHEST))
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.threshold = threshold;
        true
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        if let Scope::Span { span: PROBE, .. } = at.scope {
            self.change = measured.get(PROBE_CHANGE);
            self.position = measured.get(PROBE_POSITION);
        }
    }
}

/// The farthest position that DiCache allows by default: as far beyond the last computed step as that is from the one
/// before.
pub(super) const FARTHEST: f64 = 2.0;

/// The value with the probe's position, where the form has one: no nearer than the last computed step.
pub(super) fn between(reuse: Reuse, position: Option<f64>, farthest: f64) -> Approx {
    match (reuse, position) {
        (Reuse::TwoAnchors, Some(position)) => Approx::TwoAnchors { weight: position.clamp(1.0, farthest) },
        (reuse, _) => reuse.into(),
    }
}
