//! One partition that this core leads: append, commit, read.
//!
//! Owns the high watermark, the wait for it, and the *only* place that clamps what a reader may see. Never touches a
//! file (the engine does) nor a socket.
//!
//! On a single replica the high watermark follows [`LogOffsets::committable_end`] as it moves: what is flushed, so that
//! nobody reads what a power cut can take back, or what is written where the topic relaxes flushing.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;

use heddle_engine::{
    AppendError, AppendOrigin, Appended, Engine, Error as EngineError, FirstBatch, InvalidRecords, Log, LogConfig,
    LogOffsets, ReadError, ReadLimit, Staging,
};
use heddle_io::{AppendBuffer, Io, Lease, Monotonic};
use heddle_protocol::ErrorCode;
use heddle_record::{HEADER_LEN, HighWatermark, LeaderEpoch, LogStartOffset, Offset, Timestamp};

use crate::core::Core;
use crate::mailbox::CoreIndex;
use crate::message::{
    Accepted, Acks, AppendFault, AppendOutcome, Arm, DeleteBefore, EpochEnd, FoundOffset, Isolation, ReadData,
    ReadEntry, ReadFault, ReadLimits, ReadOutcome, Sought,
};
use crate::record_faults;
use crate::traffic::TopicTraffic;
use crate::waiters::Armed;

/// A partition and its log.
pub(crate) struct Partition {
    log: Log,
    terms: Cell<Terms>,
    /// Long polls that wait for more to read.
    armed: Armed,
    /// Log start and high watermark when polls were woken last.
    told: Cell<(LogStartOffset, HighWatermark)>,
    /// Where the records that come in are counted.
    traffic: RefCell<Rc<TopicTraffic>>,
}

/// A batch that has its place in a log.
pub(crate) struct Placed {
    partition: Rc<Partition>,
    appended: Appended,
}

/// What the metadata image says of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The epoch in which this broker leads.
    pub(crate) leader_epoch: LeaderEpoch,
    /// How many replicas are in sync, this one included.
    pub(crate) in_sync: usize,
    /// How many must be for an append with acks=all.
    pub(crate) in_sync_min: usize,
}

impl Partition {
    /// A partition that leads from now on: everything that its log brought from disk and can commit is committed.
    pub(crate) fn new(core: &Core, log: Log, terms: Terms) -> Rc<Self> {
        log.begin_epoch(terms.leader_epoch);
        let offsets = log.offsets();
        let told = Cell::new((offsets.log_start, offsets.high_watermark));
        let traffic = RefCell::new(core.traffic().of(log.name().id.topic));
        let partition = Rc::new(Self { log, terms: Cell::new(terms), armed: Armed::default(), told, traffic });
        partition.commit(core);
        let (core, followed) = (core.downgrade(), Rc::downgrade(&partition));
        partition.log.follow(move || {
            if let (Some(core), Some(partition)) = (core.upgrade(), followed.upgrade()) {
                partition.commit(&core);
            }
        });
        partition
    }

    /// The partition's log.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Takes over what a new image says.
    pub(crate) fn update(&self, core: &Core, terms: Terms, config: &LogConfig) {
        self.traffic.replace(core.traffic().of(self.log.name().id.topic));
        let before = self.terms.replace(terms);
        if terms.leader_epoch > before.leader_epoch {
            self.log.begin_epoch(terms.leader_epoch);
        }
        if terms.leader_epoch != before.leader_epoch {
            // Whoever sleeps with another epoch is refused from now on.
            self.armed.wake_all(core);
        }
        if *self.log.config() != *config {
            self.log.set_config(config.clone());
        }
    }

    /// Appends a batch and waits until it is as sure as its producer asks.
    pub(crate) async fn append(
        self: Rc<Self>,
        core: Core,
        batch: Lease,
        acks: Acks,
        deadline: Monotonic,
    ) -> AppendOutcome {
        self.place(core.io(), batch, acks, deadline).await?.settle(core.io(), acks, deadline).await
    }

    /// Appends a batch. Batches take their places in the order of first polls.
    pub(crate) async fn place(
        self: &Rc<Self>,
        io: &Io,
        batch: Lease,
        acks: Acks,
        deadline: Monotonic,
    ) -> Result<Placed, AppendFault> {
        let len = batch.len();
        // A disk that hangs holds an append up before it has its offsets, once too much waits to be written.
        let append = |epoch| self.log.append(batch, AppendOrigin::Client, epoch);
        let appended = self.attempt(io, acks, deadline, append).await;
        self.count_produce(len, appended.as_ref().ok());
        Ok(Placed { partition: Rc::clone(self), appended: appended? })
    }

    /// Receives a batch of `len` bytes into its place in the log ([`Log::stage`]), header first.
    pub(crate) async fn stage(
        &self,
        io: &Io,
        header: &[u8; HEADER_LEN],
        len: usize,
        (acks, deadline): (Acks, Monotonic),
        receive: impl FnMut(&mut AppendBuffer, usize) -> Result<usize, heddle_io::Error>,
    ) -> Result<Staging, AppendFault> {
        let stage = |epoch| self.log.stage(header, len, epoch, receive);
        let staging = self.attempt(io, acks, deadline, stage).await;
        if staging.is_err() {
            self.count_produce(len, None);
        }
        staging
    }

    /// Does `work` in the epoch in which this broker leads, if an append is allowed, and within a producer's time if it
    /// waits for an answer.
    async fn attempt<T, F>(
        &self,
        io: &Io,
        acks: Acks,
        deadline: Monotonic,
        work: impl FnOnce(LeaderEpoch) -> F,
    ) -> Result<T, AppendFault>
    where
        F: Future<Output = Result<T, AppendError>>,
    {
        let work = pin!(work(self.terms_for(acks)?.leader_epoch));
        let done = match acks {
            Acks::None => work.await,
            Acks::Leader | Acks::All => in_time(io, deadline, work).await?,
        };
        done.map_err(|error| self.fault(error))
    }

    /// What a batch of `len` bytes was given that was staged, to be waited for.
    pub(crate) fn placed(self: Rc<Self>, appended: Appended, len: usize) -> Placed {
        self.count_produce(len, Some(&appended));
        Placed { partition: self, appended }
    }

    /// Counts a batch of `len` bytes: what it was given, or that it was refused. One that was there already is not counted
    /// in again.
    fn count_produce(&self, len: usize, appended: Option<&Appended>) {
        self.traffic.borrow().count(|counts| {
            counts.produces += 1;
            match appended {
                Some(appended) if !appended.duplicate => {
                    let between = appended.last_offset.distance_from(appended.base_offset);
                    counts.records_in +=
                        between.and_then(|count| u64::try_from(count).ok()).map_or(0, |count| count + 1);
                    counts.bytes_in += len as u64;
                }
                Some(_) => {}
                None => counts.produces_failed += 1,
            }
        });
    }

    /// The terms in force, if they allow an append.
    fn terms_for(&self, acks: Acks) -> Result<Terms, AppendFault> {
        let terms = self.terms.get();
        if acks == Acks::All && terms.in_sync < terms.in_sync_min {
            return Err(AppendFault::new(ErrorCode::NotEnoughReplicas));
        }
        Ok(terms)
    }

    /// Appends a batch of the broker's own, and gives the offset of its last record: it takes its place at the first
    /// poll, and nobody reads it before it is committed.
    pub(crate) async fn append_own(&self, batch: Lease) -> Result<Offset, AppendFault> {
        let terms = self.terms_for(Acks::All)?;
        let len = batch.len();
        let appended = self.log.append(batch, AppendOrigin::Broker, terms.leader_epoch).await;
        self.count_produce(len, appended.as_ref().ok());
        appended.map(|appended| appended.last_offset).map_err(|error| self.fault(error))
    }

    /// Waits until a record of the broker's own is committed, however long that takes.
    pub(crate) async fn settled(&self, last_offset: Offset) -> Result<(), AppendFault> {
        self.log.committable(last_offset).await.map_err(storage_fault)
    }

    /// Moves the high watermark as far as it may go, and tells whoever waits that it moved, or the log's start did.
    fn commit(&self, core: &Core) {
        let mut offsets = self.log.offsets();
        if offsets.committable_end > offsets.high_watermark.offset() {
            self.log.set_high_watermark(offsets.committable_end);
            offsets = self.log.offsets();
        }
        let limits = (offsets.log_start, offsets.high_watermark);
        if self.told.replace(limits) != limits {
            self.armed.wake_all(core);
        }
    }

    /// Forgets a wake-up.
    pub(crate) fn disarm(&self, core: CoreIndex, poll: u64, slot: usize) {
        self.armed.disarm(core, poll, slot);
    }

    /// Reads what `isolation` lets a reader see, at most `bytes_max` bytes, and arms a poll for what comes later.
    pub(crate) async fn read(
        &self,
        core: &Core,
        entry: &ReadEntry,
        isolation: Isolation,
        bytes_max: usize,
        first_batch: FirstBatch,
        arm: Arm,
    ) -> ReadOutcome {
        self.check_epoch(entry.current_leader_epoch)?;
        let offsets = self.log.offsets();
        let limits = limits(&offsets);
        if entry.from < offsets.log_start.offset() || entry.from > offsets.log_end.offset() {
            return Err(ErrorCode::OffsetOutOfRange.into());
        }
        if let Some(diverging) = self.divergence(entry)? {
            return Ok(ReadData { limits, pieces: Vec::new(), bytes: 0, diverging: Some(diverging) });
        }
        let end = limits.readable_end(isolation);
        match arm {
            Arm::Always(poll) => self.armed.arm(poll, entry.slot, core.io().now()),
            Arm::AtEnd(poll) if entry.from >= end => self.armed.arm(poll, entry.slot, core.io().now()),
            Arm::AtEnd(_) | Arm::Never => {}
        }
        // A reader that asks for no bytes at all gets a batch, too.
        if entry.from >= end || bytes_max == 0 && first_batch == FirstBatch::WithinLimit {
            return Ok(ReadData { limits, pieces: Vec::new(), bytes: 0, diverging: None });
        }
        let read = self.log.read(entry.from, ReadLimit { end, bytes_max, first_batch }).await;
        match read {
            Ok(read) => Ok(ReadData { limits, bytes: read.bytes, pieces: read.pieces, diverging: None }),
            Err(ReadError::OutOfRange { .. }) => Err(ErrorCode::OffsetOutOfRange.into()),
            Err(ReadError::Failed(error)) => {
                // A client that reads on would have the same line written again and again.
                match &error {
                    EngineError::Damaged { .. } | EngineError::Offline(_) => {
                        tracing::debug!(log = %self.log.name(), "a read failed, as was told before: {error}");
                    }
                    _ => tracing::error!(log = %self.log.name(), "a read failed: {error}"),
                }
                Err(ErrorCode::KafkaStorageError.into())
            }
        }
    }

    /// Where the reader's history leaves this log's (KIP-595): it has records of an epoch that ended before them.
    fn divergence(&self, entry: &ReadEntry) -> Result<Option<EpochEnd>, ReadFault> {
        let Some(last_fetched) = entry.last_fetched_epoch else { return Ok(None) };
        let Some(end) = self.log.epoch_end_offset(last_fetched) else {
            return Err(ErrorCode::OffsetOutOfRange.into());
        };
        let diverges = end.epoch < last_fetched || end.end_offset < entry.from;
        Ok(diverges.then_some(EpochEnd { epoch: Some(end.epoch), end: Some(end.end_offset) }))
    }

    /// Finds an offset that a reader with `isolation` may see.
    pub(crate) async fn list_offset(
        &self,
        sought: Sought,
        current: Option<LeaderEpoch>,
        isolation: Isolation,
    ) -> Result<FoundOffset, ErrorCode> {
        self.check_epoch(current)?;
        let offsets = self.log.offsets();
        let end = limits(&offsets).readable_end(isolation);
        let at = |offset: Offset, timestamp| FoundOffset {
            offset: Some(offset),
            timestamp,
            leader_epoch: self.log.epoch_at(offset).or_else(|| self.log.latest_epoch()),
        };
        let nothing = FoundOffset { offset: None, timestamp: Timestamp::NONE, leader_epoch: None };
        let found = match sought {
            Sought::Earliest => return Ok(at(offsets.log_start.offset(), Timestamp::NONE)),
            Sought::Latest => return Ok(at(end, Timestamp::NONE)),
            Sought::Tiered => return Ok(nothing),
            Sought::MaxTimestamp => self.log.max_timestamp().await,
            Sought::AtOrAfter(timestamp) => self.log.offset_for_timestamp(timestamp).await,
        };
        match found {
            Ok(found) => Ok(found.filter(|it| it.offset < end).map_or(nothing, |it| at(it.offset, it.timestamp))),
            Err(error) => {
                tracing::error!(log = %self.log.name(), "an offset could not be found: {error}");
                Err(ErrorCode::KafkaStorageError)
            }
        }
    }

    /// Drops what lies before an offset; gives the new log start offset, which survives a power cut.
    pub(crate) async fn delete_records(
        &self,
        engine: &Engine,
        before: DeleteBefore,
    ) -> Result<LogStartOffset, ErrorCode> {
        if !self.log.config().cleanup_policy.deletes() {
            return Err(ErrorCode::PolicyViolation);
        }
        let offset = match before {
            DeleteBefore::HighWatermark => self.log.offsets().high_watermark.offset(),
            DeleteBefore::Offset(offset) if offset < Offset::ZERO => return Err(ErrorCode::OffsetOutOfRange),
            DeleteBefore::Offset(offset) => offset,
        };
        let result = engine.delete_records_before(&self.log, offset).await;
        result.map_err(|error| match error {
            ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            ReadError::Failed(error) => {
                tracing::error!(log = %self.log.name(), "records could not be deleted: {error}");
                ErrorCode::KafkaStorageError
            }
        })
    }

    /// Where a leader epoch ends in this log.
    pub(crate) fn epoch_end(&self, epoch: LeaderEpoch, current: Option<LeaderEpoch>) -> Result<EpochEnd, ErrorCode> {
        self.check_epoch(current)?;
        let end = self.log.epoch_end_offset(epoch);
        Ok(EpochEnd { epoch: end.map(|end| end.epoch), end: end.map(|end| end.end_offset) })
    }

    /// Wakes whoever waits: the partition is about to go, or to be closed.
    pub(crate) fn dismiss(&self, core: &Core) {
        self.armed.wake_all(core);
    }

    /// Refuses a client whose epoch is not this leader's (KIP-320).
    fn check_epoch(&self, current: Option<LeaderEpoch>) -> Result<(), ErrorCode> {
        let own = self.terms.get().leader_epoch;
        match current {
            Some(epoch) if epoch < own => Err(ErrorCode::FencedLeaderEpoch),
            Some(epoch) if epoch > own => Err(ErrorCode::UnknownLeaderEpoch),
            _ => Ok(()),
        }
    }

    /// What a producer is told of an append that was refused.
    fn fault(&self, error: AppendError) -> AppendFault {
        let code = match &error {
            AppendError::NotOneBatch(_) | AppendError::InvalidRecord { .. } => ErrorCode::InvalidRecord,
            AppendError::Corrupt(_) => ErrorCode::CorruptMessage,
            AppendError::UnsupportedFormat(_) => ErrorCode::UnsupportedForMessageFormat,
            AppendError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            AppendError::LargerThanSegment { .. } => ErrorCode::RecordListTooLarge,
            AppendError::InvalidRecords(invalid) => return self.record_faults(invalid),
            AppendError::UnsupportedCompression => ErrorCode::UnsupportedCompressionType,
            AppendError::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
            AppendError::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
            AppendError::InvalidTxnState => ErrorCode::InvalidTxnState,
            AppendError::StaleLeaderEpoch => ErrorCode::NotLeaderOrFollower,
            AppendError::NotContiguous { .. } => ErrorCode::UnknownServerError,
            AppendError::Offline(_) => ErrorCode::KafkaStorageError,
        };
        // Kafka tells where the log starts of what it has held against the log.
        use AppendError::{Corrupt, LargerThanSegment, NotOneBatch, TooLarge, UnsupportedFormat};
        let unread = matches!(
            error,
            NotOneBatch(_) | Corrupt(_) | TooLarge { .. } | LargerThanSegment { .. } | UnsupportedFormat(_)
        );
        let log_start_offset = Some(self.log.offsets().log_start).filter(|_| !unread);
        AppendFault { error: code, message: Some(error.to_string()), records: Vec::new(), log_start_offset }
    }

    /// What a producer is told of records that the topic does not take.
    fn record_faults(&self, invalid: &InvalidRecords) -> AppendFault {
        let name = self.log.name();
        let records = record_faults::records(invalid, format_args!("{}-{}", name.topic, name.id.partition));
        let error = if invalid.untimely { ErrorCode::InvalidTimestamp } else { ErrorCode::InvalidRecord };
        let message = Some(record_faults::summary(invalid, &records));
        AppendFault { error, message, records, log_start_offset: Some(self.log.offsets().log_start) }
    }
}

/// What comes of `future` before `deadline`; else REQUEST_TIMED_OUT.
async fn in_time<F: Future>(io: &Io, deadline: Monotonic, future: F) -> Result<F::Output, AppendFault> {
    io.timeout_at(deadline, future).await.map_err(|_elapsed| AppendFault::new(ErrorCode::RequestTimedOut))
}

impl Placed {
    /// Waits until the batch is as sure as its producer asks.
    pub(crate) async fn settle(&self, io: &Io, acks: Acks, deadline: Monotonic) -> AppendOutcome {
        let (log, last_offset) = (&self.partition.log, self.appended.last_offset);
        let settled = match acks {
            Acks::All => in_time(io, deadline, pin!(log.committable(last_offset))).await?,
            Acks::Leader => in_time(io, deadline, pin!(log.written(last_offset))).await?,
            Acks::None => Ok(()),
        };
        settled.map_err(storage_fault)?;
        Ok(Accepted {
            base_offset: self.appended.base_offset,
            log_append_time: self.appended.log_append_time,
            log_start_offset: self.appended.log_start,
        })
    }
}

fn storage_fault(error: heddle_engine::Error) -> AppendFault {
    AppendFault::with_message(ErrorCode::KafkaStorageError, error.to_string())
}

fn limits(offsets: &LogOffsets) -> ReadLimits {
    ReadLimits {
        log_start_offset: offsets.log_start,
        last_stable_offset: offsets.last_stable,
        high_watermark: offsets.high_watermark,
    }
}
