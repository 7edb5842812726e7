//! A job, as the store has it.

use navicache_engine::{Rate, Resolved};
use serde::{Deserialize, Serialize};

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Failed,
}

impl Status {
    pub const ALL: [Status; 4] = [Status::Queued, Status::InProgress, Status::Completed, Status::Failed];

    /// As in JSON and in the store.
    pub fn name(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Failed => "failed",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Completed | Status::Failed)
    }
}

/// Why a job failed. The message holds no path of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    pub code: String,
    pub message: String,
}

/// Codes of failed jobs.
pub mod code {
    pub const CANCELLED: &str = "cancelled";
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    pub const WORKER_CRASHED: &str = "worker_crashed";
    pub const NOT_FINITE: &str = "not_finite";
    pub const TIMEOUT: &str = "timeout";
    pub const BAD_INPUT: &str = "bad_input";
    pub const DISK_FULL: &str = "disk_full";
    pub const INTERNAL: &str = "internal";
}

/// What a sudden end of an attempt weighs against its job. A later checkpoint clears it.
pub mod strike {
    /// The worker crashed, or the system killed it for want of memory.
    pub const CRASH: i64 = 10;
    /// Somebody killed the worker or the whole server, or the machine went down. It is hardly the job's doing; but a
    /// job that takes the server with it each time must not do so for ever.
    pub const KILL: i64 = 1;
    /// The job has failed: after three crashes, or thirty kills.
    pub const OUT: i64 = 30;
}

/// What a job makes, as it was understood when it was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meant {
    pub prompt: String,
    pub width: usize,
    pub height: usize,
    pub frames: usize,
    pub fps: Rate,
    pub steps: usize,
    pub seed: u64,
    /// The text of the cache method.
    pub cache: String,
    pub target: Option<String>,
    pub user: Option<String>,
}

impl Meant {
    pub fn new(resolved: &Resolved, cache: String, user: Option<String>) -> Self {
        Meant {
            prompt: resolved.prompt.clone(),
            width: resolved.width,
            height: resolved.height,
            frames: resolved.frames,
            fps: resolved.fps,
            steps: resolved.steps,
            seed: resolved.seed,
            cache,
            target: resolved.target.as_ref().map(ToString::to_string),
            user,
        }
    }

    /// Seconds of the video, with at most two decimals.
    pub fn seconds(&self) -> String {
        let hundredths = (100.0 * self.frames as f64 / self.fps.number()).round() / 100.0;
        hundredths.to_string()
    }

    /// The cache method and its target, as text.
    pub fn method(&self) -> String {
        format!("{} {}", self.cache, self.target.as_deref().unwrap_or_default())
    }

    /// What its time is proportional to, about: pixels of all frames in all steps.
    pub fn work(&self) -> f64 {
        [self.width, self.height, self.frames, self.steps].iter().map(|n| *n as f64).product()
    }
}

/// Blobs of a finished job, by their digests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    pub video: Option<String>,
    pub thumbnail: Option<String>,
    pub spritesheet: Option<String>,
    pub report: Option<String>,
    /// Of the video.
    pub bytes: Option<i64>,
}

/// A row of the store.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: String,
    /// Name of the key that it belongs to; empty where there are no keys.
    pub key: String,
    pub created_ms: i64,
    pub finished_ms: Option<i64>,
    pub status: Status,
    /// How often it was started.
    pub attempt: i64,
    /// What the sudden ends of its attempts weigh, since its last checkpoint: see [`strike`].
    pub crashes: i64,
    pub priority: i64,
    pub model: String,
    /// The engine's request as JSON, with its seed, without the picture.
    pub request: String,
    pub meant: Meant,
    /// Digest of the picture.
    pub input: Option<String>,
    /// Steps in its last checkpoint.
    pub checkpoint_step: i64,
    pub error: Option<JobError>,
    pub made: Made,
    pub expires_ms: Option<i64>,
    pub remixed_from: Option<String>,
    pub warnings: Vec<String>,
    /// All work over the work that was computed.
    pub speedup: Option<f64>,
    pub strip: String,
}

impl Job {
    /// Whether its video was there and is no more.
    pub fn is_expired(&self) -> bool {
        self.status == Status::Completed && self.made.video.is_none()
    }

    /// What its checkpoint is of all its work, in per cent: decoding is still to come.
    pub fn floor(&self) -> u8 {
        let percent = 90 * self.checkpoint_step.max(0) as usize / self.meant.steps.max(1);
        percent.min(99) as u8
    }
}
