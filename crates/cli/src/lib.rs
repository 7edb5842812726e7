//! The `navicache` command: translates arguments into requests and events into lines of text. It holds no defaults and
//! no maths.

mod args;
mod batch;
mod bench;
mod checkpoints;
mod compare;
mod config;
mod convert;
mod doctor;
mod error;
mod events;
mod examples;
#[cfg(not(feature = "cuda"))]
mod handover;
mod heading;
mod listed;
mod loading;
mod measure;
mod models;
mod overwrite;
mod pace;
mod parts;
mod preview;
mod progress;
mod published;
mod remaining;
#[cfg(feature = "server")]
mod serve;
mod settings;
mod study;
mod terminal;
mod values;
mod version;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use args::{Command, Generate, Trace, Vbench};
use batch::Job;
use error::{Error, Result};
use navicache_engine::replay::trace::Recorder;
use navicache_engine::{Event, Pipeline, Request, WholeFile, decode_latents, generate_to, trace, video};
use navicache_study::vbench;
use progress::Progress;
use serde_json::json;
use terminal::{go_on_unless, print, spelled, stop_on_ctrl_c, tell};

/// Does what the arguments say.
pub fn main() -> ExitCode {
    let program = args::program();
    let (command, unknown) = match read(&program) {
        Ok(read) => read,
        Err(code) => return code,
    };
    #[cfg(unix)]
    terminal::outlive_file_limits();
    navicache_engine::weights::explain_cut_files();
    // Which instructions are fastest here is measured once.
    if let Some(folder) = pace::cache_folder() {
        navicache_engine::models::remember_in(folder);
    }
    match hand_over(&command).and_then(|()| run(command, &program, &unknown)) {
        Ok(()) => match terminal::lost_output() {
            None => ExitCode::SUCCESS,
            Some(error) => {
                tell(&format!("navicache: standard output: {error}"));
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            events::fail(&error);
            tell(&format!("navicache: {}", spelled(&error.to_string())));
            error.exit_code()
        }
    }
}

/// The command, with what variables and the configuration file add to it; and variables that look like ours and are
/// not. Or what the program ends with.
fn read(program: &clap::Command) -> std::result::Result<(Command, Vec<String>), ExitCode> {
    let complain = |text: &str| {
        tell(&format!("navicache: {text}"));
        ExitCode::from(error::MISUSE)
    };
    models_can_compute().map_err(|e| complain(&e))?;
    let completed = config::complete(std::env::args_os().collect(), program).map_err(|e| complain(&e.to_string()))?;
    match Command::read(program, &completed.arguments) {
        Ok(command) => Ok((command, completed.unknown_variables)),
        Err(error) => {
            let _ = error.print();
            if let Some(blamed) = completed.blamed(&error.to_string()) {
                complain(&blamed);
            }
            Err(ExitCode::from(error.exit_code() as u8))
        }
    }
}

/// Whether the instruction set that the environment names is there.
fn models_can_compute() -> std::result::Result<(), String> {
    navicache_engine::models::named_level().map(drop)
}

/// Re-executes as `navicache-cuda` if a GPU was requested.
fn hand_over(_command: &Command) -> Result<()> {
    #[cfg(not(feature = "cuda"))]
    if let Some(device) = device(_command) {
        handover::hand_over(device)?;
    }
    Ok(())
}

/// The device that a command will run a model on, if it runs one.
#[cfg(not(feature = "cuda"))]
fn device(command: &Command) -> Option<navicache_engine::DeviceChoice> {
    let settings = match command {
        #[cfg(feature = "server")]
        Command::Worker(options) => return Some(options.device.device),
        Command::Generate(options) => &options.sampling.settings,
        Command::Estimate(options) => &options.settings,
        Command::Trace(options) => &options.sampling.settings,
        Command::Parts(options) => &options.sampling.settings,
        Command::Compare(options) => &options.settings,
        Command::Vbench(options) => &options.settings,
        Command::Bench(options) => &options.settings,
        _ => return None,
    };
    Some(settings.loading.device)
}

fn run(command: Command, program: &clap::Command, unknown_variables: &[String]) -> Result<()> {
    for unknown in unknown_variables {
        tell(&format!("navicache: {unknown}"));
    }
    if command.prints_events() {
        events::print_them();
    }
    match command {
        Command::Generate(options) => make(&options),
        Command::Estimate(options) => Ok(models::estimate(&options)?),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Models(options) => models::models(&options),
        Command::Convert(options) => convert::convert(&options),
        Command::Pull(options) => models::pull(&options),
        Command::Inspect(options) => Ok(models::inspect(&options)?),
        Command::Compare(options) => Ok(compare::compare(&options)?),
        Command::Vbench(options) => vbench(&options),
        Command::Metrics(options) => Ok(measure::measure(&options)?),
        Command::Bench(options) => Ok(bench::bench(&options)?),
        Command::Methods(options) => Ok(study::methods(&options)?),
        Command::Trace(options) => record(&options),
        Command::Parts(options) => parts::parts(&options),
        Command::Replay(options) => Ok(study::replay(&options)?),
        Command::Tune(options) => Ok(study::tune(&options)?),
        #[cfg(feature = "server")]
        Command::Serve(options) => serve::serve(&options),
        #[cfg(feature = "server")]
        Command::Worker(options) => serve::work(&options),
        #[cfg(feature = "cuda")]
        Command::Gpus => gpus(),
        Command::Config(options) => config::show(&options, program),
        Command::Man { folder } => man(program, &folder),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut program.clone(), "navicache", &mut script);
            terminal::print_raw(&script);
            Ok(())
        }
    }
}

/// Writes a page for the program and one for each command.
fn man(program: &clap::Command, folder: &Path) -> Result<()> {
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(program.clone(), folder));
    written.map_err(|source| navicache_engine::Error::Io { path: folder.to_path_buf(), source })?;
    print(&format!("{}: read them with `man {}`", folder.display(), folder.join("navicache.1").display()));
    Ok(())
}

fn make(options: &Generate) -> Result<()> {
    let jobs = batch::jobs(options)?;
    batch::check_files(options, &jobs)?;
    for Job { output, report, .. } in &jobs {
        [Some(output), report.as_ref()].into_iter().flatten().try_for_each(|file| folder_is_there(file))?;
        video::check_destination(output)?;
        report.as_ref().map_or(Ok(()), |path| WholeFile::create(path).map(drop))?;
    }
    let interrupted = stop_on_ctrl_c();
    let settings = &options.sampling.settings;
    let mut progress = Progress::of_model(settings.quiet, &settings.loading.model, options.preview.as_ref());
    let pipeline = settings.loading.open()?;
    let mut on_event = |event: Event| {
        progress.show(&event);
        go_on_unless(&interrupted)
    };

    if let Some(latents) = &options.resume_decode {
        let clip = decode_latents(&pipeline, latents, options.tile, options.sampling.settings.frames, &mut on_event)?;
        let fps = options.sampling.settings.fps.unwrap_or(pipeline.defaults().fps);
        clip.save(&options.output, fps, pipeline.scale(options.scale))?;
        video::warning(&options.output, fps).iter().for_each(|warning| progress.show(&Event::Warning(warning)));
        progress.close_clip(&options.output, &clip, pipeline.scale(options.scale));
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
        count => Err(Error::Unfinished {
            what: "videos:",
            found: format!("{count} of {}", jobs.len()),
            expected: "were not made; the reasons are above".to_string(),
        }),
    }
}

/// What is written under another name first would be complained of by that name.
fn folder_is_there(file: &Path) -> Result<()> {
    let folder = navicache_media::folder_of(file);
    if folder.exists() {
        return Ok(());
    }
    let source = std::io::Error::new(std::io::ErrorKind::NotFound, format!("there is no folder {}", folder.display()));
    Err(navicache_engine::Error::Io { path: file.to_path_buf(), source }.into())
}

fn make_one(pipeline: &Pipeline, job: &Job, progress: &mut Progress, interrupted: &AtomicBool) -> Result<()> {
    let request = Request { preview: progress.previews(), ..job.request.clone() };
    let mut on_event = |event: Event| {
        progress.show(&event);
        go_on_unless(interrupted)
    };
    let made = generate_to(pipeline, &request, &job.output, &mut on_event);
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
    let request = options.sampling.request();
    let read = [("--image", request.image.as_deref()), ("--latents", request.latents.as_deref())];
    overwrite::refuse([("--output", &*options.output)], read.into_iter().filter_map(overwrite::given))?;
    WholeFile::create(&options.output)?;
    let interrupted = stop_on_ctrl_c();
    let mut progress = Progress::new(options.sampling.settings.quiet);
    let pipeline = options.sampling.settings.loading.open()?;
    let recorder = Recorder { lags: options.lags, ..Recorder::default() };
    let recorded = trace::record(&pipeline, &request, &recorder, &mut |event| {
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
        tell(&format!("navicache: left out, since they cannot be names of files: {names}"));
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
