//! YUV4MPEG2: a line of text, then raw planes. Full chroma, so that nothing is lost but the rounding of the colour conversion.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::yuv::{Planes, to_rgb};
use super::{Format, Sink, bytes_of, check_file};
use crate::{Clip, Error, Result, Spec, WholeFile};

pub(super) static FORMAT: Format = Format {
    ending: Some("y4m"),
    about: "uncompressed YUV 4:4:4, for encoders and metrics",
    check: check_file,
    create: |path, spec| Ok(Box::new(Y4m::create(path, spec)?)),
    read: Ok(read),
};

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

/// Reads a file with 8-bit 4:4:4, 4:2:2 or 4:2:0 planes.
fn read(path: &Path) -> Result<Clip> {
    let bytes = &bytes_of(path)?;
    let wrong = |reason: String| Error::file(path, reason);
    let (header, mut rest) =
        line(bytes).ok_or_else(|| wrong("expected a line YUV4MPEG2 at the beginning".to_string()))?;
    let mut words = header.split(' ');
    if words.next() != Some("YUV4MPEG2") {
        return Err(wrong("expected a line YUV4MPEG2 at the beginning".to_string()));
    }
    let (mut width, mut height, mut fps, mut chroma) = (0, 0, None, "420jpeg");
    for word in words.filter(|word| !word.is_empty()) {
        let (key, value) = word.split_at_checked(1).unwrap_or((word, ""));
        match key {
            "W" => width = value.parse().unwrap_or(0),
            "H" => height = value.parse().unwrap_or(0),
            "F" => fps = rate(value),
            "C" => chroma = value,
            _ => {}
        }
    }
    let (across, down) = match chroma {
        "444" => (1, 1),
        "422" => (2, 1),
        "420" | "420jpeg" | "420mpeg2" | "420paldv" => (2, 2),
        other => return Err(wrong(format!("C{other}: expected 8-bit 444, 422 or 420"))),
    };
    super::check_size(path, width, height)?;
    let (chroma_width, chroma_height) = (width.div_ceil(across), height.div_ceil(down));
    let (luma, chroma) = (width * height, chroma_width * chroma_height);
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let (marker, planes) = line(rest).ok_or_else(|| wrong("expected FRAME before each frame".to_string()))?;
        if !marker.starts_with("FRAME") || planes.len() < luma + 2 * chroma {
            return Err(wrong(format!("the file ends within a frame, or has another size than {width}x{height}")));
        }
        let (y, cb, cr) = (&planes[..luma], &planes[luma..luma + chroma], &planes[luma + chroma..luma + 2 * chroma]);
        for row in 0..height {
            for column in 0..width {
                let at = row / down * chroma_width + column / across;
                frames.extend(to_rgb(y[row * width + column], cb[at], cr[at]));
            }
        }
        rest = &planes[luma + 2 * chroma..];
    }
    Ok(Clip { width, height, fps, frames })
}

/// Text up to a line end, and what follows it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    const LONGEST: usize = 1024;
    let end = bytes.iter().take(LONGEST).position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

fn rate(text: &str) -> Option<f64> {
    let (frames, seconds) = text.split_once(':')?;
    let rate = frames.parse::<f64>().ok()? / seconds.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}
