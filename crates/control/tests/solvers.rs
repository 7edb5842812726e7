//! Schedules and solvers against the reference implementations, and the laws of their coefficients.

use std::collections::BTreeMap;

use navicache_control::schedule::{Schedule, Sigma, Step, Timestep};
use navicache_control::solver::{Combination, SolverKind, plan};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    solver: SolverKind,
    steps: usize,
    shift: f64,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    start: Vec<f64>,
    samples: BTreeMap<usize, Vec<f64>>,
}

fn combine(c: &Combination, sample: f64, data: &[f64]) -> f64 {
    c.sample * sample + c.data.iter().zip(data).map(|(c, m)| c * m).sum::<f64>()
}

/// Runs a scalar model and returns the sample after every step.
fn run(kind: SolverKind, schedule: &Schedule, start: f64, velocity: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let (mut x, mut last, mut data) = (start, None, Vec::new());
    let mut samples = Vec::new();
    for (step, plan) in schedule.steps.iter().zip(plan(kind, schedule)) {
        data.insert(0, plan.to_data.sample * x + plan.to_data.velocity * velocity(x, step.sigma.0));
        let sample = match (plan.correct, last) {
            (Some(c), Some(last)) => combine(&c, last, &data),
            _ => x,
        };
        x = combine(&plan.advance, sample, &data);
        last = Some(sample);
        samples.push(x);
    }
    samples
}

#[test]
fn schedules_and_trajectories_equal_the_reference() {
    let golden: Golden = serde_json::from_str(include_str!("golden/solvers.json")).unwrap();
    let mut worst = BTreeMap::new();
    for case in &golden.cases {
        let schedule = case.solver.schedule(case.steps, case.shift, 1000).unwrap();
        let name = format!("{} {} steps shift {}", case.solver, case.steps, case.shift);
        for (i, step) in schedule.steps.iter().enumerate() {
            assert_eq!(step.timestep.0, case.timesteps[i], "{name}: timestep {i}");
            assert_eq!(step.sigma.0, case.sigmas[i], "{name}: sigma {i}");
        }
        let runs: Vec<Vec<f64>> = (case.start.iter())
            .map(|&x| run(case.solver, &schedule, x, |x, sigma| (1.3 * x).tanh() * (0.5 + sigma) - 0.2 * x))
            .collect();
        for (step, expected) in &case.samples {
            let norm = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
            let difference = runs.iter().zip(expected).map(|(r, e)| (r[*step] - e).powi(2)).sum::<f64>().sqrt();
            let worst: &mut f64 = worst.entry(case.solver.to_string()).or_default();
            *worst = worst.max(difference / norm);
            assert!(difference / norm < 2e-5, "{name}: step {step} is off by {}", difference / norm);
        }
    }
    println!("largest relative error: {worst:?}");
    assert_eq!(golden.cases.len(), 39);
}

/// The error on `dx/dsigma = x` after so many steps of equal length in the log signal-to-noise ratio, away from both
/// ends, where that ratio has no limit.
fn error(kind: SolverKind, steps: usize) -> f64 {
    let sigma = |i: usize| 1.0 / (1.0 + (6.0 * i as f64 / steps as f64 - 3.0).exp());
    let step = |i| Step { timestep: Timestep(1000.0 * sigma(i)), sigma: Sigma(sigma(i)) };
    let schedule = Schedule::of((0..=steps).map(step).collect());
    let samples = run(kind, &schedule, sigma(0).exp(), |x, _| x);
    (samples[steps - 1] - sigma(steps).exp()).abs()
}

#[test]
fn errors_fall_with_the_order_of_the_solver() {
    for (kind, fall) in
        [(SolverKind::Euler, 1.9), (SolverKind::Ddim, 1.9), (SolverKind::DpmPp2M, 3.0), (SolverKind::UniPc, 3.0)]
    {
        let ratio = error(kind, 20) / error(kind, 40);
        assert!(ratio > fall, "{kind}: twice the steps made the error {ratio:.2} times smaller");
    }
}

proptest! {
    #[test]
    fn coefficients_are_finite_and_keep_a_constant(steps in 1usize..=1000, shift in 0.1f64..20.0, m in -2.0f64..2.0) {
        for &kind in SolverKind::ALL {
            let schedule = kind.schedule(steps, shift, 1000).unwrap();
            for (i, plan) in plan(kind, &schedule).iter().enumerate() {
                // While every prediction is m, the flow is the straight line from noise to m; noise that is added
                // keeps the variance of what was there.
                let noise = if kind.adds_noise() { 0.0 } else { 0.7 };
                let line = |sigma: f64| (1.0 - sigma) * m + sigma * noise;
                let (now, next) = (schedule.steps[i].sigma.0, schedule.end(i).map_or(0.0, |end| end.sigma));
                let variance = (plan.advance.sample * now).powi(2) + plan.advance.noise.powi(2);
                prop_assert!(!kind.adds_noise() || (variance - next * next).abs() < 1e-9, "{kind} {steps} {shift} step {i}");
                let advanced = combine(&plan.advance, line(now), &[m; 3]);
                prop_assert!((advanced - line(next)).abs() < 1e-9, "{kind} {steps} {shift} step {i}: {plan:?}");
                if let Some(correct) = plan.correct {
                    let corrected = combine(&correct, line(schedule.steps[i - 1].sigma.0), &[m; 3]);
                    prop_assert!((corrected - line(now)).abs() < 1e-9, "{kind} {steps} {shift} step {i}: {plan:?}");
                }
            }
        }
    }
}
