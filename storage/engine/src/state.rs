//! What a log knows in memory: its segments, its limits, what waits to be written and flushed.
//!
//! Owns the order of the limits: every setter ends in [`LogState::check_order`]. Plain data and plain functions, no IO and
//! no await: tasks borrow the state, plan, let go of it, and only then wait.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use heddle_io::{File, Lease};
use heddle_record::{
    FlushedEndOffset, HighWatermark, LastStableOffset, LeaderEpoch, LogEndOffset, LogId, LogStartOffset, Offset,
    Timestamp,
};

use crate::admission::Admitted;
use crate::config::LogConfig;
use crate::epoch_cache::EpochCache;
use crate::error::{AppendError, Error};
use crate::flush::AckQueue;
use crate::index::{IndexedBatch, TimeEntry};
use crate::log::Appended;
use crate::producer_state::{ProducerTable, Verdict};
use crate::segment::Segment;
use crate::space::Space;
use crate::tail::Tail;

/// The place between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Boundary {
    /// The base offset of the batch that follows.
    pub(crate) offset: Offset,
    /// The base offset of the segment.
    pub(crate) segment: Offset,
    /// Where the batch that follows begins in it, in bytes.
    pub(crate) position: u64,
}

/// A batch that waits to be written.
#[derive(Debug)]
pub(crate) struct QueuedBatch {
    pub(crate) segment: Offset,
    pub(crate) position: u64,
    /// Its length in bytes.
    pub(crate) len: usize,
    /// Header and body, where they are not in the log's tail.
    pub(crate) bytes: Option<(Lease, Lease)>,
    pub(crate) next_offset: Offset,
    /// The largest timestamp of the segment, up to this batch.
    pub(crate) max: Option<TimeEntry>,
}

/// A file with bytes that were written and not flushed, held open until they are.
#[derive(Debug)]
pub(crate) struct DirtyFile {
    /// The base offset of its segment.
    pub(crate) segment: Offset,
    pub(crate) file: File,
    /// Bytes below this position were written to blocks that only the file's own flush makes durable.
    pub(crate) unsettled_to: u64,
}

/// The limits of a log, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOffsets {
    /// The first offset that can be read.
    pub log_start: LogStartOffset,
    /// Everything below belongs to no open transaction; the high watermark, as long as there are no transactions.
    pub last_stable: LastStableOffset,
    /// Everything below is committed.
    pub high_watermark: HighWatermark,
    /// Everything below survives a power cut.
    pub flushed_end: FlushedEndOffset,
    /// Everything below was handed to the operating system and can be read.
    pub written_end: Offset,
    /// How far the high watermark may go on this replica: the flushed end, or the written end where the topic relaxes
    /// flushing.
    pub committable_end: Offset,
    /// The offset that the next record gets.
    pub log_end: LogEndOffset,
}

/// How many boundaries are remembered; consumers at the end of a log ask for one of the last few.
const LANDMARKS_MAX: usize = 32;

/// Everything that changes about a log.
#[derive(Debug)]
pub(crate) struct LogState {
    /// Ascending, never empty; the last is active.
    pub(crate) segments: Vec<Segment>,
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) log_end: Offset,
    pub(crate) written: Boundary,
    pub(crate) flushed: Boundary,
    /// The largest timestamp of the written end's segment, up to the written end.
    pub(crate) written_max: Option<TimeEntry>,
    /// The largest timestamp of the flushed end's segment, up to the flushed end.
    pub(crate) flushed_max: Option<TimeEntry>,
    /// Recovery starts here: below it everything was flushed and checked when the last checkpoint was written.
    pub(crate) recovery_point: Boundary,
    /// A checkpoint that is on the disk has all segments below this one as they are; only those may be rewritten. What
    /// recovery has found since is not in it yet.
    pub(crate) vouched_for: Offset,
    pub(crate) epochs: EpochCache,
    pub(crate) producers: ProducerTable,

    /// Batches with offsets that are not handed to the system yet.
    pub(crate) queue: VecDeque<QueuedBatch>,
    /// Bytes of `queue` and of the write in flight.
    pub(crate) pending_bytes: usize,
    /// A task is writing.
    pub(crate) writing: bool,
    /// A task is flushing.
    pub(crate) flushing: bool,
    /// Files with bytes that were written and not flushed, ascending.
    pub(crate) dirty: Vec<DirtyFile>,
    /// The log's end in memory, on the direct device.
    pub(crate) tail: Rc<RefCell<Tail>>,
    /// The blocks of the segment that is written, on the direct device.
    pub(crate) space: Option<Space>,
    /// Bytes of a deleted segment's file that waits to become the next one's.
    pub(crate) recycled: Option<u64>,
    /// Counts truncations: a flush that was issued before one says nothing about what came after it (case 20).
    pub(crate) truncations: u64,
    pub(crate) written_waiters: AckQueue,
    pub(crate) flushed_waiters: AckQueue,

    /// Boundaries that were seen lately.
    landmarks: VecDeque<Boundary>,
    /// The log was deleted: what its tasks meet in the file system is no failure of the disk (case 33).
    pub(crate) deleted: bool,
    /// Why the log takes no more appends.
    pub(crate) offline: Option<Error>,
    /// Something changed since the last checkpoint.
    pub(crate) unsaved: bool,
    /// The next start looks at the log's files, whatever happens: without that nothing is written to them (`touched.rs`).
    pub(crate) touched: bool,
    /// A segment is being rewritten: whatever a checkpoint says of the log meanwhile, the next start looks at it.
    pub(crate) rewriting: bool,
    /// The log was opened on a checkpoint's word, and nobody has looked at its files yet: where in the recovery point's
    /// segment a look at the last batches begins (`verify.rs`).
    pub(crate) believed: Option<u64>,
}

impl LogState {
    /// An empty log that starts at `start`.
    pub(crate) fn empty(start: Offset) -> LogState {
        let boundary = Boundary { offset: start, segment: start, position: 0 };
        LogState {
            segments: vec![Segment::new(start)],
            log_start: start,
            high_watermark: start,
            log_end: start,
            written: boundary,
            flushed: boundary,
            written_max: None,
            flushed_max: None,
            recovery_point: boundary,
            vouched_for: Offset::ZERO,
            epochs: EpochCache::default(),
            producers: ProducerTable::default(),
            queue: VecDeque::new(),
            pending_bytes: 0,
            writing: false,
            flushing: false,
            dirty: Vec::new(),
            tail: Rc::default(),
            space: None,
            recycled: None,
            truncations: 0,
            written_waiters: AckQueue::default(),
            flushed_waiters: AckQueue::default(),
            landmarks: VecDeque::new(),
            deleted: false,
            offline: None,
            unsaved: true,
            touched: true,
            rewriting: false,
            believed: None,
        }
    }

    /// Makes `end` the written, flushed and checkpointed end of the log; the last segment ends there.
    pub(crate) fn set_end(&mut self, end: Boundary) {
        let max = self.active().index.max();
        self.log_end = end.offset;
        (self.written, self.flushed, self.recovery_point) = (end, end, end);
        (self.written_max, self.flushed_max) = (max, max);
    }

    /// The segment that appends go to.
    pub(crate) fn active(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a log always has a segment")
    }

    /// The segment that starts at `base_offset`, unless it was deleted meanwhile.
    pub(crate) fn segment(&mut self, base_offset: Offset) -> Option<&mut Segment> {
        let index = self.segments.binary_search_by_key(&base_offset, |segment| segment.base_offset).ok()?;
        self.segments.get_mut(index)
    }

    /// The index of the segment that contains `offset`, or the first one.
    pub(crate) fn segment_index_at(&self, offset: Offset) -> usize {
        self.segments.partition_point(|segment| segment.base_offset <= offset).saturating_sub(1)
    }

    /// Where the batches of a segment end that were written.
    pub(crate) fn readable_size(&self, segment: &Segment) -> u64 {
        match segment.base_offset.cmp(&self.written.segment) {
            std::cmp::Ordering::Less => segment.size,
            std::cmp::Ordering::Equal => self.written.position,
            std::cmp::Ordering::Greater => 0,
        }
    }

    /// What a batch meets that would be appended now: the original's offsets if it was appended before (nothing then is to
    /// be done), else nothing.
    ///
    /// # Errors
    /// Its producer's sequence does not fit; its leader was superseded.
    pub(crate) fn precedent(
        &self,
        batch: &Admitted,
        leader_epoch: LeaderEpoch,
    ) -> Result<Option<Appended>, AppendError> {
        if let Some(Verdict::Duplicate(original)) = batch.claim.map(|claim| self.producers.check(&claim)).transpose()? {
            return Ok(Some(Appended::again(&original, self)));
        }
        if self.epochs.latest().is_some_and(|latest| latest > leader_epoch) {
            return Err(AppendError::StaleLeaderEpoch);
        }
        Ok(None)
    }

    /// Seals the active segment if the next append, of `len` bytes and up to `last_offset`, does not belong there.
    pub(crate) fn roll_if_due(
        &mut self,
        len: u64,
        last_offset: Offset,
        now: Timestamp,
        config: &LogConfig,
        log: LogId,
    ) {
        if self.active().must_roll(len, last_offset, now, config, log) {
            self.roll();
        }
    }

    /// Seals the active segment; the next append opens a new one. Returns the base offset of the new segment.
    pub(crate) fn roll(&mut self) -> Offset {
        let base_offset = self.log_end;
        let active = self.active();
        assert!(active.base_offset < base_offset, "only a segment with records is sealed");
        active.index.seal();
        self.segments.push(Segment::new(base_offset));
        base_offset
    }

    /// Puts a batch of `len` bytes at the end of the active segment: its place, its index entries, the new end of the log.
    /// It is queued to be written; `bytes` are its header and body where they are not in the log's tail.
    pub(crate) fn place(
        &mut self,
        len: usize,
        bytes: Option<(Lease, Lease)>,
        last_offset: Offset,
        max_timestamp: Timestamp,
        now: Timestamp,
        interval_bytes: u32,
    ) {
        let segment = self.active();
        let (base_offset, position) = (segment.base_offset, segment.size);
        segment.index.note(
            IndexedBatch {
                position: u32::try_from(position).expect("a segment is sealed before 2 GiB"),
                len: u32::try_from(len).expect("a batch is below 2 GiB"),
                last_offset,
                max_timestamp,
            },
            interval_bytes,
        );
        segment.size += len as u64;
        segment.first_append_at.get_or_insert(now);
        segment.last_append_at = Some(now);
        let max = segment.index.max();
        let next_offset = last_offset.next();
        self.queue.push_back(QueuedBatch { segment: base_offset, position, len, bytes, next_offset, max });
        self.pending_bytes += len;
        self.log_end = last_offset.next();
        self.unsaved = true;
        self.check_order();
    }

    /// How far the high watermark may go.
    pub(crate) fn committable_end(&self, config: &LogConfig) -> Offset {
        // Where a topic stops relaxing, what was committed before stays committed.
        if config.relaxes_flushing() { self.written.offset } else { self.flushed.offset.max(self.high_watermark) }
    }

    pub(crate) fn offsets(&self, config: &LogConfig) -> LogOffsets {
        LogOffsets {
            log_start: LogStartOffset::at(self.log_start),
            last_stable: LastStableOffset::at(self.high_watermark),
            high_watermark: HighWatermark::at(self.high_watermark),
            flushed_end: FlushedEndOffset::at(self.flushed.offset),
            written_end: self.written.offset,
            committable_end: self.committable_end(config),
            log_end: LogEndOffset::at(self.log_end),
        }
    }

    /// Remembers a boundary.
    pub(crate) fn remember(&mut self, boundary: Boundary) {
        if self.landmark(boundary.offset).is_some() {
            return;
        }
        if self.landmarks.len() == LANDMARKS_MAX {
            self.landmarks.pop_front();
        }
        self.landmarks.push_back(boundary);
    }

    /// The place of the batch that starts at `offset`, if it was seen lately and its segment is still there.
    pub(crate) fn landmark(&self, offset: Offset) -> Option<Boundary> {
        let known = [self.written, self.flushed];
        let mut all = known.iter().chain(self.landmarks.iter().rev());
        all.find(|boundary| boundary.offset == offset && boundary.segment >= self.segments[0].base_offset).copied()
    }

    /// Forgets all boundaries above `end_offset`, which the log was cut to.
    pub(crate) fn forget_landmarks(&mut self) {
        self.landmarks.clear();
    }

    /// Takes the log offline for good. The first reason stays. Returns whether it was online.
    pub(crate) fn take_offline(&mut self, error: Error) -> bool {
        let first = self.offline.is_none();
        if first {
            // Whoever asks can tell what will pass from what will not.
            let reason = |error: Error| Error::Offline(Arc::from(error.to_string().as_str()));
            self.offline = Some(if error.is_refusal() { error } else { reason(error) });
        }
        self.queue.clear();
        self.written_waiters.wake_all();
        self.flushed_waiters.wake_all();
        first
    }

    /// # Panics
    /// If the limits are out of order.
    pub(crate) fn check_order(&self) {
        assert!(self.log_start >= Offset::ZERO, "offsets are not negative");
        assert!(self.log_start <= self.high_watermark, "log start ≤ high watermark");
        assert!(self.high_watermark <= self.written.offset, "high watermark ≤ written end");
        assert!(self.flushed.offset <= self.written.offset, "flushed end ≤ written end");
        assert!(self.written.offset <= self.log_end, "written end ≤ log end");
        assert!(self.recovery_point.offset <= self.flushed.offset, "recovery point ≤ flushed end");
    }

    /// # Panics
    /// If anything about the log contradicts anything else.
    pub(crate) fn check_invariants(&self) {
        self.check_order();
        self.epochs.check_invariants();
        assert!(!self.segments.is_empty(), "a log always has a segment");
        for pair in self.segments.windows(2) {
            assert!(pair[0].base_offset < pair[1].base_offset, "segments ascend");
            assert!(pair[0].size > 0, "only the active segment may be empty");
        }
        assert!(self.segments[0].base_offset <= self.log_start, "the log starts in a segment");
        let last = &self.segments[self.segments.len() - 1];
        assert!(last.base_offset <= self.log_end, "the log ends in its last segment");
        assert_eq!(last.size == 0, last.base_offset == self.log_end, "an empty segment starts at the log's end");
        let queued: usize = self.queue.iter().map(|batch| batch.len).sum();
        assert!(queued <= self.pending_bytes, "what is queued is counted");
        let mut next = None;
        for batch in &self.queue {
            assert!(next.is_none_or(|next| next < batch.next_offset), "queued batches ascend");
            next = Some(batch.next_offset);
        }
        assert!(next.is_none_or(|next| next == self.log_end), "the last queued batch ends the log");
        assert!(self.queue.is_empty() || self.writing, "what is queued is being written");
    }
}
