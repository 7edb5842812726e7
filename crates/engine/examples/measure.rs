//! What cache methods save on the embedded model, and what they cost: each against the uncached video of the same seed.
//!
//!     cargo run --release -p navicache-engine --example measure -- navicache:fast navicache:mid easycache
//!
//! With `--frontier` it measures every method at the settings of docs/results.md, with `--pairs` the pairs there; `--plot FILE.svg` draws speed-up against PSNR,
//! `--videos N` takes fewer than the 16 videos (8 prompts, 2 seeds).
//!
//! Runs alternate, so that a noisy machine hits all methods alike; the speed-up is the median over videos of the ratio of
//! denoising times. PSNR and SSIM are means over frames, then over videos.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::metrics::{Meter, PSNR, SSIM};
use navicache_engine::{Bundle, LoadOptions, Request, Video, generate};

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

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let Options { caches, videos, plot } = Options::parse()?;
    let bundle = Bundle::open("demo", &LoadOptions::default())?;
    for cache in &caches {
        cache.parse::<CacheSpec>()?.resolve(&bundle.defaults().presets)?; // a typing error shows now, not in an hour
    }
    let make = |prompt: &str, seed: u64, cache: &str| -> Result<Video, Failure> {
        let request = Request { seed: Some(seed), cache: Some(cache.parse()?), ..Request::new(prompt) };
        Ok(generate(&bundle, &request, &mut |_| ControlFlow::Continue(()))?)
    };
    make(PROMPTS[0], 0, "none")?; // reads the weights

    let mut rows: Vec<Row> = caches.iter().map(|cache| Row::new(cache)).collect();
    let wanted = SEEDS.iter().flat_map(|seed| PROMPTS.map(|prompt| (prompt, *seed))).take(videos);
    for (prompt, seed) in wanted {
        let plain = make(prompt, seed, "none")?;
        for row in &mut rows {
            let cached = make(prompt, seed, &row.cache)?;
            row.add(&plain, &cached)?;
        }
        eprint!(".");
    }
    eprintln!();
    println!("| cache | units computed | speed-up | PSNR | worst video | SSIM | strip of the first video |");
    println!("|---|---|---|---|---|---|---|");
    for row in &mut rows {
        println!("{}", row.line());
    }
    if let Some(path) = plot {
        std::fs::write(path, plot_of(&rows))?;
    }
    Ok(())
}

/// The settings of docs/results.md: three of each method.
const FRONTIER: &[&str] = &[
    "easycache:slow",
    "easycache:mid",
    "easycache:fast",
    "navicache:slow",
    "navicache:mid",
    "navicache:fast",
    "precisecache:slow",
    "precisecache:mid",
    "precisecache:fast",
    "precisecache:flash",
    "mixcache:slow",
    "mixcache:mid",
    "mixcache:fast",
    "teacache:slow",
    "teacache:mid",
    "teacache:fast",
    "magcache:slow",
    "magcache:mid",
    "magcache:fast",
    "pab:slow",
    "pab:mid",
    "pab:fast",
    "fbcache:slow",
    "fbcache:mid",
    "fbcache:fast",
    "dbcache:slow",
    "dbcache:mid",
    "dbcache:fast",
    "taylorseer:slow",
    "taylorseer:mid",
    "taylorseer:fast",
    "fastercache:slow",
    "fastercache:mid",
    "fastercache:fast",
    "fastercache:published",
    "dicache:slow",
    "dicache:mid",
    "dicache:fast",
    "seacache:slow",
    "seacache:mid",
    "seacache:fast",
    "tafc:slow",
    "tafc:mid",
    "tafc:fast",
    "bwcache:slow",
    "bwcache:mid",
    "bwcache:fast",
    "adacache:slow",
    "adacache:mid",
    "adacache:fast",
    "trend:slow",
    "trend:mid",
    "trend:fast",
];

/// Pairs of a trigger and a form of reuse that no paper has, for the same page.
const PAIRS: &[&str] = &[
    "navicache:mid,reuse=linear",
    "navicache:fast,reuse=linear",
    "teacache:fast,reuse=linear",
    "seacache:fast,reuse=linear",
    "adacache:fast,reuse=linear",
    "navicache:fast,reuse=from_cond",
    "taylorseer:mid,order=2",
];

struct Options {
    caches: Vec<String>,
    videos: usize,
    plot: Option<String>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut options = Options { caches: Vec::new(), videos: usize::MAX, plot: None };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--frontier" => options.caches.extend(FRONTIER.iter().map(|s| s.to_string())),
                "--pairs" => options.caches.extend(PAIRS.iter().map(|s| s.to_string())),
                "--videos" => options.videos = args.next().ok_or("--videos N")?.parse()?,
                "--plot" => options.plot = Some(args.next().ok_or("--plot FILE.svg")?),
                _ => options.caches.push(arg),
            }
        }
        Ok(options)
    }
}

struct Row {
    cache: String,
    computed: Vec<f64>,
    speedups: Vec<f64>,
    psnrs: Vec<f64>,
    ssims: Vec<f64>,
    strip: String,
}

impl Row {
    fn new(cache: &str) -> Self {
        let empty = Vec::new;
        Row {
            cache: cache.to_string(),
            computed: empty(),
            speedups: empty(),
            psnrs: empty(),
            ssims: empty(),
            strip: String::new(),
        }
    }

    fn add(&mut self, plain: &Video, cached: &Video) -> navicache_engine::Result<()> {
        let totals = &cached.report.totals;
        self.computed.push(totals.units_computed as f64 / (totals.units_computed + totals.units_reused) as f64);
        self.speedups.push(plain.report.totals.seconds.denoise / totals.seconds.denoise);
        let compared = Meter::default().compare(plain.as_frames()?, cached.as_frames()?)?;
        self.psnrs.extend(compared.scores.get(&PSNR));
        self.ssims.extend(compared.scores.get(&SSIM));
        if self.strip.is_empty() {
            self.strip = cached.report.strip.split('|').map(step_symbol).collect();
        }
        Ok(())
    }

    fn speedup(&self) -> f64 {
        let mut sorted = self.speedups.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn line(&self) -> String {
        let worst = self.psnrs.iter().copied().fold(f64::INFINITY, f64::min);
        format!(
            "| `{}` | {:.0} % | {:.2} | {:.1} dB | {worst:.1} dB | {:.3} | `{}` |",
            self.cache,
            100.0 * mean(&self.computed),
            self.speedup(),
            mean(&self.psnrs),
            mean(&self.ssims),
            self.strip
        )
    }
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

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// A colour a method, in the order of the settings.
const COLORS: [&str; 17] = [
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#393b79", "#637939", "#8c6d31", "#843c39", "#7b4173", "#3182bd", "#000000",
];

/// Speed-up against PSNR, a line a method.
fn plot_of(rows: &[Row]) -> String {
    const SIZE: (f64, f64) = (900.0, 560.0);
    const MARGIN: f64 = 56.0;
    const LEGEND: f64 = 150.0;
    let finite = |f: &dyn Fn(&Row) -> f64| rows.iter().map(f).filter(|v| v.is_finite()).collect::<Vec<_>>();
    let range = |values: Vec<f64>, step: f64| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        ((low / step).floor() * step, (high / step).ceil() * step)
    };
    let (x0, x1) = range(finite(&Row::speedup), 0.5);
    let (y0, y1) = range(finite(&|row| mean(&row.psnrs)), 5.0);
    let x = |v: f64| MARGIN + (v - x0) / (x1 - x0) * (SIZE.0 - 2.0 * MARGIN - LEGEND);
    let y = |v: f64| SIZE.1 - MARGIN - (v - y0) / (y1 - y0) * (SIZE.1 - 2.0 * MARGIN);

    let mut svg = String::new();
    let mut put = |text: String| {
        let _ = writeln!(svg, "{text}"); // a String does not fail
    };
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">",
        SIZE.0, SIZE.1
    ));
    put(format!("<rect width=\"{}\" height=\"{}\" fill=\"white\"/>", SIZE.0, SIZE.1));
    let ticks = |from: f64, to: f64, step: f64| {
        let count = ((to - from) / step).round() as usize;
        (0..=count).map(move |i| from + i as f64 * step)
    };
    for v in ticks(x0, x1, 0.5) {
        put(format!(
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\" stroke=\"#ddd\"/>",
            x(v),
            y(y0),
            y(y1)
        ));
        put(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{v:.1}×</text>", x(v), y(y0) + 18.0));
    }
    for v in ticks(y0, y1, 5.0) {
        put(format!(
            "<line x1=\"{1:.1}\" x2=\"{2:.1}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>",
            y(v),
            x(x0),
            x(x1)
        ));
        put(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{v:.0}</text>", x(x0) - 6.0, y(v) + 4.0));
    }
    put(format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">speed-up of denoising, median</text>",
        (x(x0) + x(x1)) / 2.0,
        SIZE.1 - 14.0
    ));
    put(format!("<text x=\"{MARGIN}\" y=\"{:.1}\">PSNR to the uncached video, dB</text>", y(y1) - 12.0));

    let mut methods: Vec<&str> = rows.iter().map(|row| method_of(&row.cache)).collect();
    methods.dedup();
    for (i, method) in methods.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let width = if *method == "trend" { 3.5 } else { 1.5 };
        let of_method = |row: &&Row| method_of(&row.cache) == *method && mean(&row.psnrs).is_finite();
        let place = |row: &Row| (row.speedup(), mean(&row.psnrs));
        let points: Vec<(f64, f64)> = rows.iter().filter(of_method).map(place).collect();
        // Presets beside the three of the curve stand alone.
        let on_curve =
            |row: &&Row| !row.cache.contains(':') || ["slow", "mid", "fast"].iter().any(|p| row.cache.ends_with(p));
        let mut curve: Vec<(f64, f64)> = rows.iter().filter(of_method).filter(on_curve).map(place).collect();
        curve.sort_by(|a, b| a.0.total_cmp(&b.0));
        let path: Vec<String> = curve.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        put(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\"/>",
            path.join(" ")
        ));
        for p in &points {
            put(format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{}\" fill=\"{color}\"/>", x(p.0), y(p.1), width + 1.5));
        }
        let (left, top) = (SIZE.0 - LEGEND - 20.0, MARGIN + 22.0 * i as f64);
        put(format!(
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{top}\" y2=\"{top}\" stroke=\"{color}\" stroke-width=\"{width}\"/>",
            left + 24.0
        ));
        put(format!("<text x=\"{}\" y=\"{}\">{method}</text>", left + 30.0, top + 4.0));
    }
    put("</svg>".to_string());
    svg
}

fn method_of(cache: &str) -> &str {
    cache.split([':', ',']).next().unwrap_or(cache)
}
