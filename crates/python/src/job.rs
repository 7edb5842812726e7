//! A generation on a thread of its own, and the video that it makes.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use navicache_engine::{Event, Pipeline, Request, generate, generate_to};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{Failure, caught, check_process, detached};

/// How often Python is asked for signals, such as Ctrl-C, while it waits.
const SIGNALS: Duration = Duration::from_millis(50);

/// What is said of a generation: its JSON, and the pixels of a picture that came with it.
type Said = (String, Option<Vec<u8>>);

/// A generation under way.
#[pyclass(frozen, module = "navicache._core")]
pub struct Job(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Not read yet.
    events: VecDeque<Said>,
    /// What came of it, once it is over.
    outcome: Option<Result<Made, Failure>>,
}

/// A video that Python's objects share.
type Made = Arc<Mutex<navicache_engine::Video>>;

impl Job {
    /// Begins it. `turn` is held while it runs.
    pub fn start(
        pipeline: Arc<Pipeline>,
        turn: Arc<Mutex<()>>,
        request: Request,
        output: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        check_process()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let work = move || {
            let outcome = caught(|| {
                let _turn = turn.lock();
                let mut on_event = |event: Event| theirs.say(&event);
                let video = match &output {
                    Some(path) => generate_to(&pipeline, &request, path, &mut on_event)?,
                    None => generate(&pipeline, &request, &mut on_event)?,
                };
                Ok(Arc::new(Mutex::new(video)))
            });
            drop(pipeline);
            theirs.lock().outcome = Some(outcome);
            theirs.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("navicache".to_string());
        thread.spawn(work).map_err(|error| Failure::invalid(format!("no thread can be started: {error}")))?;
        Ok(Job(shared))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, event: &Event) -> ControlFlow<()> {
        let pixels = match event {
            Event::Preview { rgb, .. } => Some(rgb.to_vec()),
            _ => None,
        };
        self.lock().events.push_back((event.to_json().to_string(), pixels));
        self.changed.notify_all();
        match self.cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Waits until something is there, a signal comes, or the time is over; whether it is there.
    fn wait(&self, py: Python<'_>, until: Option<Instant>, is_there: fn(&State) -> bool) -> PyResult<bool> {
        loop {
            let found = py.detach(|| {
                let state = self.lock();
                let waited = self.changed.wait_timeout_while(state, SIGNALS, |state| !is_there(state));
                let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                is_there(&state)
            });
            if found || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(found);
            }
            py.check_signals()?;
        }
    }
}

#[pymethods]
impl Job {
    /// The next event, in order: its JSON, and the pixels of a preview; `None` once all are read and it is over.
    fn next_event<'py>(&self, py: Python<'py>) -> PyResult<Option<(String, Option<Bound<'py, PyBytes>>)>> {
        self.0.wait(py, None, |state| !state.events.is_empty() || state.outcome.is_some())?;
        let said = self.0.lock().events.pop_front();
        Ok(said.map(|(json, pixels)| (json, pixels.map(|pixels| PyBytes::new(py, &pixels)))))
    }

    /// Asks it to stop at the next step or chunk of frames.
    fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it is over, however it ended.
    #[getter]
    fn done(&self) -> bool {
        self.0.lock().outcome.is_some()
    }

    /// Waits for its end, at most so many seconds: the video, or its error.
    #[pyo3(signature = (timeout=None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Video> {
        let seconds = timeout.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
        let until = seconds.and_then(|seconds| Instant::now().checked_add(seconds));
        self.0.wait(py, until, |state| state.outcome.is_some())?;
        match &self.0.lock().outcome {
            Some(Ok(made)) => Ok(Video(Arc::clone(made))),
            Some(Err(failure)) => Err(failure.raised(py)),
            None => Err(pyo3::exceptions::PyTimeoutError::new_err(format!(
                "the video is not finished after {} seconds",
                timeout.unwrap_or_default()
            ))),
        }
    }
}

impl Drop for Job {
    /// Nobody waits for it any more.
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A finished video.
#[pyclass(frozen, module = "navicache._core")]
pub struct Video(Made);

impl Video {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut navicache_engine::Video) -> Result<T, Failure> + Send,
    ) -> PyResult<T> {
        detached(py, || work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[pymethods]
impl Video {
    /// 8-bit RGB. // (frames, height, width, 3)
    fn pixels<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.lock().unwrap_or_else(PoisonError::into_inner).frames)
    }

    /// Frames, height, width and frames a second.
    fn spec(&self, py: Python<'_>) -> PyResult<(usize, usize, usize, f64)> {
        self.with(py, |video| Ok((video.spec.frames, video.spec.height, video.spec.width, video.spec.fps.number())))
    }

    /// The final latents: numbers of 4 bytes, lowest first, and their shape.
    fn latents<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Vec<usize>)> {
        let (values, shape) = self.with(py, |video| {
            let values = video.latents.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
            Ok((values.map_err(navicache_engine::Error::from)?, video.latents.dims().to_vec()))
        })?;
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok((PyBytes::new(py, &bytes), shape))
    }

    /// The report, as JSON.
    fn report(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |video| Ok(video.report.to_json()))
    }

    /// Writes it in the format that the file name's ending says.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.with(py, |video| Ok(video.save(&path)?))
    }
}
