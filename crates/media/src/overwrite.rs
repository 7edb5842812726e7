//! What is written over nothing that is read, and no two things to one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::folder_of;
use crate::video::is_frame;

/// Most links that lead from one to the next.
const LINKS_MAX: usize = 40;

/// The first file to be written whose place is taken, by what is read or by what is written too: what it is, where, and
/// what would be lost. Devices and pipes lose nothing.
pub fn overwritten<'a, N: Copy>(
    written: impl IntoIterator<Item = (N, &'a Path)>,
    read: impl IntoIterator<Item = (N, &'a Path)>,
) -> Option<(N, &'a Path, N)> {
    let mut taken: BTreeMap<PathBuf, N> = read.into_iter().map(|(what, path)| (place(path), what)).collect();
    let mut files = written.into_iter().filter(|(_, path)| !is_stream(path));
    files.find_map(|(what, path)| {
        let at = place(path);
        let of_frames = taken.iter().find(|(other, _)| is_frame_of(&at, other) || is_frame_of(other, &at));
        let of_frames = of_frames.map(|(_, other)| *other);
        Some((what, path, taken.insert(at, what).or(of_frames)?))
    })
}

/// Whether a file has the name of a frame in a folder of them.
fn is_frame_of(file: &Path, folder: &Path) -> bool {
    file.parent() == Some(folder) && file.file_name().is_some_and(is_frame)
}

/// Where a path leads, whether or not there is something already.
fn place(path: &Path) -> PathBuf {
    // A link to nothing: it is written through.
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let Some(target) = path.read_link().ok().filter(|_| !path.exists()) else { break };
        path = folder_of(&path).join(target);
    }
    let of_folder = || {
        let folder = folder_of(&path).canonicalize()?;
        Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
    };
    path.canonicalize().or_else(|_| of_folder()).unwrap_or(path)
}

fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir())
}
