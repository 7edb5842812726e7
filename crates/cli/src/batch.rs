//! Several videos in one call, with one model loaded: prompts of a file, several seeds.

use std::io::Read;
use std::path::{Path, PathBuf};

use navicache_engine::Request;

use crate::args::Generate;
use crate::error::{Error, Result};
use crate::overwrite;
use crate::values::Preview;

/// One video of a call.
pub struct Job {
    pub request: Request,
    pub output: PathBuf,
    pub report: Option<PathBuf>,
}

/// The videos of a call. Where they are several, files are named by the number of the prompt and by the seed:
/// `out-2-seed7.mp4`.
pub fn jobs(options: &Generate) -> Result<Vec<Job>> {
    let request = options.request();
    let prompts = match &options.batch.prompts {
        Some(file) => lines_of(file)?,
        None if request.prompt == "-" => vec![standard_input()?.trim().to_string()],
        None => vec![request.prompt.clone()],
    };
    let seeds = match options.batch.seeds.as_slice() {
        [] => vec![request.seed],
        seeds => seeds.iter().copied().map(Some).collect(),
    };
    let mut jobs = Vec::with_capacity(prompts.len() * seeds.len());
    for (number, prompt) in prompts.iter().enumerate() {
        for seed in &seeds {
            let number = options.batch.prompts.is_some().then(|| format!("-{}", number + 1));
            let chosen = seed.filter(|_| !options.batch.seeds.is_empty()).map(|seed| format!("-seed{seed}"));
            let suffix = [number, chosen].into_iter().flatten().collect::<String>();
            let named = |path: &Path| with_suffix(path, &suffix);
            jobs.push(Job {
                request: Request {
                    prompt: prompt.clone(),
                    seed: *seed,
                    save_latents: request.save_latents.as_deref().map(named),
                    ..request.clone()
                },
                output: named(&options.output),
                report: options.report.as_deref().map(named),
            });
        }
    }
    Ok(jobs)
}

/// Refuses a call that would lose one of its files to another.
pub fn check_files(options: &Generate, jobs: &[Job]) -> Result<()> {
    let request = options.request();
    let (checkpoint, resume) = (request.checkpoint.map(|c| c.path), request.resume.map(|r| r.path));
    let preview = match &options.preview {
        Some(Preview::File(path)) => Some(path.as_path()),
        _ => None,
    };
    let read = [
        ("--prompts", options.batch.prompts.as_deref()),
        ("--image", request.image.as_deref()),
        ("--latents", request.latents.as_deref()),
        ("--resume", resume.as_deref()),
        ("--resume-decode", options.resume_decode.as_deref()),
    ];
    let of_jobs = jobs.iter().flat_map(|Job { request, output, report }| {
        [
            ("--output", Some(output.as_path())),
            ("--report", report.as_deref()),
            ("--save-latents", request.save_latents.as_deref()),
        ]
    });
    // A run goes on in the file that it is resumed from.
    let checkpoint = checkpoint.as_deref().filter(|path| resume.as_deref() != Some(*path));
    let written = of_jobs.chain([("--checkpoint", checkpoint), ("--preview", preview)]);
    overwrite::refuse(written.filter_map(overwrite::given), read.into_iter().filter_map(overwrite::given))
}

/// `out-2.mp4` of `out.mp4`.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map_or(String::new(), |ending| format!(".{}", ending.to_string_lossy()));
    path.with_file_name(format!("{stem}{suffix}{ending}"))
}

fn lines_of(file: &Path) -> Result<Vec<String>> {
    let text = match file.as_os_str() == "-" {
        true => standard_input()?,
        false => navicache_media::read_text(file)?,
    };
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string).collect();
    match lines.is_empty() {
        false => Ok(lines),
        true => Err(Error::Arguments {
            what: "--prompts",
            found: file.display().to_string(),
            expected: "expected a prompt a line, found none".to_string(),
        }),
    }
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.map_err(|source| navicache_engine::Error::Io { path: "standard input".into(), source })?;
    Ok(text)
}

impl Generate {
    /// The request as the engine takes it.
    pub fn request(&self) -> Request {
        Request {
            cache: self.cache.clone(),
            target: self.target.clone(),
            guard: self.guard,
            scale: self.scale,
            save_latents: self.save_latents.clone(),
            tile: self.tile,
            checkpoint: self.checkpoints.checkpoint(),
            resume: self.checkpoints.resume(),
            ..self.sampling.request()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn jobs_of(arguments: &[&str]) -> Vec<Job> {
        let all = [&["navicache", "generate"], arguments].concat();
        let Command::Generate(options) = Args::try_parse_from(all).unwrap().command else { panic!() };
        jobs(&options).unwrap()
    }

    #[test]
    fn files_are_named_by_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prompts.txt");
        std::fs::write(&file, "a cat\n\n  a dog \n").unwrap();
        let file = file.to_str().unwrap();
        let all = jobs_of(&["--prompts", file, "--seeds", "3,7", "-o", "v/x.y4m", "--report", "r.json"]);
        let names: Vec<_> = all.iter().map(|job| job.output.to_str().unwrap()).collect();
        assert_eq!(names, ["v/x-1-seed3.y4m", "v/x-1-seed7.y4m", "v/x-2-seed3.y4m", "v/x-2-seed7.y4m"]);
        assert_eq!(all[3].request.prompt, "a dog");
        assert_eq!((all[3].request.seed, all[3].report.as_deref()), (Some(7), Some(Path::new("r-2-seed7.json"))));

        let one = jobs_of(&["a cat", "--seed", "4"]);
        assert_eq!((one.len(), one[0].output.as_path(), one[0].request.seed), (1, Path::new("out.mp4"), Some(4)));
        let seeds = jobs_of(&["a cat", "--seeds", "1,2", "-o", "frames"]);
        assert_eq!(seeds[1].output, Path::new("frames-seed2"));
    }

    #[test]
    fn a_random_seed_is_chosen_once() {
        let jobs = jobs_of(&["a", "--seed", "-1"]);
        assert!(jobs.len() == 1 && jobs[0].request.seed.is_some());
    }
}
