//! The frames of a video as raw 8-bit RGB, for `tools/video/corpus.py`: prints `WIDTH HEIGHT FRAMES`, writes the pixels
//! to a file.
//!
//! ```sh
//! cargo run -p navicache-media --example frames -- IN.mp4 OUT.rgb
//! ```

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use navicache_media::video::Reader;

fn run(input: &str, output: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut reader = Reader::open(Path::new(input))?;
    let mut file = std::io::BufWriter::new(std::fs::File::create(output)?);
    let mut frames = 0;
    while let Some(frame) = reader.next_frame()? {
        file.write_all(&frame)?;
        frames += 1;
    }
    file.flush()?;
    let (width, height) = reader.stream().shown();
    println!("{width} {height} {frames}");
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = &arguments[..] else {
        eprintln!("expected IN and OUT.rgb");
        return ExitCode::FAILURE;
    };
    match run(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
