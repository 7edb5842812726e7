//! The worker: a process of its own that makes the videos. An abort, a kill or a lack of memory takes the job, and not
//! the server. It reads orders and says what happens; when its input ends, its server is gone, and it ends at once.

use std::fs::File;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use navicache_engine::{
    Checkpoint, Error as EngineError, Event, Kind, Lack, LoadOptions, Pipeline, Request, Resume, Video, control,
    generate_to,
};
use navicache_media::fail_point;

use crate::job::code;
use crate::pictures;
use crate::wire::{Done, Make, Order, Said, files};
use crate::{Error, Result};

/// Seconds between two previews.
const PREVIEW_SECONDS: f64 = 1.0;

/// What a worker works with.
pub struct WorkerOptions {
    /// The data folder of its server.
    pub data: PathBuf,
    /// How models are loaded.
    pub load: LoadOptions,
}

/// Works until its input ends.
///
/// # Errors
/// The data folder cannot be used.
pub fn work(options: &WorkerOptions) -> Result<()> {
    // A worker whose server was killed may be about to end: two must not write to one checkpoint.
    let path = options.data.join("worker.lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
    lock.lock().map_err(Error::io(&path))?;

    let stop: Stop = Arc::default();
    let orders = listen(stop.clone());
    let mut loaded: Option<(String, Pipeline)> = None;
    say(&Said::Ready);
    for make in orders {
        let said = match make_one(options, &mut loaded, &make, &stop) {
            Ok(done) => Said::Done(Box::new(done)),
            Err(error) => told(&error),
        };
        say(&said);
    }
    Ok(())
}

/// Which attempt is to stop.
type Stop = Arc<Mutex<Option<(String, i64)>>>;

/// Reads orders on a thread of its own, so that one to stop is heard while a video is made.
fn listen(stop: Stop) -> Receiver<Make> {
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Order::Make(make)) => drop(sender.send(*make)),
                Ok(Order::Stop { id, attempt }) => {
                    *stop.lock().unwrap_or_else(|broken| broken.into_inner()) = Some((id, attempt));
                }
                Err(e) => eprintln!("navicache worker: an order that is none: {e}"),
            }
        }
        std::process::exit(0); // nobody is there to take what is being made; its checkpoint is on disk
    });
    orders
}

/// Nobody hears it where the server is gone, which the other thread finds out.
fn say(said: &Said) {
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(&line).and_then(|()| output.flush());
}

fn make_one(
    options: &WorkerOptions,
    loaded: &mut Option<(String, Pipeline)>,
    make: &Make,
    stop: &Stop,
) -> Result<Done, EngineError> {
    if loaded.as_ref().is_none_or(|(name, _)| *name != make.model) {
        *loaded = None; // its memory is free before the next one takes any
        let clock = Instant::now();
        *loaded = Some((make.model.clone(), Pipeline::open(&make.model, &options.load)?));
        say(&Said::Loaded { model: make.model_name.clone(), seconds: clock.elapsed().as_secs_f64() });
    }
    let Some((_, pipeline)) = loaded else { return Err(EngineError::DecodingCancelled) };
    let mut video = match generated(pipeline, make, stop) {
        Err(error) if make.checkpoint.exists() && is_about(&error, &make.checkpoint) => {
            let text = "its checkpoint was of another build or other weights; it was begun again".to_string();
            eprintln!("navicache worker: {}: {error}", make.id);
            say(&Said::Warning { text });
            let _ = std::fs::remove_file(&make.checkpoint); // what stays is found out by the next try
            generated(pipeline, make, stop)?
        }
        made => made?,
    };
    fail_point("video written");
    write_beside(&mut video, make)?;
    fail_point("all written");
    Ok(summary(&video))
}

fn is_about(error: &EngineError, file: &Path) -> bool {
    match error {
        EngineError::File { path, .. } | EngineError::Io { path, .. } => path == file,
        _ => false,
    }
}

fn generated(pipeline: &Pipeline, make: &Make, stop: &Stop) -> Result<Video, EngineError> {
    let path = make.checkpoint.clone();
    let resume = path.exists().then(|| Resume { path: path.clone(), allow_other_build: false });
    let checkpoint = Checkpoint { path, every: make.every, stop_after: None, keep: true };
    let preview = Some(PREVIEW_SECONDS);
    // A client is given the size that it asked for.
    let request = Request { checkpoint: Some(checkpoint), resume, preview, scale: Some(1), ..make.request.clone() };
    let mut teller = Teller { make, stop, has_begun: false, step_ended: Instant::now() };
    generate_to(pipeline, &request, &make.folder.join(files::VIDEO), &mut |event| teller.tell(event))
}

/// Says what the engine says.
struct Teller<'a> {
    make: &'a Make,
    stop: &'a Stop,
    /// Whether a step was told.
    has_begun: bool,
    step_ended: Instant,
}

impl Teller<'_> {
    fn tell(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Stage(stage) => say(&Said::Stage { stage: stage.name().to_string() }),
            Event::Warning(text) => say(&Said::Warning { text: text.to_string() }),
            Event::Step { index, steps, seconds, strip } => {
                if !self.has_begun && index > 0 {
                    let before = control::strip::Strip::default();
                    let before = strip.steps()[..index].iter().fold(before, |mut strip, step| {
                        strip.push(step.clone());
                        strip
                    });
                    say(&Said::Resumed { step: index, strip: before.to_string() });
                }
                self.has_begun = true;
                self.step_ended = Instant::now();
                fail_point("step done");
                let ran = strip.steps().last().into_iter().flatten().map(|ran| ran.symbol()).collect();
                say(&Said::Step { index, steps, seconds, ran });
            }
            Event::Preview { index, width, height, rgb, .. } => {
                // A preview that cannot be packed is none; the next one may do.
                if let Ok(jpeg) = (pictures::Film { width, height, rgb }).jpeg() {
                    let jpeg = STANDARD.encode(jpeg);
                    say(&Said::Preview { index, width, height, jpeg });
                }
            }
            Event::Checkpoint { path, step, .. } => {
                fail_point("checkpoint written");
                let bytes = std::fs::metadata(path).map_or(0, |about| about.len());
                say(&Said::Checkpoint { step, seconds: self.step_ended.elapsed().as_secs_f64(), bytes });
            }
            Event::Frames { first, count, frames, .. } => say(&Said::Frames { done: first + count, frames }),
            _ => {}
        }
        let stop = self.stop.lock().unwrap_or_else(|broken| broken.into_inner());
        let is_meant = stop.as_ref().is_some_and(|(id, attempt)| (id, attempt) == (&self.make.id, &self.make.attempt));
        if is_meant { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// A picture of it, some of its frames, and the report, which names no file of the server.
fn write_beside(video: &mut Video, make: &Make) -> Result<(), EngineError> {
    let io = |name: &str| {
        let path = make.folder.join(name);
        move |source| EngineError::Io { path, source }
    };
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(make.folder.join(name), bytes).map_err(io(name));
    let film = pictures::Film { width: video.spec.width, height: video.spec.height, rgb: &video.frames };
    write(files::THUMBNAIL, film.thumbnail().map_err(io(files::THUMBNAIL))?)?;
    write(files::SPRITESHEET, film.spritesheet().map_err(io(files::SPRITESHEET))?)?;
    video.report.model = make.model_name.clone();
    video.report.request.image = None;
    video.report.save(&make.folder.join(files::REPORT))
}

fn summary(video: &Video) -> Done {
    let totals = &video.report.totals;
    let units = (totals.units_computed + totals.units_reused) as f64;
    let asked = video.report.target.as_ref();
    let miss = asked.and_then(|target| Some(target.computed / target.budgets.last()?.1));
    Done {
        strip: video.report.strip.clone(),
        speedup: units / (totals.units_computed as f64).max(1.0),
        decode_seconds: totals.seconds.decode,
        guards: video.report.guards.iter().map(|alarm| alarm.guard.name().to_string()).collect(),
        target_miss: miss,
        memory: totals.peak_memory_bytes.unwrap_or_default(),
    }
}

/// What the server is told of an error, and its client. The message names no file of the server.
fn told(error: &EngineError) -> Said {
    if let EngineError::Cancelled { .. } | EngineError::Stopped { .. } | EngineError::DecodingCancelled = error {
        return Said::Stopped;
    }
    let detail = error.to_string();
    let (code, message) = match (error, error.lacks(), error.kind()) {
        (_, Some(Lack::Disk), _) => (code::DISK_FULL, "the server's disk is full".to_string()),
        (_, Some(Lack::Memory), _) => {
            (code::OUT_OF_MEMORY, "memory ran out; ask for a smaller or shorter video".to_string())
        }
        (EngineError::NotFinite { .. } | EngineError::FramesNotFinite, ..) => (code::NOT_FINITE, detail.clone()),
        (_, _, Kind::Invalid) => (code::BAD_INPUT, detail.clone()),
        _ => (code::INTERNAL, "the server could not make this video; its log says why".to_string()),
    };
    Said::Failed { code: code.to_string(), message, detail }
}
