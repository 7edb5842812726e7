//! Targets and guards on the embedded model: makes curves, and measures what docs/targets.md says of them.
//!
//!     cargo run --release -p navicache-study --example targets -- curve stride -o stride.json [--videos 8]
//!     cargo run --release -p navicache-study --example targets -- speed stride trend [--videos 10]
//!     cargo run --release -p navicache-study --example targets -- quality stride [--videos 8]
//!     cargo run --release -p navicache-study --example targets -- guards METHOD... [--videos 8]
//!     cargo run --release -p navicache-study --example targets -- wrecks [--videos 8]
//!
//! `curve` takes videos of its own; all others take videos that no curve, preset or limit was made of. `--from N`
//! leaves out the first N videos, so that a long measurement can be made in pieces.

use std::ops::ControlFlow;
use std::path::PathBuf;

use navicache_engine::control::cache::curve::{About, Curve};
use navicache_engine::control::cache::watch::Mode;
use navicache_engine::control::cache::{CacheConfig, CacheSpec, presets};
use navicache_engine::control::target::Target;
use navicache_engine::replay::tune;
use navicache_engine::report::{BranchReport, StepReport};
use navicache_engine::{LoadOptions, Pipeline, Request, Video, generate, save_curve};

/// A video to be made: caption and seed.
type Wanted = (String, u64);
type Failure = Box<dyn std::error::Error>;

const COLOURS: [&str; 9] = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink", "white"];
const SHAPES: [&str; 5] = ["circle", "square", "triangle", "ring", "star"];
const MOTIONS: [&str; 9] = [
    "moving right",
    "moving left",
    "moving up",
    "moving down",
    "bouncing",
    "spinning",
    "growing",
    "shrinking",
    "circling",
];
const GROUNDS: [&str; 6] = ["black", "gray", "navy", "brown", "teal", "cream"];

/// Captions in an order that mixes all words, and seeds that nothing else uses. Those of calibration and those of
/// measurements are different ones.
fn videos(seeds: u64, from: usize, count: usize) -> Vec<Wanted> {
    let caption = |i: usize| {
        let (colour, shape) = (COLOURS[(i * 7 + i / 9) % 9], SHAPES[(i * 3 + i / 5) % 5]);
        let (motion, ground) = (MOTIONS[(i * 4 + i / 7) % 9], GROUNDS[(i * 5 + i / 11) % 6]);
        let article = if colour.starts_with('o') { "an" } else { "a" };
        format!("{article} {colour} {shape} {motion} on a {ground} background")
    };
    (from..from + count).map(|i| (caption(i + seeds as usize), seeds + i as u64)).collect()
}
/// Of the two sets: calibration has even thousands.
const CALIBRATING: u64 = 2000;
const MEASURED: u64 = 7000;

fn main() -> Result<(), Failure> {
    let options = Options::parse()?;
    let study = Study { pipeline: Pipeline::open("demo", &LoadOptions::default())?, options };
    match study.options.command.as_str() {
        "curve" => study.curve(),
        "speed" => study.speed(),
        "quality" => study.quality(),
        "guards" => study.guards(),
        "wrecks" => study.wrecks(),
        other => Err(format!("{other}: expected curve, speed, quality, guards or wrecks").into()),
    }
}

struct Study {
    pipeline: Pipeline,
    options: Options,
}

impl Study {
    fn make(&self, (prompt, seed): &Wanted, change: impl FnOnce(&mut Request)) -> Result<Video, Failure> {
        let mut request = Request { seed: Some(*seed), ..Request::new(prompt.clone()) };
        change(&mut request);
        Ok(generate(&self.pipeline, &request, &mut |_| ControlFlow::Continue(()))?)
    }

    fn wanted(&self) -> Vec<Wanted> {
        videos(MEASURED, self.options.from, self.options.videos)
    }

    /// The curve of a method from runs, for those whose decisions a trace does not tell: what is reused moves the
    /// latents.
    fn curve(&self) -> Result<(), Failure> {
        let [method] = &self.options.methods[..] else { return Err("expected one method".into()) };
        let steps = self.pipeline.defaults().steps;
        let spec = CacheSpec::new(method.clone(), Default::default());
        let family = &self.pipeline.defaults().presets;
        let middle = spec.resolve(family)?.method().options()["threshold"].as_f64().ok_or("has no threshold")?;
        let (count, span) = (12, self.options.span);
        let mut rows = Vec::new();
        let (mut sigmas, mut options) = (Vec::new(), Default::default());
        for i in 0..count {
            let threshold = middle * span.powf(2.0 * i as f64 / (count - 1) as f64 - 1.0);
            let threshold = format!("{threshold:.2e}").parse::<f64>()?;
            let config = tune::for_curve(&spec, family, threshold, steps)?;
            let given = config.method().options().as_object().cloned().unwrap_or_default();
            let mut shares = Vec::new();
            for video in videos(CALIBRATING, 0, self.options.videos) {
                let report = self
                    .make(&video, |request| {
                        request.cache = Some(CacheSpec::new(method.clone(), given.clone()));
                        request.guard = Some(Mode::Off);
                    })?
                    .report;
                sigmas = report.steps.iter().map(|step| step.sigma).collect();
                let share = |step: &StepReport| {
                    let sum = |f: fn(&BranchReport) -> usize| step.branches.values().map(f).sum::<usize>() as f64;
                    let computed = sum(|branch| branch.units_computed);
                    computed / (computed + sum(|branch| branch.units_reused)).max(1.0)
                };
                shares.push(report.steps.iter().map(share).collect::<Vec<f64>>());
            }
            // The smallest share of all is what runs whatever is reused.
            let fixed = shares.iter().flatten().copied().fold(1.0, f64::min);
            let fixed = if fixed < 1.0 { fixed } else { 0.0 };
            shares.iter_mut().flatten().for_each(|share| *share = tune::chosen(*share, fixed));
            let computed = shares.iter().flatten().sum::<f64>() / shares.len() as f64;
            println!("{threshold:<10} {computed:.1} of {steps} steps");
            rows.push((threshold, shares));
            options = given;
        }
        options.remove("threshold");
        let curve = Curve::mean(About { method: method.clone(), options, family: family.clone() }, &sigmas, &rows)?;
        save_curve(&curve, &self.options.output)?;
        Ok(())
    }

    /// How near the work is to what was asked for.
    fn speed(&self) -> Result<(), Failure> {
        println!("| method | steps | asked | runs | within 5 % | to the step | computed, mean | alarms |");
        println!("|---|---|---|---|---|---|---|---|");
        for method in &self.options.methods {
            for steps in [50, 30] {
                for speedup in [1.5, 2.0, 2.5, 3.0, 4.0] {
                    self.speed_of(method, steps, speedup)?;
                }
            }
        }
        Ok(())
    }

    fn speed_of(&self, method: &str, steps: usize, speedup: f64) -> Result<(), Failure> {
        let target: Target = format!("speedup={speedup}{}", self.options.curve_of(method)).parse()?;
        let (mut within, mut exact, mut alarms, mut sum) = (0, 0, 0, 0.0);
        let videos = self.wanted();
        for video in &videos {
            let made = self.make(video, |request| {
                request.steps = Some(steps);
                request.cache = method.parse().ok();
                request.target = Some(target.clone());
            });
            let report = match made {
                Ok(video) => video.report,
                Err(refused) => {
                    println!("| `{method}` | {steps} | {speedup} | refused: {refused} |");
                    return Ok(());
                }
            };
            let reached = report.target.ok_or("no target was reported")?;
            within += usize::from((reached.speedup / speedup - 1.0).abs() <= 0.05);
            exact += usize::from((reached.computed - steps as f64 / speedup).abs() <= 0.5 + 1e-9);
            alarms += report.guards.len();
            sum += reached.computed;
        }
        let (runs, mean) = (videos.len(), sum / videos.len() as f64);
        println!("| `{method}` | {steps} | {speedup} | {runs} | {within} | {exact} | {mean:.2} | {alarms} |");
        Ok(())
    }

    /// How near a steered video is to the uncached one, and how near the best constant threshold of as many steps
    /// comes.
    fn quality(&self) -> Result<(), Failure> {
        println!("| method | asked | videos | steered | best threshold for each video | one threshold for all |");
        println!("|---|---|---|---|---|---|");
        let plain: Result<Vec<Video>, Failure> =
            self.wanted().iter().map(|video| self.make(video, |request| request.cache = "none".parse().ok())).collect();
        let plain = plain?;
        let steps = self.pipeline.defaults().steps;
        for method in &self.options.methods {
            // Every threshold once: what it computes, and how near it comes.
            let thresholds = self.thresholds(method)?;
            let mut constant = Vec::new();
            for &threshold in &thresholds {
                let config = tune::for_curve(&method.parse()?, "demo", threshold, steps)?;
                let given = config.method().options().as_object().cloned().unwrap_or_default();
                let spec = CacheSpec::new(config.method().name(), given);
                let mut runs = Vec::new();
                for (video, plain) in self.wanted().iter().zip(&plain) {
                    let made = self.make(video, |request| {
                        request.cache = Some(spec.clone());
                        request.guard = Some(Mode::Off);
                    })?;
                    runs.push((computed(&made), psnr(&made, plain)));
                }
                constant.push(runs);
            }
            for speedup in [1.5, 2.0, 2.5, 3.0, 4.0] {
                self.quality_of(method, speedup, &plain, &constant)?;
            }
        }
        Ok(())
    }

    fn quality_of(
        &self,
        method: &str,
        speedup: f64,
        plain: &[Video],
        constant: &[Vec<(f64, f64)>],
    ) -> Result<(), Failure> {
        let target: Target = format!("speedup={speedup}{}", self.options.curve_of(method)).parse()?;
        let mut steered = Vec::new();
        for (video, plain) in self.wanted().iter().zip(plain) {
            let made = self.make(video, |request| {
                request.cache = method.parse().ok();
                request.target = Some(target.clone());
            })?;
            steered.push((computed(&made), psnr(&made, plain)));
        }
        let (work, steered_psnr) = mean(&steered);
        // The nearest below and above in work, on a line between them.
        let at = |points: &[(f64, f64)], work: f64| {
            let mut points = points.to_vec();
            points.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
            points.dedup_by(|b, a| a.0 == b.0);
            let pair = points.windows(2).find(|pair| pair[0].0 <= work && work <= pair[1].0)?;
            Some(pair[0].1 + (pair[1].1 - pair[0].1) * (work - pair[0].0) / (pair[1].0 - pair[0].0))
        };
        let best: Vec<f64> = steered
            .iter()
            .enumerate()
            .filter_map(|(i, (work, _))| at(&constant.iter().map(|runs| runs[i]).collect::<Vec<_>>(), *work))
            .collect();
        let best_mean = best.iter().sum::<f64>() / best.len() as f64;
        let one = at(&constant.iter().map(|runs| mean(runs)).collect::<Vec<_>>(), work);
        let (runs, found) = (steered.len(), best.len());
        let one = one.map_or("none".to_string(), |psnr| format!("{psnr:.1} dB"));
        println!(
            "| `{method}` | {speedup} | {runs} | {work:.1} steps, {steered_psnr:.1} dB | {best_mean:.1} dB ({found}) | {one} |"
        );
        Ok(())
    }

    /// Thresholds of a curve, with one between each two.
    fn thresholds(&self, method: &str) -> Result<Vec<f64>, Failure> {
        let name = method.parse::<CacheSpec>()?.method;
        let curve = navicache_engine::control::cache::curve::shipped(&name, "demo").ok_or("has no curve")?;
        let own: Vec<f64> = curve.thresholds.iter().map(|row| row.threshold).collect();
        let between = own.windows(2).flat_map(|pair| [pair[0], (pair[0] * pair[1]).sqrt()]);
        Ok(between.chain(own.last().copied()).collect())
    }

    /// Alarms in runs of presets, and what was measured there: good runs raise none.
    fn guards(&self) -> Result<(), Failure> {
        let all = || {
            let caching = CacheConfig::METHODS.iter().filter(|about| !["none", "schedule"].contains(&about.name));
            let names =
                |name: &'static str| presets::names(name, "demo").into_iter().map(move |p| format!("{name}:{p}"));
            caching.flat_map(|about| names(about.name)).collect::<Vec<String>>()
        };
        let methods = if self.options.methods.is_empty() { all() } else { self.options.methods.clone() };
        let videos = self.wanted();
        let plain: Result<Vec<Video>, Failure> =
            videos.iter().map(|video| self.make(video, |request| request.cache = "none".parse().ok())).collect();
        let plain = plain?;
        let (mut good, mut alarmed) = (0, 0);
        for method in &methods {
            for (video, plain) in videos.iter().zip(&plain) {
                let run = |mode: Mode| {
                    self.make(video, |request| {
                        request.cache = method.parse().ok();
                        request.guard = Some(mode);
                    })
                };
                let warned = run(Mode::Warn)?;
                let psnr = psnr(&warned, plain);
                good += usize::from(psnr >= 35.0);
                alarmed += usize::from(psnr >= 35.0 && !warned.report.guards.is_empty());
                let said: Vec<String> = warned.report.guards.iter().map(ToString::to_string).collect();
                if self.options.all || !said.is_empty() {
                    let (miss, worst) = missed(&warned);
                    println!("{method} {psnr:.1} dB {} miss {miss:.3} error {worst:.4} {said:?}", short(&warned));
                }
            }
        }
        println!("{alarmed} of {good} good runs raised an alarm");
        Ok(())
    }

    /// Runs that wreck a video: who is told, when, and what is left of the damage.
    fn wrecks(&self) -> Result<(), Failure> {
        println!("| run | videos | unguarded | told | before 2/3 | guarded | worst |");
        println!("|---|---|---|---|---|---|---|");
        let videos = self.wanted();
        let plain: Result<Vec<Video>, Failure> =
            videos.iter().map(|video| self.make(video, |request| request.cache = "none".parse().ok())).collect();
        let plain = plain?;
        let methods = if self.options.methods.is_empty() {
            WRECKS.iter().map(|wreck| wreck.to_string()).collect()
        } else {
            self.options.methods.clone()
        };
        for method in &methods {
            let (mut wrecked, mut told, mut early) = (0, 0, 0);
            let (mut before, mut after) = (Vec::new(), Vec::new());
            for (video, plain) in videos.iter().zip(&plain) {
                let run = |mode: Mode| {
                    self.make(video, |request| {
                        request.cache = method.parse().ok();
                        request.guard = Some(mode);
                    })
                };
                let unguarded = psnr(&run(Mode::Off)?, plain);
                if unguarded >= 20.0 && !self.options.all {
                    continue;
                }
                let acted = run(Mode::Act)?;
                wrecked += 1;
                let alarms = &acted.report.guards;
                told += usize::from(!alarms.is_empty());
                early +=
                    usize::from(alarms.first().is_some_and(|alarm| 3 * alarm.step <= 2 * acted.report.steps.len()));
                before.push(unguarded);
                after.push(psnr(&acted, plain));
                if self.options.all {
                    println!("  {} {:?}", short(&acted), alarms.iter().map(|a| (a.step, a.value)).collect::<Vec<_>>());
                }
            }
            let (unguarded, guarded) = (median(&mut before), median(&mut after));
            let worst = after.first().copied().unwrap_or(f64::NAN);
            println!(
                "| `{method}` | {wrecked} | {unguarded:.1} dB | {told} | {early} | {guarded:.1} dB | {worst:.1} dB |"
            );
        }
        Ok(())
    }
}

/// Settings that wreck videos.
const WRECKS: &[&str] = &[
    "navicache,threshold=10,align_steps=2",
    "navicache,threshold=10,align_steps=2,reuse=linear",
    "navicache:mid,threshold=4,max_run=48",
    "easycache,threshold=10,warmup_steps=3",
    "trend,threshold=10,max_run=48",
    "trend,threshold=0.2,max_run=48",
    "trend,threshold=10,max_run=48,reuse=residual",
    "teacache,threshold=5",
    "seacache,threshold=14",
    "magcache,threshold=10,max_run=48",
    "fbcache,threshold=5",
    "dicache,threshold=7",
    "dbcache,threshold=5",
    "taylorseer,interval=16,order=2",
    "taylorseer,interval=25,order=1",
    "stride,threshold=2,max_run=48",
    "precisecache,threshold=80",
    "tafc,threshold=15,max_cache=60",
];

/// Equivalents of whole steps.
fn computed(video: &Video) -> f64 {
    let totals = &video.report.totals;
    let (computed, reused) = (totals.units_computed as f64, totals.units_reused as f64);
    video.report.steps.len() as f64 * computed / (computed + reused)
}

fn psnr(video: &Video, plain: &Video) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let error = video.frames.iter().zip(&plain.frames).map(square).sum::<f64>() / plain.frames.len() as f64;
    if error == 0.0 { 100.0 } else { (10.0 * (255.0 * 255.0 / error).log10()).min(100.0) }
}

fn mean(runs: &[(f64, f64)]) -> (f64, f64) {
    let count = runs.len() as f64;
    (runs.iter().map(|run| run.0).sum::<f64>() / count, runs.iter().map(|run| run.1).sum::<f64>() / count)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The strip, a character a step.
fn short(video: &Video) -> String {
    video.report.strip.split_terminator('|').map(|step| step.chars().next().unwrap_or('?')).collect()
}

/// What the guards see of a run: the largest miss before the last step, and the largest error of the latents.
fn missed(video: &Video) -> (f64, f64) {
    let kinds = [
        ("output_relative_change_since_compute", 0.5),
        ("residual_line_error", 1.0 / 3.0),
        ("solver_error_magnitude", 1.0),
    ];
    let (mut worst, mut miss, mut last): (f64, f64, f64) = (0.0, 0.0, 1.0);
    let steps = video.report.steps.len();
    for pair in video.report.steps.windows(2) {
        let [before, now] = pair else { continue };
        let is_full = |step: &StepReport| step.branches.values().all(|branch| branch.units_reused == 0);
        if is_full(before) {
            last = before.sigma;
        }
        let Some(seen) = now.branches.get("cond").filter(|_| !is_full(before) && is_full(now)) else { continue };
        for (name, part) in kinds {
            let value = part * seen.seen.get(name).copied().unwrap_or(0.0);
            let size = seen.seen.get("sample_magnitude").copied().unwrap_or(1.0);
            if now.index + 1 < steps {
                miss = miss.max(seen.seen.get(name).copied().unwrap_or(0.0) / size);
            }
            let error = if name.starts_with("solver") { value / size } else { value * (last - now.sigma) };
            worst = worst.max(error);
        }
    }
    (miss, worst)
}

struct Options {
    command: String,
    methods: Vec<String>,
    videos: usize,
    from: usize,
    span: f64,
    all: bool,
    curves: Option<PathBuf>,
    output: PathBuf,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut args = std::env::args().skip(1);
        let mut options = Options {
            command: args.next().ok_or("expected curve, speed, quality, guards or wrecks")?,
            methods: Vec::new(),
            videos: 8,
            from: 0,
            span: 32.0,
            all: false,
            curves: None,
            output: "curve.json".into(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("expected a value after {arg}"));
            match arg.as_str() {
                "--videos" => options.videos = value()?.parse()?,
                "--from" => options.from = value()?.parse()?,
                "--span" => options.span = value()?.parse()?,
                "--curves" => options.curves = Some(value()?.into()),
                "--all" => options.all = true,
                "-o" => options.output = value()?.into(),
                method => {
                    method.parse::<CacheSpec>()?; // refused here, not taken for the default later
                    options.methods.push(method.to_string());
                }
            }
        }
        Ok(options)
    }

    /// A curve of the user's, from a folder of files `METHOD.json`.
    fn curve_of(&self, method: &str) -> String {
        let name = method.split([':', ',']).next().unwrap_or(method);
        self.curves.as_ref().map_or(String::new(), |folder| format!(",curve={}/{name}.json", folder.display()))
    }
}
