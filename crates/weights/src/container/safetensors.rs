//! The header of a safetensors file.

use safetensors::{Dtype, SafeTensors};

use crate::file::{Listing, Meta, Stored};
use crate::format::Format;

/// Most bytes of a header; the largest that are published have less than one million.
const HEADER_MAX: u64 = 8 << 20;

/// Lists the tensors. Offsets and lengths are checked, so a truncated file is found before anything is computed.
pub fn list(bytes: &[u8]) -> Result<Listing, String> {
    let again = |e: String| format!("not a whole safetensors file of {} bytes ({e}); download it again", bytes.len());
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length)).unwrap_or(0);
    if length > HEADER_MAX {
        return Err(again(format!("a header of {length} bytes, at most {HEADER_MAX} are read")));
    }
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| again(e.to_string()))?;
    let data = header + 8;
    // The crate leaves it to its own reader to compare with the file's length.
    let end = metadata.tensors().values().map(|t| t.data_offsets.1).max().unwrap_or(0);
    if bytes.len() - data != end {
        return Err(again(format!("its header speaks of {} bytes", data + end)));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let stored =
            Stored { format: format(info.dtype), shape: info.shape.clone(), start: data + start, length: end - start };
        (name, stored)
    });
    let texts = metadata.metadata().iter().flatten();
    Ok(Listing {
        tensors: tensors.collect(),
        metadata: texts.map(|(key, text)| (key.clone(), Meta::Text(text.clone()))).collect(),
        notes: Vec::new(),
    })
}

const DTYPES: [(Dtype, Format); 11] = [
    (Dtype::F64, Format::F64),
    (Dtype::F32, Format::F32),
    (Dtype::F16, Format::F16),
    (Dtype::BF16, Format::Bf16),
    (Dtype::F8_E4M3, Format::F8E4m3),
    (Dtype::F8_E5M2, Format::F8E5m2),
    (Dtype::U8, Format::U8),
    (Dtype::I8, Format::I8),
    (Dtype::I32, Format::Other("i32")),
    (Dtype::I64, Format::Other("i64")),
    (Dtype::BOOL, Format::Other("bool")),
];

fn format(dtype: Dtype) -> Format {
    DTYPES.iter().find(|(known, _)| *known == dtype).map_or(Format::Other("another format"), |(_, format)| *format)
}

/// What safetensors calls a format; `None` where it has no name for it.
pub fn safetensors_dtype(format: Format) -> Option<Dtype> {
    DTYPES.iter().find(|(_, known)| *known == format).map(|(dtype, _)| *dtype)
}
