//! DDIM (Song et al. 2020, arXiv 2010.02502, equation 12 without noise): the data and the noise that a prediction
//! stands for are put together again at the next noise level, `alpha' m + sigma' (x - alpha m) / sigma`. First order;
//! on a flow it is Euler's method.
//!
//! Reference: diffusers 0.42.1 `CogVideoXDDIMScheduler.step`.

use super::step::{Combination, Levels, TO_DATA};

pub(super) fn advance(levels: &Levels) -> Combination {
    let Some(next) = levels.next else { return TO_DATA };
    let now = levels.now;
    let kept = next.sigma / now.sigma;
    Combination { sample: kept, data: [next.alpha - now.alpha * kept, 0.0, 0.0], noise: 0.0 }
}
