//! `--json`: what a program that follows a run reads.

mod program;

use std::path::Path;

use program::command;
use serde_json::Value;

fn lines(folder: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = command(folder).args(arguments).args(["--json", "-q"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"].as_str().unwrap()).collect()
}

const SHORT: &[&str] = &["--size", "32x32", "--frames", "1", "--steps", "3"];

#[test]
fn a_generation_is_followed_to_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let (code, lines) = lines(folder.path(), &[&["generate", "a red circle", "-o", "x.y4m"], SHORT].concat());
    assert_eq!(code, Some(0));
    let kinds = kinds(&lines);
    assert_eq!(kinds[0], "resolved");
    assert_eq!(lines[0]["request"]["width"], 32);
    assert!(lines[0]["chosen"]["cache"].as_str().unwrap().starts_with("stride"));
    assert_eq!(kinds.iter().filter(|kind| **kind == "step").count(), 3);
    let stages: Vec<_> = lines.iter().filter_map(|line| line["stage"].as_str()).collect();
    assert_eq!(stages, ["text", "load", "denoise", "decode"]);
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["path"]), (&"done".into(), &"x.y4m".into()));
    let report: navicache_engine::Report = serde_json::from_value(last["report"].clone()).unwrap();
    assert_eq!((report.request.steps, report.steps.len()), (3, 3));
    let again = serde_json::to_value(&report).unwrap();
    assert_eq!(again, last["report"], "a report is read as it was written");
}

#[test]
fn a_failure_says_its_kind_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let failed = |arguments: &[&str], kind: &str, field: Option<&str>| {
        let (code, lines) = lines(folder.path(), arguments);
        let last = lines.last().unwrap();
        let whose_fault = if kind == "invalid" { 2 } else { 1 };
        assert_eq!((code, &last["event"], &last["kind"]), (Some(whose_fault), &"error".into(), &kind.into()), "{last}");
        assert_eq!(last["field"].as_str(), field, "{last}");
    };
    failed(&["generate", "x", "--size", "60x64"], "invalid", Some("size"));
    failed(&["generate", "x", "--model", "nowhere"], "missing", Some("model"));
    failed(&["generate", "x", "--latents", "none.safetensors"], "missing", None);
    failed(&["generate", "x", "--cache", "navicache:warp"], "invalid", Some("cache"));
    std::fs::write(folder.path().join("l.safetensors"), b"no tensors").unwrap();
    failed(&["generate", "x", "--latents", "l.safetensors"], "damaged", None);
}

#[test]
fn studies_are_followed_too() {
    let folder = tempfile::tempdir().unwrap();
    let methods = ["--methods", "navicache,threshold=0.5,align_steps=1", "-o", "c"];
    let (code, compared) = lines(folder.path(), &[&["compare", "a red circle"], &methods[..], SHORT].concat());
    assert_eq!(code, Some(0));
    let videos: Vec<_> = compared.iter().filter(|line| line["event"] == "video").collect();
    assert_eq!((videos.len(), &videos[0]["method"]), (2, &"none".into()));
    assert_eq!(kinds(&compared).last(), Some(&"done"));

    let (code, traced) = lines(folder.path(), &[&["trace", "a red circle", "-o", "t.jsonl"], SHORT].concat());
    assert_eq!((code, kinds(&traced).last()), (Some(0), Some(&"done")));
    std::fs::write(folder.path().join("p.txt"), "a red circle\n").unwrap();
    let vbench = ["vbench", "p.txt", "-o", "v", "--seeds", "1"];
    let (code, made) = lines(folder.path(), &[&vbench, SHORT].concat());
    assert_eq!((code, kinds(&made).last()), (Some(0), Some(&"done")));
}
