//! Number formats of tensors in files, and how they become f32.

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, DType};
use half::f16;
use navicache_models::widen;
use rayon::prelude::*;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 64 bits.
    F64,
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits, 3 of them mantissa, no infinities.
    F8E4m3,
    /// 8 bits: the upper half of an f16.
    F8E5m2,
    /// Whole numbers of 8 bits, to be multiplied by factors.
    I8,
    /// Blocks of small integers with scales of their own, as GGUF has them.
    Quantized(GgmlDType),
    /// Bytes, which are no weights: a tokenizer, a mark.
    U8,
    /// Something else, by name.
    Other(&'static str),
}

impl Format {
    /// Numbers that are stored together, and the bytes they take; `None` for what is no weight.
    pub fn block(self) -> Option<(usize, usize)> {
        match self {
            Format::F64 => Some((1, 8)),
            Format::F32 => Some((1, 4)),
            Format::F16 | Format::Bf16 => Some((1, 2)),
            Format::F8E4m3 | Format::F8E5m2 | Format::I8 => Some((1, 1)),
            Format::Quantized(dtype) => Some((dtype.block_size(), dtype.type_size())),
            Format::U8 | Format::Other(_) => None,
        }
    }

    /// Bytes of one number in PyTorch's files.
    pub(crate) fn number_bytes(self) -> usize {
        match self {
            Format::Other("i64") => 8,
            Format::Other("i32") => 4,
            _ => self.block().map_or(1, |(_, size)| size),
        }
    }

    /// The same as a tensor's dtype, if there is one that is used for weights.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Format::F64 => Some(DType::F64),
            Format::F32 => Some(DType::F32),
            Format::F16 => Some(DType::F16),
            Format::Bf16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// Narrower than any dtype that weights are kept in.
    pub fn is_packed(self) -> bool {
        matches!(self, Format::F8E4m3 | Format::F8E5m2 | Format::I8 | Format::Quantized(_))
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Format::F64 => "f64",
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::F8E4m3 => "fp8_e4m3fn",
            Format::F8E5m2 => "fp8_e5m2",
            Format::I8 => "int8",
            Format::Quantized(dtype) => quantized_name(*dtype),
            Format::U8 => "u8",
            Format::Other(name) => name,
        })
    }
}

fn quantized_name(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::Q4_0 => "Q4_0",
        GgmlDType::Q4_1 => "Q4_1",
        GgmlDType::Q5_0 => "Q5_0",
        GgmlDType::Q5_1 => "Q5_1",
        GgmlDType::Q8_0 => "Q8_0",
        GgmlDType::Q2K => "Q2_K",
        GgmlDType::Q3K => "Q3_K",
        GgmlDType::Q4K => "Q4_K",
        GgmlDType::Q5K => "Q5_K",
        GgmlDType::Q6K => "Q6_K",
        _ => "a GGUF format",
    }
}

/// Numbers that one thread reads at a time; a multiple of every block.
const CHUNK: usize = 1 << 16;

/// Reads a tensor's bytes, whole blocks, as f32, on all threads. `None` for what is no weight, or bytes that are not as
/// many numbers as there is room for.
pub(crate) fn to_f32(bytes: &[u8], format: Format, values: &mut [f32]) -> Option<()> {
    let (numbers, size) = format.block()?;
    if !bytes.len().is_multiple_of(size) || bytes.len() / size * numbers != values.len() {
        return None;
    }
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK / numbers * size));
    chunks.map(|(values, bytes)| read(bytes, format, values)).collect()
}

fn read(bytes: &[u8], format: Format, values: &mut [f32]) -> Option<()> {
    match format {
        Format::F64 => each(bytes, values, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Format::F32 => each(bytes, values, f32::from_le_bytes),
        Format::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
        Format::Bf16 => each(bytes, values, |b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        Format::F8E4m3 => each(bytes, values, |[b]: [u8; 1]| F8E4M3[b as usize]),
        Format::F8E5m2 => each(bytes, values, |[b]: [u8; 1]| f16::from_bits((b as u16) << 8).to_f32()),
        Format::I8 => each(bytes, values, |[b]: [u8; 1]| (b as i8) as f32),
        Format::Quantized(dtype) if widen(dtype, bytes, values) => {}
        Format::Quantized(dtype) => match dtype.from_data(bytes.into()).dequantize(values.len()).ok()? {
            CpuStorage::F32(read) => values.copy_from_slice(&read),
            _ => return None,
        },
        Format::U8 | Format::Other(_) => return None,
    }
    Some(())
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = read(*bytes);
    }
}

/// Every value of `float8_e4m3fn`: sign, four bits of exponent with bias 7, three of mantissa; all ones is NaN.
const F8E4M3: [f32; 256] = {
    let mut table = [0f32; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = ((byte >> 3) & 15, (byte & 7) as f32);
        let magnitude = if byte & 127 == 127 {
            f32::NAN
        } else if exponent == 0 {
            mantissa / 512.0
        } else {
            (8.0 + mantissa) * f32::from_bits(((exponent as u32) + 127 - 10) << 23)
        };
        table[byte] = if byte < 128 { magnitude } else { -magnitude };
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits() {
        // Values of ml_dtypes 0.5, float8_e4m3fn and float8_e5m2.
        let read = |format, bytes: &[u8]| {
            let mut values = vec![0.0; bytes.len()];
            to_f32(bytes, format, &mut values).unwrap();
            values
        };
        assert_eq!(
            read(Format::F8E4m3, &[0x00, 0x01, 0x07, 0x08, 0x38, 0x7e, 0xb9, 0x80]),
            [0.0, 0.001953125, 0.013671875, 0.015625, 1.0, 448.0, -1.125, -0.0]
        );
        assert!(read(Format::F8E4m3, &[0x7f, 0xff]).iter().all(|v| v.is_nan()));
        assert_eq!(read(Format::F8E5m2, &[0x3c, 0xbd, 0x01, 0x7b]), [1.0, -1.25, 1.525_878_9e-5, 57344.0]);
    }

    #[test]
    fn more_than_a_chunk() {
        let numbers: Vec<f32> = (0..CHUNK * 2 + 17).map(|i| i as f32 - 5.0).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut values = vec![0.0; numbers.len()];
        to_f32(&bytes, Format::F32, &mut values).unwrap();
        assert_eq!(values, numbers);
        assert!(to_f32(&bytes[1..], Format::F32, &mut values).is_none());
        assert!(to_f32(&bytes[4..], Format::F32, &mut values).is_none());
    }
}
