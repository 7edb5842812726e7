//! Raw frames as one tensor, for programs.

use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{Format, Sink, bytes_of, check_file};
use crate::{Clip, Error, Result, Spec, WholeFile};

pub(super) static FORMAT: Format = Format {
    ending: Some("safetensors"),
    about: "tensor `frames`, u8, (frames, height, width, 3): lossless, for programs",
    check: check_file,
    create: |path, spec| Ok(Box::new(Frames::create(path, spec)?)),
    read: Ok(read),
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

/// Reads the tensor.
fn read(path: &Path) -> Result<Clip> {
    let bytes = &bytes_of(path)?;
    let wrong = |reason: String| Error::file(path, reason);
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("not a safetensors file ({e})")))?;
    let view = file.tensor(NAME).map_err(|_| wrong(format!("expected a tensor {NAME:?}, found {:?}", file.names())))?;
    let (&[_, height, width, 3], Dtype::U8) = (view.shape(), view.dtype()) else {
        let reason =
            format!("{NAME}: expected u8 (frames, height, width, 3), found {:?} {:?}", view.dtype(), view.shape());
        return Err(wrong(reason));
    };
    super::check_size(path, width, height)?;
    Ok(Clip { width, height, fps: None, frames: view.data().to_vec() })
}
