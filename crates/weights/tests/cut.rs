//! A weight file that is cut short while it is mapped ends the program with a message.
#![cfg(any(target_os = "linux", target_os = "macos"))]

use std::path::Path;
use std::process::Command;

use navicache_weights::{WeightFile, explain_cut_files};

/// Says to this test's own program that it is the one to end, and which file it maps.
const FILE: &str = "NAVICACHE_TEST_CUT";

#[test]
fn a_file_that_is_cut_short_ends_in_a_message() {
    if let Some(path) = std::env::var_os(FILE) {
        return read_cut(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    std::fs::write(&path, vec![1u8; 1 << 20]).unwrap();
    let program = std::env::current_exe().unwrap();
    let test = ["a_file_that_is_cut_short_ends_in_a_message", "--exact", "--nocapture"];
    let ended = Command::new(program).args(test).env(FILE, &path).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("weights.safetensors: it was cut short while it was in use"), "{said}");
}

fn read_cut(path: &Path) {
    explain_cut_files();
    let other = WeightFile::map(path).unwrap();
    drop(other);
    let file = WeightFile::map(path).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
    let sum: u64 = file.bytes().iter().map(|&byte| byte as u64).sum();
    panic!("read {sum} of a file of 4096 bytes");
}
