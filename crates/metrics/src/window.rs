//! The window of structural similarity (Wang et al. 2004), laid over two pictures: Gaussian, 11x11, sigma 1.5, only
//! where it lies inside the frame.

pub(crate) const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// The constants of the paper, for grey levels from 0 to 255.
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// How alike a channel of two pictures is, and how alike in contrast and structure alone; means over positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Similarity {
    pub whole: f64,
    pub contrast: f64,
}

/// What the window is laid over: both pictures, the sum of their squares, and their product.
const MAPS: usize = 4;

/// Of a channel of pictures of one size. Goes down the rows with a window's height of them in memory.
pub(crate) fn similarity(a: &Plane, b: &Plane) -> Similarity {
    let window = gaussian();
    let (width, columns) = (a.width, a.width - WINDOW + 1);
    let row = |length: usize| -> [Vec<f64>; MAPS] { std::array::from_fn(|_| vec![0.0; length]) };
    let mut rows: [_; WINDOW] = std::array::from_fn(|_| row(width));
    let (mut down, mut means) = (row(width), row(columns));
    // Sums over the positions of a column, so that columns can be done side by side.
    let (mut whole, mut contrast) = (vec![0.0; columns], vec![0.0; columns]);
    let mut positions = 0;
    for (index, (a, b)) in a.values.chunks_exact(width).zip(b.values.chunks_exact(width)).enumerate() {
        fill(&mut rows[index % WINDOW], a, b);
        if index + 1 < WINDOW {
            continue;
        }
        for map in 0..MAPS {
            weigh(&window, std::array::from_fn(|i| &rows[(index + 1 + i) % WINDOW][map][..]), &mut down[map]);
            weigh(&window, std::array::from_fn(|i| &down[map][i..]), &mut means[map]);
        }
        add(&means, &mut whole, &mut contrast);
        positions += columns;
    }
    let mean = |sums: &[f64]| sums.iter().sum::<f64>() / positions as f64;
    Similarity { whole: mean(&whole), contrast: mean(&contrast) }
}

/// The maps of a row.
fn fill(maps: &mut [Vec<f64>; MAPS], a: &[f32], b: &[f32]) {
    let [first, second, squares, product] = maps;
    let pairs = a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let cells = first.iter_mut().zip(second).zip(squares.iter_mut().zip(product));
    for ((a, b), ((first, second), (squares, product))) in pairs.zip(cells) {
        (*first, *second, *squares, *product) = (a, b, a * a + b * b, a * b);
    }
}

/// Eleven rows by the weights of the window, which is the same from both ends.
fn weigh(window: &[f64; WINDOW], rows: [&[f64]; WINDOW], sums: &mut [f64]) {
    let n = sums.len();
    let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10] = rows.map(|row| &row[..n]);
    let [w0, w1, w2, w3, w4, w5, ..] = *window;
    for x in 0..n {
        let outer = w0 * (r0[x] + r10[x]) + w1 * (r1[x] + r9[x]) + w2 * (r2[x] + r8[x]);
        sums[x] = outer + (w3 * (r3[x] + r7[x]) + w4 * (r4[x] + r6[x]) + w5 * r5[x]);
    }
}

/// Adds the similarities of a row of positions.
fn add(means: &[Vec<f64>; MAPS], whole: &mut [f64], contrast: &mut [f64]) {
    let [a, b, squares, product] = means;
    let n = whole.len();
    let (a, b, squares, product, contrast) = (&a[..n], &b[..n], &squares[..n], &product[..n], &mut contrast[..n]);
    for x in 0..n {
        let (both, apart) = (a[x] * b[x], a[x] * a[x] + b[x] * b[x]);
        let alike = (2.0 * (product[x] - both) + C2) / (squares[x] - apart + C2);
        contrast[x] += alike;
        whole[x] += alike * ((2.0 * both + C1) / (apart + C1));
    }
}

/// The channels of a frame.
pub(crate) fn planes(frame: &[u8], width: usize) -> [Plane; 3] {
    std::array::from_fn(|channel| Plane {
        values: frame.chunks_exact(3).map(|pixel| f32::from(pixel[channel])).collect(),
        width,
    })
}

fn gaussian() -> [f64; WINDOW] {
    let weights: [f64; WINDOW] = std::array::from_fn(|i| {
        let distance = i as f64 - (WINDOW / 2) as f64;
        (-distance * distance / (2.0 * SIGMA * SIGMA)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// One channel of a picture, row by row, in grey levels. Halves of whole numbers, up to the sixteenth: f32 holds them
/// exactly.
pub(crate) struct Plane {
    values: Vec<f32>,
    width: usize,
}

impl Plane {
    /// Half the size, each value the mean of four; an odd last row or column is left out.
    pub fn halved(&self) -> Plane {
        let width = self.width / 2;
        let rows = self.values.chunks_exact(2 * self.width);
        let mut values = Vec::with_capacity(rows.len() * width);
        for pair in rows {
            let (upper, lower) = pair.split_at(self.width);
            let squares = upper.chunks_exact(2).zip(lower.chunks_exact(2));
            values.extend(squares.map(|(upper, lower)| (upper[0] + upper[1] + lower[0] + lower[1]) / 4.0));
        }
        Plane { values, width }
    }
}
