//! The metadata of the cluster: decide, prepare, store, replay, publish.
//!
//! Owns the metadata log and the image that decisions are made on; lives on the first core. Never decides itself
//! ([`heddle_cluster::controller::step`] does), and nobody hears of a decision before the disk has it.
//!
//! ```text
//! commands that wait ──▶ step, one after the other ──▶ every core opens the new logs
//!                        ──▶ one batch in the metadata log, flushed ──▶ every core answers from the new image ──▶ answers
//! ```
//!
//! All commands that wait share one round, so a thousand clients that each want a topic cost a few flushes. A power cut
//! between the first and the second arrow leaves empty logs that no record names; the next start removes them.
//!
//! Now and then, after a round, the image is stored in one piece (`metadata_snapshots.rs`) and the log trimmed below it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;

use heddle_cluster::controller::{Command, Context, Decision, Fault, RegisterBroker, Response, step};
use heddle_cluster::{Endpoint, MetadataImage, MetadataRecord, Snapshot};
use heddle_engine::{AppendOrigin, CleanupPolicy, Engine, FirstBatch, Log, LogConfig, LogName, Piece, ReadLimit};
use heddle_io::sync::{OneshotSender, Semaphore, oneshot};
use heddle_io::{Io, Lease};
use heddle_protocol::ErrorCode;
use heddle_record::{
    BatchBuilder, BatchOptions, Batches, LeaderEpoch, LogId, Offset, PartitionIndex, Timestamp, TopicId,
};

use crate::change::Change;
use crate::core::Core;
use crate::error::StartError;
use crate::metadata_snapshots::MetadataSnapshots;

/// The topic of the metadata log; no client can make one of this name.
const METADATA_TOPIC: &str = "__cluster_metadata";
/// Its id, the same in every cluster, as in Kafka.
const METADATA_TOPIC_ID: TopicId = TopicId::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// The leadership of the one broker over its metadata log.
const METADATA_EPOCH: LeaderEpoch = LeaderEpoch::new(0);
/// Bytes of one read when the log is replayed.
const REPLAY_BYTES: usize = 4 << 20;
/// Commands that one round may decide.
const ROUND_COMMANDS_MAX: usize = 1_024;
/// Records after which a round takes no further command: its batch stays far below what a batch may be.
const ROUND_RECORDS_MAX: usize = 20_000;

/// Records after which the metadata is stored in one piece, or as many as the last snapshot had if these are more: storing
/// costs no more than deciding did.
const SNAPSHOT_RECORDS: u64 = 5_000;

/// What decides about metadata.
pub(crate) struct Controller {
    log: Log,
    engine: Engine,
    snapshots: RefCell<MetadataSnapshots>,
    unsaved: Cell<Unsaved>,
    /// Deleted topics whose files may still be there.
    removed: RefCell<BTreeSet<TopicId>>,
    /// What every core answers from.
    image: RefCell<Arc<MetadataImage>>,
    waiting: RefCell<Vec<Waiting>>,
    /// One round at a time: each is decided on the image that the one before it left.
    turn: Semaphore,
    /// The log failed: what is stored is not known, so nothing is decided any more.
    is_lost: Cell<bool>,
}

/// What a start would have to replay.
#[derive(Clone, Copy, Default)]
struct Unsaved {
    records: u64,
    bytes: u64,
    /// Records of the last snapshot.
    snapshot_records: u64,
}

/// A command, and who wants to hear what became of it.
struct Waiting {
    command: Command,
    answer: OneshotSender<Result<Response, Fault>>,
}

impl Controller {
    /// Replays the metadata log, removes logs that a crash left behind, and registers this run of the broker. Gives the
    /// image to start with, which nobody has been told of.
    ///
    /// # Errors
    /// The log cannot be opened or read, or does not fit together.
    pub(crate) async fn open(
        core: &Core,
        engine: &Engine,
        endpoints: Vec<Endpoint>,
    ) -> Result<(Self, Arc<MetadataImage>), StartError> {
        let id = LogId { topic: METADATA_TOPIC_ID, partition: PartitionIndex::new(0) };
        let name = LogName { topic: METADATA_TOPIC.to_owned(), id };
        let log = engine.open_log(name, log_config()).await?;
        let offsets = log.offsets();
        let stored = offsets.log_start.offset()..=offsets.log_end.offset();
        let (snapshots, snapshot) = MetadataSnapshots::open(core.io(), engine.data_dir(), stored).await?;
        let Replayed { mut image, removed, unsaved } = replay(core.io(), &log, snapshot).await?;
        remove_strays(engine, &image, &removed).await?;
        let registration = RegisterBroker {
            id: core.broker_id(),
            incarnation: core.io().random_bytes16(),
            endpoints,
            rack: core.config().rack.clone(),
        };
        let records = decide(core, &mut image, Command::RegisterBroker(registration)).records;
        let image = Arc::new(image);
        let controller = Self {
            log,
            engine: engine.clone(),
            snapshots: RefCell::new(snapshots),
            unsaved: Cell::new(unsaved),
            removed: RefCell::new(removed),
            image: RefCell::new(Arc::clone(&image)),
            waiting: RefCell::default(),
            turn: Semaphore::new(1),
            is_lost: Cell::new(false),
        };
        controller.store(core.io(), &records).await.map_err(|fault| StartError::Elsewhere(fault.to_string()))?;
        Ok((controller, image))
    }

    /// Decides a command, stores what is decided, and tells every core before the response goes out.
    ///
    /// # Errors
    /// A log could not be opened, or the decision could not be stored: nothing has changed then.
    pub(crate) async fn execute(&self, core: &Core, command: Command) -> Result<Response, Fault> {
        let (answer, receiver) = oneshot();
        self.waiting.borrow_mut().push(Waiting { command, answer });
        // Turns come in the order of the commands and each takes at least the first that waits: by the end of its own
        // turn a command has been decided. Most find that somebody else's turn has done it.
        let turn = self.turn.acquire(1).await;
        let round = self.next_round();
        if !round.is_empty() {
            self.round(core, round).await;
        }
        drop(turn);
        receiver.await.expect("each round answers every command that it takes")
    }

    fn next_round(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let count = waiting.len().min(ROUND_COMMANDS_MAX);
        waiting.drain(..count).collect()
    }

    async fn round(&self, core: &Core, round: Vec<Waiting>) {
        let mut image = MetadataImage::clone(&self.image.borrow());
        let mut records = Vec::new();
        let mut answers = Vec::new();
        let mut round = round.into_iter();
        for waiting in round.by_ref() {
            let decision = decide(core, &mut image, waiting.command);
            records.extend(decision.records);
            answers.push((waiting.answer, decision.response));
            if records.len() >= ROUND_RECORDS_MAX {
                break;
            }
        }
        self.waiting.borrow_mut().splice(..0, round);
        let made = if records.is_empty() { Ok(()) } else { self.make_so(core, image, &records).await };
        for (answer, response) in answers {
            // Who asked may have gone away; what was decided stands.
            let _ = answer.send(made.clone().map(|()| response));
        }
        if self.snapshot_is_due(core) && !self.is_lost.get() {
            let snapshot = self.snapshot(core.io()).await;
            if let Err(error) = snapshot {
                tracing::warn!("the metadata could not be stored in one piece; the next start replays more: {error}");
            }
        }
    }

    /// Opens what is new, stores the records, and has every core answer from the image that they lead to.
    async fn make_so(&self, core: &Core, image: MetadataImage, records: &[MetadataRecord]) -> Result<(), Fault> {
        if self.is_lost.get() {
            return Err(Fault::with(ErrorCode::KafkaStorageError, "the metadata log has failed; see the broker's log"));
        }
        let before = Arc::clone(&self.image.borrow());
        let change = Arc::new(Change::of(Arc::new(image), records));
        let ready = core.prepare(&change).await.map_err(|reason| {
            tracing::error!("topics are not created: {reason}");
            Fault::with(ErrorCode::KafkaStorageError, reason)
        });
        let stored = match ready {
            Ok(()) => self.store(core.io(), records).await,
            Err(fault) => Err(fault),
        };
        match stored {
            Ok(()) => {
                self.image.replace(Arc::clone(change.image()));
                let removed = records.iter().filter_map(removed_topic);
                self.removed.borrow_mut().extend(removed);
                core.publish(&change).await;
                Ok(())
            }
            Err(fault) => {
                // What was opened is dropped again, unless the disk may have the records after all.
                if !self.is_lost.get() {
                    let undone = Arc::new(change.undone(before));
                    if let Err(reason) = core.prepare(&undone).await {
                        tracing::error!("settings may not be what the metadata says: {reason}");
                    }
                    core.publish(&undone).await;
                }
                Err(fault)
            }
        }
    }

    /// Appends records as one batch, so that all of them are there or none, and waits until the disk has them.
    async fn store(&self, io: &Io, records: &[MetadataRecord]) -> Result<(), Fault> {
        let lost = |error: &dyn Display| {
            // A log that the disk refused space is cut back to what is flushed before it goes on.
            let is_refused = self.log.offline().is_some_and(|cause| cause.is_refusal());
            self.is_lost.set(!is_refused);
            match is_refused {
                true => tracing::error!("metadata could not be stored: {error}"),
                false => tracing::error!(
                    "metadata could not be stored, and changes no more; check the disk, then restart: {error}"
                ),
            }
            Fault::with(ErrorCode::KafkaStorageError, error.to_string())
        };
        let batch = encode(records, Timestamp::new(io.wall_clock()));
        let mut unsaved = self.unsaved.get();
        unsaved.records += records.len() as u64;
        unsaved.bytes += batch.len() as u64;
        self.unsaved.set(unsaved);
        let append = self.log.append(Lease::from_vec(batch), AppendOrigin::Broker, METADATA_EPOCH);
        let appended = append.await.map_err(|error| lost(&error))?;
        self.log.flushed(appended.last_offset).await.map_err(|error| lost(&error))?;
        self.log.set_high_watermark(appended.last_offset.next());
        Ok(())
    }
}

impl Controller {
    fn snapshot_is_due(&self, core: &Core) -> bool {
        let unsaved = self.unsaved.get();
        unsaved.records >= SNAPSHOT_RECORDS.max(unsaved.snapshot_records)
            || unsaved.bytes >= core.config().metadata_snapshot_bytes
    }

    /// Stores the image in one piece, and trims the log below the older of the two that there are then.
    async fn snapshot(&self, io: &Io) -> Result<(), Box<dyn std::error::Error>> {
        let mut removed = std::mem::take(&mut *self.removed.borrow_mut());
        if !removed.is_empty() {
            let stored: BTreeSet<TopicId> =
                self.engine.stored_logs().await?.into_iter().map(|name| name.id.topic).collect();
            removed.retain(|topic| stored.contains(topic));
        }
        self.removed.replace(removed.clone());
        let image = MetadataImage::clone(&self.image.borrow());
        let snapshot = Snapshot { image, end_offset: self.log.offsets().log_end.offset(), removed };
        let keep_from = self.store_snapshot(io, &snapshot).await?;
        self.unsaved.set(Unsaved { records: 0, bytes: 0, snapshot_records: snapshot.image.as_records().len() as u64 });
        tracing::debug!(end_offset = snapshot.end_offset.get(), "stored the metadata in one piece");
        if keep_from > self.log.offsets().log_start.offset() {
            self.engine.delete_records_before(&self.log, keep_from).await?;
        }
        Ok(())
    }

    #[expect(clippy::await_holding_refcell_ref, reason = "only the holder of the turn stores snapshots")]
    async fn store_snapshot(&self, io: &Io, snapshot: &Snapshot) -> Result<Offset, heddle_engine::Error> {
        self.snapshots.borrow_mut().store(io, snapshot).await
    }
}

fn removed_topic(record: &MetadataRecord) -> Option<TopicId> {
    if let MetadataRecord::RemoveTopic { id } = record { Some(*id) } else { None }
}

/// Decides one command on `image`, and moves the image on.
fn decide(core: &Core, image: &mut MetadataImage, command: Command) -> Decision {
    let now = Timestamp::new(core.io().wall_clock());
    let context = Context { image, now, broker: core.broker_id(), start: &core.config().settings };
    let decision = step(&context, command);
    for record in &decision.records {
        image.apply(record).expect("a decision fits the image that it was made on");
    }
    decision
}

/// The metadata log is kept whole: nothing expires, nothing is compressed again, every batch is flushed.
fn log_config() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy::Keep,
        retention_age: None,
        max_message_bytes: i32::MAX as u32,
        timestamp_after_max: None,
        uses_reserve: true,
        ..LogConfig::default()
    }
}

fn encode(records: &[MetadataRecord], now: Timestamp) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for record in records {
        builder.push(now, None, Some(&record.encode()), &[]).expect("limits on requests lie below those of a batch");
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).expect("a batch without compression is always built");
    bytes
}

/// What the metadata log says.
struct Replayed {
    image: MetadataImage,
    /// Topics that were deleted, and whose files may still be there.
    removed: BTreeSet<TopicId>,
    unsaved: Unsaved,
}

impl Replayed {
    fn apply(&mut self, bytes: &[u8]) -> Result<(), String> {
        for batch in Batches::new(bytes) {
            let batch = batch.map_err(|error| error.to_string())?;
            for record in batch.records() {
                let record = record.map_err(|error| error.to_string())?;
                let value = record.value.ok_or("a metadata record without a value")?;
                let record = MetadataRecord::decode(value).map_err(|error| error.to_string())?;
                self.image.apply(&record).map_err(|error| error.to_string())?;
                self.removed.extend(removed_topic(&record));
                self.unsaved.records += 1;
            }
        }
        Ok(())
    }
}

/// Applies everything in the log that is not in `snapshot` to it, or to an empty image.
async fn replay(io: &Io, log: &Log, snapshot: Option<Snapshot>) -> Result<Replayed, StartError> {
    let offsets = log.offsets();
    let (start, end) = (offsets.log_start.offset(), offsets.log_end.offset());
    if snapshot.is_none() && start > Offset::ZERO {
        return Err(unreadable(log, start, &"what came before is in heddle.metadata.0 or .1, and neither can be used"));
    }
    let snapshot =
        snapshot.unwrap_or_else(|| Snapshot { image: MetadataImage::default(), end_offset: start, removed: [].into() });
    let mut next = snapshot.end_offset;
    let unsaved = Unsaved { snapshot_records: snapshot.image.as_records().len() as u64, ..Unsaved::default() };
    let mut replayed = Replayed { image: snapshot.image, removed: snapshot.removed, unsaved };
    log.set_high_watermark(offsets.committable_end);
    while next < end {
        let limit = ReadLimit { end, bytes_max: REPLAY_BYTES, first_batch: FirstBatch::AtLeastOne };
        let read = log.read(next, limit).await.map_err(|error| unreadable(log, next, &error))?;
        for piece in read.pieces {
            let bytes = match piece {
                Piece::Memory(bytes) => bytes,
                Piece::File { file, position, len } => {
                    io.read_lease(&file, position, len).await.map_err(heddle_engine::Error::from)?
                }
            };
            replayed.unsaved.bytes += bytes.len() as u64;
            replayed.apply(&bytes).map_err(|reason| unreadable(log, next, &reason))?;
        }
        if read.next_offset <= next {
            return Err(unreadable(log, next, &"the log ends too early"));
        }
        next = read.next_offset;
    }
    replayed.image.check_invariants();
    Ok(replayed)
}

fn unreadable(log: &Log, offset: Offset, reason: &dyn Display) -> StartError {
    StartError::Elsewhere(format!("the metadata log {} cannot be read at offset {offset}: {reason}", log.name()))
}

/// Deletes the logs that a crash left behind: those of deleted topics, and empty ones of topics that no record names.
/// A log with records that no record names is nobody's to delete; it is left alone, loudly.
async fn remove_strays(
    engine: &Engine,
    image: &MetadataImage,
    removed: &BTreeSet<TopicId>,
) -> Result<(), heddle_engine::Error> {
    for name in engine.stored_logs().await? {
        let topic = name.id.topic;
        if topic == METADATA_TOPIC_ID || image.topic(topic).is_some_and(|t| t.partition(name.id.partition).is_some()) {
            continue;
        }
        if removed.contains(&topic) || is_empty(engine, &name).await? {
            tracing::info!(log = %name, "removing what an unfinished creation or deletion left");
            engine.delete_log(&name).await?;
        } else {
            tracing::warn!(log = %name, "no metadata names this log, and it has records: it is left as it is");
        }
    }
    Ok(())
}

async fn is_empty(engine: &Engine, name: &LogName) -> Result<bool, heddle_engine::Error> {
    match engine.open_log(name.clone(), LogConfig::default()).await {
        Ok(log) => Ok(log.offsets().log_end.offset() == Offset::ZERO),
        Err(heddle_engine::Error::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
