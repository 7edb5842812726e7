//! The page: one file with the videos, the numbers and the script inside, which asks the network for nothing.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use html_escape::encode_safe;
use navicache_metrics::METRICS;
use navicache_page::{BASICS, PALETTE, PARTS, PLOT};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::plot::{self, Width};
use super::results::Results;
use super::table;
use crate::error::{Error, Result};
use navicache_engine::WholeFile;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const NAME: &str = "index.html";

/// Most bytes of videos that go into a page by themselves.
const EMBEDDED_MAX: u64 = 64 << 20;

/// Where the page has its videos from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Videos {
    /// They are inside, up to 64 MiB; beyond it, linked.
    #[default]
    Embedded,
    /// They stay files beside the page.
    Linked,
}

/// A page that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Bytes of the videos it shows.
    pub video_bytes: u64,
    /// Where they are.
    pub videos: Videos,
}

/// Writes `results.json`, the table, the plots and the page into the folder of the results; says where the page is.
pub fn write(results: &Results, videos: Videos) -> Result<Page> {
    let folder = results.folder();
    let put = |name: &str, text: &str| WholeFile::create(&folder.join(name))?.finish_with(text.as_bytes());
    let json = serde_json::to_value(results).unwrap_or_default();
    put("results.json", &format!("{json:#}\n"))?;
    let frontier = plot::frontier(results, Width::Wide);
    // A plot in a file of its own has its style with it.
    let files = [
        ("frontier.svg", plot::whole(&frontier)),
        ("strips.svg", plot::whole(&plot::strips(results))),
        ("table.csv", table::csv(results)),
        ("table.tex", table::latex(results)),
    ];
    for (name, text) in &files {
        put(name, text)?;
    }
    page(results, folder, videos, &Drawn { frontier, files })
}

/// What is drawn and written once, and shown and given out by the page.
struct Drawn {
    /// The wide plot, without a style of its own.
    frontier: String,
    /// Files beside the page: names and contents.
    files: [(&'static str, String); 4],
}

fn page(results: &Results, folder: &Path, videos: Videos, drawn: &Drawn) -> Result<Page> {
    let mut video_bytes = 0;
    for run in &results.runs {
        let path = folder.join(&run.video);
        video_bytes += std::fs::metadata(&path).map_err(Error::io(&path))?.len();
    }
    let videos = if video_bytes > EMBEDDED_MAX { Videos::Linked } else { videos };
    let mut media = Map::new();
    if videos == Videos::Embedded {
        for run in &results.runs {
            let path = folder.join(&run.video);
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            media.insert(run.video.clone(), BASE64_STANDARD.encode(bytes).into());
        }
    }
    let page = render(results, media, videos, drawn);
    let path = folder.join(NAME);
    WholeFile::create(&path)?.finish_with(page.as_bytes())?;
    Ok(Page { path, bytes: page.len() as u64, video_bytes, videos })
}

fn render(results: &Results, media: Map<String, Value>, videos: Videos, drawn: &Drawn) -> String {
    let style = format!("{PALETTE}{BASICS}{PLOT}{STYLE}");
    let script = format!("{PARTS}{SCRIPT}");
    // Of scripts and styles, only those of this file may run, by their digests; and nothing may be fetched.
    let source = if videos == Videos::Embedded { "blob:" } else { "'self' file:" };
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; media-src {source}; img-src data:; base-uri 'none'; form-action 'none'",
        digest(&script),
        digest(&style)
    );
    let prompt = results.prompts.first().map_or("", String::as_str);
    let title = format!("navicache compare: {prompt}");
    // `<` could end the script that holds the data.
    let data = data(results, media, videos, drawn).to_string().replace('<', "\\u003c");
    fill(TEMPLATE, &|name| match name {
        "policy" => encode_policy(&policy),
        "title" => encode_safe(&title).into_owned(),
        "style" => style.clone(),
        "frontier" => drawn.frontier.clone(),
        "frontier-narrow" => plot::frontier(results, Width::Narrow),
        "data" => data.clone(),
        "script" => script.clone(),
        _ => String::new(),
    })
}

/// Within double quotes, quotes of the other kind stay.
fn encode_policy(policy: &str) -> String {
    html_escape::encode_double_quoted_attribute(policy).into_owned()
}

fn digest(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text.as_bytes())))
}

/// Puts values where the template names them, in one pass: what is put in is not looked at again.
fn fill(template: &str, value: &dyn Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut page = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or(("", part));
        page.push_str(&value(name));
        page.push_str(rest);
    }
    page
}

/// What the script draws.
fn data(results: &Results, media: Map<String, Value>, videos: Videos, drawn: &Drawn) -> Value {
    let index = |list: &[String], text: &str| list.iter().position(|other| other == text);
    let names: Vec<String> = results.methods.iter().map(|method| method.method.clone()).collect();
    let first = results.runs.first().map_or(&Value::Null, |run| &run.report);
    let request = &first["request"];

    let methods: Vec<Value> = results
        .methods
        .iter()
        .map(|summary| {
            let mut method = json!(summary);
            method["name"] = summary.method.clone().into();
            method["options"] =
                results.of_method(&summary.method).next().map_or(Value::Null, |run| run.report["cache"].clone());
            method
        })
        .collect();
    let runs: Vec<Value> = results
        .runs
        .iter()
        .map(|run| {
            let report = &run.report;
            json!({
                "prompt": index(&results.prompts, &run.prompt), "seed": run.seed, "method": index(&names, &run.method),
                "video": run.video, "speedup": results.speedup(run), "strip": report["strip"], "blocks": report["blocks"],
                "totals": report["totals"], "compared": report["compared"], "warnings": report["warnings"],
            })
        })
        .collect();
    let steps: Vec<Value> = first["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| json!({"timestep": step["timestep"], "sigma": step["sigma"]}))
        .collect();

    let mut settings = Map::from_iter([("model".to_string(), first["model"].clone())]);
    settings.insert("family".to_string(), first["family"].clone());
    let differs = |key: &str| key == "prompt" || key == "seed";
    let common = request.as_object().into_iter().flatten().filter(|(key, _)| !differs(key));
    settings.extend(common.map(|(key, value)| (key.clone(), value.clone())));
    if first["added"].as_array().is_some_and(|added| !added.is_empty()) {
        settings.insert("files".to_string(), first["added"].clone());
    }
    let metrics: Vec<Value> = METRICS
        .iter()
        .map(|metric| json!({"key": metric.key, "name": metric.name, "unit": metric.unit, "digits": metric.digits}))
        .collect();
    let exports: Map<String, Value> =
        drawn.files.iter().map(|(name, text)| (name.to_string(), text.clone().into())).collect();
    json!({
        "metrics": metrics, "prompts": results.prompts, "seeds": results.seeds, "methods": methods, "warnings": results.warnings, "runs": runs, "steps": steps,
        "width": request["width"], "height": request["height"], "frames": request["frames"], "fps": request["fps"],
        "settings": settings, "machine": first["machine"], "embedded": videos == Videos::Embedded, "media": media,
        "calls": results.calls, "exports": exports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_not_looked_at_again() {
        let page = fill("<{{a}}|{{b}}>", &|name| if name == "a" { "{{b}}".to_string() } else { "B".to_string() });
        assert_eq!(page, "<{{b}}|B>");
    }
}
