//! `navicache compare`: methods side by side.

use std::time::{SystemTime, UNIX_EPOCH};

use navicache_engine::control::cache::CacheSpec;
use navicache_metrics::{Lpips, Metric};
use serde_json::json;

use navicache_study::compare::{self, Call, Event, Page, Plan, Results, Run, Summary, Videos};

use crate::args::Compare;
use crate::error::Result;
use crate::events;
use crate::progress::Progress;
use crate::terminal::{go_on_unless, print, stop_on_ctrl_c};
use crate::version;

pub fn compare(options: &Compare) -> Result<()> {
    let mut progress = Progress::new(options.settings.quiet);
    let results = match &options.from {
        Some(folder) => Results::read(folder)?,
        None => run(options, &mut progress)?,
    };
    if let Some(file) = &options.promise {
        let promise = compare::promise(&results)?;
        navicache_engine::save_promise(&promise, file)?;
        let promised = promise.closest();
        progress.line(&format!(
            "{}: of {} videos; use it with --target psnr=P,curve={}, for a P of at most {promised:.1} dB",
            progress.paint("1", &file.display().to_string()),
            promise.videos,
            file.display(),
        ));
    }
    let page = compare::write(&results, if options.link_videos { Videos::Linked } else { Videos::Embedded })?;
    for warning in &results.warnings {
        progress.line(&format!("{} {warning}", progress.paint("33", "warning:")));
    }
    if options.json {
        events::say(|| json!({"event": "done", "path": page.path, "results": results.folder().join("results.json")}));
    } else if !options.settings.quiet {
        print(&table(&results));
    }
    if options.plot {
        print(&format!("\n{}\n\n{}", frontier(&results), strips(&results)));
    }
    progress.line(&closing(&page, options.link_videos, &progress));
    Ok(())
}

fn run(options: &Compare, progress: &mut Progress) -> Result<Results> {
    let mut methods = Vec::new();
    for list in &options.methods {
        methods.extend(CacheSpec::list(list).map_err(navicache_engine::Error::from)?);
    }
    let plan = Plan {
        prompts: options.prompts.clone(),
        methods,
        seeds: options.seeds.clone(),
        request: options.settings.request(),
        call: Some(call()),
        lpips: (!options.lpips_weights.is_empty()).then(|| Lpips::open(&options.lpips_weights)).transpose()?,
    };
    if options.promise.is_some() {
        compare::check_promise(&plan.methods)?;
    }
    let interrupted = stop_on_ctrl_c();
    let pipeline = options.settings.loading.open()?;
    let mut place = String::new();
    let made = compare::run(&pipeline, &plan, &options.output, &mut |event| {
        match event {
            Event::Planned { runs, kept } => {
                let folder = progress.paint("1", &options.output.display().to_string());
                let there = if kept > 0 { format!(", {kept} of them are there") } else { String::new() };
                progress.line(&format!("{folder}: {runs} videos{there}"));
            }
            Event::WarmingUp => progress.status("warming up ..."),
            Event::Run { index, runs, prompt, seed, method } => {
                place = format!("{}/{runs} {method}, seed {seed}, {prompt}", index + 1);
                progress.status(&place);
                events::say(
                    || json!({"event": "video", "index": index, "videos": runs, "prompt": prompt, "seed": seed, "method": method}),
                );
            }
            Event::Inner(event) => progress.show_one_of_many(&event),
            Event::Done(run) => progress.line(&format!("{place}: {}", described(run))),
            _ => {}
        }
        go_on_unless(&interrupted)
    });
    if made.as_ref().is_err_and(|error| error.is_cancelled()) {
        progress.line("The videos that are done are kept; the same command goes on.");
    }
    Ok(made?)
}

/// How this program was called. What a shell would take apart is quoted.
fn call() -> Call {
    let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:,=@+".contains(c));
    let quoted = |text: String| match is_plain(&text) && !text.is_empty() {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    };
    let arguments = std::env::args_os().skip(1).map(|argument| quoted(argument.to_string_lossy().into_owned()));
    Call {
        command: std::iter::once("navicache".to_string()).chain(arguments).collect::<Vec<_>>().join(" "),
        program: format!("navicache {}, commit {}", env!("CARGO_PKG_VERSION"), version::COMMIT),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        began: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs()),
    }
}

fn described(run: &Run) -> String {
    let (seconds, work) = (run.seconds().total, 100.0 * run.work());
    let psnr = run.psnr().map_or(String::new(), |psnr| format!(", {psnr:.1} dB"));
    format!("{seconds:.1} s, {work:.0} % of the work{psnr}")
}

fn closing(page: &Page, asked_to_link: bool, progress: &Progress) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let path = progress.paint("1", &page.path.display().to_string());
    let (bytes, videos) = (megabytes(page.bytes), megabytes(page.video_bytes));
    match page.videos {
        Videos::Embedded => format!("{path}: {bytes:.1} MB, everything is inside; open it in a browser."),
        Videos::Linked => {
            let why = if asked_to_link { "" } else { ", too large to be inside" };
            format!("{path}: {bytes:.1} MB; its videos ({videos:.0} MB{why}) are files beside it, keep them together.")
        }
    }
}

fn table(results: &Results) -> String {
    let width = results.methods.iter().map(|m| m.method.chars().count()).max().unwrap_or(0).max("method".len());
    let or_dash = |value: Option<f64>, digits: usize| value.map_or("–".to_string(), |v| format!("{v:.digits$}"));
    let measured = |metric: &Metric| results.methods.iter().any(|m| m.get(metric).is_some());
    let metrics: Vec<&Metric> = Summary::other_metrics().filter(|metric| measured(metric)).collect();
    let line = |m: &Summary| {
        let others: String =
            metrics.iter().map(|metric| format!(" {:>8}", or_dash(m.get(metric), metric.digits))).collect();
        format!(
            "{:<width$} {:>8} {:>5.0} % {:>9.2} {:>8}{others} {:>8}",
            m.method,
            or_dash(m.speedup, 2),
            100.0 * m.work,
            m.seconds.denoise,
            or_dash(m.psnr, 2),
            or_dash(m.motion_kept, 3),
        )
    };
    let head = format!(
        "{:<width$} {:>8} {:>7} {:>9} {:>8}{} {:>8}",
        "method",
        "speed-up",
        "work",
        "s denoise",
        "PSNR",
        metrics.iter().map(|metric| format!(" {:>8}", metric.name)).collect::<String>(),
        "motion"
    );
    [head].into_iter().chain(results.methods.iter().map(line)).collect::<Vec<_>>().join("\n")
}

/// Speed-up to the right, PSNR upwards; a letter a method.
fn frontier(results: &Results) -> String {
    const SIZE: (usize, usize) = (56, 14);
    let points: Vec<(char, &str, f64, f64)> = ('A'..='Z')
        .zip(results.methods.iter().filter_map(|m| Some((m.method.as_str(), m.speedup?, m.psnr?))))
        .map(|(letter, (method, speedup, psnr))| (letter, method, speedup, psnr))
        .collect();
    if points.is_empty() {
        return "Nothing to compare yet.".to_string();
    }
    let range = |value: fn(&(char, &str, f64, f64)) -> f64| {
        let values = || points.iter().map(value);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        if high > low { (low, high) } else { (low - 0.5, high + 0.5) }
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.2), range(|p| p.3));
    let cell = |value: f64, low: f64, high: f64, cells: usize| {
        ((value - low) / (high - low) * (cells - 1) as f64).round() as usize
    };
    let mut grid = vec![vec![' '; SIZE.0]; SIZE.1];
    for (letter, _, x, y) in &points {
        grid[SIZE.1 - 1 - cell(*y, y0, y1, SIZE.1)][cell(*x, x0, x1, SIZE.0)] = *letter;
    }
    let mut lines = vec!["PSNR, dB".to_string()];
    for (row, cells) in grid.iter().enumerate() {
        let label = match row {
            0 => format!("{y1:>7.1}"),
            row if row == SIZE.1 - 1 => format!("{y0:>7.1}"),
            _ => " ".repeat(7),
        };
        lines.push(format!("{label} │{}", cells.iter().collect::<String>()).trim_end().to_string());
    }
    lines.push(format!("{:>7} └{}", "", "─".repeat(SIZE.0)));
    let (left, right) = (format!("{x0:.2}×"), format!("{x1:.2}× speed-up"));
    lines.push(format!("{:>9}{left}{right:>width$}", "", width = SIZE.0 - left.chars().count()));
    lines.extend(points.iter().map(|(letter, method, x, y)| format!("{letter}  {method}: {x:.2}×, {y:.1} dB")));
    lines.join("\n")
}

/// What ran of the first video, a character a step: full, half or light.
fn strips(results: &Results) -> String {
    let Some(first) = results.runs.first() else { return String::new() };
    let runs: Vec<&Run> =
        results.runs.iter().filter(|run| run.prompt == first.prompt && run.seed == first.seed).collect();
    let width = runs.iter().map(|run| run.method.chars().count()).max().unwrap_or(0);
    let symbol = |step: &str| match step.chars().next() {
        Some('S') if step.chars().all(|c| c == 'S') => '█',
        Some('.') if step.chars().all(|c| c == '.') => '░',
        _ => '▒',
    };
    let line = |run: &&Run| {
        let strip: String = run.measured.strip.split_terminator('|').map(symbol).collect();
        format!("{:<width$}  {strip}", run.method)
    };
    let mut lines = vec![format!("{}, seed {}:  █ computed  ▒ in part  ░ reused", first.prompt, first.seed)];
    lines.extend(runs.iter().map(line));
    lines.join("\n")
}
