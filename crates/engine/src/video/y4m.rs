//! YUV4MPEG2: a line of text, then raw planes. Full chroma, so that nothing is lost but the rounding of the colour conversion.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::yuv::Planes;
use super::{Sink, Spec};
use crate::{Error, Result, WholeFile};

pub(super) struct Y4m {
    path: PathBuf,
    file: WholeFile,
    spec: Spec,
}

impl Y4m {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        let mut file = WholeFile::create(path)?;
        let Spec { width, height, fps, .. } = spec;
        writeln!(file, "YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C444 XCOLORRANGE=LIMITED")
            .map_err(Error::io(path))?;
        Ok(Y4m { path: path.to_path_buf(), file, spec: *spec })
    }

    fn write(&mut self, rgb: &[u8]) -> std::io::Result<()> {
        let planes = Planes::from_rgb(rgb, self.spec.width, self.spec.height);
        self.file.write_all(b"FRAME\n")?;
        [planes.y, planes.cb, planes.cr].iter().try_for_each(|plane| self.file.write_all(plane))
    }
}

impl Sink for Y4m {
    fn push(&mut self, rgb: &[u8]) -> Result<()> {
        self.write(rgb).map_err(Error::io(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.file.finish()
    }
}
