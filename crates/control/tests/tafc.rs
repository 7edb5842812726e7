//! TAFC's decisions against its released controller, written down once more.

mod common;
#[path = "common/signals.rs"]
mod signals;

use common::{BLOCKS, method, play, run};
use navicache_control::cache::{Measure, Quantity, Scope};
use signals::{branch_of, signal, wobble};

/// What a branch of TAFC measures at every step, were it computed.
struct TafcSignals {
    t: Vec<f64>,
    change: Vec<f64>,
    magnitude: Vec<f64>,
    norm: Vec<f64>,
    cosine: Vec<f64>,
    missed: Vec<f64>,
}

/// `TAFCBranch` and its controller (util_tafc.py, commit a8f01f2), on numbers in place of tensors. The count of cached
/// steps is that of steps since the last compute: the script for Wan counts them twice by mistake.
#[derive(Default)]
struct TafcBranch {
    previous: Option<usize>,
    velocity: Option<f64>,
    curvature: Option<f64>,
    prev_curvature: Option<f64>,
    curv_ref_step: Option<usize>,
    curvature_rate: f64,
    baseline_pre: Vec<f64>,
    baseline_post: Vec<f64>,
    log_gain: f64,
    integral: f64,
    prev_err: Option<f64>,
}

impl TafcBranch {
    fn median(values: &[f64]) -> Option<f64> {
        let mut sorted = values[values.len().saturating_sub(8)..].to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        (n > 0).then(|| 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]))
    }

    fn needs_calibration(&self) -> bool {
        self.baseline_pre.is_empty() || self.baseline_post.is_empty()
    }

    fn should_compute(&mut self, step: usize, u: f64, thresh: f64, s: &TafcSignals) -> bool {
        let curvature = self.curvature.unwrap_or(0.01);
        if self.curv_ref_step != self.previous {
            self.curvature_rate = match (self.prev_curvature, self.previous, self.curv_ref_step) {
                (Some(before), Some(now), Some(then)) => {
                    (curvature - before) / f64::max(before.abs(), 1e-6) / usize::max(1, now - then) as f64
                }
                _ => 0.0,
            };
            self.prev_curvature = Some(curvature);
            self.curv_ref_step = self.previous;
        }
        let brake = f64::max(0.3, 1.0 / (1.0 + 2.0 * f64::max(0.0, self.curvature_rate)));
        let gain = self.log_gain.exp();
        let (Some(velocity), Some(before)) = (self.velocity, self.previous) else { return true };
        let e_current = velocity * f64::abs(s.t[step] - s.t[before]) / s.magnitude[before];
        let lte = Self::median(&self.baseline_pre).is_some_and(|base| e_current > base * 3.0 * gain * brake);
        let cached = (step - before - 1) as f64;
        lte || curvature >= thresh * (0.7 + 1.3 * u) * gain * brake || cached >= 1.0 + 6.0 * u
    }

    fn observe(&mut self, step: usize, forced: bool, s: &TafcSignals) {
        if let Some(before) = self.previous {
            let h = f64::abs(s.t[step] - s.t[before]);
            if let Some(velocity) = self.velocity {
                let err_post = s.missed[step];
                if forced && step - before == 1 {
                    self.baseline_pre.push(velocity * h / s.magnitude[before]);
                    self.baseline_post.push(err_post);
                } else if step - before > 1
                    && let Some(base) = Self::median(&self.baseline_post)
                {
                    let err = f64::ln(2.5 * base / err_post);
                    let derivative = self.prev_err.map_or(0.0, |prev| err - prev);
                    let integral = self.integral + err;
                    let log_gain = self.log_gain + 0.4 * err + 0.05 * integral + 0.2 * derivative;
                    let clamped = log_gain.clamp(f64::ln(0.3), f64::ln(3.0));
                    if clamped == log_gain {
                        self.integral = integral.clamp(-2.0, 2.0);
                    }
                    (self.log_gain, self.prev_err) = (clamped, Some(err));
                }
            }
            self.velocity = Some(s.change[step] / h);
            let magnitude_change = f64::abs(s.norm[step] - s.norm[before]) / s.norm[before];
            self.curvature = Some(magnitude_change + 2.0 * (1.0 - s.cosine[step]));
        }
        self.previous = Some(step);
    }
}

#[test]
fn tafc_decides_as_released() {
    // tafc_generate.py for Wan2.1 (commit a8f01f2): a step is computed in both branches if it is forced in either, or
    // either wants to.
    const STEPS: usize = 50;
    let run = run(STEPS);
    let (mut reused, mut disagreed) = (0, 0);
    for (cache, ret_steps) in [("tafc:fast", 5), ("tafc:fast,warmup_steps=1", 1)] {
        for seed in 0..50 {
            let signals = [0, 1].map(|branch| {
                let wobble = |i, k| wobble(seed + 31 * branch as u32, i, k);
                let each = |f: &dyn Fn(usize) -> f64| (0..STEPS).map(f).collect::<Vec<_>>();
                TafcSignals {
                    t: each(&|i| run.steps[i].timestep.0),
                    change: each(&|i| signal(seed, i, branch, 0.3)),
                    magnitude: each(&|i| 2.0 + 0.1 * wobble(i, 0.4)),
                    norm: each(&|i| 20.0 + wobble(i, 0.7)),
                    cosine: each(&|i| 1.0 - 0.0004 * (1.0 + wobble(i, 1.9)) * i as f64),
                    missed: each(&|i| 0.05 + 0.04 * wobble(i, 2.9)),
                }
            });
            let mut measure = |i: usize, scope: Scope, q: Quantity| {
                let s = &signals[branch_of(scope)];
                match q.measure {
                    Measure::Magnitude => Some(s.magnitude[i]),
                    Measure::Norm => Some(s.norm[i]),
                    Measure::ChangeSinceCompute => (i > 0).then(|| s.change[i]),
                    Measure::CosineSinceCompute => (i > 0).then(|| s.cosine[i]),
                    Measure::LineError => (i > 1).then(|| s.missed[i]),
                    other => panic!("{other:?}"),
                }
            };
            let played = play(&method(cache), STEPS, &mut measure);

            let mut branches = [TafcBranch::default(), TafcBranch::default()];
            for i in 0..STEPS {
                let calibrating = i < 3 && branches.iter().any(TafcBranch::needs_calibration);
                let forced = i < ret_steps || i + 1 >= STEPS || calibrating;
                let mut compute = forced;
                if !forced {
                    let u = i as f64 / (STEPS - 1) as f64;
                    let cond = branches[0].should_compute(i, u, 0.15, &signals[0]);
                    let uncond = branches[1].should_compute(i, u, 0.15, &signals[1]);
                    disagreed += usize::from(cond != uncond);
                    compute = cond || uncond;
                }
                let units = if compute { 3 * BLOCKS } else { 0 };
                assert_eq!(played.units(i), [units; 2], "{cache} seed {seed} step {i}");
                reused += usize::from(!compute);
                for (branch, signals) in branches.iter_mut().zip(&signals).filter(|_| compute) {
                    branch.observe(i, forced, signals);
                }
            }
        }
    }
    assert!(reused > 500 && disagreed > 300, "{reused} reused, branches disagreed {disagreed} times");
}
