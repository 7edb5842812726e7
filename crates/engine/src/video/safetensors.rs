//! Raw frames as one tensor, for programs.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{Sink, Spec};
use crate::{Error, Result, WholeFile};

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
        file.finish_with(&safetensors::serialize([("frames", view)], None).map_err(wrong)?)
    }
}
