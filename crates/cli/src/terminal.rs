//! Standard output, Ctrl-C and other signals.

use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use navicache_engine::Field;

/// Exit code after Ctrl-C, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Why output was lost, if it was.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// A line of output. What cannot be written is an error at the end, see [`lost_output`].
pub fn print(text: &str) {
    print_raw(format!("{text}\n").as_bytes());
}

/// The same without a line end.
pub fn print_raw(bytes: &[u8]) {
    let mut output = std::io::stdout();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        let _ = LOST.set(error); // the first error says it
    }
}

/// A line of standard error, in one write: what another process says there does not fall between its parts. A closed
/// terminal is no reason to stop.
pub fn tell(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Why output was lost, if it was. A reader that has seen enough is no reason to complain.
pub fn lost_output() -> Option<&'static std::io::Error> {
    LOST.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// A file that reaches the limit of its size (`ulimit -f`) is an error then, as a full disk is, and not the end of the
/// program.
#[cfg(unix)]
pub fn outlive_file_limits() {
    let unread = Arc::new(AtomicBool::new(false));
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unread); // where it cannot be, all is as before
}

/// The answer to an event: stop, if it was asked for.
pub fn go_on_unless(interrupted: &AtomicBool) -> ControlFlow<()> {
    if interrupted.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// The first Ctrl-C asks to stop at the next step, the second stops at once; so does every signal that ends programs.
#[cfg(unix)]
pub fn stop_on_ctrl_c() -> Arc<AtomicBool> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag::{register, register_conditional_shutdown};
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)) {
        let second = register_conditional_shutdown(signal, INTERRUPTED.into(), interrupted.clone());
        if let Err(e) = second.and_then(|_| register(signal, interrupted.clone())) {
            tell(&format!("navicache: Ctrl-C will stop at once, not at the end of a step: {e}"));
        }
    }
    interrupted
}

/// Whether a signal was ignored when the program started, as `nohup` has it. It stays so.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The first Ctrl-C asks to stop at the next step, the second stops at once.
#[cfg(not(unix))]
pub fn stop_on_ctrl_c() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        tell(&format!("navicache: Ctrl-C will stop at once, not at the end of a step: {e}"));
    }
    interrupted
}

/// A message of the libraries with fields of a request spelled as options.
pub fn spelled(message: &str) -> String {
    Field::spell(message, |field| match field {
        Field::Prompt => "prompt".to_string(),
        field => format!("--{}", field.name().replace('_', "-")),
    })
}
