//! A weight file, mapped into memory, and what a list of its tensors holds: the same whatever its container.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::{Format, to_f32};

/// Where a tensor lies in a file, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its number format.
    pub format: Format,
    /// Its shape, the slowest dimension first.
    pub shape: Vec<usize>,
    /// Bytes before it in the file.
    pub start: usize,
    /// Bytes it takes.
    pub length: usize,
}

impl Stored {
    /// Number of scalars.
    pub fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same numbers in another shape.
    pub(crate) fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        let numbers = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
        (numbers == self.numbers()).then(|| Stored { shape: shape.to_vec(), ..self.clone() })
    }

    /// A run of rows.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Option<Self> {
        let (&rows, row) = self.shape.split_first()?;
        let (numbers, _) = self.format.block()?;
        let aligned =
            row.last().map_or(numbers == 1, |width| width % numbers == 0) && first.checked_add(count)? <= rows;
        let each = self.length.checked_div(rows)?;
        let shape = [&[count], row].concat();
        aligned.then(|| Stored { shape, start: self.start + first * each, length: count * each, ..self.clone() })
    }

    /// One of `parts` equal runs of rows.
    pub(crate) fn part(&self, part: usize, parts: usize) -> Option<Self> {
        let count = self.shape.first()? / parts;
        (count * parts == self.shape[0]).then(|| self.rows(part * count, count)).flatten()
    }
}

/// What a container says it holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Stored>,
    /// What it says beside them.
    pub metadata: BTreeMap<String, Meta>,
    /// What the user should know of how it was read.
    pub notes: Vec<String>,
}

/// A value beside the tensors.
#[derive(Debug, Clone, PartialEq)]
pub enum Meta {
    /// Text.
    Text(String),
    /// A number or a truth value.
    Number(f64),
    /// Texts, by where they lie in the file.
    Texts(Vec<std::ops::Range<usize>>),
    /// Numbers.
    Numbers(Vec<f64>),
    /// Bytes, by where they lie in the file.
    Bytes(std::ops::Range<usize>),
}

/// A weight file.
pub struct WeightFile {
    /// Where it is.
    pub path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl WeightFile {
    /// Maps a file.
    #[allow(unsafe_code)]
    pub fn map(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        // SAFETY: the map is read-only. Should another process shorten or rewrite the file meanwhile, the system ends
        // this one (see `cut`) or the weights change; both are the reader's risk with any mapped file, and copying
        // gigabytes first would be worse.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        #[cfg(any(target_os = "linux", target_os = "macos"))]
        crate::cut::remember(&map, path);
        Ok(WeightFile { path: path.to_path_buf(), bytes: Bytes::Mapped(map) })
    }

    /// A file that is part of the program.
    pub fn embedded(path: &Path, bytes: &'static [u8]) -> Self {
        WeightFile { path: path.to_path_buf(), bytes: Bytes::Static(bytes) }
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// A tensor's bytes.
    pub fn bytes_of(&self, stored: &Stored) -> &[u8] {
        self.bytes().get(stored.start..stored.start + stored.length).unwrap_or_default()
    }

    /// A tensor's bytes a piece at a time; memory holds one.
    pub fn pieces_of<E>(&self, stored: &Stored, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const PIECE: usize = 64 << 20;
        for offset in (0..stored.length).step_by(PIECE) {
            let length = PIECE.min(stored.length - offset);
            let piece = Stored { start: stored.start + offset, length, ..stored.clone() };
            take(self.bytes_of(&piece))?;
            self.release(&piece);
        }
        Ok(())
    }

    /// A tensor's numbers, f32; `None` for what is no weight.
    pub fn numbers_of(&self, stored: &Stored) -> Option<Vec<f32>> {
        let mut numbers = vec![0.0; stored.numbers()];
        to_f32(self.bytes_of(stored), stored.format, &mut numbers).map(|()| numbers)
    }

    /// The texts that a [`Meta::Texts`] points at.
    pub fn text(&self, range: &std::ops::Range<usize>) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes().get(range.clone()).unwrap_or_default())
    }

    /// Tells the system that these bytes, now read, are not needed in memory.
    #[allow(unsafe_code)]
    pub fn release(&self, stored: &Stored) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes {
            // SAFETY: the map is read-only and backed by a file, so that dropped pages are read again when they are
            // touched again. A failure only means that more memory stays in use.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, stored.start, stored.length) };
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
impl Drop for WeightFile {
    fn drop(&mut self) {
        if let Bytes::Mapped(map) = &self.bytes {
            crate::cut::forget(map);
        }
    }
}

/// Opens a regular file, or a link to one. What may never end, as a pipe or a device, is refused before anything waits
/// for it.
fn open_regular(path: &Path) -> Result<std::fs::File> {
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::file(path, format!("expected a regular file, found {found}")));
    }
    std::fs::File::open(path).map_err(Error::io(path))
}

/// Reads a file that describes something: a configuration, an index, a tokenizer.
pub fn read_description(path: &Path) -> Result<Vec<u8>> {
    /// Most bytes of one; the largest that are published are tokenizers of 33 MB.
    const BYTES_MAX: u64 = 256 << 20;
    let file = open_regular(path)?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length > BYTES_MAX {
        return Err(Error::file(path, format!("expected at most {BYTES_MAX} bytes, found {length}")));
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, BYTES_MAX), &mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

impl std::fmt::Debug for WeightFile {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "WeightFile({})", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_shapes() {
        let stored = Stored { format: Format::F16, shape: vec![6, 4], start: 100, length: 48 };
        let middle = stored.part(1, 3).unwrap();
        assert_eq!((middle.shape.as_slice(), middle.start, middle.length), ([2, 4].as_slice(), 116, 16));
        assert!(stored.part(0, 4).is_none());
        assert_eq!(stored.reshaped(&[2, 3, 4]).unwrap().shape, [2, 3, 4]);
        assert!(stored.reshaped(&[5, 5]).is_none());
    }
}
