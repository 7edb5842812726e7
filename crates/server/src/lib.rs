//! `navicache serve`: a server that loses nothing.
//!
//! ```text
//!  client -> limits -> keys -> routes -> store  <->  SQLite + blobs/
//!                                 \-> queue -> worker process, which runs the engine
//! ```
//!
//! The main flow is [`serve`]. A job is on disk before it is answered, runs at least once, and is committed once: the
//! files are `store` (what must not be lost), `runner` (what is done with it), `worker` (the process that does it).
#![warn(missing_docs)]

mod api;
mod ask;
mod auth;
mod blobs;
mod board;
mod bodies;
mod child;
mod error;
mod fields;
mod files;
mod form;
mod id;
mod job;
mod listen;
mod metrics;
mod models;
mod pictures;
mod queue;
mod retention;
mod runner;
mod seats;
mod server;
mod store;
mod wire;
mod worker;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::auth::Keyring;
use crate::blobs::Blobs;
use crate::listen::Tls;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::server::{Server, is_loopback};
use crate::store::{Store, queries};

pub use auth::{Key, key_weight, new_key, read_keys, revoke_key};
pub use error::{Error, Result};
pub use server::{Access, Limits, Options};
pub use worker::{WorkerOptions, work};

/// So many of the last videos say how long the next one takes.
const SEEN: usize = 20;

/// Serves until SIGTERM or Ctrl-C. `on_ready` is told the address once requests are answered.
///
/// # Errors
/// It cannot start: a model, the data folder, the address, the keys or the certificate is not as it should be.
pub fn serve(options: Options, on_ready: impl FnOnce(&str)) -> Result<()> {
    check(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("the runtime"))?;
    runtime.block_on(serve_all(options, on_ready))
}

/// Whether a body of a content type can be read as a request for a video; for what tries bodies of strangers.
pub fn reads_form(content_type: &str, body: &[u8]) -> bool {
    const MOST: u64 = 1 << 20;
    let Some(content) = form::Content::of(content_type) else { return false };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return false };
    let form = runtime.block_on(form::read(content, body.to_vec().into(), MOST));
    form.is_ok_and(|form| ask::Ask::new(&form).is_ok())
}

async fn serve_all(options: Options, on_ready: impl FnOnce(&str)) -> Result<()> {
    // 1. What is served, and what there is from before
    let models = Models::open(&options.models, &options.load)?;
    make_folder(&options.data)?;
    let metrics = Arc::new(Metrics::new());
    let commits = metrics.commit_seconds.clone();
    let store = Store::open(&options.data, Box::new(move |took| commits.observe(took.as_secs_f64())))?;
    let blobs = Blobs::open(options.data.join("blobs"))?;
    let work = options.data.join("work");
    std::fs::create_dir_all(&work).map_err(Error::io(&work))?;
    let refused = |error: store::StoreError| Error::Refused(error.to_string());
    let waiting_again = store.write(queries::requeue_all).await.map_err(refused)?;
    let keys = match &options.access {
        Access::Keys(file) => Keyring::open(Some(file.clone()))?,
        Access::ThisMachine | Access::Everybody => Keyring::open(None)?,
    };

    // 2. Where it listens
    let tls = options.tls.as_ref().map(|(certificate, key)| Tls::open(certificate, key)).transpose()?.map(Arc::new);
    let place = format!("{}:{}", options.host, options.port);
    let listener = TcpListener::bind((options.host.as_str(), options.port)).await.map_err(Error::io(&place))?;
    let address = listener.local_addr().map_err(Error::io(&place))?;
    let metrics_listener = match options.metrics_listen {
        Some(address) => Some(TcpListener::bind(address).await.map_err(Error::io(address.to_string()))?),
        None => None,
    };
    let server = Arc::new(Server::new(options, models, store, blobs, keys, metrics, files::connections()));
    for (model, meant, device_ms, speedup) in server.store.read(|db| queries::made_last(db, SEEN)).map_err(refused)? {
        server.board.learn(&model, &meant, device_ms as f64 / 1000.0, speedup);
    }
    runner::place(&server).map_err(refused)?;
    if waiting_again > 0 {
        eprintln!("navicache: {waiting_again} video(s) were under way when the server ended; they go on");
    }

    // 3. Everything that runs until it stops
    let runner = tokio::spawn(runner::run(server.clone()));
    tokio::spawn(runner::keep_order(server.clone()));
    tokio::spawn(retention::run(server.clone()));
    tokio::spawn(signals(server.clone(), tls.clone()));
    if let Some(listener) = metrics_listener {
        let router = api::metrics_router(server.clone());
        tokio::spawn(listen::serve(server.clone(), listener, router, None));
    }
    on_ready(&url(&server, address));
    listen::serve(server.clone(), listener, api::router(server.clone()), tls).await;
    // The worker leaves after its step, or is ended.
    let _ = runner.await;
    Ok(())
}

fn url(server: &Server, address: SocketAddr) -> String {
    let scheme = if server.options.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// Refuses what would be open to strangers by mistake.
fn check(options: &Options) -> Result<()> {
    if options.access == Access::ThisMachine && !is_loopback(&options.host) {
        return Err(Error::Refused(format!(
            "--host {}: others could reach this server, and it has no keys: give --keys FILE, or say --no-keys",
            options.host
        )));
    }
    Ok(())
}

/// The data folder, for its owner alone.
fn make_folder(data: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(data).map_err(Error::io(data))
}

/// Stops at the first SIGTERM or Ctrl-C, ends at once at the second, and reads the certificate again at SIGHUP.
#[cfg(unix)]
async fn signals(server: Arc<Server>, tls: Option<Arc<Tls>>) {
    use tokio::signal::unix::{SignalKind, signal};
    let [term, int, hup] = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) = (term, int, hup) else { return };
    loop {
        tokio::select! {
            _ = term.recv() => end(&server),
            _ = int.recv() => end(&server),
            _ = hup.recv() => {
                if let Some(Err(error)) = tls.as_ref().map(|tls| tls.reload()) {
                    eprintln!("navicache: the certificate stays as it is: {error}");
                }
            }
        }
    }
}

/// Stops at the first Ctrl-C, and ends at once at the second.
#[cfg(not(unix))]
async fn signals(server: Arc<Server>, _tls: Option<Arc<Tls>>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        end(&server);
    }
}

fn end(server: &Server) {
    if server.is_stopping() {
        std::process::exit(1);
    }
    server.stop();
}
