//! Targets and guards as a user meets them, on the embedded model.

mod program;

use std::path::Path;
use std::process::Output;

use program::{command, edit, model, navicache, stderr};
use serde_json::Value;

const PROMPT: &str = "a red circle bouncing on a navy background";

/// A short video of 30 steps, with its latents and its report.
fn generate(folder: &Path, name: &str, args: &[&str]) -> Output {
    let (latents, report) = (format!("{name}.safetensors"), format!("{name}.json"));
    let short = ["generate", PROMPT, "--size", "32x32", "--frames", "5", "--steps", "30"];
    let files = ["--save-latents", &latents, "--report", &report, "-o", "out.mp4"];
    let all = [&short, args, &files].concat();
    navicache(folder, &all)
}

fn report(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap()
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
    // Six first steps and the last are computed by rule, as is what ends the longest run; a threshold decides the rest.
    for (i, step) in made["steps"].as_array().unwrap().iter().enumerate() {
        let has_threshold = step["threshold"].is_number();
        match step["branches"]["cond"]["decision"].as_str().unwrap() {
            "reuse" => assert!(has_threshold, "step {i}: {made}"),
            _ => assert!(!has_threshold || (6..29).contains(&i), "step {i}: {made}"),
        }
    }
}

#[test]
fn what_cannot_be_met_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    for (args, says) in [
        (["--cache", "stride,threshold=0.01", "--target", "speedup=2"], "give one of the two"),
        (["--cache", "pab", "--target", "speedup=2"], "stride, trend, navicache"),
        (["--cache", "stride", "--target", "speedup=20"], "are always computed"),
        (["--cache", "stride", "--target", "quality=40"], "expected speedup=2, work=50%"),
        (["--cache", "stride", "--target", "psnr=40"], "with steps 50, this run has 30"),
        (["--cache", "easycache", "--target", "psnr=40"], "it is not known how close easycache on demo is"),
        (["--cache", "easycache", "--target", "error=0.02"], "it is not known how close easycache on demo is"),
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

#[test]
fn closeness_is_promised_where_it_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let unknown = generate(folder, "shipped", &["--steps", "50", "--target", "error=0.02"]);
    assert!(stderr(&unknown).contains("`navicache tune` can promise it"), "{}", stderr(&unknown));

    // The same weights, whose videos are of another length
    let other = model();
    edit(other.path().join("navicache.json"), |settings| settings["frames"] = 9.into());
    let other = other.path().to_str().unwrap();
    let other = navicache(folder, &["generate", PROMPT, "--model", other, "--target", "psnr=45"]);
    assert!(stderr(&other).contains("it was measured on the built-in model, not on this one"), "{}", stderr(&other));

    // Of one's own measurements; what cannot be one is refused before videos are made
    let preset =
        navicache(folder, &["compare", PROMPT, "--methods", "stride:fast", "-o", "no", "--promise", "no.json"]);
    assert_eq!(preset.status.code(), Some(2), "{}", stderr(&preset));
    assert!(stderr(&preset).contains("stride:fast: expected a method with a threshold, and no preset"));
    assert!(!folder.join("no").exists());
    let seeds: Vec<String> = (0..19).map(|seed| seed.to_string()).collect();
    let method = |threshold: f64| format!("stride,threshold={threshold},warmup_steps=2,reuse=corrected");
    let methods = [0.005, 0.5].map(method).join(",");
    let measure = |seeds: &[String], out: &str| {
        let mut command = command(folder);
        command.args(["compare", PROMPT, "--size", "32x32", "--frames", "1", "--steps", "9", "--methods", &methods]);
        command.args(["--seeds", &seeds.join(","), "-o", out, "--promise", "own.json"]);
        command.current_dir(folder).output().unwrap()
    };
    let few = measure(&seeds[..3], "few");
    assert_eq!(few.status.code(), Some(1));
    assert!(stderr(&few).contains("3 videos: expected 19 or more"), "{}", stderr(&few));
    let enough = measure(&seeds, "enough");
    assert!(enough.status.success(), "{}", stderr(&enough));
    let own: Value = serde_json::from_slice(&std::fs::read(folder.join("own.json")).unwrap()).unwrap();
    assert_eq!((&own["videos"], &own["settings"]["steps"]), (&19.into(), &9.into()));
    let bound = own["thresholds"][0]["bound"].as_f64().unwrap();
    let target = format!("psnr={bound},curve=own.json");
    let make = |args: &[&str]| {
        let short = ["generate", PROMPT, "--size", "32x32", "--steps", "9", "--report", "made.json"];
        navicache(folder, &[&short[..], args, &["-o", "own.mp4"]].concat())
    };
    let output = make(&["--frames", "1", "--target", &target]);
    assert!(output.status.success(), "{}", stderr(&output));
    let told = format!("{bound:.1} dB or closer for 95 % of videos");
    assert!(stderr(&output).contains(&told), "{}", stderr(&output));
    let made = report(folder, "made");
    assert!((made["cache"]["threshold"].as_f64().unwrap() - 0.005).abs() < 1e-9);
    let promise = &made["target"]["promise"];
    assert_eq!((&promise["of"], &promise["asked"], &promise["share"]), (&"psnr".into(), &bound.into(), &0.95.into()));
    for (args, says) in [
        (["--frames", "1", "--target", "psnr=99,curve=own.json"], "dB can be promised"),
        (["--frames", "5", "--target", &target], "with videos of 32x32, 1 frame, this run has 32x32, 5 frames"),
    ] {
        let refused = make(&args);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{args:?}: {}", stderr(&refused));
    }
}

#[test]
fn an_error_is_promised_where_traces_told_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let traces: Vec<String> = (0..19).map(|seed| format!("{seed}.jsonl")).collect();
    for (seed, trace) in traces.iter().enumerate() {
        let seed = seed.to_string();
        let small =
            ["trace", PROMPT, "--size", "32x32", "--frames", "1", "--steps", "12", "--seed", &seed, "-o", trace];
        let output = navicache(folder, &small);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let measure = |traces: &[String], cache: &str| {
        let traces: Vec<&str> = traces.iter().map(String::as_str).collect();
        navicache(folder, &[&["tune"], &traces[..], &["--promise", "--cache", cache, "-o", "own.json"]].concat())
    };
    let few = measure(&traces[..3], "navicache,align_steps=3");
    assert!(stderr(&few).contains("3 videos: expected 19 or more"), "{}", stderr(&few));
    let twice = measure(&[&traces[..18], &traces[..1]].concat(), "navicache,align_steps=3");
    let says = format!("traces 1 and 19 are of one video, \"{PROMPT}\" of seed 0: give each video once");
    assert!(stderr(&twice).contains(&says), "{}", stderr(&twice));
    let untold = measure(&traces, "pab");
    assert!(stderr(&untold).contains("has no threshold"), "{}", stderr(&untold));
    let enough = measure(&traces, "navicache,align_steps=3");
    assert!(enough.status.success(), "{}", stderr(&enough));

    let own: Value = serde_json::from_slice(&std::fs::read(folder.join("own.json")).unwrap()).unwrap();
    assert_eq!((&own["of"], &own["videos"], &own["settings"]["steps"]), (&"error".into(), &19.into(), &12.into()));
    let bounds: Vec<f64> =
        own["thresholds"].as_array().unwrap().iter().map(|row| row["bound"].as_f64().unwrap()).collect();
    let asked = (bounds[5] + bounds[6]) / 2.0;
    let short = ["generate", PROMPT, "--size", "32x32", "--frames", "1", "--report", "made.json", "-o", "made.mp4"];
    let make = |steps: &str, target: &str| {
        navicache(folder, &[&short[..], &["--cache", "navicache", "--steps", steps, "--target", target]].concat())
    };
    let output = make("12", &format!("error={asked},curve=own.json"));
    assert!(output.status.success(), "{}", stderr(&output));
    let made = report(folder, "made");
    assert_eq!(made["target"]["promise"]["of"], "error");
    assert!(made["target"]["promise"]["mean"].as_f64().is_some_and(|mean| mean < asked), "{}", made["target"]);
    assert_eq!(made["cache"]["align_steps"], 3, "as it was measured");
    for (steps, target, says) in [
        ("12", "error=1e-9,curve=own.json".to_string(), "no closer than an error of"),
        ("12", format!("psnr={asked},curve=own.json"), "closeness was measured as error=, not as psnr="),
        ("13", format!("error={asked},curve=own.json"), "with steps 12, this run has 13"),
    ] {
        let refused = make(steps, &target);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{target}: {}", stderr(&refused));
    }
    let extent = serde_json::json!({"width": 32, "height": 32, "frames": 1});
    assert_eq!(own["settings"]["extent"], extent, "as the traces say");
}
