//! How far a video is from a reference: metrics of 8-bit RGB frames, after the definitions that papers of this field use.

mod motion;
mod psnr;
mod ssim;

pub use motion::motion;
pub use psnr::{psnr_of_frames, psnr_of_video};
pub use ssim::ssim_of_frames;

use serde::Serialize;

use crate::video::Clip;
use crate::{Error, Result, Video};

/// Everything that is measured of a video against its reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Peak signal to noise ratio of every frame, dB; 100 where it equals the reference (VideoSys and NaviCache take the mean).
    pub psnr: Curve,
    /// The same with one error over the whole video (EasyCache).
    pub psnr_of_video: f64,
    /// Structural similarity of every frame.
    pub ssim: Curve,
    /// Motion of the video over motion of the reference: below 1, things move less than they did. Absent where nothing moves.
    pub motion_kept: Option<f64>,
    /// Temporal flickering as VBench defines it (Huang et al. 2024), of reference and video: 1 less the motion, so 1 is a still.
    pub temporal_flickering: [f64; 2],
}

/// A value for every frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Over all frames.
    pub mean: f64,
    /// The worst frame.
    pub worst: f64,
    /// Below which one frame of twenty lies.
    pub fifth_percentile: f64,
    /// Frame by frame.
    pub frames: Vec<f64>,
}

impl Curve {
    fn new(frames: Vec<f64>) -> Self {
        let mut sorted = frames.clone();
        sorted.sort_by(f64::total_cmp);
        // Between the two nearest ranks, in proportion.
        let rank = 0.05 * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
        Curve {
            mean: frames.iter().sum::<f64>() / frames.len() as f64,
            worst: sorted[0],
            fifth_percentile: low + (high - low) * rank.fract(),
            frames,
        }
    }
}

impl Comparison {
    /// Measures a video against its reference, of the same number and size of frames.
    pub fn new(reference: Frames, video: Frames) -> Result<Self> {
        let (before, after) = (motion(reference), motion(video));
        Ok(Comparison {
            psnr: Curve::new(psnr_of_frames(reference, video)?),
            psnr_of_video: psnr_of_video(reference, video)?,
            ssim: Curve::new(ssim_of_frames(reference, video)?),
            motion_kept: (before > 0.0).then(|| after / before),
            temporal_flickering: [1.0 - before, 1.0 - after],
        })
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

    /// Frames can be compared with others of the same number and size only.
    fn check_against(self, other: Frames) -> Result<()> {
        let shape = |f: Frames| format!("{} frames of {}x{}", f.frames().len(), f.width, f.height);
        let (here, there) = (shape(self), shape(other));
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
    use crate::noise;

    #[derive(serde::Deserialize)]
    struct Golden {
        name: String,
        width: usize,
        height: usize,
        frames: usize,
        reference_seed: u64,
        noise_seed: Option<u64>,
        amount: f32,
        psnr: Vec<f64>,
        psnr_of_video: f64,
        ssim: Vec<f64>,
    }

    /// Random frames, the same that `tools/golden/metrics.py` draws.
    fn clip(golden: &Golden) -> (Vec<u8>, Vec<u8>) {
        let n = golden.frames * golden.height * golden.width * 3;
        let reference: Vec<u8> =
            noise::randn(golden.reference_seed, n).iter().map(|v| (128.0 + 50.0 * v) as u8).collect();
        let other = match golden.noise_seed {
            None => reference.clone(),
            Some(seed) => {
                let noise = noise::randn(seed, n);
                reference.iter().zip(noise).map(|(&r, v)| (r as f32 + golden.amount * v) as u8).collect()
            }
        };
        (reference, other)
    }

    #[test]
    fn the_definitions_of_the_reference_scripts() {
        let all: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/metrics.json")).unwrap();
        let close = |found: &[f64], expected: &[f64]| {
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
        };
        for golden in all {
            let (reference, other) = clip(&golden);
            let frames = |pixels| Frames::new(pixels, golden.width, golden.height).unwrap();
            let (a, b) = (frames(&reference), frames(&other));
            let psnr = psnr_of_frames(a, b).unwrap();
            assert!(close(&psnr, &golden.psnr), "{}: {psnr:?}, expected {:?}", golden.name, golden.psnr);
            let whole = psnr_of_video(a, b).unwrap();
            assert!(close(&[whole], &[golden.psnr_of_video]), "{}: {whole}", golden.name);
            let ssim = ssim_of_frames(a, b).unwrap();
            assert!(close(&ssim, &golden.ssim), "{}: {ssim:?}, expected {:?}", golden.name, golden.ssim);
        }
    }

    #[test]
    fn a_curve_in_short() {
        let curve = Curve::new((0..=100).map(f64::from).rev().collect());
        assert_eq!((curve.mean, curve.worst, curve.fifth_percentile), (50.0, 0.0, 5.0));
        assert_eq!(Curve::new(vec![7.0]).fifth_percentile, 7.0);
    }

    #[test]
    fn a_video_that_stands_still_has_lost_its_motion() {
        let (width, height) = (12, 11);
        let frame = |value: u8| vec![value; width * height * 3];
        let moving = [frame(0), frame(51), frame(0)].concat();
        let still = [frame(25), frame(25), frame(25)].concat();
        let frames = |pixels| Frames::new(pixels, width, height).unwrap();
        let compared = Comparison::new(frames(&moving), frames(&still)).unwrap();
        assert_eq!(compared.motion_kept, Some(0.0));
        assert_eq!(compared.temporal_flickering, [0.8, 1.0]);
        assert_eq!(Comparison::new(frames(&still), frames(&moving)).unwrap().motion_kept, None);
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
