//! Targets in a run: the curve that one is met with, the clock of those in seconds, and what is reported of them.

use std::path::Path;
use std::time::Instant;

use navicache_control::cache::curve::{self, Curve};
use navicache_control::cache::promise;
use navicache_control::cache::{CacheConfig, CacheError, CacheSpec, Method, StepRecord};
use navicache_control::target::{Asked, Steered, Target, affordable};
use navicache_media::read_text;
use serde_json::Map;

use crate::denoise::Sampler;
use crate::field::Field;
use crate::promise::Promised;
use crate::report::{CurveUsed, PromiseReport, TargetReport};
use crate::request::{Request, Resolved};
use crate::{Error, Result};

/// What is reported of a promise.
pub(crate) fn reported_promise(target: &Target, promised: &Promised, records: &[StepRecord]) -> TargetReport {
    let computed: f64 = records.iter().map(StepRecord::share).sum();
    TargetReport {
        asked: target.to_string(),
        again: target.to_string(),
        curve: CurveUsed { family: promised.family.clone(), videos: promised.videos, digest: promised.digest.clone() },
        budgets: Vec::new(),
        computed,
        speedup: records.len() as f64 / computed.max(f64::EPSILON),
        met: None,
        promise: Some(PromiseReport {
            of: promised.of,
            asked: promised.asked,
            share: promise::SHARE,
            mean: promised.mean,
        }),
    }
}

/// Puts a method under the request's target, if there is one.
///
/// * `family` - of the model, for curves and presets
pub(crate) fn steered<'a>(
    method: &'a dyn Method,
    request: &Request,
    resolved: &Resolved,
    family: &str,
) -> Result<Option<Steered<'a>>> {
    let Some(target) = &resolved.target else { return Ok(None) };
    let name = method.name().to_string();
    let refused = |reason: String| Error::from(CacheError::Options { method: name.clone(), reason });
    if let Some(promised) = &resolved.promised {
        let is_it = promised.spec.method == name;
        return if is_it { Ok(None) } else { Err(refused(format!("{target} was not measured of it"))) };
    }
    let curve = curve_of(target, method, family)?;
    let given = request.cache.clone().unwrap_or_else(|| CacheSpec::new(name.clone(), Map::new()));
    Ok(Some(Steered::new(method, &given, curve, target.budgets(resolved.steps)).map_err(refused)?))
}

/// The curve that a method meets a target with on a family of models: the target's own file, or the one that was
/// measured on that family.
///
/// # Errors
/// The file is not the method's curve; or the method has none.
pub fn curve_of(target: &Target, method: &dyn Method, family: &str) -> Result<Curve> {
    let name = method.name();
    let refused = |reason: String| Error::from(CacheError::Options { method: name.to_string(), reason });
    match &target.curve {
        Some(file) => read_curve(Path::new(file), method),
        None => curve::shipped(name, family).ok_or_else(|| {
            refused(match CacheConfig::STEERABLE.contains(&name) {
                true => "has no curve that a target could be met with; one is made from traces".to_string(),
                false => {
                    format!("has no threshold that a target could move; {} have one", CacheConfig::STEERABLE.join(", "))
                }
            })
        }),
    }
}

/// Reads a curve from a file, for a method.
fn read_curve(path: &Path, method: &dyn Method) -> Result<Curve> {
    let text = read_text(path)?;
    let curve = Curve::from_json(&text).map_err(|reason| Error::file(path, reason))?;
    if curve.method != method.name() {
        let (of, wanted) = (&curve.method, method.name());
        return Err(Error::file(path, format!("is the curve of {of}, the method is {wanted}: expected its own")));
    }
    Ok(curve)
}

/// Writes a curve that a target takes.
pub fn save_curve(curve: &Curve, path: &Path) -> Result<()> {
    Ok(crate::WholeFile::create(path)?.finish_with(curve.to_json().as_bytes())?)
}

/// What was done about a target.
///
/// * `budgets` - steps to be computed, each number from a step on
/// * `records` - the run's steps
pub fn reported(
    target: &Target,
    steered: &Steered,
    budgets: Vec<(usize, f64)>,
    records: &[StepRecord],
) -> TargetReport {
    let computed: f64 = records.iter().map(StepRecord::share).sum();
    let curve = steered.curve();
    // Whenever the first budget was told, nothing had been decided by it before.
    let whole = budgets.iter().enumerate().map(|(i, (from, budget))| (if i == 0 { 0 } else { *from }, *budget));
    let again = Target { asked: Asked::Steps(whole.collect()), curve: target.curve.clone() };
    TargetReport {
        asked: target.to_string(),
        again: again.to_string(),
        curve: CurveUsed { family: curve.family.clone(), videos: curve.videos, digest: curve.digest() },
        met: Some(budgets.last().is_some_and(|(_, budget)| (computed - budget).abs() <= 1.0)),
        promise: None,
        budgets,
        computed,
        speedup: records.len() as f64 / computed.max(f64::EPSILON),
    }
}

/// Steps after which a clock is read for the first time; the first step warms up and does not count.
const FIRST_LOOK: usize = navicache_control::cache::steering::FIRST_STEPS;
/// A forecast that is off by less is good enough.
const OFF: f64 = 0.1;
/// What a reused step takes of a computed one, until one was timed.
const REUSED: f64 = 0.03;

/// Turns a time into budgets while a run goes on.
pub(crate) struct Clock {
    begun: Instant,
    /// Seconds that the run may take, less those of earlier runs that it goes on from.
    seconds: f64,
    /// Seconds that it takes after the steps.
    after: f64,
    steps: usize,
    done: usize,
    computed: Vec<f64>,
    reused: Vec<f64>,
    /// Computed so far, in equivalents of whole steps.
    used: f64,
}

/// The clock of a run that began at `begun`, if its target is a time.
///
/// * `after` - seconds that it takes after the steps
pub(crate) fn clock(
    resolved: &Resolved,
    sampler: &Sampler,
    begun: Instant,
    after: impl FnOnce() -> Result<f64>,
) -> Result<Option<Clock>> {
    let Some(Target { asked: Asked::Time(seconds), .. }) = resolved.target else { return Ok(None) };
    let mut clock = Clock {
        begun,
        seconds,
        after: after()?,
        steps: resolved.steps,
        done: 0,
        computed: Vec::new(),
        reused: Vec::new(),
        used: 0.0,
    };
    for (index, (seconds, share)) in sampler.timed().enumerate() {
        clock.note(index, seconds, share);
        clock.seconds -= seconds;
    }
    Ok(Some(clock))
}

impl Clock {
    /// A step took so long, and computed a share of its work.
    pub fn note(&mut self, index: usize, seconds: f64, share: f64) {
        self.done = index + 1;
        self.used += share;
        match share {
            _ if index == 0 => {}
            1.0.. => self.computed.push(seconds),
            0.0 => self.reused.push(seconds),
            _ => {}
        }
    }

    /// The budget that holds from the next step on, where it changes.
    ///
    /// * `told` - those so far
    /// * `last` - so many steps at the end are computed
    ///
    /// # Errors
    /// There is too little time for the steps that are always computed.
    pub fn budget(&self, told: &[(usize, f64)], last: usize) -> Result<Option<f64>> {
        let Clock { done, steps, used, .. } = *self;
        let is_first = done == FIRST_LOOK;
        if !(is_first || done == steps / 2 || done == steps * 3 / 4) || done >= steps {
            return Ok(None);
        }
        let Some(c) = mean(&self.computed) else { return Ok(None) };
        let r = mean(&self.reused).unwrap_or(REUSED * c);
        let elapsed = self.begun.elapsed().as_secs_f64();
        let (left, steps_left) = (self.seconds - elapsed - self.after, steps - done);
        let budget = used + affordable(left, steps_left, c, r);
        let least = used + (last + usize::from(is_first)).min(steps_left) as f64;
        let takes = |budget: f64| (budget - used) * (c - r) + steps_left as f64 * r;
        if is_first && budget < least {
            return Err(Error::Invalid {
                field: Field::Target,
                found: format!("time={:.1}s", self.seconds),
                expected: format!(
                    "a step takes {c:.2} s here, and what is left of the run at least {:.1} s",
                    takes(least) + self.after
                ),
            });
        }
        let told = told.last().map(|(_, budget)| budget.max(least));
        if told.is_some_and(|told| (takes(told) / left.max(f64::MIN_POSITIVE) - 1.0).abs() <= OFF) {
            return Ok(None);
        }
        Ok(Some(budget.clamp(least, steps as f64)))
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten seconds for a hundred steps, of which a computed one takes half a second and a reused one a twentieth.
    fn clock(done: usize, used: usize, seconds: f64) -> Clock {
        let (computed, reused) = (vec![0.5; used], vec![0.05; done - used]);
        Clock { begun: Instant::now(), seconds, after: 1.0, steps: 100, done, computed, reused, used: used as f64 }
    }

    #[test]
    fn a_time_becomes_a_budget_where_it_is_looked_at() {
        let budget =
            |done, used, seconds: f64, told: &[(usize, f64)]| clock(done, used, seconds).budget(told, 1).unwrap();
        // 97 steps are left and 14 seconds: 97 * 0.015 for all, 0.485 more for each that is computed
        assert_eq!(budget(3, 3, 15.01, &[]), Some(3.0 + ((14.0 - 97.0 * 0.015) / 0.485_f64).floor()));
        assert_eq!(budget(4, 4, 15.0, &[]), None, "only at the first look, half way and at three quarters");
        assert_eq!(budget(50, 20, 13.51, &[(3, 41.0)]), None, "21 * 0.45 + 50 * 0.05 s of 12.5 are near enough");
        assert_eq!(budget(50, 20, 8.51, &[(3, 39.0)]), Some(31.0), "7.5 s are left");
        assert_eq!(budget(50, 20, 0.5, &[(3, 39.0)]), Some(21.0), "the last step is computed in any case");
        assert_eq!(budget(3, 3, 1e6, &[]), Some(100.0));
        let refused = clock(3, 3, 2.0).budget(&[], 1).unwrap_err().to_string();
        assert!(refused.contains("at least 3.4 s"), "{refused}");
    }
}
