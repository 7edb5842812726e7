//! How a value is approximated from what was kept of earlier steps: one axis of every method, *when* being the other.
//!
//! Whatever the form, a value is a linear combination of kept tensors, and the numbers follow from the steps they were
//! kept at. So this file computes weights, and whoever holds the tensors adds them up.

use serde::{Deserialize, Serialize};

use super::{At, Scope};
use crate::guidance::Branch;
use crate::interpolate::lagrange;
use crate::schedule::{Sigma, Timestep};

/// The forms that go with any trigger, by the names that the option `reuse` takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// The difference that the skipped computation made last time is added again. Zero order.
    #[default]
    Residual,
    /// The last computed value itself.
    Output,
    /// A straight line in sigma through the last two computed residuals; with one, its residual.
    Linear,
    /// A parabola in sigma through the last three computed residuals; a line while there are two.
    Quadratic,
    /// First-order Taylor series of the residual in the step's index, as TaylorSeer has it.
    Taylor,
    /// Between or beyond the last two computed residuals, as far as a probe of the current step stands (DiCache).
    TwoAnchors,
    /// The last residual times the ratio that residuals have changed by since (MagCache's, tracked by its table).
    Scaled,
    /// The conditional branch is computed, the other approximated from it with their last difference.
    FromCond,
    /// Nothing is approximated: the solver jumps from computed step to computed step. For solvers of second order.
    StepOver,
    /// The solver goes on along a forecast; when the next step is computed, it goes back and integrates the skipped
    /// steps again, with values between both ends.
    Corrected,
}

/// What a step can be reused by.
pub(super) const FOR_STEPS: &[Reuse] = &[
    Reuse::Residual,
    Reuse::Output,
    Reuse::Linear,
    Reuse::Quadratic,
    Reuse::Taylor,
    Reuse::FromCond,
    Reuse::StepOver,
    Reuse::Corrected,
];
/// What all blocks of a branch can be reused by.
pub(super) const FOR_BLOCKS: &[Reuse] =
    &[Reuse::Residual, Reuse::Output, Reuse::Linear, Reuse::Quadratic, Reuse::Taylor];
/// What a part of the blocks can be reused by.
pub(super) const FOR_UNITS: &[Reuse] = &[Reuse::Residual, Reuse::Linear, Reuse::Quadratic, Reuse::Taylor];
/// What blocks can be reused by when some of them run first.
pub(super) const FOR_PROBED: &[Reuse] =
    &[Reuse::Residual, Reuse::Output, Reuse::Linear, Reuse::Quadratic, Reuse::Taylor, Reuse::TwoAnchors];

impl Reuse {
    /// Whether nothing is approximated: the solver skips the step.
    pub fn is_left_to_the_solver(self) -> bool {
        matches!(self, Reuse::StepOver | Reuse::Corrected)
    }

    /// Refuses a form that makes no sense for a method.
    pub(super) fn check(self, sensible: &[Reuse]) -> Result<(), String> {
        if sensible.contains(&self) {
            return Ok(());
        }
        Err(match self {
            Reuse::TwoAnchors => {
                "reuse=two_anchors needs blocks that run at every step; dicache, fbcache and dbcache have them"
            }
            Reuse::Scaled => "reuse=scaled needs a known ratio of residuals; magcache has one",
            Reuse::FromCond => {
                "reuse=from_cond leaves a branch out; this method decides inside of branches. fastercache and mixcache do \
                 both, and every method that decides on whole steps can"
            }
            Reuse::Output => {
                "reuse=output would overwrite what the computed parts of the model add; it needs a method that reuses all blocks"
            }
            Reuse::StepOver | Reuse::Corrected => {
                "reuse=step_over and reuse=corrected leave whole steps to the solver; this method decides inside of steps"
            }
            _ => "this form of reuse does not fit the method",
        }
        .to_string())
    }
}

/// How one value is to be approximated. `c` is the last computed step, `b` the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approx {
    /// Input of the skipped part plus its residual at `c`.
    Residual,
    /// Its output at `c`.
    Output,
    /// A line in sigma through the residuals at `c` and `b`.
    Linear,
    /// A parabola in sigma through the last three residuals.
    Quadratic,
    /// A Taylor series in the step's index, of order 0, 1 or 2, with backward differences (TaylorSeer, arXiv
    /// 2503.06923).
    Taylor {
        /// Highest power.
        order: usize,
        /// What is forecast.
        form: Form,
    },
    /// `residual_b + weight (residual_c - residual_b)`; 1 is [`Approx::Residual`].
    TwoAnchors {
        /// Where on the line through both.
        #[serde(with = "crate::exact")]
        weight: f64,
    },
    /// `factor` times the residual at `c`.
    Scaled {
        /// The factor.
        #[serde(with = "crate::exact")]
        factor: f64,
    },
    /// The unconditional prediction from the conditional one of the same step: their difference at the last step that
    /// computed both, its low and its high spatial frequencies weighted, is added to it.
    FromCond {
        /// Weight of the low frequencies of the difference.
        #[serde(with = "crate::exact")]
        low: f64,
        /// Weight of the high ones.
        #[serde(with = "crate::exact")]
        high: f64,
    },
    /// No prediction: the solver jumps. See [`Reuse::StepOver`].
    StepOver,
    /// No prediction: the solver goes on along a forecast, and corrects it later. See [`Reuse::Corrected`].
    Corrected,
}

/// Which of the two is kept of a computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Output less input.
    Residual,
    /// Output.
    Output,
}

impl From<Reuse> for Approx {
    fn from(reuse: Reuse) -> Self {
        match reuse {
            Reuse::Residual => Approx::Residual,
            Reuse::Output => Approx::Output,
            Reuse::Linear => Approx::Linear,
            Reuse::Quadratic => Approx::Quadratic,
            Reuse::Taylor => Approx::Taylor { order: 1, form: Form::Residual },
            Reuse::TwoAnchors => Approx::TwoAnchors { weight: 1.0 },
            Reuse::Scaled => Approx::Scaled { factor: 1.0 },
            Reuse::FromCond => Approx::FromCond { low: 1.0, high: 1.0 },
            Reuse::StepOver => Approx::StepOver,
            Reuse::Corrected => Approx::Corrected,
        }
    }
}

impl Approx {
    /// What is kept for it; `None` where nothing of a prediction is.
    pub fn kept(self, scope: Scope) -> Option<Kept> {
        let form = match self {
            Approx::StepOver | Approx::Corrected => return None,
            Approx::FromCond { .. } => return Some(Kept::CfgDifference),
            Approx::Output => Form::Output,
            Approx::Taylor { form, .. } => form,
            _ => Form::Residual,
        };
        Some(match scope {
            Scope::Step | Scope::Branch(_) => Kept::Prediction(form),
            Scope::Span { span, .. } => Kept::Span(span, form),
        })
    }

    /// How many values as large as the latents the solver keeps for it, beside those that it has anyway.
    pub fn solver_values(self) -> usize {
        match self {
            Approx::Corrected => crate::solver::skipping::VALUES_KEPT,
            _ => 0,
        }
    }

    /// Of how many computed steps.
    pub fn depth(self) -> usize {
        match self {
            Approx::StepOver | Approx::Corrected => 0,
            Approx::Residual | Approx::Output | Approx::Scaled { .. } | Approx::FromCond { .. } => 1,
            Approx::Linear | Approx::TwoAnchors { .. } => 2,
            Approx::Quadratic => 3,
            Approx::Taylor { order, .. } => order + 1,
        }
    }

    /// The weights of what was kept at the `anchors`, newest first, for a step. Fewer anchors than wanted lower the
    /// order.
    pub fn weights(self, anchors: &[Anchor], at: At) -> Vec<f64> {
        let sigmas = || anchors.iter().map(|a| a.sigma.0).collect::<Vec<_>>();
        match self {
            Approx::StepOver | Approx::Corrected => vec![],
            Approx::Residual | Approx::Output | Approx::FromCond { .. } => vec![1.0],
            Approx::Scaled { factor } => vec![factor],
            Approx::TwoAnchors { weight } if anchors.len() > 1 => vec![weight, 1.0 - weight],
            Approx::TwoAnchors { .. } => vec![1.0],
            Approx::Linear => lagrange(&sigmas()[..anchors.len().min(2)], at.sigma.0),
            Approx::Quadratic => lagrange(&sigmas()[..anchors.len().min(3)], at.sigma.0),
            Approx::Taylor { order, .. } => taylor(&anchors[..anchors.len().min(order + 1)], at.step),
        }
    }
}

/// `f_c + k f' + k^2/2 f''`, with differences to the step computed before, divided by how far it is.
fn taylor(anchors: &[Anchor], step: usize) -> Vec<f64> {
    let gap = |newer: usize| (anchors[newer].step - anchors[newer + 1].step) as f64;
    let k = (step - anchors[0].step) as f64;
    let mut weights = vec![1.0];
    if anchors.len() > 1 {
        weights = vec![1.0 + k / gap(0), -k / gap(0)];
    }
    if anchors.len() > 2 {
        let second = k * k / 2.0 / gap(0);
        weights[0] += second / gap(0);
        weights[1] -= second / gap(0) + second / gap(1);
        weights.push(second / gap(1));
    }
    weights
}

/// A computed step that something was kept at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anchor {
    /// Index of the step.
    pub step: usize,
    /// Its timestep.
    pub timestep: Timestep,
    /// Its noise level.
    pub sigma: Sigma,
}

/// What is kept of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Of the whole prediction: `o - x` or `o`.
    Prediction(Form),
    /// The unconditional prediction less the conditional one.
    CfgDifference,
    /// Of a span of units: features after less features before, or features after.
    Span(usize, Form),
}

/// A value in numbers: which kept tensors, with which weights, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Whose.
    pub branch: Branch,
    /// What was kept.
    pub kept: Kept,
    /// Their weights.
    pub weights: Vec<f64>,
    /// Weights of the low and high spatial frequencies of the sum, where they differ from 1.
    pub split: Option<(f64, f64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors(steps: &[usize]) -> Vec<Anchor> {
        let at = |&step: &usize| Anchor {
            step,
            timestep: Timestep(1000.0 - 10.0 * step as f64),
            sigma: Sigma(1.0 - 0.01 * step as f64),
        };
        steps.iter().map(at).collect()
    }

    fn at(step: usize) -> At {
        let Anchor { timestep, sigma, .. } = anchors(&[step])[0];
        At { step, timestep, sigma, scope: Scope::Step }
    }

    /// The value of a function of the step, approximated from its values at the anchors.
    fn made_up(approx: Approx, steps: &[usize], to: usize, f: impl Fn(f64) -> f64) -> f64 {
        approx.weights(&anchors(steps), at(to)).iter().zip(steps).map(|(w, &s)| w * f(s as f64)).sum()
    }

    #[test]
    fn orders_are_exact_for_polynomials_of_their_degree() {
        let line = |s: f64| 3.0 - 0.5 * s;
        let parabola = |s: f64| 1.0 + s * s;
        for steps in [&[9, 7, 4][..], &[5, 4, 3]] {
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
            close(made_up(Approx::Linear, steps, 12, line), line(12.0));
            close(made_up(Approx::Quadratic, steps, 12, parabola), parabola(12.0));
            for order in [1, 2] {
                close(made_up(Approx::Taylor { order, form: Form::Output }, steps, 12, line), line(12.0));
            }
            close(made_up(Approx::Residual, steps, 12, line), line(steps[0] as f64));
        }
    }

    #[test]
    fn missing_anchors_lower_the_order() {
        let approximations = [
            Approx::Linear,
            Approx::Quadratic,
            Approx::Taylor { order: 2, form: Form::Residual },
            Approx::TwoAnchors { weight: 1.7 },
        ];
        for approx in approximations {
            assert_eq!(approx.weights(&anchors(&[4]), at(6)), [1.0], "{approx:?}");
        }
        assert_eq!(Approx::Quadratic.weights(&anchors(&[4, 2]), at(5)).len(), 2);
    }

    #[test]
    fn taylor_factors_are_those_of_the_reference() {
        // diffusers TaylorSeerState: f0 = F, f1 = (F - F_before) / delta, f2 = (f1 - f1_before) / delta, value sum f_j
        // k^j / j!
        let values = [2.0, 5.0, 4.0]; // at steps 10, 6, 1
        let (f1, f1_before) = ((2.0 - 5.0) / 4.0, (5.0 - 4.0) / 5.0);
        let expected = 2.0 + 3.0 * f1 + 9.0 / 2.0 * (f1 - f1_before) / 4.0;
        let weights = Approx::Taylor { order: 2, form: Form::Residual }.weights(&anchors(&[10, 6, 1]), at(13));
        let found: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum();
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
}
