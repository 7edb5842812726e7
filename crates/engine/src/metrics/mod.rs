//! How far a video is from a reference: metrics of 8-bit RGB frames, after the definitions that papers of this field use.

mod convention;
mod curves;
mod folders;
mod lpips;
mod motion;
mod ms_ssim;
mod psnr;
mod ssim;

pub use convention::Convention;
pub use curves::save_curves;
pub use folders::Pair;
pub use lpips::Lpips;
use motion::mean as mean_motion;
pub use motion::{motion, motion_of_frames};
pub use ms_ssim::ms_ssim_of_frames;
pub use psnr::{psnr_of_frames, psnr_of_video};
pub use ssim::ssim_of_frames;

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::video::Clip;
use crate::{Error, Result, Video, video};

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
        let cut = pixels.len() != reference.pixels.len();
        let cut_from = cut.then(|| reference.shape());
        let reference = if cut { Frames::new(&pixels, video.width, video.height)? } else { reference };

        let psnr = Curve::of_likeness(psnr_of_frames(reference, video)?);
        let psnr_of_video = psnr_of_video(reference, video)?;
        let ssim = Curve::of_likeness(ssim_of_frames(reference, video)?);
        let ms_ssim = ms_ssim_of_frames(reference, video)?.map(Curve::of_likeness);
        let lpips = self.lpips.as_ref().map(|lpips| lpips.of_frames(reference, video)).transpose()?;
        let lpips = lpips.map(Curve::of_distance);
        let motion = [motion_of_frames(reference), motion_of_frames(video)];
        let [before, after] = [&motion[0], &motion[1]].map(|differences| mean_motion(differences));
        let scores = Scores {
            psnr: match self.convention {
                Convention::Raw | Convention::VideoSys => psnr.mean,
                Convention::EasyCache => psnr_of_video,
            },
            ssim: ssim.mean,
            ms_ssim: ms_ssim.as_ref().map(|curve| curve.mean),
            lpips: lpips.as_ref().map(|curve| curve.mean),
            motion_kept: (before > 0.0).then(|| after / before),
        };
        Ok(Comparison {
            convention: self.convention,
            scores,
            cut_from,
            psnr,
            psnr_of_video,
            ssim,
            ms_ssim,
            lpips,
            motion_kept: scores.motion_kept,
            temporal_flickering: [1.0 - before, 1.0 - after],
            motion,
        })
    }

    /// The same of two files, or folders of PNG files.
    pub fn compare_files(&self, reference: &Path, video: &Path) -> Result<Comparison> {
        let (before, after) = (video::read(reference)?, video::read(video)?);
        self.compare(before.as_frames_of(reference)?, after.as_frames_of(video)?)
    }
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
    /// Peak signal to noise ratio of every frame, dB; 100 where it equals the reference.
    pub psnr: Curve,
    /// The same with one error over the whole video (EasyCache).
    pub psnr_of_video: f64,
    /// Structural similarity of every frame.
    pub ssim: Curve,
    /// Structural similarity over five sizes; absent for frames smaller than 176x176.
    pub ms_ssim: Option<Curve>,
    /// Learned perceptual distance of every frame, 0 where it equals the reference; absent without weights.
    pub lpips: Option<Curve>,
    /// Motion of the video over motion of the reference: below 1, things move less than they did. Absent where nothing moves.
    pub motion_kept: Option<f64>,
    /// Temporal flickering as VBench defines it (Huang et al. 2024), of reference and video: 1 less the motion, so 1 is a still.
    pub temporal_flickering: [f64; 2],
    /// Motion of reference and video, from each frame to the next: mean absolute difference of RGB in [0, 1].
    pub motion: [Vec<f64>; 2],
}

/// A number for each metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Peak signal to noise ratio, dB: the mean over frames, or of one error over the video.
    pub psnr: f64,
    /// Structural similarity, mean over frames.
    pub ssim: f64,
    /// The same over five sizes.
    pub ms_ssim: Option<f64>,
    /// Learned perceptual distance, mean over frames.
    pub lpips: Option<f64>,
    /// Motion of the video over motion of the reference.
    pub motion_kept: Option<f64>,
}

/// A value for every frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Over all frames.
    pub mean: f64,
    /// The value of the worst frame: the smallest, or of a distance the largest.
    pub worst: f64,
    /// Which frame that is, from 0.
    pub worst_frame: usize,
    /// What one frame of twenty is worse than: the 5th percentile, of a distance the 95th.
    pub fifth_percentile: f64,
    /// Frame by frame.
    pub frames: Vec<f64>,
}

impl Curve {
    /// Of values that are larger where frames are more alike.
    fn of_likeness(frames: Vec<f64>) -> Self {
        Self::new(frames, 1.0)
    }

    /// Of values that are larger where frames are less alike.
    fn of_distance(frames: Vec<f64>) -> Self {
        Self::new(frames, -1.0)
    }

    /// At least one value; `sign` times a value is smaller where it is worse.
    fn new(frames: Vec<f64>, sign: f64) -> Self {
        let mut order: Vec<usize> = (0..frames.len()).collect();
        order.sort_by(|&a, &b| (sign * frames[a]).total_cmp(&(sign * frames[b])));
        // Between the two nearest ranks, in proportion.
        let rank = 0.05 * (order.len() - 1) as f64;
        let (low, high) = (frames[order[rank.floor() as usize]], frames[order[rank.ceil() as usize]]);
        Curve {
            mean: frames.iter().sum::<f64>() / frames.len() as f64,
            worst: frames[order[0]],
            worst_frame: order[0],
            fifth_percentile: low + (high - low) * rank.fract(),
            frames,
        }
    }
}

/// The frames of a clip: 8-bit RGB, (frames, height, width, 3).
#[derive(Debug, Clone, Copy)]
pub struct Frames<'a> {
    pixels: &'a [u8],
    width: usize,
    height: usize,
}

impl<'a> Frames<'a> {
    /// Frames of a size; `pixels` must hold whole ones, at least one.
    pub fn new(pixels: &'a [u8], width: usize, height: usize) -> Result<Self> {
        let frame = width * height * 3;
        if frame == 0 || pixels.is_empty() || !pixels.len().is_multiple_of(frame) {
            return Err(Error::Request {
                what: "frames",
                found: format!("{} bytes", pixels.len()),
                expected: format!("expected whole frames of {width}x{height} RGB, {frame} bytes each"),
            });
        }
        Ok(Frames { pixels, width, height })
    }

    fn frames(self) -> std::slice::ChunksExact<'a, u8> {
        self.pixels.chunks_exact(self.width * self.height * 3)
    }

    /// Frames of both at the same time, on all threads.
    fn pairs(self, other: Frames<'a>) -> impl IndexedParallelIterator<Item = (&'a [u8], &'a [u8])> {
        let size = self.width * self.height * 3;
        self.pixels.par_chunks_exact(size).zip(other.pixels.par_chunks_exact(size))
    }

    /// In words.
    fn shape(self) -> String {
        format!("{} frames of {}x{}", self.frames().len(), self.width, self.height)
    }

    /// Frames can be compared with others of the same number and size only.
    fn check_against(self, other: Frames) -> Result<()> {
        let (here, there) = (self.shape(), other.shape());
        if here == there {
            return Ok(());
        }
        Err(Error::Request {
            what: "videos to compare",
            found: there,
            expected: format!("expected {here} like the reference"),
        })
    }
}

impl Clip {
    /// The frames, for metrics; an error if there are none.
    pub fn as_frames(&self) -> Result<Frames<'_>> {
        Frames::new(&self.frames, self.width, self.height)
    }

    /// The same of a file; an error names it.
    fn as_frames_of(&self, path: &Path) -> Result<Frames<'_>> {
        self.as_frames().map_err(|_| Error::file(path, "expected frames, found none"))
    }
}

impl Video {
    /// The frames, for metrics; an error if there are none.
    pub fn as_frames(&self) -> Result<Frames<'_>> {
        Frames::new(&self.frames, self.spec.width, self.spec.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_in_short() {
        let short = |curve: Curve| (curve.mean, curve.worst, curve.worst_frame, curve.fifth_percentile);
        let values = || (0..=100).map(f64::from).rev().collect();
        assert_eq!(short(Curve::of_likeness(values())), (50.0, 0.0, 100, 5.0));
        assert_eq!(short(Curve::of_distance(values())), (50.0, 100.0, 0, 95.0));
        assert_eq!(short(Curve::of_likeness(vec![7.0])), (7.0, 7.0, 0, 7.0));
    }

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
        assert!(Frames::new(&[0; 10], 2, 2).is_err());
        assert!(Frames::new(&[], 2, 2).is_err());
        let (a, b) = ([0; 24], [0; 12]);
        let error =
            psnr_of_frames(Frames::new(&a, 2, 2).unwrap(), Frames::new(&b, 2, 2).unwrap()).unwrap_err().to_string();
        assert!(error.contains("1 frames of 2x2") && error.contains("2 frames of 2x2"), "{error}");
        let small = Frames::new(&a, 2, 2).unwrap();
        assert!(ssim_of_frames(small, small).unwrap_err().to_string().contains("11x11"));
    }
}
