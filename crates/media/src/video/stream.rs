//! What a stream of frames says of itself: how its numbers mean colours, and which way is up.

use crate::Error;
use crate::Result;
use std::path::Path;

/// How luma and chroma are made of red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matrix {
    /// ITU-R BT.601: standard definition, and what readers assume where nothing is said.
    #[default]
    Bt601,
    /// ITU-R BT.709: high definition.
    Bt709,
    /// ITU-R BT.2020.
    Bt2020,
    /// SMPTE 240M.
    Smpte240,
    /// FCC, 1953.
    Fcc,
}

impl Matrix {
    /// The matrix of a code of ITU-T H.273 (`matrix_coefficients` of H.264, `colr` of MP4), or the name of one that is
    /// not read.
    pub fn from_code(code: u16) -> Result<Self, String> {
        match code {
            1 => Ok(Matrix::Bt709),
            2 | 5 | 6 => Ok(Matrix::Bt601), // 2: unspecified
            4 => Ok(Matrix::Fcc),
            7 => Ok(Matrix::Smpte240),
            9 | 10 => Ok(Matrix::Bt2020),
            0 => Err("RGB in place of luma and chroma".to_string()),
            8 => Err("YCgCo colours".to_string()),
            14 => Err("ICtCp colours".to_string()),
            code => Err(format!("a colour matrix of code {code}")),
        }
    }

    /// What red and blue contribute to luma.
    pub fn red_blue(self) -> (f64, f64) {
        match self {
            Matrix::Bt601 => (0.299, 0.114),
            Matrix::Bt709 => (0.2126, 0.0722),
            Matrix::Bt2020 => (0.2627, 0.0593),
            Matrix::Smpte240 => (0.212, 0.087),
            Matrix::Fcc => (0.30, 0.11),
        }
    }
}

/// Which numbers are black and white.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Range {
    /// Luma from 16 to 235, chroma from 16 to 240.
    #[default]
    Limited,
    /// From 0 to 255.
    Full,
}

/// A turn by quarters, a mirror, or both: `[a, b, c, d]` moves a pixel at (x, y) to (ax + cy, bx + dy); each is -1, 0
/// or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation([i8; 4]);

impl Default for Orientation {
    fn default() -> Self {
        Orientation([1, 0, 0, 1])
    }
}

impl Orientation {
    /// From the first four numbers of a matrix of any scale; `None` where axes do not stay axes.
    pub fn new(matrix: [i64; 4]) -> Option<Self> {
        match matrix.map(i64::signum) {
            [0, 0, 0, 0] => Some(Self::default()),
            [a, 0, 0, d] if a != 0 && d != 0 => Some(Orientation([a as i8, 0, 0, d as i8])),
            [0, b, c, 0] if b != 0 && c != 0 => Some(Orientation([0, b as i8, c as i8, 0])),
            _ => None,
        }
    }

    /// Width and height after it.
    pub fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        if self.0[0] == 0 { (height, width) } else { (width, height) }
    }

    /// The frame as it is shown. // (height, width, 3), of the size before -> the size after
    pub fn apply(self, rgb: Vec<u8>, (width, height): (usize, usize)) -> Vec<u8> {
        if self == Self::default() {
            return rgb;
        }
        let [a, b, c, d] = self.0;
        let place = |sign: i8, at: usize, side: usize| if sign > 0 { at } else { side - 1 - at };
        let (columns, rows) = self.size((width, height));
        let mut turned = Vec::with_capacity(rgb.len());
        for row in 0..rows {
            for column in 0..columns {
                let (x, y) = match a {
                    0 => (place(b, row, width), place(c, column, height)),
                    _ => (place(a, column, width), place(d, row, height)),
                };
                turned.extend_from_slice(&rgb[(y * width + x) * 3..][..3]);
            }
        }
        turned
    }
}

/// Largest side of a frame.
const LARGEST_SIDE: usize = 16384;
/// Most pixels of a frame: 8192x8192.
const MOST_PIXELS: usize = 1 << 26;

/// How a stream's numbers mean colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Colours {
    /// How luma and chroma are made of red, green and blue.
    pub matrix: Matrix,
    /// Which numbers are black and white.
    pub range: Range,
}

/// What a stream says of itself; what it leaves out is as ffmpeg assumes it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stream {
    /// Width of a frame in pixels, as it is stored.
    pub width: usize,
    /// Height of a frame in pixels, as it is stored.
    pub height: usize,
    /// Frames a second, where the file has it.
    pub fps: Option<f64>,
    /// Number of frames, where it is known before the last.
    pub frames: Option<usize>,
    /// How numbers mean colours, where they are not RGB.
    pub colours: Colours,
    /// How frames are turned before they are shown.
    pub orientation: Orientation,
}

impl Stream {
    /// Width and height of a frame as it is shown.
    pub fn shown(&self) -> (usize, usize) {
        self.orientation.size((self.width, self.height))
    }

    /// Refuses sizes that no video has, before memory is taken for them.
    pub(super) fn check_size(&self, path: &Path) -> Result<()> {
        let (width, height) = (self.width, self.height);
        let sides = 1..=LARGEST_SIDE;
        if sides.contains(&width) && sides.contains(&height) && width * height <= MOST_PIXELS {
            return Ok(());
        }
        let reason =
            format!("expected 1 to {LARGEST_SIDE} pixels each way and {MOST_PIXELS} in all, found {width}x{height}");
        Err(Error::file(path, reason))
    }
}
