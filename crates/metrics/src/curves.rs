//! The values of every frame, as a table in text.

use std::path::Path;

use navicache_media::WholeFile;

use crate::{Comparison, Error, METRICS, Result};

/// Writes a CSV file of named videos, a line a frame: `video`, `frame`, a column a metric, `motion` and
/// `reference_motion`, the mean absolute difference from the frame before. What was not measured is left empty; a
/// single video without a name has no column for it.
pub fn save_curves(path: &Path, videos: &[(Option<&str>, &Comparison)]) -> Result<()> {
    let named = videos.iter().any(|(name, _)| name.is_some());
    let mut writer = csv::Writer::from_writer(WholeFile::create(path)?);
    let wrong = |e: csv::Error| Error::file(path, e.to_string());
    let columns = ["video", "frame"].into_iter().chain(METRICS.iter().map(|metric| metric.key));
    let skipped = if named { 0 } else { 1 };
    writer.write_record(columns.chain(["motion", "reference_motion"]).skip(skipped)).map_err(wrong)?;
    for (name, compared) in videos {
        let [reference_motion, motion] = &compared.motion;
        for frame in 0..motion.len() + 1 {
            // Motion leads from one frame to the next.
            let before = |values: &[f64]| frame.checked_sub(1).and_then(|i| values.get(i)).map(f64::to_string);
            let measured = METRICS.iter().map(|metric| compared.curve(metric)?.frames.get(frame).map(f64::to_string));
            let record = [name.map(str::to_string), Some(frame.to_string())]
                .into_iter()
                .chain(measured)
                .chain([before(motion), before(reference_motion)]);
            writer.write_record(record.skip(skipped).map(Option::unwrap_or_default)).map_err(wrong)?;
        }
    }
    let file = writer.into_inner().map_err(|e| Error::file(path, e.to_string()))?;
    Ok(file.finish()?)
}
