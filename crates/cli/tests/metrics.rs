//! `navicache metrics` of folders, and of what is no regular file.

mod program;

use std::path::Path;

#[cfg(unix)]
use program::shell;
use program::{navicache, stderr};
use serde_json::Value;

/// Frames of a size as `generate` writes them: a gradient that moves a pixel a frame.
fn write_frames(path: &Path, frames: usize, width: usize, height: usize) {
    let value = |frame: usize, y: usize, x: usize| [(3 * (x + frame)) as u8, (5 * y) as u8, 90];
    let pixels: Vec<u8> =
        (0..frames * height * width).flat_map(|i| value(i / (height * width), i / width % height, i % width)).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![frames, height, width, 3], &pixels);
    std::fs::write(path, safetensors::serialize([("frames", view.unwrap())], None).unwrap()).unwrap();
}

#[test]
fn metrics_of_folders() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["plain", "fast"] {
        std::fs::create_dir(at(name)).unwrap();
        write_frames(&at(name).join("good.safetensors"), 3, 40, 36);
        write_frames(&at(name).join("larger.safetensors"), 3, 40, if name == "fast" { 48 } else { 36 });
        write_frames(&at(name).join("cut.safetensors"), 3, 40, 36);
    }
    let run = |args: &[&str]| {
        let output = navicache(folder.path(), &[&["metrics", "plain", "fast"], args].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output))
    };
    write_frames(&at("plain/missing.safetensors"), 3, 40, 36);
    let whole = std::fs::read(at("fast/cut.safetensors")).unwrap();
    std::fs::write(at("fast/cut.safetensors"), &whole[..whole.len() / 2]).unwrap();

    let (code, text, errors) = run(&["--csv", "curves.csv"]);
    assert_eq!(code, Some(1), "{errors}");
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(line("good.safetensors").contains("100.00") && line("mean of 1").contains("100.00"), "{text}");
    for (name, reason) in [
        ("cut", "not a safetensors file"),
        ("larger", "3 frames of 40x48"),
        ("missing", "plain/missing.safetensors is there"),
    ] {
        assert!(line(name).contains("not compared") && line(name).contains(reason), "{text}");
        assert!(errors.contains(&format!("{name}.safetensors")) && errors.contains("3 of 4"), "{errors}");
    }
    let curves = std::fs::read_to_string(at("curves.csv")).unwrap();
    assert_eq!((curves.lines().count(), curves.matches("good.safetensors").count()), (4, 3), "{curves}");

    let (code, json, _) = run(&["--json", "--convention", "easycache"]);
    let all: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, all["convention"].as_str(), all["mean"]["psnr"].as_f64()),
        (Some(1), Some("easycache"), Some(100.0))
    );
    assert_eq!(all["pairs"][0]["metrics"]["psnr"]["worst_frame"], 0);
    let failed: Vec<&str> = all["failed"].as_array().unwrap().iter().filter_map(|pair| pair["name"].as_str()).collect();
    assert_eq!(failed, ["cut.safetensors", "larger.safetensors", "missing.safetensors"]);

    for name in ["cut", "larger", "missing"] {
        let _ = std::fs::remove_file(at("plain").join(format!("{name}.safetensors")));
        let _ = std::fs::remove_file(at("fast").join(format!("{name}.safetensors")));
    }
    assert_eq!(run(&[]).0, Some(0));
    let (code, _, errors) = run(&["--lpips-weights", "fast/good.safetensors"]);
    assert!(code == Some(1) && errors.contains("features.0.weight") && errors.contains("alex.pth"), "{errors}");
    let (code, _, errors) = run(&["--convention", "vbench"]);
    assert!(code == Some(2) && errors.contains("raw, videosys, easycache"), "{errors}");
}

#[cfg(unix)]
#[test]
fn pipes_are_written_into_and_not_read_as_videos() {
    let folder = tempfile::tempdir().unwrap();
    let run = |script: &str| shell(folder.path(), script);
    write_frames(&folder.path().join("a.safetensors"), 3, 40, 36);
    let piped = run(
        "mkfifo curves && (cat curves > copy & \"$navicache\" metrics a.safetensors a.safetensors --threads 1 --csv curves && wait)",
    );
    assert!(piped.status.success(), "{}", stderr(&piped));
    assert_eq!(std::fs::read_to_string(folder.path().join("copy")).unwrap().lines().count(), 4);
    assert!(run("test -p curves").status.success(), "the pipe is still one");
    for link in ["/dev/zero", "$PWD/curves"] {
        let refused = run(&format!("ln -sf {link} z.mp4; \"$navicache\" metrics z.mp4 z.mp4"));
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains("z.mp4: is no regular file"), "{}", stderr(&refused));
    }
}
