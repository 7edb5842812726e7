//! Commands that need no model: the list of methods, replay and tuning.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use navicache_engine::control::cache::{Best, CacheConfig, CacheSpec, best, presets};
use navicache_engine::control::solver::SolverKind;
use navicache_engine::replay::predict;
use navicache_engine::replay::trace::Trace;
use navicache_engine::replay::tune::{self, Prediction, Target};
use navicache_engine::trace::{Recorded, read};
use navicache_engine::{WholeFile, save_curve, save_preset, save_promise};
use serde_json::{Value, json};

use crate::args::{Methods, Replay, Tune};
use crate::overwrite;
use crate::terminal::print;

/// `navicache methods`
pub fn methods(options: &Methods) -> Result<()> {
    if let Some(name) = &options.name {
        let described = CacheConfig::describe(CacheConfig::about(name)?);
        print(&if options.json { format!("{described:#}") } else { described_in_words(&described) });
        return Ok(());
    }
    if options.best {
        print_best(options.json);
        return Ok(());
    }
    let all = CacheConfig::METHODS;
    if options.json {
        print(&format!("{:#}", Value::from(all.iter().map(CacheConfig::describe).collect::<Vec<_>>())));
        return Ok(());
    }
    let width = |column: fn(&navicache_engine::control::cache::About) -> &str| {
        all.iter().map(|about| column(about).chars().count()).max().unwrap_or(0)
    };
    let (name, paper) = (width(|about| about.name), width(|about| about.paper));
    for about in all {
        let needs = about.needs.map_or(String::new(), |needs| format!(" Needs: {needs}."));
        print(&format!("{:<name$}  {:<paper$}  {}.{needs}", about.name, about.paper, about.line));
        let presets = presets_by_family(&CacheConfig::describe(about));
        if !presets.is_empty() {
            print(&format!("{:<name$}  presets: {presets}", ""));
        }
    }
    print("\nnavicache methods NAME shows options and presets.");
    Ok(())
}

/// What is taken where nothing is asked for, by family and solver.
fn print_best(json: bool) {
    let families = presets::families("stride");
    let choices = families
        .iter()
        .flat_map(|family| SolverKind::ALL.iter().map(move |&solver| (family, solver, best(family, solver))));
    if json {
        let choice = |(family, solver, best): (&String, SolverKind, Best)| json!({"family": family, "solver": solver, "cache": best.spec.to_string(), "why": best.why});
        return print(&format!("{:#}", Value::from(choices.map(choice).collect::<Vec<_>>())));
    }
    for (family, solver, best) in choices {
        print(&format!("{family:<12}  {:<9}  {}  {}", solver.to_string(), best.spec, best.why));
    }
}

/// `fast mid slow for demo, wan; mid for opensora`
fn presets_by_family(described: &Value) -> String {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for (family, presets) in described["presets"].as_object().into_iter().flatten() {
        let names: Vec<&str> = presets.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let names = names.join(" ");
        match groups.iter_mut().find(|(group, _)| *group == names) {
            Some((_, families)) => families.push(family.clone()),
            None => groups.push((names, vec![family.clone()])),
        }
    }
    groups.iter().map(|(names, families)| format!("{names} for {}", families.join(", "))).collect::<Vec<_>>().join("; ")
}

fn described_in_words(described: &Value) -> String {
    let text = |field: &str| described[field].as_str().unwrap_or_default();
    let needs = described["needs"].as_str().map_or(String::new(), |needs| format!(" Needs: {needs}."));
    let mut lines = vec![
        format!("{}: {}.", text("name"), text("line")),
        format!("Paper: {}. Written from: {}.{needs}", text("paper"), text("source")),
        String::new(),
    ];
    let objects = |value: &Value| value.as_object().cloned().unwrap_or_default();
    for option in described["options"].as_array().into_iter().flatten() {
        let default = match &option["default"] {
            _ if option["preset"] == true => "as the preset says".to_string(),
            Value::Null => "absent".to_string(),
            value => format!("default {value}"),
        };
        let name = option["name"].as_str().unwrap_or_default();
        lines.push(format!("  {name}  ({default})\n      {}", option["meaning"].as_str().unwrap_or_default()));
    }
    if described["options"].as_array().is_some_and(|options| options.is_empty()) {
        lines.push("  no options".to_string());
    }
    for (family, presets) in objects(&described["presets"]) {
        lines.push(format!("\nPresets for {family}:"));
        for (preset, options) in objects(&presets) {
            let options: Vec<String> = objects(&options).iter().map(|(key, value)| format!("{key}={value}")).collect();
            lines.push(format!("  {preset:<9} {}", options.join(" ").replace('"', "")));
        }
    }
    lines.join("\n")
}

/// `navicache replay`
pub fn replay(options: &Replay) -> Result<()> {
    let mut traces = Vec::new();
    let mut runs = Vec::new();
    for path in &options.files {
        match read(path)? {
            Recorded::Trace(trace) => traces.push(*trace),
            Recorded::Changes(changes) => runs.extend(changes),
        }
    }
    match (traces.is_empty(), runs.is_empty()) {
        (true, _) => replay_changes(options, &runs),
        (false, true) => replay_traces(options, &traces),
        (false, false) => Err(Error::Arguments {
            what: "replay",
            found: format!("{} files", options.files.len()),
            expected: "expected traces or CSV files, not both".to_string(),
        }),
    }
}

fn replay_changes(options: &Replay, runs: &[predict::Series]) -> Result<()> {
    let caches: Vec<String> = match options.cache.is_empty() {
        true => predict::ALL.iter().map(|s| s.to_string()).collect(),
        false => options.cache.clone(),
    };
    let mut scores = Vec::new();
    for cache in &caches {
        let score = predict::score(cache, runs)?;
        scores.push(score.ok_or_else(|| Error::Arguments {
            what: "--cache",
            found: cache.clone(),
            expected: format!("predicts no output change; those that do are {}", predict::ALL.join(", ")),
        })?);
    }
    if options.json {
        print(&format!("{:#}", json!(scores)));
        return Ok(());
    }
    print(&format!("{} runs, one step ahead, from change {} on", runs.len(), predict::TEACHING));
    for score in &scores {
        print(&format!("{:<15} mean absolute error {:.4}", score.method, score.mean_absolute_error));
    }
    Ok(())
}

fn replay_traces(options: &Replay, traces: &[Trace]) -> Result<()> {
    let family = family(&options.files, traces)?;
    let mut specs = Vec::new();
    for cache in &options.cache {
        specs.extend(tune::sweep(cache)?);
    }
    if options.cache.is_empty() {
        specs = tune::all_methods(family);
    }
    let predictions = specs.iter().map(|spec| tune::predict(traces, spec, family)).collect::<Result<Vec<_>, _>>()?;
    if options.json {
        print(&format!("{:#}", Value::from(predictions.iter().map(Prediction::to_json).collect::<Vec<_>>())));
        return Ok(());
    }
    let width = predictions.iter().map(|p| p.spec.to_string().len()).max().unwrap_or(0).max("method".len());
    let (units, forwards) = ("units", "forwards");
    print(&format!(
        "{:<width$} {units:>7} {forwards:>9} {:>8} {:>10}  strip of the first",
        "method", "speed-up", "error"
    ));
    for prediction in &predictions {
        print(&line(prediction, width));
        for (trace, alarm) in prediction.alarms.iter().enumerate().flat_map(|(i, all)| all.iter().map(move |a| (i, a)))
        {
            print(&format!("{:<width$} trace {}, {alarm}", "", trace + 1));
        }
    }
    Ok(())
}

/// `navicache tune`
pub fn tune(options: &Tune) -> Result<()> {
    let traces_read = options.traces.iter().map(|path| ("a trace", path.as_path()));
    overwrite::refuse([("--output", &*options.output)], traces_read)?;
    WholeFile::create(&options.output)?; // unwritable? now is the time to know
    let target = match (options.speedup, options.budget) {
        (Some(speedup), _) => Target::SpeedUp(positive("--speedup", speedup)?),
        _ if options.curve || options.promise => Target::SpeedUp(1.0), // every threshold is played, none is chosen
        (None, budget) => Target::Error(positive("--budget", budget.unwrap_or_default())?),
    };
    let mut traces = Vec::new();
    for path in &options.traces {
        match read(path)? {
            Recorded::Trace(trace) => traces.push(*trace),
            Recorded::Changes(_) => {
                let expected = "expected a trace; a CSV file of changes does not say what values would be".to_string();
                return Err(Error::Arguments { what: "tune", found: path.display().to_string(), expected });
            }
        }
    }
    let family = family(&options.traces, &traces)?;
    if options.curve {
        return make_curve(options, &traces, family);
    }
    if options.promise {
        return make_promise(options, &traces, family);
    }
    let specs = if options.cache.is_empty() { tune::all_methods(family) } else { options.cache.clone() };
    let chosen = tune::best(&traces, &specs, family, target)?;
    save_preset(&chosen.cache, family, chosen.to_json(), &options.output)?;
    print(&line(&chosen, 0));
    print(&format!("{}: use it with --cache @{}", options.output.display(), options.output.display()));
    Ok(())
}

/// The one method that a curve or a promise is of.
fn only<'a>(options: &'a Tune, what: &'static str) -> Result<&'a CacheSpec> {
    let [spec] = &options.cache[..] else {
        let found = format!("{} methods", options.cache.len());
        return Err(Error::Arguments { what, found, expected: "expected one --cache: it is of one method".into() });
    };
    Ok(spec)
}

fn make_promise(options: &Tune, traces: &[Trace], family: &str) -> Result<()> {
    let promise = tune::promise(traces, only(options, "--promise")?, family)?;
    save_promise(&promise, &options.output)?;
    for row in &promise.thresholds {
        print(&format!("{:<12} error {:<8} or less, {} in the mean", row.threshold, row.bound, row.mean));
    }
    let (file, method) = (options.output.display(), &promise.method);
    print(&format!("{file}: use it with --cache {method} --target error=E,curve={file}"));
    Ok(())
}

fn make_curve(options: &Tune, traces: &[Trace], family: &str) -> Result<()> {
    let spec = only(options, "--curve")?;
    let curve = tune::curve(traces, spec, family)?;
    save_curve(&curve, &options.output)?;
    for row in &curve.thresholds {
        let (threshold, steps) = (row.threshold, curve.sigmas.len() - 1);
        print(&format!("{threshold:<12} {:>6.1} of {steps} steps", row.computed[steps]));
    }
    let (file, method) = (options.output.display(), &curve.method);
    print(&format!("{file}: use it with --cache {method} --target speedup=2,curve={file}"));
    Ok(())
}

/// The family that all traces are of.
fn family<'a>(files: &[PathBuf], traces: &'a [Trace]) -> Result<&'a str> {
    let first = &traces[0].header.family;
    match traces.iter().zip(files).find(|(trace, _)| trace.header.family != *first) {
        None => Ok(first),
        Some((trace, path)) => Err(Error::Arguments {
            what: "trace",
            found: Path::new(path).display().to_string(),
            expected: format!(
                "is of {}, the first is of {first}; thresholds belong to one family",
                trace.header.family
            ),
        }),
    }
}

fn positive(what: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::Arguments { what, found: value.to_string(), expected: "expected a number above 0".to_string() })
}

fn line(prediction: &Prediction, width: usize) -> String {
    let error = prediction.error.map_or("unknown".to_string(), |error| format!("{error:.5}"));
    let strip: String = prediction.strip.split('|').filter_map(|step| step.chars().next()).collect();
    let (units, speedup) = (100.0 * prediction.computed, prediction.speedup());
    let [computed, mixed, reused] = prediction.forwards;
    let forwards = format!("{computed}/{}", computed + mixed + reused);
    let name = prediction.spec.to_string();
    format!("{name:<width$} {units:>5.0} % {forwards:>9} {speedup:>8.2} {error:>10}  {strip}")
}
