//! Raw frames as one tensor, for programs.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};

use super::format::{Format, Purpose, Sink, Source, any_fits, check_file};
use super::stream::Stream;
use crate::{Error, Result, Spec, WholeFile, open_file};

pub(super) static FORMAT: Format = Format {
    ending: Some("safetensors"),
    about: "tensor `frames`, u8, (frames, height, width, 3): lossless, for programs",
    purpose: Purpose::Data,
    check: check_file,
    fits: any_fits,
    fastest: None,
    create: |path, spec| Ok(Box::new(Frames::create(path, spec)?)),
    open: Ok(open),
};

const NAME: &str = "frames";

pub(super) struct Frames {
    path: PathBuf,
    file: WholeFile,
    spec: Spec,
    pixels: Vec<u8>,
}

impl Frames {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        Ok(Frames { path: path.to_path_buf(), file: WholeFile::create(path)?, spec: *spec, pixels: Vec::new() })
    }
}

impl Sink for Frames {
    fn push(&mut self, rgb: &[u8]) -> Result<()> {
        self.pixels.extend_from_slice(rgb);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Frames { path, file, spec, pixels } = *self;
        let shape = vec![spec.frames, spec.height, spec.width, 3];
        let wrong = |e: safetensors::SafeTensorError| Error::file(&path, e.to_string());
        let view = TensorView::new(Dtype::U8, shape, &pixels).map_err(wrong)?;
        file.finish_with(&safetensors::serialize([(NAME, view)], None).map_err(wrong)?)
    }
}

/// The frames of a tensor, from the file one by one.
struct FramesReader {
    path: PathBuf,
    file: BufReader<File>,
    stream: Stream,
    left: usize,
}

/// Longest header; one of a single tensor has a hundred bytes.
const LONGEST_HEADER: u64 = 1 << 20;

fn open(path: &Path) -> Result<Box<dyn Source>> {
    let wrong = |reason: String| Error::file(path, reason);
    let broken = |reason: &dyn std::fmt::Display| wrong(format!("not a safetensors file ({reason})"));
    let mut file = BufReader::new(open_file(path)?);
    let length = file.get_ref().metadata().map_err(Error::io(path))?.len();
    let mut header = vec![0; 8];
    file.read_exact(&mut header).map_err(|e| broken(&e))?;
    let size = header.iter().rev().fold(0, |size, &byte| size << 8 | u64::from(byte));
    if size > LONGEST_HEADER {
        return Err(broken(&format!("a header of {size} bytes")));
    }
    header.resize(size as usize, 0);
    file.read_exact(&mut header).map_err(|e| broken(&e))?;
    let names: Metadata = serde_json::from_slice(&header).map_err(|e| broken(&e))?;
    let found = || names.tensors().into_keys().collect::<Vec<_>>();
    let info = names.info(NAME).ok_or_else(|| wrong(format!("expected a tensor {NAME:?}, found {:?}", found())))?;
    let (&[frames, height, width, 3], Dtype::U8) = (info.shape.as_slice(), info.dtype) else {
        let reason = format!("{NAME}: expected u8 (frames, height, width, 3), found {:?} {:?}", info.dtype, info.shape);
        return Err(wrong(reason));
    };
    let (begin, end) = info.data_offsets;
    let expected = 8 + size + names.data_len() as u64;
    if expected != length || end < begin || Some(end - begin) != bytes_of(&info.shape) {
        return Err(broken(&format!("{length} bytes, expected {expected}")));
    }
    let stream = Stream { width, height, frames: Some(frames), ..Stream::default() };
    stream.check_size(path)?;
    file.seek_relative(begin as i64).map_err(Error::io(path))?;
    Ok(Box::new(FramesReader { path: path.to_path_buf(), file, stream, left: frames }))
}

/// Of a tensor of bytes; `None` where it has too many.
fn bytes_of(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |bytes, side| bytes.checked_mul(*side))
}

impl Source for FramesReader {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut frame = vec![0; self.stream.width * self.stream.height * 3];
        self.file.read_exact(&mut frame).map_err(Error::io(&self.path))?;
        Ok(Some(frame))
    }
}
