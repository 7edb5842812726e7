//! What a video format is.

use std::path::Path;

use super::stream::Stream;
use crate::{Rate, Result, Spec, WholeFile};

/// What files of a format are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// People look at them.
    Watching,
    /// Programs read them: pixels are what the model made.
    Data,
}

/// Opens a file for reading.
pub(super) type Open = fn(&Path) -> Result<Box<dyn Source>>;

/// A video format: a row of the table `FORMATS`.
pub struct Format {
    /// How names of its files end, without the point; `None`: a folder, its name has no ending.
    pub ending: Option<&'static str>,
    /// What it is, in a few words.
    pub about: &'static str,
    /// What its files are for.
    pub purpose: Purpose,
    /// Finds out whether a file could be written.
    pub(super) check: fn(&Path) -> Result<()>,
    /// Refuses sizes and rates that the format cannot hold.
    pub(super) fits: fn(&Path, &Spec) -> Result<()>,
    /// Frames a second that players show at most.
    pub(super) fastest: Option<Rate>,
    pub(super) create: fn(&Path, &Spec) -> Result<Box<dyn Sink>>,
    /// Opens a file to be read; or why none is read.
    pub(super) open: Result<Open, &'static str>,
}

impl Format {
    /// Whether its files are read too.
    pub fn is_read(&self) -> bool {
        self.open.is_ok()
    }
}

/// What a format does to be written.
pub trait Sink {
    /// Takes the next frame: 8-bit RGB, (height, width, 3).
    fn push(&mut self, rgb: &[u8]) -> Result<()>;
    /// Completes the file and gives it its name.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What a format does to be read.
pub trait Source: Send {
    /// What it says of itself.
    fn stream(&self) -> &Stream;
    /// The next frame as it is shown, 8-bit RGB, (height, width, 3); `None` after the last.
    fn next(&mut self) -> Result<Option<Vec<u8>>>;
}

/// What helps where a video is of a kind that is not read.
pub(super) const CONVERT: &str = "make PNG files of it: mkdir frames; ffmpeg -i FILE frames/%d.png";

/// For formats that hold any size.
pub(super) fn any_fits(_: &Path, _: &Spec) -> Result<()> {
    Ok(())
}

/// Whether a file could be written.
pub(super) fn check_file(path: &Path) -> Result<()> {
    WholeFile::create(path).map(drop)
}
