//! What cache methods save on the embedded model, and what they cost: each against the uncached video of the same seed.
//!
//!     cargo run --release -p navicache-engine --example measure -- navicache:fast navicache:mid navicache:slow easycache
//!
//! Runs alternate, so that a noisy machine hits all methods alike; the speed-up is the median over videos of the ratio of
//! denoising times. PSNR and SSIM are means over frames, then over videos.

use std::ops::ControlFlow;

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::metrics::{psnr_of_frames, ssim_of_frames};
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let caches: Vec<String> = std::env::args().skip(1).collect();
    let bundle = Bundle::open("demo", &LoadOptions::default())?;
    let make = |prompt: &str, seed: u64, cache: &str| -> Result<Video, Box<dyn std::error::Error>> {
        let request = Request { seed: Some(seed), cache: Some(cache.parse::<CacheSpec>()?), ..Request::new(prompt) };
        Ok(generate(&bundle, &request, &mut |_| ControlFlow::Continue(()))?)
    };
    make(PROMPTS[0], 0, "none")?; // reads the weights

    let mut rows: Vec<Row> = caches.iter().map(|_| Row::default()).collect();
    for seed in SEEDS {
        for prompt in PROMPTS {
            let plain = make(prompt, seed, "none")?;
            for (cache, row) in caches.iter().zip(&mut rows) {
                row.add(&plain, &make(prompt, seed, cache)?)?;
            }
            eprint!(".");
        }
    }
    eprintln!();
    println!("| cache | forwards computed | speed-up | PSNR | worst video | SSIM | strip of the first video |");
    println!("|---|---|---|---|---|---|---|");
    for (cache, row) in caches.iter().zip(&mut rows) {
        println!("{}", row.line(cache));
    }
    Ok(())
}

#[derive(Default)]
struct Row {
    computed: f64,
    speedups: Vec<f64>,
    psnrs: Vec<f64>,
    ssims: Vec<f64>,
    strip: String,
}

impl Row {
    fn add(&mut self, plain: &Video, cached: &Video) -> navicache_engine::Result<()> {
        let totals = &cached.report.totals;
        self.computed += totals.forwards_computed as f64 / (totals.forwards_computed + totals.forwards_reused) as f64;
        self.speedups.push(plain.report.totals.seconds.denoise / totals.seconds.denoise);
        self.psnrs.push(mean(&psnr_of_frames(plain.as_frames()?, cached.as_frames()?)?));
        self.ssims.push(mean(&ssim_of_frames(plain.as_frames()?, cached.as_frames()?)?));
        if self.strip.is_empty() {
            self.strip = cached.report.strip.split('|').filter_map(|step| step.chars().next()).collect();
        }
        Ok(())
    }

    fn line(&mut self, cache: &str) -> String {
        self.speedups.sort_by(f64::total_cmp);
        let n = self.psnrs.len();
        let worst = self.psnrs.iter().copied().fold(f64::INFINITY, f64::min);
        format!(
            "| `{cache}` | {:.0} % | {:.2} | {:.1} dB | {worst:.1} dB | {:.3} | `{}` |",
            100.0 * self.computed / n as f64,
            self.speedups[n / 2],
            mean(&self.psnrs),
            mean(&self.ssims),
            self.strip
        )
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
