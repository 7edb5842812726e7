//! Euler's method: `x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v_i`, first order.
//!
//! Reference: diffusers 0.42.1 `FlowMatchEulerDiscreteScheduler.step`, here in terms of the data prediction.

use super::step::{Combination, Levels, TO_DATA};

pub(super) fn advance(levels: &Levels) -> Combination {
    let Some(next) = levels.next else { return TO_DATA };
    let kept = next.sigma / levels.now.sigma;
    Combination { sample: kept, data: [1.0 - kept, 0.0, 0.0], noise: 0.0 }
}
