//! How far a video is from another.

use std::path::PathBuf;

use navicache_engine::{Error, Frames, video};
use navicache_metrics::{Convention, Lpips, Meter};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use serde_json::json;

use crate::errors::{Failure, detached};

/// A video: its pixels, height and width; or a file.
#[derive(FromPyObject)]
pub enum Clip {
    /// Bytes, height and width.
    Held(PyBackedBytes, usize, usize),
    /// A file, or a folder of PNG files.
    File(PathBuf),
}

/// Measures a video against a reference.
#[pyfunction]
#[pyo3(signature = (reference, video, convention=None, lpips_weights=Vec::new()))]
pub fn compare(
    py: Python<'_>,
    reference: Clip,
    video: Clip,
    convention: Option<&str>,
    lpips_weights: Vec<PathBuf>,
) -> PyResult<String> {
    detached(py, || {
        let convention = convention.map(str::parse::<Convention>).transpose()?.unwrap_or_default();
        let lpips = (!lpips_weights.is_empty()).then(|| Lpips::open(&lpips_weights)).transpose()?;
        let meter = Meter { convention, lpips };
        let compared = match (&reference, &video) {
            (Clip::File(reference), Clip::File(video)) => meter.compare_files(reference, video)?,
            _ => {
                with_frames(&reference, |reference| with_frames(&video, |video| Ok(meter.compare(reference, video)?)))?
            }
        };
        Ok(json!(compared).to_string())
    })
}

/// Does something with the frames of a video, which is read first if it is a file.
fn with_frames<T>(clip: &Clip, work: impl FnOnce(Frames<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
    match clip {
        Clip::Held(pixels, height, width) => work(Frames::new(pixels, *width, *height).map_err(Error::from)?),
        Clip::File(path) => {
            let clip = video::read(path).map_err(Error::from)?;
            work(clip.as_frames().map_err(Error::from)?)
        }
    }
}
