//! What is shown while a video is made: a line that is drawn over on a terminal, few lines elsewhere.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::events;
use crate::terminal::spelled;
use navicache_engine::Clip;
use navicache_engine::control::strip::{Ran, Strip};
use navicache_engine::report::{PromiseReport, TargetReport};
use navicache_engine::{Event, Resolved, Stage, Video};

/// Steps between two lines where lines cannot be drawn over, as a part of the whole.
const LINES: usize = 5;

/// Writes to the error stream, so that the output stream stays free for data.
pub struct Progress {
    quiet: bool,
    pub terminal: bool,
    colors: bool,
    denoising_since: Instant,
    /// The first step of this run; earlier ones were done by another.
    first: Option<usize>,
    /// The checkpoint, and steps that it holds.
    checkpoint: Option<(PathBuf, usize, usize)>,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colors = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Progress { quiet, terminal, colors, denoising_since: Instant::now(), first: None, checkpoint: None }
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
        events::show(event);
        match event {
            Event::Resolved(resolved) => self.line(&described(resolved)),
            Event::Warning(warning) => self.line(&format!("{} {}", self.paint("33", "warning:"), spelled(warning))),
            Event::Stage(Stage::Text) => self.status("reading the prompt ..."),
            Event::Stage(Stage::Picture) => self.status("looking at the picture ..."),
            Event::Stage(Stage::Load) => self.status("loading weights ..."),
            Event::Stage(Stage::Denoise) => {
                (self.denoising_since, self.first) = (Instant::now(), None);
                self.status("denoising ...");
            }
            Event::Step { index, steps, strip, .. } => self.step(*index, *steps, strip),
            Event::Checkpoint { path, step, steps } => self.checkpoint = Some((path.to_path_buf(), *step, *steps)),
            Event::Stage(Stage::Decode) => self.status("decoding ..."),
            Event::Tile { index, tiles } => self.status(&format!("decoding {}/{tiles} tiles ...", index + 1)),
            Event::Frames { first, count, frames, .. } => {
                self.status(&format!("decoding {}/{frames} frames ...", first + count));
            }
            Event::Kept(latents) => self.kept(latents),
            _ => {}
        }
    }

    /// The last line: what was made, and what caching did for it.
    pub fn close(&mut self, output: &Path, video: &Video) {
        let (totals, spec) = (&video.report.totals, &video.spec);
        let (computed, reused) = (totals.forwards_computed, totals.forwards_reused);
        let mixed = match (totals.forwards_mixed, totals.units_computed + totals.units_reused) {
            (0, _) | (_, 0) => String::new(),
            (mixed, units) => format!(", {mixed} in part ({} % of the work)", 100 * totals.units_computed / units),
        };
        self.line(&format!(
            "{}: {} frames of {}x{}, {:.1} s. {computed} of {} forwards computed, {reused} reused{mixed}, about {:.1} s saved.",
            self.paint("1", &output.display().to_string()),
            spec.frames,
            spec.width,
            spec.height,
            totals.seconds.total,
            computed + reused + totals.forwards_mixed,
            video.report.seconds_saved(),
        ));
        if let Some(target) = &video.report.target {
            let TargetReport { asked, computed, speedup, promise, curve, .. } = target;
            let steps = video.report.steps.len();
            self.line(&format!("{asked}: {computed:.1} of {steps} steps computed, {speedup:.2} times less work."));
            if let Some(PromiseReport { psnr, share, mean }) = promise {
                let (share, videos) = (100.0 * share, curve.videos);
                self.line(&format!(
                    "{psnr} dB or more for {share:.0} % of videos like the {videos} it was measured on, {mean:.0} dB in the mean."
                ));
            }
        }
    }

    /// The last line after decoding latents.
    pub fn close_clip(&mut self, output: &Path, clip: &Clip) {
        let frames = clip.frames.len() / (clip.width * clip.height * 3).max(1);
        let output = self.paint("1", &output.display().to_string());
        self.line(&format!("{output}: {frames} frames of {}x{}.", clip.width, clip.height));
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

    fn step(&mut self, index: usize, steps: usize, strip: &Strip) {
        let done = index + 1;
        let done_here = done - *self.first.get_or_insert(index);
        let elapsed = self.denoising_since.elapsed();
        let left = elapsed.mul_f64((steps - done) as f64 / done_here as f64);
        let percent = 100 * done / steps;
        let text = format!("step {done}/{steps} {percent:>3}%  {} elapsed, {} left  ", clock(elapsed), clock(left));
        if self.terminal {
            // Longer than the terminal is wide, it would no longer be drawn over.
            let width = terminal_size::terminal_size_of(std::io::stderr()).map_or(80, |(width, _)| width.0 as usize);
            let room = width.saturating_sub(text.len() + 1);
            self.status(&format!("{text}{}", self.strip(strip, done.saturating_sub(room))));
        }
        if done == steps || !self.terminal && done * LINES / steps != index * LINES / steps {
            self.line(&format!("{text}{}", self.strip(strip, 0)));
        }
    }

    /// A character a step, from a step on: computed, reused, or part of it.
    fn strip(&self, strip: &Strip, from: usize) -> String {
        let symbol = |step: &Vec<Ran>| {
            let all = |ran: Ran| step.iter().all(|&r| r == ran);
            if all(Ran::Computed) {
                self.paint("32", "S")
            } else if all(Ran::Reused) {
                self.paint("90", ".")
            } else {
                self.paint("36", "m")
            }
        };
        strip.steps()[from..].iter().map(symbol).collect()
    }

    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            let over = if self.terminal { "\r\x1b[K" } else { "" };
            let _ = writeln!(std::io::stderr(), "{over}{text}"); // nowhere to report that stderr is gone
        }
    }

    /// A line that the next one replaces.
    pub fn status(&self, text: &str) {
        if !self.quiet && self.terminal {
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "\r\x1b[K{text}").and_then(|_| stderr.flush());
        }
    }
}

fn described(resolved: &Resolved) -> String {
    let Resolved { width, height, frames, steps, solver, guidance, seed, .. } = resolved;
    let cache = match &resolved.chosen {
        None => resolved.cache.method().name().to_string(),
        Some(best) => {
            format!("{}\ncache: {} was chosen, {} (--cache none computes everything)", best.spec, best.spec, best.why)
        }
    };
    format!(
        "{frames} frames of {width}x{height}, {steps} steps of {solver}, guidance {guidance}, seed {seed}, cache {cache}"
    )
}

fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}
