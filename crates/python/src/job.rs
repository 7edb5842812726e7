//! A generation on a thread of its own, and the video that it makes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use navicache_engine::{Event, Pipeline, Request, generate, generate_to};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::background::Background;
use crate::errors::{Failure, detached};

/// A generation under way.
#[pyclass(frozen, module = "navicache._core")]
pub struct Job(Arc<Background<Made>>);

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
        let work = move |job: &Background<Made>| -> Result<Made, Failure> {
            let _turn = turn.lock();
            let mut on_event = |event: Event| {
                let pixels = match &event {
                    Event::Preview { rgb, .. } => Some(rgb.to_vec()),
                    _ => None,
                };
                job.say((event.to_json().to_string(), pixels));
                job.goes_on()
            };
            let video = match &output {
                Some(path) => generate_to(&pipeline, &request, path, &mut on_event)?,
                None => generate(&pipeline, &request, &mut on_event)?,
            };
            Ok(Arc::new(Mutex::new(video)))
        };
        Ok(Job(Background::begin(work)?))
    }
}

#[pymethods]
impl Job {
    /// The next event, in order: its JSON, and the pixels of a preview; `None` once all are read and it is over.
    fn next_event<'py>(&self, py: Python<'py>) -> PyResult<Option<(String, Option<Bound<'py, PyBytes>>)>> {
        Ok(self.0.next(py)?.map(|(json, pixels)| (json, pixels.map(|pixels| PyBytes::new(py, &pixels)))))
    }

    /// Asks it to stop at the next step or chunk of frames.
    fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether it is over, however it ended.
    #[getter]
    fn done(&self) -> bool {
        self.0.is_over()
    }

    /// Waits for its end, at most so many seconds: the video, or its error.
    #[pyo3(signature = (timeout=None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Video> {
        let seconds = timeout.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
        self.0.wait(py, seconds.and_then(|seconds| Instant::now().checked_add(seconds)))?;
        self.0.outcome(|outcome| match outcome {
            Some(Ok(made)) => Ok(Video(Arc::clone(made))),
            Some(Err(failure)) => Err(failure.raised(py)),
            None => Err(pyo3::exceptions::PyTimeoutError::new_err(format!(
                "the video is not finished after {} seconds",
                timeout.unwrap_or_default()
            ))),
        })
    }
}

impl Drop for Job {
    /// Nobody waits for it any more.
    fn drop(&mut self) {
        self.0.cancel();
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
