//! NEON.

#![allow(unsafe_code)]

use std::arch::aarch64::*;

use super::Simd;

/// The machine has NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// If it has.
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

/// Methods that are one instruction. Each is sound because `self` exists only where its instructions do.
macro_rules! instructions {
    ($($name:ident($($argument:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: float32x4_t),*) -> float32x4_t {
            // SAFETY: `self` is the proof that the machine has the instruction.
            unsafe { $body }
        }
    )*};
}

impl Simd for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;

    instructions! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        fma(a, b, c) = vfmaq_f32(c, a, b);
        min(a, b) = vminq_f32(a, b);
        max(a, b) = vmaxq_f32(a, b);
        round(a) = vrndnq_f32(a);
        swap_pairs(a) = vrev64q_f32(a);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        let from = &from[..Self::LANES];
        // SAFETY: the slice has as many numbers as are read; `self` is the proof that the machine has the instruction.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: float32x4_t, to: &mut [f32]) {
        let to = &mut to[..Self::LANES];
        // SAFETY: the slice has as many numbers as are written; `self` is the proof that the machine has the
        // instruction.
        unsafe { vst1q_f32(to.as_mut_ptr(), v) }
    }

    /// In two steps, so that results below the normal range are right too.
    #[inline(always)]
    fn scale_by_power(self, a: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe {
            let n = vcvtnq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            vmulq_f32(vmulq_f32(a, power(half)), power(vsubq_s32(n, half)))
        }
    }

    #[inline(always)]
    fn zip(self, a: float32x4_t, b: float32x4_t) -> (float32x4_t, float32x4_t) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { (vzip1q_f32(a, b), vzip2q_f32(a, b)) }
    }

    #[inline(always)]
    fn unzip(self, a: float32x4_t, b: float32x4_t) -> (float32x4_t, float32x4_t) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { (vuzp1q_f32(a, b), vuzp2q_f32(a, b)) }
    }
}
