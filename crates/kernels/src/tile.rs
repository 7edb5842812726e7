//! The core of a matrix product.
//!
//! A tile of sums, some rows by some columns, stays in registers while the depth passes by. Each step loads one number a row and
//! one vector for each group of columns and multiplies all with all: the products need far fewer loads than there are products. The
//! columns come from a *panel*: the tile's columns packed row after row, so that they are read in order.
//!
//! Each sum is one chain over the depth, so it is the same number whatever tile it falls into.

#![allow(unsafe_code)]

use crate::simd::Simd;

/// `c = keep * c + a b` for `R` rows and `C` vectors of columns; without `keep`, `c = a b`.
///
/// * `a` - `R` rows, `stride` numbers apart
/// * `panel` - (depth, columns)
/// * `keep` - a factor for each row
/// * `c` - `R` rows, `width` numbers apart
#[inline(always)]
pub(crate) fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    stride: usize,
    panel: &[f32],
    keep: Option<&[f32]>,
    c: &mut [f32],
    width: usize,
) {
    assert!(panel.len() <= stride * C * S::LANES);
    strided_tile::<S, R, C>(simd, a, [stride, 1], panel, keep, c, width);
}

/// The same with `a` packed as the panel is. // (depth, `R`)
#[inline(always)]
pub(crate) fn packed_tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    panel: &[f32],
    keep: Option<&[f32]>,
    c: &mut [f32],
    width: usize,
) {
    strided_tile::<S, R, C>(simd, a, [1, R], panel, keep, c, width);
}

/// The same with rows of `a`, and numbers of a row, any distance apart.
#[inline(always)]
fn strided_tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    [row, step]: [usize; 2],
    panel: &[f32],
    keep: Option<&[f32]>,
    c: &mut [f32],
    width: usize,
) {
    let columns = C * S::LANES;
    let depth = panel.len() / columns;
    assert!(depth > 0 && a.len() > (R - 1) * row + (depth - 1) * step);
    let mut sums = [[simd.splat(0.0); C]; R];
    if let Some(keep) = keep {
        for (r, sums) in sums.iter_mut().enumerate() {
            let keep = simd.splat(keep[r]);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul(keep, simd.load(&c[r * width + i * S::LANES..]));
            }
        }
    }
    for (k, b) in panel.chunks_exact(columns).enumerate() {
        let mut vectors = [simd.splat(0.0); C];
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(&b[i * S::LANES..]);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `k < depth` and `r < R`, so that this is at most `(R - 1) * row + (depth - 1) * step`, less than the length, as
            // asserted above.
            let number = simd.splat(unsafe { *a.get_unchecked(r * row + k * step) });
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = simd.fma(number, vector, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            simd.store(*sum, &mut c[r * width + i * S::LANES..]);
        }
    }
}
