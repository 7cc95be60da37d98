//! A log's part of the checkpoint: taken from its state, and turned into a state again.
//!
//! Owns what "up to the recovery point" means: batches above the flushed end may be lost with the power, so nothing that
//! they changed goes into a snapshot.

use heddle_record::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

use crate::checkpoint::{LogSnapshot, ProducerBatchSnapshot, ProducerSnapshot, SegmentSnapshot};
use crate::epoch_cache::{EpochCache, EpochStart};
use crate::index::TimeEntry;
use crate::log::LogInner;
use crate::producer_state::{AppendedBatch, BATCHES_PER_PRODUCER, Producer, ProducerTable};
use crate::segment::Segment;
use crate::state::{Boundary, LogState};

impl LogInner {
    /// The log as it is up to its flushed end.
    pub(crate) fn snapshot(&self, generation: u64, sequence: u64) -> LogSnapshot {
        let mut state = self.state.borrow_mut();
        // What changes from here on is not in the snapshot.
        state.unsaved = false;
        let point = state.flushed;
        LogSnapshot {
            topic_id: self.name.id.topic.bytes(),
            partition: self.name.id.partition.get(),
            generation,
            sequence,
            // A start above the flushed end may be lost with the records below it.
            log_start: state.log_start.min(point.offset).get(),
            recovery_offset: point.offset.get(),
            recovery_segment: point.segment.get(),
            recovery_position: point.position,
            segments: state.flushed_segments().map(|segment| segment_snapshot(segment, &state)).collect(),
            epochs: state.epochs.entries().iter().map(|start| (start.epoch.get(), start.start_offset.get())).collect(),
            producers: state
                .producers
                .iter()
                .filter_map(|(id, producer)| producer_snapshot(id, producer, point.offset))
                .collect(),
        }
    }

    /// The snapshot is durable: the next recovery starts at its recovery point.
    pub(crate) fn note_saved(&self, saved: &LogSnapshot) {
        let mut state = self.state.borrow_mut();
        let point = recovery_point(saved);
        // A truncation meanwhile has its own snapshot to come.
        if point.offset <= state.flushed.offset {
            state.recovery_point = point;
        }
    }
}

impl LogState {
    fn flushed_segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.base_offset <= self.flushed.segment)
    }
}

fn segment_snapshot(segment: &Segment, state: &LogState) -> SegmentSnapshot {
    let last = segment.base_offset == state.flushed.segment;
    let max = if last { state.flushed_max } else { segment.index.max() };
    SegmentSnapshot {
        base_offset: segment.base_offset.get(),
        size: if last { state.flushed.position } else { segment.size },
        max_time: max.map(|max| (max.timestamp.get(), max.last_offset.get())),
        offset_entries: segment.index.offsets_in_file,
        time_entries: segment.index.times_in_file,
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
