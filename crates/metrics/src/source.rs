//! Where frames come from when videos are measured: a file, or memory.

use navicache_media::Frames;
use navicache_media::video::Reader;

use crate::Result;

/// Frames one after the other, so that a few of them are in memory at a time.
pub(crate) trait Source: Send {
    /// Width and height.
    fn size(&self) -> (usize, usize);
    /// How many there are, where it is known before the last.
    fn count(&self) -> Option<usize>;
    /// The next frame, 8-bit RGB. // (height, width, 3)
    fn next(&mut self) -> Result<Option<Vec<u8>>>;
}

impl Source for Reader {
    fn size(&self) -> (usize, usize) {
        self.stream().shown()
    }

    fn count(&self) -> Option<usize> {
        self.stream().frames
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(self.next_frame()?)
    }
}

/// Frames in memory.
pub(crate) struct Held<'a> {
    frames: Frames<'a>,
    given: usize,
}

impl<'a> Held<'a> {
    pub fn new(frames: Frames<'a>) -> Self {
        Held { frames, given: 0 }
    }
}

impl Source for Held<'_> {
    fn size(&self) -> (usize, usize) {
        (self.frames.width(), self.frames.height())
    }

    fn count(&self) -> Option<usize> {
        Some(self.frames.iter().len())
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        self.given += 1;
        Ok(self.frames.iter().nth(self.given - 1).map(<[u8]>::to_vec))
    }
}

/// The middle of a frame: a rectangle of this size with so many pixels left of it and above it.
pub(crate) fn middle(frame: &[u8], width: usize, (left, top): (usize, usize), (wide, high): (usize, usize)) -> Vec<u8> {
    let rows = frame.chunks_exact(3 * width).skip(top).take(high);
    rows.flat_map(|row| &row[3 * left..3 * (left + wide)]).copied().collect()
}
