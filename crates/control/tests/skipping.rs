//! What it means to leave steps to the solver, on a scalar model whose full run is known.

use std::collections::BTreeMap;

use navicache_control::solver::skipping::{Keeps, Skip, Stepper};
use navicache_control::solver::{Linear, SolverKind};
use proptest::prelude::*;

/// Numbers add themselves up.
struct Numbers;

impl Linear for Numbers {
    type Value = f64;
    type Error = std::convert::Infallible;

    fn noise(&mut self, step: usize) -> Result<f64, Self::Error> {
        Ok((7.0 * step as f64).sin())
    }

    fn sum(&mut self, terms: &[(f64, &f64)]) -> Result<f64, Self::Error> {
        Ok(terms.iter().map(|(weight, value)| weight * **value).sum())
    }
}

fn keeps(skip: Skip) -> Keeps {
    if skip == Skip::Corrected { Keeps::WhatCorrects } else { Keeps::Velocities }
}

/// Solvers that steps can be left to.
fn solvers() -> impl Iterator<Item = SolverKind> {
    SolverKind::ALL.iter().copied().filter(|solver| !solver.adds_noise())
}

/// A curved velocity field.
fn velocity(x: f64, sigma: f64) -> f64 {
    (1.3 * x).tanh() * (0.5 + sigma) - 0.2 * x + (3.0 * sigma).sin()
}

/// A run of which some steps are left to the solver: the final sample, and the errors that it found, by step.
fn run(kind: SolverKind, steps: usize, skip: Skip, is_skipped: impl Fn(usize) -> bool) -> (f64, BTreeMap<usize, f64>) {
    let schedule = kind.schedule(steps, 3.0, 1000).unwrap();
    let mut stepper = Stepper::new(kind, schedule.clone(), keeps(skip));
    let (mut x, mut errors) = (0.8, BTreeMap::new());
    for (step, at) in schedule.steps.iter().enumerate() {
        let next = if is_skipped(step) {
            stepper.skip(step, skip, &mut Numbers).unwrap()
        } else {
            stepper.arrive(step, &x, &velocity(x, at.sigma.0), &mut Numbers).unwrap();
            errors.extend(stepper.error(&x, &mut Numbers).unwrap().map(|error| (step, error.abs())));
            stepper.leave(step, &mut Numbers).unwrap()
        };
        x = next.unwrap();
    }
    (x, errors)
}

/// Every `stride`-th step is computed, the first four, and the last third, where a solver of low order has large errors
/// of its own.
fn every(stride: usize, steps: usize) -> impl Fn(usize) -> bool {
    move |step| step > 3 && step < steps * 2 / 3 && step % stride != 0
}

#[test]
fn skipping_nothing_is_the_plain_run() {
    for &kind in SolverKind::ALL {
        let [over, corrected] = [Skip::Over, Skip::Corrected].map(|skip| run(kind, 30, skip, |_| false).0);
        assert_eq!(over, corrected, "{kind}");
    }
}

#[test]
fn correcting_is_of_a_higher_order_than_holding() {
    // Four times as fine a grid: the error of what is held falls four times, that of what is corrected ten times and
    // more.
    for kind in solvers() {
        let error = |steps: usize| {
            let full = run(kind, steps, Skip::Corrected, |_| false).0;
            (run(kind, steps, Skip::Corrected, every(3, steps)).0 - full).abs()
        };
        let (coarse, fine) = (error(30), error(120));
        assert!(fine < coarse / 10.0, "{kind}: {coarse:e} {fine:e}");
    }
}

#[test]
fn velocities_on_a_cubic_are_walked_as_if_computed() {
    let cubic = |sigma: f64| ((0.7 * sigma - 1.1) * sigma + 0.4) * sigma - 0.3;
    for kind in solvers().filter(|solver| !solver.steps_over()) {
        let schedule = kind.schedule(30, 3.0, 1000).unwrap();
        let walked = |is_skipped: &dyn Fn(usize) -> bool| {
            let mut stepper = Stepper::new(kind, schedule.clone(), Keeps::WhatCorrects);
            let (mut x, mut corrected) = (0.8, None);
            for (step, at) in schedule.steps.iter().enumerate().take(13) {
                let next = if is_skipped(step) {
                    stepper.skip(step, Skip::Corrected, &mut Numbers).unwrap()
                } else {
                    let found = stepper.arrive(step, &x, &cubic(at.sigma.0), &mut Numbers).unwrap();
                    corrected = found.or(Some(x));
                    stepper.leave(step, &mut Numbers).unwrap()
                };
                x = next.unwrap();
            }
            corrected.unwrap()
        };
        let (full, corrected) = (walked(&|_| false), walked(&|step| (8..12).contains(&step)));
        assert!((corrected - full).abs() < 1e-12, "{kind}: {corrected} {full}");
    }
}

#[test]
fn stepping_over_is_close_for_solvers_of_second_order() {
    for (kind, most) in [(SolverKind::UniPc, 2e-3), (SolverKind::DpmPp2M, 2e-2)] {
        let full = run(kind, 60, Skip::Over, |_| false).0;
        let error = (run(kind, 60, Skip::Over, every(3, 60)).0 - full).abs();
        assert!(error < most, "{kind}: {error:e}");
    }
}

#[test]
fn the_error_that_is_found_grows_with_the_third_power_of_the_stride() {
    for kind in solvers() {
        let found =
            |stride: usize| run(kind, 100, Skip::Corrected, |step| step > 40 && step < 40 + stride).1[&(40 + stride)];
        let (short, long) = (found(3), found(6));
        // Twice the stride: 4 times would be the second power, which a forecast of first order has.
        assert!((6.0..14.0).contains(&(long / short)), "{kind}: {short:e} {long:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_kept_walk_goes_on_as_if_nothing_had_happened(mask in prop::collection::vec(any::<bool>(), 30), cut in 1usize..29) {
        for &kind in SolverKind::ALL {
            for skip in [Skip::Over, Skip::Corrected] {
                let schedule = kind.schedule(30, 3.0, 1000).unwrap();
                let walk = |mut stepper: Stepper<f64>, mut x: f64, from: usize| {
                    let mut kept = None;
                    for (step, at) in schedule.steps.iter().enumerate().skip(from) {
                        if step == cut {
                            kept = Some((stepper.clone(), x));
                        }
                        let next = if mask[step] && step > 0 {
                            stepper.skip(step, skip, &mut Numbers).unwrap()
                        } else {
                            stepper.arrive(step, &x, &velocity(x, at.sigma.0), &mut Numbers).unwrap();
                            stepper.leave(step, &mut Numbers).unwrap()
                        };
                        x = next.unwrap();
                        assert!(x.is_finite());
                    }
                    (x, kept)
                };
                let (x, kept) = walk(Stepper::new(kind, schedule.clone(), keeps(skip)), 0.8, 0);
                let (stepper, at) = kept.unwrap();
                prop_assert_eq!(walk(stepper, at, cut).0.to_bits(), x.to_bits());
            }
        }
    }
}
