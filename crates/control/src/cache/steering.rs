//! Steering a threshold so that a run computes as many steps as were asked for: the closed form of docs/targets.md.
//!
//! A [`Curve`] says what a kind of video computes from any step on, at every threshold. At each free step the threshold
//! is the one at which as much as is left would be computed, if this video went on being as hard as it has been:
//!
//! ```text
//! difficulty = (computed + 10) / (expected + 10)   of the free steps so far; near 1 at first
//! left       = budget - last steps - used
//! threshold:   what the curve computes from here on, times difficulty, is left
//! ```
//!
//! The first steps decide what a video shows, so that an error there costs more than any later one. The threshold
//! therefore begins as the one that the curve alone asks for, and may go further from it the further the run is; a
//! video that spends far more than others at first is held to their pace. What the longest run of reuse will force is
//! kept back, and so are the last steps, which are the longest, where videos compute them in any case. Forecasting the
//! rest of a run by simulation and planning again was tried and is worse: a budget that runs out falls on the last
//! steps.

use std::ops::Range;

use super::curve::{Curve, Row};

/// How far the threshold may go from that of the curve, at the end of the run.
const CLAMP: f64 = 8.0;
/// The same at any step, where the curve was measured on another family: nothing is known of its level.
const CLAMP_OF_OTHERS: f64 = 100.0;
/// So many steps of evidence that a video is like those of the curve.
const PRIOR: f64 = 10.0;
/// So much of the budget of the free steps may be used sooner than videos of the curve do.
const AHEAD: f64 = 0.25;
/// A step at the end is kept back where videos of the curve compute as large a part of it.
const KEPT_BACK: f64 = 0.8;
/// So much of the budget may be kept back for them.
const KEPT_BACK_SHARE: f64 = 0.15;
/// Longest run of reuse: so many times the mean distance of computed steps.
const LONGEST: f64 = 2.0;
/// Steps at the start that are computed with any target: those that a clock is read at, and that triggers learn from.
pub const FIRST_STEPS: usize = 3;
/// So many steps of the budget may go into those at the start.
const FIRST_SHARE: f64 = 0.25;
/// Steps at the start that decide what a video shows.
const DECIDING_STEPS: usize = 6;
/// So many steps of the budget may go into those, where a method asks for about as many.
const DECIDING_SHARE: f64 = 0.45;

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
    /// Whether the curve is of this family of models.
    is_own: bool,
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
            is_own: curve.family == family,
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
        let usual = self.usual(budget);
        let end = self.end(step, budget, usual);
        let left = budget - (self.steps - end) as f64 - used;
        let steps_left = end.saturating_sub(step) as f64;
        let forced = (end.saturating_sub(step) + self.run) / longest.saturating_add(1);
        if left < forced as f64 + 0.5 {
            return f64::INFINITY;
        }
        if left > steps_left - 0.5 {
            return 0.0;
        }
        let first = self.free.start;
        let used_of_free = (used - first as f64).max(0.0);
        let pace: f64 = (first..step).map(|step| self.share(step, usual)).sum();
        if self.is_own && used_of_free - pace > AHEAD * (used_of_free + left) {
            return f64::INFINITY;
        }
        let difficulty = (used_of_free + PRIOR) / (expected + PRIOR);
        let wanted = self.at_which(step..end, left / difficulty);
        let clamp = self.clamp(step);
        wanted.clamp(usual / clamp, usual * clamp) * self.factor
    }

    /// The factor around the threshold of the curve at a step.
    fn clamp(&self, step: usize) -> f64 {
        let done = step.saturating_sub(self.free.start) as f64 / self.free.len().max(1) as f64;
        if self.is_own { CLAMP.powf(done) } else { CLAMP_OF_OTHERS }
    }

    /// Where the free steps end that there is a choice about: before those that videos of the curve compute anyway.
    fn end(&self, step: usize, budget: f64, usual: f64) -> usize {
        let most = (KEPT_BACK_SHARE * budget) as usize;
        let computed = |step: &usize| self.share(*step, usual) >= KEPT_BACK;
        let kept_back = self.free.clone().rev().take(most).take_while(computed).count();
        let end = self.free.end - kept_back;
        if step < end { end } else { self.free.end }
    }

    /// The threshold at which the curve alone computes the budget.
    fn usual(&self, budget: f64) -> f64 {
        let ends = self.free.start + (self.steps - self.free.end);
        self.at_which(self.free.clone(), (budget - ends as f64).max(0.1))
    }

    fn share(&self, step: usize, threshold: f64) -> f64 {
        share(&self.table, step, threshold)
    }

    /// The threshold at which the curve computes so many of these steps: on lines between logarithms, and on the last
    /// of these lines beyond both ends.
    fn at_which(&self, steps: Range<usize>, count: f64) -> f64 {
        const LEAST: f64 = 0.02; // a row that computes nothing more has no logarithm
        let mut rest: Vec<(f64, f64)> = Vec::with_capacity(self.table.len());
        for (threshold, shares) in &self.table {
            let sum: f64 = shares[steps.clone()].iter().sum();
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

/// The steps at the start that are computed with a budget, where a method asks for `usual`: they decide what a video
/// shows, and a run that is steered cannot mend them later.
pub fn first_steps(usual: usize, budget: f64) -> usize {
    let share = |share: f64| (share * budget).round() as usize;
    let few = match usual > FIRST_STEPS && usual <= DECIDING_STEPS {
        true => DECIDING_STEPS.min(share(DECIDING_SHARE)),
        false => FIRST_STEPS,
    };
    usual.min(share(FIRST_SHARE)).max(few).max(FIRST_STEPS)
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
    /// The curve is of another family.
    fn steering(budget: f64) -> Steering {
        steered(budget, "g")
    }

    fn steered(budget: f64, family: &str) -> Steering {
        let sigmas: Vec<f64> = (0..10).map(|i| 1.0 - i as f64 / 10.0).collect();
        let free = |share: f64| (0..10).map(|i| if i == 0 || i == 9 { 1.0 } else { share }).collect::<Vec<f64>>();
        let about = About { method: "m".to_string(), options: Map::new(), family: "f".to_string() };
        let rows = [(0.01, vec![free(1.0)]), (0.1, vec![free(0.5)]), (1.0, vec![free(0.125)])];
        let curve = Curve::mean(about, &sigmas, &rows).unwrap();
        assert_eq!(curve.curve, VERSION);
        let mut steering = Steering::new(&curve, family, &sigmas, 1, 0.0);
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
            (6.0, 5, 4.0, 2.0, 0.361),         // one more than expected: one is left of four, 1.08 times as hard
            (6.0, 5, 2.0, 2.0, 0.0195),        // one less
            (6.0, 5, 5.0, 2.0, f64::INFINITY), // nothing is left
            (6.0, 8, 4.0, 3.5, 0.0),           // one step, and one is left
            (6.0, 5, 1.0, 2.0, 0.0),           // as many as there are steps
            (4.0, 1, 1.0, 0.0, 0.316228),      // two: half way between four and one
            (4.0, 5, 2.0, 2.0, 0.274),         // one of the other four, 0.92 as hard: as 1.09 of them
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
    fn it_begins_at_the_threshold_of_the_curve_and_may_leave_it_more_and_more() {
        let bounds = |step: usize| {
            let expensive = steered(6.0, "f").wanted(step, 2.8, 0.0, 99);
            let cheap = steered(6.0, "f").wanted(step, 1.0, 0.0, 99);
            [cheap, expensive].map(|threshold| threshold / 0.1)
        };
        let near = |found: [f64; 2], expected: [f64; 2]| {
            found.iter().zip(expected).all(|(found, expected)| (found / expected - 1.0).abs() < 0.01)
        };
        assert!(near([steered(6.0, "f").wanted(1, 1.0, 0.0, 99) / 0.1, 1.0], [1.0, 1.0]));
        assert!(near(bounds(3), [8f64.powf(-0.25), 8f64.powf(0.25)]), "{:?}", bounds(3));
    }

    #[test]
    fn a_video_is_held_to_the_pace_of_others() {
        // Four of eight free steps: one in two is the pace, and one may be used ahead of it.
        let wanted = |step, used| steered(6.0, "f").wanted(step, used, 0.0, 99);
        assert!(wanted(3, 2.9).is_finite());
        assert_eq!(wanted(4, 4.0), f64::INFINITY);
        assert!(steering(6.0).wanted(4, 4.0, 0.0, 99).is_finite(), "others have another pace");
    }

    #[test]
    fn last_steps_that_others_compute_are_kept_back() {
        let sigmas: Vec<f64> = (0..20).map(|i| 1.0 - i as f64 / 20.0).collect();
        let free = |share: f64| (0..20).map(|i| if i == 0 || i > 16 { 1.0 } else { share }).collect::<Vec<f64>>();
        let about = About { method: "m".to_string(), options: Map::new(), family: "f".to_string() };
        let rows = [(0.1, vec![free(0.9)]), (1.0, vec![free(0.5)])];
        let curve = Curve::mean(about, &sigmas, &rows).unwrap();
        let mut steering = Steering::new(&curve, "f", &sigmas, 1, 0.0);
        steering.free.start = 1;
        steering.set_budget(0, 14.0);
        let usual = steering.usual(14.0);
        assert_eq!([5, 16, 17, 18].map(|step| steering.end(step, 14.0, usual)), [17, 17, 19, 19]);
        // Of 14 steps 11 are used before step 15: three are left, which are the last ones.
        assert_eq!(steering.wanted(15, 11.0, 10.0, 99), f64::INFINITY);
        assert_eq!(steering.wanted(17, 11.0, 10.0, 99), 0.0);
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
        assert_eq!([longest_run(5, 50, 25.0), longest_run(4, 50, 13.0)], [5, 8]);
    }
}
