//! YUV4MPEG2: a line of text, then raw planes. Full chroma, so that nothing is lost but the rounding of the colour
//! conversion.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::format::{Format, Purpose, Sink, Source, any_fits, check_file};
use super::stream::{Colours, Matrix, Range, Stream};
use super::yuv::{Picture, Plane, Planes, Rounding, ToRgb};
use crate::{Error, Result, Spec, WholeFile, open_file};

pub(super) static FORMAT: Format = Format {
    ending: Some("y4m"),
    about: "uncompressed YUV 4:4:4, for encoders and metrics",
    purpose: Purpose::Data,
    check: check_file,
    fits: any_fits,
    fastest: None,
    create: |path, spec| Ok(Box::new(Y4m::create(path, spec)?)),
    open: Ok(open),
};

/// The format has no word for a matrix. Readers take BT.601.
const COLOURS: Colours = Colours { matrix: Matrix::Bt601, range: Range::Limited };

pub(super) struct Y4m {
    path: PathBuf,
    file: WholeFile,
}

impl Y4m {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        let mut file = WholeFile::create(path)?;
        let Spec { width, height, fps, .. } = spec;
        let (frames, seconds) = (fps.frames(), fps.seconds());
        writeln!(file, "YUV4MPEG2 W{width} H{height} F{frames}:{seconds} Ip A1:1 C444 XCOLORRANGE=LIMITED")
            .map_err(Error::io(path))?;
        Ok(Y4m { path: path.to_path_buf(), file })
    }

    fn write(&mut self, rgb: &[u8]) -> std::io::Result<()> {
        let planes = Planes::from_rgb(rgb, COLOURS);
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

/// A file with 8-bit planes: 4:4:4, 4:2:2, 4:2:0 or grey. What its first line leaves out is as ffmpeg assumes it.
struct Y4mReader {
    path: PathBuf,
    file: BufReader<File>,
    stream: Stream,
    to_rgb: ToRgb,
    chroma: Chroma,
    planes: Vec<u8>,
}

/// Pixels that share a sample of chroma, across and down; `None`: there is none.
type Chroma = Option<(usize, usize)>;

/// Longest first line, and longest line before a frame.
const LONGEST_LINE: u64 = 1024;

fn open(path: &Path) -> Result<Box<dyn Source>> {
    let wrong = |reason: String| Error::file(path, reason);
    let mut file = BufReader::new(open_file(path)?);
    let header = line(&mut file).map_err(Error::io(path))?;
    let header = header.filter(|line| line.split(' ').next() == Some("YUV4MPEG2"));
    let header = header.ok_or_else(|| wrong("expected a line YUV4MPEG2 at the beginning".to_string()))?;
    let (stream, chroma) = describe(&header).map_err(wrong)?;
    stream.check_size(path)?;
    let size = |side: usize, shared: usize| side.div_ceil(shared);
    let chroma_plane = chroma.map_or(0, |(across, down)| size(stream.width, across) * size(stream.height, down));
    let planes = vec![0; stream.width * stream.height + 2 * chroma_plane];
    let rounding = if matches!(chroma, None | Some((1, 1))) { Rounding::Exact } else { Rounding::AsFfmpeg };
    let to_rgb = ToRgb::new(stream.colours, rounding);
    Ok(Box::new(Y4mReader { path: path.to_path_buf(), file, stream, to_rgb, chroma, planes }))
}

/// What the first line says.
fn describe(header: &str) -> Result<(Stream, Chroma), String> {
    let mut stream = Stream::default();
    let (mut chroma, mut range) = ("420", None);
    for word in header.split(' ').filter(|word| !word.is_empty()) {
        let (key, value) = word.split_at_checked(1).unwrap_or((word, ""));
        match key {
            "W" => stream.width = value.parse().unwrap_or(0),
            "H" => stream.height = value.parse().unwrap_or(0),
            "F" => stream.fps = rate(value),
            "C" => chroma = value,
            "X" if value == "COLORRANGE=FULL" => range = Some(Range::Full),
            "X" if value == "COLORRANGE=LIMITED" => range = Some(Range::Limited),
            _ => {}
        }
    }
    let shared = match chroma {
        "444" => Some((1, 1)),
        "422" => Some((2, 1)),
        "420" | "420jpeg" | "420mpeg2" | "420paldv" => Some((2, 2)),
        "mono" => None,
        other => return Err(format!("C{other}: expected 8 bits of 444, 422, 420 or mono")),
    };
    // Grey without a range is as pictures are: from 0 to 255.
    let assumed = if shared.is_none() { Range::Full } else { Range::Limited };
    stream.colours.range = range.unwrap_or(assumed);
    Ok((stream, shared))
}

impl Source for Y4mReader {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let wrong = |reason: String| Error::file(&self.path, reason);
        if self.file.fill_buf().map_err(Error::io(&self.path))?.is_empty() {
            return Ok(None);
        }
        let marker = line(&mut self.file).map_err(Error::io(&self.path))?;
        marker
            .filter(|marker| marker.starts_with("FRAME"))
            .ok_or_else(|| wrong("expected FRAME before each frame".to_string()))?;
        let Stream { width, height, .. } = self.stream;
        let cut = || wrong(format!("the file ends within a frame, or has another size than {width}x{height}"));
        self.file.read_exact(&mut self.planes).map_err(|_| cut())?;
        let (luma, chroma) = self.planes.split_at(width * height);
        let (cb, cr) = chroma.split_at(chroma.len() / 2);
        let stride = width.div_ceil(self.chroma.map_or(1, |(across, _)| across));
        let plane = |samples, stride| Plane { samples, stride };
        Ok(Some(self.to_rgb.frame(&Picture {
            width,
            height,
            y: plane(luma, width),
            chroma: self.chroma.map(|_| [plane(cb, stride), plane(cr, stride)]),
            shared: self.chroma.unwrap_or((1, 1)),
        })))
    }
}

/// Text up to a line end; `None` where none comes soon.
fn line(file: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    file.take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    Ok(bytes.strip_suffix(b"\n").and_then(|line| String::from_utf8(line.to_vec()).ok()))
}

fn rate(text: &str) -> Option<f64> {
    let (frames, seconds) = text.split_once(':')?;
    let rate = frames.parse::<f64>().ok()? / seconds.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}
