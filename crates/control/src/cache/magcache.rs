//! MagCache: *Fast Video Generation with Magnitude-Aware Cache* (Ma et al., NeurIPS 2025, arXiv 2506.09045; code
//! Zehong-Ma/MagCache).
//!
//! The ratio between the sizes of neighbouring steps' residuals hardly depends on the prompt, so a table of it,
//! measured once for each model, tells how much error a run of reuse adds up.
//!
//! | paper | here |
//! |---|---|
//! | magnitude ratio `gamma_t` | `ratios` |
//! | accumulated error | sum of `|1 - product of the ratios since the last compute|` |
//! | `delta` | `threshold` |
//! | maximum skip `K` | `max_run` |
//! | retention ratio | `warmup` |
//!
//! Wan2.2 has two published settings (commit df81cb1): `mid` is the README's, 0.06, `slow` the code's default, 0.04,
//! all with `K` 2. Where two transformers share the steps (A14B), the retention ratio is of each one's steps, or, from
//! a picture, of the second's, and the first computes all of its own: `warmup_of`. The release carries the error that
//! it has added up across the switch; here it begins anew, as after every computed step.
//!
//! Every branch decides for itself. The comparison is strict, as on Wan (the other releases allow equality), and the
//! error of Open-Sora's table is taken without its sign, as that of all others. `reuse=scaled` multiplies the residual
//! by the product of the ratios, which the paper does not do.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::approx::FOR_BLOCKS;
use super::per_branch::PerBranch;
use super::{About, Approx, Asks, At, Decision, Guard, Measurements, Method, Policy, Question, Reuse, Run, check_part};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "magcache",
    line: "a table of how residuals' sizes change from step to step",
    paper: "Ma et al., NeurIPS 2025, arXiv 2506.09045",
    source: "the released code",
    needs: Some("a table for the model"),
};

options! {
    /// Accumulated error at which a branch is computed again. 0 computes every step.
    threshold: f64,
    /// Ratio for each step: the name of a published table, or the numbers, one a step.
    ratios: Ratios,
    /// How a table is fitted to another number of steps.
    #[serde(default)]
    resampling: Resampling,
    /// This part of the steps, at the start, is computed.
    warmup: f64,
    /// What it is a part of, where another transformer takes over on the way.
    #[serde(default)]
    warmup_of: WarmupOf,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the blocks' work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

/// Magnitude ratios, one a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "ratios: expected the name of a model, or numbers, one a step")]
pub enum Ratios {
    /// By the model they were measured on.
    Named(String),
    /// For both branches alike.
    Given(Vec<f64>),
}

/// How a table becomes one of another length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// The nearest entry, as released. Wider steps are taken for as harmless as those of the table.
    #[default]
    Nearest,
    /// What the ratios between two steps multiply to: a table of half the steps has the products of pairs.
    Merge,
}

/// What the warm-up is a part of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmupOf {
    /// The run.
    #[default]
    Run,
    /// The steps of each transformer.
    Each,
    /// The steps of the last transformer; what comes before them is computed.
    Last,
}

/// One table, for each branch.
#[derive(Debug, Clone, Deserialize)]
struct Table {
    cond: Vec<f64>,
    uncond: Vec<f64>,
}

/// The published tables and that of the demo model. Conditional and unconditional entries are separate, the first is 1,
/// and Open-Sora's is given after its square root.
const CALIBRATION: &str = include_str!("calibration/magcache.json");

impl Ratios {
    fn table(&self) -> Result<Table, String> {
        let name = match self {
            Ratios::Given(numbers) if numbers.is_empty() => return Err("ratios are empty".to_string()),
            Ratios::Given(numbers) => return Ok(Table { cond: numbers.clone(), uncond: numbers.clone() }),
            Ratios::Named(name) => name,
        };
        static TABLES: OnceLock<BTreeMap<String, Table>> = OnceLock::new();
        let tables = TABLES.get_or_init(|| serde_json::from_str(CALIBRATION).unwrap_or_default());
        tables.get(name).cloned().ok_or_else(|| {
            let known = tables.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("ratios are {name:?}, expected numbers or one of {known}")
        })
    }
}

impl Resampling {
    /// A table for so many steps.
    pub fn resample(self, table: &[f64], steps: usize) -> Vec<f64> {
        let last = table.len() - 1;
        if steps == table.len() {
            return table.to_vec();
        }
        if steps == 1 {
            return vec![table[last]];
        }
        let position = |step: usize| step as f64 * last as f64 / (steps - 1) as f64;
        match self {
            Resampling::Nearest => (0..steps).map(|step| table[position(step).round_ties_even() as usize]).collect(),
            Resampling::Merge => {
                // Logarithm of the product of all ratios up to a place in the table, between its entries on a line.
                let mut up_to = vec![table[0].ln()];
                for ratio in &table[1..] {
                    up_to.push(up_to[up_to.len() - 1] + ratio.ln());
                }
                let at = |x: f64| {
                    let below = (x as usize).min(last.saturating_sub(1));
                    let above = (below + 1).min(last);
                    up_to[below] + (x - below as f64) * (up_to[above] - up_to[below])
                };
                let ratio = |step: usize| match step {
                    0 => table[0],
                    _ => (at(position(step)) - at(position(step - 1))).exp(),
                };
                (0..steps).map(ratio).collect()
            }
        }
    }
}

impl Method for Config {
    described!();

    fn guard(&self, steps: usize) -> Guard {
        let first_steps = match self.warmup_of {
            WarmupOf::Run => (self.warmup * steps as f64) as usize,
            WarmupOf::Each | WarmupOf::Last => 0, // it depends on who computes which: `warms`
        };
        Guard { first_steps, last_steps: 0, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let steps = run.steps.len();
        // A checked configuration has its numbers; one that was not computes everything.
        let table = self.ratios.table().unwrap_or(Table { cond: vec![f64::NAN], uncond: vec![f64::NAN] });
        let question = Question { to_reuse: vec![self.reuse.into()], ..Question::default() };
        let asks = Asks::stack(run, question);
        Box::new(PerBranch::new(run, |branch| {
            let table = if branch == Branch::Uncond { &table.uncond } else { &table.cond };
            MagCache {
                asks: asks.clone(),
                threshold: self.threshold,
                reuse: self.reuse,
                warms: self.warms(run, branch),
                ratios: self.resampling.resample(table, steps),
                ratio: 1.0,
                error: 0.0,
            }
        }))
    }

    fn check(&self) -> Result<(), String> {
        let Table { cond, uncond } = self.ratios.table()?;
        if let Some(wrong) = cond.iter().chain(&uncond).find(|r| !(r.is_finite() && **r > 0.0)) {
            return Err(format!("a ratio is {wrong}, expected positive numbers"));
        }
        check_part("warmup", self.warmup, "steps")?;
        if self.reuse == Reuse::Scaled { Ok(()) } else { self.reuse.check(FOR_BLOCKS) }
    }
}

impl Config {
    /// Whether a branch is computed at each step without asking. The release counts calls of the transformer, all
    /// branches in one.
    fn warms(&self, run: &Run, branch: Branch) -> Vec<bool> {
        let (steps, branches) = (run.steps.len(), run.branches.len());
        let place = run.branches.iter().position(|b| *b == branch).unwrap_or(0);
        let starts: Vec<usize> = std::iter::once(0).chain(run.segments.iter().copied()).collect();
        let warms = |step: usize| {
            let (call, all) = ((step * branches + place) as f64, (steps * branches) as f64);
            let segment = starts.iter().rposition(|&start| start <= step).unwrap_or(0);
            let start = (starts[segment] * branches) as f64;
            let end = starts.get(segment + 1).map_or(all, |end| (end * branches) as f64);
            let warm = (end - start) * self.warmup;
            match self.warmup_of {
                WarmupOf::Run => false,
                WarmupOf::Last if end < all => true,
                WarmupOf::Last => call < (start + warm).floor(),
                WarmupOf::Each if segment == 0 => call < warm.floor(),
                WarmupOf::Each => call <= start + warm,
            }
        };
        (0..steps).map(warms).collect()
    }
}

struct MagCache {
    asks: Asks,
    threshold: f64,
    reuse: Reuse,
    /// Steps that are computed without asking.
    warms: Vec<bool>,
    /// One a step.
    ratios: Vec<f64>,
    /// Their product since the last compute.
    ratio: f64,
    /// Accumulated since then.
    error: f64,
}

impl Policy for MagCache {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        if self.warms[at.step] {
            return Decision::Compute;
        }
        self.ratio *= self.ratios[at.step];
        self.error += (1.0 - self.ratio).abs();
        match (self.error < self.threshold, self.reuse) {
            (true, Reuse::Scaled) => Decision::Reuse(Approx::Scaled { factor: self.ratio }),
            (true, reuse) => Decision::Reuse(reuse.into()),
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.threshold = threshold;
        true
    }

    fn computed(&mut self, _: At, _: &Measurements) {
        (self.ratio, self.error) = (1.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_ratios_multiply_to_the_same_product() {
        let table: Vec<f64> = (0..50).map(|i| if i == 0 { 1.0 } else { 1.0 - 0.002 * i as f64 }).collect();
        let product: f64 = table.iter().product();
        for steps in [2, 7, 25, 50, 99, 200] {
            let merged = Resampling::Merge.resample(&table, steps);
            assert_eq!(merged.len(), steps);
            assert!((merged.iter().product::<f64>() / product - 1.0).abs() < 1e-9, "{steps}");
        }
        let halves = Resampling::Merge.resample(&table[..49], 25);
        assert!((halves[3] - table[5] * table[6]).abs() < 1e-12);
    }

    #[test]
    fn nearest_is_that_of_the_release() {
        // round(j (n_src - 1) / (n_dst - 1)), ties to even as numpy has it
        let table: Vec<f64> = (0..5).map(f64::from).collect();
        assert_eq!(Resampling::Nearest.resample(&table, 9), [0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!(Resampling::Nearest.resample(&table, 1), [4.0]);
    }
}
