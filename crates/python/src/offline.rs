//! Decisions on recorded numbers: traces, replay, tuning, predictors.

use std::path::PathBuf;

use navicache_engine::control::cache::{CacheConfig, CacheSpec};
use navicache_engine::replay::predict as predictors;
use navicache_engine::replay::trace::{Recorder, Trace as Recording};
use navicache_engine::replay::tune::{self as tuning, Target};
use navicache_engine::report::{self, StepReport};
use navicache_engine::trace::{self, Recorded};
use navicache_engine::{Error, WholeFile, preset};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::background::Background;
use crate::engine::{Pipeline, read_cache, read_request};
use crate::errors::{Failure, detached};

/// What a run that computed everything measured.
#[pyclass(frozen, module = "navicache._core")]
pub struct Trace(pub(crate) Recording);

#[pymethods]
impl Trace {
    /// Reads one that was written.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || match trace::read(&path)? {
            Recorded::Trace(recording) => Ok(Trace(*recording)),
            Recorded::Changes(_) => Err(Failure::invalid(format!(
                "{}: expected a trace; a CSV file of changes does not say what values would be",
                path.display()
            ))),
        })
    }

    /// Runs a request with everything computed.
    #[staticmethod]
    #[pyo3(signature = (pipeline, request, lags=None))]
    fn record(py: Python<'_>, pipeline: &Pipeline, request: &str, lags: Option<usize>) -> PyResult<Self> {
        let request = detached(py, || read_request(request))?;
        let recorder = lags.map_or_else(Recorder::default, |lags| Recorder { lags, ..Recorder::default() });
        let (pipeline, turn) = pipeline.shared();
        let work = move |recording: &Background<Trace>| -> Result<Trace, Failure> {
            let _turn = turn.lock();
            Ok(Trace(trace::record(&pipeline, &request, &recorder, &mut |_| recording.goes_on())?))
        };
        let recording = Background::begin(work).map_err(|failure| failure.raised(py))?;
        recording.wait(py, None).inspect_err(|_| recording.cancel())?;
        let ended = || Err(Failure::invalid("the recording was taken already"));
        recording.take().unwrap_or_else(ended).map_err(|failure| failure.raised(py))
    }

    /// Writes it, whole or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || Ok(trace::save(&self.0, &path)?))
    }

    /// What was run.
    fn header(&self) -> String {
        json!(self.0.header).to_string()
    }

    /// What was measured, step by step.
    fn steps(&self) -> String {
        json!(self.0.steps).to_string()
    }
}

/// Plays methods against traces; those with presets for the family, where none is given. Options may be ranges.
#[pyfunction]
pub fn replay(py: Python<'_>, traces: Vec<Py<Trace>>, caches: Vec<String>) -> PyResult<String> {
    detached(py, || {
        let (traces, family) = of_one_family(&traces)?;
        let specs = match caches.is_empty() {
            true => tuning::all_methods(&family),
            false => caches
                .iter()
                .map(|text| tuning::sweep(text))
                .collect::<Result<Vec<_>, _>>()
                .map_err(Error::from)?
                .concat(),
        };
        let predicted = specs.iter().map(|spec| Ok(tuning::predict(&traces, spec, &family)?.to_json()));
        let predicted: Result<Vec<Value>, Error> = predicted.collect();
        Ok(Value::from(predicted?).to_string())
    })
}

/// The best setting for a speed-up or for a predicted error, as a preset.
#[pyfunction]
#[pyo3(signature = (traces, caches, speedup=None, error=None))]
pub fn tune(
    py: Python<'_>,
    traces: Vec<Py<Trace>>,
    caches: Vec<String>,
    speedup: Option<f64>,
    error: Option<f64>,
) -> PyResult<String> {
    detached(py, || {
        let target = match (speedup, error) {
            (Some(speedup), None) => Target::SpeedUp(positive("speedup", speedup)?),
            (None, Some(error)) => Target::Error(positive("error", error)?),
            _ => return Err(Failure::invalid("tune: expected either speedup= or error=")),
        };
        let (traces, family) = of_one_family(&traces)?;
        let given: Result<Vec<CacheSpec>, Failure> = caches.into_iter().map(|text| read_cache(text.into())).collect();
        let specs = Some(given?).filter(|specs| !specs.is_empty()).unwrap_or_else(|| tuning::all_methods(&family));
        let best = tuning::best(&traces, &specs, &family, target).map_err(Failure::invalid)?;
        Ok(preset(&best.cache, &family, best.to_json()).to_string())
    })
}

fn positive(what: &str, value: f64) -> Result<f64, Failure> {
    match value.is_finite() && value > 0.0 {
        true => Ok(value),
        false => Err(Failure::invalid(format!("{what} {value}: expected a number above 0"))),
    }
}

/// The traces, and the family that all of them are of.
fn of_one_family(traces: &[Py<Trace>]) -> Result<(Vec<Recording>, String), Failure> {
    let traces: Vec<Recording> = traces.iter().map(|trace| trace.get().0.clone()).collect();
    let Some(first) = traces.first() else { return Err(Failure::invalid("traces: expected at least one")) };
    let family = first.header.family.clone();
    match traces.iter().position(|trace| trace.header.family != family) {
        None => Ok((traces, family)),
        Some(index) => Err(Failure::invalid(format!(
            "trace {index} is of {}, the first is of {family}; thresholds belong to one family",
            traces[index].header.family
        ))),
    }
}

/// How well methods predict the output's change, on files of changes or traces' worth of them.
#[pyfunction]
pub fn predict(py: Python<'_>, files: Vec<PathBuf>, caches: Vec<String>) -> PyResult<String> {
    detached(py, || {
        let mut runs = Vec::new();
        for path in &files {
            match trace::read(path)? {
                Recorded::Changes(changes) => runs.extend(changes),
                Recorded::Trace(_) => {
                    return Err(Failure::invalid(format!(
                        "{}: expected a CSV file of changes; a trace is replayed",
                        path.display()
                    )));
                }
            }
        }
        let all = || predictors::ALL.iter().map(|name| name.to_string()).collect();
        let caches: Vec<String> = Some(caches).filter(|caches| !caches.is_empty()).unwrap_or_else(all);
        let mut scores = Vec::new();
        for cache in &caches {
            let known = predictors::ALL.join(", ");
            scores.push(predictors::score(cache, &runs).map_err(Error::from)?.ok_or_else(|| {
                Failure::invalid(format!("{cache:?} predicts no output change; those that do are {known}"))
            })?);
        }
        Ok(json!(scores).to_string())
    })
}

/// Writes a file of text, whole or not at all.
#[pyfunction]
pub fn write_whole(py: Python<'_>, path: PathBuf, text: &str) -> PyResult<()> {
    detached(py, || {
        let file = WholeFile::create(&path).map_err(Error::from)?;
        Ok(file.finish_with(text.as_bytes()).map_err(Error::from)?)
    })
}

/// Writes a preset that `@FILE` takes.
#[pyfunction]
pub fn save_preset(py: Python<'_>, preset: &str, path: PathBuf) -> PyResult<()> {
    detached(py, || {
        let mut json: Value = serde_json::from_str(preset).map_err(Failure::invalid)?;
        let cache: CacheConfig = serde_json::from_value(json["cache"].take()).map_err(Failure::invalid)?;
        let family = json["family"].as_str().unwrap_or_default();
        Ok(navicache_engine::save_preset(&cache, family, json["predicted"].clone(), &path)?)
    })
}

/// Seconds that reuse saved, of a report's steps.
#[pyfunction]
pub fn seconds_saved(steps: &str) -> Option<f64> {
    let steps = serde_json::from_str::<Vec<StepReport>>(steps).ok()?;
    Some(report::seconds_saved(&steps))
}
