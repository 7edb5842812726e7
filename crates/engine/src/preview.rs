//! Small pictures of a video that is being made: its middle latent frame as the solver expects it to become.
//!
//! There are two ways. The VAE decodes that one latent frame where this is quick beside the steps. Otherwise pixels are
//! a linear function of the latents' channels. Least squares fit it to this VAE: to random latents when the model is
//! loaded, then to small squares of the video itself, as many as there is time to decode.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use navicache_models::{Autoencoder, Chunk, Room};

use crate::Result;
use crate::denoise::Sampler;
use crate::event::{Event, Reporter};
use crate::family::Shared;
use crate::film::to_rgb;
use crate::latents;
use crate::machine::computing;
use crate::pipeline::Pipeline;
use crate::sizes::Sizes;

/// Most of the denoising time that decoded previews may take.
const SHARE: f64 = 0.02;
/// The linear function is fitted to squares of so many latents a side.
const SIDE: usize = 8;
/// So many of them are random, unless it takes longer than [`FIT_SECONDS`].
const SQUARES: usize = 64;
const FIT_SECONDS: f64 = 1.0;
/// The deviation of random latents, which is about that of a video's, and how much each counts beside one of the video.
const DEVIATION: f64 = 1.0;
const RANDOM_WEIGHT: f64 = 0.01;
/// Keeps the equations solvable where a channel does nothing.
const RIDGE: f64 = 1e-4;

/// A small picture.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Preview {
    width: usize,
    height: usize,
    /// 8-bit RGB. // (height, width, 3)
    rgb: Vec<u8>,
}

/// Makes the previews of one run, not too many of them.
pub(crate) struct Previews<'a> {
    pipeline: &'a Pipeline,
    every: Duration,
    linear: LinearMap,
    /// Whether the VAE stays loaded, and what it takes for a square fits into memory.
    is_at_hand: bool,
    /// Seconds that the decoder takes for a square, and that it has taken.
    a_square: f64,
    spent: f64,
    begun: Instant,
    last: Instant,
    /// A picture that could not be made was said, and none is tried any more.
    failed: bool,
}

impl<'a> Previews<'a> {
    /// At most one every so many seconds, of latents of a shape. To be called while the VAE is at hand. A video does
    /// not fail for its previews: where they cannot be made, that is said.
    pub fn begin(pipeline: &'a Pipeline, every: f64, shape: &[usize; 5], reporter: &mut Reporter) -> Option<Self> {
        let every = Duration::try_from_secs_f64(every).unwrap_or(Duration::MAX);
        Self::new(pipeline, every, shape)
            .inspect_err(|error| reporter.warn(format!("there will be no previews: {error}")))
            .ok()
    }

    fn new(pipeline: &'a Pipeline, every: Duration, shape: &[usize; 5]) -> Result<Self> {
        let Shared { host, sizes, .. } = pipeline.family().shared();
        let autoencoder = pipeline.family().autoencoder()?;
        let (linear, a_square) = LinearMap::fit(&*autoencoder, &**sizes, shape[1], &host.device)?;
        let bytes = autoencoder.plan(&[shape[0], shape[1], 1, shape[3], shape[4]], Room::Bytes(u64::MAX)).bytes;
        let is_at_hand = pipeline.keeps_autoencoder() && bytes <= host.budget();
        let now = Instant::now();
        Ok(Previews { pipeline, every, linear, is_at_hand, a_square, spent: 0.0, begun: now, last: now, failed: false })
    }

    /// Says what the video is expected to become, if it is time for it. After the last step the frames themselves
    /// follow.
    pub fn after_step(&mut self, sampler: &Sampler, reporter: &mut Reporter) {
        let (done, steps) = (sampler.done(), sampler.steps());
        if self.failed || done == steps || self.last.elapsed() < self.every {
            return;
        }
        self.last = Instant::now();
        let made = sampler.clean().and_then(|clean| clean.map(|clean| self.make(&clean)).transpose());
        match made {
            Ok(Some(Preview { width, height, rgb })) => {
                reporter.emit(Event::Preview { index: done - 1, steps, width, height, rgb: &rgb });
            }
            Ok(None) => {}
            Err(error) => {
                self.failed = true;
                reporter.warn(format!("no more previews: {error}"));
            }
        }
    }

    /// * `clean` - (1, channels, latent frames, height, width)
    fn make(&mut self, clean: &Tensor) -> Result<Preview> {
        let frame = clean.narrow(2, clean.dim(2)? / 2, 1)?;
        let (rows, columns) = (frame.dim(3)?, frame.dim(4)?);
        let (down, across) = (rows / SIDE, columns / SIDE);
        let squares = (rows * columns) as f64 / (SIDE * SIDE) as f64;
        let seconds = SHARE * self.begun.elapsed().as_secs_f64() - self.spent;
        let affordable = if self.is_at_hand { seconds / self.a_square } else { 0.0 };
        let clock = Instant::now();
        let made = if affordable >= squares {
            let pixels = decode_one(&*self.pipeline.family().autoencoder()?, &frame)?;
            self.a_square = clock.elapsed().as_secs_f64() / squares;
            picture(&pixels)
        } else {
            // Each preview takes others, spread over the picture.
            for _ in 0..(affordable as usize).min(down * across) {
                let number = self.linear.squares * 7 % (down * across);
                let (top, left) = (number / across * SIDE, number % across * SIDE);
                let square = frame.narrow(3, top, SIDE)?.narrow(4, left, SIDE)?;
                self.linear.learn(&*self.pipeline.family().autoencoder()?, &square, 1.0)?;
            }
            self.linear.picture(&frame)
        };
        self.spent += clock.elapsed().as_secs_f64();
        made
    }
}

/// The first frame of one latent frame. // (1, channels, 1, h, w) -> (1, 3, height, width)
fn decode_one(autoencoder: &dyn Autoencoder, latents: &Tensor) -> Result<Tensor> {
    let plan = autoencoder.plan(&latents::shape_of(latents)?, Room::Bytes(u64::MAX));
    let mut decoding = autoencoder.decoder(latents, 1, &plan)?;
    while let Some(chunk) = computing(|| decoding.next_chunk())? {
        if let Chunk::Frames(frames) = chunk {
            return Ok(frames.narrow(0, 0, 1)?);
        }
    }
    Err(candle_core::Error::Msg("the decoder made no frame of a latent frame".to_string()).into())
}

/// In [-1, 1]. // (1, 3, height, width)
fn picture(pixels: &Tensor) -> Result<Preview> {
    let (_, _, height, width) = pixels.dims4()?;
    Ok(Preview { width, height, rgb: to_rgb(pixels)? })
}

/// Colours as a linear function of a latent's channels.
struct LinearMap {
    equations: Equations,
    /// Pixels to a latent, down and across.
    cell: (usize, usize),
    /// Squares that it was fitted to.
    squares: usize,
}

impl LinearMap {
    /// Fitted to what the VAE makes of random latents; with it, the seconds that one square took.
    fn fit(vae: &dyn Autoencoder, sizes: &dyn Sizes, channels: usize, device: &Device) -> Result<(Self, f64)> {
        let shape = [1, channels, 1, SIDE, SIDE];
        let (width, height, _) = sizes.video_shape(&shape);
        let cell = (height / SIDE, width / SIDE);
        let mut map = LinearMap { equations: Equations::new(channels + 1), cell, squares: 0 };
        let (clock, mut a_square) = (Instant::now(), f64::INFINITY);
        while map.squares < SQUARES && (map.squares < 2 || clock.elapsed().as_secs_f64() < FIT_SECONDS) {
            let of_one = Instant::now();
            // Latents of a video are smooth: half of the variance is one value a channel.
            let seed = 2 * map.squares as u64;
            let even = latents::from_seed(seed, &[1, channels, 1, 1, 1], device)?;
            let rough = latents::from_seed(seed + 1, &shape, device)?;
            let latents = rough.broadcast_add(&even)?.affine(DEVIATION * 0.5f64.sqrt(), 0.0)?;
            map.learn(vae, &latents, RANDOM_WEIGHT)?;
            a_square = a_square.min(of_one.elapsed().as_secs_f64());
        }
        Ok((map, a_square))
    }

    /// Learns from what the VAE makes of a square, with a weight. // (1, channels, 1, side, side)
    fn learn(&mut self, vae: &dyn Autoencoder, square: &Tensor, weight: f64) -> Result<()> {
        let pixels = decode_one(vae, square)?.avg_pool2d(self.cell)?;
        let colours = pixels.flatten_from(2)?.squeeze(0)?.t()?.to_vec2::<f32>()?; // (side^2, 3)
        let values = square.squeeze(0)?.flatten_from(1)?.t()?.to_vec2::<f32>()?; // (side^2, channels)
        for (values, colour) in values.iter().zip(&colours) {
            let row: Vec<f64> = values.iter().map(|&v| f64::from(v)).chain([1.0]).collect();
            self.equations.add(&row, [colour[0], colour[1], colour[2]].map(f64::from), weight);
        }
        self.squares += 1;
        Ok(())
    }

    /// A pixel a latent. // (1, channels, 1, h, w)
    fn picture(&self, frame: &Tensor) -> Result<Preview> {
        let (_, channels, _, height, width) = frame.dims5()?;
        let device = frame.device();
        let flat: Vec<f32> = self.equations.clone().solve().iter().flatten().map(|&w| w as f32).collect();
        let weights = Tensor::from_vec(flat, (channels + 1, 3), device)?.t()?; // (3, channels + 1)
        let values = frame.reshape((channels, height * width))?;
        let product = weights.narrow(1, 0, channels)?.contiguous()?.matmul(&values)?;
        let pixels = product.broadcast_add(&weights.narrow(1, channels, 1)?.contiguous()?)?;
        picture(&pixels.reshape((1, 3, height, width))?)
    }
}

/// Normal equations of a least-squares fit of three functions.
#[derive(Clone)]
struct Equations {
    /// Sums of products of the unknowns' factors, then those with the three results. // (n, n + 3)
    rows: Vec<Vec<f64>>,
}

impl Equations {
    fn new(unknowns: usize) -> Self {
        let mut rows = vec![vec![0.0; unknowns + 3]; unknowns];
        rows.iter_mut().enumerate().for_each(|(i, row)| row[i] = RIDGE);
        Equations { rows }
    }

    fn add(&mut self, factors: &[f64], results: [f64; 3], weight: f64) {
        for (row, a) in self.rows.iter_mut().zip(factors) {
            row.iter_mut().zip(factors.iter().chain(&results)).for_each(|(sum, b)| *sum += weight * a * b);
        }
    }

    /// By Gauss and Jordan. The matrix is positive definite, so no pivot is 0. // (unknowns, 3)
    fn solve(mut self) -> Vec<[f64; 3]> {
        let unknowns = self.rows.len();
        for i in 0..unknowns {
            let pivot = self.rows[i][i];
            self.rows[i].iter_mut().for_each(|value| *value /= pivot);
            let row = self.rows[i].clone();
            for other in (0..unknowns).filter(|&other| other != i) {
                let factor = self.rows[other][i];
                self.rows[other].iter_mut().zip(&row).for_each(|(value, of_row)| *value -= factor * of_row);
            }
        }
        self.rows.iter().map(|row| [row[unknowns], row[unknowns + 1], row[unknowns + 2]]).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::{LoadOptions, Request, generate};

    #[test]
    fn equations_of_a_line_are_solved() {
        let mut equations = Equations::new(2);
        for x in [-2.0, -1.0, 0.0, 1.0, 3.0] {
            equations.add(&[x, 1.0], [2.0 * x + 1.0, -x, 5.0], 0.5);
        }
        let weights = equations.solve();
        let expected = [[2.0, -1.0, 0.0], [1.0, 0.0, 5.0]];
        for (found, expected) in weights.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-3, "{weights:?}");
        }
    }

    /// Pearson's correlation.
    fn correlation(a: &[f32], b: &[f32]) -> f32 {
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let (mean_a, mean_b) = (mean(a), mean(b));
        let mut sums = [0.0; 3];
        for (a, b) in a.iter().map(|a| a - mean_a).zip(b.iter().map(|b| b - mean_b)) {
            [a * b, a * a, b * b].iter().zip(&mut sums).for_each(|(product, sum)| *sum += product);
        }
        sums[0] / (sums[1] * sums[2]).sqrt()
    }

    /// A picture as numbers, averaged over cells of so many pixels a side. // (height / cell, width / cell, 3)
    fn averaged(preview: &Preview, cell: usize) -> Vec<f32> {
        let rgb: Vec<f32> = preview.rgb.iter().map(|&value| f32::from(value)).collect();
        let picture = Tensor::from_vec(rgb, (1, preview.height, preview.width, 3), &Device::Cpu).unwrap();
        let cells = picture.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap().avg_pool2d(cell).unwrap();
        cells.permute((0, 2, 3, 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn previews_show_what_the_video_becomes() {
        let pipeline = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let request = Request {
            steps: Some(12),
            preview: Some(0.0),
            cache: Some("none".parse().unwrap()),
            ..Request::new("a red circle bouncing on a navy background")
        };
        let mut seen = Vec::new();
        let video = generate(&pipeline, &request, &mut |event| {
            if let Event::Preview { index, steps, width, height, rgb } = event {
                assert_eq!(steps, 12);
                seen.push((index, Preview { width, height, rgb: rgb.to_vec() }));
            }
            ControlFlow::Continue(())
        });
        let video = video.unwrap();
        assert_eq!(seen.iter().map(|(index, _)| *index).collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());

        let vae = pipeline.family().autoencoder().unwrap();
        let middle = video.latents.narrow(2, video.latents.dim(2).unwrap() / 2, 1).unwrap();
        let decoded = picture(&decode_one(&*vae, &middle).unwrap()).unwrap();
        let (height, width) = (middle.dim(3).unwrap(), middle.dim(4).unwrap());
        let cell = decoded.height / height;
        assert_eq!((decoded.width, decoded.height), (video.spec.width, video.spec.height));

        // The linear function, fitted to noise, then to a video that is not quite this one
        let sizes = &pipeline.family().shared().sizes;
        let (mut linear, _) = LinearMap::fit(&*vae, &**sizes, middle.dim(1).unwrap(), &Device::Cpu).unwrap();
        let agrees = |linear: &LinearMap| {
            let fitted = linear.picture(&middle).unwrap();
            assert_eq!((fitted.width, fitted.height), (width, height));
            correlation(&averaged(&fitted, 1), &averaged(&decoded, cell))
        };
        let of_noise = agrees(&linear);
        let noise = latents::from_seed(1, &[1, middle.dim(1).unwrap(), 1, height, width], &Device::Cpu).unwrap();
        linear.learn(&*vae, &(&middle + noise.affine(0.2, 0.0).unwrap()).unwrap(), 1.0).unwrap();
        let of_video = agrees(&linear);
        assert!(of_noise > 0.7 && of_video > 0.9, "{of_noise} {of_video}");

        // The last event, whichever way it was made
        let (_, last) = seen.last().unwrap();
        let of_last = correlation(&averaged(last, last.height / height), &averaged(&decoded, cell));
        assert!(of_last > 0.7, "{of_last}");
    }

    #[test]
    fn a_video_is_the_same_with_previews() {
        let pipeline = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let of = |preview| {
            let request = Request { steps: Some(4), preview, ..Request::new("a blue square") };
            generate(&pipeline, &request, &mut |_| ControlFlow::Continue(())).unwrap().frames
        };
        assert_eq!(of(None), of(Some(0.0)));
        assert_eq!(of(None), of(Some(1e30)));
    }
}
