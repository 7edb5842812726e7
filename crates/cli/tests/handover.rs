//! From `navicache` to `navicache-cuda`, with programs that stand in for the second.
#![cfg(all(unix, not(feature = "cuda")))]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

/// Says what it is given, and of GPUs that there is one.
const WITH_GPU: &str = r#"#!/bin/sh
if [ "$1" = gpus ]; then echo "cuda:0 stand-in"; else echo "handed over: $*"; exit 7; fi
"#;

/// As the loader and the program answer where the driver is missing, and where it has no GPU.
const WITHOUT_DRIVER: &str = "#!/bin/sh
echo 'error while loading shared libraries: libcuda.so.1: cannot open shared object file' >&2; exit 127
";
const WITHOUT_GPU: &str = "#!/bin/sh
echo 'navicache: device cuda: the NVIDIA driver has no GPU' >&2; exit 1
";

/// A program does not start while anyone has it open for writing, and a child that another test starts at that moment
/// would have: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A folder with a `navicache-cuda`.
fn folder_with(script: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("navicache-cuda");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs a `navicache` that is alone in its folder, but for what is in `folder`; with `path` on the path.
fn navicache(folder: &TempDir, path: Option<&Path>, args: &[&str]) -> Output {
    let program = folder.path().join("navicache");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_navicache"), &program).unwrap();
    }
    let system = std::env::var_os("PATH").unwrap();
    let folders = path.into_iter().map(Path::to_path_buf).chain(std::env::split_paths(&system));
    let folders = folders.filter(|other| Some(other.as_path()) == path || !other.join("navicache-cuda").exists());
    Command::new(program).args(args).env("PATH", std::env::join_paths(folders).unwrap()).output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// A few milliseconds of work.
const BENCH: [&str; 7] = ["bench", "attention", "--tokens", "16", "--runs", "1", "-q"];

#[test]
fn the_gpu_takes_over() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (alone, other) = (tempfile::tempdir().unwrap(), folder_with(WITH_GPU));
    for device in ["cuda", "cuda:1", "auto"] {
        let args = [&BENCH[..], &["--device", device]].concat();
        for output in [navicache(&other, None, &args), navicache(&alone, Some(other.path()), &args)] {
            assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
            assert_eq!(text(&output.stdout), format!("handed over: {}\n", args.join(" ")));
        }
    }
    for args in [&["methods"][..], &[&BENCH[..], &["--device", "cpu"]].concat()] {
        let output = navicache(&other, None, args);
        assert!(output.status.success() && !text(&output.stdout).contains("handed over"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_program_that_says_nothing_is_not_waited_for() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let silent = folder_with("#!/bin/sh\nexec sleep 600\n");
    let auto = navicache(&silent, None, &[&BENCH[..], &["--device", "auto"]].concat());
    let said = text(&auto.stderr);
    assert!(auto.status.success() && !auto.stdout.is_empty(), "{said}");
    assert!(said.contains("navicache-cuda gpus: no answer in 5 seconds; the CPU does the work"), "{said}");
}

#[test]
fn what_is_missing_is_named() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = [
        (tempfile::tempdir().unwrap(), &["no navicache-cuda in ", "nor on PATH", "docs/build.md"][..]),
        (folder_with(WITHOUT_DRIVER), &["the NVIDIA driver is missing", "libcuda.so.1"]),
        (folder_with(WITHOUT_GPU), &["cannot use a GPU", "the NVIDIA driver has no GPU"]),
    ];
    for (folder, parts) in cases {
        let cuda = navicache(&folder, None, &[&BENCH[..], &["--device", "cuda"]].concat());
        let said = text(&cuda.stderr);
        assert!(!cuda.status.success() && cuda.stdout.is_empty());
        assert!(
            said.starts_with("navicache: device cuda:0: ") && parts.iter().all(|part| said.contains(part)),
            "{said}"
        );
        let auto = navicache(&folder, None, &[&BENCH[..], &["--device", "auto"]].concat());
        assert!(auto.status.success() && auto.stderr.is_empty(), "{}", text(&auto.stderr));
    }
}
