//! Starting noise: the numbers that PyTorch's CPU generator gives for a seed, bit for bit.
//!
//! `torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed))` draws 24-bit uniforms from MT19937 and turns
//! sixteen at a time into normals by the Box-Muller transform, with logarithm, sine and cosine of the Cephes library in
//! f32 vectors. Rounding is part of the result, so the polynomials are evaluated here with the same fused operations.
//! Source: PyTorch 2.11 `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_fill_AVX2`), `avx_mathfun.h`,
//! `core/MT19937RNGEngine.h`.

/// `n` standard normals for a seed. As there, only the lower 32 bits of the seed count.
pub fn randn(seed: u64, n: usize) -> Vec<f32> {
    Generator::new(seed).randn(n)
}

/// A generator of which several draws are made, one after the other.
pub(crate) struct Generator(Mt19937);

impl Generator {
    pub fn new(seed: u64) -> Self {
        Generator(Mt19937::new(seed as u32))
    }

    /// The next `n` standard normals, at least sixteen of them or the only ones.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        drawn(&mut self.0, n)
    }

    /// Leaves a draw of `n` out.
    pub fn skip(&mut self, n: usize) {
        if n < GROUP {
            few(&mut self.0, n);
            return;
        }
        let again = if n.is_multiple_of(GROUP) { 0 } else { GROUP };
        for _ in 0..n + again {
            self.0.next();
        }
    }
}

fn drawn(generator: &mut Mt19937, n: usize) -> Vec<f32> {
    if n < GROUP {
        return few(generator, n);
    }
    let mut values: Vec<f32> = (0..n).map(|_| generator.uniform()).collect();
    let (groups, rest) = values.as_chunks_mut::<GROUP>();
    groups.iter_mut().for_each(box_muller);
    if !rest.is_empty() {
        // The last sixteen are drawn anew, over some that were done.
        let mut last: [f32; GROUP] = std::array::from_fn(|_| generator.uniform());
        box_muller(&mut last);
        values[n - GROUP..].copy_from_slice(&last);
    }
    values
}

const GROUP: usize = 16;

/// Uniforms to normals, in place: the first half gives radii, the second angles.
fn box_muller(values: &mut [f32; GROUP]) {
    let (radii, angles) = values.split_at_mut(GROUP / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * log(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        (*a, *b) = (radius * cos, radius * sin);
    }
}

/// Fewer than sixteen: one by one, in f64.
fn few(generator: &mut Mt19937, n: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let (turn, depth) = (generator.uniform_f64(), generator.uniform_f64());
        let radius = (-2.0 * (-depth).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * turn).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(n);
    values
}

/// Natural logarithm of a positive number (Cephes `logf`).
fn log(x: f32) -> f32 {
    const POLYNOMIAL: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = (bits >> 23) as i32 as f32 - 126.0;
    let mut x = f32::from_bits(bits & 0x007f_ffff | 0.5f32.to_bits()); // mantissa in [0.5, 1)
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x = x - 1.0 + x;
    } else {
        x -= 1.0;
    }
    let square = x * x;
    let series = POLYNOMIAL[1..].iter().fold(POLYNOMIAL[0], |y, &c| y.mul_add(x, c)) * x;
    // ln 2 in two parts, of which the larger is exact
    let y = series.mul_add(square, exponent * -2.121_944_4e-4);
    let y = square.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_4, x + y)
}

/// Sine and cosine of an angle from 0 to 2 pi (Cephes `sinf`, `cosf`).
fn sin_cos(x: f32) -> (f32, f32) {
    let octant = ((x * 1.273_239_5) as i32 + 1) & !1;
    let y = octant as f32;
    // x minus a multiple of pi / 4, in three parts
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_5e-4, x);
    let x = y.mul_add(-3.774_895e-8, x);
    let z = x * x;
    let cos = 2.443_315_7e-5f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2) * z;
    let cos = cos.mul_add(z, z * -0.5) + 1.0;
    let sin = (-1.951_529_6e-4f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1) * z;
    let sin = sin.mul_add(x, x);
    let (mut s, mut c) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    if octant & 4 != 0 {
        s = -s;
    }
    if (octant - 2) & 4 == 0 {
        c = -c;
    }
    (s, c)
}

/// The Mersenne Twister (Matsumoto and Nishimura 1998).
struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, next: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.next == Self::N {
            self.twist();
        }
        let y = self.state[self.next];
        self.next += 1;
        let y = y ^ (y >> 11);
        let y = y ^ ((y << 7) & 0x9d2c_5680);
        let y = y ^ ((y << 15) & 0xefc6_0000);
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// In [0, 1), a multiple of 2^-24.
    fn uniform(&mut self) -> f32 {
        (self.next() & 0x00ff_ffff) as f32 / (1u32 << 24) as f32
    }

    /// In [0, 1), a multiple of 2^-53.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (self.next() as u64, self.next() as u64);
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        seed: u64,
        n: usize,
        first: Vec<f32>,
        last: Vec<f32>,
        fnv1a: String,
    }

    #[test]
    fn the_numbers_of_torch_bit_for_bit() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../tests/golden/noise.json")).unwrap();
        for Golden { seed, n, first, last, fnv1a } in golden {
            let values = randn(seed, n);
            assert_eq!(values.len(), n);
            assert_eq!(values[..first.len()], first, "seed {seed}, the first of {n}");
            assert_eq!(values[n - last.len()..], last, "seed {seed}, the last of {n}");
            let hash = values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3));
            assert_eq!(format!("{hash:016x}"), fnv1a, "seed {seed}, all {n}");
        }
    }
}
