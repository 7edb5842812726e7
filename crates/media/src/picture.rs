//! A picture that a video starts from: read, turned upright, and resized as the reference does.

use std::f64::consts::PI;
use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{Error, Result, WholeFile, read_file};

/// The largest that is read: more than phones take; what is made of it has a million pixels.
const LARGEST: Largest = Largest { pixels: 1 << 27, memory: 1 << 30 };
/// Most bytes that a decoder may take before it comes to pixels: a colour profile of a megabyte may unpack to a
/// gigabyte.
const PROFILE_MAX: u64 = 64 << 20;

/// How large a picture may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    /// Pixels in all.
    pub pixels: u64,
    /// Bytes when it is unpacked, and bytes that its decoder may take.
    pub memory: u64,
}

impl Largest {
    /// A decoder that takes no more than that. Nothing is unpacked but a colour profile.
    ///
    /// # Errors
    /// What is wrong with the picture, in words.
    pub fn decoder<'a>(&self, reader: ImageReader<Cursor<&'a [u8]>>) -> Result<impl ImageDecoder + 'a, String> {
        let limited = |bytes| {
            let mut limits = Limits::default();
            limits.max_alloc = Some(bytes);
            limits
        };
        let mut reader = reader;
        reader.limits(limited(PROFILE_MAX));
        let mut decoder = reader.into_decoder().map_err(|e| e.to_string())?;
        let ((width, height), most) = (decoder.dimensions(), self.pixels);
        if u64::from(width) * u64::from(height) > most || decoder.total_bytes() > self.memory {
            return Err(format!("{width}x{height} pixels, expected at most {most} in all; make it smaller first"));
        }
        decoder.set_limits(limited(self.memory)).map_err(|e| e.to_string())?;
        Ok(decoder)
    }
}

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
        let bytes = read_file(path)?;
        if is_cut_jpeg(&bytes) {
            return Err(Error::file(path, "the picture is cut short: its end is missing"));
        }
        let reader = ImageReader::new(Cursor::new(&bytes[..])).with_guessed_format().map_err(Error::io(path))?;
        let mut decoder = LARGEST.decoder(reader).map_err(|reason| Error::file(path, reason))?;
        let orientation = decoder.orientation().map_err(wrong)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
        image.apply_orientation(orientation);
        let image = image.to_rgb8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        Ok(Picture { width, height, rgb: image.into_raw() })
    }

    /// The bytes of a PNG file of it.
    pub fn png(&self) -> Vec<u8> {
        self.encoded(ImageFormat::Png)
    }

    /// Writes a file by its ending: .jpg, .jpeg or .png. One that is there is replaced whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        WholeFile::create(path)?.finish_with(&self.encoded(Self::format(path)?))
    }

    /// Whether [`save`](Self::save) knows the format of a file.
    pub fn check_destination(path: &Path) -> Result<()> {
        Self::format(path).map(drop)
    }

    fn format(path: &Path) -> Result<ImageFormat> {
        let format = ImageFormat::from_path(path).ok().filter(|f| [ImageFormat::Jpeg, ImageFormat::Png].contains(f));
        format.ok_or_else(|| Error::file(path, "expected the name of a picture that ends in .jpg or .png"))
    }

    fn encoded(&self, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        // It goes wrong where the numbers of pixels and bytes differ, and then there is no picture.
        let (width, height) = (self.width as u32, self.height as u32);
        let _ = image::write_buffer_with_format(&mut bytes, &self.rgb, width, height, ExtendedColorType::Rgb8, format);
        bytes.into_inner()
    }

    /// The size nearest to `area` pixels with this picture's aspect ratio, in whole multiples.
    pub fn size_for(&self, area: usize, (across, down): (usize, usize)) -> (usize, usize) {
        let aspect = self.height as f64 / self.width as f64;
        let fit = |side: f64, multiple: usize| ((side.round() as usize) / multiple * multiple).max(multiple);
        (fit((area as f64 / aspect).sqrt(), across), fit((area as f64 * aspect).sqrt(), down))
    }

    /// Another size, with Pillow's arithmetic: 22-bit fixed-point weights, rows first, rounded to 8 bits between the
    /// passes.
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

/// Whether a JPEG ends before its end marker (ITU-T T.81, annex B). Decoders fill what is missing with grey.
fn is_cut_jpeg(bytes: &[u8]) -> bool {
    const START: [u8; 2] = [0xff, 0xd8];
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;
    let Some(mut rest) = bytes.strip_prefix(&START) else { return false };
    loop {
        let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)) else {
            return true;
        };
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        if marker == END {
            return false;
        }
        // The restart markers and a few others stand alone; the others say how long they are.
        if !matches!(marker, 0x01 | 0xd0..=0xd7) {
            let Some((length, _)) = rest.split_first_chunk::<2>() else { return true };
            let Some(after) = rest.get(usize::from(u16::from_be_bytes(*length))..) else { return true };
            rest = after;
        }
        // Coded data goes on up to the next marker that is none of its own.
        if marker == SCAN || matches!(marker, 0xd0..=0xd7) {
            let own = |pair: &[u8]| pair[0] != 0xff || matches!(pair[1], 0 | 0xff | 0xd0..=0xd7);
            let Some(end) = rest.windows(2).position(|pair| !own(pair)) else { return true };
            rest = &rest[end..];
        }
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
    fn half_a_picture_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let image = image::RgbImage::from_fn(60, 40, |x, y| image::Rgb([(x * 4) as u8, (y * 6) as u8, (x * y) as u8]));
        for name in ["a.jpg", "a.png", "a.webp"] {
            let path = folder.path().join(name);
            image.save(&path).unwrap();
            let whole = std::fs::read(&path).unwrap();
            assert_eq!(Picture::open(&path).unwrap().width, 60, "{name}");
            for part in [2, 3, 4] {
                std::fs::write(&path, &whole[..whole.len() * (part - 1) / part]).unwrap();
                assert!(Picture::open(&path).is_err(), "{name} without its last part of {part}");
            }
            std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
            assert_eq!(Picture::open(&path).unwrap().width, 60, "{name} with something after it");
        }
    }

    #[test]
    fn a_picture_that_is_too_large_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.png");
        let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 16384, 16384);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
        assert!(Picture::open(&path).unwrap_err().to_string().contains("16384x16384 pixels, expected at most"));
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
