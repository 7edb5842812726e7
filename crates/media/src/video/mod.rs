//! Video files. Frames go in and come out one by one; a file that is written appears when it is whole.

mod format;
mod gif;
mod h264;
mod mp4;
mod mp4_index;
mod mp4_reader;
mod png;
mod safetensors;
mod scale;
mod stream;
mod y4m;
mod yuv;

use std::path::{Path, PathBuf};

use format::{Sink, Source};

pub use format::Format;
pub use png::{holds_png, is_frame};
pub use scale::{SCALE_MAX, Scale};
pub use stream::{Colours, Matrix, Orientation, Range, Stream};

use crate::{Clip, Error, Rate, Result, Spec};

/// Every format that is known. The first is what is written where nothing else is asked for.
pub static FORMATS: &[&Format] = &[&mp4::FORMAT, &gif::FORMAT, &y4m::FORMAT, &safetensors::FORMAT, &png::FORMAT];

impl Format {
    /// The format that a path asks for.
    pub fn from_path(path: &Path) -> Result<&'static Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let ending = ending.filter(|_| !path.is_dir());
        let known = FORMATS.iter().find(|format| format.ending == ending.as_deref());
        known.copied().filter(|_| path.file_name().is_some() || path.is_dir()).ok_or_else(|| {
            let endings = endings(FORMATS.iter().copied());
            let reason = format!("expected a name ending in {endings}, or without ending for a folder of PNG files");
            Error::file(path, reason)
        })
    }
}

/// The endings of file names of formats, in words.
pub fn endings(formats: impl Iterator<Item = &'static Format>) -> String {
    let endings: Vec<String> = formats.filter_map(|format| Some(format!(".{}", format.ending?))).collect();
    match endings.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => endings.concat(),
    }
}

/// The same of those that are read.
pub fn endings_read() -> String {
    endings(FORMATS.iter().copied().filter(|format| format.is_read()))
}

/// A video file that is read frame by frame.
pub struct Reader {
    source: Box<dyn Source>,
}

impl Reader {
    /// Opens a video of any format that is read.
    pub fn open(path: &Path) -> Result<Self> {
        match Format::from_path(path)?.open {
            Ok(open) => Ok(Reader { source: open(path)? }),
            Err(reason) => Err(Error::file(path, format!("{reason}; expected {} or PNG files", endings_read()))),
        }
    }

    /// What the file says of itself.
    pub fn stream(&self) -> &Stream {
        self.source.stream()
    }

    /// The next frame as it is shown, 8-bit RGB, (height, width, 3); `None` after the last.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>> {
        self.source.next()
    }
}

impl Clip {
    /// Writes it in the format that the file name's ending says.
    pub fn save(&self, path: &Path, fps: Rate, scale: Scale) -> Result<()> {
        let Clip { width, height, frames, .. } = self;
        let frame = width * height * 3;
        let spec = Spec { width: *width, height: *height, fps, frames: frames.len() / frame.max(1) };
        let mut writer = Writer::create(path, &spec, scale)?;
        frames.chunks_exact(frame.max(1)).try_for_each(|rgb| writer.push(rgb))?;
        writer.finish()
    }
}

/// Most bytes of a clip that is held in memory as a whole.
const LARGEST_CLIP: usize = 1 << 33;

/// Reads all of a video into memory.
pub fn read(path: &Path) -> Result<Clip> {
    let mut reader = Reader::open(path)?;
    let (width, height) = reader.stream().shown();
    let fps = reader.stream().fps;
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        if frames.len() + frame.len() > LARGEST_CLIP {
            let most = LARGEST_CLIP / frame.len();
            return Err(Error::file(path, format!("expected at most {most} frames of {width}x{height}, found more")));
        }
        frames.extend(frame);
    }
    Ok(Clip { width, height, fps, frames })
}

/// Finds out now whether a video could be written to `path` later: the format is known, the folder there and writable.
pub fn check_destination(path: &Path) -> Result<()> {
    (Format::from_path(path)?.check)(path)
}

/// Finds out now whether a file of that format could hold a video.
pub fn check_fits(path: &Path, spec: &Spec, scale: Scale) -> Result<()> {
    let enlarged = scale::enlarged_spec(spec, scale.factor(path)?);
    (Format::from_path(path)?.fits)(path, &enlarged)
}

/// What the user should know of a video in a file of that format: that it is shown more slowly than it was made for.
pub fn warning(path: &Path, fps: Rate) -> Option<String> {
    let format = Format::from_path(path).ok()?;
    let fastest = format.fastest.filter(|fastest| fastest.number() < fps.number())?;
    let (name, ending) = (path.display(), format.ending.unwrap_or_default().to_uppercase());
    let times = fps.number() / fastest.number();
    Some(format!(
        "{name}: players show {fastest} frames a second of a {ending} at most, so it plays {times:.1} times as long as \
         at `fps` {fps}; take .mp4, or `fps` {fastest} or fewer"
    ))
}

/// A video file under way. Dropped before [`Writer::finish`], it leaves nothing behind.
pub struct Writer {
    path: PathBuf,
    spec: Spec,
    factor: usize,
    pushed: usize,
    sink: Box<dyn Sink>,
}

impl Writer {
    /// Opens a file of the format that its name asks for. `spec` is of the frames that are pushed.
    pub fn create(path: &Path, spec: &Spec, scale: Scale) -> Result<Self> {
        let factor = scale.factor(path)?;
        let sink = (Format::from_path(path)?.create)(path, &scale::enlarged_spec(spec, factor))?;
        Ok(Writer { path: path.to_path_buf(), spec: *spec, factor, pushed: 0, sink })
    }

    /// Appends a frame: 8-bit RGB, (height, width, 3).
    pub fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let expected = self.spec.height * self.spec.width * 3;
        if rgb.len() != expected || self.pushed == self.spec.frames {
            let reason = format!(
                "expected {} frames of {expected} bytes, found frame {} of {}",
                self.spec.frames,
                self.pushed + 1,
                rgb.len()
            );
            return Err(Error::file(&self.path, reason));
        }
        self.pushed += 1;
        match self.factor {
            1 => self.sink.push(rgb),
            factor => self.sink.push(&scale::enlarged(rgb, &self.spec, factor)),
        }
    }

    /// Completes the file.
    pub fn finish(self) -> Result<()> {
        if self.pushed != self.spec.frames {
            let reason = format!("expected {} frames, found {}", self.spec.frames, self.pushed);
            return Err(Error::file(&self.path, reason));
        }
        self.sink.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Spec = Spec { width: 32, height: 16, fps: Rate::whole(8), frames: 3 };

    /// A disc that moves over a gradient.
    pub(super) fn frame(spec: &Spec, index: usize) -> Vec<u8> {
        let pixel = |y: usize, x: usize| {
            let (dx, dy) = (x as i64 - 8 - 4 * index as i64, y as i64 - 8);
            if dx * dx + dy * dy < 25 { [220, 40, 30] } else { [(x * 3) as u8, 40, (y * 5) as u8] }
        };
        (0..spec.height).flat_map(|y| (0..spec.width).flat_map(move |x| pixel(y, x))).collect()
    }

    fn write(path: &Path) -> Result<()> {
        let mut writer = Writer::create(path, &SPEC, Scale::NONE)?;
        for index in 0..SPEC.frames {
            writer.push(&frame(&SPEC, index))?;
        }
        writer.finish()
    }

    fn entries(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn formats_by_name() {
        let ending = |name: &str| Format::from_path(Path::new(name)).ok().map(|format| format.ending);
        assert_eq!(ending("a/b.mp4"), Some(Some("mp4")));
        assert_eq!(ending("B.GIF"), Some(Some("gif")));
        for folder in ["frames/", "no/such/frames", ".", "/"] {
            assert_eq!(ending(folder), Some(None), "{folder}");
        }
        for wrong in ["a.avi", "a.png", "", "no/such/.."] {
            assert_eq!(ending(wrong), None, "{wrong}");
        }
        assert!(Format::from_path(Path::new("a.avi")).err().unwrap().to_string().contains(".mp4, .gif"));
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        for name in ["a.mp4", "a.gif", "a.y4m", "a.safetensors", "frames"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            check_destination(&path).unwrap();
            let mut half = Writer::create(&path, &SPEC, Scale::NONE).unwrap();
            half.push(&frame(&SPEC, 0)).unwrap();
            assert!(half.finish().unwrap_err().to_string().contains("expected 3 frames, found 1"));
            assert_eq!(entries(folder.path()), 0, "{name} cut short");
            for _ in 0..2 {
                write(&path).unwrap();
                assert_eq!(entries(folder.path()), 1, "{name}, the second time over the first");
            }
            assert!(Writer::create(&path, &SPEC, Scale::NONE).unwrap().push(&[0; 5]).is_err());
            assert!(check_destination(&folder.path().join("no/such").join(name)).is_err());
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let frames: Vec<u8> = (0..SPEC.frames).flat_map(|i| frame(&SPEC, i)).collect();
        for (name, fps, tolerance) in [("a.safetensors", None, 0), ("frames", None, 0), ("a.y4m", Some(8.0), 2)] {
            let path = folder.path().join(name);
            write(&path).unwrap();
            let clip = read(&path).unwrap();
            assert_eq!((clip.width, clip.height, clip.fps), (SPEC.width, SPEC.height, fps), "{name}");
            assert_eq!(clip.frames.len(), frames.len(), "{name}");
            assert!(clip.frames.iter().zip(&frames).all(|(a, b)| a.abs_diff(*b) <= tolerance), "{name}");
        }
        let path = folder.path().join("frames");
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        assert!(
            write(&path).unwrap_err().to_string().contains("notes.txt"),
            "a folder with other files is not replaced"
        );
    }

    #[test]
    fn files_to_be_watched_are_enlarged() {
        let folder = tempfile::tempdir().unwrap();
        let clip = Clip { width: 32, height: 16, fps: None, frames: frame(&SPEC, 0) };
        for (name, scale, width) in [
            ("a.mp4", Scale::Watched(4), 128),
            ("a.y4m", Scale::Watched(4), 32),
            ("frames", Scale::Watched(4), 32),
            ("b.safetensors", Scale::Asked(2), 64),
            ("b.mp4", Scale::NONE, 32),
        ] {
            let path = folder.path().join(name);
            clip.save(&path, Rate::whole(8), scale).unwrap();
            let found = read(&path).unwrap();
            assert_eq!((found.width, found.height), (width, width / 2), "{name}");
        }
        let twice = read(&folder.path().join("b.safetensors")).unwrap();
        let (dark, bright) = (&twice.frames[..3], &twice.frames[3 * (16 * 64 + 16)..][..3]);
        assert_eq!((dark, bright), (&[0, 40, 0][..], &[220, 40, 30][..]), "the corner, and the middle of the disc");
        for wrong in [0, SCALE_MAX + 1] {
            let message =
                clip.save(&folder.path().join("c.mp4"), Rate::whole(8), Scale::Asked(wrong)).unwrap_err().to_string();
            assert!(message.contains("expected 1 to 32"), "{message}");
        }
    }

    #[test]
    fn a_video_that_plays_more_slowly_is_told_of() {
        let warning = |name: &str, fps: &str| warning(Path::new(name), fps.parse().unwrap());
        let said = warning("a.gif", "60").unwrap();
        assert!(said.contains("50 frames a second of a GIF at most") && said.contains("1.2 times as long"), "{said}");
        for (name, fps) in [("a.gif", "50"), ("a.gif", "23.976"), ("a.mp4", "60"), ("frames", "60"), ("a.avi", "60")] {
            assert_eq!(warning(name, fps), None, "{name} {fps}");
        }
    }

    #[test]
    fn fractions_of_frames_a_second_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for (text, expected) in [("23.976", 24000.0 / 1001.0), ("29.97", 30000.0 / 1001.0), ("12.5", 12.5)] {
            let spec = Spec { fps: text.parse().unwrap(), ..SPEC };
            for name in ["a.mp4", "a.y4m"] {
                let path = folder.path().join(name);
                let mut writer = Writer::create(&path, &spec, Scale::NONE).unwrap();
                (0..spec.frames).for_each(|index| writer.push(&frame(&spec, index)).unwrap());
                writer.finish().unwrap();
                let found = Reader::open(&path).unwrap().stream().fps.unwrap();
                assert!((found - expected).abs() < 1e-9, "{name} {text}: {found}");
            }
        }
        assert!(std::fs::read(folder.path().join("a.y4m")).unwrap().starts_with(b"YUV4MPEG2 W32 H16 F25:2 Ip"));
    }

    #[test]
    fn mp4_decodes_to_nearly_the_same_picture() {
        let spec = Spec { width: 64, height: 48, fps: Rate::whole(16), frames: 9 };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        let mut writer = Writer::create(&path, &spec, Scale::NONE).unwrap();
        for index in 0..spec.frames {
            writer.push(&frame(&spec, index)).unwrap();
        }
        writer.finish().unwrap();

        let clip = read(&path).unwrap();
        assert_eq!((clip.width, clip.height, clip.fps), (64, 48, Some(16.0)));
        let size = spec.width * spec.height * 3;
        assert_eq!(clip.frames.len(), spec.frames * size);
        for (index, found) in clip.frames.chunks_exact(size).enumerate() {
            let luma = |rgb: &[u8]| yuv::Planes::from_rgb(rgb, Colours::default()).y;
            let pairs = luma(found).into_iter().zip(luma(&frame(&spec, index)));
            let error: f64 = pairs.map(|(a, b)| (a as f64 - b as f64).powi(2)).sum();
            let psnr = 10.0 * (255f64.powi(2) * (size / 3) as f64 / error).log10();
            assert!(psnr > 38.0, "frame {index}: {psnr:.1} dB");
        }
    }

    #[test]
    fn broken_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.mp4", "a.y4m", "a.safetensors", "frames"] {
            let path = folder.path().join(name);
            write(&path).unwrap();
            let inner = if name == "frames" { path.join("frame-0001.png") } else { path.clone() };
            let whole = std::fs::read(&inner).unwrap();
            for length in [0, 1, 7, 9, 40, whole.len() / 2] {
                std::fs::write(&inner, &whole[..length]).unwrap();
                assert!(read(&path).is_err(), "{name} cut to {length} bytes");
            }
            for flip in (0..whole.len()).step_by(whole.len() / 60 + 1) {
                let mut spoiled = whole.clone();
                spoiled[flip] ^= 0xff;
                std::fs::write(&inner, spoiled).unwrap();
                let _ = read(&path); // whatever it says, it returns
            }
        }
        let empty = folder.path().join("empty.y4m");
        std::fs::write(&empty, "YUV4MPEG2 W4 H4 F8:1 C444\n").unwrap();
        assert!(read(&empty).unwrap().as_frames().is_err(), "no frames, nothing to measure");
        let vast = ::safetensors::tensor::TensorView::new(::safetensors::Dtype::U8, vec![0, 1 << 31, 1 << 31, 3], &[])
            .unwrap();
        let path = folder.path().join("vast.safetensors");
        std::fs::write(&path, ::safetensors::serialize([("frames", vast)], None).unwrap()).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("16384"));
        assert!(read(&folder.path().join("missing.mp4")).is_err());
        assert!(read(&folder.path().join("a.gif")).unwrap_err().to_string().contains("GIF"));
    }

    #[test]
    fn gif_lasts_as_long_as_the_video() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gif");
        write(&path).unwrap();
        let mut reader = ::gif::DecodeOptions::new().read_info(std::fs::File::open(&path).unwrap()).unwrap();
        let mut delays = Vec::new();
        while let Some(frame) = reader.read_next_frame().unwrap() {
            assert_eq!((frame.width, frame.height), (32, 16));
            delays.push(frame.delay);
        }
        assert_eq!(delays, [13, 12, 13], "eighths of a second, in hundredths");
    }
}
