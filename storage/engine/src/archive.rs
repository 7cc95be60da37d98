//! The bytes of a checkpoint file: what each log needs to come back, side by side, and a list of where each lies.
//!
//! Owns the archive's format. A log's part is an archive of its own, read in place when the log is opened; nothing is
//! taken apart at start but the list. Does no IO. `docs/format.md` draws it.
//!
//! ```text
//! header │ log │ log │ … │ log │ list of logs
//!        └─ 16 byte steps ─────┘
//! ```

use heddle_io::{Buffer, Lease};
use heddle_record::checksum::{crc32c, crc32c_append};
use heddle_record::{LogId, PartitionIndex, TopicId};
use rkyv::rancor::Error as Malformed;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::archive_1;

/// What a checkpoint file starts with.
pub const CHECKPOINT_MAGIC: [u8; 8] = *b"HEDDLECP";
/// The version of what lies behind the header.
pub const CHECKPOINT_VERSION: u32 = 2;
/// Bytes before the first log: magic, version, checksum of the rest, its length, zeros.
pub const CHECKPOINT_HEADER_LEN: usize = 32;
/// What the place of a log is a multiple of, in bytes, so that its numbers are aligned in memory.
const ALIGNMENT: usize = 16;
const _: () = assert!(CHECKPOINT_HEADER_LEN.is_multiple_of(ALIGNMENT), "what is behind the header is aligned");

/// When something was noted: in which run of the data directory, and before or after which checkpoint of its core. The
/// larger is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Age {
    /// Counts the times that the data directory was opened.
    pub(crate) generation: u64,
    /// Counts the checkpoints of a core in one generation.
    pub(crate) sequence: u64,
}

/// What a log looked like, up to its recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct LogSnapshot {
    pub(crate) log_start: i64,
    /// The recovery point: everything below was flushed.
    pub(crate) recovery_offset: i64,
    pub(crate) recovery_segment: i64,
    pub(crate) recovery_position: u64,
    /// Space was prepared behind the end of the last segment, and not cut off.
    pub(crate) untrimmed: bool,
    /// Segments up to the one with the recovery point.
    pub(crate) segments: Vec<SegmentSnapshot>,
    /// Leader epochs and their first offsets.
    pub(crate) epochs: Vec<(i32, i64)>,
    pub(crate) producers: Vec<ProducerSnapshot>,
}

/// A segment up to the recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct SegmentSnapshot {
    pub(crate) base_offset: i64,
    pub(crate) size: u64,
    /// The largest timestamp, and the last offset of the first batch that has it.
    pub(crate) max_time: Option<(i64, i64)>,
    /// Entries in the index files.
    pub(crate) offset_entries: u32,
    pub(crate) time_entries: u32,
    /// Bytes of batches from the last offset entry on, and the timestamp of the last time entry. Of the segment with the recovery
    /// point more than its size where only the index files tell.
    pub(crate) bytes_since_entry: u64,
    pub(crate) last_time: Option<i64>,
    /// Whether the index files are complete.
    pub(crate) index_complete: bool,
    pub(crate) first_append_at: Option<i64>,
    pub(crate) last_append_at: Option<i64>,
}

/// A producer of a log.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct ProducerSnapshot {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    pub(crate) active_at: i64,
    pub(crate) batches: Vec<ProducerBatchSnapshot>,
}

/// A batch of a producer.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct ProducerBatchSnapshot {
    pub(crate) base_sequence: i32,
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: i64,
    pub(crate) last_offset: i64,
    pub(crate) log_append_time: i64,
}

/// The list of logs.
#[derive(Archive, Serialize, Deserialize)]
struct Contents {
    generation: u64,
    sequence: u64,
    logs: Vec<Entry>,
}

/// Where a log lies.
#[derive(Archive, Serialize, Deserialize)]
struct Entry {
    topic_id: [u8; 16],
    partition: i32,
    generation: u64,
    sequence: u64,
    /// Files may have more than the snapshot says.
    active: bool,
    position: u64,
    len: u32,
}

/// A log's part of a checkpoint, where it was read.
#[derive(Debug, Clone)]
pub(crate) struct StoredLog {
    pub(crate) id: LogId,
    pub(crate) age: Age,
    /// Its files may have more than the snapshot says: they must be looked at.
    pub(crate) active: bool,
    bytes: Lease,
}

impl StoredLog {
    /// What it says; `None` if that is nothing a snapshot can be.
    pub(crate) fn snapshot(&self) -> Option<LogSnapshot> {
        let archived = rkyv::access::<ArchivedLogSnapshot, Malformed>(&self.bytes).ok()?;
        rkyv::deserialize::<LogSnapshot, Malformed>(archived).ok()
    }
}

/// What a checkpoint file says.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) age: Age,
    pub(crate) logs: Vec<StoredLog>,
}

/// A checkpoint file that is being written, log by log.
pub(crate) struct ArchiveWriter {
    /// What is finished; the first is the header's place.
    pieces: Vec<Lease>,
    /// Bytes behind the header in finished pieces, and their checksum.
    finished: usize,
    crc: u32,
    piece: AlignedVec<ALIGNMENT>,
    entries: Vec<Entry>,
}

impl ArchiveWriter {
    pub(crate) fn new() -> ArchiveWriter {
        let pieces = vec![Lease::empty()];
        ArchiveWriter { pieces, finished: 0, crc: 0, piece: AlignedVec::new(), entries: Vec::new() }
    }

    /// Adds a log.
    pub(crate) fn add(&mut self, id: LogId, age: Age, active: bool, snapshot: &LogSnapshot) {
        let start = self.piece.len();
        let piece = std::mem::take(&mut self.piece);
        let written = rkyv::api::high::to_bytes_in::<_, Malformed>(snapshot, piece);
        self.piece = written.expect("a snapshot in memory can be written to memory");
        self.note(id, age, active, start);
    }

    /// Adds a log as another checkpoint has it.
    pub(crate) fn add_stored(&mut self, stored: &StoredLog) {
        let start = self.piece.len();
        self.piece.extend_from_slice(&stored.bytes);
        self.note(stored.id, stored.age, stored.active, start);
    }

    fn note(&mut self, id: LogId, age: Age, active: bool, start: usize) {
        let len = u32::try_from(self.piece.len() - start).expect("a log's part is below 4 GiB");
        self.piece.resize(self.piece.len().next_multiple_of(ALIGNMENT), 0);
        self.entries.push(Entry {
            topic_id: id.topic.bytes(),
            partition: id.partition.get(),
            generation: age.generation,
            sequence: age.sequence,
            active,
            position: (self.finished + start) as u64,
            len,
        });
    }

    /// Puts what was added since the last time into a piece of its own: nothing here grows beyond what lies between.
    pub(crate) fn end_piece(&mut self) {
        let piece = std::mem::take(&mut self.piece);
        self.push(piece.to_vec());
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.crc = crc32c_append(self.crc, &bytes);
        self.finished += bytes.len();
        self.pieces.push(Lease::from_vec(bytes));
    }

    /// The whole file, in pieces.
    pub(crate) fn finish(mut self, age: Age) -> Vec<Lease> {
        self.end_piece();
        let logs = std::mem::take(&mut self.entries);
        let contents = Contents { generation: age.generation, sequence: age.sequence, logs };
        let list = rkyv::to_bytes::<Malformed>(&contents).expect("a list in memory can be written to memory");
        self.push(list.to_vec());
        let mut header = Vec::with_capacity(CHECKPOINT_HEADER_LEN);
        header.extend_from_slice(&CHECKPOINT_MAGIC);
        header.extend_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        header.extend_from_slice(&self.crc.to_le_bytes());
        header.extend_from_slice(&(self.finished as u64).to_le_bytes());
        header.resize(CHECKPOINT_HEADER_LEN, 0);
        self.pieces[0] = Lease::from_vec(header);
        self.pieces
    }
}

/// What these bytes of a file say, or why they say nothing. They start at a multiple of 16 in memory.
pub(crate) fn read(bytes: Lease) -> Result<Stored, &'static str> {
    let (header, body) = bytes.split_first_chunk::<CHECKPOINT_HEADER_LEN>().ok_or("too short")?;
    let (magic, rest) = header.split_first_chunk().expect("the header is longer");
    let (version, rest) = rest.split_first_chunk().expect("the header is longer");
    let (crc, rest) = rest.split_first_chunk().expect("the header is longer");
    let (len, zeros) = rest.split_first_chunk().expect("the header is longer");
    if *magic != CHECKPOINT_MAGIC {
        return Err("not a checkpoint");
    }
    let version = u32::from_le_bytes(*version);
    if version != CHECKPOINT_VERSION && version != archive_1::VERSION {
        return Err("another version");
    }
    if u64::from_le_bytes(*len) != body.len() as u64 || zeros.iter().any(|byte| *byte != 0) {
        return Err("torn");
    }
    if u32::from_le_bytes(*crc) != crc32c(body) {
        return Err("the checksum does not match");
    }
    if version == archive_1::VERSION {
        return read_version_1(body);
    }
    // The list ends the file; what it points to lies before it.
    let contents = rkyv::access::<ArchivedContents, Malformed>(body).map_err(|_| "malformed")?;
    let age = Age { generation: contents.generation.to_native(), sequence: contents.sequence.to_native() };
    let logs: Option<Vec<StoredLog>> = contents.logs.iter().map(|entry| stored(entry, &bytes)).collect();
    Ok(Stored { age, logs: logs.ok_or("malformed")? })
}

fn stored(entry: &ArchivedEntry, bytes: &Lease) -> Option<StoredLog> {
    let start = CHECKPOINT_HEADER_LEN.checked_add(usize::try_from(entry.position.to_native()).ok()?)?;
    let end = start.checked_add(entry.len.to_native() as usize)?;
    (end <= bytes.len()).then(|| StoredLog {
        id: LogId { topic: TopicId::new(entry.topic_id), partition: PartitionIndex::new(entry.partition.to_native()) },
        age: Age { generation: entry.generation.to_native(), sequence: entry.sequence.to_native() },
        active: entry.active,
        bytes: bytes.slice(start..end),
    })
}

/// A checkpoint of the first version, written anew. It did not say which logs were idle.
fn read_version_1(body: &[u8]) -> Result<Stored, &'static str> {
    let (generation, logs) = archive_1::read(body)?;
    let mut writer = ArchiveWriter::new();
    for (id, age, snapshot) in &logs {
        writer.add(*id, *age, true, snapshot);
    }
    read(joined(&writer.finish(Age { generation, sequence: 0 })))
}

/// The pieces as one, aligned.
pub(crate) fn joined(pieces: &[Lease]) -> Lease {
    let mut whole = Buffer::aligned(pieces.iter().map(|piece| piece.len()).sum());
    for piece in pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(size: u64) -> LogSnapshot {
        let segment = SegmentSnapshot {
            base_offset: 0,
            size,
            max_time: Some((5, 6)),
            offset_entries: 1,
            time_entries: 2,
            bytes_since_entry: 3,
            last_time: None,
            index_complete: false,
            first_append_at: Some(1),
            last_append_at: None,
        };
        let batch = ProducerBatchSnapshot {
            base_sequence: 0,
            last_sequence: 1,
            base_offset: 2,
            last_offset: 3,
            log_append_time: -1,
        };
        let producer = ProducerSnapshot { id: 9, epoch: 1, active_at: 7, batches: vec![batch] };
        LogSnapshot {
            log_start: 0,
            recovery_offset: 8,
            recovery_segment: 0,
            recovery_position: size,
            untrimmed: true,
            segments: vec![segment; 3],
            epochs: vec![(0, 0), (4, 2)],
            producers: vec![producer],
        }
    }

    fn id(partition: i32) -> LogId {
        LogId { topic: TopicId::new([7; 16]), partition: PartitionIndex::new(partition) }
    }

    fn age(sequence: u64) -> Age {
        Age { generation: 3, sequence }
    }

    fn archive() -> Lease {
        let mut writer = ArchiveWriter::new();
        for number in 0..50 {
            writer.add(id(number), age(2), number % 2 == 0, &snapshot(u64::from(number.unsigned_abs()) + 1));
            if number % 7 == 0 {
                writer.end_piece();
            }
        }
        joined(&writer.finish(age(2)))
    }

    #[test]
    fn each_log_is_read_where_it_lies() {
        let first = read(archive()).unwrap();
        assert_eq!((first.age, first.logs.len()), (age(2), 50));
        let mut again = ArchiveWriter::new();
        for (number, log) in (0i32..).zip(&first.logs) {
            assert_eq!((log.id, log.age, log.active), (id(number), age(2), number % 2 == 0));
            assert_eq!(log.snapshot().unwrap(), snapshot(u64::from(number.unsigned_abs()) + 1));
            again.add_stored(log);
        }
        let second = read(joined(&again.finish(age(9)))).unwrap();
        assert_eq!(second.age, age(9));
        for (before, after) in first.logs.iter().zip(&second.logs) {
            assert_eq!((before.age, before.snapshot()), (after.age, after.snapshot()), "carried on as it was");
        }
    }

    #[test]
    fn an_archive_that_was_harmed_says_nothing() {
        let whole = archive();
        for len in [0, 8, CHECKPOINT_HEADER_LEN, whole.len() - 1] {
            assert!(read(joined(&[whole.slice(0..len)])).is_err(), "cut to {len}");
        }
        for at in (0..whole.len()).step_by(11) {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 4;
            let found = read(joined(&[Lease::from_vec(bytes)]));
            assert!(found.is_err(), "a flipped bit at {at}");
        }
    }
}
