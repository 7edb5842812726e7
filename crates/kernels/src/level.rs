//! Which instruction set the kernels run on.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use crate::tile::avx512_bf16::Avx512Bf16;
use crate::tile::{PairTile, Tiles};

/// An instruction set that this machine has. There are no others: what runs is always legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Path);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// A computation, twice.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// The simplest code that computes it.
    fn plain(self) -> Self::Output;

    /// The same in vectors. To be marked `inline(always)`, as everything it calls: it has to end up inside of a function that is
    /// compiled for the instruction set. One that needs no tiles may ask for `S: Simd` alone.
    fn fast<S: Tiles>(self, simd: S) -> Self::Output;
}

impl Level {
    /// Loops without vector instructions, anywhere.
    pub const PLAIN: Level = Level(Path::Plain);

    /// The levels of this machine, from the slowest to the fastest.
    pub fn available() -> &'static [Level] {
        static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
        LEVELS.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            let fast = [
                Avx2::detect().map(Path::Avx2),
                Avx512::detect().map(Path::Avx512),
                Avx512Bf16::detect().map(Path::Avx512Bf16),
            ];
            #[cfg(target_arch = "aarch64")]
            let fast = [Neon::detect().map(Path::Neon)];
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let fast = [None];
            std::iter::once(Path::Plain).chain(fast.into_iter().flatten()).map(Level).collect()
        })
    }

    /// Its name: `plain`, `avx2`, `avx512`, `avx512bf16` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Path::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16(_) => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Path::Neon(_) => "neon",
        }
    }

    /// Runs `f` with all kernels that it calls, on this thread, at this level.
    pub fn scope<T>(self, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<Level>);
        impl Drop for Restore {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        let _restore = Restore(FORCED.replace(Some(self)));
        f()
    }

    /// That of the innermost [`Level::scope`], or else the fastest, or what the environment variable `NAVICACHE_KERNELS` names if
    /// the machine has it.
    pub fn current() -> Level {
        static DEFAULT: OnceLock<Level> = OnceLock::new();
        FORCED.get().unwrap_or_else(|| {
            *DEFAULT.get_or_init(|| {
                let levels = Level::available();
                let wanted = std::env::var("NAVICACHE_KERNELS").ok();
                let named = levels.iter().find(|level| wanted.as_deref() == Some(level.name()));
                named.or(levels.last()).copied().unwrap_or(Level::PLAIN)
            })
        })
    }

    /// Its instruction for products of bf16, if it has one.
    pub(crate) fn pair_tile(self) -> Option<PairTile> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16(tile) => Some(PairTile::Avx512(tile)),
            _ => None,
        }
    }

    /// Columns of a tile of f32; one without vectors.
    pub(crate) fn tile_columns(self) -> usize {
        struct Columns;
        impl Kernel for Columns {
            type Output = usize;

            fn plain(self) -> usize {
                1
            }

            #[inline(always)]
            fn fast<S: Tiles>(self, _: S) -> usize {
                S::TILE_COLUMNS
            }
        }
        self.run(Columns)
    }

    /// Runs a kernel.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Path::Plain => kernel.plain(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(simd) => {
                #[target_feature(enable = "avx2,fma")]
                fn run<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
                    kernel.fast(simd)
                }
                // SAFETY: an `Avx2` exists only where both features were found.
                unsafe { run(kernel, simd) }
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(simd) | Path::Avx512Bf16(Avx512Bf16(simd)) => {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn run<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
                    kernel.fast(simd)
                }
                // SAFETY: an `Avx512` exists only where the features were found.
                unsafe { run(kernel, simd) }
            }
            #[cfg(target_arch = "aarch64")]
            Path::Neon(simd) => {
                #[target_feature(enable = "neon")]
                fn run<K: Kernel>(kernel: K, simd: Neon) -> K::Output {
                    kernel.fast(simd)
                }
                // SAFETY: a `Neon` exists only where the feature was found.
                unsafe { run(kernel, simd) }
            }
        }
    }
}

thread_local! {
    static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
}
