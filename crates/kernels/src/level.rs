//! Which instruction set the kernels run on.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{Avx2, Avx512};
use crate::tile::{F32, PairTile, Products, Tiles, Units};
#[cfg(target_arch = "x86_64")]
use crate::tile::{amx::Amx, avx512_bf16::Avx512Bf16};

/// An instruction set that this machine has. There are no others: what runs is always legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    vectors: Vectors,
    /// What multiplies pairs of bf16, if anything does.
    pairs: Option<PairTile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vectors {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// A computation, twice.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// The simplest code that computes it.
    fn plain(self) -> Self::Output;

    /// The same in vectors. To be marked `inline(always)`, as everything it calls: it has to end up inside of a
    /// function that is compiled for the instruction set. One that needs no tiles may ask for `S: Simd` alone.
    fn fast<S: Tiles>(self, simd: S) -> Self::Output;
}

impl Level {
    /// Loops without vector instructions, anywhere.
    pub const PLAIN: Level = Level::of(Vectors::Plain);

    /// One without products of pairs.
    const fn of(vectors: Vectors) -> Self {
        Level { vectors, pairs: None }
    }

    /// The levels of this machine, from the slowest to the fastest.
    pub fn available() -> &'static [Level] {
        static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
        LEVELS.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            let fast = [
                Avx2::detect().map(|avx2| Level::of(Vectors::Avx2(avx2))),
                Avx512::detect().map(|avx512| Level::of(Vectors::Avx512(avx512))),
                Avx512Bf16::detect()
                    .map(|tile| Level { vectors: Vectors::Avx512(tile.0), pairs: Some(PairTile::Avx512(tile)) }),
                Amx::detect()
                    .map(|amx| Level { vectors: Vectors::Avx512(amx.bf16().0), pairs: Some(PairTile::Amx(amx)) }),
            ];
            #[cfg(target_arch = "aarch64")]
            let fast = [Neon::detect().map(|neon| Level::of(Vectors::Neon(neon)))];
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let fast = [None];
            std::iter::once(Level::PLAIN).chain(fast.into_iter().flatten()).collect()
        })
    }

    /// The fastest vectors of this machine with AMX's tiles as loops over their bytes: slow, but what surrounds the
    /// tiles is what runs where they are. For tests; none where there are no vectors.
    pub fn emulated() -> Option<Level> {
        let fastest = Level::available().iter().rev().find(|level| level.vectors != Vectors::Plain)?;
        Some(Level { pairs: Some(PairTile::Emulated), ..*fastest })
    }

    /// Its name: `plain`, `avx2`, `avx512`, `avx512bf16`, `amx` or `neon`; `emulated`.
    pub fn name(self) -> &'static str {
        match (self.pairs, self.vectors) {
            #[cfg(target_arch = "x86_64")]
            (Some(PairTile::Avx512(_)), _) => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            (Some(PairTile::Amx(_)), _) => "amx",
            (Some(PairTile::Emulated), _) => "emulated",
            (None, Vectors::Plain) => "plain",
            #[cfg(target_arch = "x86_64")]
            (None, Vectors::Avx2(_)) => "avx2",
            #[cfg(target_arch = "x86_64")]
            (None, Vectors::Avx512(_)) => "avx512",
            #[cfg(target_arch = "aarch64")]
            (None, Vectors::Neon(_)) => "neon",
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

    /// One of this machine by its name.
    pub fn named(name: &str) -> Option<Level> {
        Level::available().iter().find(|level| level.name() == name).copied()
    }

    /// That of the innermost [`Level::scope`].
    pub(crate) fn forced() -> Option<Level> {
        FORCED.get()
    }

    /// Whether it has an instruction for products of bf16.
    pub fn multiplies_bf16(self) -> bool {
        self.pairs.is_some()
    }

    /// Its instruction for products of bf16, if it has one.
    pub(crate) fn pair_tile(self) -> Option<PairTile> {
        self.pairs
    }

    /// What a tile of f32 takes at a time, and its columns; one by one without vectors.
    pub(crate) fn tile_f32(self) -> (Units, usize) {
        struct Tile;
        impl Kernel for Tile {
            type Output = (Units, usize);

            fn plain(self) -> (Units, usize) {
                (Units { rows: 1, step: 1 }, 1)
            }

            #[inline(always)]
            fn fast<S: Tiles>(self, _: S) -> (Units, usize) {
                (F32::<S>::UNITS, S::TILE_COLUMNS)
            }
        }
        self.run(Tile)
    }

    /// Runs a kernel.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.vectors {
            Vectors::Plain => kernel.plain(),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2(simd) => {
                #[target_feature(enable = "avx2,fma")]
                fn run<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
                    kernel.fast(simd)
                }
                // SAFETY: an `Avx2` exists only where both features were found.
                unsafe { run(kernel, simd) }
            }
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512(simd) => {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn run<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
                    kernel.fast(simd)
                }
                // SAFETY: an `Avx512` exists only where the features were found.
                unsafe { run(kernel, simd) }
            }
            #[cfg(target_arch = "aarch64")]
            Vectors::Neon(simd) => {
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
