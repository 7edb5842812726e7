//! AVX2 with FMA, and AVX-512.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::Simd;

/// The machine has AVX2 and FMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// The machine has AVX-512F.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx2 {
    /// If it has.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

impl Avx512 {
    /// If it has.
    pub(crate) fn detect() -> Option<Self> {
        (Avx2::detect().is_some() && is_x86_feature_detected!("avx512f")).then_some(Avx512(()))
    }
}

/// Halves of a vector onto each other until one number is left, in the order of [`super::fold`].
macro_rules! folded {
    ($f:ident, $v:expr) => {{
        let v = $v;
        let v = $f(v, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v));
        let v = $f(v, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
        let v = $f(v, _mm512_permute_ps::<0b01_00_11_10>(v));
        _mm512_cvtss_f32($f(v, _mm512_permute_ps::<0b10_11_00_01>(v)))
    }};
}

/// Methods that are one instruction. Each is sound because `self` exists only where its instructions do.
macro_rules! instructions {
    ($vector:ty: $($name:ident($($argument:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $vector),*) -> $vector {
            // SAFETY: `self` is the proof that the machine has the instruction.
            unsafe { $body }
        }
    )*};
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;

    instructions! { __m256:
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
        min(a, b) = _mm256_min_ps(a, b);
        max(a, b) = _mm256_max_ps(a, b);
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        swap_pairs(a) = _mm256_permute_ps::<0b10_11_00_01>(a);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: the slice has as many numbers as are read; `self` is the proof that the machine has the instruction.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the slice has as many numbers as are written; `self` is the proof that the machine has the
        // instruction.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }

    /// In two steps, so that results below the normal range are right too.
    #[inline(always)]
    fn scale_by_power(self, a: __m256, n: __m256) -> __m256 {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
            _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }

    #[inline(always)]
    fn zip(self, a: __m256, b: __m256) -> (__m256, __m256) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); // of each half
            (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        }
    }

    #[inline(always)]
    fn unzip(self, a: __m256, b: __m256) -> (__m256, __m256) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            let halves = |x| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(x)));
            let (even, odd) = (_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            (halves(even), halves(odd))
        }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;

    instructions! { __m512:
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
        min(a, b) = _mm512_min_ps(a, b);
        max(a, b) = _mm512_max_ps(a, b);
        round(a) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        scale_by_power(a, n) = _mm512_scalef_ps(a, n);
        swap_pairs(a) = _mm512_permute_ps::<0b10_11_00_01>(a);
    }

    #[inline(always)]
    fn fetch(self, from: &[f32], at: usize) {
        // SAFETY: the instruction reads nothing that a program could notice, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(at).cast()) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { folded!(_mm512_add_ps, v) }
    }

    #[inline(always)]
    fn greatest(self, v: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { folded!(_mm512_max_ps, v) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..Self::LANES];
        // SAFETY: the slice has as many numbers as are read; `self` is the proof that the machine has the instruction.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32]) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the slice has as many numbers as are written; `self` is the proof that the machine has the
        // instruction.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn zip(self, a: __m512, b: __m512) -> (__m512, __m512) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        }
    }

    #[inline(always)]
    fn unzip(self, a: __m512, b: __m512) -> (__m512, __m512) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
    }
}
