//! The stochastic DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm of the SDE in appendix C): part of the
//! noise is replaced by fresh noise in every step.
//!
//! Reference: diffusers 0.42.1 `CogVideoXDPMScheduler.step`: the first and the last step are of first order.
//!
//! The first noise level may be all noise, half whose log signal-to-noise ratio is minus infinity: the first step is
//! then infinitely long, and the second is of first order as well. Coefficients stay finite.

use super::step::{Combination, Levels, TO_DATA};

pub(super) fn advance(levels: &Levels) -> Combination {
    let Some(next) = levels.next else { return TO_DATA };
    let now = levels.now;
    let h = next.lambda() - now.lambda();
    let replaced = -(-2.0 * h).exp_m1(); // of the noise's variance
    let whole = next.alpha * replaced;
    let slope = levels.last.map_or(0.0, |last| {
        let ratio = (now.lambda() - last.lambda()) / h;
        0.5 * whole / ratio
    });
    Combination {
        sample: next.sigma / now.sigma * (-h).exp(),
        data: [whole + slope, -slope, 0.0],
        noise: next.sigma * replaced.sqrt(),
    }
}
