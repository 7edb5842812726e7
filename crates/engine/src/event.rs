//! What a generation says while it runs, and how it is stopped.

use std::ops::ControlFlow;
use std::path::Path;

use navicache_control::strip::Strip;
use serde_json::{Value, json};

use crate::request::Resolved;
use crate::{Error, Result};

/// What happens during a generation, in order. Answer [`ControlFlow::Break`] to stop at the next step or chunk of
/// frames.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The request as it is understood; nothing has run yet.
    Resolved(&'a Resolved),
    /// A stage begins.
    Stage(Stage),
    /// Something the user should know.
    Warning(&'a str),
    /// A denoising step is done.
    Step {
        /// From 0.
        index: usize,
        /// Number of steps.
        steps: usize,
        /// Wall-clock seconds it took.
        seconds: f64,
        /// What ran so far.
        strip: &'a Strip,
    },
    /// What the middle of the video is expected to look like, where the request asks for it
    /// ([`Request::preview`](crate::Request::preview)). It follows the step that it was made after.
    Preview {
        /// The step, from 0.
        index: usize,
        /// Number of steps.
        steps: usize,
        /// In pixels; it may be smaller than the video.
        width: usize,
        /// In pixels.
        height: usize,
        /// 8-bit RGB. // (height, width, 3)
        rgb: &'a [u8],
    },
    /// A checkpoint was written.
    Checkpoint {
        /// The file.
        path: &'a Path,
        /// Steps that it holds.
        step: usize,
        /// Number of steps.
        steps: usize,
    },
    /// One tile of all frames is decoded; frames follow when all tiles are.
    Tile {
        /// From 0.
        index: usize,
        /// Number of tiles.
        tiles: usize,
    },
    /// Frames are decoded.
    Frames {
        /// Index of the first of them.
        first: usize,
        /// How many they are.
        count: usize,
        /// Frames in all.
        frames: usize,
        /// 8-bit RGB. // (frames in chunk, height, width, 3)
        rgb: &'a [u8],
    },
    /// Decoding or writing failed; the final latents are kept in this file, for
    /// [`decode_latents`](crate::decode_latents).
    Kept(&'a Path),
}

impl Event<'_> {
    /// What happens, as an object for programs: docs/events.md lists its fields. Pixels are not part of it.
    pub fn to_json(&self) -> Value {
        match self {
            Event::Resolved(request) => {
                let chosen = request.chosen.as_ref();
                let chosen = chosen.map(|best| json!({"cache": best.spec.to_string(), "why": best.why}));
                json!({"event": "resolved", "request": request, "chosen": chosen})
            }
            Event::Stage(stage) => json!({"event": "stage", "stage": stage.name()}),
            Event::Warning(text) => json!({"event": "warning", "text": text}),
            Event::Step { index, steps, seconds, strip } => {
                let strip = strip.to_string();
                json!({"event": "step", "index": index, "steps": steps, "seconds": seconds, "strip": strip})
            }
            Event::Preview { index, steps, width, height, .. } => {
                json!({"event": "preview", "index": index, "steps": steps, "width": width, "height": height})
            }
            Event::Checkpoint { path, step, steps } => {
                json!({"event": "checkpoint", "path": path, "step": step, "steps": steps})
            }
            Event::Tile { index, tiles } => json!({"event": "tile", "index": index, "tiles": tiles}),
            Event::Frames { first, count, frames, .. } => {
                json!({"event": "frames", "first": first, "count": count, "frames": frames})
            }
            Event::Kept(path) => json!({"event": "latents", "path": path}),
        }
    }
}

/// A stage of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Stage {
    /// Text encoder.
    Text,
    /// Image encoder, and the VAE's encoder.
    Picture,
    /// Reading transformer and VAE.
    Load,
    /// The steps.
    Denoise,
    /// VAE decoder.
    Decode,
}

impl Stage {
    /// Lower-case name, as in estimates.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Passes events on, and remembers warnings and the wish to stop.
pub(crate) struct Reporter<'a> {
    pub on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    pub warnings: Vec<String>,
    pub cancelled: bool,
}

impl Reporter<'_> {
    pub fn emit(&mut self, event: Event) {
        self.cancelled |= (self.on_event)(event).is_break();
    }

    pub fn warn(&mut self, warning: String) {
        self.emit(Event::Warning(&warning));
        self.warnings.push(warning);
    }

    pub fn stop_if_cancelled(&self, step: usize, steps: usize) -> Result<()> {
        if self.cancelled { Err(Error::Cancelled { step, steps }) } else { Ok(()) }
    }

    pub fn stop_if_decoding_cancelled(&self) -> Result<()> {
        if self.cancelled { Err(Error::DecodingCancelled) } else { Ok(()) }
    }
}
