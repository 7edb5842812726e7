//! What a comparison says of closeness by threshold, for targets that ask for it.

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::control::cache::promise::{Closeness, Promise, Settings};
use serde_json::{Map, Value};

use super::folder::REFERENCE;
use super::results::Results;
use crate::error::{Error, Result};

/// Sums up a comparison of one method at several thresholds, its other options given and the same: `--methods
/// stride,threshold=0.01,reuse=corrected,stride,threshold=0.02,reuse=corrected,...`.
pub fn promise(results: &Results) -> Result<Promise> {
    let wrong = |reason: String| Error::file(results.folder(), reason);
    let mut method: Option<(String, Map<String, Value>)> = None;
    let mut measured = Vec::new();
    for summary in results.methods.iter().filter(|summary| summary.method != REFERENCE) {
        let text = &summary.method;
        let mut spec: CacheSpec = text.parse().map_err(|e| wrong(format!("{e}")))?;
        let threshold = spec.options.remove("threshold").and_then(|value| value.as_f64());
        let (Some(threshold), None) = (threshold, &spec.preset) else {
            return Err(wrong(format!("{text}: expected a method with a threshold, and no preset")));
        };
        let of = (spec.method, spec.options);
        if let Some(first) = method.as_ref().filter(|first| **first != of) {
            let first = CacheSpec::new(first.0.clone(), first.1.clone());
            return Err(wrong(format!("{text}: expected {first} with another threshold, and nothing else")));
        }
        method = Some(of);
        let psnr: Option<Vec<f64>> = results.of_method(text).map(|run| run.psnr()).collect();
        measured.push((threshold, psnr.ok_or_else(|| wrong(format!("{text}: not all videos have a PSNR yet")))?));
    }
    let method = method.ok_or_else(|| wrong("has no method beside the reference".to_string()))?;
    let report = results.runs.iter().find(|run| run.method == REFERENCE).map(|run| &run.report);
    let report = report.ok_or_else(|| wrong("has no uncached run".to_string()))?;
    let of_run = |part: &str| &report["request"][part];
    let settings = serde_json::json!({
        "family": report["family"],
        "solver": of_run("solver"),
        "steps": of_run("steps"),
        "guidance": of_run("guidance"),
    });
    let settings: Settings =
        serde_json::from_value(settings).map_err(|e| wrong(format!("the report of an uncached run: {e}")))?;
    Promise::measured(Closeness::Psnr, method, settings, measured).map_err(wrong)
}
