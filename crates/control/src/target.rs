//! Targets: a user says how much is to be computed, and the threshold follows.
//!
//! A [`Target`] is what was asked for, in words. [`Steered`] is a method around a method whose policy has a dial
//! ([`Policy::dial`]): it leaves when and how to the method, and moves its threshold from
//! step to step so that the run computes what was asked for. The rule is [`Steering`]'s, the numbers are a [`Curve`]'s.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::curve::Curve;
use crate::cache::promise::Closeness;
use crate::cache::steering::{Steering, nearest};
use crate::cache::{Bounds, CacheConfig, CacheSpec, Guard, Guarded, Method, Policy, Run};

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// All work over the work that is computed.
    Speedup(f64),
    /// The part of the work that is computed.
    Work(f64),
    /// So many steps are computed, each number from a step on; the first from the beginning.
    Steps(Vec<(usize, f64)>),
    /// The whole run takes so many seconds.
    Time(f64),
    /// The video is as close to the uncached one, or closer, with the certainty of
    /// [`promise`](crate::cache::promise).
    Close(Closeness, f64),
}

/// A target, as it was given: `speedup=2`, `work=50%`, `steps=25`, `time=5min`, `psnr=40`, `error=0.02`, each with
/// `,curve=FILE` behind it or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// What is asked for.
    pub asked: Asked,
    /// A file with the curve that it is met with.
    pub curve: Option<String>,
}

/// What is wrong with a target.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("target {found:?}: {expected}")]
pub struct TargetError {
    /// The text.
    pub found: String,
    /// What was expected.
    pub expected: &'static str,
}

const WORDS: &str =
    "expected speedup=2, work=50%, steps=25, time=5min, psnr=40 or error=0.02, and ,curve=FILE behind it or not";

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let refuse = |expected| TargetError { found: text.to_string(), expected };
        let mut parts = text.split(',').map(str::trim);
        let (what, value) = parts.next().and_then(|part| part.split_once('=')).ok_or(refuse(WORDS))?;
        let positive = |text: &str| text.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
        let mut asked = match what.trim() {
            "speedup" => {
                let value = positive(value.trim().trim_end_matches('x')).filter(|value| *value >= 1.0);
                Asked::Speedup(value.ok_or(refuse("speedup: expected 1 or more, as in speedup=2"))?)
            }
            "work" => {
                let part = match value.trim().strip_suffix('%') {
                    Some(percent) => positive(percent).map(|percent| percent / 100.0),
                    None => positive(value),
                };
                let part = part.filter(|part| *part <= 1.0);
                Asked::Work(part.ok_or(refuse("work: expected a part of the whole, as in work=50%"))?)
            }
            "steps" => {
                Asked::Steps(vec![(0, positive(value).ok_or(refuse("steps: expected a number, as in steps=25"))?)])
            }
            "time" => {
                Asked::Time(seconds(value).ok_or(refuse("time: expected a time, as in time=90s, 5min or 1h30min"))?)
            }
            "psnr" => {
                let value = positive(value.trim().trim_end_matches("dB"));
                Asked::Close(Closeness::Psnr, value.ok_or(refuse("psnr: expected dB, as in psnr=40"))?)
            }
            "error" => {
                let value = positive(value).ok_or(refuse("error: expected a part of the value, as in error=0.02"))?;
                Asked::Close(Closeness::Error, value)
            }
            _ => return Err(refuse(WORDS)),
        };
        let mut curve = None;
        for part in parts {
            match (part.split_once('='), part.split_once('@'), &mut asked) {
                (Some(("curve", file)), _, _) if !file.is_empty() => curve = Some(file.to_string()),
                (None, Some((steps, from)), Asked::Steps(budgets)) => {
                    let budget = positive(steps).zip(from.parse::<usize>().ok());
                    let later = budget.filter(|(_, from)| budgets.iter().all(|(before, _)| before < from));
                    let (steps, from) =
                        later.ok_or(refuse("expected steps=K,K@STEP,...: numbers from rising steps on"))?;
                    budgets.push((from, steps));
                }
                _ => return Err(refuse(WORDS)),
            }
        }
        Ok(Target { asked, curve })
    }
}

/// Seconds of `90s`, `5min`, `1h30min`, or a number of them.
fn seconds(text: &str) -> Option<f64> {
    let mut rest = text.trim();
    let mut sum = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match rest[..end].trim() {
            "" | "s" | "sec" | "seconds" => 1.0,
            "m" | "min" | "minutes" => 60.0,
            "h" | "hours" => 3600.0,
            _ => return None,
        };
        sum += number * unit;
        rest = rest[end..].trim_start();
    }
    Some(sum).filter(|sum| sum.is_finite() && *sum > 0.0)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.asked {
            Asked::Speedup(value) => write!(f, "speedup={value}")?,
            Asked::Work(part) => write!(f, "work={}%", 100.0 * part)?,
            Asked::Time(seconds) => write!(f, "time={seconds}s")?,
            Asked::Close(of, value) => write!(f, "{of}={value}")?,
            Asked::Steps(budgets) => {
                f.write_str("steps=")?;
                for (i, (from, steps)) in budgets.iter().enumerate() {
                    if i == 0 { write!(f, "{steps}")? } else { write!(f, ",{steps}@{from}")? }
                }
            }
        }
        self.curve.iter().try_for_each(|file| write!(f, ",curve={file}"))
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Target {
    /// The steps to be computed of so many, each number from a step on; none where only a clock can tell, or where it
    /// is not steps that are asked for.
    pub fn budgets(&self, steps: usize) -> Vec<(usize, f64)> {
        match &self.asked {
            Asked::Speedup(times) => vec![(0, steps as f64 / times)],
            Asked::Work(part) => vec![(0, steps as f64 * part)],
            Asked::Steps(budgets) => budgets.clone(),
            Asked::Time(_) | Asked::Close(..) => vec![],
        }
    }
}

/// Steps that can be computed of those left, in so many seconds, where a computed one takes `computed` and a reused one
/// `reused` seconds.
pub fn affordable(seconds: f64, steps: usize, computed: f64, reused: f64) -> f64 {
    let more = (computed - reused).max(f64::MIN_POSITIVE);
    ((seconds - reused * steps as f64) / more).floor().clamp(-1.0, steps as f64)
}

/// Fewer steps than this leave nothing to choose.
const STEPS_MIN: usize = 9;

/// A method that is steered to a target.
pub struct Steered<'a> {
    method: &'a dyn Method,
    curve: Curve,
    /// Steps to be computed, each number from a step on; empty: told while it runs.
    budgets: Vec<(usize, f64)>,
    /// Options that were given one by one stay as they are.
    keeps_first: bool,
    keeps_longest: bool,
}

impl<'a> Steered<'a> {
    /// Steers a method by a curve.
    ///
    /// # Errors
    /// `spec`, what was asked for, has a threshold of its own.
    pub fn new(
        method: &'a dyn Method,
        spec: &CacheSpec,
        curve: Curve,
        budgets: Vec<(usize, f64)>,
    ) -> Result<Self, String> {
        let given = |options: &[&str]| options.iter().any(|option| spec.options.contains_key(*option));
        if given(&["threshold"]) {
            return Err("a target and a threshold cannot both be met: give one of the two".to_string());
        }
        let keeps_first = given(&["warmup_steps", "align_steps", "warmup"]);
        Ok(Steered { method, curve, budgets, keeps_first, keeps_longest: given(&["max_run"]) })
    }

    /// The curve that it is steered by.
    pub fn curve(&self) -> &Curve {
        &self.curve
    }

    fn bounds(&self, steps: usize) -> Bounds {
        Bounds { usual: self.method.guard(steps), keeps_first: self.keeps_first, keeps_longest: self.keeps_longest }
    }

    /// Refuses a budget that cannot be met, with the reason.
    pub fn check_budget(&self, run: &Run, budget: f64) -> Result<(), String> {
        let steps = run.steps.len();
        let Guard { first_steps, last_steps, max_run } = self.bounds(steps).guard(steps, budget);
        let fixed = self.unsteered(run).fixed();
        let whole = |full: f64| full * (1.0 - fixed) + fixed * steps as f64;
        let least = whole((first_steps + last_steps + 1) as f64);
        let times = |budget: f64| steps as f64 / budget;
        if budget > steps as f64 + 0.5 {
            return Err(format!("{budget:.1} of {steps} steps: expected at most all of them"));
        }
        if nearest(budget, steps, fixed) < least - 1e-6 {
            let part = match fixed {
                0.0 => String::new(),
                _ => format!(", and {:.0} % of each of the others", 100.0 * fixed),
            };
            return Err(format!(
                "{budget:.1} of {steps} steps: {} at the ends are always computed{part}: at most {:.1} times as fast",
                first_steps + last_steps,
                times(least)
            ));
        }
        let reach = max_run.map_or(usize::MAX, |longest| longest.saturating_add(1)) as f64;
        let free = (steps - first_steps - last_steps) as f64;
        if self.keeps_longest && whole((first_steps + last_steps) as f64 + (free / reach).floor()) > budget + 0.5 {
            return Err(format!("max_run={}: does not allow {budget:.1} of {steps} steps", max_run.unwrap_or(0)));
        }
        Ok(())
    }

    fn unsteered(&self, run: &Run) -> Guarded {
        self.guard(run.steps.len()).around(self.method.policy(run), run)
    }
}

impl Method for Steered<'_> {
    fn name(&self) -> &str {
        self.method.name()
    }

    fn guard(&self, steps: usize) -> Guard {
        self.bounds(steps).guard(steps, self.budgets.first().map_or(steps as f64, |(_, budget)| *budget))
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        self.method.policy(run)
    }

    /// The method's, less the threshold: it is another at every step.
    fn options(&self) -> Value {
        let mut options = self.method.options();
        if let Some(fields) = options.as_object_mut() {
            fields.remove("threshold");
        }
        options
    }

    fn caches(&self) -> bool {
        self.method.caches()
    }

    fn check(&self) -> Result<(), String> {
        self.method.check()
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        self.method.check_run(run)?;
        if !self.method.policy(run).dial(0.0) {
            let those = CacheConfig::STEERABLE.join(", ");
            return Err(format!("has no threshold that a target could move; {those} have one"));
        }
        let steps = run.steps.len();
        if steps < STEPS_MIN {
            return Err(format!("{steps} steps leave nothing to choose: a target needs {STEPS_MIN} or more"));
        }
        self.budgets.iter().try_for_each(|(_, budget)| self.check_budget(run, *budget))
    }

    fn start(&self, run: &Run) -> Guarded {
        let guarded = self.unsteered(run);
        let sigmas: Vec<f64> = run.steps.iter().map(|step| step.sigma.0).collect();
        let last = self.method.guard(sigmas.len()).last_steps;
        let mut steering = Steering::new(&self.curve, &run.family, &sigmas, last, guarded.fixed());
        self.budgets.iter().for_each(|(from, budget)| steering.set_budget(*from, *budget));
        guarded.steered(steering, self.bounds(sigmas.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, asked, again) in [
            ("speedup=2", Asked::Speedup(2.0), "speedup=2"),
            ("speedup=2.5x", Asked::Speedup(2.5), "speedup=2.5"),
            ("work=50%", Asked::Work(0.5), "work=50%"),
            ("work=0.25", Asked::Work(0.25), "work=25%"),
            ("steps=25", Asked::Steps(vec![(0, 25.0)]), "steps=25"),
            ("steps=17,16@25", Asked::Steps(vec![(0, 17.0), (25, 16.0)]), "steps=17,16@25"),
            ("time=5min", Asked::Time(300.0), "time=300s"),
            ("time=1h30min", Asked::Time(5400.0), "time=5400s"),
            ("time=90", Asked::Time(90.0), "time=90s"),
            ("psnr=40dB", Asked::Close(Closeness::Psnr, 40.0), "psnr=40"),
            ("error=0.02", Asked::Close(Closeness::Error, 0.02), "error=0.02"),
        ] {
            let target: Target = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((&target.asked, target.to_string().as_str()), (&asked, again));
            let with: Target = format!("{text},curve=my curve.json").parse().unwrap();
            assert_eq!((with.asked, with.curve.as_deref()), (asked, Some("my curve.json")));
        }
        for wrong in [
            "",
            "2",
            "speedup",
            "speedup=0.5",
            "speedup=fast",
            "work=0",
            "work=150%",
            "steps=-1",
            "steps=20,10@5,9@5",
            "time=soon",
            "time=5 apples",
            "quality=9",
            "speedup=2,16@25",
            "speedup=2,curve=",
            "psnr=close",
            "error=small",
            "time=0",
        ] {
            let refused = wrong.parse::<Target>().expect_err(wrong).to_string();
            assert!(refused.contains("expected"), "{refused}");
        }
    }

    #[test]
    fn budgets() {
        let of = |text: &str| text.parse::<Target>().unwrap().budgets(50);
        assert_eq!(of("speedup=2"), [(0, 25.0)]);
        assert_eq!(of("work=30%"), [(0, 15.0)]);
        assert_eq!(of("time=9s"), []);
        // 47 steps are left: seconds for 20 and 27, for all, for none, for less than none
        let of_seconds = [20.0 * 2.0 + 27.0 * 0.5, 1e9, 47.0 * 0.5, 1.0].map(|s| affordable(s, 47, 2.0, 0.5));
        assert_eq!(of_seconds, [20.0, 47.0, 0.0, -1.0]);
    }
}
