//! A video against its reference: every metric of every frame, and what they come to.

use std::collections::BTreeMap;
use std::path::Path;

use navicache_media::Frames;
use navicache_media::video::Reader;
use rayon::prelude::*;
use serde::Serialize;

use crate::motion::{between, mean as mean_motion};
use crate::psnr::{PSNR, decibels};
use crate::source::{Held, Source, middle};
use crate::{Convention, Curve, Error, FramePair, Lpips, METRICS, Metric, Result, Scores};

/// What is measured, and by whose definitions.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    /// Whose definitions.
    pub convention: Convention,
    /// For LPIPS, which needs weights; without, it is not measured.
    pub lpips: Option<Lpips>,
}

impl Meter {
    /// Measures a video against its reference, of the same number and size of frames, or of what the convention makes
    /// the same.
    pub fn compare(&self, reference: Frames, video: Frames) -> Result<Comparison> {
        self.compare_sources(&mut Held::new(reference), &mut Held::new(video))
    }

    /// The same of two files, or folders of PNG files. A few frames of each are in memory at a time.
    pub fn compare_files(&self, reference: &Path, video: &Path) -> Result<Comparison> {
        let (mut before, mut after) = (Reader::open(reference)?, Reader::open(video)?);
        self.compare_sources(&mut before, &mut after).map_err(|error| match error {
            Error::NoFrames => Error::file(video, error.to_string()),
            error => error,
        })
    }

    /// Reads frames while those before them are measured, on all threads.
    fn compare_sources(&self, reference: &mut dyn Source, video: &mut dyn Source) -> Result<Comparison> {
        let size = video.size();
        let mut pairs = Pairs::new(self.convention, reference, video)?;
        let mut found = Found::default();
        let mut last = None;
        let mut batch = pairs.read()?;
        while !batch.is_empty() {
            let (next, measured) = rayon::join(|| pairs.read(), || self.measure(&batch, last.as_ref(), size));
            measured?.into_iter().for_each(|frame| found.add(frame));
            last = batch.pop();
            batch = next?;
        }
        found.finish(self.convention, pairs.cut_from()?, 3 * size.0 * size.1)
    }

    /// Measures pairs of frames, that of the reference first; `last` is the pair before them.
    fn measure(
        &self,
        batch: &[[Vec<u8>; 2]],
        last: Option<&[Vec<u8>; 2]>,
        size: (usize, usize),
    ) -> Result<Vec<Measured>> {
        let of_pair = |i: usize| {
            let [reference, video] = &batch[i];
            let pair = FramePair::new([reference, video], size, self.lpips.as_ref());
            let metrics: Result<Vec<_>> = METRICS.iter().map(|metric| (metric.of_frame)(&pair)).collect();
            let before = if i == 0 { last } else { Some(&batch[i - 1]) };
            let motion = before.map(|[a, b]| [between(a, reference), between(b, video)]);
            Ok(Measured { metrics: metrics?, squares: pair.squares(), motion })
        };
        (0..batch.len()).into_par_iter().map(of_pair).collect()
    }
}

/// Frames of two videos side by side.
struct Pairs<'a> {
    convention: Convention,
    reference: &'a mut dyn Source,
    video: &'a mut dyn Source,
    /// Frames that were read of both.
    given: [usize; 2],
    cut: bool,
}

impl<'a> Pairs<'a> {
    /// An error says that sizes or numbers differ, as far as they are known.
    fn new(convention: Convention, reference: &'a mut dyn Source, video: &'a mut dyn Source) -> Result<Self> {
        let (there, here) = (reference.size(), video.size());
        let cut = convention.cut(there, here).is_some();
        let fits = match (reference.count(), video.count()) {
            (Some(there), Some(here)) => there == here || there > here && convention.takes_longer_references(),
            _ => true,
        };
        let mut pairs = Pairs { convention, reference, video, given: [0; 2], cut };
        if (there == here || cut) && fits { Ok(pairs) } else { Err(pairs.differ()?) }
    }

    /// The next pairs, some for each thread; none after the last.
    fn read(&mut self) -> Result<Vec<[Vec<u8>; 2]>> {
        const MOST: usize = 32;
        let count = (2 * rayon::current_num_threads()).min(MOST);
        let (reference, video) = (&mut *self.reference, &mut *self.video);
        let (before, after) = rayon::join(|| take(reference, count), || take(video, count));
        let (before, after) = (before?, after?);
        self.given = [self.given[0] + before.len(), self.given[1] + after.len()];
        if before.len() != after.len() {
            if before.len() < after.len() || !self.convention.takes_longer_references() {
                return Err(self.differ()?);
            }
            self.cut = true;
        }
        let (there, here) = (self.reference.size(), self.video.size());
        let fit = |frame: Vec<u8>| match self.convention.cut(there, here) {
            Some(corner) => middle(&frame, there.0, corner, here),
            None => frame,
        };
        Ok(before.into_iter().zip(after).map(|(before, after)| [fit(before), after]).collect())
    }

    /// Number and size of all frames of the reference, if only a part of them was compared.
    fn cut_from(&mut self) -> Result<Option<String>> {
        let longer = self.reference.count().is_some_and(|count| count > self.given[1]);
        if self.cut || longer { shape(self.reference, self.given[0]).map(Some) } else { Ok(None) }
    }

    fn differ(&mut self) -> Result<Error> {
        let expected = shape(self.reference, self.given[0])?;
        Ok(Error::Shape {
            hint: if is_multiple(self.reference.size(), self.video.size()) { ENLARGED } else { "" },
            found: shape(self.video, self.given[1])?,
            expected,
        })
    }
}

/// What is said where one video may be an enlarged one.
const ENLARGED: &str =
    "; videos that `generate` writes to be watched may be enlarged; `scale` 1 leaves them as they are";

/// Whether one size is so many whole times the other.
fn is_multiple(a: (usize, usize), b: (usize, usize)) -> bool {
    let times = |large: (usize, usize), small: (usize, usize)| {
        let factor = large.0 / small.0.max(1);
        factor > 1 && large == (factor * small.0, factor * small.1)
    };
    times(a, b) || times(b, a)
}

/// At most so many frames.
fn take(source: &mut dyn Source, count: usize) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::with_capacity(count);
    while frames.len() < count {
        match source.next()? {
            Some(frame) => frames.push(frame),
            None => break,
        }
    }
    Ok(frames)
}

/// Number and size of frames in words; reads on to the end where their number is not known.
fn shape(source: &mut dyn Source, given: usize) -> Result<String> {
    let (width, height) = source.size();
    let mut count = given;
    match source.count() {
        Some(known) => count = known,
        None => {
            while source.next()?.is_some() {
                count += 1;
            }
        }
    }
    Ok(format!("{count} frames of {width}x{height}"))
}

/// What was measured of a pair of frames.
struct Measured {
    /// In the order of the table.
    metrics: Vec<Option<f64>>,
    squares: u64,
    /// Of reference and video, from the frame before.
    motion: Option<[f64; 2]>,
}

/// What was measured so far.
#[derive(Default)]
struct Found {
    metrics: Vec<Vec<Option<f64>>>,
    squares: u64,
    motion: [Vec<f64>; 2],
}

impl Found {
    fn add(&mut self, frame: Measured) {
        self.metrics.push(frame.metrics);
        self.squares += frame.squares;
        for (all, one) in self.motion.iter_mut().zip(frame.motion.into_iter().flatten()) {
            all.push(one);
        }
    }

    /// What it comes to, of frames of so many values.
    fn finish(self, convention: Convention, cut_from: Option<String>, values: usize) -> Result<Comparison> {
        let Found { metrics, squares, motion } = self;
        if metrics.is_empty() {
            return Err(Error::NoFrames);
        }
        let curve = |(i, metric): (usize, &&Metric)| {
            let values: Option<Vec<f64>> = metrics.iter().map(|values| values[i]).collect();
            (metric.key, values.map(|values| Curve::new(values, metric.better)))
        };
        let curves: BTreeMap<_, _> = METRICS.iter().enumerate().map(curve).collect();
        let psnr_of_video = decibels(squares, values * metrics.len());
        let [before, after] = [&motion[0], &motion[1]].map(|differences| mean_motion(differences));
        let mut scores = Scores {
            metrics: curves.iter().map(|(&key, curve)| (key, curve.as_ref().map(|curve: &Curve| curve.mean))).collect(),
            motion_kept: (before > 0.0).then(|| after / before),
        };
        if convention == Convention::EasyCache {
            scores.metrics.insert(PSNR.key, Some(psnr_of_video));
        }
        Ok(Comparison {
            convention,
            cut_from,
            curves,
            psnr_of_video,
            motion_kept: scores.motion_kept,
            scores,
            temporal_flickering: [1.0 - before, 1.0 - after],
            motion,
        })
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
    /// The metrics of frames by their keys; `None` where one was not measured.
    #[serde(flatten)]
    pub curves: BTreeMap<&'static str, Option<Curve>>,
    /// PSNR with one error over the whole video (EasyCache), dB.
    pub psnr_of_video: f64,
    /// Motion of the video over motion of the reference: below 1, things move less than they did. Absent where nothing
    /// moves.
    pub motion_kept: Option<f64>,
    /// Temporal flickering as VBench defines it (Huang et al. 2024), of reference and video: 1 less the motion, so 1 is
    /// a still.
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
    fn what_videosys_cuts() {
        let pixels: Vec<u8> = (0..2 * 14 * 15 * 3).map(|i| i as u8).collect(); // two frames of 15x14
        let reference = Frames::new(&pixels, 15, 14).unwrap();
        let row = |from: usize| &pixels[from..from + 13 * 3];
        let video: Vec<u8> = (1..13).flat_map(|y| row((y * 15 + 1) * 3)).copied().collect(); // the middle of the first
        let video = Frames::new(&video, 13, 12).unwrap();
        let meter = |convention| Meter { convention, ..Meter::default() };
        let cut = meter(Convention::VideoSys).compare(reference, video).unwrap();
        assert_eq!((cut.psnr_of_video, cut.cut_from.as_deref()), (100.0, Some("2 frames of 15x14")));
        assert!(meter(Convention::Raw).compare(reference, video).is_err());
        assert!(meter(Convention::VideoSys).compare(video, reference).is_err(), "a reference cannot be enlarged");
        let twice = Frames::new(&pixels, 15, 14).unwrap();
        let once = Frames::new(&pixels[..14 * 15 * 3], 15, 14).unwrap();
        let longer = meter(Convention::VideoSys).compare(twice, once).unwrap();
        assert_eq!(longer.cut_from.as_deref(), Some("2 frames of 15x14"));
        assert!(meter(Convention::VideoSys).compare(once, twice).is_err());
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
