//! Videos for VBench (Huang et al., CVPR 2024, arXiv 2311.17982): its prompts, several seeds each, in the folder and
//! under the names that its evaluation looks for, `PROMPT-INDEX.mp4`. The evaluation itself is VBench's own.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use navicache_engine::{Pipeline, Request, WholeFile, generate};
use navicache_media::read_text;

/// Videos a prompt that VBench counts on.
pub const SEEDS: u64 = 5;
/// The dimension for which it wants more, since it leaves out those that move.
const FLICKER: (&str, u64) = ("temporal_flickering", 25);
/// What was asked for, beside the videos, so that a folder is never a mixture.
const SETTINGS: &str = "navicache.json";
/// Longest name of a file, in bytes, on the file systems that there are.
const NAME_MAX: usize = 255;

/// A prompt, and what is judged by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text, which is the name of its videos too.
    pub text: String,
    /// What the video is made of where it is not the text: a longer description under the short one's name.
    pub augmented: Option<String>,
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
        #[serde(default)]
        augmented_prompt: Option<String>,
    },
}

/// A list of prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Those that can be the name of a file.
    pub prompts: Vec<Prompt>,
    /// Those that cannot: VBench finds videos by their names.
    pub left_out: Vec<String>,
}

/// Reads `VBench_full_info.json`, a JSON list of texts, or a text file with a prompt a line.
pub fn read(path: &Path) -> Result<List> {
    let mut list = List { prompts: Vec::new(), left_out: Vec::new() };
    for entry in entries(path)? {
        let (text, dimensions, augmented) = match entry {
            Entry::Text(text) => (text, Vec::new(), None),
            Entry::Full { prompt_en, dimension, augmented_prompt } => (prompt_en, dimension, augmented_prompt),
        };
        if text.is_empty() || text.contains(['/', '\0']) || name_of(&text, FLICKER.1 - 1).len() > NAME_MAX {
            list.left_out.push(text);
            continue;
        }
        // A prompt that stands for several dimensions may be listed once for each.
        match list.prompts.iter_mut().find(|prompt| prompt.text == text) {
            Some(prompt) => prompt.dimensions.extend(dimensions),
            None => list.prompts.push(Prompt { text, augmented, dimensions }),
        }
    }
    match (list.prompts.is_empty(), list.left_out.first()) {
        (false, _) => Ok(list),
        (true, None) => Err(Error::file(path, "has no prompts")),
        (true, Some(text)) => {
            let reason =
                format!("{text:?}: expected a prompt that can be the name of a file; VBench finds videos by it");
            Err(Error::file(path, reason))
        }
    }
}

fn entries(path: &Path) -> Result<Vec<Entry>> {
    let text = read_text(path)?;
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("txt")) {
        return Ok(lines(&text).map(|line| Entry::Text(line.to_string())).collect());
    }
    let expected = "expected a JSON list of texts, or of objects with prompt_en and dimension as in \
                    VBench_full_info.json; or a .txt file with a prompt a line";
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("{expected}: {e}")))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

impl List {
    /// Takes longer descriptions from a text file, one a line in the order of the prompts, as VBench publishes them.
    pub fn augment(&mut self, path: &Path) -> Result<()> {
        let text = read_text(path)?;
        let longer: Vec<&str> = lines(&text).collect();
        if longer.len() != self.prompts.len() {
            let reason = format!("has {} lines, expected {}, one a prompt", longer.len(), self.prompts.len());
            return Err(Error::file(path, reason));
        }
        for (prompt, line) in self.prompts.iter_mut().zip(longer) {
            prompt.augmented = Some(line.to_string());
        }
        Ok(())
    }
}

/// What is made of which prompts.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// Which of them, for several machines that share the work.
    pub range: Range<usize>,
    /// Videos a prompt; `None`: what VBench asks for.
    pub seeds: Option<u64>,
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
    /// Whether longer descriptions made the videos.
    #[serde(default)]
    augmented: bool,
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
        let videos = prompts.iter().map(|prompt| self.videos_of(prompt) as usize).sum();
        let mut done = Made { made: 0, here: 0 };
        for (index, (prompt, number)) in prompts
            .iter()
            .flat_map(|prompt| (0..self.videos_of(prompt)).map(move |number| (prompt, number)))
            .enumerate()
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
            let text = prompt.augmented.as_ref().unwrap_or(&prompt.text).clone();
            let request = Request { prompt: text, seed, ..self.request.clone() };
            let mut video = generate(pipeline, &request, &mut |event| on_event(Event::Inner(&event)))?;
            video.save(&path)?;
            done.made += 1;
        }
        Ok(done)
    }

    fn videos_of(&self, prompt: &Prompt) -> u64 {
        let (dimension, many) = FLICKER;
        let wanted = if prompt.dimensions.iter().any(|other| other == dimension) { many } else { SEEDS };
        self.seeds.unwrap_or(wanted)
    }

    /// A folder belongs to one model and one way of sampling it.
    fn check_settings(&self, pipeline: &Pipeline) -> Result<()> {
        let path = self.folder.join(SETTINGS);
        let mut resolved = pipeline.resolve(&self.request)?;
        let cache = serde_json::json!(resolved.cache);
        (resolved.seed, resolved.prompt) = (0, String::new());
        let mut request = serde_json::json!(resolved);
        request["cache"] = cache;
        let settings = Settings {
            model: pipeline.name().to_string(),
            seed: self.request.seed.unwrap_or(0),
            augmented: self.prompts.iter().any(|prompt| prompt.augmented.is_some()),
            request,
        };
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
        Plan { prompts: read(&list).unwrap().prompts, range, seeds: Some(2), request, folder: folder.join("out") }
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

    #[test]
    fn prompts_are_taken_as_vbench_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let long = "x".repeat(246);
        let mut list = read(&path("long.json", &format!(r#"["a dog runs", "{long}", "{long}xxxx", "a/b"]"#))).unwrap();
        assert_eq!((list.prompts.len(), list.left_out.len()), (2, 2));
        assert_eq!(read(&path("list.txt", "a dog runs\n\n  a cat\r\n")).unwrap().prompts[1].text, "a cat");

        list.augment(&path("longer.txt", "A brown dog runs\nmany x\n")).unwrap();
        assert_eq!(list.prompts[0].augmented.as_deref(), Some("A brown dog runs"));
        let message = list.augment(&path("short.txt", "one\n")).unwrap_err().to_string();
        assert!(message.contains("has 1 lines, expected 2"), "{message}");

        let text = r#"[{"prompt_en": "a still vase", "dimension": ["temporal_flickering"]},
            {"prompt_en": "a car", "dimension": ["color"], "augmented_prompt": "a red car at dusk"}]"#;
        let prompts = read(&path("full.json", text)).unwrap().prompts;
        let plan = Plan { seeds: None, prompts, ..plan(folder.path(), 0..2) };
        assert_eq!([0, 1].map(|i| plan.videos_of(&plan.prompts[i])), [25, 5]);
        assert_eq!(Plan { seeds: Some(3), ..plan.clone() }.videos_of(&plan.prompts[0]), 3);

        let demo = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let mut made_of = Vec::new();
        let one = Plan { seeds: Some(1), range: 1..2, ..plan };
        let made = one.run(&demo, &mut |event| {
            if let Event::Inner(navicache_engine::Event::Resolved(resolved)) = event {
                made_of.push(resolved.prompt.clone());
            }
            ControlFlow::Continue(())
        });
        assert_eq!(made.unwrap(), Made { made: 1, here: 0 });
        assert_eq!(made_of, ["a red car at dusk"]);
        assert!(one.folder.join("a car-0.mp4").exists());
    }
}
