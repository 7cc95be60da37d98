//! The life of one core, from its wiring to its end.
//!
//! Owns the order of starting and stopping. Never starts a thread and never waits for a signal: [`crate::server`] does
//! that for a process, a test or the simulator for itself. All a core needs from outside is its [`Io`].
//!
//! ```text
//! first core:   bind ▶ open data directory ▶ replay metadata ▶ Open ──▶ every core: open logs ▶ accept
//!               ▶ ready … told to stop ▶ Drain ──▶ every core ▶ Close ──▶ every core ▶ end
//! other cores:  serve letters until the first core is gone
//! ```

use std::sync::Arc;

use heddle_cluster::{Endpoint, MetadataImage};
use heddle_engine::{DataDir, WantedIdentity};
use heddle_io::{Io, Task};

use crate::config::{BrokerConfig, PlantedPanic};
use crate::controller::Controller;
use crate::core::Core;
use crate::error::{BrokerError, StartError, StopError};
use crate::listener::{self, Listening};
use crate::mailbox::{CoreIndex, FIRST_CORE, Inbox, Wiring, wire};
use crate::message::{CloseRequest, DrainRequest, OpenRequest};
use crate::metrics::{self, Observed, Observer, Stage};

/// The part of the time for stopping that connections may take to finish; the rest is for the disk.
const DRAIN_SHARE: u32 = 2;

/// The place of the first core: it owns the metadata log, counts connections, and starts and stops the others.
pub struct FirstSeat {
    seat: Seat,
}

/// The place of a core: everything that it needs before it runs, ready to be moved to its thread.
pub struct Seat {
    config: Arc<BrokerConfig>,
    wiring: Wiring,
    /// Where the core is asked for its numbers, if anybody does.
    observed: Option<Observed>,
}

/// What a broker chose when it started, for the person who started it.
#[derive(Debug, Clone)]
pub struct Started {
    /// Where it listens.
    pub listeners: Vec<Listening>,
    /// The cluster.
    pub cluster_id: String,
    /// The broker's number.
    pub broker_id: i32,
    /// Topics and partitions that it found.
    pub topics: usize,
    /// Partitions of all topics.
    pub partitions: usize,
}

/// The places of a broker's cores.
///
/// # Panics
/// When the broker is to have no core.
pub fn seats(config: BrokerConfig) -> (FirstSeat, Vec<Seat>) {
    assert!(config.cores > 0, "a broker has a core");
    let config = Arc::new(config);
    let mut seats = wire(config.cores, config.mailbox_capacity).into_iter().map(|wiring| Seat {
        config: Arc::clone(&config),
        wiring,
        observed: None,
    });
    let first = seats.next().expect("there is a core");
    (FirstSeat { seat: first }, seats.collect())
}

/// Has all cores of a broker answer whoever holds the end that this gives.
pub(crate) fn observe(first: &mut FirstSeat, others: &mut [Seat]) -> Observer {
    let (ends, observer) = metrics::observe(1 + others.len());
    let seats = std::iter::once(&mut first.seat).chain(others);
    seats.zip(ends).for_each(|(seat, end)| seat.observed = Some(end));
    observer
}

impl Seat {
    /// Runs a core other than the first, until the first is gone.
    pub async fn run(self, io: Io) {
        let (core, inboxes) = Core::new(io, self.config, self.wiring);
        let letters = attend(&core, inboxes, self.observed);
        for (from, letters) in letters {
            if from == FIRST_CORE {
                letters.await;
            }
        }
    }
}

/// Starts what every core runs; gives the tasks that serve the letters of each other core.
fn attend(core: &Core, inboxes: Vec<Inbox>, observed: Option<Observed>) -> Vec<(CoreIndex, Task<()>)> {
    let sweeping = core.clone();
    if core.config().planted_panic == PlantedPanic::VitalTask {
        let io = core.io().clone();
        drop(core.spawn_vital(async move {
            io.yield_now().await;
            panic!("planted in a vital task");
        }));
    }
    drop(core.spawn_vital(async move { sweeping.sessions().sweep(sweeping.io(), sweeping.config()).await }));
    drop(core.spawn_vital(core.clone().deliver_letters()));
    if let Some(observed) = observed {
        drop(core.io().spawn(metrics::answer_observer(core.clone(), observed)));
    }
    let serve = |inbox: Inbox| (inbox.from, core.spawn_vital(core.clone().answer_letters(inbox)));
    inboxes.into_iter().map(serve).collect()
}

impl FirstSeat {
    /// Runs the first core, and with it the broker: starts, calls `started`, serves until `stop` is done, stops.
    ///
    /// # Errors
    /// Why the broker did not start, then nothing has changed; or why it did not stop cleanly.
    pub async fn run(
        self,
        io: Io,
        started: impl FnOnce(&Started),
        stop: impl Future<Output = ()>,
    ) -> Result<(), BrokerError> {
        let Seat { config, wiring, observed } = self.seat;
        let (core, inboxes) = Core::new(io, config, wiring);
        drop(attend(&core, inboxes, observed));
        started(&start(&core).await?);
        core.set_stage(Stage::Serving);
        stop.await;
        core.set_stage(Stage::Stopping);
        self::stop(&core).await?;
        Ok(())
    }
}

async fn start(core: &Core) -> Result<Started, StartError> {
    let config = core.config();
    let bound = listener::bind(core.io(), &config.listeners).await?;
    if bound.is_empty() {
        return Err(StartError::NoListener);
    }
    let wanted = WantedIdentity { cluster_id: config.cluster_id.clone(), broker_id: config.broker_id };
    DataDir::check_device(core.io(), &config.data_dir, config.engine.device).await?;
    let data_dir = DataDir::open(core.io(), &config.data_dir, &wanted).await?;
    let engine = core.open_engine(&data_dir).await?;
    let listeners: Vec<Listening> = bound.iter().map(|(_, listening)| listening.clone()).collect();
    let (controller, image) = Controller::open(core, &engine, endpoints(&listeners)).await?;
    core.set_controller(controller);
    open_cores(core, &data_dir, &image).await?;
    for (listener, listening) in bound {
        core.accept(listener, listening);
    }
    Ok(Started {
        listeners,
        cluster_id: core.identity().cluster_id.clone(),
        broker_id: core.broker_id().get(),
        topics: image.topics().len(),
        partitions: image.partition_count(),
    })
}

/// Has every core open its logs. Nobody is accepted before all of them can serve.
async fn open_cores(core: &Core, data_dir: &DataDir, image: &Arc<MetadataImage>) -> Result<(), StartError> {
    let mut asked = Vec::new();
    for other in core.others() {
        let request = OpenRequest { data_dir: data_dir.clone(), image: Arc::clone(image) };
        asked.push(core.post(other, request).await);
    }
    core.open_logs(image).await.map_err(StartError::Elsewhere)?;
    for asked in asked {
        asked.answer::<OpenRequest>().await.map_err(StartError::Elsewhere)?;
    }
    Ok(())
}

/// What the cluster's metadata says of where this broker listens.
fn endpoints(listeners: &[Listening]) -> Vec<Endpoint> {
    let endpoint = |listening: &Listening| {
        let (host, port) = listening.endpoint(listening.address);
        Endpoint { listener: listening.name.clone(), host, port }
    };
    listeners.iter().map(endpoint).collect()
}

/// Answers what was taken, flushes, writes the clean state.
async fn stop(core: &Core) -> Result<(), StopError> {
    let patience = core.config().stop_time_max / DRAIN_SHARE;
    for asked in core.post_all(|| DrainRequest { patience }).await {
        asked.answer::<DrainRequest>().await;
    }
    let mut outcome = Ok(());
    for asked in core.post_all(|| CloseRequest).await {
        let closed = asked.answer::<CloseRequest>().await;
        outcome = outcome.and(closed.map_err(StopError));
    }
    outcome
}
