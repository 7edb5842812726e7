//! Vectors of `f32`, one type for each instruction set.
//!
//! A value of a type that is [`Simd`] is the proof that the machine has the instructions: it is made by detection
//! alone. So kernels are safe code, and what is `unsafe` stays in this folder.

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// The most lanes of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

/// An instruction set.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Numbers in a vector.
    const LANES: usize;
    /// A vector.
    type V: Copy;

    /// The same number in all lanes.
    fn splat(self, x: f32) -> Self::V;
    /// The first numbers of a slice, which has enough.
    fn load(self, from: &[f32]) -> Self::V;
    /// To the start of a slice, which has room.
    fn store(self, v: Self::V, to: &mut [f32]);
    /// Asks for a number of a slice, or one beyond its end, to be in the first cache soon.
    #[inline(always)]
    fn fetch(self, _from: &[f32], _at: usize) {}
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The lesser of each; `b` where `b` is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The greater of each; `b` where `b` is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole numbers.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` from -150 to 130.
    fn scale_by_power(self, a: Self::V, n: Self::V) -> Self::V;
    /// Each number changes places with its neighbour: 1, 0, 3, 2, ...
    fn swap_pairs(self, a: Self::V) -> Self::V;

    /// `a` and `b` by turns, in two vectors: a0, b0, a1, b1, ...
    fn zip(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// Of `a` followed by `b`, the numbers at even places and those at odd ones.
    fn unzip(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);

    /// The first numbers of a slice, and `fill` where it has too few.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::V {
        if from.len() >= Self::LANES {
            return self.load(from);
        }
        let mut lanes = [fill; MAX_LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// To the start of a slice, as much as it has room for.
    #[inline(always)]
    fn store_part(self, v: Self::V, to: &mut [f32]) {
        let room = to.len();
        if room >= Self::LANES {
            return self.store(v, to);
        }
        let mut lanes = [0.0; MAX_LANES];
        self.store(v, &mut lanes);
        to.copy_from_slice(&lanes[..room]);
    }

    /// The sum of all lanes.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        self.store(v, &mut lanes);
        fold(&mut lanes[..Self::LANES], |a, b| a + b)
    }

    /// The greatest of all lanes.
    #[inline(always)]
    fn greatest(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        self.store(v, &mut lanes);
        fold(&mut lanes[..Self::LANES], f32::max)
    }
}

/// As many vectors as there are lanes, rows of a square: its columns instead.
#[inline(always)]
pub(crate) fn transposed<S: Simd>(simd: S, rows: &mut [S::V; MAX_LANES]) {
    // Each round is a perfect shuffle of the whole square.
    for _ in 0..S::LANES.trailing_zeros() {
        let before = *rows;
        for i in 0..S::LANES / 2 {
            (rows[2 * i], rows[2 * i + 1]) = simd.zip(before[i], before[i + S::LANES / 2]);
        }
    }
}

/// Halves onto each other until one number is left.
#[inline(always)]
fn fold(lanes: &mut [f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = lanes.len() / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}
