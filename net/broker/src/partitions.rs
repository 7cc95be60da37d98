//! The partitions that one core owns, and what other cores ask of them.
//!
//! Owns the list, and opens and drops logs as the metadata image says. Never decides what a partition answers.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use heddle_cluster::MetadataImage;
use heddle_engine::producer_state::Producer;
use heddle_engine::{DataDir, Engine, FirstBatch, LogConfig, LogName, LogStatistics, Statistics};
use heddle_io::Task;
use heddle_protocol::ErrorCode;
use heddle_record::{LogId, LogStartOffset, PartitionIndex, ProducerId};

use crate::change::Change;
use crate::concurrently;
use crate::core::Core;
use crate::guard;
use crate::message::{
    AppendFault, AppendOutcome, AppendRequest, DeleteRecordsRequest, DisarmRequest, EpochEnd, EpochEndsRequest,
    FoundOffset, ListOffsetsRequest, ProducersRequest, ReadOutcome, ReadRequest, SizesRequest,
};
use crate::partition::{Partition, Terms};
use crate::topic_settings;

/// Logs that are opened at the same time: those that a start looks at share flushes of what it finds, and nearly all of them
/// wait for such a flush, with no file open.
const OPENED_AT_ONCE: usize = 1024;
/// Logs that are deleted at the same time: they share flushes of directories.
const DELETED_AT_ONCE: usize = 256;

/// A partition, or why it is not served.
type Opened = Result<Rc<Partition>, Closed>;

/// One core's partitions.
#[derive(Default)]
pub(crate) struct Partitions {
    engine: OnceCell<Engine>,
    open: RefCell<BTreeMap<LogId, Opened>>,
}

/// A partition that is not served.
#[derive(Debug, Clone)]
struct Closed {
    /// Whose files stay as they are, until the topic is deleted.
    name: LogName,
    error: ErrorCode,
}

impl Partitions {
    /// Sets the engine that logs are opened with, once.
    pub(crate) fn start(&self, engine: Engine) {
        assert!(self.engine.set(engine).is_ok(), "a core opens its engine once");
    }

    /// The core's engine, which opens before any partition.
    fn open_engine(&self) -> &Engine {
        self.engine.get().expect("the engine opens before any log")
    }

    /// Has logs compacted as the settings of `image` say.
    pub(crate) fn follow_cleaner(&self, core: &Core, image: &MetadataImage) {
        let cores = core.others().count() + 1;
        self.open_engine().set_cleaner(topic_settings::cleaner(
            image,
            core.broker_id(),
            &core.config().settings,
            cores,
        ));
    }

    /// A partition of this core, or why it is not served.
    pub(crate) fn find(&self, log: LogId) -> Result<Rc<Partition>, ErrorCode> {
        match self.open.borrow().get(&log) {
            Some(Ok(partition)) => Ok(Rc::clone(partition)),
            Some(Err(closed)) => Err(closed.error),
            None => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }

    /// Appends to each log that is named. Every append takes its place before this first waits.
    pub(crate) async fn append(&self, core: &Core, request: AppendRequest) -> Vec<AppendOutcome> {
        let (acks, deadline) = (request.acks, request.deadline);
        let appends = request.entries.into_iter().map(|entry| {
            let partition = self.find(entry.log);
            let core = core.clone();
            async move { partition.map_err(AppendFault::new)?.append(core, entry.batch, acks, deadline).await }
        });
        concurrently::all(appends).await
    }

    /// Reads each log that is named, one after the other, until the bytes are used up.
    pub(crate) async fn read(&self, core: &Core, request: ReadRequest) -> Vec<ReadOutcome> {
        let mut outcomes = Vec::with_capacity(request.entries.len());
        let mut bytes_left = request.bytes_max;
        let mut first_batch = request.first_batch;
        for entry in &request.entries {
            let bytes_max = entry.bytes_max.min(bytes_left);
            let outcome = match self.find(entry.log) {
                Ok(partition) => {
                    partition.read(core, entry, request.isolation, bytes_max, first_batch, request.arm).await
                }
                Err(error) => Err(error.into()),
            };
            if let Ok(data) = &outcome
                && data.bytes > 0
            {
                bytes_left = bytes_left.saturating_sub(data.bytes);
                first_batch = FirstBatch::WithinLimit;
            }
            outcomes.push(outcome);
        }
        outcomes
    }

    pub(crate) async fn list_offsets(&self, request: ListOffsetsRequest) -> Vec<Result<FoundOffset, ErrorCode>> {
        let mut outcomes = Vec::with_capacity(request.entries.len());
        for question in &request.entries {
            outcomes.push(match self.find(question.log) {
                Ok(partition) => {
                    let current = question.current_leader_epoch;
                    partition.list_offset(question.sought, current, request.isolation).await
                }
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    pub(crate) async fn delete_records(&self, request: DeleteRecordsRequest) -> Vec<Result<LogStartOffset, ErrorCode>> {
        let mut outcomes = Vec::with_capacity(request.entries.len());
        for (log, before) in request.entries {
            outcomes.push(match self.find(log) {
                Ok(partition) => partition.delete_records(self.open_engine(), before).await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    /// Forgets wake-ups; partitions that are gone have forgotten theirs.
    pub(crate) fn disarm(&self, request: &DisarmRequest) {
        let open = self.open.borrow();
        for (log, slot) in &request.entries {
            if let Some(Ok(partition)) = open.get(log) {
                partition.disarm(request.core, request.poll, *slot);
            }
        }
    }

    pub(crate) fn epoch_ends(&self, request: &EpochEndsRequest) -> Vec<Result<EpochEnd, ErrorCode>> {
        let end = |question: &crate::message::EpochQuestion| {
            self.find(question.log)?.epoch_end(question.epoch, question.current_leader_epoch)
        };
        request.entries.iter().map(end).collect()
    }

    pub(crate) fn producers(&self, request: &ProducersRequest) -> Vec<Result<Vec<(ProducerId, Producer)>, ErrorCode>> {
        request.logs.iter().map(|log| Ok(self.find(*log)?.log().producers())).collect()
    }

    pub(crate) fn sizes(&self, request: &SizesRequest) -> Vec<Result<u64, ErrorCode>> {
        request.logs.iter().map(|log| Ok(self.find(*log)?.log().size_bytes())).collect()
    }

    /// The logs that are open here, `count` at most of those behind `after`, in the order of ids.
    pub(crate) fn logs_after(&self, after: Option<LogId>, count: usize) -> Vec<(LogId, LogStatistics)> {
        let open = self.open.borrow();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let served =
            open.range((start, Bound::Unbounded)).filter_map(|(log, opened)| Some((log, opened.as_ref().ok()?)));
        served.take(count).map(|(log, partition)| (*log, partition.log().statistics())).collect()
    }

    /// Partitions that are not served because their logs are damaged.
    pub(crate) fn closed(&self) -> usize {
        self.open.borrow().values().filter(|opened| opened.is_err()).count()
    }

    /// What this core's engine has done and has, once it is open.
    pub(crate) fn statistics(&self) -> Option<Statistics> {
        self.engine.get().map(Engine::statistics)
    }

    /// The data directory, once it is open.
    pub(crate) fn open_data_dir(&self) -> Option<&DataDir> {
        self.engine.get().map(Engine::data_dir)
    }

    /// Forgets producers that were silent for this long, from now on.
    pub(crate) fn set_producer_id_expiration(&self, expiration: Duration) {
        self.open_engine().set_producer_id_expiration(expiration);
    }

    /// Where all logs are, from the root of the file system, and whether that directory is offline.
    pub(crate) fn data_dir(&self) -> (PathBuf, bool) {
        let dir = self.open_engine().data_dir();
        let path = std::path::absolute(dir.path()).unwrap_or_else(|_| dir.path().to_owned());
        (path, dir.is_offline())
    }
}

impl Partitions {
    /// Opens the logs of this core that `change` brings, and takes over what it says of those that are open. Costs what
    /// changed, not what there is.
    ///
    /// # Errors
    /// A log could not be opened for want of space, descriptors or permission, in words. A log that is damaged is no
    /// error: it stays closed, and its partition answers so.
    pub(crate) async fn open(&self, core: &Core, change: &Change) -> Result<(), String> {
        let engine = self.open_engine();
        let mut opening = Opening::default();
        'topics: for topic in change.topics() {
            core.traffic().learn(topic.id);
            let settings = topic_settings::of(change.image(), core.broker_id(), &core.config().settings, topic);
            for (index, state) in (0..).zip(&topic.partitions) {
                let log = LogId { topic: topic.id, partition: PartitionIndex::new(index) };
                if core.owner(log) != core.index() || !state.replicas.contains(&core.broker_id()) {
                    continue;
                }
                let terms = Terms {
                    leader_epoch: state.leader_epoch,
                    in_sync: state.in_sync_replicas.len(),
                    in_sync_min: settings.in_sync_min,
                };
                let known = self.open.borrow().get(&log).cloned();
                match known {
                    Some(Ok(partition)) => partition.update(core, terms, &settings.log),
                    Some(Err(_)) => {}
                    None => {
                        let name = LogName { topic: topic.name.to_string(), id: log };
                        let opened = open_log(core.clone(), engine.clone(), name, settings.log.clone(), terms);
                        opening.tasks.push_back((log, core.io().spawn(guard::vital(opened))));
                        opening.wait_for(self, OPENED_AT_ONCE - 1).await;
                        if opening.outcome.is_err() {
                            break 'topics;
                        }
                    }
                }
            }
        }
        opening.wait_for(self, 0).await;
        opening.outcome
    }

    /// Drops the partitions that are gone with `change`, and deletes their logs, damaged ones too.
    pub(crate) async fn drop_gone(&self, core: &Core, change: &Change) {
        change
            .shrunk()
            .filter(|topic| change.image().topic(*topic).is_none())
            .for_each(|topic| core.traffic().forget(topic));
        let mut deleting = VecDeque::new();
        for log in self.gone(change) {
            let removed = self.open.borrow_mut().remove(&log);
            let name = match removed {
                Some(Ok(partition)) => {
                    partition.dismiss(core);
                    partition.log().name().clone()
                }
                Some(Err(closed)) => closed.name,
                None => continue,
            };
            deleting.push_back(core.io().spawn(guard::vital(delete_log(self.open_engine().clone(), name))));
            if deleting.len() == DELETED_AT_ONCE {
                deleting.pop_front().expect("some are being deleted").await;
            }
        }
        for deleted in deleting {
            deleted.await;
        }
    }

    fn gone(&self, change: &Change) -> Vec<LogId> {
        let open = self.open.borrow();
        let known = |topic| {
            let log = |partition| LogId { topic, partition: PartitionIndex::new(partition) };
            open.range(log(0)..=log(i32::MAX)).map(|(log, _)| *log)
        };
        let is_gone = |log: &LogId| {
            let topic = change.image().topic(log.topic);
            topic.is_none_or(|topic| topic.partition(log.partition).is_none())
        };
        change.shrunk().flat_map(known).filter(is_gone).collect()
    }

    /// Flushes and closes every log.
    ///
    /// # Errors
    /// What could not be flushed, in words.
    pub(crate) async fn close(&self, core: &Core) -> Result<(), String> {
        for partition in std::mem::take(&mut *self.open.borrow_mut()).into_values().flatten() {
            partition.dismiss(core);
        }
        match self.engine.get() {
            Some(engine) => engine.close().await.map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// Logs that are being opened, oldest first.
struct Opening {
    tasks: VecDeque<(LogId, Task<Result<Opened, String>>)>,
    /// The first that failed.
    outcome: Result<(), String>,
}

impl Default for Opening {
    fn default() -> Self {
        Self { tasks: VecDeque::new(), outcome: Ok(()) }
    }
}

impl Opening {
    /// Waits until at most `left` are being opened, and lists those that are open.
    async fn wait_for(&mut self, partitions: &Partitions, left: usize) {
        while self.tasks.len() > left {
            let (log, task) = self.tasks.pop_front().expect("there are more than none");
            match task.await {
                Ok(opened) => {
                    partitions.open.borrow_mut().insert(log, opened);
                }
                Err(reason) => self.outcome = std::mem::replace(&mut self.outcome, Ok(())).and(Err(reason)),
            }
        }
    }
}

async fn delete_log(engine: Engine, name: LogName) {
    if let Err(error) = engine.delete_log(&name).await {
        tracing::error!(log = %name, "a deleted topic's log could not be removed: {error}");
    }
}

/// Opens one log. Damage closes the partition, not the broker.
async fn open_log(
    core: Core,
    engine: Engine,
    name: LogName,
    config: LogConfig,
    terms: Terms,
) -> Result<Opened, String> {
    match engine.open_log(name.clone(), config).await {
        Ok(log) => Ok(Ok(Partition::new(&core, log, terms))),
        Err(error @ heddle_engine::Error::Damaged { .. }) => {
            tracing::error!(log = %name, "partition is offline: {error}");
            Ok(Err(Closed { name, error: ErrorCode::KafkaStorageError }))
        }
        Err(error) => Err(error.to_string()),
    }
}
