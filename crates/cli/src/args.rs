//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, CommandFactory, FromArgMatches, Parser, Subcommand};
use navicache_engine::control::cache::CacheSpec;
use navicache_engine::control::cache::watch::Mode;
use navicache_engine::control::target::Target;
use navicache_engine::convert::Numbers;
use navicache_engine::replay::trace::LAGS;
use navicache_engine::{Lora, Tiling};
use navicache_metrics::Convention;
use navicache_study::bench::Part;

use crate::checkpoints::Checkpoints;
use crate::heading::arranged;
use crate::listed;
use crate::settings::{Batch, Sampling, Settings};
use crate::values::{Preview, file, lags, preview};
use crate::{examples, version};

/// Generates video with diffusion transformers, and computes only the steps that matter.
///
///     navicache generate "an orange ring growing on a brown background" -o out.mp4
///
/// runs the model that is built in; no download is needed. `navicache models` lists published ones, `navicache pull`
/// downloads one, and --model takes its name, or any folder or file of weights.
#[derive(Parser)]
#[command(name = "navicache", version, long_version = version::long(), after_help = examples::PROGRAM, verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a video from a prompt
    Generate(Box<Generate>),
    /// Say what a generation will take: memory by stage, and time, with and without caching
    Estimate(Box<Estimate>),
    /// Say what this machine is, and which models it can run
    Doctor(Doctor),
    /// List the models that are known by name, and which of them are here
    Models(Models),
    /// Download a model, resuming a partial download
    Pull(Pull),
    /// Say what a file or folder of weights is, and what is missing to run it
    Inspect(Inspect),
    /// Write weights of any packaging anew: Diffusers' safetensors or GGUF, LoRAs merged
    Convert(Convert),
    /// Run methods side by side, and show videos, measurements and what ran on one page
    Compare(Box<Compare>),
    /// Make the videos that VBench evaluates, with the file names it expects
    Vbench(Box<Vbench>),
    /// Measure a video against a reference: PSNR, SSIM, LPIPS, motion kept
    Metrics(Metrics),
    /// Time parts of a generation on this machine
    Bench(Box<Bench>),
    /// List the cache methods, or show one with its options and presets
    Methods(Methods),
    /// Record what a run measures when everything is computed
    Trace(Box<Trace>),
    /// Write what the parts of a model make of a prompt, to hold it against another implementation
    #[command(hide = true)]
    Parts(Box<crate::parts::Parts>),
    /// Play cache methods against recorded runs, in milliseconds and without the model
    Replay(Replay),
    /// Choose a method and its threshold from recorded runs
    Tune(Tune),
    /// Serve models over HTTP: OpenAI's video routes, and a queue that survives kills and power cuts
    #[cfg(feature = "server")]
    Serve(Box<crate::serve::Serve>),
    /// Make the videos of a server, which starts this
    #[cfg(feature = "server")]
    #[command(hide = true)]
    Worker(crate::serve::Worker),
    /// List the GPUs here; how `navicache` asks whether there is one
    #[cfg(feature = "cuda")]
    #[command(hide = true)]
    Gpus,
    /// Show what is set by NAVICACHE_* variables and the configuration file, and from where each value is
    Config(Config),
    /// Write manual pages, one for each command
    Man {
        /// Folder to write them to
        #[arg(value_name = "DIR", default_value = ".")]
        folder: PathBuf,
    },
    /// Print a completion script for a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The command line as a whole.
pub fn program() -> clap::Command {
    Args::command().mut_subcommands(arranged)
}

impl Command {
    /// Reads a command line.
    pub fn read(program: &clap::Command, arguments: &[OsString]) -> Result<Command, clap::Error> {
        let mut matches = program.clone().try_get_matches_from(arguments)?;
        Ok(Args::from_arg_matches_mut(&mut matches)?.command)
    }

    /// Whether what happens is to be printed as JSON lines.
    pub fn prints_events(&self) -> bool {
        match self {
            Command::Generate(options) => options.json,
            Command::Trace(options) => options.json,
            Command::Compare(options) => options.json,
            Command::Vbench(options) => options.json,
            Command::Pull(options) => options.json,
            _ => false,
        }
    }
}

/// Options that are left out have the model's own values; the report shows them.
#[derive(clap::Args)]
#[command(args_override_self = true, after_help = examples::GENERATE, group(ArgGroup::new("latents of").args(["prompt", "prompts", "resume", "resume_decode"]).required(true).multiple(true)))]
pub struct Generate {
    #[command(flatten)]
    pub sampling: Sampling,

    /// Video to write: .mp4, .gif, .y4m, .safetensors, or a folder of PNG files
    #[arg(short, long, value_name = "FILE", default_value = "out.mp4", value_parser = file)]
    pub output: PathBuf,

    /// How many times as wide and high the file is as what was made [default: for .mp4 and .gif what a small model
    /// says, 4 of the built-in one; otherwise 1]
    #[arg(long, value_name = "N")]
    pub scale: Option<usize>,

    #[command(flatten)]
    pub batch: Batch,

    /// Caching method, as in navicache:fast; none computes everything [default: stride]
    ///
    /// METHOD[:PRESET][,KEY=VALUE...], as in navicache:fast,max_run=3. `navicache methods` lists them. @FILE takes a
    /// tuned preset, schedule:FILE the strip of a report.
    #[arg(long, value_name = "METHOD", value_parser = listed::cache(), hide_possible_values = true)]
    pub cache: Option<CacheSpec>,

    /// How much to compute: speedup=2, work=50%, steps=25, time=5min, psnr=40 or error=0.02
    ///
    /// The method's threshold is moved while the video is made, to meet it. ,curve=FILE names a curve that `navicache
    /// tune` or `navicache compare` made.
    #[arg(long, value_name = "WHAT=VALUE")]
    pub target: Option<Target>,

    /// What is done when the run goes wrong: off, warn, or act (reuse less, or nothing more)
    #[arg(long, value_name = "MODE", hide_possible_values = true, value_parser = listed::one_of::<Mode>(|| vec!["off", "warn", "act"]))]
    pub guard: Option<Mode>,

    /// Write the final latents, before they are decoded
    #[arg(long, value_name = "FILE.safetensors")]
    pub save_latents: Option<PathBuf>,

    /// Write what was computed, and what it cost
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,

    /// In which parts frames are decoded: auto (as large as memory allows), off, or tiles of so many pixels
    #[arg(long, value_name = "PIXELS", default_value = "auto")]
    pub tile: Tiling,

    /// Where pictures of the video that is being made go, one a second at most: a file, terminal, or off
    ///
    /// A file is replaced whole each time. Left out, a terminal that shows colours has them, but for the built-in
    /// model, which is done too soon.
    #[arg(long, value_name = "FILE.jpg|terminal|off", value_parser = preview)]
    pub preview: Option<Preview>,

    /// Decode latents that an earlier run left or saved, instead of making any
    #[arg(long, value_name = "FILE.safetensors", conflicts_with_all = ["prompt", "report", "save_latents", "cache", "target", "checkpoint or resume"])]
    pub resume_decode: Option<PathBuf>,

    #[command(flatten)]
    pub checkpoints: Checkpoints,

    /// Print what happens as JSON lines, for programs (docs/events.md)
    #[arg(long)]
    pub json: bool,
}

/// Memory follows from the shapes. For the time, one block of the transformer runs on few tokens, and a little is
/// decoded. Of a model that is not here yet both follow from its published shapes and the speed of this machine.
#[derive(clap::Args)]
#[command(args_override_self = true, after_help = examples::ESTIMATE)]
pub struct Estimate {
    /// The model, as for --model
    #[arg(value_name = "MODEL", value_parser = listed::model(), hide_possible_values = true, conflicts_with = "model")]
    pub name: Option<String>,

    #[command(flatten)]
    pub settings: Settings,

    /// Cache method, as for generate
    #[arg(long, value_name = "METHOD", value_parser = listed::cache(), hide_possible_values = true)]
    pub cache: Option<CacheSpec>,

    /// How much is computed, as for generate
    #[arg(long, value_name = "WHAT=VALUE")]
    pub target: Option<Target>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Nothing is downloaded. Times of models are for their own size and number of frames, everything computed.
#[derive(clap::Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A name stands for a model wherever --model takes a path, once it has been pulled.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Models {
    #[command(subcommand)]
    pub action: Option<OnModels>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum OnModels {
    /// Remove what has been pulled of a model
    Rm {
        /// A name that `navicache models` lists, or a repository as OWNER/NAME
        name: String,
    },
}

/// Numbers that keep their format are copied; what was written is read again and compared. LoRAs go into the
/// transformer; of a whole model, all else is copied.
#[derive(clap::Args)]
pub struct Convert {
    /// File of weights, folder with those of one component or of a whole model, or a model that has been pulled
    pub from: String,

    /// File to write, .safetensors or .gguf; for a whole model, a folder
    #[arg(short, long, value_name = "FILE|DIR", value_parser = file)]
    pub output: PathBuf,

    /// What the transformer's matrices are written in: f32, f16, bf16, q8_0, q6_k, q5_k or q4_k; left out, as they are
    /// stored
    #[arg(long = "type", value_name = "NAME")]
    pub numbers: Option<Numbers>,

    /// LoRA to merge, and how much of it; may be given again
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    pub lora: Vec<Lora>,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Files go into the cache of the hub's own tools (HF_HOME). A download that was stopped resumes; checksums are
/// verified. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
#[derive(clap::Args)]
#[command(after_help = examples::PULL)]
pub struct Pull {
    /// A name that `navicache models` lists, or a repository as OWNER/NAME
    #[arg(value_parser = listed::published_model(), hide_possible_values = true)]
    pub name: String,

    /// Only files with this in their names, as in Q4_K_M; may be given again
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,

    /// Print errors and the folder only
    #[arg(short, long)]
    pub quiet: bool,

    /// Print what happens as JSON lines, for programs (docs/events.md)
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Inspect {
    /// File or folder, or a model that has been pulled
    pub path: String,

    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Every prompt is run with every seed and method, and measured against the uncached video. The page works offline.
/// Run the same command again to resume; prompts, seeds and methods can be added.
#[derive(clap::Args)]
#[command(after_help = examples::COMPARE, group(ArgGroup::new("videos of").args(["prompts", "from"]).required(true)))]
pub struct Compare {
    /// What the videos show
    #[arg(value_name = "PROMPT")]
    pub prompts: Vec<String>,

    /// Methods, as in none,navicache:fast,easycache,navicache,threshold=0.1; may be given again; left out, what the
    /// model has presets for. The uncached run is always there
    #[arg(long, value_name = "LIST", value_parser = listed::caches(), hide_possible_values = true)]
    pub methods: Vec<String>,

    /// Seeds of the noise, as in 0,1
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub seeds: Vec<u64>,

    /// Folder to write, or to go on with
    #[arg(short, long, value_name = "DIR", default_value = "compare", conflicts_with = "from")]
    pub output: PathBuf,

    /// Make the page again from what a folder has, without running anything
    #[arg(long, value_name = "DIR", conflicts_with_all = ["methods", "seeds", "lpips_weights"])]
    pub from: Option<PathBuf>,

    /// Measure LPIPS too, with these weights: a file saved of the lpips package's model (net="alex"), or torchvision's
    /// alexnet-owt-*.pth and the package's alex.pth
    #[arg(long, value_name = "FILE[,FILE]", value_delimiter = ',')]
    pub lpips_weights: Vec<PathBuf>,

    /// Let the page refer to the videos beside it, instead of holding them; beyond 64 MiB it does so by itself
    #[arg(long)]
    pub link_videos: bool,

    /// Write how close a method is at each threshold, for --target psnr=40,curve=FILE: of --methods that are one method
    /// with several thresholds, on 19 videos or more
    #[arg(long, value_name = "FILE.json")]
    pub promise: Option<PathBuf>,

    /// Print plots too
    #[arg(long)]
    pub plot: bool,

    /// Print what happens as JSON lines, for programs (docs/events.md)
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub settings: Settings,
}

/// Videos that are there are not made again: run the same command again to resume, or split the work between machines
/// with --start and --end. At the end the command for VBench's own evaluation is printed.
#[derive(clap::Args)]
#[command(after_help = examples::VBENCH)]
pub struct Vbench {
    /// VBench_full_info.json, a JSON list of texts, or a .txt file with a prompt a line
    #[arg(value_name = "PROMPTS")]
    pub prompts: PathBuf,

    /// Longer descriptions to make the videos of, one a line in the order of the prompts; the names of the videos stay
    #[arg(long, value_name = "FILE.txt")]
    pub augmented: Option<PathBuf>,

    /// Folder for the videos
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,

    /// Videos per prompt, with consecutive seeds; left out, 5, and 25 where VBench judges flickering
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: Option<u64>,

    /// Seed of the first video of each prompt
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// First prompt to do, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub start: usize,

    /// Prompt to stop before; left out, all are done
    #[arg(long, value_name = "N")]
    pub end: Option<usize>,

    /// Cache method, as for generate
    #[arg(long, value_name = "METHOD", value_parser = listed::cache(), hide_possible_values = true)]
    pub cache: Option<CacheSpec>,

    /// Print what happens as JSON lines, for programs (docs/events.md)
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub settings: Settings,
}

/// Two folders of videos are compared pairwise, by the names in them; a pair that cannot be compared is named, the
/// others are done, and the exit code says so. Worst frames and percentiles count from the bad end: for LPIPS, which is
/// a distance, that is the largest.
#[derive(clap::Args)]
#[command(after_help = examples::METRICS)]
pub struct Metrics {
    /// The uncached video: .mp4, .y4m, .safetensors, or a folder of PNG files; or a folder of such videos
    pub reference: PathBuf,

    /// The video to measure, of the same size and number of frames; or a folder of them
    pub video: PathBuf,

    /// Whose definitions: raw (frames as they are, PSNR the mean over frames), videosys (PAB and NaviCache: the same,
    /// and a larger reference is cut), easycache (PSNR of one error over the video)
    #[arg(long, value_name = "NAME", default_value = "raw", hide_possible_values = true,
          value_parser = listed::one_of::<Convention>(|| vec!["raw", "videosys", "easycache"]))]
    pub convention: Convention,

    /// Measure LPIPS too, with these weights: a file saved of the lpips package's model (net="alex"), or torchvision's
    /// alexnet-owt-*.pth and the package's alex.pth
    #[arg(long, value_name = "FILE[,FILE]", value_delimiter = ',')]
    pub lpips_weights: Vec<PathBuf>,

    /// Write the values of every frame
    #[arg(long, value_name = "FILE.csv")]
    pub csv: Option<PathBuf>,

    /// Print JSON, with the values of every frame
    #[arg(long)]
    pub json: bool,

    /// Threads to measure with; left out, those that the machine has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// matmul, attention, block and forward have the shapes of Wan2.1-1.3B and random weights; skip and correction are what
/// a step costs that is left to the solver; vae and end-to-end time a model. One run goes before those that count.
#[derive(clap::Args)]
#[command(after_help = examples::BENCH)]
pub struct Bench {
    /// matmul, attention, block, forward, skip, correction, vae or end-to-end
    #[arg(value_name = "PART", hide_possible_values = true, value_parser = listed::one_of::<Part>(|| Part::NAMES.to_vec()))]
    pub part: Part,

    /// Tokens of the video, for the parts without a model
    #[arg(long, value_name = "N", default_value_t = 1560, value_parser = tokens)]
    pub tokens: usize,

    /// Runs that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: u16,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub settings: Settings,
}

/// The largest video that anyone makes has fewer.
fn tokens(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|tokens| (1..=1_000_000).contains(tokens)).ok_or("expected 1 to 1000000".to_string())
}

#[derive(clap::Args)]
#[command(after_help = examples::METHODS)]
pub struct Methods {
    /// Show this one
    #[arg(value_parser = listed::method(), hide_possible_values = true)]
    pub name: Option<String>,

    /// Show what is taken for each family of models where no --cache is given, and why
    #[arg(long, conflicts_with = "name")]
    pub best: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Every step is computed. The lines of the file are JSON: what was run, then a line a step.
#[derive(clap::Args)]
#[command(args_override_self = true, mut_arg("prompt", |prompt| prompt.required(true)))]
pub struct Trace {
    #[command(flatten)]
    pub sampling: Sampling,

    /// File to write
    #[arg(short, long, value_name = "FILE.jsonl", default_value = "trace.jsonl")]
    pub output: PathBuf,

    /// How many earlier steps distances of features are recorded to (of latents: three times as many); fewer take less
    /// memory
    #[arg(long, value_name = "N", default_value_t = LAGS, value_parser = lags)]
    pub lags: usize,

    /// Print what happens as JSON lines, for programs (docs/events.md)
    #[arg(long)]
    pub json: bool,
}

/// For traces: what each setting would compute, and how far off its values would be. For a CSV file of input and output
/// changes: how well each method predicts the next output change, as mean absolute error.
#[derive(clap::Args)]
pub struct Replay {
    /// Traces, or one CSV file
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Method to play; an option may be a range, as in navicache,threshold=0.02..0.2. May be given again; left out, all
    /// are played
    #[arg(long, value_name = "METHOD", value_parser = listed::caches(), hide_possible_values = true)]
    pub cache: Vec<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Thresholds are tried over a wide range; methods of a fixed interval, over their intervals.
#[derive(clap::Args)]
#[command(after_help = examples::TUNE)]
pub struct Tune {
    /// Traces, of the kind of video that is to be made
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// Write what a method computes at every threshold, for --target ...,curve=FILE, instead of choosing one
    #[arg(long, conflicts_with_all = ["speedup", "budget"], requires = "cache")]
    pub curve: bool,

    /// Write how large a method's predicted error is at every threshold, for --target error=E,curve=FILE, instead of
    /// choosing one; of 19 traces or more
    #[arg(long, conflicts_with_all = ["speedup", "budget", "curve"], requires = "cache")]
    pub promise: bool,

    /// Target speed-up: compute at most 1/F of the work, with the smallest predicted error
    #[arg(long, value_name = "F", required_unless_present_any = ["budget", "curve", "promise"], conflicts_with = "budget")]
    pub speedup: Option<f64>,

    /// Allow this predicted error, and compute as little as possible
    #[arg(long, value_name = "F")]
    pub budget: Option<f64>,

    /// Method to try; may be given again; left out, all are tried
    #[arg(long, value_name = "METHOD", value_parser = listed::one_of::<CacheSpec>(listed::methods_and_presets), hide_possible_values = true)]
    pub cache: Vec<CacheSpec>,

    /// Preset to write, for --cache @FILE; or the curve, or the promise
    #[arg(short, long, value_name = "FILE.json", default_value = "preset.json")]
    pub output: PathBuf,
}

/// The command line counts before NAVICACHE_* variables, these before the file, the file before defaults.
#[derive(clap::Args)]
#[command(after_help = examples::CONFIG)]
pub struct Config {
    /// Show all options of this command
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        program().debug_assert();
    }
}
