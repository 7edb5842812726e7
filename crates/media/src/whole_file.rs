//! A file that is written whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::{Error, Result, fail_point};

/// How the names of files and folders under way begin and end.
const UNDER_WAY: (&str, &str) = (".navicache-", ".part");

/// The folder that holds a path.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes under a temporary name in the same folder; [`WholeFile::finish`] gives it its own. Dropped before, it leaves
/// nothing.
///
/// A pipe or a device is never replaced: what is written goes to a temporary file first, and into the pipe or device at
/// the end.
pub struct WholeFile {
    path: PathBuf,
    file: BufWriter<Draft>,
}

/// What is written until it is whole.
enum Draft {
    /// To be renamed to this, in the same folder.
    Beside(NamedTempFile, PathBuf),
    /// To be copied.
    Elsewhere(File),
}

impl Draft {
    fn file(&mut self) -> &mut File {
        match self {
            Draft::Beside(file, _) => file.as_file_mut(),
            Draft::Elsewhere(file) => file,
        }
    }
}

impl WholeFile {
    /// Opens the temporary file: an unwritable folder is found here, before there is anything to lose. Clears away what
    /// runs that were killed have left in the folder.
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_for(path, Readers::ByMask)
    }

    /// The same, for a file that nobody but its owner may read, from its first byte on.
    pub fn create_private(path: &Path) -> Result<Self> {
        Self::create_for(path, Readers::Owner)
    }

    fn create_for(path: &Path, readers: Readers) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::file(path, "expected the name of a file, found a folder"));
        }
        check_name(path)?;
        let draft = if is_written_into(path) {
            Draft::Elsewhere(tempfile::tempfile().map_err(Error::io(std::env::temp_dir()))?)
        } else {
            let target = behind_links(path)?;
            Draft::Beside(draft_file(folder_of(&target), readers).map_err(Error::io(path))?, target)
        };
        Ok(WholeFile { path: path.to_path_buf(), file: BufWriter::new(draft) })
    }

    /// Writes `bytes` and finishes.
    pub fn finish_with(mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(Error::io(&self.path))?;
        self.finish()
    }

    /// Writes what is left and renames, or copies into the pipe or device.
    pub fn finish(self) -> Result<()> {
        let path = self.path;
        let draft = self.file.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?;
        let finished = match draft {
            Draft::Beside(file, target) => finish_file(file, &target),
            Draft::Elsewhere(draft) => copy_into(draft, &path),
        };
        finished.map_err(Error::io(&path))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for WholeFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file().write(bytes);
        fail_point("file begun");
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file().seek(to)
    }
}

/// Refuses a name that no file can have, as one that is too long: better now than after hours.
fn check_name(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// Whether a name stands for something that is written into and never replaced: a pipe, a device, an open file.
fn is_written_into(path: &Path) -> bool {
    let of_the_system = ["/dev", "/proc"].iter().any(|folder| path.starts_with(folder));
    fs::metadata(path).is_ok_and(|kind| !kind.is_file() || of_the_system)
}

/// What a name leads to: a link stays one, the file behind it is written.
fn behind_links(path: &Path) -> Result<PathBuf> {
    const LONGEST_CHAIN: usize = 40;
    let mut target = path.to_path_buf();
    for _ in 0..LONGEST_CHAIN {
        match fs::read_link(&target) {
            Ok(next) => target = folder_of(&target).join(next),
            Err(_) => return Ok(target),
        }
    }
    Err(Error::file(path, "is a link that leads to itself"))
}

/// Who may read a new file.
#[derive(Clone, Copy, PartialEq)]
enum Readers {
    /// Everybody, less what the user's mask takes away.
    ByMask,
    Owner,
}

/// A new file under a temporary name. It is locked as long as its writer lives.
fn draft_file(folder: &Path, readers: Readers) -> io::Result<NamedTempFile> {
    sweep(folder);
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNDER_WAY.0).suffix(UNDER_WAY.1);
        #[cfg(unix)]
        if readers == Readers::ByMask {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666)); // else it is its owner's
        }
        #[cfg(not(unix))]
        let _ = readers;
        let file = builder.tempfile_in(folder)?;
        let _ = file.as_file().lock(); // where there are no locks, nothing is swept either
        if file.path().exists() {
            return Ok(file); // else another run swept it before it was locked
        }
    }
}

/// A new folder under a temporary name, and the lock that says that its writer lives: once that is let go of, any run
/// may sweep the folder, unless it was renamed.
pub fn draft_folder(folder: &Path) -> io::Result<(TempDir, File)> {
    sweep(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNDER_WAY.0).suffix(UNDER_WAY.1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777)); // less what the user's mask takes away
    }
    let draft = builder.tempdir_in(folder)?;
    let lock = File::open(draft.path())?;
    let _ = lock.lock();
    Ok((draft, lock))
}

/// Removes what killed runs left in a folder: everything under a temporary name whose lock nobody holds. What cannot be
/// looked at stays.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(UNDER_WAY.0) || !name.ends_with(UNDER_WAY.1) {
            continue;
        }
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn finish_file(file: NamedTempFile, target: &Path) -> io::Result<()> {
    fail_point("file written");
    file.as_file().sync_all()?;
    fail_point("file synced");
    if fs::symlink_metadata(target).is_ok_and(|kind| !kind.is_file()) {
        return Err(io::Error::other("became something that is no regular file; it is left as it is"));
    }
    file.persist(target).map_err(|e| e.error)?;
    fail_point("file renamed");
    sync_folder(folder_of(target))?;
    fail_point("file kept");
    Ok(())
}

/// Puts the names in a folder on disk, where the system can.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    match File::open(folder)?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {}
        synced => return synced,
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

fn copy_into(mut draft: File, path: &Path) -> io::Result<()> {
    let mut target = File::options().write(true).open(path)?;
    draft.rewind()?;
    io::copy(&mut draft, &mut target)?;
    target.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert!(names(folder.path()).is_empty());
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["a.json"]);
        assert!(WholeFile::create(folder.path()).is_err());
        assert!(WholeFile::create(&folder.path().join("a".repeat(300))).is_err());
        assert!(WholeFile::create(&folder.path().join("no/such/a.json")).is_err());
    }

    #[test]
    fn what_killed_runs_left_is_swept_and_what_is_under_way_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(".navicache-killed.part");
        fs::write(&left, "half").unwrap();
        fs::create_dir(folder.path().join(".navicache-killed-too.part")).unwrap();
        fs::write(folder.path().join(".navicache-killed-too.part/frame-0000.png"), "half").unwrap();
        fs::write(folder.path().join(".other.part"), "not ours").unwrap();
        let mut first = WholeFile::create(&folder.path().join("a")).unwrap();
        assert_eq!(names(folder.path()).len(), 2, "{:?}", names(folder.path()));
        let (frames, lock) = draft_folder(folder.path()).unwrap();
        let second = WholeFile::create(&folder.path().join("b")).unwrap();
        assert!(frames.path().exists());
        first.write_all(b"whole").unwrap();
        first.finish().unwrap();
        second.finish_with(b"whole").unwrap();
        drop((frames, lock));
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, [".other.part", "a", "b"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, "before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        WholeFile::create_private(&path).unwrap().finish_with(b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("data")).unwrap();
        std::os::unix::fs::symlink("data/a.json", at("latest")).unwrap();
        for text in ["first", "second"] {
            WholeFile::create(&at("latest")).unwrap().finish_with(text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(at("data/a.json")).unwrap(), text);
            assert!(fs::symlink_metadata(at("latest")).unwrap().is_symlink());
        }
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert!(WholeFile::create(&at("loop")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_written_into_and_stays() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        drop(WholeFile::create(&pipe).unwrap()); // a look ahead does not wait for a reader, nor end what it reads
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        let mut file = WholeFile::create(&pipe).unwrap();
        file.write_all(b"???le").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"who").unwrap();
        file.finish().unwrap();
        assert_eq!(reader.join().unwrap(), b"whole");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(names(folder.path()), ["pipe"]);
    }
}
