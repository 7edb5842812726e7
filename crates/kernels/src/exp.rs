//! The exponential function.
//!
//! `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)`, so that `r` is at most `ln 2 / 2`; a polynomial of degree 7 does
//! the rest (the coefficients are Cephes'). Within 2 units in the last place; 0 and infinity beyond the range, NaN of
//! NaN.

use crate::simd::Simd;

/// Below, the result is 0.
const LOWEST: f32 = -104.0;
/// Above, the result is infinite.
const HIGHEST: f32 = 89.0;
/// `ln 2`, in two parts: the first has few bits, so that `n` times it is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Of `(exp(r) - 1 - r) / r^2`, the highest power first.
const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Of each lane.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    let x = simd.min(simd.splat(HIGHEST), simd.max(simd.splat(LOWEST), x));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, simd.splat(-LN_2[0]), x);
    let r = simd.fma(n, simd.splat(-LN_2[1]), r);
    let mut tail = simd.splat(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        tail = simd.fma(tail, r, simd.splat(*coefficient));
    }
    let power = simd.add(simd.fma(tail, simd.mul(r, r), r), simd.splat(1.0));
    simd.scale_by_power(power, n)
}

/// Of `2^f`, for `f` from -0.5 to 0.5, the highest power first: within 8e-5 of it.
const TWO_TO: [f32; 4] = [0.055_088_68, 0.242_604_05, 0.693_276_2, 0.999_928_94];

/// `exp(x - base)` of each lane, `offset` being `-base / ln 2`, for what is rounded to bf16 after: its error is a
/// fiftieth of the rounding's. 0 far below the range.
#[inline(always)]
pub(crate) fn exp_for_bf16<S: Simd>(simd: S, x: S::V, offset: S::V) -> S::V {
    const LOWEST: f32 = -200.0;
    let x = simd.fma(x, simd.splat(std::f32::consts::LOG2_E), offset);
    let x = simd.max(simd.splat(LOWEST), x);
    let n = simd.round(x);
    let f = simd.sub(x, n);
    let mut power = simd.splat(TWO_TO[0]);
    for coefficient in &TWO_TO[1..] {
        power = simd.fma(power, f, simd.splat(*coefficient));
    }
    simd.scale_by_power(power, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::{Kernel, Level};

    /// The same for bf16.
    struct ForBf16(f32, f32);

    impl Kernel for ForBf16 {
        type Output = f32;

        fn plain(self) -> f32 {
            (self.0 - self.1).exp()
        }

        #[inline(always)]
        fn fast<S: Simd>(self, simd: S) -> f32 {
            let mut y = [0.0];
            let offset = simd.splat(-self.1 * std::f32::consts::LOG2_E);
            simd.store_part(exp_for_bf16(simd, simd.splat(self.0), offset), &mut y);
            y[0]
        }
    }

    #[test]
    fn for_bf16() {
        for level in Level::available() {
            let at = |x, base| level.run(ForBf16(x, base));
            for i in 0..=80_000 {
                let (x, base) = (3.0 - i as f32 * 1e-3, 3.0);
                let (y, exact) = (f64::from(at(x, base)), f64::from(x - base).exp());
                assert!((y - exact).abs() <= 1e-4 * exact, "{} of {x}: {y} instead of {exact}", level.name());
            }
            assert_eq!([at(f32::NEG_INFINITY, 0.0), at(-1e30, 5.0), at(-200.0, 0.0)], [0.0; 3], "{}", level.name());
            assert!(at(f32::NAN, 0.0).is_nan());
        }
    }

    /// Of one number, in the first lane.
    struct One(f32);

    impl Kernel for One {
        type Output = f32;

        fn plain(self) -> f32 {
            self.0.exp()
        }

        #[inline(always)]
        fn fast<S: Simd>(self, simd: S) -> f32 {
            let mut y = [0.0];
            simd.store_part(exp(simd, simd.splat(self.0)), &mut y);
            y[0]
        }
    }

    #[test]
    fn within_two_units_in_the_last_place() {
        for level in Level::available() {
            for i in -874_000..=887_000 {
                let x = i as f32 * 1e-4;
                let (y, exact) = (level.run(One(x)), f64::from(x).exp());
                let error = (f64::from(y) - exact).abs() / exact;
                assert!(error < 2e-7, "{} of {x}: {y} instead of {exact}", level.name());
            }
        }
    }

    #[test]
    fn ends_of_the_range() {
        for level in Level::available() {
            let at = |x| level.run(One(x));
            assert_eq!([at(0.0), at(-0.0), at(f32::NEG_INFINITY), at(-1e30), at(-110.0)], [1.0, 1.0, 0.0, 0.0, 0.0]);
            assert_eq!([at(f32::INFINITY), at(1e30), at(89.0)], [f32::INFINITY; 3]);
            assert!(at(f32::NAN).is_nan());
            // Below the normal range, numbers have few bits.
            for x in [-87.5, -90.0, -95.0, -100.0, -103.0] {
                assert!((f64::from(at(x)) - f64::from(x).exp()).abs() < 3e-45, "{} of {x}: {}", level.name(), at(x));
            }
        }
    }
}
