//! Methods side by side, on the embedded model at a small size.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use navicache_engine::{LoadOptions, Pipeline, Request};
use navicache_study::compare::{Event, Plan, Results, Run, Videos, promise, run, write};
use serde_json::Value;

const EAGER: &str = "navicache,threshold=0.5,align_steps=3";
/// Decides on parts of blocks.
const IN_PART: &str = "pab";

fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| Pipeline::open("demo", &LoadOptions::default()).unwrap())
}

fn plan(prompts: &[&str], methods: &[&str]) -> Plan {
    let request = Request { size: Some((32, 32).into()), frames: Some(5), steps: Some(10), ..Request::default() };
    let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
    Plan { prompts: texts(prompts), methods: texts(methods), seeds: vec![3], request, lpips: None, call: None }
}

/// Runs a plan, stopped after so many videos; says which methods ran.
fn run_some(plan: &Plan, folder: &Path, most: usize) -> (Vec<String>, navicache_study::Result<Results>) {
    let mut ran = Vec::new();
    let results = run(pipeline(), plan, folder, &mut |event| {
        if let Event::Done(run) = event {
            ran.push(run.method.clone());
        }
        if ran.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (ran, results)
}

fn run_all(plan: &Plan, folder: &Path) -> (Vec<String>, Results) {
    let (ran, results) = run_some(plan, folder, usize::MAX);
    (ran, results.unwrap())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_ran_is_measured_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = "a red circle </script><img src=x onerror=alert(1)> {{data}} \"'<!--";
    let (ran, results) = run_all(&plan(&[hostile], &[EAGER, IN_PART]), folder.path());
    assert_eq!(ran, ["none", EAGER, IN_PART], "the uncached run is added, and comes first");

    let [none, eager, in_part] = &results.methods[..] else { panic!("{:?}", results.methods) };
    assert_eq!((none.speedup, none.work, none.psnr), (Some(1.0), 1.0, None));
    assert!(eager.work < 1.0 && eager.psnr.is_some_and(|psnr| psnr < 100.0) && eager.speedup.is_some(), "{eager:?}");
    assert!(eager.metrics["lpips"].is_none() && eager.metrics["ssim"].is_some());
    assert!(in_part.forwards[1] > 0, "{in_part:?}");

    // Which units ran, agrees with the report's counts of them.
    for run in &results.runs {
        let blocks = &run.report["blocks"];
        let units = blocks["units"].as_array().unwrap().len();
        for step in run.report["steps"].as_array().unwrap() {
            let index = step["index"].as_u64().unwrap() as usize;
            for (b, branch) in blocks["branches"].as_array().unwrap().iter().enumerate() {
                let text = blocks["steps"][index][b].as_str().unwrap();
                let computed = match text {
                    "S" => units,
                    "." => 0,
                    parts => parts.matches('S').count(),
                };
                assert_eq!(computed as u64, step["branches"][branch.as_str().unwrap()]["units_computed"], "{text}");
            }
        }
    }

    let page = write(&results, Videos::Embedded).unwrap();
    let written = json(&folder.path().join("results.json"));
    assert_eq!(written["runs"].as_array().unwrap().len(), 3);
    assert_eq!(written["runs"][1]["prompt"], hostile);
    assert_eq!(written["runs"][1]["report"]["compared"]["psnr"]["frames"].as_array().unwrap().len(), 5);
    let text = std::fs::read_to_string(&page.path).unwrap();
    assert_eq!(text.len() as u64, page.bytes);
    assert_eq!(text.matches("</script>").count(), 2, "a prompt ends no script");
    assert!(!text.contains("<img"));
    assert!(text.contains(r#""embedded":true"#) && text.contains("media-src blob:"), "videos are inside");
    for svg in ["frontier.svg", "strips.svg"] {
        let svg = std::fs::read_to_string(folder.path().join(svg)).unwrap();
        assert!(svg.starts_with("<svg") && !svg.contains("<img") && svg.trim_end().ends_with("</svg>"));
        assert!(no_address(&svg));
    }
    assert!(no_address(&text));
    let table = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let (csv, latex) = (table("table.csv"), table("table.tex"));
    assert_eq!((csv.lines().count(), csv.lines().next().unwrap().split(',').count()), (4, 12), "{csv}");
    assert!(csv.contains(&format!("\n\"{EAGER}\",1,")), "{csv}");
    assert!(latex.contains(r"\texttt{navicache,threshold=0.5,align\_steps=3} & 1 & "), "{latex}");
    assert_eq!(latex.matches(r"\\").count(), 4, "the head and three methods: {latex}");

    let linked = write(&results, Videos::Linked).unwrap();
    assert!(linked.bytes < page.bytes);
    for run in &results.runs {
        assert!(folder.path().join(&run.video).exists() && !run.video.contains('\\'), "{}", run.video);
    }
}

/// Whether a text refers to nothing outside, names of formats aside.
fn no_address(text: &str) -> bool {
    let text = text.replace("http://www.w3.org/2000/svg", "");
    !text.contains("http:") && !text.contains("https:") && !text.contains("//cdn")
}

#[test]
fn what_was_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = plan(&["a blue star spinning on a cream background"], &["none", EAGER, "easycache"]);
    let (ran, stopped) = run_some(&wanted, folder.path(), 2);
    assert_eq!(ran, ["none", EAGER]);
    assert!(stopped.is_err_and(|error| error.is_cancelled()));
    assert_eq!(Results::read(folder.path()).unwrap().runs.len(), 2, "what there is can be shown");

    // A video without its record, as a killed process leaves it, is no run.
    let record = |run: &Run| folder.path().join(&run.video).with_extension("json");
    let before = Results::read(folder.path()).unwrap();
    std::fs::remove_file(record(&before.runs[1])).unwrap();
    let time = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let first = time(&folder.path().join(&before.runs[0].video));
    let (ran, results) = run_all(&wanted, folder.path());
    assert_eq!(ran, [EAGER, "easycache"]);
    assert_eq!(time(&folder.path().join(&results.runs[0].video)), first, "the reference was not made again");
    let again = results.runs[1].report["compared"]["psnr"].clone();
    assert_eq!(again, before.runs[1].report["compared"]["psnr"], "measured against the frames that were kept");
    assert!(run_all(&wanted, folder.path()).0.is_empty());

    // More can be added; without its frames, the reference is made again.
    let frames = record(&results.runs[0]).with_extension("frames.safetensors");
    std::fs::remove_file(frames).unwrap();
    let more = plan(&["a blue star spinning on a cream background"], &["trend:mid"]);
    assert_eq!(run_all(&more, folder.path()).0, ["none", "trend:mid"]);

    // Other settings belong into another folder.
    let mut other = wanted.clone();
    other.request.steps = Some(11);
    let message = run_some(&other, folder.path(), 9).1.unwrap_err().to_string();
    assert!(message.contains("plan.json: was made with request.steps 10, now it is 11"), "{message}");
    let mut spoiled = json(&record(&results.runs[1]));
    spoiled["cache"]["threshold"] = 0.25.into();
    std::fs::write(record(&results.runs[1]), spoiled.to_string()).unwrap();
    let message = run_some(&wanted, folder.path(), 9).1.unwrap_err().to_string();
    assert!(message.contains("was made with cache.threshold 0.25, now it is 0.5"), "{message}");
}

#[test]
fn one_video_is_not_two_to_a_promise() {
    let folder = tempfile::tempdir().unwrap();
    let mut twice = plan(&["a red circle", "a  red circle"], &["stride,threshold=0.1", "stride,threshold=0.2"]);
    twice.request.frames = Some(1);
    let message = promise(&run_all(&twice, folder.path()).1).unwrap_err().to_string();
    let both = "is the video of \"a red circle\" of seed 3 and of \"a  red circle\" of seed 3";
    assert!(message.contains(both), "{message}");
}

#[test]
fn plans_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |plan: &Plan, part: &str| {
        let message = run_some(plan, folder.path(), 1).1.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is left of {message}");
    };
    refused(&plan(&[], &[]), "prompts none");
    refused(&plan(&["x"], &["navicache:warp"]), "it has fast, mid, slow");
    refused(&plan(&["x"], &["magic"]), "magic");
    let mut one = plan(&["x"], &[EAGER]);
    one.seeds = vec![0, 1];
    one.request.latents = Some("noise.safetensors".into());
    refused(&one, "expected one seed");
    assert!(Results::read(folder.path()).unwrap_err().to_string().contains("it has no plan.json"));
    std::fs::write(folder.path().join("plan.json"), "{}").unwrap();
    assert!(Results::read(folder.path()).unwrap_err().to_string().contains("not what `navicache compare` writes"));
}
