//! What one core tells of itself.
//!
//! Owns the copy that leaves the core, and how it is made: in slices, between which everything else has its turn. Whoever
//! asks waits a little longer instead. Changes nothing on the core.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::MetadataImage;
use heddle_engine::{LogStatistics, Statistics};
use heddle_io::{Counters, DiskSpace, Load, Task};
use heddle_record::LogId;

use super::Stage;
use super::observer::{Answer, Observed, Question};
use crate::coordinator::GroupsSample;
use crate::core::Core;
use crate::fetch_sessions::FetchSessionsSample;
use crate::mailbox::FIRST_CORE;
use crate::requests::ApiSample;
use crate::sessions::FAREWELLS;
use crate::traffic::TrafficSample;

/// Logs that are looked at before others have their turn.
const LOGS_PER_SLICE: usize = 128;
/// How long the disk may take to say how full it is. One that hangs is not asked again meanwhile.
const SPACE_TIME_MAX: Duration = Duration::from_millis(200);

/// Whether a core answers, and what the first one knows of the whole broker.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    /// On the first core.
    pub(super) stage: Stage,
    /// Why the data directory is offline, if it is.
    pub(super) offline: Option<String>,
}

/// One core, at a moment.
#[derive(Debug)]
pub(super) struct CoreSample {
    pub(super) pulse: Pulse,
    pub(super) load: Load,
    pub(super) kernel: Counters,
    pub(super) tasks: usize,
    pub(super) requests: Vec<ApiSample>,
    pub(super) traffic: TrafficSample,
    /// Every log that is open, in the order of ids.
    pub(super) logs: Vec<(LogId, LogStatistics)>,
    /// Partitions that are not served because their logs are damaged.
    pub(super) closed: usize,
    pub(super) engine: Option<Statistics>,
    /// Open connections by listener.
    pub(super) connections: BTreeMap<String, usize>,
    /// Connections that ended, in the order of [`FAREWELLS`].
    pub(super) farewells: [u64; FAREWELLS.len()],
    pub(super) fetch_sessions: FetchSessionsSample,
    pub(super) groups: GroupsSample,
    /// On the first core.
    pub(super) broker: Option<BrokerSample>,
}

/// What the first core knows of the whole broker.
#[derive(Debug)]
pub(super) struct BrokerSample {
    pub(super) image: Arc<MetadataImage>,
    /// The cluster's and the broker's id, once the data directory is open.
    pub(super) identity: Option<(String, i32)>,
    /// Connections that were accepted, and that were turned away.
    pub(super) admitted: u64,
    pub(super) turned_away: u64,
    /// Of the data directory, once it is open.
    pub(super) disk: Option<DiskSample>,
}

/// The disk that the data directory is on.
#[derive(Debug)]
pub(super) struct DiskSample {
    /// What it said last.
    pub(super) space: Option<DiskSpace>,
    pub(super) has_reserve: bool,
    pub(super) is_short: bool,
}

/// Answers the thread that observes this core, until either is gone. A panic costs the answer and nothing else.
pub(crate) async fn answer_observer(core: Core, mut observed: Observed) {
    let mut disk = Disk::default();
    while let Some(question) = observed.questions.recv().await {
        let answer = async {
            match question {
                Question::Pulse => Answer::Pulse(pulse(&core)),
                Question::Everything => Answer::Everything(Box::new(everything(&core, &mut disk).await)),
            }
        };
        match core.io().catch_panic(answer).await {
            Ok(answer) => {
                // One question is open at a time, so there is room; whoever asked may be gone.
                let _ = observed.answers.try_send(answer);
                observed.answers.flush_wakeups();
            }
            Err(panicked) => tracing::error!("the metrics of a core could not be gathered: {panicked}"),
        }
    }
}

fn pulse(core: &Core) -> Pulse {
    let offline = core.partitions().open_data_dir().and_then(|dir| dir.offline_error());
    Pulse { stage: core.stage(), offline: offline.map(|error| error.to_string()) }
}

async fn everything(core: &Core, disk: &mut Disk) -> CoreSample {
    let mut logs = Vec::new();
    loop {
        let slice = core.partitions().logs_after(logs.last().map(|(log, _)| *log), LOGS_PER_SLICE);
        let is_last = slice.len() < LOGS_PER_SLICE;
        logs.extend(slice);
        core.io().yield_now().await;
        if is_last {
            break;
        }
    }
    let mut connections = core.sessions().by_listener();
    for listener in &core.config().listeners {
        // What nobody is connected to shows as well.
        connections.entry(listener.name.clone()).or_default();
    }
    let groups = core.coordinators().sample(core, core.config().metrics.group_partitions_max).await;
    let broker = if core.index() == FIRST_CORE { Some(broker(core, disk).await) } else { None };
    CoreSample {
        pulse: pulse(core),
        load: core.io().load(),
        kernel: core.io().counters(),
        tasks: core.io().tasks(),
        requests: core.requests().sample(),
        traffic: core.traffic().sample(),
        logs,
        closed: core.partitions().closed(),
        engine: core.partitions().statistics(),
        connections,
        farewells: core.sessions().farewells(),
        fetch_sessions: core.fetch_sessions().sample(),
        groups,
        broker,
    }
}

async fn broker(core: &Core, disk: &mut Disk) -> BrokerSample {
    let mut sample = BrokerSample {
        image: core.image(),
        identity: None,
        admitted: core.admission().admitted(),
        turned_away: core.admission().turned_away(),
        disk: None,
    };
    if let Some(dir) = core.partitions().open_data_dir() {
        sample.identity = Some((core.identity().cluster_id.clone(), core.broker_id().get()));
        let (has_reserve, is_short) = (dir.has_reserve(), dir.is_short());
        disk.look(core, dir.path().to_owned()).await;
        sample.disk = Some(DiskSample { space: disk.space, has_reserve, is_short });
    }
    sample
}

/// How full the disk is, which it may take its time to say.
#[derive(Default)]
struct Disk {
    /// A question that is open.
    asked: Option<Task<Option<DiskSpace>>>,
    /// What it said last.
    space: Option<DiskSpace>,
}

impl Disk {
    async fn look(&mut self, core: &Core, path: PathBuf) {
        let mut asked = self.asked.take().unwrap_or_else(|| {
            let io = core.io().clone();
            core.io().spawn(async move { io.disk_space(&path).await.ok() })
        });
        match core.io().timeout(SPACE_TIME_MAX, &mut asked).await {
            Ok(space) => self.space = space,
            Err(_elapsed) => self.asked = Some(asked),
        }
    }
}
