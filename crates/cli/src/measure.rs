//! `navicache metrics`

use navicache_engine::metrics::{Comparison, Convention, Curve, Lpips, Meter, Pair, Scores, save_curves};
use navicache_engine::{Error, Result, WholeFile};
use serde_json::json;

use crate::args::Metrics;
use crate::print;

/// Measures a video, or every video of a folder.
pub fn measure(options: &Metrics) -> Result<()> {
    if let Some(path) = &options.csv {
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
        print(&format!("{:<width$}  {}", "", COLUMNS.map(|column| format!("{column:>8}")).join("")));
    }
    for pair in pairs {
        match pair.compare(meter) {
            Ok(compared) => {
                if !options.json {
                    let Curve { worst, worst_frame, .. } = compared.psnr;
                    let row = row(&compared.scores);
                    print(&format!("{:<width$}  {row}   worst frame {worst_frame}: {worst:.2} dB", pair.name));
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
    let scores: Vec<Scores> = measured.iter().map(|(_, compared)| compared.scores).collect();
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
    Err(Error::Request {
        what: "could not compare",
        found: format!("{} of {} videos", failed.len(), pairs.len()),
        expected: names.join(", "),
    })
}

const COLUMNS: [&str; 5] = ["PSNR", "SSIM", "MS-SSIM", "LPIPS", "motion"];

fn row(scores: &Scores) -> String {
    let number =
        |value: Option<f64>, digits: usize| value.map_or("–".to_string(), |value| format!("{value:.digits$}"));
    let Scores { psnr, ssim, ms_ssim, lpips, motion_kept } = *scores;
    let cells = [(Some(psnr), 2), (Some(ssim), 4), (ms_ssim, 4), (lpips, 4), (motion_kept, 3)];
    cells.map(|(value, digits)| format!("{:>8}", number(value, digits))).concat()
}

/// One comparison, a line a metric; first the PSNR that the convention reports.
fn table(compared: &Comparison) -> String {
    let line = |name: &str, value: f64, digits: usize, what: String| format!("{name:<20} {value:>8.digits$}   {what}");
    let curve = |name: &str, curve: &Curve, digits: usize, percentile: &str| {
        let Curve { mean, worst, worst_frame, fifth_percentile, frames } = curve;
        let what = format!(
            "worst frame {worst:.digits$} (frame {worst_frame}), {percentile} percentile {fifth_percentile:.digits$} of {} frames",
            frames.len()
        );
        line(name, *mean, digits, what)
    };
    let of_frames = |name: &str| curve(name, &compared.psnr, 2, "5th") + ", dB";
    let of_video = |name: &str| line(name, compared.psnr_of_video, 2, "one error over the video, dB".to_string());
    let motion = compared.motion_kept.map_or_else(
        || format!("{:<20} {:>8}   the reference stands still", "motion kept", "–"),
        |kept| line("motion kept", kept, 3, "of the reference's".to_string()),
    );
    let [before, after] = compared.temporal_flickering;
    let psnr = match compared.convention {
        Convention::Raw | Convention::VideoSys => [of_frames("PSNR"), of_video("PSNR of the video")],
        Convention::EasyCache => [of_video("PSNR"), of_frames("PSNR of frames")],
    };
    let optional = [
        compared.ms_ssim.as_ref().map(|values| curve("MS-SSIM", values, 4, "5th")),
        compared.lpips.as_ref().map(|values| curve("LPIPS", values, 4, "95th")),
    ];
    let last = [motion, line("temporal flickering", after, 4, format!("reference {before:.4}"))];
    let cut =
        compared.cut_from.as_ref().map(|from| format!("{:<20} {:>8}   to the video, from {from}", "reference", "cut"));
    let lines = psnr.into_iter().chain([curve("SSIM", &compared.ssim, 4, "5th")]).chain(optional.into_iter().flatten());
    lines.chain(last).chain(cut).collect::<Vec<_>>().join("\n")
}
