//! Traces on disk: recorded from a run that computes everything, written as JSON lines, read back for replay.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use navicache_control::cache::Run;
use navicache_control::cache::promise::Extent;
use navicache_control::guidance::Branch;
use navicache_replay::predict::Series;
use navicache_replay::trace::{Header, LAGS_MAX, Made, Recorder, Stack, Trace, TraceStep, VERSION};

use crate::event::{Event, Reporter};
use crate::generate::{Denoised, Destination, denoise};
use crate::report::StepReport;
use crate::{Error, Pipeline, Request, Resolved, Result, WholeFile};

/// Runs a request with everything computed, and records what any method may ask for. Nothing is decoded.
pub fn record(
    pipeline: &Pipeline,
    request: &Request,
    recorder: &Recorder,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Trace> {
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    let request = &Request { cache: Some("none".parse()?), target: None, ..request.clone() };
    let Denoised { resolved, run, sampled, .. } =
        denoise(pipeline, request, Some(recorder), Destination::Latents, &mut reporter)?;
    let Resolved { solver, guidance, shift, width, height, frames, .. } = resolved;
    let extent = Some(Extent { width, height, frames });
    let made = Some(Made { solver, guidance, shift: Some(shift), extent });
    let about = About { model: pipeline.name().to_string(), prompt: resolved.prompt, seed: resolved.seed, made };
    Ok(recorded(about, &run, recorder.lags, sampled.steps))
}

/// Whose run a trace is of.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Name or path of the model.
    pub model: String,
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// How it was made, where that is known.
    pub made: Option<Made>,
}

/// The trace of a run that a [`Recorder`] with so many lags has led.
pub fn recorded(about: About, run: &Run, lags: usize, steps: Vec<StepReport>) -> Trace {
    let header = Header {
        trace: VERSION,
        model: about.model,
        family: run.family.clone(),
        prompt: about.prompt,
        seed: about.seed,
        branches: run.branches.clone(),
        stacks: Stack::of(&run.units),
        segments: run.segments.clone(),
        lags,
        made: about.made,
    };
    let branch = |name: String| run.branches.iter().copied().find(|branch| branch.name() == name);
    let step = |report: StepReport| {
        let seen = report.branches.into_iter().filter_map(|(name, report)| Some((branch(name)?, report.seen)));
        let seen: BTreeMap<Branch, BTreeMap<String, f64>> = seen.collect();
        TraceStep { step: report.index, timestep: report.timestep, sigma: report.sigma, seen }
    };
    Trace { header, steps: steps.into_iter().map(step).collect() }
}

/// A trace as text: the header's line, then a line a step.
pub fn to_text(trace: &Trace) -> String {
    let mut text = serde_json::json!(trace.header).to_string() + "\n";
    for step in &trace.steps {
        text += &serde_json::json!(step).to_string();
        text.push('\n');
    }
    text
}

/// Writes a trace, whole or not at all: see [`to_text`].
pub fn save(trace: &Trace, path: &Path) -> Result<()> {
    Ok(WholeFile::create(path)?.finish_with(to_text(trace).as_bytes())?)
}

/// A file of recorded numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// A trace.
    Trace(Box<Trace>),
    /// Relative changes alone, of several runs.
    Changes(Vec<Series>),
}

/// Reads a trace, or a CSV file with the columns `step`, `input_rel_l1`, `output_rel_l1` and `experiment_id`.
pub fn read(path: &Path) -> Result<Recorded> {
    let file = navicache_media::open_file(path)?;
    let mut reader = BufReader::new(file);
    let first = reader.fill_buf().map_err(Error::io(path))?.first().copied();
    match first {
        None => Err(Error::file(path, "is empty, expected a trace or a CSV file of changes")),
        Some(b'{') => read_trace(reader, path).map(|trace| Recorded::Trace(Box::new(trace))),
        Some(_) => read_changes(reader, path).map(Recorded::Changes),
    }
}

/// More than any model has.
const BLOCKS_MAX: usize = 10_000;
const PARTS_MAX: usize = 16;

fn read_trace(reader: impl BufRead, path: &Path) -> Result<Trace> {
    let wrong = |line: usize, reason: String| Error::file(path, format!("line {}: {reason}", line + 1));
    let mut lines = reader.lines().enumerate();
    let Some((_, first)) = lines.next() else { return Err(wrong(0, "expected a header".to_string())) };
    let header: Header =
        serde_json::from_str(&first.map_err(Error::io(path))?).map_err(|e| wrong(0, format!("not a header: {e}")))?;
    if header.trace != VERSION {
        return Err(wrong(0, format!("trace format {}, expected {VERSION}", header.trace)));
    }
    let empty = |stack: &Stack| stack.blocks == 0 || stack.parts.is_empty();
    let nothing = header.branches.is_empty() || header.stacks.is_empty() || header.stacks.iter().any(empty);
    if nothing || header.lags == 0 {
        return Err(wrong(
            0,
            "branches, stacks, their blocks and parts, lags: expected at least one of each".to_string(),
        ));
    }
    let blocks = header.stacks.iter().fold(0usize, |sum, stack| sum.saturating_add(stack.blocks));
    let parts = header.stacks.iter().map(|stack| stack.parts.len()).max().unwrap_or(0);
    if blocks > BLOCKS_MAX || parts > PARTS_MAX || header.lags > LAGS_MAX {
        let reason = format!(
            "{blocks} blocks of {parts} parts, {} lags: expected at most {BLOCKS_MAX}, {PARTS_MAX} and {LAGS_MAX}",
            header.lags
        );
        return Err(wrong(0, reason));
    }
    let mut steps: Vec<TraceStep> = Vec::new();
    for (number, line) in lines {
        let line = line.map_err(Error::io(path))?;
        let step: TraceStep = serde_json::from_str(&line).map_err(|e| wrong(number, e.to_string()))?;
        if step.step != steps.len() {
            return Err(wrong(number, format!("step {}, expected {}", step.step, steps.len())));
        }
        if steps.last().is_some_and(|before| before.sigma <= step.sigma) {
            return Err(wrong(number, format!("sigma {} does not fall", step.sigma)));
        }
        if let Some(missing) = header.branches.iter().find(|branch| !step.seen.contains_key(branch)) {
            return Err(wrong(number, format!("no values of branch {}", missing.name())));
        }
        steps.push(step);
    }
    if steps.is_empty() {
        return Err(Error::file(path, "has no steps"));
    }
    Ok(Trace { header, steps })
}

/// One line of the CSV form.
#[derive(serde::Deserialize)]
struct Row {
    step: usize,
    input_rel_l1: f64,
    output_rel_l1: f64,
    experiment_id: String,
}

/// The first step of a run has nothing before it; its line holds zeros and is left out.
fn read_changes(reader: impl BufRead, path: &Path) -> Result<Vec<Series>> {
    let mut runs: Vec<Series> = Vec::new();
    for row in csv::Reader::from_reader(reader).deserialize() {
        let Row { step, input_rel_l1: input, output_rel_l1: output, experiment_id: name } =
            row.map_err(|e| Error::file(path, e.to_string()))?;
        if step == 0 {
            continue;
        }
        let usable = |change: f64| change.is_finite() && change > 0.0;
        if !(usable(input) && usable(output)) {
            let reason = format!("{name}, step {step}: changes {input} and {output}, expected positive numbers");
            return Err(Error::file(path, reason));
        }
        match runs.iter_mut().find(|run| run.name == name) {
            Some(run) => run.changes.push((input, output)),
            None => runs.push(Series { name, changes: vec![(input, output)] }),
        }
    }
    let needed = navicache_replay::predict::TEACHING + 1;
    match runs.iter().find(|run| run.changes.len() < needed) {
        Some(run) => {
            let reason = format!("{} has {} changes, expected at least {needed}", run.name, run.changes.len());
            Err(Error::file(path, reason))
        }
        None if runs.is_empty() => Err(Error::file(path, "has no rows")),
        None => Ok(runs),
    }
}
