//! The values of every frame, as a table in text.

use std::path::Path;

use super::Comparison;
use crate::{Error, Result, WholeFile};

/// Writes a CSV file of named videos, a line a frame: `video`, `frame`, `psnr`, `ssim`, `ms_ssim`, `lpips`, `motion` and
/// `reference_motion`, the mean absolute difference from the frame before. What was not measured is left empty; a single video
/// without a name has no column for it.
pub fn save_curves(path: &Path, videos: &[(Option<&str>, &Comparison)]) -> Result<()> {
    let named = videos.iter().any(|(name, _)| name.is_some());
    let mut writer = csv::Writer::from_writer(WholeFile::create(path)?);
    let wrong = |e: csv::Error| Error::file(path, e.to_string());
    let columns = ["video", "frame", "psnr", "ssim", "ms_ssim", "lpips", "motion", "reference_motion"];
    let skipped = if named { 0 } else { 1 };
    writer.write_record(&columns[skipped..]).map_err(wrong)?;
    for (name, compared) in videos {
        let [reference_motion, motion] = &compared.motion;
        for (frame, psnr) in compared.psnr.frames.iter().enumerate() {
            let at = |values: Option<&Vec<f64>>| values.and_then(|values| values.get(frame)).map(f64::to_string);
            // Motion leads from one frame to the next.
            let before = |values: &Vec<f64>| frame.checked_sub(1).and_then(|i| values.get(i)).map(f64::to_string);
            let record = [
                name.map(str::to_string),
                Some(frame.to_string()),
                Some(psnr.to_string()),
                at(Some(&compared.ssim.frames)),
                at(compared.ms_ssim.as_ref().map(|curve| &curve.frames)),
                at(compared.lpips.as_ref().map(|curve| &curve.frames)),
                before(motion),
                before(reference_motion),
            ];
            let record = record.into_iter().skip(skipped).map(Option::unwrap_or_default);
            writer.write_record(record).map_err(wrong)?;
        }
    }
    let file = writer.into_inner().map_err(|e| Error::file(path, e.to_string()))?;
    file.finish()
}
