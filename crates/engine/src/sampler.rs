//! The sampling loop: ask the policy, compute or make up, combine the branches, advance the solver.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use navicache_control::cache::{At, Decision, Guarded, Policy};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Schedule;
use navicache_control::solver::{Combination, StepPlan};
use navicache_control::strip::{Ran, Strip};
use navicache_models::Denoiser;

use crate::measure::{Meter, is_finite};
use crate::report::{BranchReport, StepReport, by_name};
use crate::store::Store;
use crate::{Error, Result};

/// A branch of every step: its conditioning, and the weight of its prediction.
pub(crate) struct BranchInput<C> {
    pub branch: Branch,
    pub weight: f64,
    pub cond: C,
}

/// What a run left.
pub(crate) struct Sampled {
    /// The final latents. // (1, channels, latent frames, height, width)
    pub latents: Tensor,
    pub strip: Strip,
    pub steps: Vec<StepReport>,
    pub store_bytes: u64,
}

/// What is told of a finished step.
pub(crate) struct StepDone<'a> {
    pub index: usize,
    pub seconds: f64,
    pub strip: &'a Strip,
}

/// Denoises `latents` along the schedule.
///
/// The policy lives for this call only. Its decision covers every branch of a step; it observes the first branch, which is the
/// conditional one. A decision is on record before it is carried out.
pub(crate) fn sample<D: Denoiser>(
    denoiser: &D,
    branches: &[BranchInput<D::Cond>],
    mut latents: Tensor,
    schedule: &Schedule,
    solver: &[StepPlan],
    mut policy: Guarded,
    on_step: &mut dyn FnMut(StepDone) -> ControlFlow<()>,
) -> Result<Sampled> {
    let asks = policy.asks();
    let mut store = Store::new(asks.to_reuse.clone());
    let store_bytes = store.bytes(branches.len(), &latents);
    let mut meter = Meter::new(asks);
    let mut history = History::default();
    let mut strip = Strip::default();
    let mut steps = Vec::with_capacity(schedule.steps.len());

    for (index, (step, plan)) in schedule.steps.iter().zip(solver).enumerate() {
        let begun = Instant::now();
        // 1. Decide
        let mut seen = meter.before(&latents)?;
        let decision = policy.decide(At { step: index }, &seen);
        let ran = match decision {
            Decision::Compute => Ran::Computed,
            Decision::Reuse(_) => Ran::Reused,
        };
        strip.push(vec![ran; branches.len()]);

        // 2. Predict the velocity of every branch
        let mut velocity = None;
        let mut reports = BTreeMap::new();
        for (position, BranchInput { branch, weight, cond }) in branches.iter().enumerate() {
            let branch_begun = Instant::now();
            let output = match decision {
                Decision::Compute => {
                    let output = denoiser.forward(&latents, step.timestep.0, cond)?;
                    store.keep(*branch, step.sigma, &latents, &output)?;
                    output
                }
                Decision::Reuse(approx) => {
                    store.make_up(*branch, approx, step.sigma, &latents)?.ok_or_else(|| nothing_kept(index, *branch))?
                }
            };
            let seconds = branch_begun.elapsed().as_secs_f64();
            if position == 0 && decision == Decision::Compute {
                let learned = meter.after(&latents, &output)?;
                policy.computed(At { step: index }, &learned);
                seen.extend(learned.iter());
            }
            let seen = if position == 0 { by_name(&seen) } else { BTreeMap::new() };
            reports.insert(branch.name(), BranchReport { decision: ran.name(), seconds, seen });
            let weighted = if *weight == 1.0 { output } else { (output * *weight)? };
            velocity = Some(match velocity {
                None => weighted,
                Some(sum) => (sum + weighted)?,
            });
        }
        let Some(velocity) = velocity else { break };

        // 3. Advance
        latents = history.advance(plan, &latents, &velocity)?;
        if !is_finite(&latents)? {
            return Err(Error::NotFinite { step: index + 1, steps: schedule.steps.len() });
        }

        let seconds = begun.elapsed().as_secs_f64();
        let (timestep, sigma) = (step.timestep.0, step.sigma.0);
        steps.push(StepReport { index, timestep, sigma, seconds, branches: reports });
        if on_step(StepDone { index, seconds, strip: &strip }).is_break() {
            return Err(Error::Cancelled { step: index + 1, steps: schedule.steps.len() });
        }
    }
    Ok(Sampled { latents, strip, steps, store_bytes })
}

fn nothing_kept(step: usize, branch: Branch) -> Error {
    Error::Request {
        what: "cache policy",
        found: format!("reuses branch {} at step {step}", branch.name()),
        expected: "nothing was kept in that form; a policy may reuse only what it asks to keep".to_string(),
    }
}

/// What a multistep solver remembers.
#[derive(Default)]
struct History {
    /// The sample that the last step started from, after its correction.
    sample: Option<Tensor>,
    /// Data predictions, newest first.
    data: VecDeque<Tensor>,
}

impl History {
    /// From the latents `x` that the model saw and its `velocity` to the next latents.
    fn advance(&mut self, plan: &StepPlan, x: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        let data = (x.affine(plan.to_data.sample, 0.0)? + velocity.affine(plan.to_data.velocity, 0.0)?)?;
        self.data.push_front(data);
        self.data.truncate(navicache_control::solver::HISTORY);
        let sample = match (&plan.correct, &self.sample) {
            (Some(correction), Some(last)) => self.combine(correction, last)?,
            _ => x.clone(),
        };
        let next = self.combine(&plan.advance, &sample)?;
        self.sample = Some(sample);
        Ok(next)
    }

    fn combine(&self, combination: &Combination, sample: &Tensor) -> Result<Tensor> {
        let mut sum = sample.affine(combination.sample, 0.0)?;
        for (data, &coefficient) in self.data.iter().zip(&combination.data) {
            if coefficient != 0.0 {
                sum = (sum + data.affine(coefficient, 0.0)?)?;
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use navicache_control::cache::{CacheSpec, Run};
    use navicache_control::solver::{self, SolverKind};
    use navicache_models::{Features, Part, Unit};

    use super::*;

    /// The smallest denoiser: it adds a constant to what it sees, 10 for one branch and 20 for the other.
    struct AddConstant([Unit; 1], std::cell::Cell<usize>);

    impl AddConstant {
        fn new() -> Self {
            AddConstant([Unit { block: 0, part: Part::Whole }], std::cell::Cell::new(0))
        }
    }

    impl Denoiser for AddConstant {
        type Cond = f64;
        type State = Tensor;

        fn units(&self) -> &[Unit] {
            &self.0
        }

        fn begin(&self, latents: &Tensor, _: f64, constant: &f64) -> navicache_models::Result<Tensor> {
            self.1.set(self.1.get() + 1);
            Ok((latents + *constant)?)
        }

        fn run_unit(&self, _: usize, _: &mut Tensor) -> navicache_models::Result<()> {
            Ok(())
        }

        fn finish(&self, state: Tensor) -> navicache_models::Result<Tensor> {
            Ok(state)
        }

        fn features(&self, state: &Tensor) -> Features {
            Features { video: state.clone(), text: None }
        }

        fn set_features(&self, state: &mut Tensor, to: Features) {
            *state = to.video;
        }
    }

    fn run(cache: &str, steps: usize) -> (Sampled, usize) {
        let denoiser = AddConstant::new();
        let branches = [(Branch::Cond, 3.0, 10.0), (Branch::Uncond, -2.0, 20.0)]
            .map(|(branch, weight, cond)| BranchInput { branch, weight, cond });
        let latents = Tensor::new(&[[0.5f32, -1.0]], &Device::Cpu).unwrap();
        let schedule = SolverKind::Euler.schedule(steps, 3.0, 1000).unwrap();
        let plans = solver::plan(SolverKind::Euler, &schedule);
        let control_run = Run { steps, branches: vec![Branch::Cond, Branch::Uncond] };
        let policy = cache.parse::<CacheSpec>().unwrap().resolve("wan").unwrap().method().start(&control_run);
        let go_on = &mut |_: StepDone| ControlFlow::Continue(());
        let sampled = sample(&denoiser, &branches, latents, &schedule, &plans, policy, go_on).unwrap();
        let calls = denoiser.1.get();
        (sampled, calls)
    }

    #[test]
    fn each_branch_reuses_its_own_residual() {
        // The residuals of this denoiser are exactly 10 and 20, so that a reused step equals a computed one if and only if each
        // branch gets its own back.
        let (plain, calls) = run("none", 8);
        assert_eq!((plain.strip.to_string(), calls), ("SS|".repeat(8), 16));
        let (cached, calls) = run("navicache,threshold=100,align_steps=2", 8);
        assert_eq!((cached.strip.to_string().as_str(), calls), ("SS|SS|..|..|..|..|..|SS|", 6));
        let difference = (&plain.latents - &cached.latents).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-4);
    }

    #[test]
    fn threshold_zero_is_the_uncached_run() {
        let values = |s: Sampled| s.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let plain = values(run("none", 20).0);
        for cache in ["navicache,threshold=0,align_steps=0", "easycache,threshold=0,warmup_steps=0"] {
            assert_eq!(values(run(cache, 20).0), plain, "{cache}");
        }
    }

    #[test]
    fn what_was_seen_is_reported() {
        let (sampled, _) = run("navicache,threshold=100,align_steps=2", 4);
        let seen =
            |step: usize, branch: &str| sampled.steps[step].branches[branch].seen.keys().copied().collect::<Vec<_>>();
        assert_eq!(seen(0, "cond"), ["output_magnitude"]);
        assert_eq!(seen(2, "cond"), ["input_change_since_visit"]);
        assert_eq!(seen(3, "cond").len(), 4);
        assert!(seen(3, "uncond").is_empty());
        assert_eq!(sampled.store_bytes, 2 * 2 * 4, "a residual of two f32 for each branch");
    }
}
