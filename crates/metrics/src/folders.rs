//! Folders of videos, compared pairwise by name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use navicache_media::video::{Format, endings_read, holds_png};

use crate::{Comparison, Error, Meter, Result};

/// Two videos of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The name of both files, or of both folders of PNG files.
    pub name: String,
    /// The reference, which may be missing.
    pub reference: PathBuf,
    /// The video, which may be missing.
    pub video: PathBuf,
}

impl Pair {
    /// The pairs of two folders of videos by name, and what only one of them has; `None` for two videos. A folder that
    /// holds PNG files is one video.
    pub fn of_folders(reference: &Path, video: &Path) -> Result<Option<Vec<Pair>>> {
        let is_folder = |path: &Path| Ok::<_, Error>(path.is_dir() && !holds_png(path)?);
        match (is_folder(reference)?, is_folder(video)?) {
            (false, false) => return Ok(None),
            (true, true) => {}
            (folder, _) => {
                let (folder, other) = if folder { (reference, video) } else { (video, reference) };
                let reason = format!(
                    "a folder of videos, or an empty one, can be compared with another only; {} is none",
                    other.display()
                );
                return Err(Error::file(folder, reason));
            }
        }
        let names: BTreeSet<OsString> = videos(reference)?.into_iter().chain(videos(video)?).collect();
        if names.is_empty() {
            let reason = format!("expected {} files, or folders of PNG files, found none", endings_read());
            return Err(Error::file(reference, reason));
        }
        let pair = |name: OsString| Pair {
            reference: reference.join(&name),
            video: video.join(&name),
            name: name.to_string_lossy().into_owned(),
        };
        Ok(Some(names.into_iter().map(pair).collect()))
    }

    /// Reads and measures both; an error names the one that is missing, broken or of another size.
    pub fn compare(&self, meter: &Meter) -> Result<Comparison> {
        for (path, other) in [(&self.reference, &self.video), (&self.video, &self.reference)] {
            if !path.exists() {
                return Err(Error::file(path, format!("missing; {} is there", other.display())));
            }
        }
        meter.compare_files(&self.reference, &self.video)
    }
}

/// The names of the videos in a folder: files of the formats that are measured, and folders.
fn videos(folder: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let measured = Format::from_path(&entry.path())
            .is_ok_and(|format| format.is_read() && (format.ending.is_some() || entry.path().is_dir()));
        if measured && !hidden {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| navicache_media::Error::io(path)(source).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        for path in [&a, &b] {
            std::fs::create_dir(path).unwrap();
        }
        assert!(Pair::of_folders(&a, &b).unwrap_err().to_string().contains("found none"));
        for file in ["a/1.mp4", "b/1.mp4", "a/2.y4m", "b/3.safetensors", "a/notes.txt", "b/.4.mp4", "b/5.gif"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        std::fs::create_dir(b.join("6")).unwrap();
        let pairs = Pair::of_folders(&a, &b).unwrap().unwrap();
        assert_eq!(
            pairs.iter().map(|pair| pair.name.as_str()).collect::<Vec<_>>(),
            ["1.mp4", "2.y4m", "3.safetensors", "6"]
        );
        let missing = pairs[1].compare(&Meter::default()).unwrap_err().to_string();
        assert!(missing.contains("b/2.y4m: missing") && missing.contains("a/2.y4m is there"), "{missing}");

        assert!(Pair::of_folders(&a, &a.join("1.mp4")).unwrap_err().to_string().contains("1.mp4 is none"));
        assert_eq!(Pair::of_folders(&a.join("1.mp4"), &a.join("2.y4m")).unwrap(), None);
        std::fs::write(a.join("frame-0000.png"), "").unwrap();
        std::fs::write(b.join("frame-0000.png"), "").unwrap();
        assert_eq!(Pair::of_folders(&a, &b).unwrap(), None, "two folders of PNG files are two videos");
    }
}
