//! Signals, outputs that cannot be written, and environments that would do harm.
#![cfg(unix)]

mod program;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use program::stderr as said;

fn navicache(folder: &Path) -> Command {
    let mut command = program::command(folder);
    command.env("XDG_CACHE_HOME", folder).stdin(Stdio::null());
    command
}

const SHORT: &[&str] = &["generate", "a cat", "--size", "32x32", "--frames", "1", "--steps", "2", "-o", "o.mp4"];

#[test]
#[cfg(target_os = "linux")]
fn output_that_is_lost_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["methods", "--json"][..], &["models"], &["completions", "bash"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = navicache(folder.path()).args(arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains("standard output"), "{}", said(&output));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = navicache(folder.path()).args(["methods", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Runs a long generation under `sh -c`, sends it a signal when it is under way, and waits for its end.
#[cfg(target_os = "linux")]
fn signalled(before: &str, signal: &str) -> (Option<i32>, bool) {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("{before} exec \"$0\" generate cat --size 32x32 --frames 1 --steps 60 --cache none -o o.mp4");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line, env!("CARGO_BIN_EXE_navicache")]).current_dir(folder.path());
    let mut child = shell.env("XDG_CACHE_HOME", folder.path()).stderr(Stdio::piped()).spawn().unwrap();
    // The latents' file is tried when the request is understood, a moment before the first step.
    std::thread::sleep(Duration::from_millis(300));
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    let ended_before = !sent.success() || child.try_wait().unwrap().is_some();
    let code = child.wait().unwrap().code();
    assert!(!ended_before || code == Some(0), "ended with {code:?} before the signal");
    (code, folder.path().join("o.mp4").exists())
}

#[test]
#[cfg(target_os = "linux")]
fn a_hangup_that_is_ignored_stays_ignored() {
    assert_eq!(signalled("trap '' HUP;", "-HUP"), (Some(0), true));
}

#[test]
fn a_program_in_the_current_folder_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let stranger = folder.path().join("navicache-cuda");
    std::fs::write(&stranger, "#!/bin/sh\ntouch ran\nexit 0\n").unwrap();
    std::fs::set_permissions(&stranger, std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in [":/usr/bin:/bin", "/usr/bin:.:/bin", "/usr/bin:"] {
        let output = navicache(folder.path()).args(SHORT).env("PATH", path).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(!folder.path().join("ran").exists(), "PATH={path}");
    }
}

#[test]
fn threads_are_bounded_by_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let output = navicache(folder.path()).args(SHORT).env("RAYON_NUM_THREADS", "100000").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn several_videos_in_one_call() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.txt"), "a red circle\na blue star\n").unwrap();
    let arguments = ["generate", "--prompts", "p.txt", "--seeds", "1,2", "-o", "v.y4m", "--report", "r.json"];
    let short = ["--size", "32x32", "--frames", "1", "--steps", "2", "--cache", "none"];
    let output = navicache(folder.path()).args(arguments).args(short).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let videos = ["v-1-seed1.y4m", "v-1-seed2.y4m", "v-2-seed1.y4m", "v-2-seed2.y4m"].map(read);
    assert!(videos.iter().enumerate().all(|(i, video)| !videos[..i].contains(video)));

    // The same as alone, and from standard input.
    let mut child = navicache(folder.path());
    child.args(["generate", "-", "--seed", "2", "-o", "one.y4m"]).args(short).stdin(Stdio::piped());
    let mut child = child.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"a blue star\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(read("one.y4m"), videos[3]);
    assert!(String::from_utf8(read("r-2-seed2.json")).unwrap().contains("\"seed\": 2"));
}

#[test]
#[cfg(target_os = "linux")]
fn files_that_never_end_are_refused_wherever_one_is_read() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    for endless in ["pipe", "/dev/zero"] {
        let (preset, strip) = (format!("@{endless}"), format!("schedule:{endless}"));
        let of_target = format!("speedup=2,curve={endless}");
        for arguments in [
            [SHORT, &["--cache", &preset]].concat(),
            [SHORT, &["--cache", &strip]].concat(),
            [SHORT, &["--cache", "navicache", "--target", &of_target]].concat(),
            [SHORT, &["--latents", endless]].concat(),
            vec!["generate", "--prompts", endless, "-o", "o.mp4"],
            vec!["replay", endless, "--cache", "navicache"],
            vec!["tune", "--speedup", "2", endless],
            vec!["vbench", "-o", "videos", endless],
        ] {
            let output = navicache(folder.path()).args(&arguments).output().unwrap();
            assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {}", said(&output));
            assert!(said(&output).contains("is no regular file"), "{arguments:?}: {}", said(&output));
        }
    }
    let name = format!("{}.mp4", "a".repeat(300));
    let output = navicache(folder.path()).args([SHORT, &["--checkpoint", &name]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}
