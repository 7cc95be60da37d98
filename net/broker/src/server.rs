//! A broker as a process: threads, signals, readiness, the end.
//!
//! Owns what only a process has. What happens on a core is in [`crate::seat`], so that a test or the simulator can run a
//! broker without any of this.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::exit;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use heddle_io::{Executor, Io, IoConfig, Signals, threads};

use crate::config::BrokerConfig;
use crate::error::{BrokerError, StartError};
use crate::metrics::{About, MetricsServer};
use crate::seat::{Seat, Started, observe, seats};

/// The status of a process that was not stopped cleanly.
const UNCLEAN: i32 = 1;

/// How this machine is used, for the person who started the broker.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Threads.
    pub cores: usize,
    /// `uring` or `blocking`.
    pub backend: &'static str,
    /// Why this backend, in words.
    pub reason: String,
    /// Where metrics and health are served.
    pub metrics: Option<SocketAddr>,
}

/// Runs a broker on this thread and on one more for each further core, until SIGTERM or SIGINT. `started` is called
/// once it serves.
///
/// # Errors
/// Why it did not start, or did not stop cleanly, in one line.
pub fn run(config: BrokerConfig, started: impl FnOnce(&Started, &Chosen)) -> Result<(), BrokerError> {
    let bound = MetricsServer::bind(&config.metrics)?;
    let io_config = IoConfig { backend: config.backend, ..IoConfig::default() };
    let (cores, stop_time_max) = (config.cores, config.stop_time_max);
    let executor = Executor::new(io_config.clone()).map_err(StartError::Core)?;
    // Before any other thread starts: they take over that these signals are not for them.
    let signals = executor.io().signals().map_err(StartError::Core)?;
    let about = About { backend: executor.backend_name(), bounds: config.metrics.clone() };
    let (mut first, mut others) = seats(config);
    let metrics = match bound {
        Some(bound) => Some(MetricsServer::start(bound, observe(&mut first, &mut others), about)?),
        None => None,
    };
    let chosen = Chosen {
        cores,
        backend: executor.backend_name(),
        reason: executor.backend_reason(),
        metrics: metrics.as_ref().map(MetricsServer::address),
    };
    let threads = others.into_iter().enumerate();
    let threads: Vec<JoinHandle<()>> =
        threads.map(|(index, seat)| spawn(index + 1, seat, io_config.clone())).collect::<Result<_, _>>()?;
    let io = executor.io();
    let stop = stop_on_signal(io.clone(), signals, stop_time_max);
    let on_start = |what: &Started| {
        started(what, &chosen);
        notify_ready();
    };
    let outcome = executor.run(first.run(io, on_start, stop));
    drop(executor);
    for thread in threads {
        // A panic of a core has ended the process already.
        let _ = thread.join();
    }
    drop(metrics);
    outcome
}

/// Starts the thread of a further core; returns once its backend is there.
fn spawn(index: usize, seat: Seat, io_config: IoConfig) -> Result<JoinHandle<()>, StartError> {
    let (sender, receiver) = sync_channel(1);
    let body = move || match Executor::new(io_config) {
        Ok(executor) => {
            sender.send(Ok(())).expect("the starter waits for this");
            executor.run(seat.run(executor.io()));
        }
        Err(error) => sender.send(Err(error)).expect("the starter waits for this"),
    };
    let thread = threads::spawn_core(&format!("core-{index}"), None, body).map_err(StartError::Core)?;
    receiver.recv().expect("the thread sends this first").map_err(StartError::Core)?;
    Ok(thread)
}

/// Waits for the first signal. From then on the process ends in time, whatever happens, and at once with a second one.
async fn stop_on_signal(io: Io, mut signals: Signals, time_max: Duration) {
    match signals.next().await {
        Ok(signal) => tracing::info!("{signal:?}: stopping; a second signal ends the process at once"),
        Err(error) => tracing::error!("stopping, since signals can no longer be heard: {error}"),
    }
    notify("STOPPING=1");
    let hurried = io.clone();
    drop(io.spawn(async move {
        if signals.next().await.is_ok() {
            tracing::warn!("a second signal: ending at once; the next start recovers");
            exit(UNCLEAN);
        }
    }));
    drop(io.spawn(async move {
        hurried.sleep(time_max).await;
        tracing::error!("stopping takes too long (shutdown.timeout.ms): ending at once; the next start recovers");
        exit(UNCLEAN);
    }));
}

/// Tells the service manager, where there is one, that the broker serves.
fn notify_ready() {
    notify("READY=1");
}

/// Sends one datagram to the socket that `NOTIFY_SOCKET` names (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| match path.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)
        }
        None => socket.send_to(state.as_bytes(), &path),
    });
    if let Err(error) = sent {
        tracing::warn!("the service manager could not be told {state}: {error}");
    }
}
