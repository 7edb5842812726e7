//! A folder of PNG files, `frame-0000.png` and on.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{FORMATS, Format, Sink, endings};
use crate::folder_of;
use crate::{Clip, Error, Result, Spec};

pub(super) static FORMAT: Format = Format {
    ending: None,
    about: "a folder of PNG files: lossless",
    check: check,
    create: |path, spec| Ok(Box::new(PngFolder::create(path, spec)?)),
    read: Ok(read),
};

/// Frames are written to a hidden folder beside the final one, which is renamed at the end.
pub(super) struct PngFolder {
    path: PathBuf,
    folder: TempDir,
    spec: Spec,
    next: usize,
}

/// Whether the folder could be made, and holds nothing that is not ours if it is there.
fn check(path: &Path) -> Result<()> {
    temporary(path).map(drop)
}

fn temporary(path: &Path) -> Result<TempDir> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(Error::io(path))? {
            let name = entry.map_err(Error::io(path))?.file_name();
            if !is_frame(&name) {
                let reason = format!("holds {}, which is no frame; name an empty or a new folder", name.display());
                return Err(Error::file(path, reason));
            }
        }
    } else if path.exists() {
        let endings = endings(FORMATS.iter().copied());
        return Err(Error::file(path, format!("is a file; name a new folder, or end the name in {endings}")));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".navicache-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777)); // less what the user's mask takes away
    }
    builder.tempdir_in(folder_of(path)).map_err(Error::io(path))
}

fn is_frame(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let digits = name.strip_prefix("frame-").and_then(|rest| rest.strip_suffix(".png"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

impl PngFolder {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        Ok(PngFolder { path: path.to_path_buf(), folder: temporary(path)?, spec: *spec, next: 0 })
    }

    fn write(&self, file: fs::File, rgb: &[u8]) -> Result<(), png::EncodingError> {
        let mut encoder =
            png::Encoder::new(std::io::BufWriter::new(file), self.spec.width as u32, self.spec.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(rgb)?;
        writer.finish()
    }
}

impl Sink for PngFolder {
    fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let path = self.folder.path().join(format!("frame-{:04}.png", self.next));
        self.next += 1;
        let file = fs::File::create(&path).map_err(Error::io(&self.path))?;
        self.write(file, rgb).map_err(|e| match e {
            png::EncodingError::IoError(source) => Error::io(&self.path)(source),
            other => Error::file(&self.path, other.to_string()),
        })
    }

    fn finish(self: Box<Self>) -> Result<()> {
        if self.path.is_dir() {
            check(&self.path)?; // nothing of the user's may have come since
            fs::remove_dir_all(&self.path).map_err(Error::io(&self.path))?;
        }
        let folder = self.folder.keep();
        fs::rename(&folder, &self.path).map_err(|source| {
            let _ = fs::remove_dir_all(&folder); // the first error is the one to tell
            Error::io(&self.path)(source)
        })
    }
}

/// Reads the PNG files of a folder in the order of their names.
fn read(folder: &Path) -> Result<Clip> {
    let mut paths = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(Error::io(folder))?;
    paths.retain(|path| is_png(path));
    paths.sort();
    let mut clip: Option<Clip> = None;
    for path in paths {
        let (width, height, pixels) = read_picture(&path)?;
        let clip = clip.get_or_insert_with(|| Clip { width, height, fps: None, frames: Vec::new() });
        if (width, height) != (clip.width, clip.height) {
            let reason =
                format!("expected {}x{} like the first frame, found {width}x{height}", clip.width, clip.height);
            return Err(Error::file(path, reason));
        }
        clip.frames.extend(pixels);
    }
    clip.ok_or_else(|| Error::file(folder, "expected PNG files, found none"))
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"))
}

/// Whether a folder holds PNG files, so that it is a video.
pub fn holds_png(folder: &Path) -> Result<bool> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    Ok(entries.flatten().any(|entry| is_png(&entry.path())))
}

/// Width, height and RGB of a picture; transparency is dropped.
fn read_picture(path: &Path) -> Result<(usize, usize, Vec<u8>)> {
    let wrong = |e: png::DecodingError| Error::file(path, e.to_string());
    let file = fs::File::open(path).map_err(Error::io(path))?;
    let mut decoder = png::Decoder::new(std::io::BufReader::new(file));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(wrong)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    super::check_size(path, width, height)?;
    let size = reader.output_buffer_size().ok_or_else(|| Error::file(path, "too large a picture"))?;
    let mut buffer = vec![0; size];
    let info = reader.next_frame(&mut buffer).map_err(wrong)?;
    let pixels = &buffer[..info.buffer_size()];
    let rgb = match info.color_type.samples() {
        1 => pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
        2 => pixels.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        3 => pixels.to_vec(),
        _ => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
    };
    Ok((width, height, rgb))
}
