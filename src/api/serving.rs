//! Connections, with bounds: how many, and how long a client may take for what.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tower_service::Service;

use super::Control;
use super::admission::{Admission, Door, Gate, Peer};
use super::events::Way;
use super::routes;

/// What one client may take of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Connections at a time; the next ones wait in the kernel's queue.
    pub connections: usize,
    /// For the head of a request, from the connection or the answer before on: so also how long a connection may idle.
    pub head: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// For the client to read on.
    pub write: Duration,
    /// For answers that are on their way when the listener stops.
    pub farewell: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 128,
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            write: Duration::from_secs(10),
            farewell: Duration::from_secs(1),
        }
    }
}

/// Header lines of a request.
const MOST_HEADERS: usize = 64;
/// Bytes of a request's head.
const LARGEST_HEAD: usize = 16 << 10;

/// What requests of a connection carry of it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Its bounds.
    pub bounds: Bounds,
    /// By which way its client has come.
    pub way: Way,
    /// Whether its listener is to stop.
    pub stopping: watch::Receiver<bool>,
}

/// Answers on the control socket until `stop` is done; requests that are being answered then get their answer.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: UnixListener,
    control: impl Control,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = routes::router(control);
    let peer = |stream: &tokio::net::UnixStream| Peer { uid: stream.peer_cred().ok().map(|peer| peer.uid()) };
    accept(listener, router, Bounds::default(), Way::Socket, stop, peer).await;
    Ok(())
}

/// Answers at a door over TCP until `stop` is done, as [`serve`].
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve_tcp(
    listener: TcpListener,
    door: Door,
    control: impl Control,
    admission: Admission,
    bounds: Bounds,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let gate = Gate::new(door, listener.local_addr()?.ip(), admission);
    let router = routes::over_tcp(door, control, gate);
    // The address of a client says nothing of who it is.
    accept(listener, router, bounds, Way::Tcp, stop, |_| ()).await;
    Ok(())
}

async fn accept<L, P>(
    mut listener: L,
    router: Router,
    bounds: Bounds,
    way: Way,
    stop: impl Future<Output = ()>,
    peer: impl Fn(&L::Io) -> P,
) where
    L: Listener<Addr: Debug>,
    P: Clone + Send + Sync + 'static,
{
    let places = Arc::new(Semaphore::new(bounds.connections));
    let (stopper, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            // Never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await.0)
        };
        let (place, stream) = tokio::select! {
            () = &mut stop => break,
            // So that those that have ended do not gather.
            Some(_) = connections.join_next() => continue,
            next = next => next,
        };
        let peer = ConnectInfo(peer(&stream));
        let connection = Connection { bounds, way, stopping: stopping.clone() };
        let router = router.clone();
        connections.spawn(async move {
            talk(stream, router, peer, connection).await;
            drop(place);
        });
    }
    drop(listener);
    stopper.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(bounds.farewell, all).await.is_err() {
        tracing::info!("a client still waits for an answer; not waiting for it");
    }
}

/// Waits until a listener is to stop, or is gone.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|is| *is).await);
}

async fn talk<S, P>(stream: S, router: Router, peer: ConnectInfo<P>, connection: Connection)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    P: Clone + Send + Sync + 'static,
{
    let bounds = connection.bounds;
    let mut stopping = connection.stopping.clone();
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(bounds.write));
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(connection.clone());
        let answer = router.clone().call(request);
        async { Ok::<Response, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD);
    let talk = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut talk = std::pin::pin!(talk);
    let ended = tokio::select! {
        ended = &mut talk => ended,
        () = stopped(&mut stopping) => {
            talk.as_mut().graceful_shutdown();
            talk.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
