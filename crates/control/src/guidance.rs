//! Which branches a step has, and with which weights their predictions are combined.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::schedule::Timestep;

/// One conditioning of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Branch {
    /// Conditioned on the prompt. It comes first in every step, and policies observe this one.
    Cond,
    /// Conditioned on the negative prompt (or the empty one).
    Uncond,
    /// A further one, as pipelines with more than one kind of guidance have, by its place in the step.
    Other(u8),
}

impl Branch {
    /// Lower-case name, as in reports.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Branch::Cond => "cond".into(),
            Branch::Uncond => "uncond".into(),
            Branch::Other(place) => format!("other{place}").into(),
        }
    }
}

impl From<Branch> for String {
    fn from(branch: Branch) -> Self {
        branch.name().into_owned()
    }
}

impl TryFrom<String> for Branch {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match (name.as_str(), name.strip_prefix("other").map(str::parse)) {
            ("cond", _) => Ok(Branch::Cond),
            ("uncond", _) => Ok(Branch::Uncond),
            (_, Some(Ok(place))) => Ok(Branch::Other(place)),
            _ => Err(format!("branch {name:?} is not known; expected cond, uncond, or other0 to other255")),
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

/// The guidance scale of a step, dynamic as in CogVideoX: `scale` is the largest that is added to 1.
///
/// Source: diffusers 0.42.1 `CogVideoXPipeline` with `use_dynamic_cfg`. It takes the timestep for the step's index, so
/// that the scale is no smooth ramp but jumps from step to step; so it does here.
pub fn dynamic_scale(scale: f64, timestep: Timestep, steps: usize) -> f64 {
    let part = (steps as f64 - timestep.0) / steps as f64;
    1.0 + scale * ((1.0 - (std::f64::consts::PI * part.powi(5)).cos()) / 2.0)
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
    fn dynamic_guidance_jumps_as_in_the_reference() {
        // diffusers 0.42.1, scale 6, 50 steps
        let expected = [2.2915, 2.5435, 6.9744, 6.4204, 2.7881, 4.2719];
        for (i, expected) in expected.into_iter().enumerate() {
            let scale = dynamic_scale(6.0, Timestep(999.0 - 20.0 * i as f64), 50);
            assert!((scale - expected).abs() < 5e-5, "{i}: {scale}");
        }
        for (timestep, expected) in [(79.0, 1.0636), (59.0, 1.0), (39.0, 1.0), (19.0, 1.1234)] {
            assert!((dynamic_scale(6.0, Timestep(timestep), 50) - expected).abs() < 5e-5, "{timestep}");
        }
    }

    #[test]
    fn names_go_both_ways() {
        for branch in [Branch::Cond, Branch::Uncond, Branch::Other(0), Branch::Other(255)] {
            let json = serde_json::to_string(&branch).unwrap();
            assert_eq!(json, format!("{:?}", branch.name()));
            assert_eq!(serde_json::from_str::<Branch>(&json).unwrap(), branch);
        }
        assert!(serde_json::from_str::<Branch>("\"other256\"").is_err());
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
