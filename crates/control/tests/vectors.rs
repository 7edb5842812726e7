//! Published and hand-computed numbers of the controllers.

use navicache_control::cache::navicache::Filter;
use navicache_control::cache::{Asks, At, CacheSpec, Decision, Policy, Quantity, Run, Seen};
use navicache_control::guidance::Branch;

#[test]
fn kalman_gains_after_the_alignment() {
    // Q = R = 0.05, P = 1 at the end of the alignment; the gain tends to (sqrt(5) - 1) / 2.
    let gains = [0.9545, 0.6615, 0.6243, 0.6189, 0.6182, 0.6181];
    let variances = [0.04773, 0.03308, 0.03121, 0.03095, 0.03091, 0.03090];
    let mut filter = Filter::new(0.05, None);
    filter.align(1.0);
    let update = |filter: &mut Filter| {
        filter.project(0.05);
        filter.correct(2.0)
    };
    for (gain, variance) in gains.into_iter().zip(variances) {
        assert!((update(&mut filter) - gain).abs() < 5e-5);
        assert!((filter.variance - variance).abs() < 5e-6, "{} {variance}", filter.variance);
    }
    for _ in 0..20 {
        update(&mut filter);
    }
    assert!((update(&mut filter) - (5f64.sqrt() - 1.0) / 2.0).abs() < 1e-6);
}

/// A one-element denoiser and its latents, measured as the engine measures tensors.
struct Scalar {
    policy: navicache_control::cache::Guarded,
    visited: Option<f64>,
    anchor: Option<(f64, f64)>,
}

impl Scalar {
    fn new(cache: &str, steps: usize) -> Self {
        let run = Run { steps, branches: vec![Branch::Cond] };
        let policy = cache.parse::<CacheSpec>().unwrap().resolve("wan").unwrap().method().start(&run);
        Scalar { policy, visited: None, anchor: None }
    }

    /// Shows input `x` at a step; `output` is what the denoiser would say. Returns whether it was asked.
    fn step(&mut self, step: usize, x: f64, output: f64) -> bool {
        let Asks { to_decide, to_learn, .. } = self.policy.asks();
        let measure = |q: Quantity| match q {
            Quantity::InputChangeSinceVisit => self.visited.map(|v| (x - v).abs()),
            Quantity::InputChangeSinceCompute => self.anchor.map(|(xc, _)| (x - xc).abs()),
            Quantity::OutputChangeSinceCompute => self.anchor.map(|(_, oc)| (output - oc).abs()),
            Quantity::OutputMagnitude => Some(output.abs()),
        };
        let see = |qs: &[Quantity]| qs.iter().filter_map(|&q| Some((q, measure(q)?))).collect::<Seen>();
        let computed = self.policy.decide(At { step }, &see(&to_decide)) == Decision::Compute;
        let learned = see(&to_learn);
        self.visited = Some(x);
        if computed {
            self.policy.computed(At { step }, &learned);
            self.anchor = Some((x, output));
        }
        computed
    }
}

#[test]
fn gate_adds_up_the_predicted_changes() {
    // Ratio 2 and output 4 after the two first steps: each step of 1 predicts 2 * 1 / 4 = 0.5, so with a threshold of 0.9 one
    // step is reused (0.5) and the next computed (1.0).
    for cache in ["navicache,threshold=0.9,align_steps=2", "easycache,threshold=0.9,warmup_steps=2"] {
        let mut run = Scalar::new(cache, 100);
        assert!(run.step(0, 0.0, 2.0));
        assert!(run.step(1, 1.0, 4.0));
        let computed: Vec<bool> = (2..5).map(|i| run.step(i, i as f64, 4.0)).collect();
        assert_eq!(computed, [false, true, false], "{cache}");
    }
}

#[test]
fn the_first_steps_and_the_last_one_are_computed() {
    let mut run = Scalar::new("navicache,threshold=100,align_steps=2", 4);
    let computed: Vec<bool> = (0..4).map(|i| run.step(i, i as f64, 1.0 + i as f64)).collect();
    assert_eq!(computed, [true, true, false, true]);
}

/// The released rule, written down once more in the plainest form: what a step-by-step transcription decides.
fn transcription(inputs: &[f64], outputs: &[f64], threshold: f64, align: usize, kalman: bool) -> Vec<bool> {
    let steps = inputs.len();
    let (mut e, mut r, mut p) = (0.0, None::<f64>, 1.0);
    let (mut x_prev, mut x_anchor, mut o_anchor) = (None::<f64>, None::<f64>, None::<f64>);
    let mut strip = Vec::new();
    for i in 0..steps {
        let (x, o) = (inputs[i], outputs[i]);
        let skip = if i < align || i == steps - 1 {
            e = 0.0;
            false
        } else if let (Some(xp), Some(oa), Some(r)) = (x_prev, o_anchor, r) {
            e += r * f64::abs(x - xp) / f64::abs(oa);
            let skip = e < threshold;
            if !skip {
                e = 0.0;
            }
            skip
        } else {
            false
        };
        x_prev = Some(x);
        strip.push(!skip);
        if skip {
            continue;
        }
        if let (Some(xa), Some(oa)) = (x_anchor, o_anchor) {
            let eps = if kalman { 1e-8 } else { 0.0 };
            let z = f64::abs(o - oa) / (f64::abs(x - xa) + eps);
            match r {
                Some(old) if kalman && i >= align => {
                    p += 0.05;
                    let k = p / (p + 0.05 + 1e-8);
                    r = Some(old + k * (z - old));
                    p *= 1.0 - k;
                }
                _ => {
                    r = Some(z);
                    p = 1.0;
                }
            }
        }
        x_anchor = Some(x);
        o_anchor = Some(o);
    }
    strip
}

#[test]
fn decisions_equal_a_transcription_of_the_released_rules() {
    let mut reused = 0;
    for seed in 0..200u32 {
        // a trajectory that slows down, with wobble: deterministic, different for every seed
        let wobble = |i: usize, k: f64| ((i as f64 + 1.0) * (seed as f64 * 0.37 + k)).sin();
        let inputs: Vec<f64> = (0..50).map(|i| 3.0 - 0.05 * i as f64 + 0.02 * wobble(i, 1.3)).collect();
        let outputs: Vec<f64> = (0..50).map(|i| 2.0 + 0.03 * i as f64 + 0.05 * wobble(i, 2.1)).collect();
        for (threshold, align) in [(0.03, 10), (0.07, 5), (0.2, 0), (0.05, 1)] {
            for (kalman, name, first) in [(true, "navicache", "align_steps"), (false, "easycache", "warmup_steps")] {
                let expected = transcription(&inputs, &outputs, threshold, align, kalman);
                let mut run = Scalar::new(&format!("{name},threshold={threshold},{first}={align}"), 50);
                let computed: Vec<bool> = (0..50).map(|i| run.step(i, inputs[i], outputs[i])).collect();
                assert_eq!(computed, expected, "{name} seed {seed} threshold {threshold} align {align}");
                reused += computed.iter().filter(|&&c| !c).count();
            }
        }
    }
    assert!(reused > 1000, "the trajectories must exercise reuse, {reused} steps did");
}
