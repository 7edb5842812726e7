//! Standard output, Ctrl-C and other signals.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use navicache_engine::Field;

/// Exit code after Ctrl-C, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// A line of output. A reader that has seen enough is no reason to panic.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
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

/// The first Ctrl-C asks to stop at the next step, the second stops at once.
pub fn stop_on_ctrl_c() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        let _ = writeln!(std::io::stderr(), "navicache: Ctrl-C will stop at once, not at the end of a step: {e}");
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
