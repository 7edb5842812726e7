//! UniPC (Zhao et al. 2023, arXiv 2302.04867): a multistep predictor, and a corrector that uses the next step's
//! prediction to improve the sample it was made from, at no further model call.
//!
//! Reference: diffusers 0.42.1 `UniPCMultistepScheduler` as published with Wan2.1: `solver_order=2`,
//! `solver_type="bh2"`, `predict_x0`, `lower_order_final`, `use_flow_sigmas`, corrector on every step but the first.
//!
//! | paper | here |
//! |---|---|
//! | `h`, difference of half-log-SNR | `h` |
//! | `B(h) = e^h - 1` (variant B2), with `h` negated for data prediction | `b_h` |
//! | `phi_k(h)` times `h` | `h_phi_k` |
//! | `r_m` | `ratio` |
//! | `rho` of UniP-2, 1/2; of UniC by algorithm 1's linear system | `rho`, `rho_old`, `rho_new` |

use super::step::{Combination, Levels, TO_DATA};
use crate::schedule::NoiseLevel;

/// UniP: of order 2 but for the first and the last step.
pub(super) fn advance(levels: &Levels) -> Combination {
    let Some(next) = levels.next else { return TO_DATA };
    let now = levels.now;
    let h = next.lambda() - now.lambda();
    let b_h = (-h).exp_m1();
    let slope = levels.last.map_or(0.0, |last| {
        let ratio = (last.lambda() - now.lambda()) / h;
        0.5 * next.alpha * b_h / ratio
    });
    Combination { sample: next.sigma / now.sigma, data: [slope - next.alpha * b_h, -slope, 0.0], noise: 0.0 }
}

/// UniC for the step that led here, of the order that its predictor had.
pub(super) fn correct(levels: &Levels) -> Option<Combination> {
    let (from, to) = (levels.last?, levels.now);
    let h = to.lambda() - from.lambda();
    let b_h = (-h).exp_m1();
    let scale = to.alpha * b_h;
    let (new, old) = match levels.before_last {
        None => (0.5, 0.0),
        Some(before) => second_order(h, b_h, from, before),
    };
    // x = sample * x_from - scale * (m_from + new * (m_to - m_from) + old * (m_before - m_from))
    let data = [-scale * new, -scale * (1.0 - new - old), -scale * old];
    Some(Combination { sample: to.sigma / from.sigma, data, noise: 0.0 })
}

/// Solves for the weights of the new and the old difference; the old one's is divided by its ratio already.
fn second_order(h: f64, b_h: f64, from: NoiseLevel, before: NoiseLevel) -> (f64, f64) {
    let ratio = (before.lambda() - from.lambda()) / h;
    let h_phi_2 = b_h / -h - 1.0;
    let h_phi_3 = h_phi_2 / -h - 0.5;
    let (b1, b2) = (h_phi_2 / b_h, 2.0 * h_phi_3 / b_h);
    // rho_old + rho_new = b1, ratio rho_old + rho_new = b2
    let rho_old = (b1 - b2) / (1.0 - ratio);
    let rho_new = b1 - rho_old;
    (rho_new, rho_old / ratio)
}
