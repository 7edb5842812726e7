//! `navicache bench`: how fast this machine is.

use navicache_engine::Request;
use navicache_study::bench::{self, Options, Part, Timing};

use crate::args::Bench;
use crate::error::Result;
use crate::progress::Progress;
use crate::terminal::print;

pub fn bench(options: &Bench) -> Result<()> {
    let Bench { part, settings, .. } = options;
    // Runs on few cores may take minutes each.
    Progress::new(settings.quiet).line(&format!("one run before those that count, then {} ...", options.runs));
    let timing = match part {
        Part::Vae | Part::EndToEnd => {
            let pipeline = settings.loading.open()?;
            let request =
                Request { prompt: "a red circle bouncing on a navy background".to_string(), ..settings.request() };
            bench::run_on(*part, &pipeline, &request, options.runs.into())?
        }
        _ => {
            settings.loading.start_threads()?;
            let (device, dtype) = (settings.loading.device, settings.loading.dtype);
            bench::run(*part, &Options { tokens: options.tokens, dtype, runs: options.runs.into(), device })?
        }
    };
    print(&if options.json { format!("{:#}", serde_json::json!(timing)) } else { described(&timing) });
    Ok(())
}

fn described(timing: &Timing) -> String {
    let Timing { what, tokens, dtype, threads, median_seconds, runs, gflops, peak_gflops, share_of_peak, .. } = timing;
    let tokens = tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens"));
    let mut text = format!("{what}{tokens}, {dtype}, {threads} threads\n");
    let (low, high) = runs.iter().fold((f64::INFINITY, 0.0f64), |(low, high), &s| (low.min(s), high.max(s)));
    text +=
        &format!("{:.1} ms (median of {}, {:.1} to {:.1})", 1e3 * median_seconds, runs.len(), 1e3 * low, 1e3 * high);
    if let (Some(gflops), Some(peak), Some(share)) = (gflops, peak_gflops, share_of_peak) {
        text += &format!("\n{gflops:.0} GFLOP/s, {:.0} % of the {peak:.0} that the machine can do", 100.0 * share);
    }
    text
}
