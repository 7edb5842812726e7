//! AdaCache: *Adaptive Caching for Faster Video Generation with Diffusion Transformers* (Kahatapitiya et al., ICCV
//! 2025, arXiv 2411.02397; code AdaCache-DiT).
//!
//! At a computed step, the relative change of one block's residual, per step since the last compute, is looked up in a
//! codebook: the smaller the change, the longer the following run of reuse.
//!
//! | paper | here |
//! |---|---|
//! | cache metric `c_t` | relative change of the middle block's residual, divided by the steps in between |
//! | codebook | `codebook`: bounds and the distance to the next computed step |
//!
//! The first step and the last two are computed (read at commit 2c6d3ca: `skip_cache_steps` are calls 1, S - 1 and S).
//! The branches of a step share a decision.
//!
//! It was released for Open-Sora 1.2 alone. There it watches what the temporal attention of block 13 of 28 adds, of
//! both branches together. Here every model, Open-Sora too, has the whole middle block instead (14 of 28), of the first
//! branch: models with one attention over space and time have no other part that corresponds. Its motion regularisation
//! is not here.

use serde::{Deserialize, Serialize};

use super::approx::FOR_UNITS;
use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Scope,
    Span, Spans, Subject,
};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "adacache",
    line: "change of the middle block's residual, through a codebook of run lengths",
    paper: "Kahatapitiya et al., ICCV 2025, arXiv 2411.02397",
    source: "the released code, without motion regularisation; it watches another part of Open-Sora",
    needs: None,
};

options! {
    /// Bounds of the change, and how far the next computed step is then.
    codebook: Codebook,
    /// The codebook's bounds are multiplied by this. 0 computes every step.
    #[serde(default = "unscaled")]
    threshold: f64,
    /// Longest run of reused steps; absent: the codebook's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the blocks' work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

fn unscaled() -> f64 {
    1.0
}

/// The released codebooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codebook {
    /// For 100 steps.
    Steps100,
    /// For 30 steps, fast.
    Steps30Fast,
    /// For 30 steps, slow.
    Steps30Slow,
}

impl Codebook {
    /// (change below which, distance to the next computed step), and the distance beyond the last bound.
    fn table(self) -> (&'static [(f64, usize)], usize) {
        match self {
            Codebook::Steps100 => (&[(0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4)], 3),
            Codebook::Steps30Fast => (&[(0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2)], 1),
            Codebook::Steps30Slow => (&[(0.08, 3), (0.16, 2)], 1),
        }
    }
}

const CHANGE: Quantity = Subject::SpanResidual.by(Measure::RelativeChangeSinceCompute);
/// Index of the span that is watched, between the blocks before it and those after.
const MIDDLE: usize = 1;

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { last_steps: 2, max_run: self.max_run, ..Guard::NONE }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let (blocks, middle) = (run.block_count(), run.block_count() / 2);
        let cut = vec![
            Span::of(run.blocks(0..middle)),
            Span::of(run.blocks(middle..middle + 1)).watched(),
            Span::of(run.blocks(middle + 1..blocks)),
        ];
        let question = Question { to_decide: vec![], to_learn: vec![CHANGE], to_reuse: vec![self.reuse.into()] };
        Box::new(AdaCache {
            config: self.clone(),
            asks: Asks { spans: Some(Spans { cut, question }), ..Asks::default() },
            first: run.branches.first().copied().unwrap_or(Branch::Cond),
            computed: None,
            change: None,
        })
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.check(FOR_UNITS)
    }
}

struct AdaCache {
    config: Config,
    asks: Asks,
    first: Branch,
    computed: Option<usize>,
    /// What the middle block's features changed by a step, up to there.
    change: Option<f64>,
}

impl AdaCache {
    fn distance(&self, change: f64) -> usize {
        if self.config.threshold == 0.0 {
            return 1;
        }
        if self.config.threshold.is_infinite() {
            return usize::MAX;
        }
        let (bounds, beyond) = self.config.codebook.table();
        bounds
            .iter()
            .find(|(bound, _)| change < bound * self.config.threshold)
            .map_or(beyond, |(_, distance)| *distance)
    }
}

impl Policy for AdaCache {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        // What this step's middle block shows is about the steps after it.
        let since = self.computed.map_or(0, |computed| at.step - computed);
        let reused = since > 0 && self.change.is_some_and(|change| since < self.distance(change));
        if reused { Decision::Reuse(self.config.reuse.into()) } else { Decision::Compute }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.config.threshold = threshold;
        true
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        let watched = Scope::Span { branch: self.first, span: MIDDLE };
        if at.scope != watched {
            return;
        }
        let since = self.computed.map_or(1, |last| at.step - last) as f64;
        self.change = measured.get(CHANGE).map(|change| change / since);
        self.computed = Some(at.step);
    }
}
