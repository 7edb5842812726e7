//! What every part of a server shares.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use navicache_engine::{Every, LoadOptions, Size};
use tokio::sync::watch;

use crate::auth::Keyring;
use crate::blobs::Blobs;
use crate::board::Board;
use crate::bodies::{Bodies, most_of_body};
use crate::metrics::Metrics;
use crate::models::Models;
use crate::store::{Store, StoreError, queries};

/// How a server serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Models by name or path; the first is the default.
    pub models: Vec<String>,
    /// How the server understands them, and where its worker works.
    pub load: LoadOptions,
    /// The program of the worker, and its arguments.
    pub worker: Vec<OsString>,
    /// An address or a name to listen on.
    pub host: String,
    /// 0: one that is free.
    pub port: u16,
    /// Other names that requests may call this server by.
    pub names: Vec<String>,
    /// Where jobs and videos are kept.
    pub data: PathBuf,
    /// Who is let in.
    pub access: Access,
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Origins whose pages may use this server.
    pub cors: Vec<String>,
    /// What is taken.
    pub limits: Limits,
    /// How long a video is kept.
    pub keep: Duration,
    /// How many bytes of videos are kept.
    pub keep_bytes: u64,
    /// How long the worker may take to stop.
    pub grace: Duration,
    /// After which steps checkpoints are written.
    pub checkpoint_every: Every,
    /// Where metrics are shown without a key.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether prompts are written to the log.
    pub log_prompts: bool,
}

/// Who is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Who has a key of this file.
    Keys(PathBuf),
    /// Everybody on this machine.
    ThisMachine,
    /// Everybody; it was said so.
    Everybody,
}

/// What is taken.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Jobs that may wait.
    pub max_queue: usize,
    /// The same of one key.
    pub max_queue_per_key: usize,
    /// Denoising steps.
    pub max_steps: usize,
    /// Size and frames of the largest video.
    pub max_video: Option<(Size, usize)>,
    /// Bytes of a picture.
    pub max_upload: u64,
    /// Time of a job on the device.
    pub max_time: Option<Duration>,
}

/// Bytes of bodies that are held at once; one that is as large as may be always fits. What is made of them while they
/// are read takes up to three times as much.
const BODIES: u64 = 128 << 20;

/// A server.
pub struct Server {
    pub options: Options,
    pub models: Models,
    pub store: Store,
    pub blobs: Blobs,
    pub keys: Keyring,
    pub board: Board,
    pub metrics: std::sync::Arc<Metrics>,
    /// One picture at a time is unpacked.
    pub pictures: tokio::sync::Semaphore,
    /// Room for what is sent.
    pub bodies: Bodies,
    /// Most connections.
    pub connections: usize,
    stopping: watch::Sender<bool>,
}

impl Server {
    pub fn new(
        options: Options,
        models: Models,
        store: Store,
        blobs: Blobs,
        keys: Keyring,
        metrics: std::sync::Arc<Metrics>,
        connections: usize,
    ) -> Self {
        let stopping = watch::Sender::new(false);
        metrics.queue_capacity.set(options.limits.max_queue as i64);
        let pictures = tokio::sync::Semaphore::new(1);
        let bodies = Bodies::new(BODIES.max(most_of_body(options.limits.max_upload)));
        let board = Board::default();
        Server { options, models, store, blobs, keys, board, metrics, pictures, bodies, connections, stopping }
    }

    /// Where attempts of a job work.
    pub fn work_folder(&self, id: &str) -> PathBuf {
        self.options.data.join("work").join(id)
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Takes no more jobs, and lets the worker leave after its step.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.board.stop_changed.notify_one();
        self.board.queue_changed.notify_one();
    }

    /// Waits until it stops.
    pub async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        let _ = stopping.wait_for(|is_stopping| *is_stopping).await; // the sender lives as long as this
    }

    /// Whether a job is still to be made.
    pub fn is_wanted(&self, id: &str) -> bool {
        let job = self.store.read(|db| queries::job(db, id));
        !matches!(job, Ok(None)) && !matches!(job, Ok(Some(job)) if job.status.is_final())
    }

    /// Removes blobs, but for those that a job refers to or is about to.
    pub fn forget(&self, digests: &[String]) -> Result<(), StoreError> {
        self.blobs.remove(digests, |digests| self.referenced(digests))
    }

    /// Of these digests, those that a job refers to.
    pub fn referenced(&self, digests: &[String]) -> Result<Vec<String>, StoreError> {
        self.store.read(|db| queries::referenced(db, digests))
    }

    /// Bytes that the disk has left.
    pub fn disk_free(&self) -> Option<u64> {
        fs4::available_space(&self.options.data).ok()
    }
}

/// Whether an address is reached from this machine alone.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A server without a model, for tests.
#[cfg(test)]
pub fn test_server(data: &std::path::Path) -> Server {
    let options = Options {
        models: Vec::new(),
        load: LoadOptions::default(),
        worker: Vec::new(),
        host: "127.0.0.1".to_string(),
        port: 0,
        names: Vec::new(),
        data: data.to_path_buf(),
        access: Access::ThisMachine,
        tls: None,
        cors: Vec::new(),
        limits: Limits {
            max_queue: 1000,
            max_queue_per_key: 100,
            max_steps: 100,
            max_video: None,
            max_upload: 1 << 20,
            max_time: None,
        },
        keep: Duration::from_secs(60),
        keep_bytes: 1 << 30,
        grace: Duration::from_secs(1),
        checkpoint_every: Every::Auto,
        metrics_listen: None,
        log_prompts: false,
    };
    let models = Models::open(&options.models, &options.load).unwrap();
    let store = Store::open(data, Box::new(|_| ())).unwrap();
    let blobs = Blobs::open(data.join("blobs")).unwrap();
    Server::new(options, models, store, blobs, Keyring::open(None).unwrap(), std::sync::Arc::default(), 8)
}
