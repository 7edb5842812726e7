//! The command as a user runs it, on the embedded model and on broken copies of it.

mod program;

use std::path::Path;
use std::process::Command;

#[cfg(unix)]
use program::shell;
use program::{command, edit, files, model, navicache, stderr};
use serde_json::Value;

const PROMPT: &str = "a red circle bouncing on a navy background";

/// A short video, for tests that are about something else.
fn short<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&["generate", PROMPT, "--size", "32x32", "--frames", "5", "--steps", "12"], extra].concat()
}

#[test]
fn a_video_with_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "--cache",
        "navicache,threshold=0.5,align_steps=4",
        "--report",
        "r.json",
        "--save-latents",
        "l.safetensors",
        "-o",
        "a.mp4",
    ];
    let output = navicache(folder.path(), &short(&args));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    assert_eq!(files(folder.path()), ["a.mp4", "l.safetensors", "r.json"]);

    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("r.json")).unwrap()).unwrap();
    assert_eq!(report["version"], 1);
    assert_eq!(report["request"]["prompt"], PROMPT);
    assert_eq!(report["cache"]["method"], "navicache");
    assert_eq!(report["cache"]["threshold"], 0.5);
    let steps = report["steps"].as_array().unwrap();
    let strip: String = steps
        .iter()
        .map(|step| {
            let symbol = |branch: &str| match step["branches"][branch]["decision"].as_str().unwrap() {
                "compute" => 'S',
                "reuse" => '.',
                other => panic!("{other}"),
            };
            format!("{}{}|", symbol("cond"), symbol("uncond"))
        })
        .collect();
    assert_eq!(report["strip"], strip);
    let totals = &report["totals"];
    let (computed, reused) = (strip.matches('S').count(), strip.matches('.').count());
    assert_eq!((computed + reused, totals["forwards_computed"].as_u64()), (24, Some(computed as u64)));
    assert_eq!(totals["forwards_reused"], reused);
    assert!(reused > 0, "{strip}");

    let last = stderr(&output).lines().last().unwrap().to_string();
    assert!(last.starts_with("a.mp4: 5 frames of 32x32, enlarged 3 times in "), "{last}");
    let ran = strip.split_terminator('|').filter(|step| step.contains('S')).count();
    assert!(last.contains(&format!(" {ran} of 12 steps were computed, ")), "{last}");
    assert!(!stderr(&output).contains('\x1b'), "no colours where there is no terminal");
}

#[test]
fn every_format() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "a.gif", "a.y4m", "a.safetensors", "frames"] {
        let output = navicache(folder.path(), &short(&["--quiet", "-o", name]));
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {}", stderr(&output));
    }
    assert_eq!(files(folder.path()), ["a.gif", "a.mp4", "a.safetensors", "a.y4m", "frames"]);
    assert_eq!(files(&folder.path().join("frames")).len(), 5);
}

#[test]
fn a_gif_that_plays_more_slowly_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let (fast, says) = (["--fps", "60", "-o", "a.gif"], "a.gif: players show 50 frames a second of a GIF at most");
    let made = navicache(folder.path(), &short(&[&fast[..], &["--save-latents", "l.safetensors"]].concat()));
    let decoded = navicache(folder.path(), &[&["generate", "--resume-decode", "l.safetensors"], &fast[..]].concat());
    for output in [made, decoded] {
        let said = stderr(&output);
        assert!(output.status.success() && said.contains(says) && said.contains("at --fps 60"), "{said}");
    }
}

#[test]
fn the_same_command_makes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "b.mp4"] {
        assert!(navicache(folder.path(), &short(&["--seed", "3", "-o", name])).status.success());
    }
    assert!(navicache(folder.path(), &short(&["--seed", "4", "-o", "c.mp4"])).status.success());
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("a.mp4") == bytes("b.mp4"));
    assert!(bytes("a.mp4") != bytes("c.mp4"));
}

#[test]
fn latents_from_a_file_stand_for_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let noise = navicache_engine::noise::randn(5, 16 * 2 * 4 * 4);
    let bytes: Vec<u8> = noise.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 16, 2, 4, 4], &bytes).unwrap();
    std::fs::write(folder.path().join("noise.safetensors"), safetensors::serialize([("latents", view)], None).unwrap())
        .unwrap();
    for args in [["--seed", "5", "-o", "a.safetensors"], ["--latents", "noise.safetensors", "-o", "b.safetensors"]] {
        let output = navicache(folder.path(), &short(&args));
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("a.safetensors") == bytes("b.safetensors"));
}

#[test]
fn warnings_where_caching_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let says = |args: &[&str], text: &str| {
        let output = navicache(folder.path(), &short(args));
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stderr(&output).contains(text), !text.is_empty(), "{args:?}: {}", stderr(&output));
    };
    says(&["--steps", "8"], "stride may reuse up to");
    says(&["--steps", "4", "--cache", "navicache"], "caching does nothing in 4 steps");
    says(&["--cache", "navicache,threshold=0,align_steps=3"], "0 of 12 steps reused: the threshold never allowed it");
    let plain = navicache(folder.path(), &short(&["--cache", "none", "--steps", "8"]));
    assert!(!stderr(&plain).contains("may reuse") && !stderr(&plain).contains("caching"), "{}", stderr(&plain));
    // What the built-in model was not trained on.
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo/navicache.json");
    let own: Value = serde_json::from_slice(&std::fs::read(demo).unwrap()).unwrap();
    let trained =
        format!("trained on {} frames of {}", own["trained"]["frames"], own["trained"]["size"].as_str().unwrap());
    says(&["--cache", "none"], &trained);
    let other = navicache(folder.path(), &["generate", "a hexagon dancing", "--steps", "1", "--cache", "none"]);
    assert!(stderr(&other).contains("\"hexagon\", \"dancing\" means nothing"), "{}", stderr(&other));
    let known = navicache(folder.path(), &["generate", PROMPT, "--steps", "1", "--cache", "none"]);
    assert!(!stderr(&known).contains("warning"), "{}", stderr(&known));
    let long = "a red circle ".repeat(40);
    let output = navicache(
        folder.path(),
        &["generate", &long, "--size", "32x32", "--frames", "5", "--steps", "2", "--cache", "none"],
    );
    assert!(output.status.success());
    assert!(stderr(&output).contains("cut to 32"), "{}", stderr(&output));
}

#[test]
fn requests_that_cannot_be_met() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plain"), "a file").unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--frames", "10"], &["--frames 10", "9", "13"]),
        (&["--size", "70x64"], &["--size width 70", "64 and 80"]),
        (&["--size", "0x0"], &["--size width 0"]),
        (&["--size", "1000000x1000000"], &["--size"]),
        (&["--scale", "0"], &["--scale 0", "expected 1 to 32"]),
        (&["--size", "256x256", "--scale", "32"], &["out.mp4: 8192x8192", "up to 3840x2160"]),
        (&["--steps", "0"], &["--steps 0"]),
        (&["--guidance", "nan"], &["--guidance"]),
        (&["--shift", "-1"], &["--shift"]),
        (&["--solver", "heun"], &["heun", "unipc, dpmpp, euler"]),
        (&["--cache", "magic"], &["magic", "none, easycache, navicache"]),
        (&["--cache", "navicache:warp"], &["warp", "fast, mid, slow"]),
        (&["--cache", "navicache,treshold=1"], &["treshold"]),
        (&["--model", "no/such/model"], &["no/such/model", "demo"]),
        (&["--model", "plain"], &["plain", "expected safetensors", "GGUF"]),
        (&["--device", "cuda:x"], &["cuda:x"]),
        (&["--latents", "missing.safetensors"], &["missing.safetensors"]),
        (&["--latents", "plain"], &["plain", "not a safetensors file"]),
        (&["--max-sequence-length", "0"], &["--max-sequence-length 0"]),
        (&["-o", "out.avi"], &["out.avi", ".mp4"]),
        (&["-o", "no/such/folder/out.mp4"], &["no/such/folder/out.mp4"]),
        (&["-o", "plain/out.mp4"], &["plain/out.mp4"]),
        (&["--report", "no/such/r.json"], &["no/such/r.json"]),
        (&["--save-latents", "no/such/l.safetensors"], &["no/such/l.safetensors"]),
    ];
    let mut wrong = Vec::new();
    for (args, says) in cases {
        let output = navicache(folder.path(), &short(args));
        let text = stderr(&output);
        if output.status.success() || !says.iter().all(|part| text.contains(part)) || text.contains("panicked") {
            wrong.push(format!("{args:?}: {text}"));
        }
        assert_eq!(files(folder.path()), ["plain"], "{args:?} left something");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

#[test]
fn models_that_are_broken() {
    type Break = fn(&Path);
    let cases: &[(&str, Break, &[&str])] = &[
        (
            "missing weights",
            |m| std::fs::remove_file(m.join(TRANSFORMER)).unwrap(),
            &["transformer", "diffusion_pytorch_model"],
        ),
        ("missing configuration", |m| std::fs::remove_file(m.join("vae/config.json")).unwrap(), &["vae/config.json"]),
        (
            "missing tokenizer",
            |m| std::fs::remove_file(m.join("tokenizer/tokenizer.json")).unwrap(),
            &["tokenizer.json"],
        ),
        (
            "truncated weights",
            |m| {
                let bytes = std::fs::read(m.join(TRANSFORMER)).unwrap();
                std::fs::write(m.join(TRANSFORMER), &bytes[..bytes.len() / 2]).unwrap();
            },
            &[TRANSFORMER],
        ),
        ("empty weights", |m| std::fs::write(m.join(TRANSFORMER), "").unwrap(), &[TRANSFORMER]),
        (
            "wrong shape",
            |m| edit(m.join("transformer/config.json"), |c| c["ffn_dim"] = 512.into()),
            &["blocks.0.ffn.net.0.proj.weight: expected [512, 192], found [768, 192]", TRANSFORMER],
        ),
        (
            "more layers than there are",
            |m| edit(m.join("transformer/config.json"), |c| c["num_layers"] = 9.into()),
            &["blocks.8.", "found nothing by that name", TRANSFORMER],
        ),
        (
            "another transformer",
            |m| {
                let other = serde_json::json!({"_class_name": "HunyuanVideoTransformer3DModel", "patch_size": 2, "num_layers": 20});
                std::fs::write(m.join("transformer/config.json"), other.to_string()).unwrap();
            },
            &["transformer/config.json", "HunyuanVideoTransformer3DModel", "WanTransformer3DModel"],
        ),
        (
            "another pipeline",
            |m| edit(m.join("model_index.json"), |c| c["_class_name"] = "MochiPipeline".into()),
            &["model_index.json", "MochiPipeline", "WanPipeline", "HunyuanVideoPipeline"],
        ),
        (
            "another family's index",
            |m| edit(m.join("model_index.json"), |c| c["_class_name"] = "HunyuanVideoPipeline".into()),
            &["transformer/config.json", "expected HunyuanVideoTransformer3DModel, found WanTransformer3DModel"],
        ),
        (
            "another text encoder",
            |m| edit(m.join("text_encoder/config.json"), |c| c["model_type"] = "t5".into()),
            &["text_encoder/config.json", "umt5"],
        ),
        ("not JSON", |m| std::fs::write(m.join("vae/config.json"), "{\"z_dim\": ").unwrap(), &["vae/config.json"]),
        (
            "NaN in a weight",
            |m| {
                let mut bytes = std::fs::read(m.join(TRANSFORMER)).unwrap();
                let end = bytes.len();
                bytes[end - 64..].copy_from_slice(&[0xff; 64]); // f16 NaN
                std::fs::write(m.join(TRANSFORMER), bytes).unwrap();
            },
            &["step 1 of 12", "not finite"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, spoil, says) in cases {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        spoil(model.path());
        let output =
            navicache(folder.path(), &short(&["--model", model.path().to_str().unwrap(), "--report", "r.json"]));
        let text = stderr(&output);
        if output.status.success() || !says.iter().all(|part| text.contains(part)) || text.contains("panicked") {
            wrong.push(format!("{name}: {text}"));
        }
        assert!(files(folder.path()).is_empty(), "{name} left something");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_folder_is_the_same_as_the_embedded_model() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    for args in
        [["--model", "demo", "-o", "a.safetensors"], ["--model", model.path().to_str().unwrap(), "-o", "b.safetensors"]]
    {
        assert!(navicache(folder.path(), &short(&args)).status.success());
    }
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("a.safetensors") == bytes("b.safetensors"));
}

#[test]
fn metrics_of_two_videos() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in [("1", "a.safetensors"), ("1", "a.mp4"), ("2", "b.safetensors")] {
        assert!(navicache(folder.path(), &short(&["--seed", seed, "-q", "--scale", "1", "-o", name])).status.success());
    }
    let measure = |other: &str| {
        let output = navicache(folder.path(), &["metrics", "a.safetensors", other, "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(measure("a.safetensors")["psnr"]["mean"], 100.0);
    assert_eq!(measure("a.safetensors")["ssim"]["frames"].as_array().unwrap().len(), 5);
    let (file, seed) = (
        measure("a.mp4")["psnr_of_video"].as_f64().unwrap(),
        measure("b.safetensors")["psnr_of_video"].as_f64().unwrap(),
    );
    assert!(file > 25.0 && file > seed, "the file's own loss is {file} dB, another seed's {seed}");
    let text = navicache(folder.path(), &["metrics", "a.safetensors", "a.mp4"]);
    assert!(String::from_utf8_lossy(&text.stdout).starts_with("PSNR "));
    for wrong in [["a.safetensors", "missing.mp4"], ["a.safetensors", "a.gif"], ["missing", "a.mp4"]] {
        let output = navicache(folder.path(), &["metrics", wrong[0], wrong[1]]);
        assert!(!output.status.success() && !stderr(&output).contains("panicked"), "{wrong:?}");
    }
}

#[test]
fn methods_are_listed_and_shown() {
    let run = |args: &[&str]| {
        let output = navicache(Path::new("."), args);
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (ok, list, _) = run(&["methods"]);
    assert!(ok && list.lines().filter(|line| line.contains("  ")).count() >= 18, "{list}");
    let (ok, json, _) = run(&["methods", "--json"]);
    let methods: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(ok);
    let names: Vec<&str> = methods.iter().filter_map(|method| method["name"].as_str()).collect();
    for name in
        "none easycache navicache precisecache mixcache teacache magcache pab fbcache dbcache taylorseer fastercache \
                 dicache seacache tafc bwcache adacache trend"
            .split_whitespace()
    {
        assert!(names.contains(&name), "{name} of {names:?}");
        let (ok, shown, _) = run(&["methods", name]);
        assert!(ok && shown.starts_with(&format!("{name}: ")), "{shown}");
    }
    let navicache = methods.iter().find(|method| method["name"] == "navicache").unwrap();
    assert_eq!(navicache["presets"]["wan"]["fast"]["threshold"], 0.07);
    let max_run = navicache["options"].as_array().unwrap().iter().find(|o| o["name"] == "max_run").unwrap();
    assert!(max_run["meaning"].as_str().unwrap().starts_with("Longest run"), "{max_run}");
    let (ok, _, error) = run(&["methods", "teecache"]);
    assert!(!ok && error.contains("known are none, easycache"), "{error}");
}

#[test]
fn traces_replay_and_tune() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = navicache(folder.path(), args);
        (output.status.success(), String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output))
    };
    let small = ["--size", "32x32", "--frames", "5", "--steps", "20", "-q"];
    let (ok, _, error) = run(&[&["trace", PROMPT, "-o", "t.jsonl"][..], &small].concat());
    assert!(ok, "{error}");
    assert_eq!(files(folder.path()), ["t.jsonl"]);

    let (ok, json, error) =
        run(&["replay", "t.jsonl", "--cache", "easycache,warmup_steps=3,threshold=0.02..0.8", "--json"]);
    assert!(ok, "{error}");
    let settings: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(settings.len(), 8);
    let forwards = |s: &Value, of: &str| s[format!("forwards_{of}")].as_u64().unwrap();
    for pair in settings.windows(2) {
        assert!(forwards(&pair[0], "computed") >= forwards(&pair[1], "computed"), "a larger threshold reuses more");
        assert!(pair[0]["predicted_error"].as_f64() <= pair[1]["predicted_error"].as_f64(), "{json}");
        assert_eq!(forwards(&pair[0], "computed") + forwards(&pair[0], "reused"), 40);
    }
    assert!(forwards(&settings[7], "reused") > 0);

    let (ok, text, error) = run(&["tune", "t.jsonl", "--speedup", "1.5", "-o", "p.json"]);
    assert!(ok && text.contains("--cache @p.json"), "{text} {error}");
    let args = ["generate", PROMPT, "--cache", "@p.json", "--report", "r.json", "-o", "v.safetensors"];
    let (ok, _, error) = run(&[&args[..], &small].concat());
    assert!(ok, "{error}");
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("r.json")).unwrap()).unwrap();
    let preset: Value = serde_json::from_slice(&std::fs::read(folder.path().join("p.json")).unwrap()).unwrap();
    assert_eq!(report["cache"], preset["cache"]);
    let units = |name: &str| report["totals"][name].as_f64().unwrap();
    assert!(units("units_computed") / (units("units_computed") + units("units_reused")) < 0.9, "{}", report["strip"]);

    let (ok, _, error) = run(&["generate", PROMPT, "--cache", "schedule:r.json", "--steps", "9", "-q", "-o", "w.mp4"]);
    assert!(!ok && error.contains("the schedule has 20 steps, the run 9"), "{error}");
    let (ok, _, error) = run(&["tune", "t.jsonl", "--speedup", "1000"]);
    assert!(!ok && error.contains("none of"), "{error}");
    let trace = std::fs::read_to_string(folder.path().join("t.jsonl")).unwrap();
    let header = trace.lines().next().unwrap().to_string();
    let mut again: Vec<&str> = trace.lines().collect();
    again.swap(1, 2);
    let swapped = again.join("\n");
    for (name, text, part) in [
        ("swapped", swapped.as_str(), "line 2: step 1, expected 0"),
        ("empty", "", "is empty"),
        ("short", "{\"trace\": 1", "line 1: not a header"),
        ("huge", &header.replace("\"blocks\":8", "\"blocks\":1000000000000"), "expected at most"),
        ("steps", &format!("{header}\n{{}}"), "line 2"),
        ("stepless", &header, "has no steps"),
        ("other.csv", "a,b\n1,2\n", "missing field"),
        ("nan.csv", "step,input_rel_l1,output_rel_l1,experiment_id\n1,0.1,NaN,x\n", "expected positive numbers"),
        ("few.csv", "step,input_rel_l1,output_rel_l1,experiment_id\n1,0.1,0.1,x\n", "expected at least 6"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
        let (ok, _, error) = run(&["replay", name]);
        assert!(!ok && error.contains(part) && error.contains(name), "{name}: {error}");
    }
}

#[test]
fn predictors_are_scored_on_recorded_changes() {
    let folder = tempfile::tempdir().unwrap();
    // A ratio that swings with period two: holding it is wrong at every step, what looks two steps back is right.
    let mut text = "step,input_rel_l1,output_rel_l1,experiment_id\n".to_string();
    for run in ["a", "b"] {
        for step in 0..20 {
            let output = if step == 0 { 0.0 } else { 0.1 * if step % 2 == 0 { 1.5 } else { 1.0 } };
            text += &format!("{step},{},{output},{run}\n", if step == 0 { 0.0 } else { 0.1 });
        }
    }
    std::fs::write(folder.path().join("changes.csv"), text).unwrap();
    let output = navicache(folder.path(), &["replay", "changes.csv", "--json"]);
    let scores: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let error =
        |method: &str| scores.iter().find(|s| s["method"] == method).unwrap()["mean_absolute_error"].as_f64().unwrap();
    assert!((error("easycache") - 0.05).abs() < 1e-9);
    assert!(error("trend") < error("geometric_mean") && error("geometric_mean") < error("easycache"), "{scores:?}");
    let output = navicache(folder.path(), &["replay", "changes.csv", "--cache", "pab"]);
    assert!(!output.status.success() && stderr(&output).contains("predicts no output change"));
}

#[test]
fn a_picture_is_refused_where_the_model_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden/tiny/picture.png");
    let output = navicache(folder.path(), &short(&["--image", picture.to_str().unwrap()]));
    assert!(!output.status.success() && stderr(&output).contains("makes video from text alone"), "{}", stderr(&output));
    std::fs::write(folder.path().join("broken.jpg"), b"\xff\xd8\xff\xe0").unwrap();
    let output = navicache(folder.path(), &short(&["--image", "broken.jpg"]));
    assert!(!output.status.success() && stderr(&output).contains("broken.jpg"), "{}", stderr(&output));
    assert_eq!(files(folder.path()), ["broken.jpg"]);
}

#[test]
fn methods_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = navicache(folder.path(), &[&["compare"], args].concat());
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), out, stderr(&output))
    };
    let small = ["--size", "32x32", "--frames", "5", "--steps", "12", "-o", "out"];
    let methods = ["a red circle", "--methods", "none,navicache,threshold=0.5,align_steps=4", "--seeds", "7", "--plot"];
    let (ok, table, said) = run(&[&methods[..], &small].concat());
    assert!(ok, "{said}");
    assert_eq!(
        files(&folder.path().join("out")),
        ["frontier.svg", "index.html", "plan.json", "results.json", "strips.svg", "table.csv", "table.tex", "videos"]
    );
    assert!(said.contains("out: 2 videos") && said.contains("1/2 none, seed 7, a red circle: "), "{said}");
    assert!(said.lines().last().unwrap().contains("everything is inside"), "{said}");
    assert!(table.contains("speed-up") && table.contains("navicache,threshold=0.5,align_steps=4 "), "{table}");
    assert!(table.contains("█ computed") && table.contains('░') && table.contains("A  navicache"), "{table}");

    let (ok, again, said) = run(&["--from", "out", "--link-videos"]);
    assert!(ok && table.starts_with(&again.trim_end().to_string()) && said.contains("keep them together"), "{said}");

    std::fs::create_dir(folder.path().join("empty")).unwrap();
    for (args, part) in [
        (&["--from", "empty"][..], "empty: expected a folder that `navicache compare` made"),
        (&["--from", "missing"], "missing: expected a folder"),
        (&[], "<PROMPT|--from <DIR>>"),
        (&["x", "--methods", "threshold=0.1"], "belongs to no method"),
        (&["x", "--methods", "navicache:warp"], "fast, mid, slow"),
        (&["x", "--seeds", "one"], "one"),
    ] {
        let (ok, _, error) = run(args);
        assert!(!ok && error.contains(part), "{args:?}: {error}");
    }
    assert_eq!(files(folder.path()), ["empty", "out"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_at_a_step() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path())
        .args(["generate", PROMPT, "--steps", "1000", "--cache", "none", "--report", "r.json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    lines.read_line(&mut String::new()).unwrap(); // what will be made: the handler stands by now
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.contains("cancelled after"), "{rest}");
    assert!(files(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_grow_is_an_error_that_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let made = shell(
        folder.path(),
        "ulimit -f 20; \"$navicache\" generate 'a red circle' --size 64x64 --frames 9 --steps 2 -q -o o.y4m",
    );
    assert_eq!(made.status.code(), Some(1), "{}", stderr(&made));
    assert!(stderr(&made).contains("o.y4m") && stderr(&made).contains("File too large"), "{}", stderr(&made));
    assert!(files(folder.path()).iter().all(|name| !name.ends_with(".part") && name != "o.y4m"));
}
