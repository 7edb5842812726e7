//! PAB: *Real-Time Video Generation with Pyramid Attention Broadcast* (Zhao et al., ICLR 2025, arXiv 2408.12588; code
//! NUS-HPC-AI-Lab/VideoSys).
//!
//! Attention changes least in the middle of the run, cross-attention less than self-attention; so each kind is computed
//! at one step in so many and its result is added again in between. No measurement, no threshold.
//!
//! | VideoSys | here |
//! |---|---|
//! | `spatial_range` | `self_range`, for models with one attention over space and time too |
//! | `temporal_range` | `temporal_range` |
//! | `cross_range` | `cross_range` |
//! | `*_threshold` window of timesteps | `above`, `below`, both exclusive |
//! | `mlp_*` | `mlp_starts`, `mlp_blocks`, `mlp_steps` |
//!
//! VideoSys keys the feed-forward's starts on whole timesteps rounded to bf16, which exist at one size and number of
//! steps only. Here a start is the step nearest to it: the same steps there, and steps like them elsewhere.
//!
//! Ranges for Wan and HunyuanVideo are not published; those of the presets are our reconstruction, with the window as a
//! part of the steps (`warmup`, `tail`).

use super::approx::FOR_UNITS;
use super::{
    About, Asks, At, Decision, Guard, Measurements, Method, Part, Policy, Question, Reuse, Run, Scope, Span, Spans,
    Unit,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "pab",
    line: "self- and cross-attention are computed at one step in so many, by a fixed schedule",
    paper: "Zhao et al., ICLR 2025, arXiv 2408.12588",
    source: "the released code; ranges for Wan are our reconstruction",
    needs: Some("memory for every attention"),
};

options! {
    /// Self-attention is computed at one step in so many; 1 at every step.
    self_range: usize,
    /// Attention across frames is computed at one step in so many, in models that have it apart; absent: as
    /// `self_range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    temporal_range: Option<usize>,
    /// Cross-attention is computed at one step in so many; 1 at every step.
    cross_range: usize,
    /// Nothing is reused at timesteps up to this.
    #[serde(default)]
    above: f64,
    /// Nothing is reused at timesteps from this on; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    below: Option<f64>,
    /// This part of the steps, at the start, is computed.
    #[serde(default)]
    warmup: f64,
    /// This part of the steps, at the end, is computed.
    #[serde(default)]
    tail: f64,
    /// Timesteps from which the feed-forward of the first blocks is reused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mlp_starts: Vec<f64>,
    /// Blocks at the start whose feed-forward is reused then.
    #[serde(default)]
    mlp_blocks: usize,
    /// For so many steps.
    #[serde(default)]
    mlp_steps: usize,
    /// How the attention's work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

impl Method for Config {
    described!();

    fn guard(&self, steps: usize) -> Guard {
        let part = |of: f64| (of * steps as f64).round() as usize;
        Guard { first_steps: part(self.warmup), last_steps: part(self.tail), max_run: None }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let is_broadcast = |unit: &Unit| match unit.part {
            Part::SelfAttn | Part::SpatialAttn | Part::TemporalAttn | Part::CrossAttn => true,
            Part::Mlp => unit.block < self.mlp_blocks,
            Part::Whole => false,
        };
        let units = run.units.iter().copied().enumerate().filter(|(_, unit)| is_broadcast(unit));
        let (spans, parts) = units.map(|(i, unit)| (Span::of(i..i + 1), unit.part)).unzip();
        let away = |step: usize, start: f64| (run.steps[step].timestep.0 - start).abs();
        let nearest = |&start: &f64| (0..run.steps.len()).min_by(|&a, &b| away(a, start).total_cmp(&away(b, start)));
        let mlp_starts = self.mlp_starts.iter().filter_map(nearest).collect();
        Box::new(Pab { config: self.clone(), spans, parts, mlp_starts })
    }

    fn check(&self) -> Result<(), String> {
        if self.self_range == 0 || self.cross_range == 0 || self.temporal_range == Some(0) {
            return Err("self_range, temporal_range and cross_range: expected 1 or more".to_string());
        }
        if self.warmup + self.tail > 1.0 {
            return Err(format!("warmup {} and tail {} are more than all steps", self.warmup, self.tail));
        }
        self.reuse.check(FOR_UNITS)
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        if run.units.iter().any(|u| u.part.is_self_attention()) {
            return Ok(());
        }
        Err("the model's blocks have no attention of their own that could be reused alone".to_string())
    }
}

struct Pab {
    config: Config,
    spans: Vec<Span>,
    /// Of each span.
    parts: Vec<Part>,
    /// Steps whose feed-forward is reused in those after them.
    mlp_starts: Vec<usize>,
}

impl Pab {
    /// The released counter goes up once a step, whether inside the window or not.
    fn attention_reused(&self, at: At, range: usize) -> bool {
        let in_window =
            at.timestep.0 > self.config.above && self.config.below.is_none_or(|below| at.timestep.0 < below);
        in_window && !at.step.is_multiple_of(range)
    }

    fn mlp_reused(&self, at: At) -> bool {
        self.mlp_starts.iter().any(|&start| start < at.step && at.step <= start + self.config.mlp_steps)
    }
}

impl Policy for Pab {
    fn asks(&self) -> Asks {
        let question = Question { to_reuse: vec![self.config.reuse.into()], ..Question::default() };
        Asks { spans: Some(Spans { cut: self.spans.clone(), question }), ..Asks::default() }
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        let Scope::Span { span, .. } = at.scope else { return Decision::Compute };
        let reused = match self.parts[span] {
            Part::SelfAttn | Part::SpatialAttn => self.attention_reused(at, self.config.self_range),
            Part::TemporalAttn => {
                self.attention_reused(at, self.config.temporal_range.unwrap_or(self.config.self_range))
            }
            Part::CrossAttn => self.attention_reused(at, self.config.cross_range),
            Part::Mlp => self.mlp_reused(at),
            Part::Whole => false,
        };
        if reused { Decision::Reuse(self.config.reuse.into()) } else { Decision::Compute }
    }
}
