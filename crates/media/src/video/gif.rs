//! Animated GIF with a palette for every frame.

use std::path::{Path, PathBuf};

use gif::{Encoder, EncodingError, Frame, Repeat};

use super::format::{Format, Purpose, Sink, check_file};
use crate::{Error, Rate, Result, Spec, WholeFile};

pub(super) static FORMAT: Format = Format {
    ending: Some("gif"),
    about: "animated GIF: 256 colours a frame",
    purpose: Purpose::Watching,
    check: check_file,
    fits,
    fastest: Some(FASTEST),
    create: |path, spec| Ok(Box::new(Gif::create(path, spec)?)),
    open: Err("a GIF has too few colours to be measured"),
};

/// A frame is shown for hundredths of a second, two at least: browsers take one for none, and wait for ten.
const FASTEST: Rate = Rate::whole(50);
const SHORTEST: u16 = 2;

/// Samples that the palette is fitted to: 1 is every pixel, 30 the fewest.
const PALETTE_SPEED: i32 = 5;

pub(super) struct Gif {
    path: PathBuf,
    encoder: Encoder<WholeFile>,
    spec: Spec,
    next: usize,
}

impl Gif {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        fits(path, spec)?;
        let (width, height) = (spec.width as u16, spec.height as u16);
        let wrong = error(path);
        let mut encoder = Encoder::new(WholeFile::create(path)?, width, height, &[]).map_err(&wrong)?;
        encoder.set_repeat(Repeat::Infinite).map_err(&wrong)?;
        Ok(Gif { path: path.to_path_buf(), encoder, spec: *spec, next: 0 })
    }

    /// Hundredths of a second, rounded so that the video as a whole keeps its length, up to the rate that is shown.
    fn delay(&self) -> u16 {
        let until = |frame: usize| (frame as f64 * 100.0 / self.spec.fps.number()).round();
        ((until(self.next + 1) - until(self.next)) as u16).max(SHORTEST)
    }
}

fn fits(path: &Path, spec: &Spec) -> Result<()> {
    let largest = usize::from(u16::MAX);
    if spec.width.max(spec.height) <= largest {
        return Ok(());
    }
    let reason = format!("{}x{} is more than a GIF can be, {largest}x{largest}", spec.width, spec.height);
    Err(Error::file(path, reason))
}

fn error(path: &Path) -> impl Fn(EncodingError) -> Error {
    let path = path.to_path_buf();
    move |e| match e {
        EncodingError::Io(source) => Error::io(&path)(source),
        other => Error::file(&path, other.to_string()),
    }
}

impl Sink for Gif {
    fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let mut frame = Frame::from_rgb_speed(self.spec.width as u16, self.spec.height as u16, rgb, PALETTE_SPEED);
        frame.delay = self.delay();
        self.next += 1;
        self.encoder.write_frame(&frame).map_err(error(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.encoder.into_inner().map_err(error(&self.path))?.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::frame;
    use super::*;

    #[test]
    fn a_frame_is_shown_long_enough_for_players() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        for (fps, expected) in [("60", [2, 2, 2]), ("1000", [2, 2, 2]), ("40", [3, 2, 3]), ("8", [13, 12, 13])] {
            let spec = Spec { width: 32, height: 16, fps: fps.parse().unwrap(), frames: 3 };
            let mut gif: Box<dyn Sink> = Box::new(Gif::create(&path, &spec).unwrap());
            (0..spec.frames).for_each(|index| gif.push(&frame(&spec, index)).unwrap());
            gif.finish().unwrap();
            let mut read = gif::DecodeOptions::new().read_info(std::fs::File::open(&path).unwrap()).unwrap();
            let delays: Vec<u16> = std::iter::from_fn(|| Some(read.read_next_frame().unwrap()?.delay)).collect();
            assert_eq!(delays, expected, "{fps} frames a second");
        }
    }
}
