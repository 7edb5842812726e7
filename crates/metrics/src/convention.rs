//! What papers mean when they report PSNR, SSIM and LPIPS of a video. Numbers of different conventions cannot be
//! compared.

use serde::Serialize;

use crate::{Error, Scores};

/// Videos that VideoSys averages before it averages those averages.
const BATCH: usize = 16;

/// Whose definition a number follows. SSIM and LPIPS are means over frames in all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, strum::EnumString, strum::VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = Error, parse_err_fn = unknown)]
pub enum Convention {
    /// Frames as they are, the same number and size in both videos; PSNR is the mean over frames.
    #[default]
    Raw,
    /// VideoSys (PAB; NaviCache measures with the same scripts): as `Raw`, but a larger or longer reference is cut to
    /// the video, the middle and the beginning of it; over many videos, the mean of the means of every sixteen.
    VideoSys,
    /// EasyCache: PSNR of one error over the whole video; at most 100, where the script goes on to infinity. SSIM as
    /// torchmetrics had it until 1.4; later versions count the edge of the frame too, with its mirror image beyond it.
    EasyCache,
}

fn unknown(found: &str) -> Error {
    Error::Convention { found: found.to_string(), known: <Convention as strum::VariantNames>::VARIANTS.join(", ") }
}

impl Convention {
    /// Where frames of a reference of this size are cut for a video of that size: pixels left and above. `None`: they
    /// are not.
    pub(crate) fn cut(self, reference: (usize, usize), video: (usize, usize)) -> Option<(usize, usize)> {
        let wide = reference.0.checked_sub(video.0)?;
        let high = reference.1.checked_sub(video.1)?;
        (self == Convention::VideoSys && wide + high > 0).then_some((wide / 2, high / 2))
    }

    /// Whether a reference that is longer than the video is cut to its beginning.
    pub(crate) fn takes_longer_references(self) -> bool {
        self == Convention::VideoSys
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
