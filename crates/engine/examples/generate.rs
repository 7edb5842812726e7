//! Makes a video with progress, and says what caching did for it.
//!
//!     cargo run --release -p navicache-engine --example generate -- "a blue star spinning on a cream background"

use std::ops::ControlFlow;

use navicache_engine::{Event, LoadOptions, Pipeline, Request, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let prompt = std::env::args().nth(1).unwrap_or("a blue star spinning on a cream background".to_string());

    // The embedded model; a path opens the folder of a published pipeline.
    let pipeline = Pipeline::open("demo", &LoadOptions::default())?;

    // What is left out has the model's defaults.
    let request = Request { seed: Some(1), cache: Some("navicache:fast".parse()?), ..Request::new(prompt) };

    let mut video = generate(&pipeline, &request, &mut |event| {
        match event {
            Event::Step { index, steps, strip, .. } => eprintln!("step {:>2} of {steps}  {strip}", index + 1),
            Event::Warning(warning) => eprintln!("warning: {warning}"),
            _ => {}
        }
        ControlFlow::Continue(()) // Break stops at the next step
    })?;
    video.save("out.mp4".as_ref())?;

    let totals = &video.report.totals;
    println!(
        "out.mp4: {} of {} forwards reused, about {:.1} s saved",
        totals.forwards_reused,
        totals.forwards_computed + totals.forwards_reused,
        video.report.seconds_saved()
    );
    Ok(())
}
