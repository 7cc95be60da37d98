//! The two indexes of a segment, in Kafka's format: offsets to positions and timestamps to offsets.
//!
//! Owns the bytes of an entry and which batches get one. Entries are sparse and always derived from the batches: a lost or
//! torn index is written again, never trusted. Does no IO; `segment.rs` reads and writes the files.

use heddle_record::{Offset, Timestamp};

/// Bytes of an entry of an offset index: relative offset and position, 4 bytes each.
pub const OFFSET_ENTRY_LEN: usize = 8;
/// Bytes of an entry of a time index: timestamp in 8 bytes, relative offset in 4.
pub const TIME_ENTRY_LEN: usize = 12;

/// An entry of an offset index: the batch that ends with `last_offset` starts at `position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetEntry {
    /// The last offset of the batch.
    pub last_offset: Offset,
    /// Where the batch starts in the segment, in bytes.
    pub position: u32,
}

/// An entry of a time index: no record up to `last_offset` is later than `timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeEntry {
    /// The largest timestamp so far in the segment.
    pub timestamp: Timestamp,
    /// The last offset of the first batch that has it.
    pub last_offset: Offset,
}

impl OffsetEntry {
    /// The bytes of this entry in the index of the segment that starts at `base_offset`.
    ///
    /// # Panics
    /// If the offset is further from the base than 31 bits tell; segments are sealed before.
    pub fn encode(self, base_offset: Offset) -> [u8; OFFSET_ENTRY_LEN] {
        let mut bytes = [0; OFFSET_ENTRY_LEN];
        bytes[..4].copy_from_slice(&relative(self.last_offset, base_offset).to_be_bytes());
        bytes[4..].copy_from_slice(&self.position.to_be_bytes());
        bytes
    }

    /// The entry with these bytes; `None` if no index can contain it.
    pub fn decode(bytes: [u8; OFFSET_ENTRY_LEN], base_offset: Offset) -> Option<OffsetEntry> {
        let [a, b, c, d, position @ ..] = bytes;
        let last_offset = absolute(i32::from_be_bytes([a, b, c, d]), base_offset)?;
        let position = u32::from_be_bytes(position);
        (position <= i32::MAX as u32).then_some(OffsetEntry { last_offset, position })
    }
}

impl TimeEntry {
    /// The bytes of this entry in the index of the segment that starts at `base_offset`.
    ///
    /// # Panics
    /// If the offset is further from the base than 31 bits tell; segments are sealed before.
    pub fn encode(self, base_offset: Offset) -> [u8; TIME_ENTRY_LEN] {
        let mut bytes = [0; TIME_ENTRY_LEN];
        bytes[..8].copy_from_slice(&self.timestamp.get().to_be_bytes());
        bytes[8..].copy_from_slice(&relative(self.last_offset, base_offset).to_be_bytes());
        bytes
    }

    /// The entry with these bytes; `None` if no index can contain it.
    pub fn decode(bytes: [u8; TIME_ENTRY_LEN], base_offset: Offset) -> Option<TimeEntry> {
        let [a, b, c, d, e, f, g, h, relative @ ..] = bytes;
        let timestamp = Timestamp::new(i64::from_be_bytes([a, b, c, d, e, f, g, h]));
        let last_offset = absolute(i32::from_be_bytes(relative), base_offset)?;
        Some(TimeEntry { timestamp, last_offset })
    }
}

fn relative(offset: Offset, base_offset: Offset) -> i32 {
    let distance = offset.distance_from(base_offset).expect("offsets of a log are not negative");
    assert!(distance >= 0, "an entry lies in its segment");
    i32::try_from(distance).expect("a segment is sealed before its offsets outgrow 31 bits")
}

fn absolute(relative: i32, base_offset: Offset) -> Option<Offset> {
    if relative < 0 { None } else { base_offset.checked_add(i64::from(relative)) }
}

/// Decodes the longest prefix of an offset index in which offsets and positions ascend.
///
/// An index file may end in zeros, in a torn entry or, after a power cut, in anything: what does not fit ends the prefix.
pub fn decode_offset_index(bytes: &[u8], base_offset: Offset) -> Vec<OffsetEntry> {
    let mut entries: Vec<OffsetEntry> = Vec::with_capacity(bytes.len() / OFFSET_ENTRY_LEN);
    for chunk in bytes.as_chunks().0 {
        let Some(entry) = OffsetEntry::decode(*chunk, base_offset) else { break };
        let ascends =
            entries.last().is_none_or(|last| last.last_offset < entry.last_offset && last.position < entry.position);
        if !ascends {
            break;
        }
        entries.push(entry);
    }
    entries
}

/// Decodes the longest prefix of a time index in which timestamps and offsets ascend.
pub fn decode_time_index(bytes: &[u8], base_offset: Offset) -> Vec<TimeEntry> {
    let mut entries: Vec<TimeEntry> = Vec::with_capacity(bytes.len() / TIME_ENTRY_LEN);
    for chunk in bytes.as_chunks().0 {
        let Some(entry) = TimeEntry::decode(*chunk, base_offset) else { break };
        let ascends =
            entries.last().is_none_or(|last| last.timestamp < entry.timestamp && last.last_offset <= entry.last_offset);
        if !ascends {
            break;
        }
        entries.push(entry);
    }
    entries
}

/// What the indexes need to know of a batch.
#[derive(Debug, Clone, Copy)]
pub struct IndexedBatch {
    /// Where it starts in the segment, in bytes.
    pub position: u32,
    /// Its length in bytes.
    pub len: u32,
    /// Its last offset.
    pub last_offset: Offset,
    /// The largest timestamp in it; -1 is none.
    pub max_timestamp: Timestamp,
}

/// Chooses which batches of a segment get entries, and keeps the entries that are not in the files yet.
///
/// An offset entry is due for the first batch after [`crate::LogConfig::index_interval_bytes`] without one, a time entry
/// goes with it if time has advanced; sealing adds a last time entry. These are Kafka's rules, so that its tools find the
/// entries that they expect.
#[derive(Debug, Clone, Default)]
pub struct IndexBuilder {
    /// Bytes of batches since the last entry.
    bytes_since_entry: u64,
    /// The largest timestamp of the segment, and the last offset of the first batch that has it.
    max: Option<TimeEntry>,
    /// The timestamp of the last time entry.
    last_time: Option<Timestamp>,
    /// Offset entries that the file does not have yet.
    pub(crate) pending_offsets: Vec<OffsetEntry>,
    /// Time entries that the file does not have yet.
    pub(crate) pending_times: Vec<TimeEntry>,
    /// Entries in the offset index file.
    pub(crate) offsets_in_file: u32,
    /// Entries in the time index file.
    pub(crate) times_in_file: u32,
    /// A checkpoint says what the files have; nobody has looked.
    pub(crate) is_believed: bool,
}

impl IndexBuilder {
    /// Goes on with the indexes of a segment whose files hold these entries and whose batches take `size` bytes.
    pub fn resume(offsets: &[OffsetEntry], times: &[TimeEntry], max: Option<TimeEntry>, size: u64) -> Self {
        // The count starts anew with the batch that got an entry.
        let last_entry_at = offsets.last().map_or(0, |entry| u64::from(entry.position));
        IndexBuilder {
            bytes_since_entry: size - last_entry_at,
            max,
            last_time: times.last().map(|entry| entry.timestamp),
            offsets_in_file: offsets.len() as u32,
            times_in_file: times.len() as u32,
            ..IndexBuilder::default()
        }
    }

    /// The indexes of a segment whose files hold what this builder's did that had the same numbers.
    pub fn restore(
        offsets_in_file: u32,
        times_in_file: u32,
        max: Option<TimeEntry>,
        last_time: Option<Timestamp>,
        bytes_since_entry: u64,
    ) -> Self {
        let is_believed = offsets_in_file > 0 || times_in_file > 0;
        IndexBuilder {
            bytes_since_entry,
            max,
            last_time,
            offsets_in_file,
            times_in_file,
            is_believed,
            ..IndexBuilder::default()
        }
    }

    /// The indexes of a sealed segment whose files are complete.
    pub fn complete(offsets_in_file: u32, times_in_file: u32, max: Option<TimeEntry>) -> Self {
        let last_time = max.map(|max| max.timestamp);
        IndexBuilder { max, last_time, offsets_in_file, times_in_file, ..IndexBuilder::default() }
    }

    /// This builder saw the batches before position `end` again; what `old` knows of batches behind it is added.
    pub fn continue_with(&mut self, old: &IndexBuilder, end: u64) {
        let behind = old.pending_offsets.iter().filter(|entry| u64::from(entry.position) >= end);
        self.pending_offsets.extend(behind);
        let later = |time: &&TimeEntry| self.last_time.is_none_or(|last| last < time.timestamp);
        let times: Vec<TimeEntry> = old.pending_times.iter().filter(later).copied().collect();
        self.last_time = times.last().map(|time| time.timestamp).or(self.last_time);
        self.pending_times.extend(times);
        self.bytes_since_entry = old.bytes_since_entry;
        self.max = old.max;
    }

    /// Notes a batch that was put at the end of the segment.
    pub fn note(&mut self, batch: IndexedBatch, interval_bytes: u32) {
        if batch.max_timestamp > self.max.map_or(Timestamp::NONE, |max| max.timestamp) {
            self.max = Some(TimeEntry { timestamp: batch.max_timestamp, last_offset: batch.last_offset });
        }
        if self.bytes_since_entry > u64::from(interval_bytes) {
            self.pending_offsets.push(OffsetEntry { last_offset: batch.last_offset, position: batch.position });
            self.note_time();
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry += u64::from(batch.len);
    }

    /// Adds the last time entry: the segment gets no more batches, or the process stops.
    pub fn seal(&mut self) {
        self.note_time();
    }

    fn note_time(&mut self) {
        let Some(max) = self.max else { return };
        if self.last_time.is_none_or(|last| last < max.timestamp) {
            self.last_time = Some(max.timestamp);
            self.pending_times.push(max);
        }
    }

    /// The largest timestamp of the segment and the last offset of the first batch that has it.
    pub fn max(&self) -> Option<TimeEntry> {
        self.max
    }

    /// The timestamp of the last time entry, in the file or not.
    pub fn last_time(&self) -> Option<Timestamp> {
        self.last_time
    }

    /// Bytes of batches since the last offset entry.
    pub fn bytes_since_entry(&self) -> u64 {
        self.bytes_since_entry
    }

    /// Bytes from the last batch that has an entry in the offset index file to `end`, where a batch ends, in a segment whose
    /// batches take `size` bytes; the whole of it if none has. `None` if the files do not have every entry up to there, or
    /// have one behind.
    pub fn bytes_from_last_in_file(&self, size: u64, end: u64) -> Option<u64> {
        let is_in_file = self.pending_offsets.is_empty() && self.pending_times.is_empty();
        let last = size.checked_sub(self.bytes_since_entry).filter(|_| is_in_file)?;
        end.checked_sub(last).filter(|bytes| *bytes > 0 || end == 0)
    }

    /// Offset entries, in the file or not.
    pub fn offset_entries(&self) -> u32 {
        self.offsets_in_file + self.pending_offsets.len() as u32
    }

    /// The last entry at or below `offset` among those that are not in the file.
    pub fn pending_floor(&self, offset: Offset) -> Option<OffsetEntry> {
        floor(&self.pending_offsets, |entry| entry.last_offset <= offset)
    }
}

/// The last of `entries` for which `is_below` holds; it holds for a prefix of them.
pub fn floor<T: Copy>(entries: &[T], is_below: impl Fn(&T) -> bool) -> Option<T> {
    let above = entries.partition_point(is_below);
    above.checked_sub(1).and_then(|index| entries.get(index)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Offset = Offset::new(1000);

    fn batch(position: u32, last_offset: i64, timestamp: i64) -> IndexedBatch {
        IndexedBatch {
            position,
            len: 100,
            last_offset: Offset::new(last_offset),
            max_timestamp: Timestamp::new(timestamp),
        }
    }

    #[test]
    fn entries_are_kafkas_bytes() {
        let entry = OffsetEntry { last_offset: Offset::new(1258), position: 0x0102_0304 };
        assert_eq!(entry.encode(BASE), [0, 0, 1, 2, 1, 2, 3, 4]);
        assert_eq!(OffsetEntry::decode(entry.encode(BASE), BASE), Some(entry));
        let time = TimeEntry { timestamp: Timestamp::new(0x0102_0304_0506), last_offset: Offset::new(1001) };
        assert_eq!(time.encode(BASE), [0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 1]);
        assert_eq!(TimeEntry::decode(time.encode(BASE), BASE), Some(time));
    }

    #[test]
    #[should_panic(expected = "31 bits")]
    fn offsets_beyond_31_bits_have_no_entry() {
        OffsetEntry { last_offset: Offset::new(1000 + (1 << 31)), position: 0 }.encode(BASE);
    }

    #[test]
    fn torn_and_zeroed_indexes_end_early() {
        let entries = [(1010, 100), (1020, 200), (1030, 300)];
        let mut bytes: Vec<u8> = entries
            .iter()
            .flat_map(|&(offset, position)| OffsetEntry { last_offset: Offset::new(offset), position }.encode(BASE))
            .collect();
        assert_eq!(decode_offset_index(&bytes, BASE).len(), 3);
        assert_eq!(decode_offset_index(&bytes[..23], BASE).len(), 2, "torn in the last entry");
        bytes.extend([0; 16]);
        assert_eq!(decode_offset_index(&bytes, BASE).len(), 3, "zeros behind");
        bytes[8..12].copy_from_slice(&(-5i32).to_be_bytes());
        assert_eq!(decode_offset_index(&bytes, BASE).len(), 1, "garbage in the middle");
        assert_eq!(decode_time_index(&[0xff; 30], BASE).len(), 0);
    }

    #[test]
    fn entries_are_due_by_kafkas_rules() {
        let mut index = IndexBuilder::default();
        // 100-byte batches, an entry after more than 250 bytes: the 4th batch (300 bytes before it), then the 7th.
        for (number, timestamp) in [10, 20, 30, 25, 26, 27, 28, 40].into_iter().enumerate() {
            index.note(batch(number as u32 * 100, 1000 + number as i64, timestamp), 250);
        }
        let offsets: Vec<_> =
            index.pending_offsets.iter().map(|entry| (entry.last_offset.get(), entry.position)).collect();
        assert_eq!(offsets, [(1003, 300), (1006, 600)]);
        let times = |index: &IndexBuilder| -> Vec<_> {
            index.pending_times.iter().map(|entry| (entry.timestamp.get(), entry.last_offset.get())).collect()
        };
        assert_eq!(times(&index), [(30, 1002)], "time did not advance with the second");
        index.seal();
        index.seal();
        assert_eq!(times(&index), [(30, 1002), (40, 1007)]);
        assert_eq!(index.pending_floor(Offset::new(1005)).unwrap().position, 300);
        assert_eq!(index.pending_floor(Offset::new(1002)), None);
    }

    #[test]
    fn what_the_files_have_is_known_while_nothing_waits_to_be_written() {
        let mut index = IndexBuilder::default();
        assert_eq!(index.bytes_from_last_in_file(0, 0), Some(0));
        index.note(batch(0, 1000, 10), 150);
        index.note(batch(100, 1001, 20), 150);
        assert_eq!(index.bytes_from_last_in_file(200, 100), Some(100), "none has an entry");
        index.note(batch(200, 1002, 30), 150);
        assert_eq!(index.bytes_from_last_in_file(300, 300), None, "the entry waits");
        index = IndexBuilder::restore(1, 1, index.max(), index.last_time(), index.bytes_since_entry());
        index.note(batch(300, 1003, 40), 150);
        assert_eq!(index.bytes_from_last_in_file(400, 400), Some(200));
        assert_eq!(index.bytes_from_last_in_file(400, 300), Some(100));
        assert_eq!(index.bytes_from_last_in_file(400, 200), None, "the entry is of a batch behind");
    }

    #[test]
    fn records_without_timestamps_leave_no_time() {
        let mut index = IndexBuilder::default();
        index.note(batch(0, 1000, -1), 0);
        index.note(batch(100, 1001, -1), 0);
        index.seal();
        assert_eq!(index.max(), None);
        assert!(index.pending_times.is_empty());
        assert_eq!(index.pending_offsets.len(), 1);
    }
}
