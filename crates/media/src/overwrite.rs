//! What is written over nothing that is read, and no two things to one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::folder_of;

/// The first file to be written whose place is taken, by what is read or by what is written too: what it is, where, and
/// what would be lost. Devices and pipes lose nothing.
pub fn overwritten<'a, N: Copy>(
    written: impl IntoIterator<Item = (N, &'a Path)>,
    read: impl IntoIterator<Item = (N, &'a Path)>,
) -> Option<(N, &'a Path, N)> {
    let mut taken: BTreeMap<PathBuf, N> = read.into_iter().map(|(what, path)| (place(path), what)).collect();
    let mut files = written.into_iter().filter(|(_, path)| !is_stream(path));
    files.find_map(|(what, path)| Some((what, path, taken.insert(place(path), what)?)))
}

/// Where a path leads, whether or not there is something already.
fn place(path: &Path) -> PathBuf {
    let of_folder = || {
        let folder = folder_of(path).canonicalize()?;
        Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
    };
    path.canonicalize().or_else(|_| of_folder()).unwrap_or_else(|_| path.to_path_buf())
}

fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir())
}
