//! Blocks of small integers with scales of their own, as GGUF has them (llama.cpp's `ggml-quants.c`), to f32: loops
//! over whole groups that become vectors of the level's instruction set. The numbers are bit for bit those of the plain
//! loops.

use candle_core::quantized::GgmlDType;
use half::f16;

use crate::level::{Kernel, Level};
use crate::simd::Simd;

/// Numbers of a large block.
const BLOCK: usize = 256;
/// Numbers that share a scale.
const GROUP: usize = 32;

/// Widens whole blocks, as many as there is room for. `false`: there is no kernel for this kind, or bytes and numbers
/// do not belong together, and nothing was written.
pub fn widen(kind: GgmlDType, bytes: &[u8], to: &mut [f32]) -> bool {
    let (numbers, size) = (kind.block_size(), kind.type_size());
    let known = matches!(kind, GgmlDType::Q8_0 | GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K);
    let fits = bytes.len().is_multiple_of(size) && bytes.len() / size * numbers == to.len();
    if known && fits {
        Level::current().run(Blocks { kind, bytes, to });
    }
    known && fits
}

struct Blocks<'a> {
    kind: GgmlDType,
    bytes: &'a [u8],
    to: &'a mut [f32],
}

impl Kernel for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn plain(self) {
        let Blocks { kind, bytes, to } = self;
        match kind {
            GgmlDType::Q8_0 => each(bytes, to, q8_0),
            GgmlDType::Q4K => each(bytes, to, q4_k),
            GgmlDType::Q5K => each(bytes, to, q5_k),
            _ => each(bytes, to, q6_k),
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, _: S) {
        self.plain();
    }
}

#[inline(always)]
fn each<const SIZE: usize, const NUMBERS: usize>(
    bytes: &[u8],
    to: &mut [f32],
    widen: impl Fn(&[u8; SIZE], &mut [f32; NUMBERS]),
) {
    for (block, to) in bytes.as_chunks::<SIZE>().0.iter().zip(to.as_chunks_mut::<NUMBERS>().0) {
        widen(block, to);
    }
}

/// An f16 in a block.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, then 32 numbers.
#[inline(always)]
fn q8_0(block: &[u8; 34], to: &mut [f32; GROUP]) {
    let d = half_at(block, 0);
    for (to, q) in to.iter_mut().zip(&block[2..]) {
        *to = f32::from(q.cast_signed()) * d;
    }
}

/// Scales and offsets of the 8 groups of a block, 6 bits each in 12 bytes, times those of the block.
#[inline(always)]
fn scales(block: &[u8]) -> [[f32; 2]; 8] {
    let (d, min, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    std::array::from_fn(|j| {
        let (scale, offset) = match j {
            0..4 => (packed[j] & 63, packed[j + 4] & 63),
            _ => ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)),
        };
        [d * f32::from(scale), min * f32::from(offset)]
    })
}

/// Two scales of the block, 12 bytes of the groups', then 4 bits a number: two groups share bytes.
#[inline(always)]
fn q4_k(block: &[u8; 144], to: &mut [f32; BLOCK]) {
    let scales = scales(block);
    for (i, to) in to.as_chunks_mut::<{ 2 * GROUP }>().0.iter_mut().enumerate() {
        let (low, high) = to.split_at_mut(GROUP);
        let ([d1, m1], [d2, m2]) = (scales[2 * i], scales[2 * i + 1]);
        let packed = &block[16 + GROUP * i..][..GROUP];
        for ((low, high), q) in low.iter_mut().zip(high).zip(packed) {
            *low = d1 * f32::from(q & 15) - m1;
            *high = d2 * f32::from(q >> 4) - m2;
        }
    }
}

/// The same with a fifth bit of every number: bit `j` of 32 bytes is that of group `j`.
#[inline(always)]
fn q5_k(block: &[u8; 176], to: &mut [f32; BLOCK]) {
    let (scales, fifth) = (scales(block), &block[16..16 + GROUP]);
    for (i, to) in to.as_chunks_mut::<{ 2 * GROUP }>().0.iter_mut().enumerate() {
        let (low, high) = to.split_at_mut(GROUP);
        let ([d1, m1], [d2, m2]) = (scales[2 * i], scales[2 * i + 1]);
        let packed = &block[16 + GROUP + GROUP * i..][..GROUP];
        for (((low, high), q), fifth) in low.iter_mut().zip(high).zip(packed).zip(fifth) {
            let fifth = fifth >> (2 * i);
            *low = d1 * f32::from(q & 15 | (fifth & 1) << 4) - m1;
            *high = d2 * f32::from(q >> 4 | (fifth >> 1 & 1) << 4) - m2;
        }
    }
}

/// 4 low bits of every number, 2 high ones, 16 scales with sign, the block's scale.
#[inline(always)]
fn q6_k(block: &[u8; 210], to: &mut [f32; BLOCK]) {
    let d = half_at(block, 208);
    for (i, to) in to.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&block[64 * i..][..64], &block[128 + GROUP * i..][..GROUP]);
        let scales = &block[192 + 8 * i..][..8];
        for (quarter, to) in to.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let low = &low[GROUP * (quarter % 2)..][..GROUP];
            for (half, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let scale = d * f32::from(scales[2 * quarter + half].cast_signed());
                for (j, to) in to.iter_mut().enumerate() {
                    let at = 16 * half + j;
                    let q = (low[at] >> (4 * (quarter / 2))) & 15 | ((high[at] >> (2 * quarter)) & 3) << 4;
                    *to = scale * f32::from(q.cast_signed() - 32);
                }
            }
        }
    }
}
