//! What a server counts, for Prometheus. No prompt, id or address is a label.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Labels of requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Http {
    pub method: String,
    /// The template, never the path.
    pub route: String,
    pub status: u16,
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),+ })*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name { $(pub $field: String),+ })*
    };
}

labels! {
    Route { route }
    Status { status }
    Model { model }
    Outcome { model, outcome }
    Ran { model, ran }
    Guard { guard }
    Reason { reason }
    Key { key }
    Kind { kind }
}

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    pub http_requests: Family<Http, Counter>,
    pub http_seconds: Seconds<Route>,
    pub jobs: Family<Status, Gauge>,
    pub created: Family<Model, Counter>,
    pub finished: Family<Outcome, Counter>,
    pub wait_seconds: Histogram,
    pub job_seconds: Seconds<Model>,
    pub queue_length: Gauge,
    pub queue_capacity: Gauge,
    pub steps: Family<Ran, Counter>,
    pub step_seconds: Seconds<Ran>,
    pub decode_seconds: Seconds<Model>,
    pub speedup: Seconds<Model>,
    pub target_miss: Histogram,
    pub guards: Family<Guard, Counter>,
    pub load_seconds: Seconds<Model>,
    pub models_loaded: Gauge,
    pub worker_restarts: Family<Reason, Counter>,
    pub resumes: Counter,
    pub checkpoint_seconds: Histogram,
    pub checkpoint_bytes: Histogram,
    pub commit_seconds: Histogram,
    pub blob_bytes: Gauge,
    pub disk_free: Gauge,
    pub device_memory: Gauge,
    pub key_seconds: Family<Key, Counter<f64, AtomicU64>>,
    pub auth_failures: Counter,
    pub connections: Family<Kind, Gauge>,
    pub refused: Family<Reason, Counter>,
}

fn short() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 4.0, 10))
}

fn long() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 4.0, 12))
}

fn ratio() -> Histogram {
    Histogram::new([0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Metrics {
            registry: Mutex::new(Registry::with_prefix("navicache")),
            http_requests: Family::default(),
            http_seconds: Family::new_with_constructor(short),
            jobs: Family::default(),
            created: Family::default(),
            finished: Family::default(),
            wait_seconds: long(),
            job_seconds: Family::new_with_constructor(long),
            queue_length: Gauge::default(),
            queue_capacity: Gauge::default(),
            steps: Family::default(),
            step_seconds: Family::new_with_constructor(short),
            decode_seconds: Family::new_with_constructor(long),
            speedup: Family::new_with_constructor(ratio),
            target_miss: ratio(),
            guards: Family::default(),
            load_seconds: Family::new_with_constructor(long),
            models_loaded: Gauge::default(),
            worker_restarts: Family::default(),
            resumes: Counter::default(),
            checkpoint_seconds: short(),
            checkpoint_bytes: Histogram::new(exponential_buckets(1e4, 8.0, 8)),
            commit_seconds: short(),
            blob_bytes: Gauge::default(),
            disk_free: Gauge::default(),
            device_memory: Gauge::default(),
            key_seconds: Family::default(),
            auth_failures: Counter::default(),
            connections: Family::default(),
            refused: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(|broken| broken.into_inner());
        let version = env!("CARGO_PKG_VERSION").to_string();
        registry.register("build", "This program", Info::new([("version", version)]));
        macro_rules! register {
            ($($field:ident $name:literal $help:literal)*) => {
                $(registry.register($name, $help, self.$field.clone());)*
            };
        }
        // Counters get `_total` by themselves.
        register! {
            http_requests "http_requests" "Requests that were answered"
            http_seconds "http_request_seconds" "Seconds until a request was answered"
            jobs "jobs" "Jobs by status"
            created "jobs_created" "Jobs that were taken"
            finished "jobs_finished" "Jobs by outcome: completed, or the code of the error"
            wait_seconds "job_wait_seconds" "Seconds from a job's creation to its first start"
            job_seconds "job_seconds" "Seconds of the device for a finished job"
            queue_length "queue_length" "Jobs that wait"
            queue_capacity "queue_capacity" "Jobs that may wait"
            steps "steps" "Denoising steps by what ran: computed, mixed, reused"
            step_seconds "step_seconds" "Seconds of a denoising step"
            decode_seconds "decode_seconds" "Seconds of decoding a video"
            speedup "speedup" "All work over the work that was computed"
            target_miss "target_miss" "What was computed over what a target asked for"
            guards "guard" "Alarms of guards"
            load_seconds "model_load_seconds" "Seconds of opening a model"
            models_loaded "models_loaded" "Models in the worker's memory"
            worker_restarts "worker_restarts" "Workers that were started again, by reason"
            resumes "resumes" "Attempts that went on from a checkpoint"
            checkpoint_seconds "checkpoint_seconds" "Seconds of writing a checkpoint"
            checkpoint_bytes "checkpoint_bytes" "Bytes of a checkpoint"
            commit_seconds "commit_seconds" "Seconds of a commit of the store"
            blob_bytes "blob_bytes" "Bytes of videos, pictures and reports"
            disk_free "disk_free_bytes" "Bytes that the disk of the data has left"
            device_memory "device_memory_bytes" "Most memory that the worker held"
            key_seconds "key_device_seconds" "Seconds of the device by key"
            auth_failures "auth_failures" "Requests with a wrong key or none"
            connections "connections" "Connections that are open"
            refused "refused" "Requests that were refused before they became jobs"
        }
    }

    /// All of it, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(|broken| broken.into_inner());
        let _ = encode(&mut text, &registry); // writing to a String does not fail
        text
    }

    /// A request was refused.
    pub fn refuse(&self, reason: &str) {
        self.refused.get_or_create(&Reason { reason: reason.to_string() }).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
