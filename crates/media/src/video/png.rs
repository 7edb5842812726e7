//! A folder of PNG files, `frame-0000.png` and on.

use std::ffi::OsStr;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::format::{Format, Purpose, Sink, Source, any_fits};
use super::stream::Stream;
use crate::whole_file::{draft_folder, sync_folder};
use crate::{Error, Result, Spec, folder_of, open_file};

pub(super) static FORMAT: Format = Format {
    ending: None,
    about: "a folder of PNG files: lossless",
    purpose: Purpose::Data,
    check,
    fits: any_fits,
    fastest: None,
    create: |path, spec| Ok(Box::new(PngFolder::create(path, spec)?)),
    open: Ok(open),
};

/// Frames are written to a hidden folder beside the final one, which is renamed at the end.
pub(super) struct PngFolder {
    path: PathBuf,
    folder: TempDir,
    /// Says that the folder is being written.
    lock: fs::File,
    spec: Spec,
    next: usize,
}

/// Whether the folder could be made, and holds nothing that is not ours if it is there.
fn check(path: &Path) -> Result<()> {
    temporary(path).map(drop)
}

fn temporary(path: &Path) -> Result<(TempDir, fs::File)> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(Error::io(path))? {
            let name = entry.map_err(Error::io(path))?.file_name();
            if !is_frame(&name) {
                let reason = format!("holds {}, which is no frame; name an empty or a new folder", name.display());
                return Err(Error::file(path, reason));
            }
        }
    } else if path.exists() {
        return Err(Error::file(
            path,
            "is a file; name a new folder for PNG files, or a file by the ending of its format",
        ));
    }
    draft_folder(folder_of(path)).map_err(Error::io(path))
}

/// Whether a name is that of a frame: `frame-0000.png` and on.
pub fn is_frame(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let digits = name.strip_prefix("frame-").and_then(|rest| rest.strip_suffix(".png"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

impl PngFolder {
    pub fn create(path: &Path, spec: &Spec) -> Result<Self> {
        let path = if path.is_dir() { path.canonicalize().map_err(Error::io(path))? } else { path.to_path_buf() };
        let (folder, lock) = temporary(&path)?;
        Ok(PngFolder { path, folder, lock, spec: *spec, next: 0 })
    }

    fn write(&self, file: fs::File, rgb: &[u8]) -> Result<(), png::EncodingError> {
        let mut encoder =
            png::Encoder::new(std::io::BufWriter::new(&file), self.spec.width as u32, self.spec.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(rgb)?;
        writer.finish()?;
        Ok(file.sync_all()?)
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
        let PngFolder { path, folder, lock, .. } = *self;
        if path.is_dir() {
            check(&path)?; // nothing of the user's may have come since
        }
        put_in_place(folder, &path).map_err(Error::io(&path))?;
        drop(lock);
        Ok(())
    }
}

/// Gives a folder its name. One that has it already is moved aside first and removed last.
fn put_in_place(folder: TempDir, path: &Path) -> std::io::Result<()> {
    let aside = match path.is_dir() {
        true => {
            let (aside, lock) = draft_folder(folder_of(path))?;
            fs::rename(path, aside.path().join("old"))?;
            Some((aside, lock))
        }
        false => None,
    };
    if let Err(error) = fs::rename(folder.path(), path) {
        if let Some((aside, _)) = &aside {
            fs::rename(aside.path().join("old"), path)?;
        }
        return Err(error);
    }
    let _ = folder.keep(); // it is not there any more under this name
    sync_folder(folder_of(path))
}

/// The PNG files of a folder, in the order in which people count: `9.png` before `10.png`.
struct PngReader {
    paths: std::vec::IntoIter<PathBuf>,
    stream: Stream,
}

fn open(folder: &Path) -> Result<Box<dyn Source>> {
    let mut paths = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(Error::io(folder))?;
    paths.retain(|path| is_png(path));
    paths.sort_by_cached_key(|path| natural(&path.file_name().unwrap_or_default().to_string_lossy()));
    let first = paths.first().ok_or_else(|| Error::file(folder, "expected PNG files, found none"))?;
    let (_, width, height) = header_of(first)?;
    let stream = Stream { width, height, frames: Some(paths.len()), ..Stream::default() };
    Ok(Box::new(PngReader { paths: paths.into_iter(), stream }))
}

/// A name in pieces: text, then the number after it by its size, and by how it is written.
fn natural(name: &str) -> Vec<(String, usize, String)> {
    let mut pieces = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let (text, after) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let (number, after) = after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len()));
        let digits = number.trim_start_matches('0');
        pieces.push((text.to_string(), digits.len(), format!("{digits} {number}")));
        rest = after;
    }
    pieces
}

impl Source for PngReader {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.paths.next() else { return Ok(None) };
        let (decoder, width, height) = header_of(&path)?;
        if (width, height) != (self.stream.width, self.stream.height) {
            let Stream { width: w, height: h, .. } = self.stream;
            return Err(Error::file(path, format!("expected {w}x{h} like the first frame, found {width}x{height}")));
        }
        pixels_of(&path, decoder).map(Some)
    }
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"))
}

/// Whether a folder holds PNG files, so that it is a video.
pub fn holds_png(folder: &Path) -> Result<bool> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    Ok(entries.flatten().any(|entry| is_png(&entry.path())))
}

type Decoder = png::Reader<BufReader<fs::File>>;

/// A picture whose header was read, its width and height.
fn header_of(path: &Path) -> Result<(Decoder, usize, usize)> {
    let mut decoder = png::Decoder::new(BufReader::new(open_file(path)?));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let reader = decoder.read_info().map_err(|e| Error::file(path, e.to_string()))?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    Stream { width, height, ..Stream::default() }.check_size(path)?;
    Ok((reader, width, height))
}

/// Its RGB; transparency is dropped.
fn pixels_of(path: &Path, mut reader: Decoder) -> Result<Vec<u8>> {
    let size = reader.output_buffer_size().ok_or_else(|| Error::file(path, "too large a picture"))?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(|e| Error::file(path, e.to_string()))?;
    pixels.truncate(info.buffer_size());
    Ok(match info.color_type.samples() {
        1 => pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
        2 => pixels.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        3 => pixels,
        _ => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names =
            ["10.png", "2.png", "1.png", "a10b2.png", "a9b11.png", "01.png", "frame-0011.png", "frame-0002.png"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(
            names,
            ["01.png", "1.png", "2.png", "10.png", "a9b11.png", "a10b2.png", "frame-0002.png", "frame-0011.png"]
        );
    }
}
