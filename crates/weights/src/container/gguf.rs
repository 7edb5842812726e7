//! The header of a GGUF file (ggml's container, versions 2 and 3): key-value pairs, then names, shapes, formats and
//! offsets of tensors.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use crate::file::{Listing, Meta, Stored};
use crate::format::Format;

/// Alignment of the data where no key says otherwise.
const ALIGNMENT: usize = 32;
/// Most tensors and key-value pairs; published files have a few thousand.
const COUNT_MAX: usize = 1 << 16;
/// Most dimensions of a tensor; ggml's own limit is 4, video files have 5.
const DIMENSIONS_MAX: usize = 8;

/// Lists tensors and key-value pairs. Every count is checked against the bytes that are left before anything is
/// reserved for it.
pub fn list(bytes: &[u8]) -> Result<Listing, String> {
    let mut reader = Reader { bytes, at: 4 };
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version: expected 2 or 3, found {version}"));
    }
    let tensors = reader.count("tensors", 24)?;
    let pairs = reader.count("key-value pairs", 13)?;
    if tensors.max(pairs) > COUNT_MAX {
        return Err(format!("{tensors} tensors and {pairs} key-value pairs, at most {COUNT_MAX} of each are read"));
    }

    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = reader.name()?;
        let kind = reader.u32()?;
        metadata.insert(key, reader.value(kind)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Meta::Number(n)) if *n >= 8.0 && *n <= 65536.0 && (*n as usize).is_power_of_two() => *n as usize,
        Some(other) => {
            return Err(format!("general.alignment: expected a power of two of at least 8, found {other:?}"));
        }
    };

    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = reader.name()?;
        let dimensions = reader.u32()? as usize;
        if dimensions > DIMENSIONS_MAX {
            return Err(format!("{name}: expected at most {DIMENSIONS_MAX} dimensions, found {dimensions}"));
        }
        let mut shape = (0..dimensions).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse(); // ggml counts from the fastest
        let (kind, offset) = (reader.u32()?, reader.u64()?);
        infos.push((name, shape, kind, offset));
    }

    let data = reader.at.next_multiple_of(alignment);
    let mut listed = BTreeMap::new();
    for (name, shape, kind, offset) in infos {
        let stored = stored(&shape, kind, offset, data, alignment, bytes.len()).map_err(|e| format!("{name}: {e}"))?;
        if listed.insert(name.clone(), stored).is_some() {
            return Err(format!("{name}: there twice"));
        }
    }
    Ok(Listing { tensors: listed, metadata, notes: Vec::new() })
}

fn stored(shape: &[u64], kind: u32, offset: u64, data: usize, alignment: usize, file: usize) -> Result<Stored, String> {
    let format = format(kind)?;
    let shape: Vec<usize> =
        shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let too_large = || format!("a shape of {shape:?} is larger than any file");
    let numbers = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).ok_or_else(too_large)?;
    let (block, size) = format.block().unwrap_or((1, 1));
    if shape.last().is_some_and(|width| width % block != 0) {
        return Err(format!("rows of {shape:?} are not whole blocks of {block} ({format})"));
    }
    let length = (numbers / block).checked_mul(size).ok_or_else(too_large)?;
    if !offset.is_multiple_of(alignment as u64) {
        return Err(format!("offset: expected a multiple of {alignment}, found {offset}"));
    }
    let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
    match start.and_then(|start| Some((start, start.checked_add(length)?))) {
        Some((start, end)) if end <= file => Ok(Stored { format, shape, start, length }),
        _ => Err(format!(
            "{length} bytes at {offset} are beyond the end of the file ({file} bytes); it is cut short, download it again"
        )),
    }
}

/// ggml's numbers of formats.
const KINDS: [(u32, Format); 14] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Quantized(GgmlDType::Q4_0)),
    (3, Format::Quantized(GgmlDType::Q4_1)),
    (6, Format::Quantized(GgmlDType::Q5_0)),
    (7, Format::Quantized(GgmlDType::Q5_1)),
    (8, Format::Quantized(GgmlDType::Q8_0)),
    (10, Format::Quantized(GgmlDType::Q2K)),
    (11, Format::Quantized(GgmlDType::Q3K)),
    (12, Format::Quantized(GgmlDType::Q4K)),
    (13, Format::Quantized(GgmlDType::Q5K)),
    (14, Format::Quantized(GgmlDType::Q6K)),
    (28, Format::F64),
    (30, Format::Bf16),
];

fn format(kind: u32) -> Result<Format, String> {
    match (KINDS.iter().find(|(known, _)| *known == kind), kind) {
        (Some((_, format)), _) => Ok(*format),
        (None, 16..=23 | 29) => {
            Err(format!("an IQ format (type {kind}) is not read; take a Q4_K, Q5_K, Q6_K or Q8_0 file"))
        }
        (None, _) => Err(format!("number format {kind} is not known; take a Q4_K, Q5_K, Q6_K or Q8_0 file")),
    }
}

/// ggml's number of a format; `None` where it has none.
pub fn ggml_kind(format: Format) -> Option<u32> {
    KINDS.iter().find(|(_, known)| *known == format).map(|(kind, _)| *kind)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, String> {
        if length > self.left() {
            return Err(format!(
                "the header ends beyond the end of the file ({} bytes); it is cut short, download it again",
                self.bytes.len()
            ));
        }
        let range = self.at..self.at + length;
        self.at = range.end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let range = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, String> {
        let count = self.u64()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => Err(format!("{count} {what} cannot be in the {} bytes that are left of the file", self.left())),
        }
    }

    fn text(&mut self) -> Result<Range<usize>, String> {
        let length = self.count("bytes of text", 1)?;
        self.take(length)
    }

    fn name(&mut self) -> Result<String, String> {
        let range = self.text()?;
        String::from_utf8(self.bytes[range].to_vec()).map_err(|e| e.to_string())
    }

    fn value(&mut self, kind: u32) -> Result<Meta, String> {
        match kind {
            8 => Ok(Meta::Text(self.name()?)),
            9 => self.values(),
            _ => self.number(kind).map(Meta::Number),
        }
    }

    fn number(&mut self, kind: u32) -> Result<f64, String> {
        Ok(match kind {
            0 | 7 => self.array::<1>()?[0] as f64,
            1 => self.array::<1>()?[0] as i8 as f64,
            2 => u16::from_le_bytes(self.array()?) as f64,
            3 => i16::from_le_bytes(self.array()?) as f64,
            4 => self.u32()? as f64,
            5 => i32::from_le_bytes(self.array()?) as f64,
            6 => f32::from_le_bytes(self.array()?) as f64,
            10 => self.u64()? as f64,
            11 => i64::from_le_bytes(self.array()?) as f64,
            12 => f64::from_le_bytes(self.array()?),
            _ => return Err(format!("a value of type {kind}, which GGUF does not have")),
        })
    }

    fn values(&mut self) -> Result<Meta, String> {
        let kind = self.u32()?;
        match kind {
            8 => {
                let count = self.count("texts", 8)?;
                (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Meta::Texts)
            }
            0 | 1 | 7 => {
                let count = self.count("bytes", 1)?;
                self.take(count).map(Meta::Bytes)
            }
            9 => Err("arrays of arrays are not read".to_string()),
            _ => {
                let least = match kind {
                    2 | 3 => 2,
                    10..=12 => 8,
                    _ => 4,
                };
                let count = self.count("numbers", least)?;
                (0..count).map(|_| self.number(kind)).collect::<Result<_, _>>().map(Meta::Numbers)
            }
        }
    }
}
