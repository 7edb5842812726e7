//! Work on a thread of Rust's: what it says meanwhile, what comes of it, and how it is stopped.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::errors::{Failure, caught, check_process};

/// How often Python is asked for signals, such as Ctrl-C, while it waits.
const SIGNALS: Duration = Duration::from_millis(50);

/// What is said of a generation: its JSON, and the pixels of a picture that came with it.
pub type Said = (String, Option<Vec<u8>>);

/// Work under way, or over.
pub struct Background<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    cancelled: AtomicBool,
}

struct State<T> {
    /// Not read yet.
    said: VecDeque<Said>,
    /// What came of it, once it is over.
    outcome: Option<Result<T, Failure>>,
}

impl<T: Send + 'static> Background<T> {
    /// Begins it on a thread of its own. A panic is its outcome.
    pub fn begin(
        work: impl FnOnce(&Background<T>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Arc<Self>, Failure> {
        check_process()?;
        let state = Mutex::new(State { said: VecDeque::new(), outcome: None });
        let ours = Arc::new(Background { state, changed: Condvar::new(), cancelled: AtomicBool::new(false) });
        let theirs = Arc::clone(&ours);
        let thread = std::thread::Builder::new().name("navicache".to_string());
        let run = move || {
            let outcome = caught(|| work(&theirs));
            theirs.lock().outcome = Some(outcome);
            theirs.changed.notify_all();
        };
        thread.spawn(run).map_err(|error| Failure::invalid(format!("no thread can be started: {error}")))?;
        Ok(ours)
    }

    /// Something to be read by [`Background::next`].
    pub fn say(&self, said: Said) {
        self.lock().said.push_back(said);
        self.changed.notify_all();
    }

    /// Whether it is to go on: the work's to ask.
    pub fn goes_on(&self) -> ControlFlow<()> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Asks it to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it is over, however it ended.
    pub fn is_over(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// The next thing that was said, waited for; `None` once all is read and it is over.
    pub fn next(&self, py: Python<'_>) -> PyResult<Option<Said>> {
        self.wait_until(py, None, |state| !state.said.is_empty() || state.outcome.is_some())?;
        Ok(self.lock().said.pop_front())
    }

    /// Waits for its end, at most until a moment.
    pub fn wait(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<()> {
        self.wait_until(py, until, |state| state.outcome.is_some())
    }

    /// What came of it; `None` before its end.
    pub fn outcome<R>(&self, look: impl FnOnce(Option<&Result<T, Failure>>) -> R) -> R {
        look(self.lock().outcome.as_ref())
    }

    /// The same, to keep.
    pub fn take(&self) -> Option<Result<T, Failure>> {
        self.lock().outcome.take()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, with Python's lock free, until something is there, a signal comes, or the time is over.
    fn wait_until(&self, py: Python<'_>, until: Option<Instant>, is_there: fn(&State<T>) -> bool) -> PyResult<()> {
        loop {
            let found = py.detach(|| {
                let waited = self.changed.wait_timeout_while(self.lock(), SIGNALS, |state| !is_there(state));
                let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                is_there(&state)
            });
            if found || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            py.check_signals()?;
        }
    }
}
