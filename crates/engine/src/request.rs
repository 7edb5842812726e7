//! What was asked for, and what is meant by it.
//!
//! A [`Request`] is all optional but the prompt. [`Request::resolve`] fills it up from the model's [`Defaults`], the
//! only place where defaults live, and refuses what cannot be made before anything expensive happens.

use std::path::PathBuf;

use navicache_control::cache::promise::{Extent, Settings};
use navicache_control::cache::{self, Best, CacheConfig, CacheSpec, watch};
use navicache_control::guidance::Branch;
use navicache_control::solver::SolverKind;
use navicache_control::target::Target;
use navicache_media::Rate;
use navicache_media::video::SCALE_MAX;
use navicache_weights::layout::DEFAULTS_FILE;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Resume};
use crate::demo;
use crate::field::Field;
use crate::limits::{Limits, check_finite, check_frames, check_multiple, check_range};
use crate::promise::{Promised, Whose, promised};
use crate::size::{AspectRatio, Resolution, Size};
use crate::{Error, Result};

/// What a user asked for. `None` is the model's default. In JSON a field that is left out is `None`, and one that is
/// not known is refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// What the video shows.
    pub prompt: String,
    /// What it should not show.
    pub negative_prompt: Option<String>,
    /// The picture that the video starts from.
    pub image: Option<PathBuf>,
    /// Width and height in pixels; with a picture, `None` keeps its aspect ratio.
    pub size: Option<Size>,
    /// How large, as in `480p`, where no size is given.
    pub resolution: Option<Resolution>,
    /// Width over height, as in `16:9`, where no size is given.
    pub aspect_ratio: Option<AspectRatio>,
    /// Number of frames.
    pub frames: Option<usize>,
    /// Frames a second, of the file that is written.
    pub fps: Option<Rate>,
    /// How many times as wide and high the file is as what was made; `None`: the model's own where people look at the
    /// file (MP4, GIF), 1 where programs read it.
    pub scale: Option<usize>,
    /// Number of denoising steps.
    pub steps: Option<usize>,
    /// The solver.
    pub solver: Option<SolverKind>,
    /// Shift of the noise schedule: larger spends more steps at high noise.
    pub shift: Option<f64>,
    /// Guidance scale; 1 or less means one branch without guidance. Guidance-distilled models are conditioned on it
    /// and keep one branch.
    pub guidance: Option<f64>,
    /// The guidance scale of the second transformer, in models that have two; `None`: that of the first, where it is
    /// given.
    pub guidance_2: Option<f64>,
    /// True classifier-free guidance on guidance-distilled models: adds a branch for the negative prompt.
    pub true_guidance: Option<f64>,
    /// Whether the guidance scale follows the timestep, in models that were published with such a rule (CogVideoX).
    pub dynamic_guidance: bool,
    /// Seed of the initial noise.
    pub seed: Option<u64>,
    /// Cache method and its options.
    pub cache: Option<CacheSpec>,
    /// How much is to be computed, in place of a threshold of the method's.
    pub target: Option<Target>,
    /// What is done when a guard tells that the run goes wrong.
    pub guard: Option<watch::Mode>,
    /// Text tokens given to the transformer.
    pub max_sequence_length: Option<usize>,
    /// Start from these latents instead of noise.
    pub latents: Option<PathBuf>,
    /// Write the final latents here, before they are decoded.
    pub save_latents: Option<PathBuf>,
    /// Most bytes that caching may keep; `None`: what memory is free.
    pub cache_memory: Option<u64>,
    /// In which parts frames are decoded.
    pub tile: Tiling,
    /// Seconds between two pictures of the video that is being made, at least: [`Event::Preview`](crate::Event).
    pub preview: Option<f64>,
    /// Leave checkpoints, to go on from should the run end early.
    pub checkpoint: Option<Checkpoint>,
    /// Go on from one.
    pub resume: Option<Resume>,
}

impl Request {
    /// A request for a prompt, with the model's defaults.
    pub fn new(prompt: impl Into<String>) -> Self {
        Request { prompt: prompt.into(), ..Default::default() }
    }
}

/// In which parts frames are decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tiling {
    /// As large as memory allows.
    #[default]
    Auto,
    /// Whole frames.
    Off,
    /// Tiles of at most so many pixels each way.
    #[serde(untagged)]
    Pixels(usize),
}

impl std::str::FromStr for Tiling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Tiling::Auto),
            ("off", _) => Ok(Tiling::Off),
            (_, Ok(pixels @ 1..)) => Ok(Tiling::Pixels(pixels)),
            _ => Err(Error::Invalid {
                field: Field::Tile,
                found: text.to_string(),
                expected: "expected auto, off or a number of pixels".to_string(),
            }),
        }
    }
}

/// A model's defaults, from its folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: Rate,
    /// How many times as wide and high a file to be watched is, where videos are small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<usize>,
    /// Number of steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// That of the second transformer, in models that have two and where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_2: Option<f64>,
    /// Text tokens given to the transformer.
    pub max_sequence_length: usize,
    /// Which presets of the cache methods apply, see [`navicache_control::cache::presets`].
    pub presets: String,
    /// What a small model was trained on, where that is little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
}

/// All that a small model knows. What is asked for beyond it is warned of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trained {
    /// Width and height of its videos.
    pub size: Size,
    /// Their frames.
    pub frames: usize,
    /// The words of its captions.
    pub words: Vec<String>,
    /// One of them.
    pub example: String,
}

impl Trained {
    /// What the user should know of a request.
    pub(crate) fn warnings(&self, request: &Resolved) -> Vec<String> {
        let mut warnings = Vec::new();
        let Trained { size, frames, words, example } = self;
        let prompt = request.prompt.to_lowercase();
        let asked: Vec<&str> = prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let unknown: Vec<String> = asked
            .iter()
            .filter(|word| !words.iter().any(|known| known == *word))
            .map(|word| format!("{word:?}"))
            .collect();
        if asked.is_empty() || !unknown.is_empty() {
            let what = if unknown.is_empty() { "an empty prompt".to_string() } else { unknown.join(", ") };
            warnings.push(format!(
                "{what} means nothing to this small model; it knows captions such as {example:?}: a color, a shape, a \
                 motion, a background"
            ));
        }
        if (request.width, request.height, request.frames) != (size.width, size.height, *frames) {
            warnings.push(format!("this small model was trained on {frames} frames of {size}; others come out wrong"));
        }
        warnings
    }
}

/// A request with every field decided and checked. This is what the report shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// What the video shows.
    pub prompt: String,
    /// What it should not show.
    pub negative_prompt: String,
    /// The picture it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: Rate,
    /// Number of steps.
    pub steps: usize,
    /// The solver.
    pub solver: SolverKind,
    /// Shift of the noise schedule.
    pub shift: f64,
    /// Guidance scale.
    pub guidance: f64,
    /// That of the second transformer, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_2: Option<f64>,
    /// True classifier-free guidance on a guidance-distilled model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub true_guidance: Option<f64>,
    /// Whether the guidance scale follows the timestep.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic_guidance: bool,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Text tokens given to the transformer.
    pub max_sequence_length: usize,
    /// Latents to start from instead of noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents: Option<PathBuf>,
    /// Where the final latents go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_latents: Option<PathBuf>,
    /// Most bytes that caching may keep; `None`: what memory is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_memory: Option<u64>,
    /// In which parts frames are decoded.
    pub tile: Tiling,
    /// The cache method. A report has it as a part of its own; read back from there, this is `none`.
    #[serde(skip, default = "uncached")]
    pub cache: CacheConfig,
    /// How much is to be computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The method that it is met with, as it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steered: Option<CacheSpec>,
    /// What is done when a guard tells that the run goes wrong.
    pub guard: watch::Mode,
    /// What was chosen because no method was asked for, and why.
    #[serde(skip)]
    pub chosen: Option<Best>,
    /// What a target of closeness led to.
    #[serde(skip)]
    pub promised: Option<Promised>,
}

fn uncached() -> CacheConfig {
    CacheConfig::None(cache::none::Config {})
}

/// Those of the built-in model.
fn built_in() -> Option<Defaults> {
    let file = demo::FILES.iter().find(|(path, _)| *path == DEFAULTS_FILE);
    file.and_then(|(_, bytes)| serde_json::from_slice(bytes).ok())
}

/// Most steps that make sense: the models know a thousand timesteps.
const STEPS_MAX: usize = 1000;
/// Most text tokens that are taken.
const SEQUENCE_MAX: usize = 8192;

impl Request {
    /// Fills up and checks. `solver` is the pipeline's own, `shift` gives its own for width, height and frames.
    pub(crate) fn resolve(
        &self,
        defaults: &Defaults,
        limits: &Limits,
        solver: SolverKind,
        shift: &dyn Fn(usize, usize, usize) -> f64,
    ) -> Result<Resolved> {
        let Size { width, height } = self.size.unwrap_or(Size { width: defaults.width, height: defaults.height });
        let frames = self.frames.unwrap_or(defaults.frames);
        let (frames_max, height_max, width_max) = limits.largest;
        check_multiple("width", width, limits.width_multiple, width_max)?;
        check_multiple("height", height, limits.height_multiple, height_max)?;
        check_frames(frames, limits, frames_max)?;
        let steps = self.steps.unwrap_or(defaults.steps);
        check_range(Field::Steps, steps, 1, STEPS_MAX)?;
        let fps = self.fps.unwrap_or(defaults.fps);
        self.scale.map_or(Ok(()), |factor| check_range(Field::Scale, factor, 1, SCALE_MAX))?;
        let max_sequence_length = self.max_sequence_length.unwrap_or(defaults.max_sequence_length);
        check_range(Field::MaxSequenceLength, max_sequence_length, 1, SEQUENCE_MAX)?;
        let guidance = self.guidance.unwrap_or(defaults.guidance);
        check_finite(Field::Guidance, guidance, 0.0)?;
        let guidance_2 = self.guidance_2.or(defaults.guidance_2.filter(|_| self.guidance.is_none()));
        guidance_2.map_or(Ok(()), |scale| check_finite(Field::Guidance2, scale, 0.0))?;
        self.true_guidance.map_or(Ok(()), |scale| check_finite(Field::TrueGuidance, scale, 0.0))?;
        self.preview.map_or(Ok(()), |seconds| check_finite(Field::Preview, seconds, 0.0))?;
        let shift = self.shift.unwrap_or_else(|| shift(width, height, frames));
        check_finite(Field::Shift, shift, 1e-3)?;
        let solver = self.solver.unwrap_or(solver);
        let family = defaults.presets.clone();
        let extent = Some(Extent { width, height, frames });
        let ours = Settings { family, solver, steps, guidance, shift: Some(shift), extent };
        let whose = if built_in().as_ref() == Some(defaults) { Whose::BuiltIn } else { Whose::Another };
        let promised = promised(self.target.as_ref(), self.cache.as_ref(), &ours, whose)?;
        let chosen = (self.cache.is_none() && promised.is_none()).then(|| cache::best(&defaults.presets, solver));
        let by_promise = promised.as_ref().map(|promised| &promised.spec);
        let asked = by_promise.or(self.cache.as_ref()).or(chosen.as_ref().map(|best| &best.spec));
        let cache = asked.cloned().unwrap_or_else(|| CacheSpec::new("none", Default::default()));
        Ok(Resolved {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
            image: self.image.clone(),
            width,
            height,
            frames,
            fps,
            steps,
            solver,
            shift,
            guidance,
            guidance_2,
            true_guidance: self.true_guidance,
            dynamic_guidance: self.dynamic_guidance,
            seed: self.seed.unwrap_or(0),
            max_sequence_length,
            latents: self.latents.clone(),
            save_latents: self.save_latents.clone(),
            cache_memory: self.cache_memory,
            tile: self.tile,
            cache: cache.resolve(&defaults.presets)?,
            steered: self.cache.clone().filter(|_| self.target.is_some()),
            target: self.target.clone(),
            guard: self.guard.unwrap_or_default(),
            chosen,
            promised,
        })
    }
}

impl Request {
    /// Width and height of a resolution and an aspect ratio by the rule of most models: `480p` has as many pixels as
    /// 16:9 of that height, whatever the aspect ratio. What is not given is the default's.
    pub(crate) fn size_by_name(&self, defaults: &Defaults, limits: &Limits) -> Result<Option<Size>> {
        if self.resolution.is_none() && self.aspect_ratio.is_none() {
            return Ok(None);
        }
        let pixels = match &self.resolution {
            None => (defaults.width * defaults.height) as f64,
            Some(resolution) => {
                let lines = resolution.lines().ok_or_else(|| Error::Invalid {
                    field: Field::Resolution,
                    found: resolution.to_string(),
                    expected: "expected a number of lines, as in 480p".to_string(),
                })?;
                lines * lines * 16.0 / 9.0
            }
        };
        let ratio = self.aspect_ratio.map_or(defaults.width as f64 / defaults.height as f64, AspectRatio::value);
        let snapped = |side: f64, multiple: usize| ((side / multiple as f64).round() as usize).max(1) * multiple;
        let height = (pixels / ratio).sqrt();
        let (width, height) = (snapped(height * ratio, limits.width_multiple), snapped(height, limits.height_multiple));
        Ok(Some(Size { width, height }))
    }
}

impl Resolved {
    /// The prompts of a run's branches.
    pub(crate) fn prompts(&self, branches: &[(Branch, f64)]) -> impl Iterator<Item = &str> {
        branches.iter().map(|(branch, _)| match branch {
            Branch::Cond => self.prompt.as_str(),
            Branch::Uncond | Branch::Other(_) => self.negative_prompt.as_str(),
        })
    }

    /// Refuses true guidance on models without embedded guidance.
    pub(crate) fn refuse_true_guidance(&self, expected: &str) -> Result<()> {
        match self.true_guidance {
            None => Ok(()),
            Some(scale) => Err(Error::Invalid {
                field: Field::TrueGuidance,
                found: scale.to_string(),
                expected: expected.to_string(),
            }),
        }
    }

    /// Refuses a second guidance scale on models of one transformer.
    pub(crate) fn refuse_second_guidance(&self) -> Result<()> {
        match self.guidance_2 {
            None => Ok(()),
            Some(scale) => Err(Error::Invalid {
                field: Field::Guidance2,
                found: scale.to_string(),
                expected: "this model has one transformer; take `guidance`".to_string(),
            }),
        }
    }

    /// Refuses a picture on models that start from text alone.
    pub(crate) fn refuse_picture(&self) -> Result<()> {
        match &self.image {
            None => Ok(()),
            Some(path) => Err(Error::Invalid {
                field: Field::Image,
                found: path.display().to_string(),
                expected: "this model makes video from text alone; leave the picture out".to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Frames;

    const LIMITS: Limits = Limits {
        width_multiple: 16,
        height_multiple: 16,
        frames: Frames::Causal { factor: 4, latent_multiple: 1 },
        largest: (4093, 16384, 16384),
    };

    fn resolve(change: impl FnOnce(&mut Request)) -> Result<Resolved> {
        let defaults = Defaults {
            width: 64,
            height: 64,
            frames: 17,
            fps: Rate::whole(8),
            scale: None,
            steps: 50,
            guidance: 4.0,
            guidance_2: None,
            max_sequence_length: 32,
            presets: "demo".to_string(),
            trained: None,
        };
        let mut request = Request::new("x");
        change(&mut request);
        request.resolve(&defaults, &LIMITS, SolverKind::UniPc, &|_, _, _| 3.0)
    }

    #[test]
    fn what_is_not_asked_for_is_the_models_own() {
        let resolved = resolve(|_| ()).unwrap();
        assert_eq!((resolved.width, resolved.frames, resolved.steps, resolved.shift), (64, 17, 50, 3.0));
        assert_eq!(resolved.cache.method().name(), "stride");
    }

    #[test]
    fn errors_name_the_nearest_that_work() {
        let says = |change: fn(&mut Request), part: &str| {
            let message = resolve(change).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        says(|r| r.frames = Some(10), "nearest that work are 9 and 13");
        says(|r| r.frames = Some(0), "nearest that work are 1 and 5");
        says(|r| r.frames = Some(1 << 40), "largest that works is 4093");
        says(
            |r| r.size = Some((100, 64).into()),
            "`size` width 100: expected a multiple of 16; the nearest that work are 96 and 112",
        );
        says(|r| r.size = Some((64, 8).into()), "smallest that works is 16");
        says(|r| r.size = Some((1 << 40, 64).into()), "largest that works is 16384");
        says(|r| r.steps = Some(0), "expected 1 to 1000");
        says(|r| r.guidance = Some(f64::NAN), "`guidance` NaN");
        says(|r| r.shift = Some(0.0), "`shift` 0");
        says(|r| r.max_sequence_length = Some(0), "expected 1 to 8192");
    }

    #[test]
    fn a_request_is_json() {
        let text = r#"{"prompt": "a cat", "size": "832x480", "aspect_ratio": "16:9", "solver": "euler", "tile": 256,
            "cache": "navicache:mid,threshold=0.1"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        let cache = Some("navicache:mid,threshold=0.1".parse().unwrap());
        assert_eq!((request.size, request.tile), (Some(Size { width: 832, height: 480 }), Tiling::Pixels(256)));
        assert_eq!((request.solver, &request.cache), (Some(SolverKind::Euler), &cache));
        let again: Request = serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
        assert_eq!(again, request);
        assert_eq!(serde_json::from_str::<Request>("{}").unwrap(), Request::default());
        for (text, part) in [
            (r#"{"promt": "a cat"}"#, "unknown field `promt`, expected one of `prompt`"),
            (r#"{"size": "832"}"#, "expected WIDTHxHEIGHT"),
            (r#"{"cache": "teecache"}"#, "known are none, easycache"),
            (r#"{"steps": -1}"#, "invalid value"),
        ] {
            let message = serde_json::from_str::<Request>(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
