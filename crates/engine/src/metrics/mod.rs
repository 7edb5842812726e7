//! How far a video is from a reference: metrics of 8-bit RGB frames, after the definitions that papers of this field use.

mod psnr;
mod ssim;

pub use psnr::{psnr_of_frames, psnr_of_video};
pub use ssim::ssim_of_frames;

use crate::{Error, Result, Video};

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

impl Video {
    /// The frames, for metrics.
    pub fn as_frames(&self) -> Frames<'_> {
        Frames { pixels: &self.frames, width: self.spec.width, height: self.spec.height }
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
