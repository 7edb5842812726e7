//! Connections: how many, how slow they may be, and TLS.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::api::Peer;
use crate::metrics::Kind;
use crate::seats::{AtWork, Seat, Seats};
use crate::server::Server;
use crate::{Error, Result};

/// Connections from one address.
const OF_ADDRESS: usize = 64;
/// How long a connection that is given up may take to leave.
const LEAVING: Duration = Duration::from_millis(500);
/// How long the headers of a request may take, from the first moment or the end of the request before.
const HEADERS: Duration = Duration::from_secs(10);
/// How long a reader may take nothing.
const STALLED: Duration = Duration::from_secs(30);
/// How long what is under way may take when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// After an error of accepting, as when there are too many files.
const BREATH: Duration = Duration::from_millis(50);

/// Certificates that can be read again.
pub struct Tls {
    files: (PathBuf, PathBuf),
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    pub fn open(certificate: &Path, key: &Path) -> Result<Self> {
        let files = (certificate.to_path_buf(), key.to_path_buf());
        let acceptor = RwLock::new(acceptor(&files)?);
        Ok(Tls { files, acceptor })
    }

    /// Reads both files again. What is wrong with them leaves the old ones.
    pub fn reload(&self) -> Result<()> {
        let new = acceptor(&self.files)?;
        *self.acceptor.write().unwrap_or_else(|broken| broken.into_inner()) = new;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(|broken| broken.into_inner()).clone()
    }
}

fn acceptor((certificate, key): &(PathBuf, PathBuf)) -> Result<TlsAcceptor> {
    let wrong = |path: &Path, e: &dyn std::fmt::Display| Error::Refused(format!("{}: {e}", path.display()));
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|e| wrong(certificate, &e))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(certificate, &e))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, &e))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(certificate, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| wrong(certificate, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes connections until the server stops, then waits a little for those that are under way.
pub async fn serve(server: Arc<Server>, listener: TcpListener, router: Router, tls: Option<Arc<Tls>>) {
    let counts: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    let (most, seats) = (server.connections, Seats::default());
    let open = Arc::new(tokio::sync::Semaphore::new(most));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.stopped() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                sleep(BREATH).await;
                continue;
            }
        };
        let permit = match open.available_permits() == 0 && seats.give_up_one() {
            true => {
                server.metrics.refuse("silent");
                timeout(LEAVING, open.clone().acquire_owned()).await.ok().and_then(Result::ok)
            }
            false => open.clone().try_acquire_owned().ok(),
        };
        let (Some(permit), Some(place)) = (permit, Place::take(&counts, peer.ip())) else {
            server.metrics.refuse("connections");
            continue; // it is closed without a word
        };
        let (server, router, tls, seat) = (server.clone(), router.clone(), tls.clone(), seats.take());
        tokio::spawn(async move {
            let held = (permit, place);
            let gauge = server.metrics.connections.get_or_create(&Kind { kind: "http".to_string() }).clone();
            gauge.inc();
            tokio::select! {
                () = connection(&server, stream, peer, router, tls, &seat.0) => {}
                () = seat.0.is_given_up() => {}
            }
            gauge.dec();
            drop((seat, held));
        });
    }
    drop(listener);
    let all = open.acquire_many(most as u32);
    let _ = timeout(FAREWELL, all).await; // who is slower is cut
}

async fn connection(
    server: &Server,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    tls: Option<Arc<Tls>>,
    seat: &Arc<Seat>,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(server, stream, peer, router, seat).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(HEADERS, tls.acceptor().accept(stream)).await {
                speak(server, stream, peer, router, seat).await;
            }
        }
    }
}

async fn speak(
    server: &Server,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    router: Router,
    seat: &Arc<Seat>,
) {
    let router = router.layer(axum::Extension(Peer { address: peer, seat: seat.clone() }));
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let at_work = seat.at_work();
        let answer = router.call(request);
        async move { answer.await.map(|response| response.map(|body| Answered { body, _at_work: at_work })) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(64 << 10);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(Impatient::new(stream)), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = server.stopped() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await; // its errors are the client's
}

/// The body of an answer. The connection is at work until it is sent.
struct Answered {
    body: Body,
    _at_work: AtWork,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's place among those of its address.
struct Place {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Place {
    /// One machine's own connections are not limited to a few: they may be a proxy's.
    fn take(counts: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr) -> Option<Self> {
        let mut held = counts.lock().unwrap_or_else(|broken| broken.into_inner());
        let count = held.entry(address).or_default();
        if *count >= OF_ADDRESS && !address.is_loopback() {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Place { counts: counts.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.counts.lock().unwrap_or_else(|broken| broken.into_inner());
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

/// A stream that ends when its reader takes nothing for a while.
struct Impatient<S> {
    inner: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(inner: S) -> Self {
        Impatient { inner, stalled: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + STALLED)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.judge(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
