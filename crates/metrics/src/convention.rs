//! What papers mean when they report PSNR, SSIM and LPIPS of a video. Numbers of different conventions cannot be compared.

use std::borrow::Cow;
use std::str::FromStr;

use navicache_media::Frames;
use serde::Serialize;

use crate::{Error, Result, Scores};

/// Videos that VideoSys averages before it averages those averages.
const BATCH: usize = 16;

/// Whose definition a number follows. SSIM and LPIPS are means over frames in all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// Frames as they are, the same number and size in both videos; PSNR is the mean over frames.
    #[default]
    Raw,
    /// VideoSys (PAB; NaviCache measures with the same scripts): as `Raw`, but a larger or longer reference is cut to the video, the
    /// middle and the beginning of it; over many videos, the mean of the means of every sixteen.
    VideoSys,
    /// EasyCache: PSNR of one error over the whole video; at most 100, where the script goes on to infinity. SSIM as torchmetrics had it
    /// until 1.4; later versions count the edge of the frame too, with its mirror image beyond it.
    EasyCache,
}

impl FromStr for Convention {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => Ok(Convention::Raw),
            "videosys" => Ok(Convention::VideoSys),
            "easycache" => Ok(Convention::EasyCache),
            _ => Err(Error::Convention(text.to_string())),
        }
    }
}

impl Convention {
    /// The pixels of the reference that are compared, those of frames of the video's size. What cannot be cut is left as it is.
    pub(crate) fn fit<'a>(self, reference: Frames<'a>, video: Frames) -> Cow<'a, [u8]> {
        let (wide, high) =
            (reference.width().checked_sub(video.width()), reference.height().checked_sub(video.height()));
        let (count, length) = (reference.iter().len(), video.iter().len());
        let (Convention::VideoSys, Some(wide), Some(high), true) = (self, wide, high, count >= length) else {
            return Cow::Borrowed(reference.pixels());
        };
        if wide == 0 && high == 0 {
            return Cow::Borrowed(&reference.pixels()[..video.pixels().len()]);
        }
        let (left, top) = (wide / 2, high / 2);
        let rows = |frame: &'a [u8]| frame.chunks_exact(3 * reference.width()).skip(top).take(video.height());
        let middle = |row: &'a [u8]| &row[3 * left..3 * (left + video.width())];
        Cow::Owned(reference.iter().take(length).flat_map(rows).flat_map(middle).copied().collect())
    }

    /// The scores of many videos as one; `None` of none.
    pub fn mean(self, videos: &[Scores]) -> Option<Scores> {
        let of = |score: &dyn Fn(&Scores) -> Option<f64>| {
            let values: Vec<f64> = videos.iter().filter_map(score).collect();
            match self {
                Convention::VideoSys => mean(&values.chunks(BATCH).filter_map(mean).collect::<Vec<_>>()),
                Convention::Raw | Convention::EasyCache => mean(&values),
            }
        };
        let metrics = videos.first()?.metrics.keys().map(|&key| (key, of(&|scores| scores.metrics.get(key).copied()?)));
        Some(Scores { metrics: metrics.collect(), motion_kept: of(&|scores| scores.motion_kept) })
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PSNR;

    #[test]
    fn what_videosys_cuts() {
        let pixels: Vec<u8> = (0..2 * 4 * 5 * 3).map(|i| i as u8).collect(); // two frames of 5x4
        let reference = Frames::new(&pixels, 5, 4).unwrap();
        let (small, long) = ([0; 2 * 3 * 3], [0; 3 * 3 * 2 * 3]);
        let video = Frames::new(&small, 3, 2).unwrap();
        let row = |from: usize| pixels[from..from + 9].to_vec();
        assert_eq!(*Convention::VideoSys.fit(reference, video), [row(15 + 3), row(30 + 3)].concat());
        assert_eq!(*Convention::Raw.fit(reference, video), pixels);
        let longer = Frames::new(&long, 3, 2).unwrap();
        assert_eq!(*Convention::VideoSys.fit(reference, longer), pixels, "a shorter reference cannot be cut");
    }

    #[test]
    fn means_over_videos() {
        let scores = |psnr| Scores { metrics: [(PSNR.key, Some(psnr))].into(), motion_kept: None };
        let videos: Vec<Scores> = (0..17).map(|i| scores(if i < 16 { 30.0 } else { 47.0 })).collect();
        assert_eq!(Convention::Raw.mean(&videos).and_then(|mean| mean.get(&PSNR)), Some(31.0));
        assert_eq!(Convention::VideoSys.mean(&videos).and_then(|mean| mean.get(&PSNR)), Some(38.5));
        assert_eq!(Convention::EasyCache.mean(&[]), None);
    }

    #[test]
    fn names() {
        assert_eq!("easycache".parse::<Convention>().ok(), Some(Convention::EasyCache));
        assert!("psnr".parse::<Convention>().unwrap_err().to_string().contains("raw, videosys"));
    }
}
