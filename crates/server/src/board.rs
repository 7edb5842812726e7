//! What is happening now, in memory: who waits where, how far the running job is, and who listens. The store has what
//! must not be lost; this is made again from it after a start.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::id::now_ms;
use crate::job::{Job, Meant, Status};

/// Events of a job that are kept for those who come back.
const KEPT: usize = 512;
/// Previews of a job that are kept.
const PREVIEWS: usize = 64;
/// Methods whose savings are remembered.
const METHODS: usize = 100;
/// Of all time, what decoding is expected to take until it was seen.
const DECODE_SHARE: f64 = 0.1;

/// The board of a server.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
    /// Something waits: the runner may take it.
    pub queue_changed: Notify,
    /// The order of what waits may be another.
    pub order_changed: Notify,
    /// Somebody does not want the running job any more, or the server stops.
    pub stop_changed: Notify,
}

#[derive(Default)]
struct Inner {
    places: HashMap<String, Place>,
    /// Seconds until all of them are done.
    ahead: Option<f64>,
    running: Option<Running>,
    feeds: HashMap<String, Feed>,
    /// Seconds for a unit of computed work, by model.
    rates: HashMap<String, f64>,
    /// All work over what was computed, by model and method: the last ones that were seen.
    speedups: HashMap<(String, String), f64>,
    loaded: Option<String>,
    worker_pid: Option<u32>,
}

/// Where a job waits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// From 1.
    pub position: usize,
    pub seconds_ahead: Option<f64>,
}

/// The job that is being made.
#[derive(Debug, Clone)]
pub struct Running {
    pub id: String,
    pub is_cancelled: bool,
    pub phase: &'static str,
    pub step: usize,
    pub steps: usize,
    pub strip: String,
    pub resumed_at: Option<usize>,
    pub warnings: Vec<String>,
    pub eta: Option<f64>,
    pub progress: u8,
    /// Steps of this attempt, and the seconds of those that count.
    timed: (usize, f64),
    decoded: f64,
    previews: BTreeMap<usize, Arc<[u8]>>,
}

/// An event of a job, as it is sent.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: u64,
    pub event: &'static str,
    pub data: Arc<str>,
}

struct Feed {
    kept: VecDeque<Message>,
    last: watch::Sender<u64>,
    ended: Option<Instant>,
}

impl Default for Feed {
    /// Numbers of events begin at the time: they rise over restarts of the server too, so that who comes back with an
    /// earlier server's number is told how the job stands.
    fn default() -> Self {
        Feed { kept: VecDeque::new(), last: watch::Sender::new(now_ms().unsigned_abs()), ended: None }
    }
}

impl Running {
    /// A job that begins. What an earlier attempt did counts.
    pub fn new(job: &Job) -> Self {
        Running {
            id: job.id.clone(),
            is_cancelled: false,
            phase: "loading",
            step: job.checkpoint_step.max(0) as usize,
            steps: job.meant.steps,
            strip: job.strip.clone(),
            resumed_at: None,
            warnings: job.warnings.clone(),
            eta: None,
            progress: job.floor(),
            timed: (0, 0.0),
            decoded: 0.0,
            previews: BTreeMap::new(),
        }
    }

    /// A step is done.
    pub fn stepped(&mut self, index: usize, steps: usize, seconds: f64, ran: &str) {
        self.strip += ran;
        self.strip.push('|');
        (self.step, self.steps) = (index + 1, steps);
        // The first step of an attempt warms up: it counts only until there is another.
        let (seen, sum) = self.timed;
        self.timed = (seen + 1, if seen < 2 { seconds } else { sum + seconds });
        self.expect();
    }

    /// So many of its frames are decoded.
    pub fn decoded(&mut self, done: usize, frames: usize) {
        self.decoded = done as f64 / frames.max(1) as f64;
        self.expect();
    }

    /// Seconds done over seconds in all; it never falls.
    fn expect(&mut self) {
        let (seen, seconds) = self.timed;
        let step = seconds / seen.saturating_sub(1).max(1) as f64;
        let denoise = step * self.steps as f64;
        let decode = denoise * DECODE_SHARE / (1.0 - DECODE_SHARE);
        let left = step * (self.steps - self.step.min(self.steps)) as f64 + decode * (1.0 - self.decoded);
        self.eta = Some((left * 10.0).round() / 10.0);
        let part = 1.0 - left / (denoise + decode).max(f64::MIN_POSITIVE);
        self.progress = self.progress.max((100.0 * part).clamp(0.0, 99.0) as u8);
    }

    pub fn preview(&mut self, index: usize, jpeg: Vec<u8>) {
        self.previews.insert(index, jpeg.into());
        while self.previews.len() > PREVIEWS {
            self.previews.pop_first();
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// What a client sees of a job.
    pub fn video(&self, job: &Job) -> Value {
        let inner = self.lock();
        let running = inner.running.as_ref().filter(|running| running.id == job.id && !running.is_cancelled);
        video(job, running.filter(|_| job.status == Status::InProgress), inner.places.get(&job.id))
    }

    /// Seconds until the running job is done, as far as it is known.
    pub fn eta(&self, id: &str) -> Option<f64> {
        self.lock().running.as_ref().filter(|running| running.id == id)?.eta
    }

    /// The waiting jobs, in order, and how long each is expected to take.
    pub fn place(&self, jobs: Vec<(String, Option<f64>)>) {
        let mut inner = self.lock();
        let mut ahead = match &inner.running {
            None => Some(0.0),
            Some(running) => running.eta.or(Some(0.0)),
        };
        let mut places = HashMap::new();
        for (index, (id, seconds)) in jobs.into_iter().enumerate() {
            places.insert(id, Place { position: index + 1, seconds_ahead: ahead.map(f64::round) });
            ahead = ahead.zip(seconds).map(|(ahead, seconds)| ahead + seconds);
        }
        (inner.places, inner.ahead) = (places, ahead);
    }

    /// A job waits behind all others, until the order is made again.
    pub fn append(&self, job: &Job) {
        let mut inner = self.lock();
        let position = inner.places.len() + 1;
        let last = inner.places.values().max_by_key(|place| place.position);
        let seconds_ahead = last.map_or(Some(0.0), |place| place.seconds_ahead);
        inner.places.insert(job.id.clone(), Place { position, seconds_ahead });
        drop(inner);
        self.order_changed.notify_one();
        self.queue_changed.notify_one();
    }

    /// How many wait, and who runs.
    pub fn queue(&self) -> (HashMap<String, Place>, Option<Running>) {
        let inner = self.lock();
        (inner.places.clone(), inner.running.clone())
    }

    /// Seconds until a job that comes now begins, as far as they are known.
    pub fn seconds_ahead(&self) -> Option<f64> {
        let inner = self.lock();
        match (inner.ahead, &inner.running) {
            (ahead, _) if !inner.places.is_empty() => ahead,
            (_, None) => Some(0.0),
            (_, Some(running)) => running.eta,
        }
    }

    pub fn begin(&self, running: Running) {
        let mut inner = self.lock();
        inner.places.remove(&running.id);
        inner.running = Some(running);
    }

    /// The running job is no more; what it was.
    pub fn end(&self) -> Option<Running> {
        self.lock().running.take()
    }

    /// Changes the running job.
    pub fn change<T>(&self, change: impl FnOnce(&mut Running) -> T) -> Option<T> {
        self.lock().running.as_mut().map(change)
    }

    /// Somebody does not want a job any more.
    pub fn cancel(&self, id: &str) {
        if let Some(running) = self.lock().running.as_mut().filter(|running| running.id == id) {
            running.is_cancelled = true;
        }
        self.lock().places.remove(id);
        self.stop_changed.notify_one();
        self.order_changed.notify_one();
    }

    pub fn preview(&self, id: &str, step: Option<usize>) -> Option<Arc<[u8]>> {
        let inner = self.lock();
        let previews = &inner.running.as_ref().filter(|running| running.id == id)?.previews;
        match step {
            Some(step) => previews.get(&step).cloned(),
            None => previews.values().next_back().cloned(),
        }
    }

    /// A video was made in one go: what a model's work takes, and how much of it a method computes.
    pub fn learn(&self, model: &str, meant: &Meant, seconds: f64, speedup: f64) {
        let rate = seconds * speedup.max(1.0) / meant.work().max(1.0);
        let mut inner = self.lock();
        let known = inner.rates.get(model).copied();
        inner.rates.insert(model.to_string(), known.map_or(rate, |known| 0.7 * known + 0.3 * rate));
        if inner.speedups.len() >= METHODS {
            inner.speedups.clear(); // their texts are the clients'
        }
        inner.speedups.insert((model.to_string(), meant.method()), speedup.max(1.0));
    }

    /// Seconds that a video is expected to take, if one of its model was made. A method that was not seen yet is
    /// expected to save nothing.
    pub fn expected_seconds(&self, model: &str, meant: &Meant) -> Option<f64> {
        let inner = self.lock();
        let speedup = inner.speedups.get(&(model.to_string(), meant.method())).copied().unwrap_or(1.0);
        inner.rates.get(model).map(|rate| rate * meant.work() / speedup)
    }

    pub fn set_loaded(&self, model: Option<String>) {
        self.lock().loaded = model;
    }

    pub fn loaded(&self) -> Option<String> {
        self.lock().loaded.clone()
    }

    pub fn set_worker(&self, pid: Option<u32>) {
        self.lock().worker_pid = pid;
    }

    pub fn worker(&self) -> Option<u32> {
        self.lock().worker_pid
    }

    /// Tells everybody who follows a job.
    pub fn tell(&self, id: &str, event: &'static str, data: &Value) {
        let mut inner = self.lock();
        let feed = inner.feeds.entry(id.to_string()).or_default();
        let next = *feed.last.borrow() + 1;
        feed.kept.push_back(Message { id: next, event, data: data.to_string().into() });
        while feed.kept.len() > KEPT {
            feed.kept.pop_front();
        }
        if event == DONE {
            feed.ended = Some(Instant::now());
        }
        feed.last.send_replace(next);
    }

    /// The number of a job's last message, as it changes.
    pub fn follow(&self, id: &str) -> watch::Receiver<u64> {
        self.lock().feeds.entry(id.to_string()).or_default().last.subscribe()
    }

    /// The messages after one. `None` where some of them are not kept any more, or where that one was the last there
    /// will be.
    pub fn after(&self, id: &str, seen: u64) -> Option<Vec<Message>> {
        let inner = self.lock();
        let feed = inner.feeds.get(id)?;
        let last = *feed.last.borrow();
        let oldest = feed.kept.front().map_or(last + 1, |message| message.id);
        let is_over = feed.ended.is_some() && seen == last;
        (!is_over && seen <= last && seen + 1 >= oldest)
            .then(|| feed.kept.iter().filter(|message| message.id > seen).cloned().collect())
    }

    /// Forgets what nobody follows any more.
    pub fn forget(&self, keep: std::time::Duration) {
        self.lock().feeds.retain(|_, feed| {
            feed.last.receiver_count() > 0 || feed.ended.is_some_and(|ended| ended.elapsed() < keep) || {
                feed.ended.is_none() && !feed.kept.is_empty()
            }
        });
    }
}

/// Name of the last event of a job.
pub const DONE: &str = "done";

/// The answer's `Video`.
fn video(job: &Job, running: Option<&Running>, place: Option<&Place>) -> Value {
    let (meant, finished) = (&job.meant, job.status.is_final());
    let phase = match job.status {
        Status::Queued => "queued",
        Status::InProgress => running.map_or("loading", |running| running.phase),
        Status::Completed | Status::Failed => "done",
    };
    let progress = match job.status {
        Status::Completed => 100,
        _ => running.map_or(job.floor(), |running| running.progress),
    };
    let step = match job.status {
        Status::Completed => meant.steps,
        _ => running.map_or(job.checkpoint_step.max(0) as usize, |running| running.step),
    };
    let place = place.filter(|_| job.status == Status::Queued);
    let seconds = |ms: i64| ms / 1000;
    json!({
        "id": job.id,
        "object": "video",
        "created_at": seconds(job.created_ms),
        "status": job.status.name(),
        "model": job.model,
        "progress": progress,
        "prompt": meant.prompt,
        "seconds": meant.seconds(),
        "size": format!("{}x{}", meant.width, meant.height),
        "completed_at": job.finished_ms.filter(|_| job.status == Status::Completed).map(seconds),
        "expires_at": job.expires_ms.map(seconds),
        "error": job.error.as_ref().map(|error| json!({
            "code": error.code, "message": error.message, "type": "video_generation_error", "param": null,
        })),
        "remixed_from_video_id": job.remixed_from,
        "navicache": {
            "phase": phase,
            "queue_position": place.map(|place| place.position),
            "seconds_ahead": place.and_then(|place| place.seconds_ahead),
            "step": step,
            "steps": meant.steps,
            "eta_seconds": running.and_then(|running| running.eta).filter(|_| !finished),
            "strip": running.map_or(&job.strip, |running| &running.strip),
            "frames": meant.frames,
            "fps": meant.fps,
            "seed": meant.seed,
            "cache": meant.cache,
            "target": meant.target,
            "user": meant.user,
            "attempts": job.attempt,
            "resumed_at_step": running.and_then(|running| running.resumed_at),
            "speedup": job.speedup,
            "warnings": running.map_or(&job.warnings, |running| &running.warnings),
            "bytes": job.made.bytes,
            "sha256": job.made.video,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, test_job};

    #[tokio::test]
    async fn the_step_that_warms_up_counts_only_until_there_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Box::new(|_| ())).unwrap();
        let job = Job { checkpoint_step: 50, ..test_job(&store, "1").await };
        let mut running = Running::new(&Job { meant: crate::job::Meant { steps: 100, ..job.meant.clone() }, ..job });
        assert_eq!(running.progress, 45);
        let mut etas = Vec::new();
        for (index, seconds) in [(50, 9.0), (51, 0.9), (52, 1.9)] {
            running.stepped(index, 100, seconds, "S");
            etas.push(running.eta.unwrap());
        }
        // Decoding is expected to take a ninth of all steps: 100, 10 and 15.6 seconds.
        assert_eq!(etas, [541.0, 53.2, 81.4]);
        assert!((45..=52).contains(&running.progress), "it never falls: {}", running.progress);
    }
}
