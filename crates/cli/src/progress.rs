//! What is shown while a video is made: a line that is drawn over on a terminal, few lines elsewhere.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::events;
use crate::loading::BUILT_IN;
use crate::pace;
use crate::preview::{self, Way};
use crate::remaining::Remaining;
use crate::terminal::spelled;
use crate::values::Preview;
use navicache_engine::control::strip::{Ran, Strip};
use navicache_engine::control::target::{Asked, Target};
use navicache_engine::report::{PromiseReport, TargetReport};
use navicache_engine::{Clip, Event, Report, Resolved, Stage, Video};
use navicache_media::Picture;
use navicache_media::video::Scale;

/// Steps between two lines where lines cannot be drawn over, as a part of the whole.
const LINES: usize = 5;
/// Characters that a strip has to have beside the words, to be shown there.
const ROOM_FOR_STRIP: usize = 8;

/// Seconds between two pictures of what is being made.
const BETWEEN_PICTURES: f64 = 1.0;

/// Writes to the error stream, so that the output stream stays free for data.
pub struct Progress {
    quiet: bool,
    /// Whether lines can be drawn over.
    pub terminal: bool,
    colors: bool,
    denoising_since: Instant,
    remaining: Remaining,
    run: Option<Run>,
    /// Which model it is, and since when its frames are decoded.
    model: Option<String>,
    decoding_since: Instant,
    pictures: Pictures,
    /// The checkpoint, and steps that it holds.
    checkpoint: Option<(PathBuf, usize, usize)>,
    /// The line that is drawn over.
    status: String,
}

/// What is known of a run from its beginning.
struct Run {
    caches: bool,
    target: Option<Target>,
    /// Steps that the target has computed, where it says so in advance.
    to_compute: Option<f64>,
    /// Pixels of all frames.
    pixels: f64,
    /// Seconds that decoding them takes, where the model was run here before.
    decoding: Option<f64>,
}

/// Where pictures of what is being made are shown.
#[derive(Default)]
struct Pictures {
    way: Option<Way>,
    file: Option<PathBuf>,
    /// Lines of the terminal that the last one takes, above the line that is drawn over.
    rows: usize,
    /// The file could not be written; that was said.
    failed: bool,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let terminal = std::io::stderr().is_terminal() && variable("TERM") != "dumb";
        let now = Instant::now();
        Progress {
            quiet,
            terminal,
            colors: terminal && variable("NO_COLOR").is_empty(),
            denoising_since: now,
            remaining: Remaining::default(),
            run: None,
            model: None,
            decoding_since: now,
            pictures: Pictures::default(),
            checkpoint: None,
            status: String::new(),
        }
    }

    /// The same of a model, whose pace is remembered, with pictures of what is being made: in the terminal where it
    /// shows them, and in a file where one is named.
    pub fn of_model(quiet: bool, model: &str, preview: Option<&Preview>) -> Self {
        let mut progress = Progress::new(quiet);
        progress.model = Some(model.to_string());
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        // The built-in model is done before there would be anything to see.
        let in_terminal = match preview {
            None => model != BUILT_IN,
            Some(Preview::Off) => false,
            Some(Preview::Terminal | Preview::File(_)) => true,
        };
        let in_terminal = in_terminal && progress.colors && !quiet;
        progress.pictures.way = in_terminal.then(|| Way::of(variable)).flatten();
        if let Some(Preview::File(file)) = preview {
            progress.pictures.file = Some(file.clone());
        }
        progress
    }

    /// Seconds between pictures, where any are wanted.
    pub fn previews(&self) -> Option<f64> {
        (self.pictures.way.is_some() || self.pictures.file.is_some()).then_some(BETWEEN_PICTURES)
    }

    /// The same of one video among many: what it is was said before, and where lines cannot be drawn over, those of
    /// every step would be too many.
    pub fn show_one_of_many(&mut self, event: &Event) {
        match event {
            Event::Warning(_) => self.show(event),
            Event::Resolved(_) => events::show(event),
            _ if self.terminal => self.show(event),
            _ => events::show(event),
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        // Who hears of a preview finds it in its file.
        if let Event::Preview { width, height, rgb, .. } = event {
            self.picture(&Picture { width: *width, height: *height, rgb: rgb.to_vec() });
        }
        events::show(event);
        match event {
            Event::Resolved(resolved) => self.begin(resolved),
            Event::Warning(warning) => self.line(&format!("{} {}", self.paint("33", "warning:"), spelled(warning))),
            Event::Stage(Stage::Text) => self.status("reading the prompt ..."),
            Event::Stage(Stage::Picture) => self.status("looking at the picture ..."),
            Event::Stage(Stage::Load) => self.status("loading weights ..."),
            Event::Stage(Stage::Denoise) => {
                (self.denoising_since, self.remaining) = (Instant::now(), Remaining::default());
                self.status("denoising ...");
            }
            Event::Step { index, steps, seconds, strip } => self.step(*index, *steps, *seconds, strip),
            Event::Checkpoint { path, step, steps } => self.checkpoint = Some((path.to_path_buf(), *step, *steps)),
            Event::Stage(Stage::Decode) => {
                self.decoding_since = Instant::now();
                self.status("decoding ...");
            }
            Event::Tile { index, tiles } => self.status(&format!("decoding {}/{tiles} tiles ...", index + 1)),
            Event::Frames { first, count, frames, .. } => {
                self.status(&format!("decoding {}/{frames} frames ...", first + count));
                if first + count == *frames {
                    self.decoded();
                }
            }
            Event::Kept(latents) => self.kept(latents),
            _ => {}
        }
    }

    /// The last line: what was made, and what caching did for it.
    pub fn close(&mut self, path: &Path, video: &Video) {
        let (report, spec) = (&video.report, &video.spec);
        let output = self.paint("1", &path.display().to_string());
        let size = format!("{} of {}x{}", counted(spec.frames, "frame"), spec.width, spec.height);
        let size = size + &enlarged(video.scale, path);
        self.line(&format!("{output}: {size} in {}. {}", duration(report.totals.seconds.total), worked(report)));
        if let Some(target) = &report.target {
            let TargetReport { asked, computed, speedup, promise, curve, .. } = target;
            let steps = report.steps.len();
            self.line(&format!("{asked}: {computed:.1} of {steps} steps computed, {speedup:.2} times less work."));
            if let Some(PromiseReport { of, asked, share, mean }) = promise {
                let (bound, share, videos) = (of.bound(*asked), 100.0 * share, curve.videos);
                let mean = of.text(*mean);
                self.line(&format!(
                    "{bound} for {share:.0} % of videos like the {videos} it was measured on, {mean} in the mean."
                ));
            }
        }
    }

    /// The last line after decoding latents.
    pub fn close_clip(&mut self, path: &Path, clip: &Clip, scale: Scale) {
        let frames = clip.frames.len() / (clip.width * clip.height * 3).max(1);
        let output = self.paint("1", &path.display().to_string());
        let enlarged = enlarged(scale, path);
        self.line(&format!("{output}: {} of {}x{}{enlarged}.", counted(frames, "frame"), clip.width, clip.height));
    }

    /// Says where the latents of a video are that could not be decoded or written.
    fn kept(&mut self, latents: &Path) {
        let latents = latents.display();
        self.line(&format!(
            "The latents are in {latents}; --resume-decode {latents} with the same --model decodes them again."
        ));
    }

    /// After an error: where the steps are that are done.
    pub fn left(&mut self) {
        if let Some((path, step, steps)) = self.checkpoint.take() {
            let path = path.display();
            self.line(&format!(
                "{path} holds {step} of {steps} steps; `navicache generate --resume {path}`, with the same --model, goes on."
            ));
        }
    }

    /// The last line of a trace.
    pub fn close_trace(&mut self, output: &Path, steps: usize) {
        self.line(&format!("{}: {steps} steps recorded.", self.paint("1", &output.display().to_string())));
    }

    fn begin(&mut self, resolved: &Resolved) {
        let target = resolved.target.clone();
        let to_compute = target.as_ref().and_then(|target| Some(target.budgets(resolved.steps).last()?.1));
        let pixels = (resolved.frames * resolved.width * resolved.height) as f64;
        let decoding = self.model.as_deref().and_then(pace::of).map(|seconds| seconds * pixels);
        self.run = Some(Run { caches: resolved.cache.method().caches(), target, to_compute, pixels, decoding });
        self.line(&described(resolved));
    }

    fn step(&mut self, index: usize, steps: usize, seconds: f64, strip: &Strip) {
        let done = index + 1;
        let was_skipped = strip.steps().last().is_some_and(|step| step.iter().all(|ran| *ran == Ran::Reused));
        self.remaining.step(seconds, was_skipped);
        let words = self.words(done, steps, strip);
        let columns = self.columns();
        if done == steps {
            self.put_away_picture();
            self.strip_at_the_end(&words, strip, columns);
        } else if self.terminal {
            let text = fitted(&words, columns);
            let room = columns.saturating_sub(text.chars().count() + 3);
            let shown =
                if room >= ROOM_FOR_STRIP { self.strip(strip, done.saturating_sub(room)) } else { String::new() };
            self.status(&format!("{text}  {shown}"));
        } else if done * LINES / steps != index * LINES / steps {
            self.line(&format!("{}  {}", words.concat(), self.strip(strip, 0)));
        }
    }

    /// What is said of a step, what matters most first.
    fn words(&self, done: usize, steps: usize, strip: &Strip) -> Vec<String> {
        let mut words = vec![format!("step {done}/{steps}")];
        let elapsed = self.denoising_since.elapsed();
        if done == steps {
            words.push(format!("  {} elapsed", clock(elapsed)));
            return words;
        }
        words.push(format!(" {:>3}%", 100 * done / steps));
        let run = self.run.as_ref();
        let decoding = run.and_then(|run| run.decoding);
        let left = self.remaining.steps(steps - done, run.and_then(|run| run.to_compute));
        // A method that has not skipped yet may still do so.
        let at_most = run.is_some_and(|run| run.caches && run.to_compute.is_none()) && strip.steps_reused() == 0;
        let left = Duration::from_secs_f64((left + decoding.unwrap_or(0.0)).clamp(0.0, 1e9));
        words.push(format!("  {}{} left", if at_most { "at most " } else { "" }, clock(left)));
        if let Some(target) = run.and_then(|run| run.target.as_ref()) {
            words.push(format!("  {:.1}x so far, {} asked", speedup(strip), asked(target)));
        }
        words.push(format!("  {} elapsed", clock(elapsed)));
        words
    }

    /// What ran of all steps, in lines that the terminal does not break.
    fn strip_at_the_end(&self, words: &[String], strip: &Strip, columns: usize) {
        let (text, steps) = (words.concat(), strip.steps().len());
        if !self.terminal || text.chars().count() + 2 + steps < columns {
            return self.line(&format!("{text}  {}", self.strip(strip, 0)));
        }
        self.line(&fitted(words, columns));
        let width = columns.saturating_sub(1).max(1);
        for from in (0..steps).step_by(width) {
            self.line(&self.part_of(strip, from, (from + width).min(steps)));
        }
    }

    fn decoded(&mut self) {
        let (Some(run), Some(model)) = (&self.run, &self.model) else { return };
        pace::remember(model, self.decoding_since.elapsed().as_secs_f64() / run.pixels.max(1.0));
    }

    /// Shows a picture of what is being made.
    fn picture(&mut self, picture: &Picture) {
        if let Some(file) = self.pictures.file.clone().filter(|_| !self.pictures.failed) {
            match picture.save(&file) {
                Ok(()) => {}
                Err(error) => {
                    self.pictures.failed = true;
                    self.line(&format!("{} no preview: {error}", self.paint("33", "warning:")));
                }
            }
        }
        let Some(way) = self.pictures.way else { return };
        let (columns, lines) = size();
        let (across, rows) = way.cells(picture, columns, lines);
        let back = if self.pictures.rows > 0 { preview::up(self.pictures.rows) } else { String::new() };
        let drawn = way.drawn(picture, (across, rows));
        write(&format!("\r\x1b[K{back}{drawn}{}", self.status));
        self.pictures.rows = rows;
    }

    fn put_away_picture(&mut self) {
        let rows = std::mem::take(&mut self.pictures.rows);
        if let Some(way) = self.pictures.way.filter(|_| rows > 0) {
            write(&format!("\r\x1b[K{}", way.removed(rows)));
        }
    }

    fn columns(&self) -> usize {
        size().0
    }

    /// A character a step, from a step on: computed, skipped, or computed in part.
    fn strip(&self, strip: &Strip, from: usize) -> String {
        self.part_of(strip, from, strip.steps().len())
    }

    fn part_of(&self, strip: &Strip, from: usize, to: usize) -> String {
        let kinds: Vec<(&str, &str)> = strip.steps()[from..to].iter().map(|step| symbol(step)).collect();
        // A run of the same kind is painted as one.
        kinds.chunk_by(|a, b| a == b).map(|run| self.paint(run[0].0, &run[0].1.repeat(run.len()))).collect()
    }

    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// A line that stays. A picture that is shown stays above it.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            write(&format!("{}{text}\n", if self.terminal { "\r\x1b[K" } else { "" }));
        }
    }

    /// A line that the next one replaces.
    pub fn status(&mut self, text: &str) {
        if !self.quiet && self.terminal {
            let is_plain = !text.contains('\x1b');
            let text = if is_plain { fitted(&[text.to_string()], self.columns()) } else { text.to_string() };
            write(&format!("\r\x1b[K{text}"));
            self.status = text;
        }
    }
}

/// Nowhere to report that the error stream is gone.
fn write(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Columns and lines of the terminal.
fn size() -> (usize, usize) {
    let found = terminal_size::terminal_size_of(std::io::stderr());
    found.map_or((80, 24), |(columns, lines)| (columns.0.into(), lines.0.into()))
}

/// As many words as fit into a line: longer than the terminal is wide, it would not be drawn over.
fn fitted(words: &[String], columns: usize) -> String {
    let mut text = String::new();
    for word in words {
        if text.chars().count() + word.chars().count() >= columns {
            break;
        }
        text += word;
    }
    match (text.is_empty(), words.first()) {
        (true, Some(first)) => first.chars().take(columns.saturating_sub(1)).collect(),
        _ => text,
    }
}

/// The colour and the character of a step.
fn symbol(step: &[Ran]) -> (&'static str, &'static str) {
    let all = |ran: Ran| step.iter().all(|&r| r == ran);
    match step {
        _ if all(Ran::Computed) => ("32", "S"),
        _ if all(Ran::Reused) => ("2", "."),
        _ => ("36", "m"),
    }
}

/// All forwards so far over those that were computed; in part counts as computed.
fn speedup(strip: &Strip) -> f64 {
    let (reused, all) = (strip.count(Ran::Reused), strip.steps().iter().map(Vec::len).sum::<usize>());
    all as f64 / all.saturating_sub(reused).max(1) as f64
}

fn asked(target: &Target) -> String {
    match &target.asked {
        Asked::Speedup(factor) => format!("{factor:.1}x"),
        _ => target.to_string().split(",curve=").next().unwrap_or_default().to_string(),
    }
}

/// What was computed of a video, and how much faster that was.
fn worked(report: &Report) -> String {
    let totals = &report.totals;
    let (steps, reused) = (report.steps.len(), totals.steps_reused);
    let units = totals.units_computed + totals.units_reused;
    if totals.units_reused == 0 {
        return match steps {
            1 => "The one step was computed.".to_string(),
            _ => format!("All {steps} steps were computed."),
        };
    }
    let work = (100.0 * totals.units_computed as f64 / units.max(1) as f64).round();
    let (total, saved) = (totals.seconds.total, report.seconds_saved());
    let faster = (total + saved) / total.max(1e-9);
    format!(
        "{} of {steps} steps were computed, {work} % of the work: about {faster:.1} times as fast as without caching.",
        steps - reused
    )
}

/// `1 frame`, `2 frames`
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn duration(seconds: f64) -> String {
    if seconds < 100.0 { format!("{seconds:.1} s") } else { clock(Duration::from_secs_f64(seconds)) }
}

fn described(resolved: &Resolved) -> String {
    let Resolved { width, height, frames, steps, solver, guidance, seed, .. } = resolved;
    let legend = match resolved.cache.method().caches() {
        true => "\nsteps: S computed, . skipped, m in part",
        false => "",
    };
    let cache = match &resolved.chosen {
        None => resolved.cache.method().name().to_string(),
        Some(best) => {
            format!("{}\ncache: {} was chosen, {} (--cache none computes everything)", best.spec, best.spec, best.why)
        }
    };
    format!(
        "{} of {width}x{height}, {} of {solver}, guidance {guidance}, seed {seed}, cache {cache}{legend}",
        counted(*frames, "frame"),
        counted(*steps, "step")
    )
}

fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// What is said of a file whose pixels are larger than what was made.
fn enlarged(scale: Scale, path: &Path) -> String {
    match scale.factor(path) {
        Ok(factor @ 2..) => format!(", enlarged {factor} times"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_long_as_the_terminal_allows() {
        let words = ["step 20/50", "  40%", "  0:09 left", "  0:12 elapsed"].map(str::to_string);
        assert_eq!(fitted(&words, 80), words.concat());
        assert_eq!(fitted(&words, 40), "step 20/50  40%  0:09 left");
        assert_eq!(fitted(&words, 20), "step 20/50  40%");
        assert_eq!(fitted(&words, 5), "step");
        assert!((1..80).all(|columns| fitted(&words, columns).chars().count() < columns));
    }
}
