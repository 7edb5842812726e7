//! A clip in memory.

use crate::{Error, Rate, Result};

/// What a video file has to know before its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Frames a second.
    pub fps: Rate,
    /// Number of frames.
    pub frames: usize,
}

/// A clip as it was read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Frames a second, where the format has it.
    pub fps: Option<f64>,
    /// 8-bit RGB. // (frames, height, width, 3)
    pub frames: Vec<u8>,
}

impl Clip {
    /// A view of the frames; an error if there are none.
    pub fn as_frames(&self) -> Result<Frames<'_>> {
        Frames::new(&self.frames, self.width, self.height)
    }
}

/// A view of frames: 8-bit RGB, (frames, height, width, 3).
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
            return Err(Error::Frames { found: pixels.len(), width, height });
        }
        Ok(Frames { pixels, width, height })
    }

    /// All of them.
    pub fn pixels(self) -> &'a [u8] {
        self.pixels
    }

    /// Width in pixels.
    pub fn width(self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(self) -> usize {
        self.height
    }

    /// One by one. // (height, width, 3)
    pub fn iter(self) -> std::slice::ChunksExact<'a, u8> {
        self.pixels.chunks_exact(self.width * self.height * 3)
    }

    /// In words.
    pub fn shape(self) -> String {
        format!("{} frames of {}x{}", self.iter().len(), self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_frames_only() {
        assert!(Frames::new(&[0; 10], 2, 2).unwrap_err().to_string().contains("12 bytes each"));
        assert!(Frames::new(&[], 2, 2).is_err());
        assert_eq!(Frames::new(&[0; 24], 2, 2).unwrap().shape(), "2 frames of 2x2");
    }
}
