//! What happens, as JSON lines on standard output for programs that follow a run: docs/events.md lists them. The words
//! for people go to the error stream as ever.

use std::sync::atomic::{AtomicBool, Ordering};

use navicache_engine::{Event, Field};
use serde_json::{Value, json};

use crate::error::Error;
use crate::terminal::print;

static ASKED_FOR: AtomicBool = AtomicBool::new(false);

/// From here on, events are printed.
pub fn print_them() {
    ASKED_FOR.store(true, Ordering::Relaxed);
}

/// Prints a line, if events are asked for.
pub fn say(line: impl FnOnce() -> Value) {
    if ASKED_FOR.load(Ordering::Relaxed) {
        print(&line().to_string());
    }
}

/// Prints an event of a generation.
pub fn show(event: &Event) {
    say(|| event.to_json());
}

/// The last line of a command that failed.
pub fn fail(error: &Error) {
    let engine = error.engine();
    say(|| {
        json!({
            "event": "error",
            "kind": engine.map(|error| error.kind().name()),
            "field": engine.and_then(navicache_engine::Error::field).map(Field::name),
            "message": error.to_string(),
        })
    });
}
