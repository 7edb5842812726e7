//! A frame and its reference, and what several metrics need of them.

use std::cell::OnceCell;

use crate::ssim::{Similarity, planes, similarity};

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
    similarity: OnceCell<[Similarity; 3]>,
}

impl<'a> FramePair<'a> {
    /// Two frames of one size.
    pub fn new(reference: &'a [u8], video: &'a [u8], width: usize, height: usize) -> Self {
        FramePair { width, height, reference, video, similarity: OnceCell::new() }
    }

    /// Sum of squared differences, in grey levels.
    pub fn squares(&self) -> u64 {
        self.reference.iter().zip(self.video).map(|(a, b)| (a.abs_diff(*b) as u64).pow(2)).sum()
    }

    /// How alike the channels are at full size; computed once. Frames must be as large as the window.
    pub(crate) fn similarity(&self) -> &[Similarity; 3] {
        self.similarity.get_or_init(|| {
            let (a, b) = (planes(self.reference, self.width), planes(self.video, self.width));
            std::array::from_fn(|channel| similarity(&a[channel], &b[channel]))
        })
    }
}
