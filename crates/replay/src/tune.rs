//! Choosing a method and its threshold from traces: for a speed-up, the smallest predicted error; for an error, the
//! largest predicted speed-up.

use serde_json::{Map, Value, json};

use crate::player::replay;
use crate::trace::{Made, Trace};
use navicache_control::cache::curve::{self, Curve};
use navicache_control::cache::promise::{Closeness, Promise, Settings};
use navicache_control::cache::steering::FIRST_STEPS;
use navicache_control::cache::watch::Alarm;
use navicache_control::cache::{CacheConfig, CacheError, CacheSpec, presets};
use navicache_control::strip::Ran;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// All units over computed units, at least.
    SpeedUp(f64),
    /// Predicted error ([`crate::player::Replayed::error`]), at most.
    Error(f64),
}

/// A setting with what traces predict of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The setting, as it was asked for.
    pub spec: CacheSpec,
    /// The setting in full.
    pub cache: CacheConfig,
    /// Computed units as a part of all, mean over the traces.
    pub computed: f64,
    /// Predicted error, mean over the traces; `None` where the traces do not tell.
    pub error: Option<f64>,
    /// The alarms that guards would have raised on each trace.
    pub alarms: Vec<Vec<Alarm>>,
    /// Forwards (a branch of a step) on the first trace: computed in whole, in part, and not at all.
    pub forwards: [usize; 3],
    /// What would run on the first trace.
    pub strip: String,
}

impl Prediction {
    /// All units over computed units.
    pub fn speedup(&self) -> f64 {
        1.0 / self.computed
    }

    /// As an object for programs.
    pub fn to_json(&self) -> Value {
        let method = self.cache.method();
        let [computed, mixed, reused] = self.forwards;
        json!({
            "method": method.name(),
            "options": method.options(),
            "units_computed": self.computed,
            "speedup": self.speedup(),
            "forwards_computed": computed,
            "forwards_mixed": mixed,
            "forwards_reused": reused,
            "predicted_error": self.error,
            "alarms": self.alarms,
            "strip": self.strip,
        })
    }
}

/// Plays a setting against every trace, with the presets of a family.
pub fn predict(traces: &[Trace], spec: &CacheSpec, family: &str) -> Result<Prediction, CacheError> {
    let cache = spec.resolve(family)?;
    let refuse = |reason| CacheError::Options { method: cache.method().name().to_string(), reason };
    let replayed = traces.iter().map(|trace| replay(trace, cache.method()).map_err(refuse));
    let replayed = replayed.collect::<Result<Vec<_>, _>>()?;
    let count = replayed.len().max(1) as f64;
    let errors: Option<Vec<f64>> = replayed.iter().map(|r| r.error).collect();
    let strip = replayed.first().map(|r| r.played.strip()).unwrap_or_default();
    Ok(Prediction {
        spec: spec.clone(),
        cache,
        computed: replayed.iter().map(|r| r.played.computed_part()).sum::<f64>() / count,
        error: errors.map(|errors| errors.iter().sum::<f64>() / count),
        alarms: replayed.iter().map(|r| r.played.alarms().copied().collect()).collect(),
        forwards: [Ran::Computed, Ran::Mixed, Ran::Reused].map(|ran| strip.count(ran)),
        strip: strip.to_string(),
    })
}

/// The best of all [`candidates`] of some methods.
///
/// # Errors
///
/// A method makes no sense; or no setting meets the target, with what the fastest would do.
pub fn best(traces: &[Trace], specs: &[CacheSpec], family: &str, target: Target) -> Result<Prediction, TuneError> {
    let mut predictions = Vec::new();
    for spec in specs {
        for candidate in candidates(spec, family)? {
            predictions.push(predict(traces, &candidate, family)?);
        }
    }
    let told = predictions.iter().filter(|p| p.error.is_some());
    let fastest = told.map(Prediction::speedup).fold(1.0, f64::max);
    let none = TuneError::NoneMeets { target: format!("{target:?}"), settings: predictions.len(), fastest };
    choose(&predictions, target).cloned().ok_or(none)
}

/// Why nothing was chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TuneError {
    /// A method or its options make no sense.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No setting is good enough.
    #[error("tune {target}: none of {settings} settings meets it; the fastest computes one part in {fastest:.2}")]
    NoneMeets {
        /// What was wanted.
        target: String,
        /// How many settings were tried.
        settings: usize,
        /// The largest predicted speed-up among them.
        fastest: f64,
    },
}

/// The best of the candidates for a target; `None` where none meets it.
pub fn choose(predictions: &[Prediction], target: Target) -> Option<&Prediction> {
    let meets = |p: &&Prediction| match (target, p.error) {
        (Target::SpeedUp(speedup), Some(_)) => p.speedup() >= speedup,
        (Target::Error(error), Some(predicted)) => predicted <= error,
        (_, None) => false,
    };
    let cost = |p: &Prediction| match target {
        Target::SpeedUp(_) => (p.error.unwrap_or(f64::INFINITY), p.computed),
        Target::Error(_) => (p.computed, p.error.unwrap_or(f64::INFINITY)),
    };
    let order = |a: &(f64, f64), b: &(f64, f64)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1));
    predictions.iter().filter(meets).min_by(|a, b| order(&cost(a), &cost(b)))
}

/// Thresholds that are tried: from harmless to reckless for every method.
const THRESHOLDS: (f64, f64, usize) = (1e-4, 10.0, 61);
/// Intervals of methods that have one instead.
const INTERVALS: std::ops::RangeInclusive<usize> = 1..=10;

/// What is tried of a method: its preset for the family (or options given in full) with every threshold, or every
/// interval.
pub fn candidates(spec: &CacheSpec, family: &str) -> Result<Vec<CacheSpec>, CacheError> {
    let base = spec.resolve(family)?;
    let given = |option: &str| spec.options.contains_key(option);
    let options = base.method().options();
    let has = |option: &str| options.get(option).is_some();
    let with = |option: &str, value: Value| {
        let mut options = spec.options.clone();
        options.insert(option.to_string(), value);
        CacheSpec { options, ..spec.clone() }
    };
    if has("threshold") && !given("threshold") {
        let (low, high, count) = THRESHOLDS;
        return Ok((0..count).map(|i| with("threshold", rounded(between(low, high, i, count)).into())).collect());
    }
    if has("interval") && !given("interval") {
        return Ok(INTERVALS.map(|interval| with("interval", interval.into())).collect());
    }
    Ok(vec![spec.clone()])
}

/// Fewer traces say little of what videos have in common.
const TRACES_MIN: usize = 4;
/// Thresholds of a curve: in equal ratios, from the largest that computes nearly everything to the smallest that
/// computes as little as can be.
const CURVE_THRESHOLDS: usize = 12;
/// Thresholds that are played to find these two.
const SEARCHED: usize = 49;

/// What a method computes at every threshold, on traces: the curve that targets are met with. First steps and longest
/// run are those that a target leaves it.
///
/// # Errors
/// There are too few traces, two of one video, or traces of different runs; or the method has no threshold to move.
pub fn curve(traces: &[Trace], spec: &CacheSpec, family: &str) -> Result<Curve, CacheError> {
    let refuse = |reason: String| CacheError::Options { method: spec.method.clone(), reason };
    let sigmas: Vec<f64> = traces.first().iter().flat_map(|trace| &trace.steps).map(|step| step.sigma).collect();
    if traces.len() < TRACES_MIN {
        return Err(refuse(format!("a curve is made of {TRACES_MIN} traces or more, not of {}", traces.len())));
    }
    check_distinct(traces).map_err(refuse)?;
    let same = |trace: &&Trace| trace.steps.iter().map(|step| step.sigma).eq(sigmas.iter().copied());
    if let Some(other) = traces.iter().find(|trace| !same(trace)) {
        let steps = (other.steps.len(), sigmas.len());
        return Err(refuse(format!(
            "a trace has {} steps or another schedule than the first, of {}",
            steps.0, steps.1
        )));
    }
    let played = |threshold: f64| -> Result<(f64, Vec<Vec<f64>>), CacheError> {
        let config = for_curve(spec, family, threshold, sigmas.len())?;
        let shares = traces.iter().map(|trace| {
            let replayed = replay(trace, config.method()).map_err(refuse)?;
            let fixed = config.method().start(&trace.run()).fixed();
            Ok(replayed.played.steps.iter().map(|step| chosen(step.share(), fixed)).collect())
        });
        Ok((threshold, shares.collect::<Result<_, CacheError>>()?))
    };
    let computed = |threshold: f64| -> Result<f64, CacheError> {
        Ok(played(threshold)?.1.iter().flatten().sum::<f64>() / traces.len() as f64)
    };
    let thresholds = telling(computed)?.ok_or_else(|| refuse("computes the same at every threshold".to_string()))?;
    let rows = thresholds.into_iter().map(played).collect::<Result<Vec<_>, _>>()?;
    let low = rows[0].0;
    let options = for_curve(spec, family, low, sigmas.len())?.method().options();
    let mut options = options.as_object().cloned().unwrap_or_default();
    options.remove("threshold");
    let about = curve::About { method: spec.method.clone(), options, family: family.to_string() };
    Curve::mean(about, &sigmas, &rows).map_err(refuse)
}

/// Thresholds at which a method computes what it can at all, from nearly everything to nearly the least; none where it
/// does not depend on the threshold.
fn telling(computed: impl Fn(f64) -> Result<f64, CacheError>) -> Result<Option<Vec<f64>>, CacheError> {
    let (low, high, _) = THRESHOLDS;
    let searched = (0..SEARCHED).map(|i| between(low / 10.0, high, i, SEARCHED));
    let rows: Vec<(f64, f64)> = searched.map(|t| Ok((t, computed(t)?))).collect::<Result<_, CacheError>>()?;
    let (most, least) = (rows[0].1, rows[SEARCHED - 1].1);
    if most - least < 1.0 {
        return Ok(None);
    }
    let first = rows.iter().rposition(|row| row.1 > most - 0.02 * (most - least)).unwrap_or(0);
    let last = rows.iter().position(|row| row.1 < least + 0.02 * (most - least)).unwrap_or(SEARCHED - 1);
    let (low, high) = (rows[first].0, rows[last.max(first + 1)].0);
    Ok(Some((0..CURVE_THRESHOLDS).map(|i| rounded(between(low, high, i, CURVE_THRESHOLDS))).collect()))
}

/// How large a method's error is at every threshold, on traces, as a replay predicts it: what `error=` is promised by.
/// Options are the method's own.
///
/// # Errors
/// There are too few traces, two of one video, or traces of different runs; the method has no threshold; or traces do
/// not tell its error.
pub fn promise(traces: &[Trace], spec: &CacheSpec, family: &str) -> Result<Promise, CacheError> {
    let refuse = |reason: String| CacheError::Options { method: spec.method.clone(), reason };
    let Some(first) = traces.first() else { return Err(refuse("no traces".to_string())) };
    let steps = first.steps.len();
    let same = |trace: &&Trace| trace.header.made == first.header.made && trace.steps.len() == steps;
    if let Some(other) = traces.iter().find(|trace| !same(trace)) {
        let (there, here) = (made(first), made(other));
        return Err(refuse(format!("traces are of different runs: {there} and {here}")));
    }
    check_distinct(traces).map_err(refuse)?;
    let Some(about) = first.header.made else {
        return Err(refuse(
            "the traces do not say which solver and guidance they are of: record them again".to_string(),
        ));
    };
    let given = spec.resolve(family)?.method().options();
    if given["threshold"].as_f64().is_none() {
        return Err(refuse("has no threshold that an error could follow from".to_string()));
    }
    let at = |threshold: f64| {
        let mut spec = CacheSpec::new(spec.method.clone(), given.as_object().cloned().unwrap_or_default());
        spec.options.insert("threshold".to_string(), threshold.into());
        spec.resolve(family)
    };
    let played = |threshold: f64| {
        let config = at(threshold)?;
        let replayed = traces.iter().map(|trace| replay(trace, config.method()).map_err(refuse));
        replayed.collect::<Result<Vec<_>, CacheError>>()
    };
    let computed = |threshold: f64| {
        Ok(played(threshold)?.iter().map(|r| r.played.computed_part() * steps as f64).sum::<f64>()
            / traces.len() as f64)
    };
    let thresholds = telling(computed)?.ok_or_else(|| refuse("computes the same at every threshold".to_string()))?;
    let mut measured = Vec::new();
    for threshold in thresholds {
        let errors: Option<Vec<f64>> = played(threshold)?.iter().map(|replayed| replayed.error).collect();
        let errors = errors.ok_or_else(|| refuse("traces do not tell its error".to_string()))?;
        measured.push((threshold, errors));
    }
    let mut options = given.as_object().cloned().unwrap_or_default();
    options.remove("threshold");
    let Made { solver, guidance, shift, extent } = about;
    let settings = Settings { family: family.to_string(), solver, steps, guidance, shift, extent };
    Promise::measured(Closeness::Error, (spec.method.clone(), options), settings, measured).map_err(refuse)
}

/// Refuses two traces of one video: of one prompt and seed, or with the same numbers in them.
fn check_distinct(traces: &[Trace]) -> Result<(), String> {
    let asked = |trace: &Trace| (trace.header.prompt.clone(), trace.header.seed);
    for (second, trace) in traces.iter().enumerate() {
        let same = |other: &Trace| asked(other) == asked(trace) || other.steps == trace.steps;
        if let Some(first) = traces[..second].iter().position(same) {
            let (first, second, (prompt, seed)) = (first + 1, second + 1, asked(trace));
            return Err(format!(
                "traces {first} and {second} are of one video, {prompt:?} of seed {seed}: give each video once"
            ));
        }
    }
    Ok(())
}

/// How the video of a trace was made.
fn made(trace: &Trace) -> String {
    let steps = trace.steps.len();
    match trace.header.made {
        Some(Made { solver, guidance, shift, extent }) => {
            let shift = shift.map_or(String::new(), |shift| format!(", shift {shift}"));
            let extent = extent.map_or(String::new(), |extent| format!(", {extent}"));
            format!("{steps} steps of {solver}, guidance {guidance}{shift}{extent}")
        }
        None => format!("{steps} steps"),
    }
}

/// A method as it is steered: at a threshold, with the fewest first steps and the longest run that a target leaves it.
pub fn for_curve(spec: &CacheSpec, family: &str, threshold: f64, steps: usize) -> Result<CacheConfig, CacheError> {
    let mut spec = spec.clone();
    let known = spec.resolve(family)?.method().options();
    let mut set = |option: &str, value: Value| {
        if !spec.options.contains_key(option) {
            spec.options.insert(option.to_string(), value);
        }
    };
    set("threshold", threshold.into());
    set("max_run", (steps / 4).into());
    for option in ["warmup_steps", "align_steps"] {
        if known[option].as_u64().is_some_and(|usual| usual > FIRST_STEPS as u64) {
            set(option, FIRST_STEPS.into());
        }
    }
    if known["warmup"].as_f64().is_some() {
        set("warmup", (FIRST_STEPS as f64 / steps as f64 + 1e-9).into());
    }
    spec.resolve(family)
}

/// What a step computed of what could be left out.
pub fn chosen(share: f64, fixed: f64) -> f64 {
    ((share - fixed) / (1.0 - fixed).max(f64::EPSILON)).clamp(0.0, 1.0)
}

/// Every method that has presets for a family; and with values on a line, where it can and does not already.
pub fn all_methods(family: &str) -> Vec<CacheSpec> {
    let mut specs = Vec::new();
    for about in CacheConfig::METHODS.iter().filter(|about| !presets::names(about.name, family).is_empty()) {
        let plain = CacheSpec::new(about.name, Map::new());
        let line = CacheSpec::new(about.name, Map::from_iter([("reuse".to_string(), Value::from("linear"))]));
        let differs = line.resolve(family).is_ok_and(|line| Ok(line) != plain.resolve(family));
        specs.push(plain);
        specs.extend(differs.then_some(line));
    }
    specs
}

/// Most settings of a sweep: each is played against every trace.
pub const SETTINGS_MAX: usize = 512;

/// The settings of a sweep: a `--cache` argument in which one or more options are ranges, `threshold=0.02..0.2`. A
/// range of whole numbers has all of them, any other eight values in equal ratios.
///
/// # Errors
///
/// The argument makes no sense, or stands for more than [`SETTINGS_MAX`] settings.
pub fn sweep(text: &str) -> Result<Vec<CacheSpec>, CacheError> {
    let spec: CacheSpec = text.parse()?;
    let mut specs = vec![spec.clone()];
    for (option, value) in &spec.options {
        let Some(values) = value.as_str().and_then(range) else { continue };
        if values.len().saturating_mul(specs.len()) > SETTINGS_MAX {
            let reason = format!("{text} stands for more than {SETTINGS_MAX} settings; give a smaller range");
            return Err(CacheError::Options { method: spec.method, reason });
        }
        let with = |spec: &CacheSpec, value: &Value| {
            let mut spec = spec.clone();
            spec.options.insert(option.clone(), value.clone());
            spec
        };
        specs =
            specs.iter().flat_map(|spec| values.iter().map(|value| with(spec, value)).collect::<Vec<_>>()).collect();
    }
    Ok(specs)
}

fn range(text: &str) -> Option<Vec<Value>> {
    const COUNT: usize = 8;
    let (low, high) = text.split_once("..")?;
    if let (Ok(low), Ok(high)) = (low.parse::<u64>(), high.parse::<u64>()) {
        // One more than is taken is enough to refuse it.
        return Some((low..=high).take(SETTINGS_MAX + 1).map(Value::from).collect());
    }
    let (low, high): (f64, f64) = (low.parse().ok()?, high.parse().ok()?);
    let valid = low > 0.0 && high >= low && high.is_finite();
    valid.then(|| (0..COUNT).map(|i| rounded(between(low, high, i, COUNT)).into()).collect())
}

/// Value `i` of `count` from `low` to `high`, in equal ratios.
fn between(low: f64, high: f64, i: usize, count: usize) -> f64 {
    low * (high / low).powf(i as f64 / (count - 1) as f64)
}

/// To three digits: a threshold is to be read and typed.
fn rounded(value: f64) -> f64 {
    let scale = 10f64.powi(2 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps() {
        let thresholds = |text: &str| {
            let specs = sweep(text).unwrap();
            specs.iter().map(|s| s.options["threshold"].as_f64().unwrap()).collect::<Vec<_>>()
        };
        let found = thresholds("navicache,threshold=0.02..0.2");
        assert_eq!((found.len(), found[0], found[7]), (8, 0.02, 0.2));
        assert!((found[3] / found[2] - found[2] / found[1]).abs() < 0.02);
        assert_eq!(thresholds("navicache,threshold=0.05"), [0.05]);
        assert_eq!(sweep("taylorseer,interval=2..5,order=0..1").unwrap().len(), 8);
        for vast in ["navicache,max_run=0..18446744073709551615", "taylorseer,interval=1..100,order=0..100"] {
            assert!(sweep(vast).unwrap_err().to_string().contains("more than 512 settings"));
        }
        assert!(sweep("navicache,threshold=2..").is_ok(), "no range; resolving it says what is wrong");
        assert!(sweep("navicache,threshold=2..").unwrap()[0].resolve("wan").is_err());
    }

    #[test]
    fn choices() {
        let cache = CacheConfig::None(navicache_control::cache::none::Config {});
        let prediction = |computed: f64, error: Option<f64>| Prediction {
            spec: "none".parse().unwrap(),
            cache: cache.clone(),
            computed,
            error,
            alarms: Vec::new(),
            forwards: [0; 3],
            strip: String::new(),
        };
        let all = [
            prediction(1.0, Some(0.0)),
            prediction(0.5, Some(0.02)),
            prediction(0.4, Some(0.01)),
            prediction(0.2, Some(0.3)),
            prediction(0.1, None),
        ];
        assert_eq!(choose(&all, Target::SpeedUp(2.0)).unwrap().computed, 0.4);
        assert_eq!(choose(&all, Target::Error(0.05)).unwrap().computed, 0.4);
        assert_eq!(choose(&all, Target::Error(0.0)).unwrap().computed, 1.0);
        assert_eq!(choose(&all, Target::SpeedUp(6.0)), None);
    }

    #[test]
    fn candidates_vary_what_a_method_is_tuned_by() {
        let candidates = |text: &str| candidates(&text.parse().unwrap(), "wan").unwrap().len();
        assert_eq!(candidates("navicache"), THRESHOLDS.2);
        assert_eq!(candidates("navicache,threshold=0.1"), 1);
        assert_eq!(candidates("taylorseer"), 10);
        assert_eq!(candidates("pab"), 1);
        assert!(all_methods("wan").len() > CacheConfig::METHODS.len());
    }
}
