//! A call writes over nothing that it reads, and no two things to one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file of a call, and what names it there.
pub type Named<'a> = (&'static str, &'a Path);

/// Refuses a call that would lose a file of its own. Devices and pipes lose nothing.
///
/// # Errors
/// Two of what is written, or one of them and what is read, are the same file.
pub fn refuse<'a>(
    written: impl IntoIterator<Item = Named<'a>>,
    read: impl IntoIterator<Item = Named<'a>>,
) -> Result<()> {
    let mut taken: BTreeMap<PathBuf, &str> = read.into_iter().map(|(what, path)| (place(path), what)).collect();
    for (what, path) in written.into_iter().filter(|(_, path)| !is_stream(path)) {
        if let Some(other) = taken.insert(place(path), what) {
            let expected = format!("is {other} too, which would be lost; give another name");
            return Err(Error::Arguments { what, found: path.display().to_string(), expected });
        }
    }
    Ok(())
}

/// A file that may have been left out.
pub fn given<'a>((what, path): (&'static str, Option<&'a Path>)) -> Option<Named<'a>> {
    Some((what, path?))
}

/// Where a path leads, whether or not there is something already.
fn place(path: &Path) -> PathBuf {
    let of_folder = || {
        let folder = navicache_media::folder_of(path).canonicalize()?;
        Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
    };
    path.canonicalize().or_else(|_| of_folder()).unwrap_or_else(|_| path.to_path_buf())
}

fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir())
}
