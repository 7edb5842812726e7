//! The program as tests run it: in a folder of their own, and without the configuration of whoever runs them.
#![allow(dead_code)] // not every test needs all of it

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A call in a folder, to be filled.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_navicache"));
    command.current_dir(folder).env("NAVICACHE_CONFIG", "");
    command
}

/// Runs a call to its end.
pub fn navicache(folder: &Path, args: &[&str]) -> Output {
    command(folder).args(args).output().unwrap()
}

/// A shell in a folder, with the program as `$navicache`.
#[cfg(unix)]
pub fn shell(folder: &Path, script: &str) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder).env("NAVICACHE_CONFIG", "");
    shell.env("navicache", env!("CARGO_BIN_EXE_navicache")).output().unwrap()
}

/// What was said on the error stream.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Names in a folder, in order.
pub fn files(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// The embedded model in a folder of its own.
pub fn model() -> TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(drop).unwrap() }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo"), folder.path());
    folder
}

/// Changes a file of JSON.
pub fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}
