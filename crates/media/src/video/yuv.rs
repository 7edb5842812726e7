//! RGB to Y'CbCr and back, ITU-R BT.709, limited range.

/// One frame in three planes of full size.
pub(super) struct Planes {
    pub y: Vec<u8>,
    pub cb: Vec<u8>,
    pub cr: Vec<u8>,
}

impl Planes {
    /// From 8-bit RGB, (height, width, 3).
    pub fn from_rgb(rgb: &[u8], width: usize, height: usize) -> Self {
        let n = width * height;
        let mut planes = Planes { y: Vec::with_capacity(n), cb: Vec::with_capacity(n), cr: Vec::with_capacity(n) };
        for pixel in rgb.chunks_exact(3) {
            let [r, g, b] = [0, 1, 2].map(|i| pixel[i] as f32 / 255.0);
            let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
            planes.y.push((16.0 + 219.0 * y).round() as u8);
            planes.cb.push((128.0 + 224.0 * (b - y) / 1.8556).round() as u8);
            planes.cr.push((128.0 + 224.0 * (r - y) / 1.5748).round() as u8);
        }
        planes
    }
}

/// 8-bit RGB of one pixel.
pub(super) fn to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let y = (y as f32 - 16.0) / 219.0;
    let (cb, cr) = ((cb as f32 - 128.0) / 224.0, (cr as f32 - 128.0) / 224.0);
    let (r, b) = (y + 1.5748 * cr, y + 1.8556 * cb);
    let g = (y - 0.2126 * r - 0.0722 * b) / 0.7152;
    [r, g, b].map(|v| (255.0 * v).round() as u8)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_of_the_standard() {
        let convert = |rgb: [u8; 3]| {
            let planes = Planes::from_rgb(&rgb, 1, 1);
            [planes.y[0], planes.cb[0], planes.cr[0]]
        };
        assert_eq!(convert([0, 0, 0]), [16, 128, 128]);
        assert_eq!(convert([255, 255, 255]), [235, 128, 128]);
        assert_eq!(convert([255, 0, 0]), [63, 102, 240]);
        assert_eq!(convert([0, 0, 255]), [32, 240, 118]);
        for rgb in [[0, 0, 0], [255, 255, 255], [255, 0, 0], [12, 200, 99]] {
            let [y, cb, cr] = convert(rgb);
            let back = to_rgb(y, cb, cr);
            assert!(back.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= 2), "{rgb:?} came back as {back:?}");
        }
        assert_eq!(halved(&[1, 2, 10, 10, 3, 6, 10, 14], 4), [3, 11]);
    }
}
