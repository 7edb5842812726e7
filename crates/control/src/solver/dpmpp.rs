//! DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one model call a step.
//!
//! Reference: diffusers 0.42.1 `DPMSolverMultistepScheduler` with `algorithm_type="dpmsolver++"`, `solver_order=2`,
//! `solver_type="midpoint"`, `use_flow_sigmas`, `final_sigmas_type="zero"`: the first and the last step are of first
//! order.

use super::step::{Combination, Levels, TO_DATA};

pub(super) fn advance(levels: &Levels) -> Combination {
    let Some(next) = levels.next else { return TO_DATA };
    let now = levels.now;
    let h = next.lambda() - now.lambda();
    let whole = -next.alpha * (-h).exp_m1();
    // The slope between the last two predictions, carried on to the middle of the step.
    let slope = levels.last.map_or(0.0, |last| {
        let ratio = (now.lambda() - last.lambda()) / h;
        0.5 * whole / ratio
    });
    Combination { sample: next.sigma / now.sigma, data: [whole + slope, -slope, 0.0], noise: 0.0 }
}
