//! What is around a run: exit codes, suggestions, completions, pages, versions, pictures of what is being made.

mod program;

use std::path::Path;
use std::process::Output;

use program::stderr;

const PROMPT: &str = "a red circle bouncing on a navy background";

fn navicache(folder: &Path, args: &[&str]) -> Output {
    program::command(folder).args(args).env("XDG_CACHE_HOME", folder.join("cache")).output().unwrap()
}

#[test]
fn exit_codes_say_whose_fault_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], i32)] = &[
        (&["generate", PROMPT, "--size", "banana"], 2),
        (&["generate", PROMPT, "--size", "60x64"], 2),
        (&["generate", PROMPT, "--cache", "magic"], 2),
        (&["generate", PROMPT, "--cache", "navicache:warp"], 2),
        (&["generate", PROMPT, "--frames", "10"], 2),
        (&["methods", "magic"], 2),
        (&["pull", "wan"], 2),
        (&["generate", PROMPT, "--model", "no/such/model"], 1),
        (&["generate", PROMPT, "-o", "no/such/out.mp4"], 1),
        (&["inspect", "no/such/file"], 1),
        (&["methods"], 0),
    ];
    for (args, code) in cases {
        let output = navicache(folder.path(), args);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {}", stderr(&output));
    }
    let near = |args: &[&str]| stderr(&navicache(folder.path(), args));
    assert!(near(&["generate", PROMPT, "-m", "wan-1.3b"]).contains("did you mean wan2.1-t2v-1.3b?"));
    assert!(near(&["generate", PROMPT, "--cache", "navicahe"]).contains("did you mean navicache?"));
    assert!(near(&["generate", PROMPT, "--cahce", "none"]).contains("--cache"));
}

#[test]
fn no_file_of_a_call_is_lost_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let (name, kept) = ("kept.safetensors", folder.path().join("kept.safetensors"));
    std::fs::write(&kept, "kept").unwrap();
    let cases: &[&[&str]] = &[
        &["generate", PROMPT, "-o", "a.mp4", "--report", "./a.mp4"],
        &["generate", PROMPT, "-o", "a.safetensors", "--save-latents", "a.safetensors"],
        &["generate", PROMPT, "--seeds", "1,1"],
        &["generate", PROMPT, "-o", "a.mp4", "--checkpoint", "a.mp4"],
        &["generate", PROMPT, "--image", "kept.png", "--preview", "kept.png"],
        &["generate", PROMPT, "-o", name, "--latents", name],
        &["generate", PROMPT, "-o", name, "--resume", name],
        &["generate", "--resume-decode", name, "-o", name],
        &["trace", PROMPT, "--latents", name, "-o", name],
        &["tune", name, "--promise", "--cache", "stride", "-o", name],
        &["metrics", name, "other.safetensors", "--csv", name],
    ];
    for args in cases {
        let output = navicache(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("which would be lost"), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else was begun");
}

#[test]
fn completions() {
    let output = navicache(Path::new("."), &["completions", "bash"]);
    let script = String::from_utf8_lossy(&output.stdout).into_owned();
    for completed in ["--negative-prompt", "navicache:fast", "wan2.1-t2v-1.3b", "unipc", "teacache"] {
        assert!(script.contains(completed), "{completed}");
    }
}

#[test]
fn manual_pages_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let output = navicache(folder.path(), &["man", "pages"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let pages = folder.path().join("pages");
    for page in ["navicache.1", "navicache-generate.1", "navicache-config.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}: {text}");
    }
    let version = String::from_utf8(navicache(folder.path(), &["--version"]).stdout).unwrap();
    for part in [env!("CARGO_PKG_VERSION"), "commit: ", "features: ", "instruction sets of this machine: plain"] {
        assert!(version.contains(part), "{part}: {version}");
    }
}

#[test]
fn a_picture_is_left_of_what_is_being_made() {
    let folder = tempfile::tempdir().unwrap();
    // Large enough to take more than the second between two pictures.
    let args = ["generate", PROMPT, "--size", "96x96", "--frames", "33", "--steps", "40", "--cache", "none"];
    let extra = ["--preview", "p.jpg", "--json", "-q", "-o", "v.safetensors"];
    let output = navicache(folder.path(), &[&args[..], &extra].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let events = String::from_utf8(output.stdout).unwrap();
    assert!(events.contains(r#""event":"preview""#), "{events}");
    assert!(std::fs::read(folder.path().join("p.jpg")).unwrap().starts_with(b"\xff\xd8\xff"));
    // What decoding took is remembered, for the time that the next run will say is left.
    let pace = std::fs::read_to_string(folder.path().join("cache/navicache/decoding.json")).unwrap();
    assert!(pace.starts_with(r#"{"demo":"#), "{pace}");
    let wrong = navicache(folder.path(), &["generate", PROMPT, "--preview", "p.avi"]);
    assert!(wrong.status.code() == Some(2) && stderr(&wrong).contains(".jpg"), "{}", stderr(&wrong));
}
