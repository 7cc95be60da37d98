//! The HTTP port: `/metrics`, `/healthz`, `/readyz`.
//!
//! Owns the thread, its runtime, and what bounds a peer: connections at a time, bytes of a request's head, the time of all
//! of it. One request for each connection. Never touches a core: it asks the observer, which waits for a moment at most.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use heddle_io::threads;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore, oneshot};

use super::Stage;
use super::observer::{Observer, Presence, Question};
use super::process;
use super::render::{Build, Picture};
use crate::concurrently::either;
use crate::config::MetricsConfig;
use crate::error::StartError;

/// Connections at a time; who comes later waits to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long a request's head may take to arrive.
const HEAD_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a connection may last, from being accepted to the last byte of the answer.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// How long all cores together may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long accepting pauses after a failure: the process is out of descriptors.
const FAILURE_PAUSE: Duration = Duration::from_millis(200);

/// The format of `/metrics`.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

const INDEX: &str = "\
heddle

/metrics  metrics for Prometheus
/healthz  200 while every core answers
/readyz   200 while clients are served
";

/// What a broker is, for whoever watches it.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) backend: &'static str,
    pub(crate) bounds: MetricsConfig,
}

/// A bound port.
pub(crate) struct MetricsListener {
    listener: TcpListener,
    address: SocketAddr,
}

/// The server. Dropping it ends it.
pub(crate) struct MetricsServer {
    address: SocketAddr,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What requests share.
struct Shared {
    about: About,
    observer: Mutex<Observer>,
}

impl MetricsServer {
    /// Binds the port that `config` names, if it names one.
    ///
    /// # Errors
    /// [`StartError::Metrics`].
    pub(crate) fn bind(config: &MetricsConfig) -> Result<Option<MetricsListener>, StartError> {
        let Some((host, port)) = &config.listener else { return Ok(None) };
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        let failed = |error| StartError::Metrics { host: host.to_owned(), port: *port, error };
        let listener = TcpListener::bind((host, *port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(MetricsListener { listener, address }))
    }

    /// Serves what `observer` sees, on a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(bound: MetricsListener, observer: Observer, about: About) -> Result<Self, StartError> {
        let MetricsListener { listener, address } = bound;
        let shared = Arc::new(Shared { about, observer: Mutex::new(observer) });
        let (stop, stopped) = oneshot::channel();
        let body = move || {
            if let Err(error) = run(listener, shared, stopped) {
                tracing::error!("metrics and health are not served: {error}");
            }
        };
        let thread = threads::spawn_core("metrics", None, body).map_err(StartError::Core)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic on that thread was told by the hook.
            let _ = thread.join();
        }
    }
}

fn run(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        either(stopped, accept(listener, router(shared))).await;
        Ok(())
    })
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| async { ([(header::CONTENT_TYPE, PLAIN)], INDEX) }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .fallback(|| async { verdict(StatusCode::NOT_FOUND, "not found; see /") })
        .with_state(shared)
}

async fn accept(listener: tokio::net::TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&room).acquire_owned().await.expect("nobody closes the semaphore");
        match listener.accept().await {
            Ok((socket, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve(socket, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("metrics: no new connections for a moment: {error}");
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

async fn serve(socket: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    // Too slow, gone or no HTTP: the connection is over, and nobody has to act on it.
    match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("metrics: connection closed: {error}"),
        Err(_elapsed) => tracing::debug!("metrics: connection closed: it took too long"),
    }
}

fn verdict(status: StatusCode, words: impl fmt::Display) -> Response {
    (status, [(header::CONTENT_TYPE, PLAIN)], format!("{words}\n")).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut observer = shared.observer.lock().await;
    let presences = observer.ask(Question::Everything, PATIENCE).await;
    let is_ready = unready(&observer, &presences).is_none();
    let build = Build { version: env!("CARGO_PKG_VERSION"), backend: shared.about.backend };
    let picture = Picture {
        build,
        bounds: &shared.about.bounds,
        cores: presences.into_iter().zip(observer.samples()).collect(),
        is_ready,
        process: process::look(),
    };
    ([(header::CONTENT_TYPE, EXPOSITION)], picture.render()).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let presences = shared.observer.lock().await.ask(Question::Pulse, PATIENCE).await;
    match unhealthy(&presences) {
        None => verdict(StatusCode::OK, "ok"),
        Some(words) => verdict(StatusCode::SERVICE_UNAVAILABLE, words),
    }
}

async fn readiness(State(shared): State<Arc<Shared>>) -> Response {
    let mut observer = shared.observer.lock().await;
    let presences = observer.ask(Question::Pulse, PATIENCE).await;
    match unready(&observer, &presences) {
        None => verdict(StatusCode::OK, "ready"),
        Some(words) => verdict(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {words}")),
    }
}

/// Which core does not answer, if there is one. A core that has ended did so because the broker stops.
fn unhealthy(presences: &[Presence]) -> Option<String> {
    presences.iter().enumerate().find_map(|(index, presence)| match presence {
        Presence::Silent(span) => Some(format!("core {index} has not answered for {:.1} s", span.as_secs_f64())),
        Presence::Here | Presence::Gone => None,
    })
}

/// Why clients are not served, if they are not.
fn unready(observer: &Observer, presences: &[Presence]) -> Option<String> {
    if let Some(words) = unhealthy(presences) {
        return Some(words);
    }
    if presences.contains(&Presence::Gone) {
        return Some("stopping".to_owned());
    }
    let pulse = observer.pulse();
    match pulse.map(|pulse| pulse.stage) {
        None | Some(Stage::Starting) => Some("starting: the logs are being opened".to_owned()),
        Some(Stage::Stopping) => Some("stopping".to_owned()),
        Some(Stage::Serving) => {
            let offline = pulse.and_then(|pulse| pulse.offline.as_ref());
            offline.map(|reason| format!("the data directory is offline: {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::observe;

    #[test]
    fn a_core_that_does_not_answer_is_named_and_one_that_ended_is_no_illness() {
        let silent = Presence::Silent(Duration::from_millis(2_500));
        assert_eq!(unhealthy(&[Presence::Here, Presence::Gone]), None);
        let words = unhealthy(&[Presence::Here, silent]);
        assert_eq!(words.as_deref(), Some("core 1 has not answered for 2.5 s"));

        let (_cores, observer) = observe(2);
        assert_eq!(unready(&observer, &[Presence::Here, silent]), words);
        assert_eq!(unready(&observer, &[Presence::Gone, Presence::Here]).as_deref(), Some("stopping"));
        let starting = unready(&observer, &[Presence::Here, Presence::Here]);
        assert!(starting.is_some_and(|words| words.starts_with("starting")), "nothing was heard yet");
    }
}
