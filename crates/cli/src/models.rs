//! `models`, `pull`, `inspect` and `estimate`: what there is to run, how it gets here, and what it will take.

use std::path::Path;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use navicache_engine::catalog::{self, Model};
use navicache_engine::estimate::{Estimate, estimate as estimated};
use navicache_engine::inspect::Inspected;
use navicache_engine::weights::hub_cache::HubCache;
use navicache_engine::{Request, share_of_memory};
use navicache_hub::{Event, Hub};
use serde_json::{Value, json};

use crate::args::{self, Inspect, Models, OnModels, Pull};
use crate::error::{Error, Result};
use crate::events;
use crate::progress::Progress;
use crate::published::{self, Rates};
use crate::terminal::{go_on_unless, print, spelled, stop_on_ctrl_c};

/// Lines while a file comes, where they cannot be drawn over.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

pub fn models(options: &Models) -> Result<()> {
    match &options.action {
        None => list(options),
        Some(OnModels::Rm { name }) => remove(name),
    }
}

/// Removes what has been pulled of a model.
fn remove(name: &str) -> Result<()> {
    let cache = HubCache::from_env().map_err(navicache_engine::Error::from)?;
    let here = |repository: &&str| cache.repository(repository).exists();
    let repositories: Vec<&str> = catalog::repositories(name).into_iter().filter(here).collect();
    if repositories.is_empty() {
        return Err(Error::Arguments {
            what: "model",
            found: name.to_string(),
            expected: format!(
                "nothing of it is here; `navicache models` lists what is, in {}",
                cache.folder().display()
            ),
        });
    }
    for repository in repositories {
        let bytes = cache.remove(repository).map_err(navicache_engine::Error::from)?;
        print(&format!("{repository}: removed, {} are free again", gb(bytes)));
    }
    Ok(())
}

fn list(options: &Models) -> Result<()> {
    let cache = HubCache::from_env().map_err(navicache_engine::Error::from)?;
    if options.json {
        print(&format!("{:#}", Value::from_iter(catalog::models().iter().map(|model| model.to_json(&cache)))));
        return Ok(());
    }
    let mut lines = vec![format!("{:<22} {:>8} {:>8}  what, and where", "name", "disk", "memory")];
    lines.push(format!("{:<22} {:>8} {:>8}  tiny model to try things with; built in", "demo", "-", "-"));
    for model in catalog::models() {
        let place = match (model.paths(&cache), model.here_bytes(&cache)) {
            (Some(paths), here) => format!("takes {} here: {}", gb(here), paths.join(", ")),
            (None, 0) => "not here yet".to_string(),
            (None, here) => format!("a part is here, {}", gb(here)),
        };
        let (disk, memory) = (gb(model.disk_bytes()), gb(model.largest_part_bytes()));
        let licence = model.licence.iter().map(|licence| format!(" ({licence})")).collect::<String>();
        lines.push(format!("{:<22} {disk:>8} {memory:>8}  {}{licence}; {place}", model.name, model.what));
    }
    let listed: Vec<&String> = catalog::models().iter().flat_map(|model| &model.repositories).collect();
    let others: Vec<String> = cache.repositories().into_iter().filter(|name| !listed.contains(&name)).collect();
    if !others.is_empty() {
        lines.push(format!("\nOther repositories in {}:", cache.folder().display()));
        lines.extend(others.iter().map(|name| format!("{name:<40} {:>8}", gb(cache.bytes(name)))));
    }
    lines.push(String::new());
    lines.push(
        "disk: about what is downloaded. memory: of the largest part, for the fastest run; with less, weights are"
            .to_string(),
    );
    lines.push(
        "streamed from disk (--memory), and quantised files (GGUF, fp8) are smaller. `navicache estimate` says more."
            .to_string(),
    );
    print(&lines.join("\n"));
    Ok(())
}

pub fn pull(options: &Pull) -> Result<()> {
    let repositories = catalog::repositories(&options.name);
    if repositories.is_empty() {
        return Err(Error::Arguments {
            what: "model",
            found: options.name.clone(),
            expected: format!("expected OWNER/NAME, or one of {}", known()),
        });
    }
    let interrupted = stop_on_ctrl_c();
    let hub = Hub::from_env()?;
    for repository in repositories {
        let mut progress = Downloading::new(options.quiet);
        let path = hub.pull(repository, &options.only, &mut |event| {
            progress.show(&event);
            go_on_unless(&interrupted)
        })?;
        progress.close();
        if options.json {
            events::say(|| json!({"event": "done", "path": path}));
        } else {
            print(&path.display().to_string());
        }
    }
    Ok(())
}

fn known() -> String {
    let names: Vec<&str> = catalog::models().iter().map(|model| model.name.as_str()).collect();
    names.join(", ")
}

pub fn inspect(options: &Inspect) -> Result<()> {
    let inspected = navicache_engine::inspect::inspect(&options.path)?;
    if options.json {
        print(&format!("{:#}", json!(inspected)));
    } else {
        print(&spelled(&described(&inspected, options.tensors)));
    }
    match inspected.problem {
        None => Ok(()),
        Some(_) => Err(Error::Unfinished {
            what: "inspect",
            found: options.path.clone(),
            expected: "cannot be run; the reason is above".to_string(),
        }),
    }
}

fn described(inspected: &Inspected, tensors: bool) -> String {
    let Inspected { path, layout, weights, missing, problem, warnings } = inspected;
    let mut lines = vec![format!("{}: {layout}", path.display())];
    for weights in weights {
        let first = weights.files.first().map_or(Path::new(""), |file| file.strip_prefix(path).unwrap_or(file));
        let name = if first.as_os_str().is_empty() { path.as_path() } else { first };
        let shards =
            if weights.files.len() > 1 { format!(" and {} more", weights.files.len() - 1) } else { String::new() };
        lines.push(format!("\n  {}{shards}", name.display()));
        lines.push(format!("    {}", weights.what));
        lines.extend(weights.notes.iter().map(|note| format!("    {note}")));
        let naming = weights.naming.as_ref().map_or(String::new(), |naming| format!(", {naming} names"));
        lines.push(format!(
            "    {}{naming}, {} tensors, {}, {}",
            weights.container,
            weights.tensors.len(),
            numbers(weights.parameters),
            gb(weights.bytes)
        ));
        let formats = weights.formats.iter().map(|(format, count)| {
            format!("{format} {:.1} %", 100.0 * *count as f64 / weights.parameters.max(1) as f64)
        });
        lines.push(format!("    {}", formats.collect::<Vec<_>>().join(", ")));
        if tensors {
            lines.extend(weights.tensors.iter().map(|t| format!("      {} {} {:?}", t.name, t.format, t.shape)));
        }
    }
    lines.push(String::new());
    lines.extend(warnings.iter().map(|warning| format!("Warning: {warning}")));
    match problem {
        Some(problem) => lines.push(format!("Cannot be run: {problem}")),
        None if missing.is_empty() => {
            lines.push(format!("Ready: navicache generate PROMPT --model {}", path.display()))
        }
        None => {
            lines.push("To run it, these are still needed:".to_string());
            lines.extend(missing.iter().map(|what| format!("  {what}")));
        }
    }
    lines.join("\n")
}

pub fn estimate(options: &args::Estimate) -> Result<()> {
    let mut loading = options.settings.loading.clone();
    if let Some(name) = &options.name {
        loading.model = name.clone();
    }
    if let Some(model) = not_here(&loading.model)? {
        loading.start_threads()?;
        return estimate_from_shapes(options, model);
    }
    let pipeline = loading.open()?;
    let request =
        Request { cache: options.cache.clone(), target: options.target.clone(), ..options.settings.request() };
    let estimate = estimated(&pipeline, &request)?;
    print(&if options.json { format!("{:#}", json!(estimate)) } else { expected(&estimate) });
    Ok(())
}

/// The model of the catalogue that a name stands for, if it has not been downloaded.
fn not_here(name: &str) -> Result<Option<&'static Model>> {
    let cache = HubCache::from_env().map_err(navicache_engine::Error::from)?;
    let named = catalog::models().iter().find(|model| model.name == name);
    Ok(named.filter(|model| !Path::new(name).exists() && model.paths(&cache).is_none()))
}

/// What is known before the download.
fn estimate_from_shapes(options: &args::Estimate, model: &Model) -> Result<()> {
    let settings = &options.settings;
    let size = settings.size.map(|size| (size.width, size.height));
    let expected = published::expected(model, size, settings.frames, settings.steps, &Rates::measure()?);
    let available = settings.loading.memory.or_else(navicache_engine::machine_memory);
    let (disk, largest) = (model.disk_bytes(), model.largest_part_bytes());
    let streamed = available.is_some_and(|bytes| largest > share_of_memory(bytes));
    if options.json {
        let video = expected.as_ref().map(|e| {
            json!({
                "width": e.width, "height": e.height, "frames": e.frames, "steps": e.steps, "forwards": e.forwards,
                "forward_seconds": e.forward_seconds, "denoise_seconds_uncached": e.seconds(),
            })
        });
        let all = json!({
            "model": model.name, "is_here": false, "disk_bytes": disk, "largest_part_bytes": largest,
            "available_bytes": available, "streamed": streamed, "video": video,
        });
        print(&format!("{all:#}"));
        return Ok(());
    }
    let mut lines =
        vec![format!("{} is not here yet: `navicache pull {}` downloads {}.", model.name, model.name, gb(disk))];
    let fits = match (available, streamed) {
        (Some(bytes), false) => format!("of {} that may be used", gb(bytes)),
        (Some(bytes), true) => format!("of {} that may be used: they are streamed from disk, more slowly", gb(bytes)),
        (None, _) => "available memory is unknown".to_string(),
    };
    lines.push(format!("memory     {} for the weights of the largest part, {fits}", gb(largest)));
    match expected {
        Some(e) => {
            lines.push(format!("video      {} frames of {}x{}, {} steps", e.frames, e.width, e.height, e.steps));
            lines.push(format!(
                "time       {} a forward, {} for {} forwards on the CPU, everything computed",
                duration(e.forward_seconds),
                duration(e.seconds()),
                e.forwards
            ));
            lines.push("           from its shape and the speed of one block here; without decoding; `--target speedup=2` halves it".to_string());
        }
        None => lines.push("time       unknown until it is here".to_string()),
    }
    print(&lines.join("\n"));
    Ok(())
}

fn expected(estimate: &Estimate) -> String {
    let Estimate { request, tile, .. } = estimate;
    let mut lines =
        vec![format!("{} frames of {}x{}, {} steps", request.frames, request.width, request.height, request.steps)];
    lines.push(format!("\n{:<10} {:>10} {:>10} {:>10}", "memory", "weights", "computing", "caching"));
    for stage in &estimate.memory {
        let alike = estimate.memory.iter().filter(|other| other.stage == stage.stage).count();
        let one_of = if alike > 1 { "   one transformer at a time" } else { "" };
        let streamed = if stage.streamed { "   weights are streamed from disk" } else { "" };
        let (weights, working, cache) = (gb(stage.weights_bytes), gb(stage.working_bytes), gb(stage.cache_bytes));
        lines.push(format!("{:<10} {weights:>10} {working:>10} {cache:>10}{one_of}{streamed}", stage.stage));
    }
    let available = estimate.available_bytes.map_or(String::new(), |bytes| format!("; {} available", gb(bytes)));
    lines.push(format!(
        "peak {}{available}; frames are decoded in tiles of {}x{}",
        gb(estimate.peak_bytes),
        tile[0],
        tile[1]
    ));
    if estimate.available_bytes.is_some_and(|available| estimate.peak_bytes > available) {
        lines.push("This does not fit: ask for a smaller or shorter video, or a quantised model.".to_string());
    }
    let method = &estimate.method;
    lines.push("\ntime".to_string());
    lines.push(format!("{:<28} {:>10}", "one forward", duration(estimate.forward_seconds)));
    lines.push(format!(
        "{:<28} {:>10}",
        format!("{} forwards", estimate.forwards),
        duration(estimate.denoise_seconds_uncached)
    ));
    if estimate.computed_part < 1.0 {
        let part = 100.0 * estimate.computed_part;
        let name = format!("the same with {method}");
        let seconds = duration(estimate.denoise_seconds);
        lines.push(format!("{name:<28} {seconds:>10}   if it computes {part:.0} %, as on the built-in model"));
    }
    lines.push(format!("{:<28} {:>10}", "decoding", duration(estimate.decode_seconds)));
    lines.join("\n")
}

/// `1.3 h`
pub fn duration(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..120.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..360_000.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

/// Shows how a download goes on.
struct Downloading {
    progress: Progress,
    begun: Instant,
    /// Bytes that were here at the start.
    here: u64,
    shown: Instant,
}

impl Downloading {
    fn new(quiet: bool) -> Self {
        let now = Instant::now();
        Downloading { progress: Progress::new(quiet), begun: now, here: 0, shown: now }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Planned { files, bytes, here } => {
                self.here = *here;
                self.progress.line(&format!("{files} files, {}, {} of them here already", gb(*bytes), gb(*here)));
            }
            Event::Retry { file, reason } => self.progress.line(&format!("{file}: {reason}; trying again")),
            Event::Progress { file, done, bytes } => {
                let pause = if self.progress.terminal { Duration::from_millis(100) } else { BETWEEN_LINES };
                if self.shown.elapsed() < pause && done < bytes {
                    return;
                }
                self.shown = Instant::now();
                events::say(|| json!({"event": "downloading", "file": file, "done": done, "bytes": bytes}));
                let seconds = self.begun.elapsed().as_secs_f64().max(1e-3);
                let speed = done.saturating_sub(self.here) as f64 / seconds;
                let left = (bytes - done) as f64 / speed.max(1.0);
                let percent = 100 * done / (*bytes).max(1);
                let text = format!(
                    "{percent:>3} %  {} of {}, {:.1} MB/s, {:.0} s left  {file}",
                    gb(*done),
                    gb(*bytes),
                    speed / 1e6,
                    left
                );
                match self.progress.terminal {
                    true => self.progress.status(&text),
                    false => self.progress.line(&text),
                }
            }
            _ => {}
        }
    }

    fn close(&self) {
        self.progress.line("all files are here and whole");
    }
}

fn numbers(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{count} numbers"),
        1_000_000..1_000_000_000 => format!("{:.1} million numbers", count as f64 / 1e6),
        _ => format!("{:.2} billion numbers", count as f64 / 1e9),
    }
}

/// `4.4 MB`
pub fn gb(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}
