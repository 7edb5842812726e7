//! Takes the job that comes next, has the worker make it, and commits the result. One job at a time: a video fills a
//! device.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use navicache_media::fail_point;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::blobs::Pinned;
use crate::board::{DONE, Running};
use crate::child::{Heard, Worker};
use crate::id::now_ms;
use crate::job::{Job, JobError, Made, code, strike};
use crate::metrics::{Guard, Key, Model, Outcome, Ran, Reason};
use crate::queue::{self, Past, Waiting};
use crate::server::Server;
use crate::store::{Finish, StoreError, queries};
use crate::wire::{Done, Make, Order, Said, files};

/// Who ends the whole server, or the machine, may take the worker first. So long the server waits for its own end
/// before it holds a dead worker against the job.
const WITNESS: Duration = Duration::from_secs(1);
/// A worker is replaced after so many jobs.
const JOBS_PER_WORKER: usize = 500;
/// How long a worker may take to start.
const START: Duration = Duration::from_secs(120);
/// After a worker that did not start, and after an error of the store.
const PAUSE: Duration = Duration::from_secs(2);

/// How an attempt ended.
enum End {
    Done(Box<Done>),
    /// It was asked to stop, or killed because it did not.
    Stopped,
    Failed(JobError),
    /// How, and what that weighs against the job.
    Died(String, i64),
}

/// Works until the server stops.
pub async fn run(server: Arc<Server>) {
    let mut worker: Option<(Worker, usize)> = None;
    while !server.is_stopping() {
        if worker.as_ref().is_some_and(|(_, jobs)| *jobs >= JOBS_PER_WORKER)
            && let Some((old, _)) = worker.take()
        {
            old.kill().await;
            restarted(&server, "jobs");
        }
        let (mut current, jobs) = match worker.take() {
            Some(worker) => worker,
            None => match start(&server).await {
                Some(worker) => (worker, 0),
                None => {
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        match next(&server).await {
            Ok(Some(job)) => worker = attempt(&server, current, job).await.map(|worker| (worker, jobs + 1)),
            Ok(None) => {
                tokio::select! {
                    () = server.board.queue_changed.notified() => worker = Some((current, jobs)),
                    () = server.stopped() => current.kill().await,
                    // Only a worker that ends has something to say now.
                    heard = current.hear() => match heard {
                        Ok(Heard::Said(_)) => worker = Some((current, jobs)),
                        _ => {
                            server.board.set_worker(None);
                            restarted(&server, "died");
                        }
                    },
                }
            }
            Err(error) => {
                eprintln!("navicache: {error}");
                sleep(PAUSE).await;
                worker = Some((current, jobs));
            }
        }
    }
}

fn restarted(server: &Server, reason: &str) {
    server.board.set_loaded(None);
    server.metrics.models_loaded.set(0);
    server.metrics.worker_restarts.get_or_create(&Reason { reason: reason.to_string() }).inc();
}

async fn start(server: &Server) -> Option<Worker> {
    let started = Worker::start(&server.options.worker);
    let ready = match started {
        Ok(mut worker) => match timeout(START, worker.hear()).await {
            Ok(Ok(Heard::Said(Said::Ready))) => Ok(worker),
            Ok(Ok(Heard::Gone(status))) => Err(format!("it ended at once ({status})")),
            Ok(Ok(Heard::Said(other))) => Err(format!("it said {other:?}, not that it is ready")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it was silent for two minutes".to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    match ready {
        Ok(worker) => {
            server.board.set_worker(worker.pid());
            Some(worker)
        }
        Err(reason) => {
            eprintln!("navicache: the worker does not start: {reason}");
            server.board.set_worker(None);
            None
        }
    }
}

/// Orders the queue, and claims its head.
async fn next(server: &Server) -> Result<Option<Job>, StoreError> {
    let order = place(server)?;
    let Some(id) = order.into_iter().next() else { return Ok(None) };
    server.store.write(move |writer| queries::claim(writer, &id)).await
}

/// Makes the order again when it may have changed, until the server stops.
pub async fn keep_order(server: Arc<Server>) {
    const AT_MOST_EVERY: Duration = Duration::from_millis(200);
    while !server.is_stopping() {
        tokio::select! {
            () = server.board.order_changed.notified() => {}
            () = server.stopped() => return,
        }
        if let Err(error) = place(&server) {
            eprintln!("navicache: {error}"); // the next change tries it again
        }
        sleep(AT_MOST_EVERY).await;
    }
}

/// Puts the waiting jobs into their order, on the board and as names.
pub fn place(server: &Server) -> Result<Vec<String>, StoreError> {
    let jobs = server.store.read(queries::queued)?;
    let now_ms = now_ms();
    let used = server.store.read(|db| queries::used_since(db, now_ms - queue::WINDOW_MS))?;
    let past = Past {
        used: used.into_iter().map(|(key, ms)| (key, ms as f64 / 1000.0)).collect(),
        weights: server.keys.weights(),
        loaded: server.board.loaded(),
        now_ms,
    };
    let waiting = |job: &Job| Waiting {
        id: job.id.clone(),
        key: job.key.clone(),
        priority: job.priority,
        created_ms: job.created_ms,
        model: job.model.clone(),
        seconds: expected(server, job).unwrap_or(1.0),
    };
    let order = queue::order(&jobs.iter().map(waiting).collect::<Vec<_>>(), &past);
    let jobs: Vec<&Job> = order.into_iter().map(|index| &jobs[index]).collect();
    server.board.place(jobs.iter().map(|job| (job.id.clone(), expected(server, job))).collect());
    server.metrics.queue_length.set(jobs.len() as i64);
    Ok(jobs.into_iter().map(|job| job.id.clone()).collect())
}

fn expected(server: &Server, job: &Job) -> Option<f64> {
    server.board.expected_seconds(&job.model, &job.meant)
}

/// Makes one job, once. Hands back the worker, if it is still one.
async fn attempt(server: &Server, mut worker: Worker, job: Job) -> Option<Worker> {
    if job.attempt == 1 {
        server.metrics.wait_seconds.observe((now_ms() - job.created_ms) as f64 / 1000.0);
    }
    server.board.begin(Running::new(&job));
    if !server.is_wanted(&job.id) {
        server.board.cancel(&job.id); // since it was claimed
    }
    tell(server, &job);
    let folder = server.work_folder(&job.id);
    let clock = Instant::now();
    let end = match prepared(server, &job, &folder) {
        Ok(make) => drive(server, &mut worker, &job, make).await,
        Err(error) => End::Failed(of_io(&job.id, error)),
    };
    let device_ms = clock.elapsed().as_millis() as i64;
    let is_alive = !matches!(end, End::Died(..)) && !worker.has_ended();
    let mut settled = settle(server, &job, &folder, end, device_ms).await;
    // In the store it is under way, and nobody works on it: that must not stay so, whatever the store says now.
    while let Err(error) = &settled
        && !server.is_stopping()
    {
        eprintln!("navicache: {}: {error}", job.id);
        sleep(PAUSE).await;
        settled = requeue(server, &job, 0, device_ms).await;
    }
    server.board.end();
    tell(server, &job);
    if is_alive {
        return Some(worker);
    }
    server.board.set_worker(None);
    restarted(server, if worker.was_ended() { "grace" } else { "died" });
    None
}

/// The folders of an attempt, and the order for it.
fn prepared(server: &Server, job: &Job, folder: &Path) -> std::io::Result<Make> {
    let here = folder.join(job.attempt.to_string());
    std::fs::create_dir_all(&here)?;
    fail_point("attempt has a folder");
    let mut request: navicache_engine::Request = serde_json::from_str(&job.request)?;
    request.image = job.input.as_ref().map(|digest| server.blobs.path(digest));
    let model = server.models.named(&job.model);
    let gone = || std::io::Error::other(format!("the model {} is not offered any more", job.model));
    Ok(Make {
        id: job.id.clone(),
        attempt: job.attempt,
        model: model.ok_or_else(gone)?.place.clone(),
        model_name: job.model.clone(),
        request,
        folder: here,
        checkpoint: folder.join("checkpoint"),
        every: server.options.checkpoint_every,
    })
}

/// Has the worker make it, and passes on what it says.
async fn drive(server: &Server, worker: &mut Worker, job: &Job, make: Make) -> End {
    let stop = Order::Stop { id: make.id.clone(), attempt: make.attempt };
    let begun = Instant::now();
    if let Err(error) = worker.order(&Order::Make(Box::new(make))).await {
        return End::Died(error.to_string(), strike::CRASH);
    }
    // When it has to be gone, once it was asked to stop.
    let mut deadline: Option<Instant> = None;
    let mut timed_out = false;
    loop {
        let is_late = server.options.limits.max_time.is_some_and(|most| begun.elapsed() > most);
        let is_unwanted = server.board.change(|running| running.is_cancelled).unwrap_or(true);
        if deadline.is_none() && (is_late || is_unwanted || server.is_stopping()) {
            timed_out = is_late && !is_unwanted;
            deadline = Some(Instant::now() + server.options.grace);
            let _ = worker.order(&stop).await; // one that is gone is heard of below
        }
        let ended = || match timed_out {
            true => End::Failed(JobError {
                code: code::TIMEOUT.to_string(),
                message: "it took longer than this server allows".to_string(),
            }),
            false => End::Stopped,
        };
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            worker.end().await;
            return ended();
        }
        let heard = tokio::select! {
            heard = worker.hear() => heard,
            () = server.board.stop_changed.notified() => continue,
            () = server.stopped(), if deadline.is_none() => continue,
            () = sleep(Duration::from_millis(500)) => continue,
        };
        match heard {
            Ok(Heard::Said(Said::Done(done))) => return End::Done(done),
            Ok(Heard::Said(Said::Stopped)) => return ended(),
            Ok(Heard::Said(Said::Failed { code, message, detail })) => {
                eprintln!("navicache: {}: {detail}", job.id);
                return End::Failed(JobError { code, message });
            }
            Ok(Heard::Said(said)) => pass_on(server, job, said).await,
            Ok(Heard::Gone(_)) if deadline.is_some() => return ended(),
            Ok(Heard::Gone(status)) => {
                let weight = if worker.was_killed(status) { strike::KILL } else { strike::CRASH };
                return End::Died(status.to_string(), weight);
            }
            Err(error) => return End::Died(error.to_string(), strike::CRASH),
        }
    }
}

/// What the worker says on the way.
async fn pass_on(server: &Server, job: &Job, said: Said) {
    let (board, metrics) = (&server.board, &server.metrics);
    match said {
        Said::Loaded { model: name, seconds } => {
            metrics.load_seconds.get_or_create(&Model { model: name.clone() }).observe(seconds);
            metrics.models_loaded.set(1);
            board.set_loaded(Some(name));
        }
        Said::Stage { stage } => {
            let phase = match stage.as_str() {
                "load" => "loading",
                "text" => "text",
                "picture" => "picture",
                "decode" => "decode",
                _ => "denoise",
            };
            board.change(|running| running.phase = phase);
            tell(server, job);
        }
        Said::Warning { text } => {
            let is_new = board.change(|running| {
                let is_new = !running.warnings.contains(&text);
                if is_new {
                    running.warnings.push(text.clone());
                }
                is_new
            });
            if is_new == Some(true) {
                board.tell(&job.id, "warning", &json!({"message": text}));
            }
        }
        Said::Resumed { step, strip } => {
            metrics.resumes.inc();
            board.change(|running| {
                (running.step, running.strip, running.resumed_at) = (step, strip, Some(step));
            });
            tell(server, job);
        }
        Said::Step { index, steps, seconds, ran } => {
            let kind = match () {
                () if !ran.contains(['.', 'm']) => "computed",
                () if ran.bytes().all(|symbol| symbol == b'.') => "reused",
                () => "mixed",
            };
            let labels = Ran { model: job.model.clone(), ran: kind.to_string() };
            metrics.steps.get_or_create(&labels).inc();
            metrics.step_seconds.get_or_create(&labels).observe(seconds);
            let seen = board.change(|running| {
                running.stepped(index, steps, seconds, &ran);
                (running.progress, running.eta)
            });
            let (progress, eta) = seen.unwrap_or_default();
            let step = json!({
                "index": index, "steps": steps, "ran": ran, "seconds": seconds, "progress": progress, "eta_seconds": eta,
            });
            board.tell(&job.id, "step", &step);
        }
        Said::Checkpoint { step, seconds, bytes } => {
            metrics.checkpoint_seconds.observe(seconds);
            metrics.checkpoint_bytes.observe(bytes as f64);
            let (id, attempt) = (job.id.clone(), job.attempt);
            let written = server.store.write(move |w| queries::checkpointed(w, &id, attempt, step as i64)).await;
            if let Err(error) = written {
                eprintln!("navicache: {}: {error}", job.id); // the checkpoint itself is on disk
            }
        }
        Said::Frames { done, frames } => {
            let ended = board.change(|running| {
                running.decoded(done, frames);
                if done >= frames {
                    running.phase = "write";
                }
                done >= frames
            });
            if ended == Some(true) {
                tell(server, job);
            }
        }
        Said::Preview { index, width, height, jpeg } => {
            if let Ok(jpeg) = base64::engine::general_purpose::STANDARD.decode(jpeg) {
                board.change(|running| running.preview(index, jpeg));
                let url = format!("/v1/videos/{}/preview?step={index}", job.id);
                let preview = json!({"index": index, "url": url, "width": width, "height": height});
                board.tell(&job.id, "preview", &preview);
            }
        }
        Said::Ready | Said::Done(_) | Said::Stopped | Said::Failed { .. } => {}
    }
}

/// Writes down what became of an attempt.
async fn settle(server: &Server, job: &Job, folder: &Path, end: End, device_ms: i64) -> Result<(), StoreError> {
    server.charge(&job.key, device_ms);
    match end {
        End::Done(done) => match commit(server, job, folder, *done, device_ms).await? {
            Ok(()) => {}
            Err(error) => fail(server, job, folder, error, device_ms).await?,
        },
        End::Failed(error) => fail(server, job, folder, error, device_ms).await?,
        End::Stopped => {
            requeue(server, job, 0, device_ms).await?;
            if !server.is_wanted(&job.id) {
                remove(folder);
            }
        }
        End::Died(how, weight) => died(server, job, folder, &how, weight, device_ms).await?,
    }
    Ok(())
}

/// The worker died. That is held against the job, unless the server goes down too.
async fn died(
    server: &Server,
    job: &Job,
    folder: &Path,
    how: &str,
    weight: i64,
    device_ms: i64,
) -> Result<(), StoreError> {
    if timeout(WITNESS, server.stopped()).await.is_ok() {
        eprintln!("navicache: {}: the worker went down with the server ({how})", job.id);
        return requeue(server, job, 0, device_ms).await;
    }
    let job_now = server.store.read(|db| queries::job(db, &job.id))?;
    let sum = job_now.map_or(0, |job| job.crashes) + weight;
    eprintln!("navicache: {}: the worker died ({how}); {sum} of {} against the job", job.id, strike::OUT);
    if sum < strike::OUT {
        return requeue(server, job, weight, device_ms).await;
    }
    let message = "its workers died without getting to a later checkpoint; it may need more memory than there is";
    let error = JobError { code: code::WORKER_CRASHED.to_string(), message: message.to_string() };
    fail(server, job, folder, error, device_ms).await
}

/// Takes the results over and makes them the job's. The inner error is the job's own.
async fn commit(
    server: &Server,
    job: &Job,
    folder: &Path,
    done: Done,
    device_ms: i64,
) -> Result<Result<(), JobError>, StoreError> {
    let (blobs, here) = (server.blobs.clone(), folder.join(job.attempt.to_string()));
    let adopt = move || -> std::io::Result<(Made, Vec<Pinned>)> {
        let (video, bytes) = blobs.adopt(&here.join(files::VIDEO))?;
        let (thumbnail, _) = blobs.adopt(&here.join(files::THUMBNAIL))?;
        let (spritesheet, _) = blobs.adopt(&here.join(files::SPRITESHEET))?;
        let (report, _) = blobs.adopt(&here.join(files::REPORT))?;
        let of = |pinned: &Pinned| Some(pinned.digest().to_string());
        let made = Made {
            video: of(&video),
            bytes: Some(bytes as i64),
            thumbnail: of(&thumbnail),
            spritesheet: of(&spritesheet),
            report: of(&report),
        };
        Ok((made, vec![video, thumbnail, spritesheet, report]))
    };
    let (made, pinned) = match tokio::task::spawn_blocking(adopt).await {
        Ok(Ok(made)) => made,
        Ok(Err(error)) => return Ok(Err(of_io(&job.id, error))),
        Err(error) => return Ok(Err(internal(&format!("{}: {error}", job.id)))),
    };
    let finish = Finish {
        made,
        warnings: server.board.change(|running| running.warnings.clone()).unwrap_or_default(),
        speedup: Some((100.0 * done.speedup).round() / 100.0),
        strip: done.strip.clone(),
        expires_ms: now_ms() + server.options.keep.as_millis() as i64,
    };
    let (id, attempt) = (job.id.clone(), job.attempt);
    let is_ours = server.store.write(move |w| queries::complete(w, &id, attempt, &finish, device_ms)).await?;
    let digests: Vec<String> = pinned.iter().map(|blob| blob.digest().to_string()).collect();
    drop(pinned); // the row refers to them now, or nobody does
    if is_ours {
        let (metrics, model) = (&server.metrics, Model { model: job.model.clone() });
        metrics.job_seconds.get_or_create(&model).observe(device_ms as f64 / 1000.0);
        metrics.decode_seconds.get_or_create(&model).observe(done.decode_seconds);
        metrics.speedup.get_or_create(&model).observe(done.speedup);
        if let Some(miss) = done.target_miss {
            metrics.target_miss.observe(miss);
        }
        metrics.device_memory.set(done.memory as i64);
        for guard in done.guards {
            metrics.guards.get_or_create(&Guard { guard }).inc();
        }
        finished(server, job, "completed");
        if server.board.change(|running| running.resumed_at.is_none()) == Some(true) {
            server.board.learn(&job.model, &job.meant, device_ms as f64 / 1000.0, done.speedup);
        }
    } else {
        server.forget(&digests)?; // nobody wants it any more
    }
    remove(folder);
    Ok(Ok(()))
}

async fn fail(server: &Server, job: &Job, folder: &Path, error: JobError, device_ms: i64) -> Result<(), StoreError> {
    let warnings = server.board.change(|running| running.warnings.clone()).unwrap_or_default();
    let (id, attempt, code) = (job.id.clone(), job.attempt, error.code.clone());
    let failed = server.store.write(move |w| queries::fail(w, &id, attempt, &error, &warnings, device_ms)).await?;
    if failed {
        finished(server, job, &code);
    }
    remove(folder);
    Ok(())
}

async fn requeue(server: &Server, job: &Job, weight: i64, device_ms: i64) -> Result<(), StoreError> {
    let warnings = server.board.change(|running| running.warnings.clone()).unwrap_or_default();
    let (id, attempt) = (job.id.clone(), job.attempt);
    let back = move |w: &mut crate::store::Writer| {
        let is_back = queries::requeue(w, &id, attempt, weight, &warnings, device_ms)?;
        if is_back { Ok(()) } else { queries::charge(w, &id, device_ms) }
    };
    server.store.write(back).await
}

fn finished(server: &Server, job: &Job, outcome: &str) {
    let outcome = Outcome { model: job.model.clone(), outcome: outcome.to_string() };
    server.metrics.finished.get_or_create(&outcome).inc();
}

impl Server {
    /// A key has used the device for so long.
    fn charge(&self, key: &str, device_ms: i64) {
        let labels = Key { key: key.to_string() };
        self.metrics.key_seconds.get_or_create(&labels).inc_by(device_ms as f64 / 1000.0);
    }
}

/// What its files said against a job.
fn of_io(id: &str, error: std::io::Error) -> JobError {
    match StoreError::from(error) {
        StoreError::Full(_) => {
            JobError { code: code::DISK_FULL.to_string(), message: "the server's disk is full".to_string() }
        }
        error => internal(&format!("{id}: {error}")),
    }
}

fn internal(detail: &str) -> JobError {
    eprintln!("navicache: {detail}");
    let message = "the server could not make this video; its log says why".to_string();
    JobError { code: code::INTERNAL.to_string(), message }
}

/// What is left of a job that is settled. The sweep takes what stays.
fn remove(folder: &Path) {
    fail_point("attempt settled");
    let _ = std::fs::remove_dir_all(folder);
    fail_point("attempt removed");
}

/// Says how a job stands.
fn tell(server: &Server, job: &Job) {
    let Ok(Some(job)) = server.store.read(|db| queries::job(db, &job.id)) else { return };
    server.tell(&job);
}

impl Server {
    /// Says how a job stands to those who follow it.
    pub fn tell(&self, job: &Job) {
        let event = if job.status.is_final() { DONE } else { "video" };
        self.board.tell(&job.id, event, &self.board.video(job));
    }
}
