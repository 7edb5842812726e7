//! RGB to Y'CbCr and back, for any matrix and range (ITU-R BT.601, BT.709, BT.2020).

use super::stream::{Colours, Range};

/// One frame in three planes of full size.
pub(super) struct Planes {
    pub y: Vec<u8>,
    pub cb: Vec<u8>,
    pub cr: Vec<u8>,
}

/// Zero and extent of luma, extent of chroma, in grey levels.
fn extents(range: Range) -> (f64, f64, f64) {
    match range {
        Range::Limited => (16.0, 219.0, 224.0),
        Range::Full => (0.0, 255.0, 255.0),
    }
}

impl Planes {
    /// From 8-bit RGB, (height, width, 3).
    pub fn from_rgb(rgb: &[u8], colours: Colours) -> Self {
        let n = rgb.len() / 3;
        let mut planes = Planes { y: Vec::with_capacity(n), cb: Vec::with_capacity(n), cr: Vec::with_capacity(n) };
        let (red, blue) = colours.matrix.red_blue();
        let (zero, luma, chroma) = extents(colours.range);
        let [red, blue, zero, luma, chroma] = [red, blue, zero, luma, chroma].map(|v| v as f32);
        for pixel in rgb.chunks_exact(3) {
            let [r, g, b] = [0, 1, 2].map(|i| pixel[i] as f32 / 255.0);
            let y = red * r + (1.0 - red - blue) * g + blue * b;
            planes.y.push((zero + luma * y).round() as u8);
            planes.cb.push((128.0 + chroma * (b - y) / (2.0 - 2.0 * blue)).round() as u8);
            planes.cr.push((128.0 + chroma * (r - y) / (2.0 - 2.0 * red)).round() as u8);
        }
        planes
    }
}

/// A chroma plane at half the width and height, each sample the mean of four.
pub(super) fn halved(plane: &[u8], width: usize) -> Vec<u8> {
    let rows: Vec<&[u8]> = plane.chunks_exact(width).collect();
    rows.chunks_exact(2)
        .flat_map(|pair| {
            let sums = pair[0].chunks_exact(2).zip(pair[1].chunks_exact(2));
            sums.map(|(a, b)| ((a[0] as u16 + a[1] as u16 + b[0] as u16 + b[1] as u16 + 2) / 4) as u8)
        })
        .collect()
}

/// A plane of samples, whose rows may be longer than what is shown of them.
#[derive(Clone, Copy)]
pub(super) struct Plane<'a> {
    pub samples: &'a [u8],
    pub stride: usize,
}

/// Planes of a frame; chroma may have fewer samples than luma.
#[derive(Clone, Copy)]
pub(super) struct Picture<'a> {
    pub width: usize,
    pub height: usize,
    pub y: Plane<'a>,
    /// Blue and red difference; `None`: grey.
    pub chroma: Option<[Plane<'a>; 2]>,
    /// Pixels that share a sample of chroma, across and down.
    pub shared: (usize, usize),
}

/// How products are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    /// Once, of their sum.
    Exact,
    /// Each down, with factors of 13 bits, as ffmpeg's conversion of 4:2:0 and 4:2:2 does where it has vectors
    /// (libswscale, x86/yuv_2_rgb.asm), through which OpenCV, imageio and PyAV see such videos: up to three grey levels
    /// below the exact value.
    AsFfmpeg,
}

/// Y'CbCr to RGB by tables in fixed point. A pixel takes the sample of chroma that it shares, as ffmpeg's own fast
/// conversion does.
pub(super) struct ToRgb {
    luma: [i32; 256],
    /// What red difference adds to red and to green, and blue difference to blue and to green.
    red: [(i32, i32); 256],
    blue: [(i32, i32); 256],
}

/// Bits behind the point.
const POINT: u32 = 16;

impl ToRgb {
    pub fn new(colours: Colours, rounding: Rounding) -> Self {
        let (red, blue) = colours.matrix.red_blue();
        let green = 1.0 - red - blue;
        let (zero, luma, chroma) = extents(colours.range);
        let table = |zero: i32, factor: f64| -> [i32; 256] {
            std::array::from_fn(|i| {
                let from_zero = i as i32 - zero;
                match rounding {
                    Rounding::Exact => (f64::from(from_zero) * factor * f64::from(1 << POINT)).round() as i32,
                    Rounding::AsFfmpeg => ((8 * from_zero * (factor * 8192.0).round() as i32) >> 16) << POINT,
                }
            })
        };
        let pairs = |own: f64, green: f64| -> [(i32, i32); 256] {
            let (own, green) = (table(128, own * 255.0 / chroma), table(128, green * 255.0 / chroma));
            std::array::from_fn(|i| (own[i], green[i]))
        };
        let half = if rounding == Rounding::Exact { 1 << (POINT - 1) } else { 0 };
        let (r, b) = (2.0 - 2.0 * red, 2.0 - 2.0 * blue);
        ToRgb {
            luma: table(zero as i32, 255.0 / luma).map(|value| value + half),
            red: pairs(r, -red * r / green),
            blue: pairs(b, -blue * b / green),
        }
    }

    /// The frame as 8-bit RGB. // (height, width, 3)
    pub fn frame(&self, picture: &Picture) -> Vec<u8> {
        let Picture { width, height, y, chroma, shared: (across, down) } = *picture;
        let mut rgb = vec![0; width * height * 3];
        for (row, pixels) in rgb.chunks_exact_mut(width * 3).enumerate() {
            let luma = &y.samples[row * y.stride..][..width];
            let Some([cb, cr]) = chroma else {
                for (pixel, &y) in pixels.chunks_exact_mut(3).zip(luma) {
                    pixel.fill(byte(self.luma[y as usize]));
                }
                continue;
            };
            let wide = width.div_ceil(across);
            let [cb, cr] = [cb, cr].map(|plane| &plane.samples[row / down * plane.stride..][..wide]);
            let groups = pixels.chunks_mut(3 * across).zip(luma.chunks(across)).zip(cb.iter().zip(cr));
            for ((pixels, luma), (&cb, &cr)) in groups {
                let ((r, red_green), (b, blue_green)) = (self.red[cr as usize], self.blue[cb as usize]);
                for (pixel, &y) in pixels.chunks_exact_mut(3).zip(luma) {
                    let y = self.luma[y as usize];
                    pixel.copy_from_slice(&[byte(y + r), byte(y + red_green + blue_green), byte(y + b)]);
                }
            }
        }
        rgb
    }
}

fn byte(fixed: i32) -> u8 {
    (fixed >> POINT).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::super::stream::Matrix;
    use super::*;

    #[test]
    fn colours_of_the_standards() {
        let of = |matrix, range| Colours { matrix, range };
        let planes = |rgb: [u8; 3], colours| {
            let planes = Planes::from_rgb(&rgb, colours);
            [planes.y[0], planes.cb[0], planes.cr[0]]
        };
        let bt709 = of(Matrix::Bt709, Range::Limited);
        assert_eq!(planes([0, 0, 0], bt709), [16, 128, 128]);
        assert_eq!(planes([255, 255, 255], bt709), [235, 128, 128]);
        assert_eq!(planes([255, 0, 0], bt709), [63, 102, 240]);
        assert_eq!(planes([0, 0, 255], bt709), [32, 240, 118]);
        assert_eq!(planes([255, 0, 0], of(Matrix::Bt601, Range::Limited)), [81, 90, 240]);
        assert_eq!(planes([255, 0, 0], of(Matrix::Bt601, Range::Full)), [76, 85, 255]);
        for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020, Matrix::Smpte240, Matrix::Fcc] {
            for range in [Range::Limited, Range::Full] {
                for rgb in [[0, 0, 0], [255, 255, 255], [255, 0, 0], [12, 200, 99]] {
                    let samples = planes(rgb, of(matrix, range));
                    let plane = |i: usize| Plane { samples: &samples[i..=i], stride: 1 };
                    let picture = Picture {
                        width: 1,
                        height: 1,
                        y: plane(0),
                        chroma: Some([plane(1), plane(2)]),
                        shared: (1, 1),
                    };
                    for (rounding, most) in [(Rounding::Exact, 2), (Rounding::AsFfmpeg, 3)] {
                        let back = ToRgb::new(of(matrix, range), rounding).frame(&picture);
                        let close = back.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= most);
                        assert!(close, "{rgb:?} came back as {back:?}");
                    }
                }
            }
        }
        assert_eq!(halved(&[1, 2, 10, 10, 3, 6, 10, 14], 4), [3, 11]);
    }
}
