//! Which branches a step has, and with which weights their predictions are combined.

use serde::{Deserialize, Serialize};

/// One conditioning of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Branch {
    /// Conditioned on the prompt. It comes first in every step, and policies observe this one.
    Cond,
    /// Conditioned on the negative prompt (or the empty one).
    Uncond,
}

impl Branch {
    /// Lower-case name, as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Branch::Cond => "cond",
            Branch::Uncond => "uncond",
        }
    }
}

/// How the predictions of a step's branches become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guidance {
    /// The conditional prediction alone.
    None,
    /// Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): `uncond + scale (cond - uncond)`.
    Cfg {
        /// 1 is no guidance; larger follows the prompt more closely.
        scale: f64,
    },
}

impl Guidance {
    /// Guidance of a scale; at 1 and below there is nothing to guide with, and one branch is saved.
    pub fn from_scale(scale: f64) -> Self {
        if scale > 1.0 { Guidance::Cfg { scale } } else { Guidance::None }
    }

    /// The branches in the order they run, with the weight of each prediction. The weights sum to 1.
    pub fn branches(self) -> Vec<(Branch, f64)> {
        match self {
            Guidance::None => vec![(Branch::Cond, 1.0)],
            Guidance::Cfg { scale } => vec![(Branch::Cond, scale), (Branch::Uncond, 1.0 - scale)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_of_one_or_less_needs_one_branch() {
        assert_eq!(Guidance::from_scale(1.0).branches(), [(Branch::Cond, 1.0)]);
        assert_eq!(Guidance::from_scale(0.0).branches(), [(Branch::Cond, 1.0)]);
    }

    #[test]
    fn weights_sum_to_one() {
        for scale in [1.5, 4.0, 7.0] {
            let branches = Guidance::from_scale(scale).branches();
            assert_eq!(branches.len(), 2);
            assert_eq!(branches[0], (Branch::Cond, scale));
            assert!((branches.iter().map(|b| b.1).sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }
}
