//! Runs what a plan asks for and a folder lacks.

use std::ops::ControlFlow;
use std::path::Path;

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::replay::trace::Stack;
use navicache_engine::report::{BranchReport, Report, StepReport, described};
use navicache_engine::{Pipeline, Request, Video, cache_argument, generate_with, warm_up};
use navicache_media::video::{self, Scale};
use navicache_media::{Clip, Spec};
use navicache_metrics::{Lpips, Meter};
use serde_json::{Value, json};

use super::folder::{Asked, Call, Folder, REFERENCE, Record};
use super::results::{Results, Run};
use crate::error::{Error, Result};

/// Methods that are worth a look, where a model has presets for them.
const WORTH_A_LOOK: [&str; 7] =
    [REFERENCE, "none,steps=25", "stride:mid", "stride:fast", "navicache:mid", "navicache:fast", "easycache:mid"];

/// What is to be compared: every method on every prompt with every seed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the videos show.
    pub prompts: Vec<String>,
    /// Methods as `--cache` takes them, in the order they are shown; none: those that are worth a look. The uncached
    /// run is added.
    pub methods: Vec<String>,
    /// Seeds of the noise; none: the model's own.
    pub seeds: Vec<u64>,
    /// Everything else, the same for all. Its prompt, seed and method are left aside.
    pub request: Request,
    /// Learned perceptual distance, where there are weights for it.
    pub lpips: Option<Lpips>,
    /// What is told of how it was made.
    pub call: Option<Call>,
}

/// What happens meanwhile, in order. Answer [`ControlFlow::Break`] to stop; what is done is kept.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Nothing has run yet.
    Planned {
        /// Videos in all.
        runs: usize,
        /// How many of them are there already.
        kept: usize,
    },
    /// A step whose time does not count, so that the first run is not the one that waits for the weights.
    WarmingUp,
    /// A run begins.
    Run {
        /// From 0, among those that are still to be done.
        index: usize,
        /// How many those are.
        runs: usize,
        /// What the video shows.
        prompt: &'a str,
        /// Seed of the noise.
        seed: u64,
        /// The method, as given.
        method: &'a str,
    },
    /// What happens inside of it.
    Inner(navicache_engine::Event<'a>),
    /// It is done, and on disk.
    Done(&'a Run),
}

/// Runs what a plan asks for and the folder does not have yet. Says what the folder holds then, of earlier plans too.
pub fn run(
    pipeline: &Pipeline,
    plan: &Plan,
    folder: &Path,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Results> {
    // 1. What is meant: whatever is wrong shows now
    let meter = Meter { lpips: plan.lpips.clone(), ..Meter::default() };
    let call = plan.call.clone();
    let plan = Checked::new(pipeline, plan)?;
    let mut asked = Vec::new();
    for pair in plan.pairs() {
        for method in &plan.methods {
            let request = plan.request(pair, method)?;
            let expected = expected(pipeline, &request, &meter)?;
            asked.push((pair, method.as_str(), request, expected));
        }
    }

    // 2. What is there, made with the same settings
    let settings = asked.first().map(|(.., expected)| in_common(expected)).unwrap_or_default();
    let Checked { prompts, methods, seeds, .. } = &plan;
    let folder = Folder::open(folder, Asked { prompts, methods, seeds, call: call.as_ref() }, settings)?;
    let runs_asked = asked.len();
    let mut jobs: Vec<Job> = Vec::new();
    for (pair, method, request, expected) in asked {
        let record = folder.record(pair.0, pair.1, method);
        if record.is_done(&expected)? {
            continue;
        }
        // Without its frames, nothing can be measured against the reference.
        let reference = folder.record(pair.0, pair.1, REFERENCE);
        let is_next = |job: &Job| job.pair == pair && job.method == REFERENCE;
        if method != REFERENCE && !reference.frames().exists() && !jobs.iter().any(is_next) {
            let request = plan.request(pair, REFERENCE)?;
            jobs.push(Job {
                pair,
                method: REFERENCE,
                request,
                record: reference.clone(),
                reference: reference.clone(),
            });
        }
        jobs.push(Job { pair, method, request, record, reference });
    }
    let runs = jobs.len();
    // A wish to stop is heard below.
    let _ = on_event(Event::Planned { runs: runs_asked, kept: runs_asked.saturating_sub(runs) });

    // 3. What is left, the methods of a pair one after the other: a machine that is busy for a while slows all of them
    if let Some(job) = jobs.first() {
        let _ = on_event(Event::WarmingUp);
        let mut quietly = |event: navicache_engine::Event| match event {
            // The runs say it again.
            navicache_engine::Event::Warning(_) | navicache_engine::Event::Resolved(_) => ControlFlow::Continue(()),
            event => on_event(Event::Inner(event)),
        };
        warm_up(pipeline, &job.request, &mut quietly)?;
    }
    let mut frames = None;
    for (index, job) in jobs.iter().enumerate() {
        let (prompt, seed) = job.pair;
        let _ = on_event(Event::Run { index, runs, prompt, seed, method: job.method });
        frames = Some(job.run(pipeline, &meter, frames, on_event)?);
        let done = Run::new(prompt, seed, job.method, &job.record)?;
        if on_event(Event::Done(&done)).is_break() && index + 1 < runs {
            return Err(Error::cancelled(done.steps(), done.steps()));
        }
        if jobs.get(index + 1).is_some_and(|next| next.pair != job.pair) {
            frames = None;
        }
    }
    Results::of(&folder)
}

/// A plan with nothing left open.
struct Checked<'a> {
    prompts: Vec<String>,
    methods: Vec<String>,
    seeds: Vec<u64>,
    request: &'a Request,
}

impl<'a> Checked<'a> {
    fn new(pipeline: &Pipeline, plan: &'a Plan) -> Result<Self> {
        let mut methods = vec![REFERENCE.to_string()];
        match plan.methods.is_empty() {
            true => methods.extend(WORTH_A_LOOK.into_iter().filter(|text| has(pipeline, text)).map(str::to_string)),
            false => methods.extend(plan.methods.iter().cloned()),
        }
        let seeds = if plan.seeds.is_empty() { vec![plan.request.seed.unwrap_or(0)] } else { plan.seeds.clone() };
        let checked = Checked {
            prompts: once(&plan.prompts),
            methods: once(&methods),
            seeds: once(&seeds),
            request: &plan.request,
        };
        let refuse = |what, found, expected: &str| Err(Error::invalid(what, found, expected));
        if checked.prompts.is_empty() {
            return refuse("prompts", "none".to_string(), "expected at least one");
        }
        if let Some(path) = plan.request.latents.as_ref().filter(|_| checked.seeds.len() > 1) {
            let expected = "stands in place of a seed; expected one seed with it";
            return refuse("the latents", path.display().to_string(), expected);
        }
        Ok(checked)
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, u64)> {
        self.prompts.iter().flat_map(|prompt| self.seeds.iter().map(|&seed| (prompt.as_str(), seed)))
    }

    fn request(&self, (prompt, seed): (&str, u64), method: &str) -> Result<Request> {
        let (cache, steps) = split_steps(method)?;
        Ok(Request {
            prompt: prompt.to_string(),
            seed: Some(seed),
            cache: Some(cache_argument(&cache)?),
            steps: steps.or(self.request.steps),
            save_latents: None,
            ..self.request.clone()
        })
    }
}

/// A method's `steps=N` apart: so many steps in place of the plan's. `none,steps=25` is the rival of every method: the
/// same solver with fewer steps, and nothing reused.
fn split_steps(method: &str) -> Result<(String, Option<usize>)> {
    let Some((before, rest)) = method.split_once(",steps=") else { return Ok((method.to_string(), None)) };
    let (number, after) = rest.split_once(',').map_or((rest, ""), |(number, after)| (number, after));
    let steps = number.trim().parse().map_err(|_| {
        let expected = "expected a number of steps after steps=, as in none,steps=25".to_string();
        Error::invalid("method", method, expected)
    })?;
    let cache = if after.is_empty() { before.to_string() } else { format!("{before},{after}") };
    Ok((cache, Some(steps)))
}

/// Whether a model has the preset.
fn has(pipeline: &Pipeline, text: &str) -> bool {
    let cache = split_steps(text).map_or_else(|_| text.to_string(), |(cache, _)| cache);
    cache.parse::<CacheSpec>().and_then(|spec| spec.resolve(&pipeline.defaults().presets)).is_ok()
}

/// The values without those that came before.
fn once<T: Clone + PartialEq>(values: &[T]) -> Vec<T> {
    let new = |(i, value): &(usize, &T)| !values[..*i].contains(value);
    values.iter().enumerate().filter(new).map(|(_, value)| value.clone()).collect()
}

/// What a run's record must say for it to stand for the request. The machine belongs to it: times of two machines
/// cannot be compared.
fn expected(pipeline: &Pipeline, request: &Request, meter: &Meter) -> Result<Value> {
    let resolved = pipeline.resolve(request)?;
    let (cache, machine) = (described(resolved.cache.method()), pipeline.machine());
    Ok(json!({
        "model": pipeline.name(), "added": pipeline.added(), "request": resolved, "cache": cache, "machine": machine,
        "lpips": meter.lpips.is_some(),
    }))
}

/// What of it all runs of a folder share.
fn in_common(expected: &Value) -> Value {
    let mut settings = expected.clone();
    for (part, own) in [("request", "prompt"), ("request", "seed")] {
        settings[part].as_object_mut().map(|fields| fields.remove(own));
    }
    settings.as_object_mut().map(|fields| fields.remove("cache"));
    settings
}

/// A run that is to be done.
struct Job<'a> {
    /// Prompt and seed.
    pair: (&'a str, u64),
    method: &'a str,
    request: Request,
    record: Record,
    /// The uncached run of the same pair.
    reference: Record,
}

impl Job<'_> {
    /// Makes the video, measures it, and writes everything; the record comes last. Hands the frames of the reference
    /// on.
    fn run(
        &self,
        pipeline: &Pipeline,
        meter: &Meter,
        reference: Option<Clip>,
        on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Clip> {
        let resolved = pipeline.resolve(&self.request)?;
        let mut video = generate_with(pipeline, &self.request, resolved.cache.method(), &mut |event| {
            on_event(Event::Inner(event))
        })?;
        self.record.make_folder()?;
        video.scale = Scale::NONE; // the page enlarges
        video.save(&self.record.video())?;

        let (reference, compared) = if self.method == REFERENCE {
            let reference = lossless(&mut video, &self.record)?;
            (reference, None)
        } else {
            let reference = match reference {
                Some(reference) => reference,
                None => video::read(&self.reference.frames())?,
            };
            // Frames from memory: a video file has lost something already.
            let compared = meter.compare(reference.as_frames()?, video.as_frames()?)?;
            (reference, Some(compared))
        };
        let mut record = serde_json::to_value(&video.report).unwrap_or_default();
        record["added"] = json!(pipeline.added());
        record["lpips"] = json!(meter.lpips.is_some());
        record["compared"] = json!(compared);
        record["blocks"] = ran(&video.report);
        self.record.write(&record)?;
        Ok(reference)
    }
}

/// Keeps the frames of the reference, for methods that are measured against it later.
fn lossless(video: &mut Video, record: &Record) -> Result<Clip> {
    let Spec { width, height, fps, .. } = video.spec;
    let clip = Clip { width, height, fps: None, frames: std::mem::take(&mut video.frames) };
    clip.save(&record.frames(), fps, Scale::NONE)?;
    Ok(clip)
}

/// What ran of every step and branch: `S` all of it, `.` nothing, else a character a unit, in the order they run.
fn ran(report: &Report) -> Value {
    let of_branch = |branch: &BranchReport| match &branch.units {
        Some(units) => units.clone(),
        None => if branch.units_computed > 0 { "S" } else { "." }.to_string(),
    };
    let names: Vec<String> = report.branches.iter().map(|branch| branch.name().into_owned()).collect();
    let of_step = |step: &StepReport| names.iter().filter_map(|name| step.branches.get(name)).map(of_branch).collect();
    let steps: Vec<Vec<String>> = report.steps.iter().map(of_step).collect();
    let units = Stack::units(&report.stacks).into_iter().map(|unit| json!({"block": unit.block, "part": unit.part}));
    json!({"branches": names, "units": units.collect::<Vec<_>>(), "steps": steps})
}
