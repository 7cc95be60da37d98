//! One partition's log: the append, from a batch in memory to its place and its offsets.
//!
//! [`Log::append`] is the story, top to bottom. What follows an append runs in tasks of its own: `segment.rs` writes
//! what is queued, `flush.rs` makes it durable and wakes who waits for that. Reading is in `read.rs` and `times.rs`, removing in
//! `retention.rs`, a log that comes back from disk in `recovery.rs`.
//!
//! No borrow of the state lives across an await.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use heddle_io::sync::{Notify, Permits, Semaphore};
use heddle_io::{File, Io, Lease, Monotonic, OpenOptions};
use heddle_record::{
    BatchHeader, HEADER_LEN, LeaderEpoch, LogStartOffset, Offset, Origin, ProducerId, RecordBatch, Timestamp,
    TimestampType, validate,
};

use crate::admission::{Admitted, NotAdmitted, admit};
use crate::compaction::Compaction;
use crate::config::LogConfig;
use crate::engine::Core;
use crate::epoch_cache::EpochEnd;
use crate::error::{AppendError, Error};
use crate::files::FileKey;
use crate::layout::{LogName, SegmentFile};
use crate::opening::Effort;
use crate::producer_state::{AppendedBatch, Producer};
use crate::state::{LogOffsets, LogState};

pub use crate::admission::AppendOrigin;

/// One partition's log. Clones share it; it stays on its core.
#[derive(Clone)]
pub struct Log {
    pub(crate) inner: Rc<LogInner>,
}

pub(crate) struct LogInner {
    pub(crate) core: Rc<Core>,
    pub(crate) name: LogName,
    /// The log's directory.
    pub(crate) path: PathBuf,
    pub(crate) config: RefCell<Rc<LogConfig>>,
    pub(crate) state: RefCell<LogState>,
    /// Told whenever a limit moves or the log goes offline.
    pub(crate) changed: Notify,
    /// Called before `changed` is told.
    follower: RefCell<Option<Follower>>,
    /// Appends pass one at a time, in the order in which they came.
    turn: Semaphore,
    /// One task at a time changes the index files.
    pub(crate) index_turn: Semaphore,
    /// Whoever looks up positions in segments has one of [`READERS_MAX`]; who replaces segments has all.
    pub(crate) readers: Semaphore,
    pub(crate) compaction: Compaction,
    /// When the last write was done.
    pub(crate) written_at: Cell<Monotonic>,
    /// The upkeep looks whether the log is idle.
    pub(crate) is_watched: Cell<bool>,
}

/// Look-ups in a log that may be under way at the same time.
pub(crate) const READERS_MAX: usize = 1 << 30;

/// What [`Log::follow`] was given.
type Follower = Rc<dyn Fn()>;

/// What an append was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The offset of the batch's first record.
    pub base_offset: Offset,
    /// The offset of its last record: what [`Log::flushed`] and its like are asked for.
    pub last_offset: Offset,
    /// The time that the log gave the records; -1 where the topic keeps the producer's.
    pub log_append_time: Timestamp,
    /// Where the log starts.
    pub log_start: LogStartOffset,
    /// The batch was there already: these are the original's offsets, and it is durable when they are.
    pub duplicate: bool,
}

impl Log {
    /// Appends one batch. Resolves as soon as it has its offsets; [`Log::written`], [`Log::flushed`] and
    /// [`Log::committable`] then say when it is where. Appends that wait for room keep their order, so the order of
    /// first polls is the order of offsets.
    ///
    /// # Errors
    /// [`AppendError`]; nothing has changed then.
    pub async fn append(
        &self,
        batch: Lease,
        origin: AppendOrigin,
        leader_epoch: LeaderEpoch,
    ) -> Result<Appended, AppendError> {
        let log = &self.inner;
        let config = self.config();
        let now = Timestamp::new(log.core.io.wall_clock());

        // Validate: everything that depends on the batch alone. Wait for our turn, and for room in the queue.
        let opened_max = log.core.config.decompressed_bytes_max;
        let (mut batch, body, _turn) = match admit(&batch, origin, &config, now, opened_max, Effort::Little) {
            Ok((admitted, body)) => {
                let turn = log.turn(admitted.len()).await.map_err(AppendError::Offline)?;
                (admitted, body, turn)
            }
            Err(NotAdmitted::TakesLong) => Box::pin(log.admit_elsewhere(batch, origin, &config, now)).await?,
            Err(NotAdmitted::Refused(error)) => return Err(error),
        };
        let mut state = log.state.borrow_mut();

        // Check the producer's sequence; what was appended before is answered, not appended.
        if let Some(original) = state.precedent(&batch, leader_epoch)? {
            return Ok(original);
        }

        // Assign offsets, epoch and time.
        let base_offset = state.log_end;
        let log_append_time = log_append_time(origin, &config, now);
        let header = batch.complete(base_offset, leader_epoch, log_append_time);

        // Roll before the append that would overflow the segment; take the bytes in.
        state.roll_if_due(batch.len() as u64, header.last_offset(), now, &config, log.name.id);
        let bytes = log.take_in(&mut state, batch.header.bytes(), &body);
        drop(state);
        Ok(log.enter(&header, batch.len(), bytes, log_append_time, now))
    }

    /// Appends batches that a leader has given their offsets and epochs. All of them or none.
    ///
    /// # Errors
    /// [`AppendError::NotContiguous`] if they do not continue the log (case 35), [`AppendError::Corrupt`],
    /// [`AppendError::Offline`].
    pub async fn append_replicated(&self, batches: Lease) -> Result<LogOffsets, AppendError> {
        let log = &self.inner;
        let config = self.config();
        let now = Timestamp::new(log.core.io.wall_clock());
        let _turn = log.turn(batches.len()).await.map_err(AppendError::Offline)?;
        check_replicated(&batches, log.state.borrow().log_end)?;

        let mut rest = batches;
        while !rest.is_empty() {
            let batch = RecordBatch::peek(&rest).expect("all batches were checked");
            let (header, len) = (*batch.header(), batch.len());
            let mut state = log.state.borrow_mut();
            state.roll_if_due(len as u64, header.last_offset(), now, &config, log.name.id);
            let bytes = log.take_in(&mut state, &rest[..HEADER_LEN], &rest.slice(HEADER_LEN..len));
            drop(state);
            log.enter(&header, len, bytes, Timestamp::NONE, now);
            rest.advance(len);
        }
        Ok(log.state.borrow().offsets(&config))
    }

    /// The log's name and identity.
    pub fn name(&self) -> &LogName {
        &self.inner.name
    }

    /// The settings in force.
    pub fn config(&self) -> Rc<LogConfig> {
        Rc::clone(&self.inner.config.borrow())
    }

    /// Changes the settings, from the next append on.
    pub fn set_config(&self, config: LogConfig) {
        *self.inner.config.borrow_mut() = self.inner.core.share_config(config.checked());
        if self.config().cleanup_policy.compacts() {
            self.inner.core.cleaner.consider(self.name().id);
        }
        // A topic that no longer relaxes flushing may have bytes that nobody has asked to flush.
        self.inner.flush_if_due();
        self.inner.limits_moved();
    }

    /// The limits of the log, all read at one moment (case 49).
    pub fn offsets(&self) -> LogOffsets {
        self.inner.state.borrow().offsets(&self.inner.config.borrow())
    }

    /// Told whenever a limit moves, or the log goes offline.
    pub fn changed(&self) -> &Notify {
        &self.inner.changed
    }

    /// Calls `follower` on the spot whenever a limit moves or the log goes offline, before anybody who waits for that
    /// runs. It may look at the log and move its high watermark; it takes the place of the one before it.
    pub fn follow(&self, follower: impl Fn() + 'static) {
        *self.inner.follower.borrow_mut() = Some(Rc::new(follower));
    }

    /// Why the log takes no appends, if it does not.
    pub fn offline(&self) -> Option<Error> {
        self.inner.offline()
    }

    /// Moves the high watermark up to `offset`, but never past [`LogOffsets::committable_end`] and never back.
    pub fn set_high_watermark(&self, offset: Offset) {
        let mut state = self.inner.state.borrow_mut();
        let limit = state.committable_end(&self.inner.config.borrow());
        let new = offset.min(limit);
        if new > state.high_watermark {
            state.high_watermark = new;
            state.check_order();
            drop(state);
            self.inner.changed.notify_all();
        }
    }

    /// Notes that this replica leads in `epoch` from the log's end on, before it writes anything (case 5).
    pub fn begin_epoch(&self, epoch: LeaderEpoch) {
        let mut state = self.inner.state.borrow_mut();
        let log_end = state.log_end;
        let before = state.epochs.latest();
        state.epochs.assign(epoch, log_end);
        state.unsaved |= state.epochs.latest() != before;
    }

    /// The newest leader epoch that the log knows.
    pub fn latest_epoch(&self) -> Option<LeaderEpoch> {
        self.inner.state.borrow().epochs.latest()
    }

    /// The leader epoch of the record at `offset`.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.inner.state.borrow().epochs.epoch_at(offset)
    }

    /// Where a leader epoch ends in this log (KIP-101, KIP-279); `None` if it is newer than all that are known.
    pub fn epoch_end_offset(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let state = self.inner.state.borrow();
        state.epochs.end_offset(epoch, state.log_end.into())
    }

    /// Bytes of batches in all segments.
    pub fn size_bytes(&self) -> u64 {
        self.inner.state.borrow().segments.iter().map(|segment| segment.size).sum()
    }

    /// How many segments there are.
    pub fn segment_count(&self) -> usize {
        self.inner.state.borrow().segments.len()
    }

    /// The producers that are remembered, by id.
    pub fn producers(&self) -> Vec<(ProducerId, Producer)> {
        let state = self.inner.state.borrow();
        state.producers.iter().map(|(id, producer)| (id, producer.clone())).collect()
    }

    /// How many producers are remembered.
    pub fn producer_count(&self) -> usize {
        self.inner.state.borrow().producers.len()
    }

    /// # Panics
    /// If anything that the log knows contradicts anything else.
    pub fn check_invariants(&self) {
        let state = self.inner.state.borrow();
        state.check_invariants();
        state.producers.check_invariants(state.log_end);
    }
}

impl Appended {
    pub(crate) fn again(original: &AppendedBatch, state: &LogState) -> Appended {
        Appended {
            base_offset: original.base_offset,
            last_offset: original.last_offset,
            log_append_time: original.log_append_time,
            log_start: LogStartOffset::at(state.log_start),
            duplicate: true,
        }
    }
}

/// The time that the log gives a batch, or -1.
fn log_append_time(origin: AppendOrigin, config: &LogConfig, now: Timestamp) -> Timestamp {
    match config.timestamp_type {
        TimestampType::LogAppendTime if origin == AppendOrigin::Client => now,
        _ => Timestamp::NONE,
    }
}

/// Whether `batches` are whole, sound, and continue a log that ends at `log_end`.
fn check_replicated(batches: &[u8], log_end: Offset) -> Result<(), AppendError> {
    let mut expected = log_end;
    let mut rest = batches;
    while !rest.is_empty() {
        let batch = RecordBatch::peek(rest)?;
        validate(batch.bytes(), Origin::Log)?;
        if batch.base_offset() != expected {
            return Err(AppendError::NotContiguous { expected, found: batch.base_offset() });
        }
        expected = batch.next_offset();
        rest = &rest[batch.len()..];
    }
    Ok(())
}

impl LogInner {
    pub(crate) fn new(core: Rc<Core>, name: LogName, path: PathBuf, config: LogConfig, state: LogState) -> LogInner {
        LogInner {
            config: RefCell::new(core.share_config(config.checked())),
            core,
            name,
            path,
            state: RefCell::new(state),
            changed: Notify::new(),
            follower: RefCell::default(),
            turn: Semaphore::new(1),
            index_turn: Semaphore::new(1),
            readers: Semaphore::new(READERS_MAX),
            compaction: Compaction::new(),
            written_at: Cell::default(),
            is_watched: Cell::new(false),
        }
    }

    pub(crate) fn io(&self) -> &Io {
        &self.core.io
    }

    /// Tells whoever follows the log's limits. The state must not be borrowed.
    pub(crate) fn limits_moved(&self) {
        let follower = self.follower.borrow().clone();
        if let Some(follower) = follower {
            follower();
        }
        self.changed.notify_all();
    }

    /// Waits until every append that came before has its offsets, there is room for `len` more bytes, and the log's end is
    /// in memory where the device needs it there.
    pub(crate) async fn turn(&self, len: usize) -> Result<Permits, Error> {
        let turn = match self.turn.try_acquire(1) {
            Some(turn) => turn,
            None => self.turn.acquire(1).await,
        };
        self.room(len).await?;
        Ok(turn)
    }

    /// The part of [`LogInner::turn`] of who has the turn.
    async fn room(&self, len: usize) -> Result<(), Error> {
        loop {
            self.offline().map_or(Ok(()), Err)?;
            if !self.core.has_room(self.state.borrow().pending_bytes, len) {
                self.core.drained.wait().await;
            } else if self.core.device.is_direct() && !self.state.borrow_mut().tail_is_ready() {
                self.load_last_block().await?;
            } else {
                return Ok(());
            }
        }
    }

    /// Admits a batch that would hold up the core. It takes its turn first: what comes after it is behind it in the log.
    async fn admit_elsewhere(
        &self,
        batch: Lease,
        origin: AppendOrigin,
        config: &LogConfig,
        now: Timestamp,
    ) -> Result<(Admitted, Lease, Permits), AppendError> {
        let turn = self.turn.acquire(1).await;
        let (config, opened_max) = (config.clone(), self.core.config.decompressed_bytes_max);
        let work = move || admit(&batch, origin, &config, now, opened_max, Effort::Any);
        match self.core.elsewhere(work).await.map_err(AppendError::Offline)? {
            Ok((admitted, body)) => {
                self.room(admitted.len()).await.map_err(AppendError::Offline)?;
                Ok((admitted, body, turn))
            }
            Err(NotAdmitted::Refused(error)) => Err(error),
            Err(NotAdmitted::TakesLong) => unreachable!("no effort is too much"),
        }
    }

    /// Makes a batch part of the log whose bytes were taken in: queues it to be written with its neighbours, indexes it,
    /// publishes the new end.
    pub(crate) fn enter(
        self: &Rc<Self>,
        header: &BatchHeader,
        len: usize,
        bytes: Option<(Lease, Lease)>,
        log_append_time: Timestamp,
        now: Timestamp,
    ) -> Appended {
        let (base_offset, last_offset) = (header.base_offset, header.last_offset());
        let interval_bytes = self.config.borrow().index_interval_bytes;
        let mut state = self.state.borrow_mut();
        state.epochs.assign(header.partition_leader_epoch, base_offset);
        state.place(len, bytes, last_offset, header.max_timestamp, now, interval_bytes);
        self.note_producer(&mut state, header, now);
        let log_start = LogStartOffset::at(state.log_start);
        drop(state);
        self.core.count_append(len as u64);
        self.start_writing();
        Appended { base_offset, last_offset, log_append_time, log_start, duplicate: false }
    }

    /// Takes a batch into the log's tail, behind what is there. Where the device writes from where the batch was received,
    /// gives its bytes back instead.
    fn take_in(&self, state: &mut LogState, header: &[u8], body: &Lease) -> Option<(Lease, Lease)> {
        if !self.core.device.is_direct() {
            return Some((self.core.keep_header(header), body.clone()));
        }
        let active = state.active();
        let (segment, position) = (active.base_offset, active.size);
        self.core.tails.append_batch(&state.tail, segment, position, header, body);
        None
    }

    /// Waits until no append is under way and keeps others out while the permit lives.
    pub(crate) async fn exclusive(&self) -> Permits {
        self.turn.acquire(1).await
    }

    /// Whether nobody is changing the log or its index files, or waits to.
    pub(crate) fn is_quiet(&self) -> bool {
        self.turn.available() == 1 && self.index_turn.available() == 1
    }

    /// The same, if nobody is appending now.
    pub(crate) fn try_exclusive(&self) -> Option<Permits> {
        self.turn.try_acquire(1)
    }

    /// Why the log takes no appends, if it does not.
    pub(crate) fn offline(&self) -> Option<Error> {
        self.core.dir.offline_error().or_else(|| self.state.borrow().offline.clone())
    }

    /// Takes the log offline for good: nothing that was not acknowledged will be.
    pub(crate) fn take_offline(&self, cause: &Error) {
        if self.go_offline(cause) {
            tracing::error!(log = %self.name, %cause, remedy = cause.remedy(), "the log is offline");
        }
    }

    /// The same without a line in the log. Whether it was online.
    pub(crate) fn go_offline(&self, cause: &Error) -> bool {
        let mut state = self.state.borrow_mut();
        let queued: usize = state.queue.iter().map(|batch| batch.len).sum();
        state.pending_bytes -= queued;
        let first = state.take_offline(cause.clone());
        drop(state);
        self.core.release(queued);
        self.limits_moved();
        first
    }

    /// Brings a log back online whose writes failed for want of space: what was flushed is there, what came after it is
    /// scanned as after a crash, and what does not fit is cut off. What was refused may be appended again.
    ///
    /// # Errors
    /// As recovery; the log stays offline.
    pub(crate) async fn reopen(&self) -> Result<(), Error> {
        let _pass = self.compaction.turn.acquire(1).await;
        let _turn = self.exclusive().await;
        let _index_turn = self.index_turn.acquire(1).await;
        while self.state.borrow().writing || self.state.borrow().flushing {
            self.io().yield_now().await;
        }
        if self.state.borrow().deleted {
            return Ok(());
        }
        self.core.dir.offline_error().map_or(Ok(()), Err)?;
        let flushed = self.snapshot();
        let mut state = crate::recovery::reopen(&self.core, &self.name, &self.path, &flushed).await?;
        let mut current = self.state.borrow_mut();
        if state.written.offset < current.high_watermark {
            return Err(Error::Offline("committed records are gone".into()));
        }
        state.high_watermark = current.high_watermark;
        state.log_start = current.log_start;
        state.touched = current.touched;
        state.vouched_for = current.vouched_for;
        self.core.dirty_files.set(self.core.dirty_files.get() - current.dirty.len());
        self.core.forget_producers(current.producers.len());
        self.core.count_producers(state.producers.len());
        *current = state;
        current.check_invariants();
        drop(current);
        self.core.files.forget_log(self.name.id);
        self.limits_moved();
        Ok(())
    }

    /// The log is being deleted: everything that waits for it, or asks it from now on, fails (case 23).
    pub(crate) fn mark_deleted(&self) {
        let mut state = self.state.borrow_mut();
        state.deleted = true;
        let closed = std::mem::take(&mut state.dirty).len();
        drop(state);
        self.core.dirty_files.set(self.core.dirty_files.get() - closed);
        self.go_offline(&Error::Offline("the log was deleted".into()));
    }

    /// Notes who wrote a batch, and makes room if this core remembers too many producers (case 56).
    fn note_producer(&self, state: &mut LogState, header: &BatchHeader, now: Timestamp) {
        let before = state.producers.len();
        state.producers.replay(header, now);
        if state.producers.len() > before && self.core.count_producers(1) && before > 0 {
            let evicted = state.producers.evict_idle();
            self.core.forget_producers(evicted);
        }
    }

    /// A file of a segment, opened if need be.
    ///
    /// # Errors
    /// Whatever opening it gives; [`Error::Offline`] if retention took the segment meanwhile: its blocks may be the next
    /// segment's by now.
    pub(crate) async fn open_file(
        &self,
        segment: Offset,
        file: SegmentFile,
        options: OpenOptions,
    ) -> Result<File, Error> {
        if file == SegmentFile::Log {
            self.verify_once().await?;
        }
        let key = self.file_key(segment, file);
        let opened = match self.core.files.open(self.io(), key, &self.path, options).await {
            // Good enough for a reader, and not kept: whoever writes later must not find it.
            Err(Error::Io(error)) if error.is_read_only() => {
                self.io().open(&key.path(&self.path), OpenOptions::read()).await?
            }
            opened => opened?,
        };
        if self.state.borrow_mut().segment(segment).is_none() {
            self.core.files.forget(key);
            return Err(Error::Offline("the segment was deleted meanwhile".into()));
        }
        Ok(opened)
    }

    pub(crate) fn file_key(&self, segment: Offset, file: SegmentFile) -> FileKey {
        FileKey { log: self.name.id, segment, file, direct: false }
    }

    /// The key of a segment's file as the device writes it.
    pub(crate) fn write_key(&self, segment: Offset) -> FileKey {
        FileKey { direct: self.core.device.is_direct(), ..self.file_key(segment, SegmentFile::Log) }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Log({})", self.inner.name)
    }
}
