//! `navicache metrics`

use navicache_engine::{WholeFile, use_threads};
use navicache_metrics::{
    Better, Comparison, Convention, Curve, Lpips, METRICS, Meter, Metric, PSNR, Pair, Scores, save_curves,
};
use serde_json::json;

use crate::args::Metrics;
use crate::error::{Error, Result};
use crate::overwrite;
use crate::terminal::print;

/// Measures a video, or every video of a folder.
pub fn measure(options: &Metrics) -> Result<()> {
    use_threads(options.threads.map(usize::from))?;
    if let Some(path) = &options.csv {
        let read = [("the reference", &*options.reference), ("the video", &*options.video)];
        overwrite::refuse([("--csv", path.as_path())], read)?;
        WholeFile::create(path)?;
    }
    let lpips = (!options.lpips_weights.is_empty()).then(|| Lpips::open(&options.lpips_weights)).transpose()?;
    let meter = Meter { convention: options.convention, lpips };
    if let Some(pairs) = Pair::of_folders(&options.reference, &options.video)? {
        return measure_all(options, &meter, &pairs);
    }
    let compared = meter.compare_files(&options.reference, &options.video)?;
    if let Some(path) = &options.csv {
        save_curves(path, &[(None, &compared)])?;
    }
    print(&if options.json { format!("{:#}", json!(compared)) } else { table(&compared) });
    Ok(())
}

/// A pair that cannot be compared does not keep the others from it; at the end it is an error.
fn measure_all(options: &Metrics, meter: &Meter, pairs: &[Pair]) -> Result<()> {
    let width = pairs.iter().map(|pair| pair.name.chars().count()).max().unwrap_or(0).max("mean of 1000".len());
    let mut measured = Vec::new();
    let mut failed = Vec::new();
    if !options.json {
        print(&format!("{:<width$}  {}", "", header()));
    }
    for pair in pairs {
        match pair.compare(meter) {
            Ok(compared) => {
                if !options.json {
                    let worst = compared.curve(&PSNR).map(|psnr| (psnr.worst_frame, psnr.worst));
                    let worst = worst.map(|(frame, psnr)| format!("   worst frame {frame}: {psnr:.2} dB"));
                    print(&format!("{:<width$}  {}{}", pair.name, row(&compared.scores), worst.unwrap_or_default()));
                }
                measured.push((pair.name.as_str(), compared));
            }
            Err(error) => {
                if !options.json {
                    print(&format!("{:<width$}  not compared: {error}", pair.name));
                }
                failed.push((pair.name.as_str(), error.to_string()));
            }
        }
    }
    let scores: Vec<Scores> = measured.iter().map(|(_, compared)| compared.scores.clone()).collect();
    let mean = meter.convention.mean(&scores);
    if options.json {
        let failed: Vec<_> = failed.iter().map(|(name, error)| json!({ "name": name, "error": error })).collect();
        let pairs: Vec<_> =
            measured.iter().map(|(name, compared)| json!({ "name": name, "metrics": compared })).collect();
        let all = json!({ "convention": meter.convention, "mean": mean, "pairs": pairs, "failed": failed });
        print(&format!("{all:#}"));
    } else if let Some(mean) = mean {
        print(&format!("{:<width$}  {}", format!("mean of {}", measured.len()), row(&mean)));
    }
    if let Some(path) = &options.csv {
        let videos: Vec<_> = measured.iter().map(|(name, compared)| (Some(*name), compared)).collect();
        save_curves(path, &videos)?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
    Err(Error::Unfinished {
        what: "could not compare",
        found: format!("{} of {} videos", failed.len(), pairs.len()),
        expected: names.join(", "),
    })
}

/// The columns of many comparisons: a metric each, and motion.
fn header() -> String {
    let names = METRICS.iter().map(|metric| metric.name).chain(["motion"]);
    names.map(|name| format!("{name:>8}")).collect()
}

fn row(scores: &Scores) -> String {
    let cells = METRICS.iter().map(|metric| (scores.get(metric), metric.digits)).chain([(scores.motion_kept, 3)]);
    cells.map(|(value, digits)| format!("{:>8}", value.map_or("–".to_string(), |v| format!("{v:.digits$}")))).collect()
}

/// One comparison, a line a metric; first the PSNR that the convention reports.
fn table(compared: &Comparison) -> String {
    let psnr_of_video =
        |name: &str| line(name, compared.psnr_of_video, PSNR.digits, "one error over the video, dB".to_string());
    let mut lines = Vec::new();
    for metric in METRICS {
        let Some(curve) = compared.curve(metric) else { continue };
        match (metric.key == PSNR.key, compared.convention) {
            (false, _) => lines.push(of_frames(metric.name, metric, curve)),
            (true, Convention::Raw | Convention::VideoSys) => {
                lines.extend([of_frames("PSNR", metric, curve), psnr_of_video("PSNR of the video")]);
            }
            (true, Convention::EasyCache) => {
                lines.extend([psnr_of_video("PSNR"), of_frames("PSNR of frames", metric, curve)]);
            }
        }
    }
    lines.push(compared.motion_kept.map_or_else(
        || format!("{:<20} {:>8}   the reference stands still", "motion kept", "–"),
        |kept| line("motion kept", kept, 3, "of the reference's".to_string()),
    ));
    let [before, after] = compared.temporal_flickering;
    lines.push(line("temporal flickering", after, 4, format!("reference {before:.4}")));
    if let Some(from) = &compared.cut_from {
        lines.push(format!("{:<20} {:>8}   to the video, from {from}", "reference", "cut"));
    }
    lines.join("\n")
}

fn line(name: &str, value: f64, digits: usize, what: String) -> String {
    format!("{name:<20} {value:>8.digits$}   {what}")
}

fn of_frames(name: &str, metric: &Metric, curve: &Curve) -> String {
    let Curve { mean, worst, worst_frame, fifth_percentile, frames } = curve;
    let digits = metric.digits;
    let percentile = match metric.better {
        Better::Higher => "5th",
        Better::Lower => "95th",
    };
    let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
    let what = format!(
        "worst frame {worst:.digits$} (frame {worst_frame}), {percentile} percentile {fifth_percentile:.digits$} of {} frames{unit}",
        frames.len()
    );
    line(name, *mean, digits, what)
}
