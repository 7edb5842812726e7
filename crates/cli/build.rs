//! Says which commit it was built from, and lets the program that is linked with CUDA find its libraries where they
//! were when it was built.

use std::process::Command;

fn main() {
    println!("cargo:rustc-env=BUILT_FROM={}", commit());
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let is_cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();
    let is_linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if let (true, true, Ok(home)) = (is_cuda, is_linux, std::env::var("CUDA_HOME")) {
        // The older kind of path, which counts for libraries that libraries open too: NVRTC has one such.
        println!("cargo:rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,{home}/lib64");
    }
}

/// What is built without git, as in a container, says it by this variable. A debug build is not tied to a commit: it
/// would be built anew after each.
fn commit() -> String {
    const VARIABLE: &str = "NAVICACHE_COMMIT";
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(commit) = std::env::var(VARIABLE) {
        return commit;
    }
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return "unknown (a debug build)".to_string();
    }
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["show", "--no-patch", "--format=%h of %cs", "HEAD"]).unwrap_or("unknown".to_string())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}
