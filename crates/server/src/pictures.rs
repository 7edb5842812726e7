//! Pictures in, which may mean harm, and pictures of a video: a thumbnail, a sheet of frames.

use std::io::{self, Cursor};

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{ImageFormat, ImageReader, RgbImage};
use navicache_media::Largest;

/// The largest picture that is taken.
const LARGEST: Largest = Largest { pixels: 1 << 25, memory: 128 << 20 };

/// Looks at a picture before anything of it is unpacked. The content decides what it is, never a name.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    if !reader.format().is_some_and(|format| known.contains(&format)) {
        return Err("expected a PNG, JPEG or WebP picture".to_string());
    }
    LARGEST.decoder(reader).map(drop)
}

/// Longest side of a thumbnail.
const THUMBNAIL: usize = 320;
/// Longest side of a frame in a sheet, and how many there are in a row and a column.
const CELL: usize = 160;
const CELLS: usize = 4;
const QUALITY: u8 = 80;

/// Frames of a video. // (frames, height, width, 3)
pub struct Film<'a> {
    pub width: usize,
    pub height: usize,
    pub rgb: &'a [u8],
}

impl Film<'_> {
    fn frames(&self) -> usize {
        self.rgb.len() / (self.width * self.height * 3).max(1)
    }

    /// A frame, with its longest side at most so long.
    fn frame(&self, index: usize, longest: usize) -> io::Result<RgbImage> {
        let bytes = self.width * self.height * 3;
        let rgb = self.rgb.get(index * bytes..(index + 1) * bytes).unwrap_or_default().to_vec();
        let frame = RgbImage::from_raw(self.width as u32, self.height as u32, rgb)
            .ok_or_else(|| io::Error::other("a video without frames"))?;
        let [width, height] = fitted(self.width, self.height, longest);
        Ok(if width == frame.width() { frame } else { resize(&frame, width, height, FilterType::Triangle) })
    }

    /// The first frame, as JPEG.
    pub fn jpeg(&self) -> io::Result<Vec<u8>> {
        jpeg(&self.frame(0, usize::MAX)?)
    }

    /// The frame in the middle, as WebP.
    pub fn thumbnail(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        let frame = self.frame(self.frames() / 2, THUMBNAIL)?;
        frame.write_to(&mut bytes, ImageFormat::WebP).map_err(io::Error::other)?;
        Ok(bytes.into_inner())
    }

    /// Frames at even distances, row by row, as JPEG.
    pub fn spritesheet(&self) -> io::Result<Vec<u8>> {
        let frames = self.frames();
        let cells = frames.clamp(1, CELLS * CELLS);
        let columns = cells.min(CELLS);
        let rows = cells.div_ceil(columns);
        let [width, height] = fitted(self.width, self.height, CELL);
        let mut sheet = RgbImage::new(width * columns as u32, height * rows as u32);
        for cell in 0..cells {
            let frame = self.frame(cell * frames / cells, CELL)?;
            let (column, row) = ((cell % columns) as u32, (cell / columns) as u32);
            image::imageops::replace(&mut sheet, &frame, i64::from(column * width), i64::from(row * height));
        }
        jpeg(&sheet)
    }
}

fn jpeg(picture: &RgbImage) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY)).map_err(io::Error::other)?;
    Ok(bytes)
}

fn fitted(width: usize, height: usize, longest: usize) -> [u32; 2] {
    let side = width.max(height).max(1);
    [width, height].map(|pixels| if side <= longest { pixels } else { (pixels * longest / side).max(1) } as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_a_video() {
        let rgb: Vec<u8> = (0..20u8).flat_map(|frame| [frame * 10; 400 * 200 * 3]).collect();
        let film = Film { width: 400, height: 200, rgb: &rgb };
        let thumbnail = image::load_from_memory(&film.thumbnail().unwrap()).unwrap().to_rgb8();
        assert_eq!((thumbnail.dimensions(), thumbnail.get_pixel(5, 5).0), ((320, 160), [100; 3]));
        let sheet = image::load_from_memory(&film.spritesheet().unwrap()).unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), (640, 320));
        assert!(sheet.get_pixel(639, 319).0[0].abs_diff(180) < 3, "the last of sixteen");
        let one = Film { width: 8, height: 8, rgb: &[7; 192] };
        assert_eq!(image::load_from_memory(&one.spritesheet().unwrap()).unwrap().width(), 8);
    }

    #[test]
    fn what_is_no_picture_or_too_large_is_refused() {
        let mut bomb = Vec::new();
        let encoder = png::Encoder::new(&mut bomb, 100_000, 100_000);
        encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, b"").unwrap();
        for (bytes, part) in [
            (&b""[..], "expected a PNG"),
            (b"<html><script>1</script>", "expected a PNG"),
            (b"GIF89a\x01\x00\x01\x00", "expected a PNG"),
            (&bomb, "100000x100000 pixels"),
        ] {
            let reason = check(bytes).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
    }
}
