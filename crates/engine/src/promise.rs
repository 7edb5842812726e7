//! A promise of closeness in a run: the method and threshold that keep it, if it was measured for such runs.

use std::path::Path;

use navicache_control::cache::CacheSpec;
use navicache_control::cache::promise::{self, Closeness, Kept, Promise, Settings};
use navicache_control::target::{Asked, Target};
use navicache_media::read_text;

use crate::field::Field;
use crate::{Error, Result};

/// What a target of closeness leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Promised {
    /// The method with the threshold that keeps it.
    pub spec: CacheSpec,
    /// What closeness is told in.
    pub of: Closeness,
    /// The closeness that is asked for.
    pub asked: f64,
    /// The closeness that may be expected in the mean.
    pub mean: f64,
    /// The family of models that it was measured on.
    pub family: String,
    /// How many videos that was.
    pub videos: usize,
    /// [`Promise::digest`]
    pub digest: String,
}

/// Whose videos they will be: others have the presets of the built-in model, on which what is shipped was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    BuiltIn,
    Another,
}

/// The method and threshold that make videos as close as a target asks for, if it asks for that.
///
/// * `given` - the method that was asked for
/// * `ours` - how this model's videos are made, with this request
pub(crate) fn promised(
    target: Option<&Target>,
    given: Option<&CacheSpec>,
    ours: &Settings,
    whose: Whose,
) -> Result<Option<Promised>> {
    let Some(Target { asked: Asked::Close(of, asked), curve }) = target else { return Ok(None) };
    let (of, asked) = (*of, *asked);
    let refused = |expected: String| Error::Invalid { field: Field::Target, found: format!("{of}={asked}"), expected };
    let how_to_know = match of {
        Closeness::Psnr => "`navicache compare` can promise it",
        Closeness::Error => "`navicache tune` can promise it",
    };
    let promise = match curve {
        Some(file) => Promise::from_json(&read_text(Path::new(file))?).map_err(|reason| Error::file(file, reason))?,
        None => {
            let shipped = promise::shipped(of, given.map(|spec| spec.method.as_str()), &ours.family);
            if shipped.is_some() && whose == Whose::Another {
                return Err(refused(format!("it was measured on the built-in model, not on this one; {how_to_know}")));
            }
            shipped.ok_or_else(|| {
                let of = given.map_or(String::new(), |spec| format!("{} on ", spec.method));
                refused(format!("it is not known how close {of}{} is at which threshold; {how_to_know}", ours.family))
            })?
        }
    };
    if promise.of != of {
        return Err(refused(format!("closeness was measured as {}=, not as {of}=", promise.of)));
    }
    if let Some(difference) = differs(&promise.settings, ours) {
        return Err(refused(format!("{difference}; {how_to_know} for these")));
    }
    let Kept { threshold, mean } = promise.keeps(asked).map_err(refused)?;
    let mut spec = CacheSpec::new(promise.method.clone(), promise.options.clone());
    spec.options.insert("threshold".to_string(), threshold.into());
    let is_its_own = |given: &CacheSpec| {
        given.method == spec.method && (given.preset.is_none() && given.options.is_empty() || *given == spec)
    };
    if let Some(given) = given.filter(|given| !is_its_own(given)) {
        let only = refused(format!("it was measured of {spec}: expected {} alone, found {given}", spec.method));
        return Err(only);
    }
    let digest = promise.digest();
    let (family, videos) = (promise.settings.family, promise.videos);
    Ok(Some(Promised { spec, of, asked, mean, family, videos, digest }))
}

/// How this run differs from those that were measured.
fn differs(measured: &Settings, ours: &Settings) -> Option<String> {
    let both = |what: &str, there: &dyn std::fmt::Display, here: &dyn std::fmt::Display| {
        Some(format!("closeness was measured with {what} {there}, this run has {here}"))
    };
    match (measured, ours) {
        (there, here) if there.family != here.family => both("models of family", &there.family, &here.family),
        (there, here) if there.solver != here.solver => both("the solver", &there.solver, &here.solver),
        (there, here) if there.steps != here.steps => both("steps", &there.steps, &here.steps),
        (there, here) if there.guidance != here.guidance => both("guidance", &there.guidance, &here.guidance),
        (Settings { shift: Some(there), .. }, Settings { shift: Some(here), .. }) if there != here => {
            both("shift", there, here)
        }
        (Settings { extent: Some(there), .. }, Settings { extent: Some(here), .. }) if there != here => {
            both("videos of", there, here)
        }
        _ => None,
    }
}

/// Writes measurements that a target of closeness takes.
pub fn save_promise(promise: &Promise, path: &Path) -> Result<()> {
    Ok(crate::WholeFile::create(path)?.finish_with(promise.to_json().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use navicache_control::cache::promise::Extent;
    use navicache_control::solver::SolverKind;

    use super::*;
    use crate::{LoadOptions, Pipeline, Request, check};

    #[test]
    fn what_is_shipped_is_kept_by_a_threshold() {
        let shipped = promise::shipped(Closeness::Psnr, None, "demo").unwrap();
        let request = Request {
            target: Some(format!("psnr={}", shipped.closest() - 1.0).parse().unwrap()),
            steps: Some(shipped.settings.steps),
            guidance: Some(shipped.settings.guidance),
            ..Request::new("x")
        };
        let demo = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let promised = check(&demo, &request).unwrap().0.promised.unwrap();
        assert_eq!((promised.spec.method, promised.digest), (shipped.method.clone(), shipped.digest()));
        let threshold = promised.spec.options["threshold"].as_f64().unwrap();
        assert!(threshold >= shipped.thresholds[0].threshold, "{threshold}");
        let closer = Request { target: Some("psnr=99".parse().unwrap()), ..request };
        let refused = check(&demo, &closer).unwrap_err().to_string();
        assert!(refused.contains("dB can be promised"), "{refused}");
    }

    #[test]
    fn other_runs_than_were_measured_are_told_apart() {
        let extent = |frames| Some(Extent { width: 64, height: 48, frames });
        let measured = || Settings {
            family: "wan".to_string(),
            solver: SolverKind::UniPc,
            steps: 50,
            guidance: 4.0,
            shift: Some(3.0),
            extent: extent(17),
        };
        for (ours, says) in [
            (Settings { family: "demo".to_string(), ..measured() }, "models of family wan, this run has demo"),
            (Settings { solver: SolverKind::Euler, ..measured() }, "the solver unipc, this run has euler"),
            (Settings { steps: 30, ..measured() }, "steps 50, this run has 30"),
            (Settings { guidance: 5.0, ..measured() }, "guidance 4, this run has 5"),
            (Settings { shift: Some(12.0), ..measured() }, "shift 3, this run has 12"),
            (Settings { extent: extent(1), ..measured() }, "videos of 64x48, 17 frames, this run has 64x48, 1 frame"),
        ] {
            assert_eq!(differs(&measured(), &ours), Some(format!("closeness was measured with {says}")));
        }
        assert_eq!(differs(&measured(), &measured()), None);
        let older = Settings { shift: None, extent: None, ..measured() };
        assert_eq!(differs(&older, &measured()), None, "an older file");
    }
}
