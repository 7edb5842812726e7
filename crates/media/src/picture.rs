//! A picture that a video starts from: read, turned upright, and resized as the reference does.

use std::f64::consts::PI;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageReader};

use crate::{Error, Result};

/// Most pixels that are read; more is a mistake or an attack.
const PIXELS_MAX: u64 = 1 << 28;

/// 8-bit RGB. // (height, width, 3)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Row by row.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Reads PNG, JPEG or WebP, and turns it as its EXIF data says. Transparency is dropped.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |e: image::ImageError| Error::file(path, e.to_string());
        let reader =
            ImageReader::open(path).map_err(Error::io(path))?.with_guessed_format().map_err(Error::io(path))?;
        let mut decoder = reader.into_decoder().map_err(wrong)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > PIXELS_MAX {
            return Err(Error::file(path, format!("{width}x{height} pixels, expected at most {PIXELS_MAX}")));
        }
        let orientation = decoder.orientation().map_err(wrong)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
        image.apply_orientation(orientation);
        let image = image.to_rgb8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        Ok(Picture { width, height, rgb: image.into_raw() })
    }

    /// The size nearest to `area` pixels with this picture's aspect ratio, in whole multiples.
    pub fn size_for(&self, area: usize, (across, down): (usize, usize)) -> (usize, usize) {
        let aspect = self.height as f64 / self.width as f64;
        let fit = |side: f64, multiple: usize| ((side.round() as usize) / multiple * multiple).max(multiple);
        (fit((area as f64 / aspect).sqrt(), across), fit((area as f64 * aspect).sqrt(), down))
    }

    /// Another size, with Pillow's arithmetic: 22-bit fixed-point weights, rows first, rounded to 8 bits between the passes.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Self {
        let mut picture = self.clone();
        if width != picture.width {
            picture = picture.resampled_rows(width, filter);
        }
        if height != picture.height {
            picture = picture.transposed().resampled_rows(height, filter).transposed();
        }
        picture
    }

    /// The square in the middle, after the shorter side was brought to its size.
    pub fn middle_square(&self, side: usize, filter: Filter) -> Self {
        let scaled = |other: usize, shorter: usize| side * other / shorter;
        let (width, height) = match self.width <= self.height {
            true => (side, scaled(self.height, self.width)),
            false => (scaled(self.width, self.height), side),
        };
        let picture = self.resized(width, height, filter);
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        let rows = picture.rgb.chunks_exact(width * 3).skip(top).take(side);
        let rgb = rows.flat_map(|row| &row[left * 3..(left + side) * 3]).copied().collect();
        Picture { width: side, height: side, rgb }
    }

    fn resampled_rows(&self, width: usize, filter: Filter) -> Self {
        let taps = taps(self.width, width, filter);
        let mut rgb = Vec::with_capacity(self.height * width * 3);
        for row in self.rgb.chunks_exact(self.width * 3) {
            for (first, weights) in &taps {
                for color in 0..3 {
                    let sum: i64 =
                        weights.iter().enumerate().map(|(i, w)| i64::from(row[(first + i) * 3 + color]) * w).sum();
                    rgb.push(((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8);
                }
            }
        }
        Picture { width, height: self.height, rgb }
    }

    fn transposed(&self) -> Self {
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for x in 0..self.width {
            for y in 0..self.height {
                rgb.extend_from_slice(&self.rgb[(y * self.width + x) * 3..][..3]);
            }
        }
        Picture { width: self.height, height: self.width, rgb }
    }
}

/// Bits behind the point of a weight.
const PRECISION: u32 = 22;

/// How pixels are weighted when a picture is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Catmull and Rom's cubic.
    Bicubic,
    /// A sinc, windowed by its main lobe stretched to three.
    Lanczos,
}

impl Filter {
    /// Half its width, in pixels of the coarser side.
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        let d = x.abs();
        match self {
            Filter::Bicubic if d < 1.0 => (1.5 * d - 2.5) * d * d + 1.0,
            Filter::Bicubic if d < 2.0 => ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0,
            Filter::Lanczos if d < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// For each output pixel, the first input pixel and the weights from there.
fn taps(inputs: usize, outputs: usize, filter: Filter) -> Vec<(usize, Vec<i64>)> {
    let scale = inputs as f64 / outputs as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..outputs)
        .map(|output| {
            let center = (output as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(inputs);
            let weights: Vec<f64> = (first..end).map(|i| filter.weight((i as f64 - center + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| (w / sum * f64::from(1u32 << PRECISION)).round() as i64;
            (first, weights.iter().map(fixed).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Picture {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/golden/tiny/expected.safetensors");
        let file = std::fs::read(path).unwrap();
        let tensor = safetensors::SafeTensors::deserialize(&file).unwrap().tensor(name).unwrap();
        let [height, width, 3] = *tensor.shape() else { panic!("{name}: {:?}", tensor.shape()) };
        Picture { width, height, rgb: tensor.data().to_vec() }
    }

    #[test]
    fn resizing_is_pillows() {
        let picture = golden("picture");
        for (name, width, height) in [("larger", 50, 35), ("smaller", 13, 22)] {
            for (filter, of) in [("lanczos", Filter::Lanczos), ("bicubic", Filter::Bicubic)] {
                let expected = golden(&format!("picture.{filter}.{name}"));
                assert_eq!(picture.resized(width, height, of), expected, "{filter} {name}");
            }
        }
        assert_eq!(picture.resized(37, 29, Filter::Lanczos), picture);
    }

    #[test]
    fn sizes_keep_the_aspect_ratio() {
        let picture = Picture { width: 4000, height: 3000, rgb: vec![] };
        let (width, height) = picture.size_for(832 * 480, (16, 16));
        assert_eq!((width, height), (720, 544));
        let strip = Picture { width: 10000, height: 1, rgb: vec![] };
        assert_eq!(strip.size_for(832 * 480, (16, 16)).1, 16);
    }

    #[test]
    fn the_middle_square() {
        let rgb = (0..8 * 4).flat_map(|i| [i as u8 % 8, 0, 0]).collect();
        let square = Picture { width: 8, height: 4, rgb }.middle_square(4, Filter::Bicubic);
        assert_eq!((square.width, square.height), (4, 4));
        assert_eq!(square.rgb.iter().step_by(3).take(4).copied().collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"hello", &[0xff, 0xd8, 0xff, 0xe0, 0, 16]] {
            std::fs::write(&path, bytes).unwrap();
            let message = Picture::open(&path).unwrap_err().to_string();
            assert!(message.contains("x.png"), "{message}");
        }
        assert!(Picture::open(&folder.path().join("none.png")).is_err());
    }
}
