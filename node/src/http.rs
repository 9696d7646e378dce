//! The node's HTTP page: `/metrics` for Prometheus, `/healthz` for supervisors, `/api/v1/status` for people and scripts.
//!
//! It is read-only and unauthenticated, made for this machine and a monitoring network. It never changes anything, never
//! reads a request's body, and answers one request a connection, so that a bound on connections and on each one's
//! lifetime bounds everything that a caller can hold.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};

/// Most connections at once: a few scrapers, supervisors and people. Later ones wait to be accepted.
pub const CONNECTION_LIMIT: usize = 32;

/// Longest life of a connection, from its acceptance to the last byte of its answer.
pub const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// What the page shows. Each method is called for every request and must answer at once, without waiting.
pub trait Page: Send + Sync + 'static {
    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> String;

    /// Whether the node does its work.
    ///
    /// # Errors
    /// In a sentence, why it does not.
    fn health(&self) -> Result<(), String>;

    /// The node's state.
    fn status(&self) -> serde_json::Value;
}

/// Serves `page` until `stop` is done, then finishes what is being answered (at most [`CONNECTION_TIME`]).
///
/// # Errors
/// Where the listener cannot be used at all; a single connection's failure ends that connection.
pub async fn serve(
    listener: TcpListener,
    page: Arc<dyn Page>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_within(listener, page, stop, CONNECTION_TIME).await
}

async fn serve_within(
    listener: TcpListener,
    page: Arc<dyn Page>,
    stop: impl Future<Output = ()> + Send + 'static,
    lifetime: Duration,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/api/v1/status", get(status))
        .fallback(async || (StatusCode::NOT_FOUND, "here are /metrics, /healthz and /api/v1/status\n"))
        .layer(axum::middleware::map_response(one_request))
        .with_state(page);
    let listener = Bounded { listener, permits: Arc::new(Semaphore::new(CONNECTION_LIMIT)), lifetime };
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}

async fn metrics(State(page): State<Arc<dyn Page>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page.metrics())
}

async fn health(State(page): State<Arc<dyn Page>>) -> (StatusCode, String) {
    match page.health() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn status(State(page): State<Arc<dyn Page>>) -> Json<serde_json::Value> {
    Json(page.status())
}

async fn one_request(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A listener that accepts only while there are permits, and gives each connection a deadline.
struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    lifetime: Duration,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed: without a permit this waits, and the system's backlog holds the callers.
        let permit = match self.permits.clone().acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => std::future::pending().await,
        };
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(sleep_until(Instant::now() + self.lifetime));
        (Connection { stream, deadline, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A TCP connection whose reads and writes fail after its deadline.
struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// `polled`, or an error if it is pending and the deadline has passed.
    fn bounded<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bounded(polled, cx)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(polled, cx)
    }
}

#[cfg(test)]
mod tests;
