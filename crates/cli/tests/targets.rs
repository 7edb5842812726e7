//! Targets and guards as a user meets them, on the embedded model.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROMPT: &str = "a red circle bouncing on a navy background";

/// A short video of 30 steps, with its latents and its report.
fn generate(folder: &Path, name: &str, args: &[&str]) -> Output {
    let (latents, report) = (format!("{name}.safetensors"), format!("{name}.json"));
    let short = ["generate", PROMPT, "--size", "32x32", "--frames", "5", "--steps", "30"];
    let files = ["--save-latents", &latents, "--report", &report, "-o", "out.mp4"];
    let all = [&short, args, &files].concat();
    Command::new(env!("CARGO_BIN_EXE_navicache")).args(all).current_dir(folder).output().unwrap()
}

fn report(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn latents(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap()
}

#[test]
fn a_target_is_met_and_its_report_makes_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, target) in [("speed", "speedup=2"), ("time", "time=20s")] {
        let output = generate(folder, name, &["--target", target]);
        assert!(output.status.success(), "{}", stderr(&output));
        let made = report(folder, name)["target"].clone();
        assert_eq!(made["met"], true, "{made}");
        assert_eq!(made["curve"]["family"], "demo");
        let again = generate(folder, "again", &["--target", made["again"].as_str().unwrap()]);
        assert!(again.status.success(), "{}", stderr(&again));
        assert_eq!(latents(folder, name), latents(folder, "again"), "{target}: {made}");
    }
    let made = report(folder, "speed");
    assert_eq!(made["target"]["computed"], 15.0);
    assert_eq!(made["steps"].as_array().unwrap().iter().filter(|step| step["threshold"].is_number()).count(), 25);
}

#[test]
fn what_cannot_be_met_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    for (args, says) in [
        (["--cache", "stride,threshold=0.01", "--target", "speedup=2"], "give one of the two"),
        (["--cache", "pab", "--target", "speedup=2"], "stride, trend, navicache"),
        (["--cache", "stride", "--target", "speedup=20"], "are always computed"),
        (["--cache", "stride", "--target", "psnr=40"], "expected speedup=2, work=50%"),
        (["--cache", "stride", "--target", "steps=10,curve=none.json"], "none.json"),
        (["--cache", "stride", "--guard", "maybe"], "expected off, warn or act"),
    ] {
        let output = generate(folder.path(), "x", &args);
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains(says) && !said.contains("step 1"), "{args:?}: {said}");
        assert!(!folder.path().join("out.mp4").exists());
    }
}

#[test]
fn a_run_that_goes_wrong_says_so_and_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wreck = ["--cache", "navicache,threshold=10,align_steps=2"];
    let run = |name: &str, args: &[&str]| {
        let output = generate(folder, name, args);
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let said = run("act", &wreck);
    assert!(said.contains("warning: step 14: 12 steps in a row were reused"), "{said}");
    run("off", &[&wreck[..], &["--guard", "off"]].concat());
    let said = run("warn", &[&wreck[..], &["--guard", "warn"]].concat());
    assert!(said.contains("steps in a row were reused"), "{said}");
    assert_eq!(latents(folder, "off"), latents(folder, "warn"), "a warning changes nothing");
    let [acted, off] = ["act", "off"].map(|name| report(folder, name));
    let computed = |report: &Value| report["totals"]["forwards_computed"].as_u64().unwrap();
    assert!(computed(&acted) > computed(&off), "{} {}", computed(&acted), computed(&off));
    assert_eq!(acted["guards"][0]["guard"], "long_run");
    assert_eq!(off["guards"], serde_json::json!([]));

    let said = run("guided", &["--guidance", "1e6"]);
    assert!(said.contains("times as large as the noise was") && said.contains("everything is computed"), "{said}");
    run("plain", &["--guidance", "1e6", "--cache", "none"]);
    assert_eq!(latents(folder, "guided"), latents(folder, "plain"), "nothing is reused any more");
}
