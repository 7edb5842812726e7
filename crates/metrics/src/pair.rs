//! A frame and its reference, and what several metrics need of them.

use std::cell::OnceCell;

use crate::perceptual::Lpips;
use crate::window::{Plane, Similarity, planes, similarity};

/// A frame of the reference and the same of the video: 8-bit RGB, (height, width, 3).
pub struct FramePair<'a> {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Of the reference.
    pub reference: &'a [u8],
    /// Of the video.
    pub video: &'a [u8],
    /// The network of LPIPS, where there are weights for it.
    pub lpips: Option<&'a Lpips>,
    squares: OnceCell<u64>,
    channels: OnceCell<[[Plane; 3]; 2]>,
    similarity: OnceCell<[Similarity; 3]>,
}

impl<'a> FramePair<'a> {
    /// Two frames of one size, the reference's first.
    pub fn new([reference, video]: [&'a [u8]; 2], (width, height): (usize, usize), lpips: Option<&'a Lpips>) -> Self {
        let (squares, channels, similarity) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        FramePair { width, height, reference, video, lpips, squares, channels, similarity }
    }

    /// Sum of squared differences, in grey levels.
    pub fn squares(&self) -> u64 {
        let square = |(a, b): (&u8, &u8)| u64::from(u32::from(a.abs_diff(*b)).pow(2));
        *self.squares.get_or_init(|| self.reference.iter().zip(self.video).map(square).sum())
    }

    /// The channels of both.
    pub(crate) fn channels(&self) -> &[[Plane; 3]; 2] {
        self.channels.get_or_init(|| [planes(self.reference, self.width), planes(self.video, self.width)])
    }

    /// How alike the channels are at full size. Frames must be as large as the window.
    pub(crate) fn similarity(&self) -> &[Similarity; 3] {
        self.similarity.get_or_init(|| {
            let [a, b] = self.channels();
            std::array::from_fn(|channel| similarity(&a[channel], &b[channel]))
        })
    }
}
