//! What a comparison says of closeness by threshold, for targets that ask for it.

use std::collections::HashMap;

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::control::cache::promise::{Closeness, Promise, Settings};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::folder::REFERENCE;
use super::results::{Results, Run};
use crate::error::{Error, Result};

/// Sums up a comparison of one method at several thresholds, its other options given and the same: `--methods
/// stride,threshold=0.01,reuse=corrected,stride,threshold=0.02,reuse=corrected,...`.
pub fn promise(results: &Results) -> Result<Promise> {
    let wrong = |reason: String| Error::file(results.folder(), reason);
    let texts = || results.methods.iter().map(|summary| summary.method.as_str()).filter(|text| *text != REFERENCE);
    let specs = texts().map(|text| text.parse().map_err(|e| wrong(format!("{e}")))).collect::<Result<Vec<_>>>()?;
    let (method, thresholds) = one_method(&specs).map_err(wrong)?;
    check_distinct(results)?;
    let mut measured = Vec::new();
    for (text, threshold) in texts().zip(thresholds) {
        let psnr: Option<Vec<f64>> = results.of_method(text).map(|run| run.psnr()).collect();
        measured.push((threshold, psnr.ok_or_else(|| wrong(format!("{text}: not all videos have a PSNR yet")))?));
    }
    let report = results.runs.iter().find(|run| run.method == REFERENCE).map(|run| &run.report);
    let report = report.ok_or_else(|| wrong("has no uncached run".to_string()))?;
    let of_run = |part: &str| &report["request"][part];
    let settings = serde_json::json!({
        "family": report["family"],
        "solver": of_run("solver"),
        "steps": of_run("steps"),
        "guidance": of_run("guidance"),
        "shift": of_run("shift"),
        "extent": {"width": of_run("width"), "height": of_run("height"), "frames": of_run("frames")},
    });
    let settings: Settings =
        serde_json::from_value(settings).map_err(|e| wrong(format!("the report of an uncached run: {e}")))?;
    Promise::measured(Closeness::Psnr, method, settings, measured).map_err(wrong)
}

/// Refuses two uncached videos that are the same in every byte: prompts may differ in blanks alone, or say the same
/// to a model that knows few words.
fn check_distinct(results: &Results) -> Result<()> {
    let mut seen: HashMap<[u8; 32], &Run> = HashMap::new();
    for run in results.of_method(REFERENCE) {
        let path = results.folder().join(&run.video);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        if let Some(first) = seen.insert(Sha256::digest(&bytes).into(), run) {
            let told = |run: &Run| format!("{:?} of seed {}", run.prompt, run.seed);
            let reason = format!("is the video of {} and of {}: a promise counts each once", told(first), told(run));
            return Err(Error::file(path, reason));
        }
    }
    Ok(())
}

/// Refuses methods of which nothing could be promised, before hours go into their videos.
pub fn check_promise(methods: &[String]) -> Result<()> {
    let wrong = |expected| Error::Invalid { what: "methods", found: "of a promise".to_string(), expected };
    let others = methods.iter().filter(|text| *text != REFERENCE);
    let specs = others.map(|text| text.parse().map_err(|e| wrong(format!("{e}")))).collect::<Result<Vec<_>>>()?;
    one_method(&specs).map(drop).map_err(wrong)
}

/// A method's name and its options but the threshold, and its thresholds; or what is no such method.
type OneMethod = ((String, Map<String, Value>), Vec<f64>);

fn one_method(specs: &[CacheSpec]) -> Result<OneMethod, String> {
    let mut method: Option<(String, Map<String, Value>)> = None;
    let mut thresholds = Vec::new();
    for text in specs {
        let mut spec = text.clone();
        let threshold = spec.options.remove("threshold").and_then(|value| value.as_f64());
        let (Some(threshold), None) = (threshold, &spec.preset) else {
            return Err(format!("{text}: expected a method with a threshold, and no preset"));
        };
        let of = (spec.method, spec.options);
        if let Some(first) = method.as_ref().filter(|first| **first != of) {
            let first = CacheSpec::new(first.0.clone(), first.1.clone());
            return Err(format!("{text}: expected {first} with another threshold, and nothing else"));
        }
        method = Some(of);
        thresholds.push(threshold);
    }
    Ok((method.ok_or("has no method beside the reference")?, thresholds))
}
