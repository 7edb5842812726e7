//! The `navicache` command: translates arguments into requests and events into lines of text. It holds no defaults and
//! no maths.

mod args;
mod batch;
mod bench;
mod checkpoints;
mod compare;
mod doctor;
mod error;
mod events;
#[cfg(not(feature = "cuda"))]
mod handover;
mod loading;
mod measure;
mod models;
mod progress;
mod settings;
mod study;
mod terminal;
mod values;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use args::{Args, Command, Generate, Trace, Vbench};
use batch::Job;
use clap::{CommandFactory, Parser};
use error::{Error, Result};
use navicache_engine::replay::trace::Recorder;
use navicache_engine::{Event, Pipeline, Request, WholeFile, decode_latents, generate_to, trace, video};
use navicache_study::vbench;
use progress::Progress;
use serde_json::json;
use terminal::{go_on_unless, print, spelled, stop_on_ctrl_c};

/// Does what the arguments say.
pub fn main() -> ExitCode {
    let command = Args::parse().command;
    #[cfg(unix)]
    terminal::outlive_file_limits();
    navicache_engine::weights::explain_cut_files();
    // Which instructions are fastest here is measured once.
    if let Some(folder) = cache_folder() {
        navicache_engine::models::remember_in(folder);
    }
    match hand_over(&command).and_then(|()| run(command)) {
        Ok(()) => match terminal::lost_output() {
            None => ExitCode::SUCCESS,
            Some(error) => {
                let _ = writeln!(std::io::stderr(), "navicache: standard output: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            // A closed terminal is no reason to panic.
            events::fail(&error);
            let _ = writeln!(std::io::stderr(), "navicache: {}", spelled(&error.to_string()));
            error.exit_code()
        }
    }
}

/// Where this program remembers what it can find out again.
fn cache_folder() -> Option<std::path::PathBuf> {
    let set = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(std::path::PathBuf::from);
    Some(set.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("navicache"))
}

/// Re-executes as `navicache-cuda` if a GPU was requested.
fn hand_over(_command: &Command) -> Result<()> {
    #[cfg(not(feature = "cuda"))]
    if let Some(device) = _command.device() {
        handover::hand_over(device)?;
    }
    Ok(())
}

fn run(command: Command) -> Result<()> {
    if command.prints_events() {
        events::print_them();
    }
    match command {
        Command::Generate(options) => make(&options),
        Command::Estimate(options) => Ok(models::estimate(&options)?),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Models(options) => models::list(&options),
        Command::Pull(options) => models::pull(&options),
        Command::Inspect(options) => Ok(models::inspect(&options)?),
        Command::Compare(options) => Ok(compare::compare(&options)?),
        Command::Vbench(options) => vbench(&options),
        Command::Metrics(options) => Ok(measure::measure(&options)?),
        Command::Bench(options) => Ok(bench::bench(&options)?),
        Command::Methods(options) => Ok(study::methods(&options)?),
        Command::Trace(options) => record(&options),
        Command::Replay(options) => Ok(study::replay(&options)?),
        Command::Tune(options) => Ok(study::tune(&options)?),
        #[cfg(feature = "cuda")]
        Command::Gpus => gpus(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "navicache", &mut script);
            terminal::print_raw(&script);
            Ok(())
        }
    }
}

fn make(options: &Generate) -> Result<()> {
    let jobs = batch::jobs(options)?;
    for Job { output, report, .. } in &jobs {
        video::check_destination(output)?;
        report.as_ref().map_or(Ok(()), |path| WholeFile::create(path).map(drop))?;
    }
    let interrupted = stop_on_ctrl_c();
    let mut progress = Progress::new(options.sampling.settings.quiet);
    let pipeline = options.sampling.settings.loading.open()?;
    let mut on_event = |event: Event| {
        progress.show(&event);
        go_on_unless(&interrupted)
    };

    if let Some(latents) = &options.resume_decode {
        let clip = decode_latents(&pipeline, latents, options.tile, options.sampling.settings.frames, &mut on_event)?;
        let fps = options.sampling.settings.fps.unwrap_or(pipeline.defaults().fps);
        clip.save(&options.output, fps)?;
        progress.close_clip(&options.output, &clip);
        events::say(|| json!({"event": "done", "path": options.output}));
        return Ok(());
    }
    // One that fails does not keep the others from being made.
    let mut failed: Vec<(&Job, Error)> = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        if jobs.len() > 1 {
            progress.line(&format!("{}/{} {}: {}", index + 1, jobs.len(), job.output.display(), job.request.prompt));
            events::say(|| json!({"event": "video", "index": index, "videos": jobs.len(), "path": job.output}));
        }
        match make_one(&pipeline, job, &mut progress, &interrupted) {
            Ok(()) => {}
            Err(error) if error.is_cancelled() || jobs.len() == 1 => return Err(error),
            Err(error) => failed.push((job, error)),
        }
    }
    for (job, error) in &failed {
        progress.line(&format!("{} was not made: {}", job.output.display(), spelled(&error.to_string())));
    }
    match failed.len() {
        0 => Ok(()),
        count => Err(Error::Arguments {
            what: "videos:",
            found: format!("{count} of {}", jobs.len()),
            expected: "were not made; the reasons are above".to_string(),
        }),
    }
}

fn make_one(pipeline: &Pipeline, job: &Job, progress: &mut Progress, interrupted: &AtomicBool) -> Result<()> {
    let mut on_event = |event: Event| {
        progress.show(&event);
        go_on_unless(interrupted)
    };
    let made = generate_to(pipeline, &job.request, &job.output, &mut on_event);
    if made.is_err() {
        progress.left();
    }
    let video = made?;
    if let Some(path) = &job.report {
        video.report.save(path)?;
    }
    progress.close(&job.output, &video);
    events::say(|| json!({"event": "done", "path": job.output, "report": video.report}));
    Ok(())
}

fn record(options: &Trace) -> Result<()> {
    WholeFile::create(&options.output)?;
    let interrupted = stop_on_ctrl_c();
    let mut progress = Progress::new(options.sampling.settings.quiet);
    let pipeline = options.sampling.settings.loading.open()?;
    let recorder = Recorder { lags: options.lags, ..Recorder::default() };
    let recorded = trace::record(&pipeline, &options.sampling.request(), &recorder, &mut |event| {
        progress.show(&event);
        go_on_unless(&interrupted)
    })?;
    trace::save(&recorded, &options.output)?;
    progress.close_trace(&options.output, recorded.steps.len());
    events::say(|| json!({"event": "done", "path": options.output}));
    Ok(())
}

fn vbench(options: &Vbench) -> Result<()> {
    let mut list = vbench::read(&options.prompts)?;
    if let Some(longer) = &options.augmented {
        list.augment(longer)?;
    }
    let vbench::List { prompts, left_out } = list;
    let interrupted = stop_on_ctrl_c();
    let mut progress = Progress::new(options.settings.quiet);
    let pipeline = options.settings.loading.open()?;
    let plan = vbench::Plan {
        range: options.start..options.end.unwrap_or(prompts.len()),
        prompts,
        seeds: options.seeds,
        request: Request { seed: options.seed, cache: options.cache.clone(), ..options.settings.request() },
        folder: options.output.clone(),
    };
    let made = plan.run(&pipeline, &mut |event| {
        match event {
            vbench::Event::Video { index, videos, path } => {
                progress.line(&format!("{}/{videos} {}", index + 1, path.display()));
                events::say(|| json!({"event": "video", "index": index, "videos": videos, "path": path}));
            }
            vbench::Event::Inner(event) => progress.show_one_of_many(event),
            _ => {}
        }
        go_on_unless(&interrupted)
    })?;
    if !left_out.is_empty() {
        let names = left_out.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
        // It is no failure, but nobody should miss it.
        let _ = writeln!(std::io::stderr(), "navicache: left out, since they cannot be names of files: {names}");
    }
    progress.line(&format!("{} videos made, {} were there. Next:", made.made, made.here));
    if options.json {
        events::say(|| json!({"event": "done", "path": options.output, "next": plan.next_command()}));
    } else {
        print(&plan.next_command());
    }
    Ok(())
}

/// The GPUs here, one a line.
#[cfg(feature = "cuda")]
fn gpus() -> Result<()> {
    navicache_engine::gpus()?.iter().enumerate().for_each(|(i, name)| print(&format!("cuda:{i} {name}")));
    Ok(())
}
