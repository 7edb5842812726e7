//! A video against its reference: every metric of every frame, and what they come to.

use std::collections::BTreeMap;
use std::path::Path;

use navicache_media::{Clip, Frames, video};
use rayon::prelude::*;
use serde::Serialize;

use crate::motion::{mean as mean_motion, motion_of_frames};
use crate::psnr::{PSNR, decibels};
use crate::{Convention, Curve, Error, FramePair, Lpips, METRICS, Metric, Result};

/// What is measured, and by whose definitions.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    /// Whose definitions.
    pub convention: Convention,
    /// For LPIPS, which needs weights; without, it is not measured.
    pub lpips: Option<Lpips>,
}

impl Meter {
    /// Measures a video against its reference, of the same number and size of frames, or of what the convention makes the same.
    pub fn compare(&self, reference: Frames, video: Frames) -> Result<Comparison> {
        let pixels = self.convention.fit(reference, video);
        let cut = pixels.len() != reference.pixels().len();
        let cut_from = cut.then(|| reference.shape());
        let reference = if cut { Frames::new(&pixels, video.width(), video.height())? } else { reference };
        if reference.shape() != video.shape() {
            return Err(Error::Shape { found: video.shape(), expected: reference.shape() });
        }
        let frames: Vec<_> = reference.iter().zip(video.iter()).collect();
        let of_frame = |&(reference, other): &(&[u8], &[u8])| {
            let pair = FramePair::new(reference, other, video.width(), video.height());
            let values: Result<Vec<_>> = METRICS.iter().map(|metric| (metric.of_frame)(self, &pair)).collect();
            Ok((values?, pair.squares()))
        };
        let measured = frames.par_iter().map(of_frame).collect::<Result<Vec<_>>>()?;
        let curve = |(i, metric): (usize, &&Metric)| {
            let values: Option<Vec<f64>> = measured.iter().map(|(values, _)| values[i]).collect();
            (metric.key, values.map(|values| Curve::new(values, metric.better)))
        };
        let curves: BTreeMap<_, _> = METRICS.iter().enumerate().map(curve).collect();
        let psnr_of_video = decibels(measured.iter().map(|(_, squares)| squares).sum(), video.pixels().len());
        let motion = [motion_of_frames(reference), motion_of_frames(video)];
        let [before, after] = [&motion[0], &motion[1]].map(|differences| mean_motion(differences));
        let mut scores = Scores {
            metrics: curves.iter().map(|(&key, curve)| (key, curve.as_ref().map(|curve: &Curve| curve.mean))).collect(),
            motion_kept: (before > 0.0).then(|| after / before),
        };
        if self.convention == Convention::EasyCache {
            scores.metrics.insert(PSNR.key, Some(psnr_of_video));
        }
        Ok(Comparison {
            convention: self.convention,
            cut_from,
            curves,
            psnr_of_video,
            motion_kept: scores.motion_kept,
            scores,
            temporal_flickering: [1.0 - before, 1.0 - after],
            motion,
        })
    }

    /// The same of two files, or folders of PNG files.
    pub fn compare_files(&self, reference: &Path, video: &Path) -> Result<Comparison> {
        let (before, after) = (video::read(reference)?, video::read(video)?);
        self.compare(frames_of(&before, reference)?, frames_of(&after, video)?)
    }
}

/// The frames of a file; an error names it.
fn frames_of<'a>(clip: &'a Clip, path: &Path) -> Result<Frames<'a>> {
    clip.as_frames().map_err(|_| Error::file(path, "expected frames, found none"))
}

/// Everything that is measured of a video against its reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Whose definitions `scores` follow.
    pub convention: Convention,
    /// A number for each metric, as papers report them.
    pub scores: Scores,
    /// Frames of the reference, where only a part of it was compared.
    pub cut_from: Option<String>,
    /// The metrics of frames by their keys; `None` where one was not measured.
    #[serde(flatten)]
    pub curves: BTreeMap<&'static str, Option<Curve>>,
    /// PSNR with one error over the whole video (EasyCache), dB.
    pub psnr_of_video: f64,
    /// Motion of the video over motion of the reference: below 1, things move less than they did. Absent where nothing moves.
    pub motion_kept: Option<f64>,
    /// Temporal flickering as VBench defines it (Huang et al. 2024), of reference and video: 1 less the motion, so 1 is a still.
    pub temporal_flickering: [f64; 2],
    /// Motion of reference and video, from each frame to the next: mean absolute difference of RGB in [0, 1].
    pub motion: [Vec<f64>; 2],
}

impl Comparison {
    /// A metric's values; `None` where it was not measured.
    pub fn curve(&self, metric: &Metric) -> Option<&Curve> {
        self.curves.get(metric.key)?.as_ref()
    }
}

/// A number for each metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// The metrics of frames by their keys: the mean over frames, or of PSNR what the convention says.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, Option<f64>>,
    /// Motion of the video over motion of the reference.
    pub motion_kept: Option<f64>,
}

impl Scores {
    /// A metric's number; `None` where it was not measured.
    pub fn get(&self, metric: &Metric) -> Option<f64> {
        *self.metrics.get(metric.key)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_that_stands_still_has_lost_its_motion() {
        let (width, height) = (12, 11);
        let frame = |value: u8| vec![value; width * height * 3];
        let moving = [frame(0), frame(51), frame(0)].concat();
        let still = [frame(25), frame(25), frame(25)].concat();
        let frames = |pixels| Frames::new(pixels, width, height).unwrap();
        let meter = Meter::default();
        let compared = meter.compare(frames(&moving), frames(&still)).unwrap();
        assert_eq!(compared.motion_kept, Some(0.0));
        assert_eq!(compared.temporal_flickering, [0.8, 1.0]);
        assert_eq!(compared.motion, [[0.2; 2], [0.0; 2]].map(Vec::from));
        assert_eq!(meter.compare(frames(&still), frames(&moving)).unwrap().motion_kept, None);
    }

    #[test]
    fn what_cannot_be_compared() {
        let (a, b) = ([0; 24], [0; 12]);
        let compare = |a, b| Meter::default().compare(Frames::new(a, 2, 2).unwrap(), Frames::new(b, 2, 2).unwrap());
        let error = compare(&a, &b).unwrap_err().to_string();
        assert!(error.contains("1 frames of 2x2") && error.contains("2 frames of 2x2"), "{error}");
        assert!(compare(&a, &a).unwrap_err().to_string().contains("11x11"));
    }
}
