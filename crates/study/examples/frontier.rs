//! What cache methods save on the embedded model, and what they cost: each against the uncached video of the same seed,
//! 8 prompts with 2 seeds. The videos, their page and `frontier.svg` stay in a folder; given again, it goes on where it
//! stopped.
//!
//!     cargo run --release -p navicache-study --example frontier -- FOLDER navicache:fast navicache:mid easycache
//!
//! With `--frontier` it measures every method at the settings of docs/results.md, with `--pairs` the pairs there, with
//! `--rivals` the same solver with fewer steps; `--held-out` takes 16 videos that no preset was chosen on, `--videos N`
//! fewer of them; `--solver`, `--steps` and `--guidance` are those of `navicache generate`.
//!
//! With `--other-runs` it measures at 20 to 100 steps and at guidances 1, 4 and 7 instead, each in a folder of its own,
//! beside the same solver with as many steps as the first method computes there. How far a method is from 200 steps:
//! `--steps 200 stride:mid,steps=50`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use navicache_engine::control::cache::{About, CacheConfig, presets};
use navicache_engine::{LoadOptions, Pipeline, Request};
use navicache_metrics::SSIM;
use navicache_study::compare::{self, Event, Plan, Results, Summary, Videos};

const PROMPTS: [&str; 8] = [
    "a red circle bouncing on a navy background",
    "a blue star spinning on a cream background",
    "a yellow ring circling on a teal background",
    "a green square moving right on a black background",
    "a purple triangle growing on a gray background",
    "an orange circle moving up on a brown background",
    "a white star moving left on a navy background",
    "a cyan square shrinking on a cream background",
];
const SEEDS: [u64; 2] = [0, 1];

/// Videos that no preset was chosen on.
const HELD_OUT: [&str; 8] = [
    "a white square bouncing on a brown background",
    "a blue star moving left on a teal background",
    "a purple star moving up on a black background",
    "a yellow triangle moving left on a teal background",
    "a green star moving right on a teal background",
    "a yellow ring circling on a brown background",
    "an orange ring shrinking on a navy background",
    "a purple square moving up on a cream background",
];
const HELD_OUT_SEEDS: [u64; 2] = [501, 502];

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let options = Options::parse()?;
    let pipeline = Pipeline::open("demo", &LoadOptions::default())?;
    if options.other_runs { other_runs(&pipeline, &options) } else { one_run(&pipeline, &options) }
}

/// Every method on every video, all of as many steps.
fn one_run(pipeline: &Pipeline, options: &Options) -> Result<(), Failure> {
    let results = measured(pipeline, &options.plan(), &options.folder)?;
    println!(
        "| cache | computed steps | units computed | speed-up | PSNR | worst video | SSIM | strip of the first video |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for summary in &results.methods {
        println!("{}", line(&results, summary));
    }
    Ok(())
}

/// Whether what was chosen at 50 steps and guidance 2 holds elsewhere.
fn other_runs(pipeline: &Pipeline, options: &Options) -> Result<(), Failure> {
    let of_steps = [20, 30, 40, 60, 80, 100].map(|n| (format!("{n} steps"), Some(n), options.request.guidance));
    let of_guidance = [1.0, 4.0, 7.0].map(|g| (format!("guidance {g}"), options.request.steps, Some(g)));
    println!("| run | cache | computed steps | PSNR | worst video |");
    println!("|---|---|---|---|---|");
    for (name, steps, guidance) in of_steps.into_iter().chain(of_guidance) {
        let folder = options.folder.join(name.replace(' ', "-"));
        let mut plan = options.plan();
        (plan.request.steps, plan.request.guidance) = (steps, guidance);
        let results = measured(pipeline, &plan, &folder)?;
        // The rival computes as many steps as the first method does.
        let first = plan.methods.first().and_then(|method| results.methods.iter().find(|s| s.method == *method));
        let computed = computed_steps(&results, first.ok_or("expected a method")?).round();
        plan.methods.push(format!("none,steps={computed}"));
        let results = measured(pipeline, &plan, &folder)?;
        for summary in results.methods.iter().filter(|summary| plan.methods.contains(&summary.method)) {
            let decibels = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1} dB"));
            let (mean, worst) = (decibels(summary.psnr), decibels(summary.psnr_worst));
            let computed = computed_steps(&results, summary);
            println!("| {name} | `{}` | {computed:.1} | {mean} | {worst} |", summary.method);
        }
    }
    Ok(())
}

/// Runs what the folder lacks, and makes its page.
fn measured(pipeline: &Pipeline, plan: &Plan, folder: &Path) -> Result<Results, Failure> {
    let results = compare::run(pipeline, plan, folder, &mut |event| {
        if let Event::Run { index, runs, method, .. } = event {
            eprintln!("{}/{runs} {method}", index + 1);
        }
        ControlFlow::Continue(())
    })?;
    compare::write(&results, Videos::Linked)?;
    Ok(results)
}

/// Computed steps of a method, mean over its videos.
fn computed_steps(results: &Results, summary: &Summary) -> f64 {
    let steps = |run: &compare::Run| run.measured.strip.split_terminator('|').filter(|step| step.contains('S')).count();
    results.of_method(&summary.method).map(steps).sum::<usize>() as f64 / summary.runs as f64
}

fn line(results: &Results, summary: &Summary) -> String {
    let or_dash = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
    let first = results.of_method(&summary.method).next();
    let strip: String = first.into_iter().flat_map(|run| run.measured.strip.split('|')).map(step_symbol).collect();
    format!(
        "| `{}` | {:.1} | {:.0} % | {} | {} dB | {} dB | {} | `{strip}` |",
        summary.method,
        computed_steps(results, summary),
        100.0 * summary.work,
        or_dash(summary.speedup, 2),
        or_dash(summary.psnr, 1),
        or_dash(summary.psnr_worst, 1),
        or_dash(summary.get(&SSIM), 3)
    )
}

/// A step's branches in one character: what they have in common, or `m`.
fn step_symbol(step: &str) -> String {
    let first = step.chars().next();
    match first {
        Some(symbol) if step.chars().all(|c| c == symbol) => symbol.to_string(),
        Some(_) => "m".to_string(),
        None => String::new(),
    }
}

/// The settings of docs/results.md: every preset of every method.
fn frontier() -> Vec<String> {
    let presets_of = |about: &About| {
        let name = about.name;
        presets::names(name, "demo").into_iter().map(move |preset| format!("{name}:{preset}"))
    };
    CacheConfig::METHODS.iter().flat_map(presets_of).collect()
}

/// Pairs of a trigger and a form of reuse that no paper has, for the same page.
const PAIRS: &[&str] = &[
    "navicache:mid,reuse=linear",
    "navicache:fast,reuse=linear",
    "teacache:fast,reuse=linear",
    "seacache:fast,reuse=linear",
    "adacache:fast,reuse=linear",
    "navicache:fast,reuse=from_cond",
    "taylorseer:mid,order=2",
    "navicache:mid,reuse=step_over",
    "navicache:mid,reuse=corrected",
    "easycache:mid,reuse=corrected",
    "trend:mid,reuse=corrected",
];

/// The same solver with fewer steps, and nothing reused.
const RIVALS: &[&str] = &["none,steps=27", "none,steps=25", "none,steps=20", "none,steps=18", "none,steps=15"];

struct Options {
    folder: PathBuf,
    methods: Vec<String>,
    videos: usize,
    held_out: bool,
    other_runs: bool,
    request: Request,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut args = std::env::args().skip(1);
        let folder = args.next().filter(|arg| !arg.starts_with('-')).ok_or("expected FOLDER first")?.into();
        let request = Request::default();
        let (methods, videos) = (Vec::new(), usize::MAX);
        let mut options = Options { folder, methods, videos, held_out: false, other_runs: false, request };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--frontier" => options.methods.extend(frontier()),
                "--pairs" => options.methods.extend(PAIRS.iter().map(|s| s.to_string())),
                "--rivals" => options.methods.extend(RIVALS.iter().map(|s| s.to_string())),
                "--held-out" => options.held_out = true,
                "--other-runs" => options.other_runs = true,
                "--solver" => {
                    options.request.solver = Some(args.next().ok_or("expected a name after --solver")?.parse()?)
                }
                "--steps" => {
                    options.request.steps = Some(args.next().ok_or("expected a number after --steps")?.parse()?)
                }
                "--guidance" => {
                    options.request.guidance = Some(args.next().ok_or("expected a number after --guidance")?.parse()?);
                }
                "--videos" => options.videos = args.next().ok_or("expected a number after --videos")?.parse()?,
                _ => options.methods.push(arg),
            }
        }
        Ok(options)
    }

    fn plan(&self) -> Plan {
        let (prompts, seeds) = if self.held_out { (HELD_OUT, HELD_OUT_SEEDS) } else { (PROMPTS, SEEDS) };
        let seeds = seeds.into_iter().take(self.videos.div_ceil(prompts.len())).collect();
        let prompts: Vec<String> = prompts.map(String::from).into_iter().take(self.videos).collect();
        Plan { prompts, methods: self.methods.clone(), seeds, request: self.request.clone(), lpips: None, call: None }
    }
}
