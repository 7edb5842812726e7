//! One command, two programs. `navicache` starts on any machine; `navicache-cuda` is the same program linked with
//! CUDA's libraries, and does not start where they are missing. When a GPU is asked for, the first becomes the second.
//!
//! Whether a GPU can be used is asked of `navicache-cuda` itself: what its loader and the driver answer is what is
//! missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use navicache_engine::{DeviceChoice, Error, Result};

/// Name of the program that is linked with CUDA.
const PROGRAM: &str = "navicache-cuda";
/// How long it may take to list the GPUs: a driver that was asleep takes seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where a GPU was asked for by name: the drivers of many that were asleep take longer.
const PATIENCE_BY_NAME: Duration = Duration::from_secs(30);
/// Where it comes from.
const HOW: &str = "docs/build.md says how it is built";

/// Becomes `navicache-cuda` where the device is its own, and does not return then. Returns where this program does the
/// work: on the CPU, and with `auto` where there is no GPU to use.
///
/// # Errors
///
/// CUDA was asked for by name, and the program or the GPU is missing.
pub fn hand_over(device: DeviceChoice) -> Result<()> {
    if matches!(device, DeviceChoice::Cpu | DeviceChoice::Metal) {
        return Ok(());
    }
    let error = |reason| Error::Device { device: device.to_string(), reason };
    let patience = if device == DeviceChoice::Auto { PATIENCE } else { PATIENCE_BY_NAME };
    match (device, usable_within(patience)) {
        (_, Ok(program)) => Err(error(become_it(&program))),
        (DeviceChoice::Auto, Err(Unusable::Missing(_))) => Ok(()),
        (DeviceChoice::Auto, Err(Unusable::Silent(reason))) => {
            let longer = PATIENCE_BY_NAME.as_secs();
            let advice = format!("--device cuda waits {longer} seconds, --device cpu does not ask");
            crate::terminal::tell(&format!("navicache: {reason}; the CPU does the work ({advice})"));
            Ok(())
        }
        (_, Err(unusable)) => Err(error(unusable.to_string())),
    }
}

/// Why no GPU can be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Something is missing: what.
    #[error("{0}")]
    Missing(String),
    /// The program that would know says nothing.
    #[error("{0}")]
    Silent(String),
}

/// The program, where it is there and sees a GPU; or what is missing.
pub fn usable() -> Result<PathBuf, Unusable> {
    usable_within(PATIENCE)
}

fn usable_within(patience: Duration) -> Result<PathBuf, Unusable> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_path_buf())).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let name = format!("{PROGRAM}{}", std::env::consts::EXE_SUFFIX);
    // An empty part of PATH is the current folder, where a program may be anybody's.
    let on_path = std::env::split_paths(&path).filter(|place| place.is_absolute());
    let mut places = std::iter::once(beside.clone()).chain(on_path).map(|place| place.join(&name));
    let Some(program) = places.find(|file| file.is_file()) else {
        let missing = format!("no {PROGRAM} in {} nor on PATH; {HOW}{}", beside.display(), driver_note());
        return Err(Unusable::Missing(missing));
    };
    ask(&program, patience)?;
    Ok(program)
}

/// Whether it starts and sees a GPU, or why not.
fn ask(program: &Path, patience: Duration) -> Result<(), Unusable> {
    let place = program.display();
    let failed = |e: std::io::Error| Unusable::Missing(format!("{place} does not start: {e}"));
    let mut asked = Command::new(program);
    asked.arg("gpus").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = asked.spawn().map_err(failed)?;
    let asked_at = Instant::now();
    while child.try_wait().map_err(failed)?.is_none() {
        if asked_at.elapsed() > patience {
            let _ = child.kill().and_then(|()| child.wait()); // it may have ended by now
            return Err(Unusable::Silent(format!("{place} gpus: no answer in {} seconds", patience.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = child.wait_with_output().map_err(failed)?;
    if answer.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    let said = said.trim().trim_start_matches("navicache: ");
    Err(Unusable::Missing(match said.contains("libcuda") {
        true => format!("the NVIDIA driver is missing, which libcuda comes with ({said})"),
        false if said.is_empty() => format!("{place} gpus: {}", answer.status),
        false => format!("{place} cannot use a GPU: {said}"),
    }))
}

/// What is said of a missing driver where there is no program to ask.
fn driver_note() -> &'static str {
    let device_files = ["/dev/nvidiactl", "/dev/dxg"]; // Linux, and Linux inside of Windows
    let missing = cfg!(target_os = "linux") && !device_files.iter().any(|file| Path::new(file).exists());
    if missing { ". No NVIDIA driver was found either (/dev/nvidiactl)" } else { "" }
}

/// Goes on as that program, with the same arguments. Returns why it could not.
#[cfg(unix)]
fn become_it(program: &Path) -> String {
    use std::os::unix::process::CommandExt;
    let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
    format!("{} does not start: {error}", program.display())
}

/// Runs that program to its end, with the same arguments, and ends as it did. Returns why it could not.
#[cfg(not(unix))]
fn become_it(program: &Path) -> String {
    match Command::new(program).args(std::env::args_os().skip(1)).status() {
        Ok(status) => std::process::exit(status.code().unwrap_or(1)),
        Err(error) => format!("{} does not start: {error}", program.display()),
    }
}
