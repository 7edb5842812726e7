//! `navicache doctor`: what this machine is, and what it can run, before anything is downloaded.

use std::path::{Path, PathBuf};

use navicache_engine::weights::hub_cache::HubCache;
use navicache_engine::{catalog, machine_memory, machine_name, models::Level, share_of_memory, threads, use_threads};
use serde::Serialize;
use serde_json::json;

use crate::args::Doctor;
use crate::error::Result;
use crate::models::{duration, gb};
use crate::published::{self, Rates};
use crate::terminal::print;

/// What was found.
#[derive(Serialize)]
struct Machine {
    navicache: &'static str,
    cpu: String,
    threads: usize,
    /// The instruction set that is fastest here, and those there are.
    kernels: &'static str,
    levels: Vec<&'static str>,
    /// Bytes that may be used, if they are known.
    memory_bytes: Option<u64>,
    /// Usable GPUs, or why there is none.
    gpu: std::result::Result<String, String>,
    /// Where models are kept, and what is free there.
    models: PathBuf,
    disk_bytes: Option<u64>,
}

/// How a model of the catalogue would run here.
#[derive(Serialize)]
struct Candidate {
    name: &'static str,
    disk_bytes: u64,
    largest_part_bytes: u64,
    is_here: bool,
    verdict: &'static str,
    /// The video that it makes where nothing else is asked for, and the seconds of its steps, everything computed;
    /// where the catalogue knows its shape.
    video: Option<String>,
    steps_seconds: Option<f64>,
}

pub fn doctor(options: &Doctor) -> Result<()> {
    use_threads(None)?;
    let cache = HubCache::from_env().map_err(navicache_engine::Error::from)?;
    let machine = Machine {
        navicache: env!("CARGO_PKG_VERSION"),
        cpu: machine_name(),
        threads: threads(),
        kernels: Level::current().name(),
        levels: Level::available().iter().map(|level| level.name()).collect(),
        memory_bytes: machine_memory(),
        gpu: gpu(),
        disk_bytes: free_space(cache.folder()),
        models: cache.folder().to_path_buf(),
    };
    let rates = Rates::measure()?;
    let candidates: Vec<Candidate> =
        catalog::models().iter().map(|model| judged(model, &machine, &cache, &rates)).collect();
    if options.json {
        print(&format!("{:#}", json!({"machine": machine, "models": candidates})));
    } else {
        print(&in_words(&machine, &candidates));
    }
    Ok(())
}

fn judged(model: &'static catalog::Model, machine: &Machine, cache: &HubCache, rates: &Rates) -> Candidate {
    let is_here = model.repositories.iter().all(|repository| cache.snapshot(repository).is_some());
    let (disk_bytes, largest_part_bytes) = (model.disk_bytes(), model.largest_part_bytes());
    let fits = machine.memory_bytes.is_none_or(|bytes| largest_part_bytes <= share_of_memory(bytes));
    let has_room = is_here || machine.disk_bytes.is_none_or(|free| disk_bytes <= free);
    let verdict = match (has_room, fits) {
        (false, _) => "no room on the disk",
        (true, true) => "fits into memory",
        (true, false) => "runs with weights streamed from disk, slowly; quantised files are smaller",
    };
    let expected = published::expected(model, None, None, None, rates);
    let video = expected.as_ref().map(|e| format!("{} frames of {}x{}", e.frames, e.width, e.height));
    let steps_seconds = expected.map(|expected| expected.seconds());
    Candidate { name: &model.name, disk_bytes, largest_part_bytes, is_here, verdict, video, steps_seconds }
}

/// Free bytes where a folder is, or will be.
fn free_space(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|place| place.exists())?;
    fs4::available_space(there).ok()
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> std::result::Result<String, String> {
    let usable = crate::handover::usable().map_err(|unusable| unusable.to_string());
    usable.map(|program| format!("by {}", program.display()))
}

#[cfg(feature = "cuda")]
fn gpu() -> std::result::Result<String, String> {
    navicache_engine::gpus().map(|names| names.join(", ")).map_err(|error| error.to_string())
}

fn in_words(machine: &Machine, candidates: &[Candidate]) -> String {
    let known = |bytes: Option<u64>| bytes.map_or("unknown".to_string(), gb);
    let gpu = match &machine.gpu {
        Ok(found) => found.clone(),
        Err(missing) => format!("none that can be used: {missing}"),
    };
    let mut lines = vec![
        format!("navicache  {}", machine.navicache),
        format!("processor  {}, {} threads", machine.cpu, machine.threads),
        format!("kernels    {}, of {}", machine.kernels, machine.levels.join(", ")),
        format!("memory     {} may be used", known(machine.memory_bytes)),
        format!("GPU        {gpu}"),
        format!("models     {}, {} free", machine.models.display(), known(machine.disk_bytes)),
        String::new(),
        format!("{:<22} {:>9} {:>9} {:>9}  {:<24}  here", "model", "disk", "memory", "time", "of its own video"),
    ];
    for candidate in candidates {
        let Candidate { name, disk_bytes, largest_part_bytes, is_here, verdict, video, steps_seconds } = candidate;
        let here = if *is_here { "downloaded; " } else { "" };
        let (disk, memory) = (gb(*disk_bytes), gb(*largest_part_bytes));
        let (time, video) = (steps_seconds.map_or("unknown".to_string(), duration), video.as_deref().unwrap_or("-"));
        lines.push(format!("{name:<22} {disk:>9} {memory:>9} {time:>9}  {video:<24}  {here}{verdict}"));
    }
    lines.push(String::new());
    lines.push(
        "memory: of the largest part. time: of all steps on the CPU, computed in full, from the speed of one block here;"
            .to_string(),
    );
    lines.push("`navicache estimate MODEL --size WxH --frames N` says it of a smaller video.".to_string());
    lines.join("\n")
}
