//! The main flow: request -> prompt -> latents -> frames.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytesize::ByteSize;
use candle_core::Tensor;
use navicache_control::cache::{self, CacheError, CacheMemory, Guarded, Method, Run};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Step;
use navicache_media::video::{self, Scale};
use navicache_media::{Clip, Frames, Spec, WholeFile, overwritten};
use navicache_models::{Branches, Part, Unit};
use navicache_replay::trace::Stack;

use crate::advice;
use crate::checkpoint::{self, Identity, Saved};
use crate::decode::decode_frames;
use crate::denoise::{Sampled, Sampler, Setup, Start, StepDone};
use crate::draws::Draws;
use crate::event::{Event, Reporter, Stage};
use crate::family::{Conditioning, ImageConditioning};
use crate::field::Field;
use crate::files;
use crate::pipeline::Pipeline;
use crate::preview::Previews;
use crate::probe::decode_seconds;
use crate::report::{self, Report, Seconds, TargetReport, Totals, described};
use crate::request::{Request, Resolved};
use crate::target;
use crate::{Error, Result, latents, machine};

/// A finished video.
pub struct Video {
    /// 8-bit RGB. // (frames, height, width, 3)
    pub frames: Vec<u8>,
    /// Its size, rate and number of frames.
    pub spec: Spec,
    /// How large it is in a file.
    pub scale: Scale,
    /// The final latents, before the VAE's own mean and deviation. // (1, channels, latent frames, height, width)
    pub latents: Tensor,
    /// What was done.
    pub report: Report,
}

impl Video {
    /// A view of the frames.
    pub fn as_frames(&self) -> Result<Frames<'_>> {
        Ok(Frames::new(&self.frames, self.spec.width, self.spec.height)?)
    }

    /// Writes it in the format that the file name's ending says, and adds the time it took to the report, and what the
    /// user should know of such a file.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        let clock = Instant::now();
        let Spec { width, height, fps, .. } = self.spec;
        let clip = Clip { width, height, fps: None, frames: std::mem::take(&mut self.frames) };
        let saved = clip.save(path, fps, self.scale);
        self.frames = clip.frames;
        saved?;
        let (warnings, new) = (&mut self.report.warnings, video::warning(path, fps));
        warnings.extend(new.filter(|new| !warnings.contains(new)));
        let (seconds, took) = (&mut self.report.totals.seconds, clock.elapsed().as_secs_f64());
        seconds.write += took;
        seconds.total += took;
        Ok(())
    }
}

/// Makes a video. The cache method is the request's, or the model's default.
pub fn generate(
    pipeline: &Pipeline,
    request: &Request,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Video> {
    run(pipeline, request, None, Output::default(), on_event)
}

/// Makes a video and writes it to a file. Until it is written, its final latents are kept beside it, so that nothing is
/// lost should decoding or writing fail: [`Event::Kept`] says where.
pub fn generate_to(
    pipeline: &Pipeline,
    request: &Request,
    path: &Path,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Video> {
    video::check_destination(path)?;
    let mut rescue = Rescue::beside(path, request);
    let output = Output { file: Some(path), rescue: rescue.as_mut() };
    let made = run(pipeline, request, None, output, on_event).and_then(|mut video| {
        video.save(path)?;
        Ok(video)
    });
    if let Some(rescue) = rescue.filter(|rescue| rescue.is_written) {
        match &made {
            Ok(_) => drop(std::fs::remove_file(&rescue.path)), // nothing is lost should it stay
            Err(_) => drop(on_event(Event::Kept(&rescue.path))),
        }
    }
    if let (Ok(_), Some(checkpoint)) = (&made, &request.checkpoint) {
        checkpoint.close();
    }
    made
}

/// Where final latents are kept until their video is written.
pub(crate) struct Rescue {
    path: PathBuf,
    is_written: bool,
}

impl Rescue {
    /// `OUT.mp4.latents.safetensors`, or a name with a number where something is there or the user gave that name to a
    /// file of latents; none where a checkpoint holds them.
    fn beside(video: &Path, request: &Request) -> Option<Self> {
        if request.checkpoint.is_some() {
            return None;
        }
        let named = |end: &str| {
            let mut name = video.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let numbered = (2..).map(|n| named(&format!(".latents-{n}.safetensors")));
        let is_free = |path: &PathBuf| {
            let theirs = [&request.save_latents, &request.latents].into_iter().flatten();
            let theirs = theirs.map(|file| ((), file.as_path()));
            path.symlink_metadata().is_err() && overwritten([((), path.as_path())], theirs).is_none()
        };
        let path = std::iter::once(named(".latents.safetensors")).chain(numbered).find(is_free)?;
        Some(Rescue { path, is_written: false })
    }
}

/// The same, with a cache method of one's own: anything that implements [`Method`].
pub fn generate_with(
    pipeline: &Pipeline,
    request: &Request,
    method: &dyn Method,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Video> {
    run(pipeline, request, Some(method), Output::default(), on_event)
}

fn run(
    pipeline: &Pipeline,
    request: &Request,
    method: Option<&dyn Method>,
    output: Output,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Video> {
    let begun = Instant::now();
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    let Denoised { resolved, scale, run, sampled, memory, cache, target, mut seconds } =
        denoise(pipeline, request, method, Destination::Frames(output), &mut reporter)?;
    let frames = resolved.frames;

    // Decode, after everything that `denoise` does
    let clock = Instant::now();
    let pixels = decode_frames(pipeline, &sampled.latents, frames, resolved.tile, &mut reporter)?;
    seconds.decode = clock.elapsed().as_secs_f64();
    seconds.total += begun.elapsed().as_secs_f64();

    let totals = Totals {
        store_bytes: memory.bytes,
        seconds,
        peak_memory_bytes: machine::peak_memory_bytes(),
        ..Totals::of(&sampled.strip, &sampled.steps)
    };
    let report = Report {
        version: report::VERSION,
        model: pipeline.name().to_string(),
        cache,
        branches: run.branches,
        stacks: Stack::of(&run.units),
        family: run.family,
        strip: sampled.strip.to_string(),
        steps: sampled.steps,
        totals,
        target,
        guards: sampled.records.iter().flat_map(|record| record.alarms.clone()).collect(),
        warnings: reporter.warnings,
        machine: pipeline.machine(),
        request: resolved.clone(),
    };
    // What is decoded may be a little smaller than what was asked for, where latents are rounded down.
    let (width, height, _) = pipeline.family().shared().sizes.video_shape(&latents::shape_of(&sampled.latents)?);
    let spec = Spec { width, height, fps: resolved.fps, frames };
    Ok(Video { frames: pixels, spec, scale, latents: sampled.latents, report })
}

/// What a request means, and what the user should know of it. Refuses what [`generate`] would refuse before it reads a
/// weight.
pub fn check(pipeline: &Pipeline, request: &Request) -> Result<(Resolved, Vec<String>)> {
    let mut ignored = |_: Event| ControlFlow::Continue(());
    let mut reporter = Reporter { on_event: &mut ignored, warnings: Vec::new(), cancelled: false };
    let resolved = pipeline.resolve(request)?;
    pipeline.family().check(&resolved, &mut reporter)?;
    pipeline.check_memory(&resolved)?;
    target::steered(resolved.cache.method(), request, &resolved, &pipeline.defaults().presets)?;
    Ok((resolved, reporter.warnings))
}

/// Runs one uncached step and decodes nothing, so that the weights are read before something is timed.
pub fn warm_up(
    pipeline: &Pipeline,
    request: &Request,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<()> {
    let cache = Some("none".parse()?);
    let request = Request {
        steps: Some(1),
        cache,
        target: None,
        preview: None,
        checkpoint: None,
        resume: None,
        ..request.clone()
    };
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    denoise(pipeline, &request, None, Destination::Latents, &mut reporter).map(drop)
}

/// Where a video goes, if it is written.
#[derive(Default)]
pub(crate) struct Output<'a> {
    file: Option<&'a Path>,
    /// Where its latents are kept until then.
    rescue: Option<&'a mut Rescue>,
}

/// What the latents are for.
pub(crate) enum Destination<'a> {
    /// To be decoded.
    Frames(Output<'a>),
    /// To be looked at on the way.
    Latents,
}

/// Everything before the decoder.
pub(crate) struct Denoised {
    pub resolved: Resolved,
    /// How large the video is in a file.
    pub scale: Scale,
    pub run: Run,
    pub sampled: Sampled,
    pub memory: CacheMemory,
    /// The method with its options.
    pub cache: serde_json::Value,
    /// What became of the target.
    pub target: Option<TargetReport>,
    /// Of the stages so far; `total` is what earlier runs took that this one goes on from.
    pub seconds: Seconds,
}

/// From the request to the final latents.
pub(crate) fn denoise(
    pipeline: &Pipeline,
    request: &Request,
    method: Option<&dyn Method>,
    destination: Destination<'_>,
    reporter: &mut Reporter,
) -> Result<Denoised> {
    let begun = Instant::now();
    let mut seconds = Seconds::default();

    let family = pipeline.family();

    // 1. What is meant, by the request and by what it goes on from
    let device = &family.shared().host.device;
    let saved = request.resume.as_ref().map(|resume| checkpoint::open(&resume.path, device)).transpose()?;
    let request = &saved.as_ref().map_or_else(|| Ok(request.clone()), |saved| saved.complete(request))?;
    let (resolved, picture) = pipeline.understood(request)?;
    family.check(&resolved, reporter)?;
    pipeline.check_memory(&resolved)?;
    let (file, rescue_path) = match &destination {
        Destination::Frames(output) => (output.file, output.rescue.as_ref().map(|rescue| &rescue.path)),
        Destination::Latents => (None, None),
    };
    files::check(request, file)?;
    for path in resolved.save_latents.iter().chain(rescue_path) {
        WholeFile::create(path)?; // unwritable? now is the time to know
    }
    let Resolved { width, height, frames, fps, steps, .. } = resolved;
    let scale = pipeline.scale(request.scale);
    file.map_or(Ok(()), |path| video::check_fits(path, &Spec { width, height, fps, frames }, scale))?;
    let method = method.unwrap_or(resolved.cache.method());
    let steered = target::steered(method, request, &resolved, &pipeline.defaults().presets)?;
    let method: &dyn Method = steered.as_ref().map_or(method, |steered| steered);
    let schedule = family.shared().scheduler.schedule(resolved.solver, steps, resolved.shift)?;
    let branches = family.branches(&resolved);
    let identity = || Identity::of(pipeline, &resolved, request.scale, method, &schedule.steps, &branches);
    let mut keeper = checkpoint::prepare(request, saved.as_ref(), identity, reporter)?;
    let shape = family.shared().sizes.latents_shape(width, height, frames);
    let given = resolved.latents.is_some() || saved.as_ref().is_some_and(Saved::began_with_latents);
    let draws = Draws { given, ..family.draws(&resolved, &shape) };
    let latents = match &resolved.latents {
        Some(path) => latents::from_file(path, &shape, device)?,
        None => draws.start(device)?,
    };
    reporter.emit(Event::Resolved(&resolved));
    pipeline.warnings().iter().for_each(|warning| reporter.warn(warning.clone()));
    file.and_then(|path| video::warning(path, fps)).into_iter().for_each(|warning| reporter.warn(warning));
    let trained = pipeline.defaults().trained.as_ref();
    trained.map(|trained| trained.warnings(&resolved)).into_iter().flatten().for_each(|warning| reporter.warn(warning));
    advice::before(method, steps).into_iter().for_each(|warning| reporter.warn(warning));
    let presets = &pipeline.defaults().presets;
    if let Some(other) = request.cache.as_ref().and_then(|spec| spec.tuned_for.as_ref()).filter(|f| *f != presets) {
        reporter.warn(format!(
            "the cache preset was tuned for {other}, this model is {presets}: its thresholds may not fit"
        ));
    }

    // 2. Text
    let clock = Instant::now();
    let kept = saved.as_ref().map(|saved| saved.conditions(&family.blank(&resolved, &shape)?, branches.len(), &shape));
    let (kept_texts, kept_picture) = kept.transpose()?.unwrap_or_default();
    let texts = match kept_texts {
        Some(texts) => texts,
        None => {
            reporter.emit(Event::Stage(Stage::Text));
            family.encode(&resolved, &branches, reporter)?
        }
    };
    let branch_inputs = branches.iter().map(|(branch, _)| *branch).zip(texts).collect();
    seconds.text = clock.elapsed().as_secs_f64();

    // 3. Picture
    let image = match (&picture, kept_picture) {
        (Some(_), Some(kept)) => kept,
        (Some(picture), None) => {
            reporter.emit(Event::Stage(Stage::Picture));
            family.encode_image(picture, &resolved)?
        }
        (None, _) => ImageConditioning::default(),
    };
    let conditioning = Conditioning { branches: branch_inputs, image };
    keeper.iter_mut().for_each(|keeper| keeper.keep(&conditioning));

    // 4. Weights; the VAE's too, so that a broken one is found before the long part
    reporter.emit(Event::Stage(Stage::Load));
    let clock = Instant::now();
    let denoiser = family.denoiser(&resolved, &conditioning)?;
    let mut previews = None;
    if let Destination::Frames(_) = destination {
        family.autoencoder()?;
        previews = request.preview.and_then(|every| Previews::begin(pipeline, every, &shape, reporter));
        pipeline.make_room_for_denoising();
    }
    seconds.load = clock.elapsed().as_secs_f64();

    // 5. Denoise
    reporter.emit(Event::Stage(Stage::Denoise));
    let clock = Instant::now();
    let done_before = saved.as_ref().map_or(0, |saved| saved.step);
    reporter.stop_if_cancelled(done_before, steps)?;
    let guided = family.guided(&resolved, &schedule.steps);
    let steps_of_run = schedule.steps.clone();
    let Started { run, policy, memory } = start(pipeline, &resolved, method, steps_of_run, &branches, &*denoiser)?;
    check_memory(memory, pipeline.cache_budget(&resolved), method.name())?;
    let (denoiser, solver) = (&*denoiser, resolved.solver);
    let setup = Setup { denoiser, branches: &guided, run: &run, solver, schedule: &schedule, draws: &draws };
    let start = Start { latents, known: conditioning.image.known_latents };
    let mut sampler = match saved {
        None => Sampler::begin(setup, start, policy),
        Some(saved) => saved.go_on(setup, start, policy, reporter)?,
    };
    let mut clock_of_target =
        target::clock(&resolved, &sampler, begun, || after_steps(pipeline, &shape, &destination))?;
    let mut told = 0;
    while let Some(StepDone { index, seconds, strip, share, alarms }) = sampler.step()? {
        reporter.emit(Event::Step { index, steps, seconds, strip });
        alarms.iter().for_each(|alarm| reporter.warn(alarm.to_string()));
        told = alarms.len();
        if let Some(clock) = &mut clock_of_target {
            clock.note(index, seconds, share);
            if let Some(budget) = clock.budget(sampler.budgets(), method.guard(steps).last_steps)? {
                sampler.budget(budget);
            }
        }
        if let Some(keeper) = &mut keeper {
            keeper.after_step(&mut sampler, reporter)?;
        }
        if let Some(previews) = &mut previews {
            previews.after_step(&sampler, reporter);
        }
        reporter.stop_if_cancelled(index + 1, steps)?;
    }
    let budgets = sampler.budgets().to_vec();
    let sampled = sampler.finish()?;
    let of_last = sampled.records.last().map_or(&[][..], |record| &record.alarms);
    of_last.iter().skip(told).for_each(|alarm| reporter.warn(alarm.to_string()));
    // Steps that were done before count with the time that they took then.
    seconds.total = sampled.steps[..done_before].iter().map(|step| step.seconds).sum();
    seconds.denoise = seconds.total + clock.elapsed().as_secs_f64();
    if let Some(path) = &resolved.save_latents {
        latents::save(path, &sampled.latents, frames)?;
    }
    if let Destination::Frames(Output { rescue: Some(rescue), .. }) = destination {
        latents::save(&rescue.path, &sampled.latents, frames)?;
        rescue.is_written = true;
    }
    advice::after(method, &sampled.strip, &sampled.records).into_iter().for_each(|warning| reporter.warn(warning));
    let cache = described(method);
    let target = resolved.target.as_ref().and_then(|target| match (&steered, &resolved.promised) {
        (Some(steered), _) => Some(target::reported(target, steered, budgets, &sampled.records)),
        (None, promised) => {
            promised.as_ref().map(|promised| target::reported_promise(target, promised, &sampled.records))
        }
    });
    Ok(Denoised { resolved, scale, run, sampled, memory, cache, target, seconds })
}

/// Seconds that a run takes after its steps, by a probe of the decoder.
fn after_steps(pipeline: &Pipeline, shape: &[usize; 5], destination: &Destination) -> Result<f64> {
    if let Destination::Latents = destination {
        return Ok(0.0);
    }
    let family = pipeline.family();
    decode_seconds(&*family.autoencoder()?, &*family.shared().sizes, shape, pipeline.device())
}

/// A method that is about to run.
pub(crate) struct Started {
    pub run: Run,
    pub policy: Guarded,
    /// What it will keep.
    pub memory: CacheMemory,
}

/// Starts a method for a request.
pub(crate) fn start(
    pipeline: &Pipeline,
    request: &Resolved,
    method: &dyn Method,
    steps: Vec<Step>,
    branches: &[(Branch, f64)],
    denoiser: &dyn Branches,
) -> Result<Started> {
    let run = Run {
        family: pipeline.defaults().presets.clone(),
        segments: pipeline.family().segments(&steps),
        steps,
        branches: branches.iter().map(|branch| branch.0).collect(),
        units: denoiser.anatomy().units.iter().map(unit).collect(),
    };
    let refused = |reason| CacheError::Options { method: method.name().to_string(), reason };
    let policy = method.try_start(&run).map_err(refused)?;
    policy.asks().check_solver(request.solver).map_err(refused)?;
    let policy = policy.watched(request.cache.guarded(request.guard), method);
    let memory = pipeline.cache_memory(policy.asks(), &run, request, denoiser);
    Ok(Started { run, policy, memory })
}

/// A unit of a forward, as policies know it.
fn unit(unit: &Unit) -> cache::Unit {
    let part = match unit.part {
        Part::Whole => cache::Part::Whole,
        Part::SelfAttn => cache::Part::SelfAttn,
        Part::SpatialAttn => cache::Part::SpatialAttn,
        Part::TemporalAttn => cache::Part::TemporalAttn,
        Part::CrossAttn => cache::Part::CrossAttn,
        Part::Mlp => cache::Part::Mlp,
    };
    cache::Unit { block: unit.block, part }
}

/// Refuses a method that keeps more than the budget, with both numbers.
fn check_memory(memory: CacheMemory, budget: u64, method: &str) -> Result<()> {
    if memory.bytes <= budget {
        return Ok(());
    }
    let size = |bytes: u64| ByteSize(bytes).display().si();
    Err(Error::Invalid {
        field: Field::Cache,
        found: method.to_string(),
        expected: format!(
            "keeps {} tensors of {} and {} of {}, {} in all; the budget is {} (`cache_memory`). \
             Take a method that keeps less, a smaller video, or a larger budget",
            memory.features.count,
            size(memory.features.bytes_each),
            memory.latents.count,
            size(memory.latents.bytes_each),
            size(memory.bytes),
            size(budget)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use navicache_control::cache::Item;

    #[test]
    fn too_much_is_refused_with_both_numbers() {
        let item = |count, bytes_each| Item { count, bytes_each };
        let memory = CacheMemory { bytes: 6020, latents: item(2, 10), features: item(6, 1000) };
        assert!(check_memory(memory, 6020, "x").is_ok());
        let message = check_memory(memory, 6000, "x").unwrap_err().to_string();
        assert!(
            message.contains("`cache` x") && message.contains("the budget is 6.0 kB (`cache_memory`)"),
            "{message}"
        );
    }
}
