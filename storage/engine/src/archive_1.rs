//! Checkpoints as the first format had them: one archive of everything. Read, never written.
//!
//! Owns the shape of that archive, which never changes again.

use heddle_record::{LogId, PartitionIndex, TopicId};
use rkyv::rancor::Error as Malformed;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::archive::{Age, LogSnapshot, ProducerSnapshot, SegmentSnapshot};

/// The version that these archives carry.
pub(crate) const VERSION: u32 = 1;

#[derive(Archive, Serialize, Deserialize)]
struct Snapshot1 {
    generation: u64,
    logs: Vec<LogSnapshot1>,
}

#[derive(Archive, Serialize, Deserialize)]
struct LogSnapshot1 {
    topic_id: [u8; 16],
    partition: i32,
    generation: u64,
    sequence: u64,
    log_start: i64,
    recovery_offset: i64,
    recovery_segment: i64,
    recovery_position: u64,
    segments: Vec<SegmentSnapshot1>,
    epochs: Vec<(i32, i64)>,
    producers: Vec<ProducerSnapshot>,
}

#[derive(Archive, Serialize, Deserialize)]
struct SegmentSnapshot1 {
    base_offset: i64,
    size: u64,
    max_time: Option<(i64, i64)>,
    offset_entries: u32,
    time_entries: u32,
    index_complete: bool,
    first_append_at: Option<i64>,
    last_append_at: Option<i64>,
}

/// One log as it was stored: which, how old the entry is, and what it says.
pub(crate) type Stored = (LogId, Age, LogSnapshot);

/// The generation, and every log, of an archive of the first version.
///
/// # Errors
/// Why it is none.
pub(crate) fn read(body: &[u8]) -> Result<(u64, Vec<Stored>), &'static str> {
    let mut aligned: AlignedVec = AlignedVec::with_capacity(body.len());
    aligned.extend_from_slice(body);
    let snapshot = rkyv::from_bytes::<Snapshot1, Malformed>(&aligned).map_err(|_| "malformed")?;
    Ok((snapshot.generation, snapshot.logs.into_iter().map(log).collect()))
}

fn log(log: LogSnapshot1) -> Stored {
    let id = LogId { topic: TopicId::new(log.topic_id), partition: PartitionIndex::new(log.partition) };
    let age = Age { generation: log.generation, sequence: log.sequence };
    let snapshot = LogSnapshot {
        log_start: log.log_start,
        recovery_offset: log.recovery_offset,
        recovery_segment: log.recovery_segment,
        recovery_position: log.recovery_position,
        untrimmed: false,
        segments: log.segments.into_iter().map(segment).collect(),
        epochs: log.epochs,
        producers: log.producers,
    };
    (id, age, snapshot)
}

/// What it did not say of the indexes is found in their files: such a log is never believed without a look.
fn segment(segment: SegmentSnapshot1) -> SegmentSnapshot {
    SegmentSnapshot {
        base_offset: segment.base_offset,
        size: segment.size,
        max_time: segment.max_time,
        offset_entries: segment.offset_entries,
        time_entries: segment.time_entries,
        bytes_since_entry: 0,
        last_time: None,
        index_complete: segment.index_complete,
        first_append_at: segment.first_append_at,
        last_append_at: segment.last_append_at,
    }
}
