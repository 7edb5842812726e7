//! Commands about models: what there is, what a file is, what it will take, and what is kept of a video that failed.

mod program;

use std::path::Path;
use std::process::Output;

use program::stderr;
use serde_json::Value;

fn navicache(folder: &Path, args: &[&str]) -> Output {
    let mut command = program::command(folder);
    command.args(args).env("HF_HOME", folder.join("hub")).env("HF_HUB_OFFLINE", "1");
    command.env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN").output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The embedded model as a folder.
fn demo() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo")
}

/// Pretends that a model was pulled.
fn pulled(folder: &Path, repository: &str) {
    let place = folder.join("hub/hub").join(format!("models--{}", repository.replace('/', "--")));
    std::fs::create_dir_all(place.join("refs")).unwrap();
    std::fs::write(place.join("refs/main"), "abc").unwrap();
    std::fs::create_dir_all(place.join("snapshots")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(demo(), place.join("snapshots/abc")).unwrap();
}

#[test]
fn known_models_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(&navicache(folder.path(), &["models"]));
    assert!(text.contains("wan2.2-ti2v-5b") && text.contains("not here yet") && text.contains("17.5 GB"), "{text}");
    pulled(folder.path(), "Wan-AI/Wan2.1-T2V-1.3B");
    let models: Value = serde_json::from_str(&stdout(&navicache(folder.path(), &["models", "--json"]))).unwrap();
    let first = models.as_array().unwrap().iter().find(|model| model["name"] == "wan2.1-t2v-1.3b").unwrap();
    assert!(first["paths"][0].as_str().unwrap().ends_with("snapshots/abc"));
    assert_eq!(first["disk_bytes"], 4 * 1418996800u64 + 2 * 5680910336 + 4 * 126892531);
}

#[test]
fn a_name_stands_for_a_model_that_was_pulled() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["--size", "32x32", "--frames", "5", "--steps", "2", "--cache", "none", "-o", "a.safetensors"];
    let generate = |model: &str| navicache(folder.path(), &[&["generate", "x", "--model", model], &short[..]].concat());
    for model in ["wan2.1-t2v-1.3b", "someone/model"] {
        let message = stderr(&generate(model));
        assert!(message.contains(&format!("navicache pull {model}")), "{message}");
    }
    pulled(folder.path(), "Wan-AI/Wan2.1-T2V-1.3B");
    assert!(generate("wan2.1-t2v-1.3b").status.success());
}

#[test]
fn pulling_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let message = stderr(&navicache(folder.path(), &["pull", "wan2.1-t2v-1.3b"]));
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    let message = stderr(&navicache(folder.path(), &["pull", "wan"]));
    assert!(message.contains("wan2.1-t2v-14b") && message.contains("OWNER/NAME"), "{message}");
    let output = program::command(folder.path())
        .args(["pull", "someone/model"])
        .env("HF_HOME", folder.path())
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(!output.status.success() && stderr(&output).contains("cannot be reached"), "{}", stderr(&output));
}

#[test]
fn inspecting_says_what_it_is_and_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo();
    let inspect =
        |path: &Path, extra: &[&str]| navicache(folder.path(), &[&["inspect", path.to_str().unwrap()], extra].concat());
    let text = stdout(&inspect(&demo, &[]));
    for part in ["Diffusers folder", "a Wan transformer", "a UMT5 text encoder", "a Wan VAE", "f16 100.0 %", "Ready"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let vae = demo.join("vae/diffusion_pytorch_model.safetensors");
    let text = stdout(&inspect(&vae, &["--tensors"]));
    assert!(text.contains("--transformer FILE") && text.contains("decoder.conv_in.weight f16"), "{text}");
    assert!(!text.contains("--vae FILE"), "{text}");
    let json: Value = serde_json::from_str(&stdout(&inspect(&vae, &["--json"]))).unwrap();
    assert_eq!(json["weights"][0]["formats"]["f16"], json["weights"][0]["parameters"]);
    let text = folder.path().join("page.safetensors");
    std::fs::write(&text, "<!doctype html>").unwrap();
    assert!(stderr(&inspect(&text, &[])).contains("a web page"));
}

#[test]
fn a_model_is_estimated_before_it_is_here() {
    let folder = tempfile::tempdir().unwrap();
    let asked = ["estimate", "wan2.1-t2v-1.3b", "--size", "480x272", "--frames", "33"];
    let text = stdout(&navicache(folder.path(), &asked));
    for part in ["is not here yet", "17.5 GB", "33 frames of 480x272, 50 steps", "100 forwards"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = stdout(&navicache(folder.path(), &[&asked[..], &["--json"]].concat()));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(json["video"]["denoise_seconds_uncached"].as_f64().unwrap() > 1.0, "{json}");
    // One that is here is opened.
    pulled(folder.path(), "Wan-AI/Wan2.1-T2V-1.3B");
    let text = stdout(&navicache(folder.path(), &["estimate", "wan2.1-t2v-1.3b", "--steps", "2", "--cache", "none"]));
    assert!(text.contains(", 2 steps") && text.contains("peak "), "{text}");
    let wrong = navicache(folder.path(), &["estimate", "wan-1.3b"]);
    assert!(stderr(&wrong).contains("did you mean wan2.1-t2v-1.3b?"), "{}", stderr(&wrong));
}

#[test]
fn estimating_says_memory_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(&navicache(
        folder.path(),
        &["estimate", "--steps", "12", "--cache", "navicache,threshold=9,align_steps=3"],
    ));
    let own: Value = serde_json::from_slice(&std::fs::read(demo().join("navicache.json")).unwrap()).unwrap();
    let video = format!("{} frames of {}x{}, 12 steps", own["frames"], own["width"], own["height"]);
    for part in [video.as_str(), "denoise", "24 forwards", "with navicache"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let args = ["estimate", "--json", "--cache", "none", "--steps", "12", "--memory", "1GiB"];
    let json: Value = serde_json::from_str(&stdout(&navicache(folder.path(), &args))).unwrap();
    assert_eq!(json["computed_part"], 1.0);
    assert_eq!(json["available_bytes"], 1u64 << 30);
    assert_eq!(json["memory"].as_array().unwrap().len(), 3);
    assert!(json["forward_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn latents_are_decoded_again() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["--size", "32x32", "--frames", "5", "--steps", "2", "--cache", "none"];
    let extra = ["--save-latents", "kept.safetensors", "-o", "whole.safetensors"];
    let made = navicache(folder.path(), &[&["generate", "x"], &short[..], &extra].concat());
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(!folder.path().join("whole.safetensors.latents.safetensors").exists(), "only what was asked for stays");

    // The name that a run would use for itself may be the user's own.
    let own = "own.mp4.latents.safetensors";
    let spelled = format!("./{own}");
    for extra in [["--save-latents", own], ["--latents", own], ["--save-latents", &spelled], ["--latents", &spelled]] {
        let made = navicache(folder.path(), &[&["generate", "x"], &short[..], &extra, &["-o", "own.mp4"]].concat());
        assert!(made.status.success(), "{}", stderr(&made));
        assert!(folder.path().join(own).exists(), "{extra:?}");
    }
    let made = navicache(folder.path(), &[&["generate", "x"], &short[..], &["-o", "own.mp4"]].concat());
    assert!(made.status.success() && folder.path().join(own).exists(), "latents kept from another run stay");

    let resume = |args: &[&str]| navicache(folder.path(), &[&["generate", "--resume-decode"], args].concat());
    let again = resume(&["kept.safetensors", "-o", "again.safetensors"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("again.safetensors"), read("whole.safetensors"));

    std::fs::write(folder.path().join("cut.safetensors"), &read("kept.safetensors")[..100]).unwrap();
    for (file, says) in [("cut.safetensors", "not a safetensors file"), ("none.safetensors", "none.safetensors")] {
        let failed = resume(&[file, "-o", "b.mp4"]);
        assert!(!failed.status.success() && stderr(&failed).contains(says), "{}", stderr(&failed));
    }
    assert!(!folder.path().join("b.mp4").exists());
    assert!(!resume(&["kept.safetensors", "a prompt too"]).status.success());
}

#[test]
fn the_doctor_says_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let output = navicache(folder.path(), &["doctor", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["machine"]["threads"].as_u64().unwrap() > 0);
    let levels = said["machine"]["levels"].as_array().unwrap();
    assert!(levels.contains(&said["machine"]["kernels"]), "{said}");
    let models = said["models"].as_array().unwrap();
    assert!(models.iter().any(|model| model["name"] == "wan2.1-t2v-1.3b" && model["is_here"] == false), "{said}");
    let words = String::from_utf8(navicache(folder.path(), &["doctor"]).stdout).unwrap();
    assert!(words.contains("GPU        ") && words.lines().count() < 40, "{words}");
}

#[test]
fn what_was_pulled_is_converted_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    pulled(folder.path(), "Wan-AI/Wan2.1-T2V-1.3B");
    let text = stdout(&navicache(folder.path(), &["convert", "wan2.1-t2v-1.3b", "-o", "copy"]));
    assert!(text.contains("copy/transformer") && text.contains("no number was changed"), "{text}");
    let short = ["--size", "32x32", "--frames", "5", "--steps", "2", "--cache", "none"];
    let video = |model: &str, name: &str| {
        let arguments = [&["generate", "x", "--model", model, "-o", name], &short[..]].concat();
        stdout(&navicache(folder.path(), &arguments));
        std::fs::read(folder.path().join(name)).unwrap()
    };
    assert_eq!(video("copy", "a.safetensors"), video("wan2.1-t2v-1.3b", "b.safetensors"));
    let again = navicache(folder.path(), &["convert", "wan2.1-t2v-1.3b", "-o", "copy"]);
    assert!(!again.status.success() && stderr(&again).contains("it is there already"), "{}", stderr(&again));

    pulled(folder.path(), "someone/other--model");
    let listed = stdout(&navicache(folder.path(), &["models"]));
    for part in ["takes 3 B here: ", "Other repositories in ", "someone/other--model "] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let text = stdout(&navicache(folder.path(), &["models", "rm", "wan2.1-t2v-1.3b"]));
    assert!(text.contains("Wan-AI/Wan2.1-T2V-1.3B: removed"), "{text}");
    assert!(demo().join("model_index.json").exists(), "links are removed, not what they lead to");
    let gone = navicache(folder.path(), &["models", "rm", "wan2.1-t2v-1.3b"]);
    assert!(!gone.status.success() && stderr(&gone).contains("nothing of it is here"), "{}", stderr(&gone));
}
