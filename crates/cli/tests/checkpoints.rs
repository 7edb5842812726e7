//! Checkpoints as a user has them: a run that is stopped, interrupted or killed goes on to the same bytes.

mod program;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use program::{files, stderr};

/// A short generation, quiet and of few steps.
const SHORT: [&str; 9] = ["generate", "--quiet", "--size", "32x32", "--frames", "5", "--steps", "12", "--output"];
const PROMPT: &str = "a red circle bouncing on a navy background";

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = program::command(folder);
    command.args(args);
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

fn short<'a>(output: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    [&SHORT, &[output][..], extra].concat()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Steps that a checkpoint holds, where there is one.
fn steps_in(path: &Path) -> Option<usize> {
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    Some(header.metadata().as_ref().unwrap()["step"].parse().unwrap())
}

#[test]
fn stopping_and_going_on() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(code(&run(folder.path(), &short("whole.mp4", &[PROMPT]))), Some(0));

    let stopped = run(folder.path(), &short("a.mp4", &[PROMPT, "--checkpoint", "a.ckpt", "--stop-after", "5"]));
    assert_eq!(code(&stopped), Some(75));
    assert!(stderr(&stopped).contains("stopped after 5 of 12 steps, as was asked for; a.ckpt holds them"));
    assert_eq!(files(folder.path()), ["a.ckpt", "whole.mp4"], "no video, and nothing half-written");
    assert_eq!(steps_in(&folder.path().join("a.ckpt")), Some(5));

    // The same command again would lose what is there; another seed is not this run.
    let again = run(folder.path(), &short("a.mp4", &[PROMPT, "--checkpoint", "a.ckpt"]));
    assert_eq!(code(&again), Some(1));
    assert!(stderr(&again).contains("a.ckpt: holds 5 of 12 steps of an earlier run"), "{}", stderr(&again));
    let other = run(folder.path(), &short("a.mp4", &["--resume", "a.ckpt", "--seed", "8"]));
    assert_eq!(code(&other), Some(1));
    assert!(stderr(&other).contains("a.ckpt: was made for seed 0, this is 8"), "{}", stderr(&other));

    // The file is enough. It is written on, and removed when the video is there.
    let more = run(folder.path(), &["generate", "-q", "-o", "a.mp4", "--resume", "a.ckpt", "--stop-after", "3"]);
    assert_eq!(code(&more), Some(75), "{}", stderr(&more));
    assert_eq!(steps_in(&folder.path().join("a.ckpt")), Some(8));
    let report = ["generate", "-q", "-o", "a.mp4", "--resume", "a.ckpt", "--keep-checkpoint", "--report", "a.json"];
    assert_eq!(code(&run(folder.path(), &report)), Some(0));
    assert!(bytes("a.mp4") == bytes("whole.mp4"));
    let report: serde_json::Value = serde_json::from_slice(&bytes("a.json")).unwrap();
    assert_eq!(report["steps"].as_array().unwrap().len(), 12);
    assert_eq!(steps_in(&folder.path().join("a.ckpt")), Some(12), "kept, as was asked for");

    // All steps are done: it can be decoded once more, in two ways.
    assert_eq!(code(&run(folder.path(), &["generate", "-q", "-o", "b.mp4", "--resume-decode", "a.ckpt"])), Some(0));
    assert!(bytes("b.mp4") == bytes("whole.mp4"));
    assert_eq!(code(&run(folder.path(), &["generate", "-q", "-o", "c.mp4", "--resume", "a.ckpt"])), Some(0));
    assert!(bytes("c.mp4") == bytes("whole.mp4"));
    assert_eq!(files(folder.path()), ["a.json", "a.mp4", "b.mp4", "c.mp4", "whole.mp4"]);

    // How much it is enlarged is in the file too; another factor may be asked for.
    assert_eq!(code(&run(folder.path(), &short("large.mp4", &[PROMPT, "--scale", "3"]))), Some(0));
    let half = ["--checkpoint", "l.ckpt", "--stop-after", "5", "--scale", "3"];
    assert_eq!(code(&run(folder.path(), &short("l.mp4", &[&[PROMPT], &half[..]].concat()))), Some(75));
    let go_on = ["generate", "-q", "--resume", "l.ckpt", "--keep-checkpoint", "-o"];
    assert_eq!(code(&run(folder.path(), &[&go_on[..], &["l.mp4"]].concat())), Some(0));
    assert!(bytes("l.mp4") == bytes("large.mp4"));
    assert_eq!(code(&run(folder.path(), &[&go_on[..], &["small.mp4", "--scale", "1"]].concat())), Some(0));
    let decode = ["generate", "-q", "--resume-decode", "l.ckpt", "--scale", "1", "-o", "decoded.mp4"];
    assert_eq!(code(&run(folder.path(), &decode)), Some(0));
    assert!(bytes("small.mp4") == bytes("decoded.mp4") && bytes("small.mp4") != bytes("large.mp4"));

    for (args, part) in [
        (&["--stop-after", "3"][..], "--checkpoint"),
        (&["--keep-checkpoint"], "--checkpoint"),
        (&["--checkpoint", "a.ckpt", "--allow-other-build"], "--resume"),
        (&["--checkpoint", "a.ckpt", "--checkpoint-every", "0"], "auto or a number of steps"),
        (&["--checkpoint", "no/such/folder/a.ckpt"], "no/such/folder"),
        (&["--checkpoint", "a.mp4"], "is there already and no checkpoint"),
        (&["--resume", "no.ckpt"], "no.ckpt"),
    ] {
        let wrong = run(folder.path(), &short("d.mp4", &[&[PROMPT], args].concat()));
        assert!(!wrong.status.success() && stderr(&wrong).contains(part), "{args:?}: {}", stderr(&wrong));
    }
}

/// Starts a long generation that leaves a checkpoint after every step, from what is there.
fn start(folder: &Path) -> Child {
    let mut args = vec!["generate", "-q", "--size", "48x48", "--frames", "9", "--steps", "30", "-o", "killed.mp4"];
    args.extend(["--checkpoint", "k.ckpt", "--checkpoint-every", "1", "--cache", "navicache,threshold=0.1"]);
    args.extend(if folder.join("k.ckpt").exists() { ["--resume", "k.ckpt"] } else { ["--seed", "0"] });
    args.push(PROMPT);
    command(folder, &args).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a checkpoint holds more steps than before, or the run is over.
fn wait_for_more(child: &mut Child, path: &Path, steps: usize) {
    let since = Instant::now();
    while steps_in(path).unwrap_or(0) <= steps && child.try_wait().unwrap().is_none() {
        assert!(since.elapsed() < Duration::from_secs(120), "no checkpoint for two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_again_and_again_makes_the_same_bytes() {
    use std::os::unix::process::ExitStatusExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.ckpt");
    let args =
        ["generate", "-q", "--size", "48x48", "--frames", "9", "--steps", "30", "--cache", "navicache,threshold=0.1"];
    assert_eq!(code(&run(folder.path(), &[&args[..], &["-o", "whole.mp4", PROMPT]].concat())), Some(0));
    let (mut held, mut kills) = (0, 0);
    for pause in [0, 3, 11, 29, 47] {
        let mut child = start(folder.path());
        wait_for_more(&mut child, &path, held);
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        kills += usize::from(child.wait().unwrap().signal() == Some(9));
        let holds = steps_in(&path).unwrap();
        assert!(holds > held, "{holds} after {held}: a kill costs no step that was done before");
        held = holds;
    }
    assert!(kills >= 4, "only {kills} of 5 runs were still there to be killed");

    // Ctrl-C and a polite end leave one too, and say where it is.
    for signal in ["-INT", "-TERM"] {
        let mut child = start(folder.path());
        wait_for_more(&mut child, &path, held);
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(code(&output), Some(130), "{}", stderr(&output));
        assert!(steps_in(&path).unwrap() > held);
        held = steps_in(&path).unwrap();
    }
    let output = start(folder.path()).wait_with_output().unwrap();
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(
        std::fs::read(folder.path().join("killed.mp4")).unwrap()
            == std::fs::read(folder.path().join("whole.mp4")).unwrap()
    );
    assert_eq!(files(folder.path()), ["killed.mp4", "whole.mp4"], "nothing half-written is left");
}
