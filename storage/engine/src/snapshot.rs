//! A log's part of the checkpoint: taken from its state, and turned into a state again.
//!
//! Owns what "up to the recovery point" means: batches above the flushed end may be lost with the power, so nothing that
//! they changed goes into a snapshot.

use heddle_record::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

use crate::archive::{LogSnapshot, ProducerBatchSnapshot, ProducerSnapshot, SegmentSnapshot};
use crate::epoch_cache::{EpochCache, EpochStart};
use crate::index::{IndexBuilder, TimeEntry};
use crate::log::LogInner;
use crate::producer_state::{AppendedBatch, BATCHES_PER_PRODUCER, Producer, ProducerTable};
use crate::segment::Segment;
use crate::space::Space;
use crate::state::{Boundary, LogState};

/// In place of [`SegmentSnapshot::bytes_since_entry`]: what the index files have is not known without reading them.
const UNKNOWN: u64 = u64::MAX;

impl LogInner {
    /// The log as it is up to its flushed end, for a checkpoint; and whether its files may have more, now or without
    /// another note. A log is busy if it was appended to since `busy_since`.
    pub(crate) fn take_snapshot(&self, busy_since: Timestamp) -> (LogSnapshot, bool) {
        let snapshot = self.snapshot();
        let quiet = self.is_quiet();
        let mut state = self.state.borrow_mut();
        let busy = state.active().last_append_at.is_some_and(|appended| appended >= busy_since);
        let active = !quiet || !state.is_settled() || busy;
        state.touched &= active;
        // What changes from here on is not in the snapshot; what is busy is to be called idle some day.
        state.unsaved = active;
        (snapshot, active)
    }

    /// The log as it is up to its flushed end.
    pub(crate) fn snapshot(&self) -> LogSnapshot {
        let state = self.state.borrow();
        let point = state.flushed;
        LogSnapshot {
            // A start above the flushed end may be lost with the records below it.
            log_start: state.log_start.min(point.offset).get(),
            recovery_offset: point.offset.get(),
            recovery_segment: point.segment.get(),
            recovery_position: point.position,
            untrimmed: state.space.is_some(),
            segments: state.flushed_segments().map(|segment| segment_snapshot(segment, &state)).collect(),
            epochs: state.epochs.entries().iter().map(|start| (start.epoch.get(), start.start_offset.get())).collect(),
            producers: state
                .producers
                .iter()
                .filter_map(|(id, producer)| producer_snapshot(id, producer, point.offset))
                .collect(),
        }
    }

    /// The snapshot with this recovery point is durable: the next recovery starts there.
    pub(crate) fn note_saved(&self, point: Boundary) {
        let mut state = self.state.borrow_mut();
        // A truncation meanwhile has its own snapshot to come.
        if point.offset <= state.flushed.offset {
            state.recovery_point = point;
            state.vouched_for = point.segment;
        }
    }
}

impl LogState {
    fn flushed_segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.base_offset <= self.flushed.segment)
    }

    /// Whether the files have what the state says, no less and no more: nothing to be flushed, indexed or removed.
    fn is_settled(&self) -> bool {
        let flushed = self.flushed.offset == self.log_end && self.written == self.flushed && self.dirty.is_empty();
        let idle = !self.writing && !self.flushing && self.queue.is_empty();
        let indexed = |segment: &Segment| {
            segment.on_disk
                && segment.entry_synced
                && segment.index.pending_offsets.is_empty()
                && segment.index.pending_times.is_empty()
                && (segment.index_complete || segment.base_offset == self.flushed.segment)
        };
        let none_below_start = self.segments.get(1).is_none_or(|second| second.base_offset > self.log_start);
        let nothing_kept = self.recycled.is_none();
        let idle = idle && !self.rewriting;
        flushed && idle && none_below_start && nothing_kept && self.segments.iter().all(indexed)
    }
}

fn segment_snapshot(segment: &Segment, state: &LogState) -> SegmentSnapshot {
    let last = segment.base_offset == state.flushed.segment;
    let max = if last { state.flushed_max } else { segment.index.max() };
    let (size, bytes_since_entry) = if last {
        let size = state.flushed.position;
        (size, segment.index.bytes_from_last_in_file(segment.size, size).unwrap_or(UNKNOWN))
    } else {
        (segment.size, segment.index.bytes_since_entry())
    };
    SegmentSnapshot {
        base_offset: segment.base_offset.get(),
        size,
        max_time: max.map(|max| (max.timestamp.get(), max.last_offset.get())),
        offset_entries: segment.index.offsets_in_file,
        time_entries: segment.index.times_in_file,
        bytes_since_entry,
        last_time: segment.index.last_time().map(Timestamp::get),
        index_complete: segment.index_complete,
        first_append_at: segment.first_append_at.map(Timestamp::get),
        last_append_at: segment.last_append_at.map(Timestamp::get),
    }
}

/// The producer's last five batches below `end`; `None` if it has none there.
fn producer_snapshot(id: ProducerId, producer: &Producer, end: Offset) -> Option<ProducerSnapshot> {
    let mut batches: Vec<ProducerBatchSnapshot> = producer
        .batches
        .iter()
        .filter(|batch| batch.last_offset < end)
        .map(|batch| ProducerBatchSnapshot {
            base_sequence: batch.base_sequence.get(),
            last_sequence: batch.last_sequence.get(),
            base_offset: batch.base_offset.get(),
            last_offset: batch.last_offset.get(),
            log_append_time: batch.log_append_time.get(),
        })
        .collect();
    batches.drain(..batches.len().saturating_sub(BATCHES_PER_PRODUCER));
    let snapshot =
        ProducerSnapshot { id: id.get(), epoch: producer.epoch.get(), active_at: producer.active_at.get(), batches };
    (!snapshot.batches.is_empty()).then_some(snapshot)
}

/// Where recovery starts.
pub(crate) fn recovery_point(snapshot: &LogSnapshot) -> Boundary {
    Boundary {
        offset: Offset::new(snapshot.recovery_offset),
        segment: Offset::new(snapshot.recovery_segment),
        position: snapshot.recovery_position,
    }
}

/// The largest timestamp of a segment.
pub(crate) fn max_time(segment: &SegmentSnapshot) -> Option<TimeEntry> {
    let (timestamp, last_offset) = segment.max_time?;
    Some(TimeEntry { timestamp: Timestamp::new(timestamp), last_offset: Offset::new(last_offset) })
}

/// The leader epochs up to the recovery point; one that wrote nothing yet may start exactly there.
pub(crate) fn epochs(snapshot: &LogSnapshot) -> EpochCache {
    let starts = snapshot
        .epochs
        .iter()
        .map(|&(epoch, start)| EpochStart { epoch: LeaderEpoch::new(epoch), start_offset: Offset::new(start) });
    let mut epochs = EpochCache::from_entries(starts);
    epochs.truncate_from_end(Offset::new(snapshot.recovery_offset).next());
    epochs
}

/// The producers up to the recovery point.
pub(crate) fn producers(snapshot: &LogSnapshot) -> ProducerTable {
    let mut table = ProducerTable::default();
    for producer in &snapshot.producers {
        let batches = producer.batches.iter().map(|batch| AppendedBatch {
            base_sequence: Sequence::new(batch.base_sequence),
            last_sequence: Sequence::new(batch.last_sequence),
            base_offset: Offset::new(batch.base_offset),
            last_offset: Offset::new(batch.last_offset),
            log_append_time: Timestamp::new(batch.log_append_time),
        });
        let restored = Producer {
            epoch: ProducerEpoch::new(producer.epoch),
            active_at: Timestamp::new(producer.active_at),
            batches: batches.collect(),
        };
        table.restore(ProducerId::new(producer.id), restored);
    }
    table
}

/// The state of a log whose files have what the snapshot says, no less and no more.
pub(crate) fn restore(saved: &LogSnapshot) -> LogState {
    let mut state = LogState::empty(Offset::new(saved.log_start));
    state.segments = saved.segments.iter().map(believed_segment).collect();
    state.epochs = epochs(saved);
    state.epochs.truncate_from_start(state.log_start);
    state.producers = producers(saved);
    let end = recovery_point(saved);
    state.set_end(end);
    state.vouched_for = end.segment;
    // Where the last batch that has an index entry starts: from there on it is looked at, once somebody uses the log.
    state.space = saved.untrimmed.then(|| Space::of_file(end.segment, end.position, end.position));
    let behind = state.active().index.bytes_since_entry();
    state.believed = Some(end.position.saturating_sub(behind));
    (state.touched, state.unsaved) = (false, false);
    state
}

fn believed_segment(saved: &SegmentSnapshot) -> Segment {
    Segment { index: believed_index(saved), ..segment(saved) }
}

/// The indexes of a segment whose files have what the snapshot says.
pub(crate) fn believed_index(saved: &SegmentSnapshot) -> IndexBuilder {
    IndexBuilder::restore(
        saved.offset_entries,
        saved.time_entries,
        max_time(saved),
        saved.last_time.map(Timestamp::new),
        saved.bytes_since_entry,
    )
}

/// Where the last batch of a segment starts that has an entry in its offset index; `None` where only the file tells.
pub(crate) fn last_indexed(saved: &SegmentSnapshot) -> Option<u64> {
    saved.size.checked_sub(saved.bytes_since_entry).filter(|last| *last < saved.size)
}

/// A segment as it was saved, but for its index.
pub(crate) fn segment(saved: &SegmentSnapshot) -> Segment {
    Segment {
        size: saved.size,
        first_append_at: saved.first_append_at.map(Timestamp::new),
        last_append_at: saved.last_append_at.map(Timestamp::new),
        on_disk: true,
        entry_synced: true,
        index_complete: saved.index_complete,
        ..Segment::new(Offset::new(saved.base_offset))
    }
}

/// What a snapshot claims must be possible before anything is built on it: the file's checksum protects against decay,
/// not against us.
pub(crate) fn is_sound(snapshot: &LogSnapshot) -> bool {
    let ascending =
        snapshot.segments.windows(2).all(|pair| pair[0].base_offset < pair[1].base_offset && pair[0].size > 0);
    let last = snapshot.segments.last();
    ascending
        && last.is_some_and(|last| {
            last.base_offset == snapshot.recovery_segment
                && last.size == snapshot.recovery_position
                && (last.size == 0) == (last.base_offset == snapshot.recovery_offset)
                && last.base_offset <= snapshot.recovery_offset
        })
        && snapshot.segments[0].base_offset <= snapshot.log_start
        && snapshot.segments[0].base_offset >= 0
        && snapshot.log_start <= snapshot.recovery_offset
}
