//! Options of what is sampled and how, shared by the commands that run a model.

use std::path::PathBuf;

use navicache_engine::control::solver::SolverKind;
use navicache_engine::{AspectRatio, Rate, Request, Resolution, Size};

use crate::listed;
use crate::loading::Loading;
use crate::values::{bytes, seed};

/// What differs between the videos of a call.
#[derive(clap::Args)]
#[group(id = "batch")]
pub struct Batch {
    /// Make a video of each line of this file (- is standard input)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "resume", "resume_decode", "checkpoint", "latents"])]
    pub prompts: Option<PathBuf>,

    /// Make a video with each of these seeds, as in 1,2,3
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["seed", "resume", "resume_decode", "checkpoint", "latents"])]
    pub seeds: Vec<u64>,
}

/// What is sampled, and how.
#[derive(clap::Args)]
pub struct Sampling {
    /// What the video shows; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Seed of the noise: a number, or random [default: 0]
    #[arg(long, value_name = "N|random", allow_hyphen_values = true, value_parser = seed)]
    pub seed: Option<u64>,

    #[command(flatten)]
    pub settings: Settings,
}

/// How it is sampled, whatever it is.
#[derive(clap::Args)]
pub struct Settings {
    /// What the video should not show
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative_prompt: Option<String>,

    /// Picture that the video starts from: .png, .jpg or .webp
    #[arg(short, long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Width and height in pixels, as in 832x480 [default: the model's own]
    ///
    /// With --image, the default keeps the picture's aspect ratio. Most models take multiples of 16.
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,

    /// Size class where no size is given, as in 480p
    #[arg(long, value_name = "LINESp", conflicts_with = "size")]
    pub resolution: Option<Resolution>,

    /// Width over height, where no size is given, as in 16:9
    #[arg(long, value_name = "W:H", conflicts_with = "size")]
    pub aspect_ratio: Option<AspectRatio>,

    /// Number of frames, 4n + 1 for most models [default: the model's own]
    #[arg(long, value_name = "N")]
    pub frames: Option<usize>,

    /// Frames per second of the video file, as in 24, 23.976 or 24000/1001
    #[arg(long, value_name = "N")]
    pub fps: Option<Rate>,

    /// Denoising steps [default: the model's own]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,

    /// Guidance scale; 1 switches guidance off [default: the model's own]
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    pub guidance: Option<f64>,

    /// Guidance scale of the second transformer (Wan2.2 A14B); left out, that of the first
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    pub guidance_2: Option<f64>,

    /// Classifier-free guidance beside the guidance that a distilled model is conditioned on (HunyuanVideo): a second
    /// branch, for the negative prompt
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    pub true_guidance: Option<f64>,

    /// Shift of the noise schedule; larger spends more steps at high noise
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    pub shift: Option<f64>,

    /// Let the guidance scale follow the timestep (CogVideoX)
    #[arg(long)]
    pub dynamic_guidance: bool,

    /// Solver: unipc, dpmpp, euler, ddim or dpmpp_sde
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = listed::one_of::<SolverKind>(|| SolverKind::NAMES.to_vec()))]
    pub solver: Option<SolverKind>,

    /// Text tokens given to the transformer
    #[arg(long, value_name = "N")]
    pub max_sequence_length: Option<usize>,

    /// Start from the tensor `latents` of this file instead of noise
    #[arg(long, value_name = "FILE.safetensors")]
    pub latents: Option<PathBuf>,

    /// Most memory that caching may keep, as in 500MB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub cache_memory: Option<u64>,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub loading: Loading,
}

impl Sampling {
    /// The request as the engine takes it.
    pub fn request(&self) -> Request {
        let prompt = self.prompt.clone().unwrap_or_default();
        Request { prompt, seed: self.seed, ..self.settings.request() }
    }
}

impl Settings {
    /// The request as the engine takes it, for no prompt yet.
    pub fn request(&self) -> Request {
        Request {
            negative_prompt: self.negative_prompt.clone(),
            image: self.image.clone(),
            size: self.size,
            resolution: self.resolution.clone(),
            aspect_ratio: self.aspect_ratio,
            frames: self.frames,
            fps: self.fps,
            steps: self.steps,
            solver: self.solver,
            shift: self.shift,
            guidance: self.guidance,
            guidance_2: self.guidance_2,
            true_guidance: self.true_guidance,
            dynamic_guidance: self.dynamic_guidance,
            max_sequence_length: self.max_sequence_length,
            latents: self.latents.clone(),
            cache_memory: self.cache_memory,
            ..Request::default()
        }
    }
}
