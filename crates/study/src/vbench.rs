//! Videos for VBench (Huang et al., CVPR 2024, arXiv 2311.17982): its prompts, several seeds each, in the folder and
//! under the names that its evaluation looks for, `PROMPT-INDEX.mp4`. The evaluation itself is VBench's own.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use navicache_engine::{Pipeline, Request, WholeFile, generate};

/// Videos a prompt that VBench counts on.
pub const SEEDS: u64 = 5;
/// What was asked for, beside the videos, so that a folder is never a mixture.
const SETTINGS: &str = "navicache.json";
/// Longest name of a file, in bytes, on the file systems that there are.
const NAME_MAX: usize = 255;

/// A prompt, and what is judged by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text, which is the name of its videos too.
    pub text: String,
    /// VBench's dimensions that it belongs to; empty where the file does not say.
    pub dimensions: Vec<String>,
}

/// An entry of the list: as in `VBench_full_info.json`, or a text alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Text(String),
    Full {
        prompt_en: String,
        #[serde(default)]
        dimension: Vec<String>,
    },
}

/// Reads `VBench_full_info.json`, or a JSON list of texts. Prompts that cannot be the name of a file are refused.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let expected =
        "expected a JSON list of texts, or of objects with prompt_en and dimension as in VBench_full_info.json";
    let entries: Vec<Entry> =
        serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("{expected}: {e}")))?;
    let mut prompts: Vec<Prompt> = Vec::with_capacity(entries.len());
    for entry in entries {
        let (text, dimensions) = match entry {
            Entry::Text(text) => (text, Vec::new()),
            Entry::Full { prompt_en, dimension } => (prompt_en, dimension),
        };
        let unusable = text.is_empty() || text.contains(['/', '\0']) || name_of(&text, u64::MAX).len() > NAME_MAX;
        if unusable {
            let reason =
                format!("{text:?}: expected a prompt that can be the name of a file; VBench finds videos by it");
            return Err(Error::file(path, reason));
        }
        // A prompt that stands for several dimensions may be listed once for each.
        match prompts.iter_mut().find(|prompt| prompt.text == text) {
            Some(prompt) => prompt.dimensions.extend(dimensions),
            None => prompts.push(Prompt { text, dimensions }),
        }
    }
    match prompts.is_empty() {
        true => Err(Error::file(path, "has no prompts")),
        false => Ok(prompts),
    }
}

/// What is made of which prompts.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// Which of them, for several machines that share the work.
    pub range: Range<usize>,
    /// Videos a prompt.
    pub seeds: u64,
    /// The rest of the request; its prompt is not used, and its seed is the first video's.
    pub request: Request,
    /// Where the videos go.
    pub folder: PathBuf,
}

/// What became of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Videos that were made.
    pub made: usize,
    /// Videos that were there already.
    pub here: usize,
}

/// What happens while videos are made.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A video begins.
    Video {
        /// From 0.
        index: usize,
        /// Videos of the plan.
        videos: usize,
        /// Its file.
        path: &'a Path,
    },
    /// What happens within it.
    Inner(&'a navicache_engine::Event<'a>),
}

/// The settings that all videos of a folder share.
#[derive(Serialize, Deserialize, PartialEq)]
struct Settings {
    model: String,
    seed: u64,
    request: serde_json::Value,
}

impl Plan {
    /// Makes the videos that are not there yet. Answer [`ControlFlow::Break`] to stop at the next step; what is there
    /// stays, and is not made again.
    pub fn run(&self, pipeline: &Pipeline, on_event: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<Made> {
        let prompts = self.prompts.get(self.range.clone()).filter(|prompts| !prompts.is_empty()).ok_or_else(|| {
            let found = format!("{} and {}", self.range.start, self.range.end);
            Error::invalid("the part", found, format!("expected a part of the {} prompts", self.prompts.len()))
        })?;
        std::fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        self.check_settings(pipeline)?;
        let first = self.request.seed.unwrap_or(0);
        let videos = prompts.len() * self.seeds as usize;
        let mut done = Made { made: 0, here: 0 };
        for (index, (prompt, number)) in
            prompts.iter().flat_map(|prompt| (0..self.seeds).map(move |number| (prompt, number))).enumerate()
        {
            let path = self.folder.join(name_of(&prompt.text, number));
            if path.exists() {
                done.here += 1; // files are written whole
                continue;
            }
            if on_event(Event::Video { index, videos, path: &path }).is_break() {
                return Err(Error::cancelled(0, self.request.steps.unwrap_or(pipeline.defaults().steps)));
            }
            let seed = Some(first.wrapping_add(number));
            let request = Request { prompt: prompt.text.clone(), seed, ..self.request.clone() };
            let mut video = generate(pipeline, &request, &mut |event| on_event(Event::Inner(&event)))?;
            video.save(&path)?;
            done.made += 1;
        }
        Ok(done)
    }

    /// A folder belongs to one model and one way of sampling it.
    fn check_settings(&self, pipeline: &Pipeline) -> Result<()> {
        let path = self.folder.join(SETTINGS);
        let mut resolved = pipeline.resolve(&self.request)?;
        let cache = serde_json::json!(resolved.cache);
        (resolved.seed, resolved.prompt) = (0, String::new());
        let mut request = serde_json::json!(resolved);
        request["cache"] = cache;
        let settings = Settings { model: pipeline.name().to_string(), seed: self.request.seed.unwrap_or(0), request };
        if !path.exists() {
            let text = format!("{:#}\n", serde_json::json!(settings));
            return Ok(WholeFile::create(&path)?.finish_with(text.as_bytes())?);
        }
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let there: Settings = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        if there == settings {
            return Ok(());
        }
        let reason = "the videos beside it were made with other settings; take another folder, or the same settings";
        Err(Error::file(&path, reason))
    }

    /// What to run next, as a line for a shell.
    pub fn next_command(&self) -> String {
        let dimensions: BTreeSet<&str> =
            self.prompts.iter().flat_map(|prompt| &prompt.dimensions).map(String::as_str).collect();
        let folder = self.folder.display().to_string().replace('\'', r"'\''");
        match dimensions.is_empty() {
            true => format!(
                "vbench evaluate --videos_path '{folder}' --mode=custom_input --dimension subject_consistency background_consistency \
                 motion_smoothness dynamic_degree aesthetic_quality imaging_quality"
            ),
            false => {
                let dimensions: Vec<&str> = dimensions.into_iter().collect();
                format!("vbench evaluate --videos_path '{folder}' --dimension {}", dimensions.join(" "))
            }
        }
    }
}

fn name_of(prompt: &str, number: u64) -> String {
    format!("{prompt}-{number}.mp4")
}

#[cfg(test)]
mod tests {
    use super::*;
    use navicache_engine::LoadOptions;

    fn plan(folder: &Path, range: Range<usize>) -> Plan {
        let list = folder.join("prompts.json");
        let text = r#"[{"prompt_en": "a red circle growing on a navy background", "dimension": ["color"]},
            {"prompt_en": "a red circle growing on a navy background", "dimension": ["scene"]}, "a blue star"]"#;
        std::fs::write(&list, text).unwrap();
        let request = Request { size: Some((16, 16).into()), frames: Some(1), steps: Some(2), ..Request::default() };
        Plan { prompts: read(&list).unwrap(), range, seeds: 2, request, folder: folder.join("out") }
    }

    #[test]
    fn videos_have_the_names_that_are_looked_for_and_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let demo = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let go_on = &mut |_: Event| ControlFlow::Continue(());
        let first = plan(folder.path(), 0..1);
        assert_eq!(first.prompts[0].dimensions, ["color", "scene"]);
        assert_eq!(first.run(&demo, go_on).unwrap(), Made { made: 2, here: 0 });
        let all = plan(folder.path(), 0..2);
        assert_eq!(all.run(&demo, go_on).unwrap(), Made { made: 2, here: 2 });
        let names = ["a red circle growing on a navy background-0.mp4", "a blue star-1.mp4"];
        assert!(names.iter().all(|name| all.folder.join(name).exists()));
        assert!(all.next_command().ends_with("/out' --dimension color scene"), "{}", all.next_command());

        let other = Plan { request: Request { steps: Some(3), ..all.request.clone() }, ..all.clone() };
        assert!(other.run(&demo, go_on).unwrap_err().to_string().contains("other settings"));
        let beyond = Plan { range: 2..5, ..all };
        assert!(beyond.run(&demo, go_on).unwrap_err().to_string().contains("a part of the 2 prompts"));
    }

    #[test]
    fn a_stop_leaves_whole_videos_only() {
        let folder = tempfile::tempdir().unwrap();
        let demo = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let plan = plan(folder.path(), 0..2);
        let stop = &mut |event: Event| match event {
            Event::Inner(navicache_engine::Event::Step { index: 1, .. }) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        assert!(plan.run(&demo, stop).is_err_and(|error| error.is_cancelled()));
        assert_eq!(std::fs::read_dir(&plan.folder).unwrap().count(), 1, "the settings alone");
        assert_eq!(plan.run(&demo, &mut |_| ControlFlow::Continue(())).unwrap(), Made { made: 4, here: 0 });
    }

    #[test]
    fn lists_that_cannot_work_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |text: &str, part: &str| {
            let path = folder.path().join("list.json");
            std::fs::write(&path, text).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("list.json"), "{message}");
        };
        refused("[]", "has no prompts");
        refused("{}", "expected a JSON list");
        refused(r#"[{"prompt": "x"}]"#, "prompt_en");
        refused(r#"["a/b"]"#, "can be the name of a file");
        refused(&format!(r#"["{}"]"#, "x".repeat(300)), "can be the name of a file");
    }
}
