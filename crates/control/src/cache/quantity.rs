//! Every scalar that can be measured while sampling: what is looked at ([`Subject`]) and how ([`Measure`]).
//!
//! Notation: `a_i` the subject at step i, `v` the step visited before (whether it was computed or not), `c` the last
//! step whose forward was computed in full, `b` the one before that, and `m(.)` the mean of absolute values over every
//! element. Every branch has reference points of its own.

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// `x`, the latents shown to the denoiser.
    Input,
    /// `o`, its prediction. Known once the branch is computed.
    Output,
    /// `o - x`. Known once the branch is computed.
    Residual,
    /// The unconditional prediction less the conditional one. Known once both are computed.
    CfgDifference,
    /// The low spatial frequencies of the prediction for thinned-out latents: a cheap look ahead (PreciseCache).
    Trial {
        /// One latent frame of so many is kept.
        frames: usize,
        /// One row and one column of so many are kept.
        size: usize,
    },
    /// The guided velocity, of all branches together. Known once they are computed.
    Velocity,
    /// The solver's sample of a step: the latents as they are known once its velocity is.
    Sample,
    /// What the solver learns at a step that ends a run of skipped ones: its sample there as it is now known, less the
    /// sample that the model saw. Known once the step is computed. See [`crate::solver::skipping`].
    SolverError,
    /// The embedding of the timestep. Known before the blocks.
    TimeEmbedding,
    /// Its projection to the modulation of the blocks. Known before the blocks.
    TimeProjection,
    /// The first block's input, normalised and modulated. Known before the blocks.
    ModulatedInput,
    /// The same through a Wiener filter along time, height and width (SeaCache). Known before the blocks.
    FilteredInput,
    /// What a span of units adds to the features. Known once the span is computed.
    SpanResidual,
    /// The features after a span. Known once the span is computed.
    SpanOutput,
    /// The features after each block of a span; the measure's mean over blocks. Known once the span is computed.
    BlockOutputs,
}

/// Which kind of scope a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeKind {
    /// All branches of a step.
    Step,
    /// One branch.
    Branch,
    /// A span of units.
    Span,
}

impl std::fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ScopeKind::Step => "step",
            ScopeKind::Branch => "branch",
            ScopeKind::Span => "span",
        })
    }
}

/// When a quantity is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before it is decided whether to compute.
    Before,
    /// After it was computed.
    After,
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            When::Before => "before",
            When::After => "after",
        })
    }
}

/// How it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// `m(a_i)`
    Magnitude,
    /// `||a_i||_2`
    Norm,
    /// `m(a_i - a_v)`
    ChangeSinceVisit,
    /// `m(a_i - a_c)`
    ChangeSinceCompute,
    /// `m(a_i - a_v) / m(a_v)`
    RelativeChangeSinceVisit,
    /// `m(a_i - a_c) / m(a_c)`
    RelativeChangeSinceCompute,
    /// `||a_i - a_v||_2`
    DistanceSinceVisit,
    /// `cos(a_i, a_c)`
    CosineSinceCompute,
    /// Mean over tokens of `||a_i[token]|| / ||a_v[token]||`
    TokenRatioSinceVisit,
    /// `m(a_i - a_b) / m(a_c - a_b)`: how far from `b`, where `c` is at 1.
    AnchorPosition,
    /// `m(a_i - l) / m(a_i)`, `l` the line in the timestep through `c` and `b`: what a forecast would have missed.
    LineError,
    /// `m(a_i - a_l)`, `l` the computed step so many before, 1 the last: for traces.
    Lag(usize),
    /// `||a_i - a_l||_2`, for traces.
    LagDistance(usize),
}

impl Subject {
    /// The quantity of this subject by a measure.
    pub const fn by(self, measure: Measure) -> Quantity {
        Quantity { subject: self, measure }
    }

    /// Whether it is known at a scope, before or after the scope is computed.
    pub fn exists(self, scope: ScopeKind, when: When) -> bool {
        use ScopeKind::{Span, Step};
        match self {
            Subject::Input => scope != Span,
            Subject::Output | Subject::Residual => scope != Span && when == When::After,
            Subject::CfgDifference | Subject::Velocity | Subject::Sample | Subject::SolverError => {
                scope == Step && when == When::After
            }
            Subject::Trial { .. } => scope == Step && when == When::Before,
            Subject::TimeEmbedding | Subject::TimeProjection | Subject::ModulatedInput | Subject::FilteredInput => {
                scope == Span && when == When::Before
            }
            Subject::SpanResidual | Subject::SpanOutput | Subject::BlockOutputs => scope == Span && when == When::After,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Subject::Input => "input",
            Subject::Output => "output",
            Subject::Residual => "residual",
            Subject::CfgDifference => "gap",
            Subject::Trial { .. } => "trial",
            Subject::Velocity => "velocity",
            Subject::Sample => "sample",
            Subject::SolverError => "solver_error",
            Subject::TimeEmbedding => "time_embedding",
            Subject::TimeProjection => "time_projection",
            Subject::ModulatedInput => "modulated_input",
            Subject::FilteredInput => "filtered_input",
            Subject::SpanResidual => "span_residual",
            Subject::SpanOutput => "span_output",
            Subject::BlockOutputs => "block_outputs",
        }
    }
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Measure::Lag(_) => "lag",
            Measure::LagDistance(_) => "lag_distance",
            Measure::Magnitude => "magnitude",
            Measure::Norm => "norm",
            Measure::ChangeSinceVisit => "change_since_visit",
            Measure::ChangeSinceCompute => "change_since_compute",
            Measure::RelativeChangeSinceVisit => "relative_change_since_visit",
            Measure::RelativeChangeSinceCompute => "relative_change_since_compute",
            Measure::DistanceSinceVisit => "distance_since_visit",
            Measure::CosineSinceCompute => "cosine_since_compute",
            Measure::TokenRatioSinceVisit => "token_ratio_since_visit",
            Measure::AnchorPosition => "anchor_position",
            Measure::LineError => "line_error",
        }
    }

    /// How many earlier values, of computed steps, it refers to.
    pub fn anchors(self) -> usize {
        match self {
            Measure::ChangeSinceCompute | Measure::RelativeChangeSinceCompute | Measure::CosineSinceCompute => 1,
            Measure::AnchorPosition | Measure::LineError => 2,
            Measure::Lag(lag) | Measure::LagDistance(lag) => lag,
            _ => 0,
        }
    }

    /// Whether it refers to the value at the step visited before.
    pub fn since_visit(self) -> bool {
        matches!(
            self,
            Measure::ChangeSinceVisit
                | Measure::RelativeChangeSinceVisit
                | Measure::DistanceSinceVisit
                | Measure::TokenRatioSinceVisit
        )
    }
}

/// A scalar that a policy may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quantity {
    /// What is looked at.
    pub subject: Subject,
    /// How.
    pub measure: Measure,
}

impl Quantity {
    /// Name in reports and traces, for example `input_change_since_visit`.
    pub fn name(self) -> String {
        let lag = match self.measure {
            Measure::Lag(lag) | Measure::LagDistance(lag) => format!("_{lag}"),
            _ => String::new(),
        };
        format!("{}_{}{lag}", self.subject.name(), self.measure.name())
    }
}

/// Measured values. A quantity whose reference point does not exist yet (no earlier step) is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurements(Vec<(Quantity, f64)>);

impl Measurements {
    /// The value of a quantity, if it was measured.
    pub fn get(&self, quantity: Quantity) -> Option<f64> {
        self.0.iter().find(|(q, _)| *q == quantity).map(|&(_, value)| value)
    }

    /// All measured values.
    pub fn iter(&self) -> impl Iterator<Item = (Quantity, f64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether every measured value is a number and finite.
    pub fn is_finite(&self) -> bool {
        self.0.iter().all(|(_, value)| value.is_finite())
    }
}

impl FromIterator<(Quantity, f64)> for Measurements {
    fn from_iter<I: IntoIterator<Item = (Quantity, f64)>>(values: I) -> Self {
        Measurements(values.into_iter().collect())
    }
}

impl Extend<(Quantity, f64)> for Measurements {
    fn extend<I: IntoIterator<Item = (Quantity, f64)>>(&mut self, values: I) {
        self.0.extend(values);
    }
}
