//! Steering a threshold so that a run computes as many steps as were asked for: the closed form of docs/targets.md.
//!
//! A [`Curve`] says what a kind of video computes from any step on, at every threshold. At each free step the threshold
//! is the one at which as much as is left would be computed, if this video went on being as hard as it has been:
//!
//! ```text
//! difficulty = (computed + 3) / (expected + 3)     of the free steps so far; near 1 at first
//! left       = budget - last steps - used
//! threshold:   what the curve computes from here on, times difficulty, is left
//! ```
//!
//! What the longest run of reuse will force is kept back. The threshold is bounded to a factor around the one that the
//! curve alone asks for, which grows while it is at the bound: then the curve is not of such videos. Forecasting the
//! rest of a run by simulation and planning again was tried and is worse: a budget that runs out falls on the last
//! steps, which are the longest.

use std::ops::Range;

use super::curve::{Curve, Row};

/// How far the threshold may go from that of the curve.
const CLAMP: f64 = 4.0;
/// The same where the curve was measured on another family.
const CLAMP_OF_OTHERS: f64 = 100.0;
/// What the bound grows by at every step that the threshold is at it.
const CLAMP_GROWS: f64 = 1.5;
/// So many steps of evidence that a video is like those of the curve.
const PRIOR: f64 = 3.0;
/// Longest run of reuse: so many times the mean distance of computed steps.
const LONGEST: f64 = 3.0;
/// Steps at the start that are computed with any target: those that a clock is read at, and that triggers learn from.
pub const FIRST_STEPS: usize = 3;
/// So many steps of the budget may go into those at the start.
const FIRST_SHARE: f64 = 0.25;

/// A run's budget, and what a threshold follows from.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// What the curve computes at every step of this run, by threshold.
    table: Vec<(f64, Vec<f64>)>,
    /// Steps that are decided on: from the first that was asked about.
    free: Range<usize>,
    steps: usize,
    /// The share of a step that runs whatever is reused.
    fixed: f64,
    /// Steps to be computed, those at both ends too, in equivalents of whole steps; each from a step on.
    budgets: Vec<(usize, f64)>,
    clamp: f64,
    /// What alarms have made of the threshold.
    factor: f64,
    /// What the curve computed in the free steps so far, at the thresholds that were in force.
    expected: f64,
    /// The last step with a threshold, what had been used before it, and the threshold.
    before: Option<(usize, f64, f64)>,
    /// Steps that were reused since something was computed.
    run: usize,
}

impl Steering {
    /// For a run of these noise levels.
    ///
    /// * `last` - so many steps at the end are computed
    /// * `fixed` - the share of a step that runs whatever is reused
    pub fn new(curve: &Curve, family: &str, sigmas: &[f64], last: usize, fixed: f64) -> Steering {
        Steering {
            table: shares(curve, sigmas),
            free: 0..sigmas.len().saturating_sub(last),
            steps: sigmas.len(),
            fixed,
            budgets: Vec::new(),
            clamp: if curve.family == family { CLAMP } else { CLAMP_OF_OTHERS },
            factor: 1.0,
            expected: 0.0,
            before: None,
            run: 0,
        }
    }

    /// So many steps are to be computed; said at a step, it holds from there on.
    pub fn set_budget(&mut self, from: usize, budget: f64) {
        self.budgets.retain(|(step, _)| *step < from);
        self.budgets.push((from, budget));
    }

    /// The budgets so far, each from a step on.
    pub fn budgets(&self) -> &[(usize, f64)] {
        &self.budgets
    }

    /// The budget that is in force at a step: everything, until it is told.
    pub fn budget_at(&self, step: usize) -> f64 {
        let told = self.budgets.iter().rev().find(|(from, _)| *from <= step);
        told.map_or(self.steps as f64, |(_, budget)| *budget)
    }

    /// The alarm was raised: thresholds are so many times those that the budget asks for.
    pub fn scale(&mut self, factor: f64) {
        self.factor *= factor;
    }

    /// The threshold of a step, when so much was used before it, in steps computed in full. 0 computes the step,
    /// infinity reuses it. Called in order; steps in between were computed without a question.
    ///
    /// * `longest` - the longest run of reuse that there may be
    pub fn threshold(&mut self, step: usize, used: f64, longest: usize) -> f64 {
        match self.before {
            None => self.free.start = step,
            Some((before, used_before, threshold)) => {
                self.run = if before + 1 == step && used - used_before < 0.25 { self.run + 1 } else { 0 };
                let forced = threshold == 0.0 || threshold.is_infinite();
                let of_curve = || (before..step).map(|step| self.share(step, threshold)).sum::<f64>();
                self.expected += if forced { used - used_before } else { of_curve() };
            }
        }
        let threshold = self.wanted(step, used, self.expected, longest);
        self.before = Some((step, used, threshold));
        threshold
    }

    /// The closed form.
    fn wanted(&mut self, step: usize, used: f64, expected: f64, longest: usize) -> f64 {
        let budget = in_full(self.budget_at(step), self.steps, self.fixed);
        let left = budget - (self.steps - self.free.end) as f64 - used;
        let steps_left = self.free.end.saturating_sub(step) as f64;
        let forced = (self.free.end.saturating_sub(step) + self.run) / longest.saturating_add(1);
        if left < forced as f64 + 0.5 {
            return f64::INFINITY;
        }
        if left > steps_left - 0.5 {
            return 0.0;
        }
        let first = self.free.start as f64;
        let difficulty = ((used - first).max(0.0) + PRIOR) / (expected + PRIOR);
        let usual = self.usual(budget);
        let wanted = self.at_which(step, left / difficulty);
        let bounded = wanted.clamp(usual / self.clamp, usual * self.clamp);
        if bounded != wanted {
            self.clamp *= CLAMP_GROWS;
        }
        bounded * self.factor
    }

    /// The threshold at which the curve alone computes the budget.
    fn usual(&self, budget: f64) -> f64 {
        let ends = self.free.start + (self.steps - self.free.end);
        self.at_which(self.free.start, (budget - ends as f64).max(0.1))
    }

    fn share(&self, step: usize, threshold: f64) -> f64 {
        share(&self.table, step, threshold)
    }

    /// The threshold at which the curve computes so many of the free steps from one on: on lines between logarithms,
    /// and on the last of these lines beyond both ends.
    fn at_which(&self, step: usize, count: f64) -> f64 {
        const LEAST: f64 = 0.02; // a row that computes nothing more has no logarithm
        let mut rest: Vec<(f64, f64)> = Vec::with_capacity(self.table.len());
        for (threshold, shares) in &self.table {
            let sum: f64 = shares[step.min(self.free.end)..self.free.end].iter().sum();
            // A larger threshold never computes more; where videos differ so that it seems to, the smaller one stands.
            let sum = rest.last().map_or(sum, |(_, before)| sum.min(before.exp())).max(LEAST);
            rest.push((threshold.ln(), sum.ln()));
        }
        // Of equal counts one will do: the smallest threshold where all is computed, the largest where none is.
        rest.dedup_by(|b, a| (a.1 - b.1).abs() < 1e-9);
        let [first, .., last] = rest[..] else { return rest.first().map_or(f64::NAN, |only| only.0.exp()) };
        let wanted = count.max(LEAST).ln();
        let pair = match rest.windows(2).find(|pair| pair[1].1 <= wanted) {
            Some(pair) => (pair[0], pair[1]),
            None => (rest[rest.len() - 2], last),
        };
        let pair = if wanted > first.1 { (first, rest[1]) } else { pair };
        let ((t0, r0), (t1, r1)) = pair;
        (t0 + (t1 - t0) * (wanted - r0) / (r1 - r0)).exp()
    }
}

/// What a curve computes at every step of a run, by threshold.
fn shares(curve: &Curve, sigmas: &[f64]) -> Vec<(f64, Vec<f64>)> {
    let of_row = |row: &Row| {
        let next = sigmas.iter().skip(1).copied().chain([0.0]);
        let steps = sigmas.iter().zip(next);
        steps.map(|(&from, to)| curve.between(row, from, to).clamp(0.0, 1.0)).collect()
    };
    curve.thresholds.iter().map(|row| (row.threshold, of_row(row))).collect()
}

/// What a table computes of a step at a threshold, on lines over its logarithm.
fn share(table: &[(f64, Vec<f64>)], step: usize, threshold: f64) -> f64 {
    let after = table.partition_point(|(t, _)| *t < threshold);
    let at = |row: usize| table[row].1[step];
    if after == 0 {
        return at(0);
    }
    if after == table.len() {
        return at(after - 1);
    }
    let (low, high) = (table[after - 1].0.ln(), table[after].0.ln());
    at(after - 1) + (at(after) - at(after - 1)) * (threshold.ln() - low) / (high - low)
}

/// Reused steps that a curve says are usual before each step, at a threshold.
///
/// * `free` - the steps that are decided on
pub fn usual_reuse(curve: &Curve, sigmas: &[f64], free: Range<usize>, threshold: f64) -> Vec<f64> {
    let table = shares(curve, sigmas);
    let reused = |step: usize| if free.contains(&step) { 1.0 - share(&table, step, threshold) } else { 0.0 };
    let sums = (0..sigmas.len()).scan(0.0, |sum, step| {
        let before = *sum;
        *sum += reused(step);
        Some(before)
    });
    sums.collect()
}

/// Steps computed in full that a budget of equivalents leaves, where a share of every step runs in any case.
fn in_full(budget: f64, steps: usize, fixed: f64) -> f64 {
    ((budget - fixed * steps as f64) / (1.0 - fixed).max(f64::EPSILON)).round()
}

/// The budget that can be met exactly and is nearest to one.
pub fn nearest(budget: f64, steps: usize, fixed: f64) -> f64 {
    in_full(budget, steps, fixed) * (1.0 - fixed) + fixed * steps as f64
}

/// The steps at the start that are computed with a budget, where a method asks for `usual`.
pub fn first_steps(usual: usize, budget: f64) -> usize {
    usual.min(((FIRST_SHARE * budget).round() as usize).max(FIRST_STEPS)).max(FIRST_STEPS)
}

/// The longest run of reuse with a budget, where a method asks for `usual`.
pub fn longest_run(usual: usize, steps: usize, budget: f64) -> usize {
    usual.max((LONGEST * steps as f64 / budget.max(1.0)).ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::super::curve::{About, VERSION};
    use super::*;
    use serde_json::Map;

    /// Of ten steps, the first and the last of which are computed: all eight free ones at 0.01, four at 0.1, one at 1.
    fn steering(budget: f64) -> Steering {
        let sigmas: Vec<f64> = (0..10).map(|i| 1.0 - i as f64 / 10.0).collect();
        let free = |share: f64| (0..10).map(|i| if i == 0 || i == 9 { 1.0 } else { share }).collect::<Vec<f64>>();
        let about = About { method: "m".to_string(), options: Map::new(), family: "f".to_string() };
        let rows = [(0.01, vec![free(1.0)]), (0.1, vec![free(0.5)]), (1.0, vec![free(0.125)])];
        let curve = Curve::mean(about, &sigmas, &rows).unwrap();
        assert_eq!(curve.curve, VERSION);
        let mut steering = Steering::new(&curve, "f", &sigmas, 1, 0.0);
        steering.free.start = 1;
        steering.set_budget(0, budget);
        steering
    }

    #[test]
    fn the_closed_form() {
        // budget, step, used before it, expected of the free steps before it: the threshold
        let table = [
            (6.0, 1, 1.0, 0.0, 0.1),           // four of eight: the curve's own
            (3.0, 1, 1.0, 0.0, 1.0),           // one of eight
            (6.0, 5, 3.0, 2.0, 0.1),           // half way, as expected
            (6.0, 5, 4.0, 2.0, 0.4),           // one more than expected: 0.43, and bounded
            (6.0, 5, 2.0, 2.0, 0.025),         // one less: 0.012, and bounded
            (6.0, 5, 5.0, 2.0, f64::INFINITY), // nothing is left
            (6.0, 8, 4.0, 3.5, 0.0),           // one step, and one is left
            (6.0, 5, 1.0, 2.0, 0.0),           // as many as there are steps
            (4.0, 1, 1.0, 0.0, 0.316228),      // two: half way between four and one
            (4.0, 5, 2.0, 2.0, 0.218291),      // one of the other four, 0.8 as hard: as 1.25 of them
        ];
        for (budget, step, used, expected, threshold) in table {
            let found = steering(budget).wanted(step, used, expected, 99);
            let close = found == threshold || (found / threshold - 1.0).abs() < 0.02;
            assert!(close, "budget {budget}, step {step}, used {used}: {found}, expected {threshold}");
        }
    }

    #[test]
    fn more_left_is_a_smaller_threshold() {
        let wanted = |i: usize| steering(6.0).wanted(3, 1.0 + i as f64 / 8.0, 1.0, 99);
        let thresholds: Vec<f64> = (0..40).map(wanted).collect();
        assert!(thresholds.windows(2).all(|pair| pair[0] <= pair[1]), "{thresholds:?}");
        assert!(thresholds.first() < thresholds.last());
    }

    #[test]
    fn it_stays_near_the_curve() {
        for (used, expected) in [(1.5, 3.0), (4.4, 0.0), (3.0, 0.0)] {
            let threshold = steering(6.0).wanted(5, used, expected, 99);
            let near = threshold == 0.0 || (0.1 / CLAMP - 1e-9..=0.1 * CLAMP + 1e-9).contains(&threshold);
            assert!(near, "{threshold}");
        }
    }

    #[test]
    fn the_bound_gives_way_where_the_curve_is_of_other_videos() {
        let mut steering = steering(6.0);
        let mut wanted = || steering.wanted(5, 4.4, 0.0, 99); // far more than expected: 0.6 is left
        let (first, second) = (wanted(), wanted());
        assert!((first - 0.1 * CLAMP).abs() < 1e-9 && (second / first - CLAMP_GROWS).abs() < 1e-9, "{first} {second}");
    }

    #[test]
    fn what_the_longest_run_forces_is_kept_back() {
        // Of six steps that are left, runs of two at most force two: with two left nothing is free, with three one is.
        assert_eq!(steering(6.0).wanted(3, 3.0, 0.0, 2), f64::INFINITY);
        assert!(steering(6.0).wanted(3, 2.0, 0.0, 2).is_finite());
    }

    #[test]
    fn a_later_budget_takes_over_where_it_begins() {
        let mut changed = steering(6.0);
        changed.set_budget(4, 3.0);
        let mut same = steering(6.0);
        assert_eq!(changed.threshold(3, 2.0, 99), same.threshold(3, 2.0, 99));
        assert!(changed.threshold(4, 2.0, 99) > same.threshold(4, 2.0, 99));
    }

    #[test]
    fn what_runs_in_any_case_is_no_choice() {
        assert_eq!([in_full(5.0, 10, 0.0), in_full(5.0, 10, 0.25), in_full(2.0, 10, 0.25)], [5.0, 3.0, -1.0]);
        assert_eq!(nearest(5.0, 10, 0.25), 4.75);
        let sigmas: Vec<f64> = (0..10).map(|i| 1.0 - i as f64 / 10.0).collect();
        let about = About { method: "m".to_string(), options: Map::new(), family: "f".to_string() };
        let rows = [(0.1, vec![vec![1.0; 10]]), (1.0, vec![vec![0.5; 10]])];
        let curve = Curve::mean(about, &sigmas, &rows).unwrap();
        let usual = usual_reuse(&curve, &sigmas, 2..9, 1.0);
        assert_eq!((usual[2], usual[4], usual[9]), (0.0, 1.0, 3.5));
    }

    #[test]
    fn ends() {
        assert_eq!(
            [first_steps(6, 25.0), first_steps(10, 13.0), first_steps(1, 25.0), first_steps(6, 4.0)],
            [6, 3, 3, 3]
        );
        assert_eq!([longest_run(5, 50, 25.0), longest_run(4, 50, 13.0)], [6, 12]);
    }
}
