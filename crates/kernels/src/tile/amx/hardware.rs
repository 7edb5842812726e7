//! The machine's own tiles, by the instructions' names: the compiler has no functions for them yet.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::super::avx512_bf16::Avx512Bf16;
use super::{SIDE, Unit, span};
use crate::panel::Pair;

/// The machine has AMX for bf16, and the system lets this process use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amx(Avx512Bf16);

impl Amx {
    /// If it has. The system is asked once for the whole process.
    pub(crate) fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| Amx::detect_if(is_allowed))
    }

    /// The same with another answer of the system.
    fn detect_if(is_allowed: impl FnOnce() -> bool) -> Option<Self> {
        const TILES: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        let bf16 = Avx512Bf16::detect()?;
        let has = __cpuid_count(7, 0).edx & (TILES | BF16) == TILES | BF16;
        (has && is_allowed()).then_some(Amx(bf16))
    }

    /// What the machine has besides.
    pub(crate) fn bf16(self) -> Avx512Bf16 {
        self.0
    }

    /// Shapes the tiles of this thread, until they are dropped.
    #[inline(always)]
    pub(crate) fn begin(self) -> Hardware {
        let (mut before, ours) = (Shapes::default(), Shapes::whole_tiles());
        // SAFETY: `self` is the proof that the machine has the instructions and lets us use them; each reads or writes
        // 64 bytes.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack, preserves_flags));
            asm!("ldtilecfg [{}]", in(reg) &raw const ours, options(nostack, preserves_flags, readonly));
        }
        Hardware { before, of_this_thread: PhantomData }
    }
}

/// Linux keeps the tiles' 8 KiB of state from processes that have not asked for it.
fn is_allowed() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Shapes of tiles, as the instructions read them.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// All eight, as large as they can be.
    const fn whole_tiles() -> Self {
        let (mut row_bytes, mut rows, mut tile) = ([0; 16], [0; 16], 0);
        while tile < 8 {
            row_bytes[tile] = 4 * SIDE as u16;
            rows[tile] = SIDE as u8;
            tile += 1;
        }
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// Tiles of this thread with shapes of ours. Others on the same thread, candle's quantised products for one, shape them
/// once and for all: so they get theirs back.
pub(crate) struct Hardware {
    before: Shapes,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Hardware {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: these are the shapes that the machine gave, 64 bytes; without any, the instruction lets go of the
        // tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const self.before, options(nostack, preserves_flags, readonly)) };
    }
}

impl Unit for Hardware {
    #[inline(always)]
    fn zero<const T: u8>(&mut self) {
        // SAFETY: while there is a `Hardware`, the tiles of its thread have shapes.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) };
    }

    #[inline(always)]
    fn load<const T: u8>(&mut self, from: &[Pair], stride: usize) {
        assert!(from.len() >= span(stride));
        // SAFETY: as above; 16 rows of 64 bytes, all of them in the slice.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from.as_ptr(), stride = in(reg) 4 * stride,
                options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    fn load_sums<const T: u8>(&mut self, from: &[f32], stride: usize) {
        assert!(from.len() >= span(stride));
        // SAFETY: as above.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from.as_ptr(), stride = in(reg) 4 * stride,
                options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    fn store_sums<const T: u8>(&mut self, to: &mut [f32], stride: usize) {
        assert!(to.len() >= span(stride));
        // SAFETY: as above.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to.as_mut_ptr(), stride = in(reg) 4 * stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn add_products<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: as of `zero`.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_permission_is_no_amx() {
        assert_eq!(Amx::detect_if(|| false), None);
    }

    /// Whoever shaped the tiles of a thread before finds them as they were.
    #[test]
    fn shapes_are_put_back() {
        let Some(amx) = Amx::detect() else { return };
        let shapes = || {
            let mut shapes = Shapes::default();
            // SAFETY: the machine has AMX; 64 bytes are written.
            unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut shapes, options(nostack)) };
            (shapes.palette, shapes.row_bytes, shapes.rows)
        };
        let none = shapes();
        drop(amx.begin());
        assert_eq!(shapes(), none);
        let mut theirs = Shapes::whole_tiles();
        theirs.rows[6] = 8;
        theirs.row_bytes[4] = 32;
        // SAFETY: as above; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const theirs, options(nostack)) };
        {
            let _ours = amx.begin();
            assert_ne!(shapes(), (theirs.palette, theirs.row_bytes, theirs.rows));
        }
        assert_eq!(shapes(), (theirs.palette, theirs.row_bytes, theirs.rows));
        // SAFETY: lets go of them, so that the thread is as it was.
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}
