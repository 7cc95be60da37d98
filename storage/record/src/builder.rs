//! Building record batches: by a producer from records, by a broker from a batch it read.
//!
//! Owns the layout of a batch that is written. It never looks at a clock: timestamps come with the records.

use alloc::vec::Vec;
use core::fmt;

use crate::batch::{Attributes, BatchHeader, Flag, HEADER_LEN, LOG_OVERHEAD, MAGIC, TimestampType, crc_of};
use crate::compression::{self, Compression, CompressionError};
use crate::id::{LeaderEpoch, ProducerEpoch, ProducerId, Sequence, Timestamp};
use crate::offset::Offset;
use crate::record::{self, Header, Prefix, Record};

/// A header to be written; what [`crate::Headers::iter`] yields.
pub type RecordHeader<'a> = Header<'a>;

/// What a batch says about itself besides its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Offset of the first record; a producer writes 0.
    pub base_offset: Offset,
    /// The leadership that appends; a producer writes -1.
    pub partition_leader_epoch: LeaderEpoch,
    /// How the records are compressed.
    pub compression: Compression,
    /// The codec's level, or its default: see [`compression::compress`].
    pub compression_level: Option<i32>,
    /// With a time here every record reads as appended then.
    pub log_append_time: Option<Timestamp>,
    /// The idempotent producer, or [`ProducerId::NONE`].
    pub producer_id: ProducerId,
    /// Its incarnation.
    pub producer_epoch: ProducerEpoch,
    /// The sequence of the first record.
    pub base_sequence: Sequence,
    /// Whether the batch belongs to a transaction.
    pub transactional: bool,
    /// Whether the batch is a broker's marker.
    pub control: bool,
}

impl Default for BatchOptions {
    /// What a producer that is not idempotent writes, uncompressed.
    fn default() -> Self {
        BatchOptions {
            base_offset: Offset::ZERO,
            partition_leader_epoch: LeaderEpoch::NONE,
            compression: Compression::None,
            compression_level: None,
            log_append_time: None,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::NONE,
            base_sequence: Sequence::NONE,
            transactional: false,
            control: false,
        }
    }
}

/// Collects records and writes them as one batch.
///
/// [`BatchBuilder::new`] starts a new batch: offsets and timestamps follow from what is pushed.
/// [`BatchBuilder::rewrite`] starts from the header of a batch that exists: it keeps its offsets, timestamps and
/// producer whatever records are retained, as recompression needs. [`BatchBuilder::compact`] is the same for compaction,
/// where the timestamps follow from the records that are kept; [`BatchBuilder::emptied`] is what it leaves of a batch
/// without any.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    /// The header as it will be written, but for length, count and checksum.
    header: BatchHeader,
    compression: Compression,
    compression_level: Option<i32>,
    /// The records, coded, not compressed.
    records: Vec<u8>,
    count: i32,
    kind: Kind,
}

/// Where offsets and timestamps come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Rewrite,
    /// Deltas counted from this timestamp in the batch that is compacted.
    Compact(Timestamp),
}

impl BatchBuilder {
    /// A new batch without records.
    pub fn new(options: BatchOptions) -> Self {
        let timestamps = match options.log_append_time {
            Some(_) => TimestampType::LogAppendTime,
            None => TimestampType::CreateTime,
        };
        let flags = [(Flag::Transactional, options.transactional), (Flag::Control, options.control)];
        let header = BatchHeader {
            base_offset: options.base_offset,
            batch_length: 0,
            partition_leader_epoch: options.partition_leader_epoch,
            magic: MAGIC,
            crc: 0,
            attributes: Attributes::of(options.compression, timestamps, flags),
            last_offset_delta: -1,
            base_timestamp: Timestamp::NONE,
            max_timestamp: options.log_append_time.unwrap_or(Timestamp::NONE),
            producer_id: options.producer_id,
            producer_epoch: options.producer_epoch,
            base_sequence: options.base_sequence,
            record_count: 0,
        };
        Self::with_header(header, options.compression, options.compression_level, Kind::New)
    }

    /// A batch that keeps everything `header` says but length, count, checksum and codec; the records to keep are given
    /// to [`BatchBuilder::retain`].
    pub fn rewrite(header: &BatchHeader, compression: Compression, compression_level: Option<i32>) -> Self {
        let header = BatchHeader { attributes: header.attributes.with_compression(compression), ..*header };
        Self::with_header(header, compression, compression_level, Kind::Rewrite)
    }

    /// What compaction leaves of a batch that keeps some of its records, which are given to [`BatchBuilder::keep`]: its
    /// offsets, producer, codec and epoch stay. `delete_horizon` is the time from which its tombstones may go (KIP-534);
    /// it becomes the base timestamp. Otherwise that is the first kept record's, and the max timestamp the largest kept.
    ///
    /// # Panics
    /// If the codec is none of Kafka's; such a batch could not be read.
    pub fn compact(header: &BatchHeader, delete_horizon: Option<Timestamp>) -> Self {
        let compression = header.attributes.compression().expect("a batch that was read has a known codec");
        let original_base = header.base_timestamp;
        let mut header = BatchHeader {
            attributes: header.attributes.with_delete_horizon(delete_horizon.is_some()),
            base_timestamp: delete_horizon.unwrap_or(Timestamp::NONE),
            ..*header
        };
        if header.attributes.timestamp_type() == TimestampType::CreateTime {
            header.max_timestamp = Timestamp::NONE;
        }
        Self::with_header(header, compression, None, Kind::Compact(original_base))
    }

    /// A batch without records that stands for what was there: offsets, producer and sequence stay, and the max timestamp,
    /// as Kafka's cleaner leaves it.
    pub fn emptied(header: &BatchHeader) -> [u8; HEADER_LEN] {
        let attributes = header.attributes.with_compression(Compression::None).with_delete_horizon(false);
        let length = i32::try_from(HEADER_LEN - LOG_OVERHEAD).expect("a header is short");
        let mut header = BatchHeader {
            attributes,
            batch_length: length,
            base_timestamp: Timestamp::NONE,
            record_count: 0,
            ..*header
        };
        header.crc = crc_of(&header.encode(), &[]);
        header.encode()
    }

    fn with_header(header: BatchHeader, compression: Compression, level: Option<i32>, kind: Kind) -> Self {
        BatchBuilder { header, compression, compression_level: level, records: Vec::new(), count: 0, kind }
    }

    /// Adds a record at the next offset. Its timestamp may be anything; the first one becomes the base timestamp.
    ///
    /// # Errors
    /// [`BuildError::TooLarge`] if the batch would exceed 2^31-1 bytes; it stays as it was.
    ///
    /// # Panics
    /// On a builder made by [`BatchBuilder::rewrite`].
    pub fn push(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[RecordHeader<'_>],
    ) -> Result<(), BuildError> {
        assert!(self.kind == Kind::New, "a rewritten batch has no next offset");
        let base = if self.count == 0 { timestamp } else { self.header.base_timestamp };
        let timestamp_delta = timestamp.get().wrapping_sub(base.get());
        let prefix = Prefix { attributes: 0, timestamp_delta, offset_delta: self.count, key, value };
        let headers_len = headers.iter().map(|h| record::len_bytes(Some(h.key)) + record::len_bytes(h.value)).sum();
        self.make_room(prefix.size(headers.len(), headers_len))?;
        prefix.write(headers.len(), headers_len, &mut self.records);
        for header in headers {
            record::write_bytes(Some(header.key), &mut self.records);
            record::write_bytes(header.value, &mut self.records);
        }
        self.header.base_timestamp = base;
        self.header.last_offset_delta = self.count;
        if self.header.attributes.timestamp_type() == TimestampType::CreateTime {
            self.header.max_timestamp =
                if self.count == 0 { timestamp } else { self.header.max_timestamp.max(timestamp) };
        }
        self.count += 1;
        Ok(())
    }

    /// Keeps a record of the batch that is rewritten, at its own offset.
    ///
    /// # Errors
    /// [`BuildError::TooLarge`] if the batch would exceed 2^31-1 bytes; it stays as it was.
    ///
    /// # Panics
    /// On a builder made by [`BatchBuilder::new`].
    pub fn retain(&mut self, record: &Record<'_>) -> Result<(), BuildError> {
        assert!(self.kind == Kind::Rewrite, "a new batch gives its records their offsets");
        self.make_room(record.size())?;
        record.write(&mut self.records);
        self.count += 1;
        Ok(())
    }

    /// Keeps a record of the batch that is compacted, at its own offset and time.
    ///
    /// # Errors
    /// [`BuildError::TooLarge`] if the batch would exceed 2^31-1 bytes; it stays as it was.
    ///
    /// # Panics
    /// On a builder that [`BatchBuilder::compact`] has not made.
    pub fn keep(&mut self, record: &Record<'_>) -> Result<(), BuildError> {
        let Kind::Compact(original_base) = self.kind else { panic!("only a compacted batch keeps records") };
        let is_append_time = self.header.attributes.timestamp_type() == TimestampType::LogAppendTime;
        let timestamp = match is_append_time {
            true => self.header.max_timestamp,
            false => Timestamp(original_base.get().wrapping_add(record.timestamp_delta)),
        };
        let has_base = self.count > 0 || self.header.attributes.has_delete_horizon();
        let base = if has_base { self.header.base_timestamp } else { timestamp };
        let moved = Record { timestamp_delta: timestamp.get().wrapping_sub(base.get()), ..*record };
        self.make_room(moved.size())?;
        moved.write(&mut self.records);
        self.header.base_timestamp = base;
        if !is_append_time {
            self.header.max_timestamp =
                if self.count == 0 { timestamp } else { self.header.max_timestamp.max(timestamp) };
        }
        self.count += 1;
        Ok(())
    }

    /// Refuses a record of `size` bytes that the length field of the batch could not count.
    fn make_room(&mut self, size: usize) -> Result<(), BuildError> {
        let length = self.size_uncompressed() - LOG_OVERHEAD + size;
        if length > i32::MAX as usize {
            return Err(BuildError::TooLarge { length });
        }
        self.records.reserve(size);
        Ok(())
    }

    /// Whether the records will be compressed.
    pub fn is_compressed(&self) -> bool {
        self.compression != Compression::None
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size of the batch in bytes, header included, if it were not compressed.
    pub fn size_uncompressed(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// What [`BatchBuilder::push`] would add to [`BatchBuilder::size_uncompressed`] at most, whatever the timestamps and
    /// however many records there are.
    pub fn record_size_max(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[RecordHeader<'_>]) -> usize {
        let headers_len = headers.iter().map(|h| record::len_bytes(Some(h.key)) + record::len_bytes(h.value)).sum();
        let widest = Prefix { attributes: 0, timestamp_delta: i64::MIN, offset_delta: i32::MAX, key, value };
        widest.size(headers.len(), headers_len)
    }

    /// Appends the batch to `out` and returns its header. A batch without records is legal when rewriting.
    ///
    /// # Errors
    /// [`BuildError`]; `out` is then as it was.
    ///
    /// # Panics
    /// If a new batch has no records.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<BatchHeader, BuildError> {
        assert!(self.kind == Kind::Rewrite || self.count > 0, "a new batch has records");
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        let built = self.write_body(out).and_then(|()| self.write_header(out, start));
        if built.is_err() {
            out.truncate(start);
        }
        built
    }

    fn write_body(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        // An empty batch has no body at all, whatever its codec: that is how compaction leaves it.
        if self.count == 0 {
            return Ok(());
        }
        compression::compress(self.compression, self.compression_level, &self.records, out)?;
        Ok(())
    }

    /// Fills in the header now that the body is behind it.
    fn write_header(&mut self, out: &mut [u8], start: usize) -> Result<BatchHeader, BuildError> {
        let (_, batch) = out.split_at_mut(start);
        let (slot, body) = batch.split_first_chunk_mut::<HEADER_LEN>().expect("the header was reserved");
        let length = HEADER_LEN - LOG_OVERHEAD + body.len();
        self.header.batch_length = i32::try_from(length).map_err(|_| BuildError::TooLarge { length })?;
        self.header.record_count = self.count;
        self.header.crc = crc_of(&self.header.encode(), body);
        *slot = self.header.encode();
        Ok(self.header)
    }
}

/// Why a batch cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildError {
    /// It would be larger than the length field can say.
    TooLarge {
        /// What the length field would have to say.
        length: usize,
    },
    /// The codec failed.
    Compression(CompressionError),
}

impl From<CompressionError> for BuildError {
    fn from(error: CompressionError) -> Self {
        BuildError::Compression(error)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { length } => write!(f, "a record batch of length {length} is too large"),
            Self::Compression(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for BuildError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::validate::{Origin, validate};

    #[test]
    fn what_is_pushed_comes_back_whatever_the_codec() {
        let mut random = Random::new(5);
        for round in 0..300 {
            let codec = *Compression::ALL.get(round % 5).expect("five codecs");
            let mut builder = BatchBuilder::new(BatchOptions { compression: codec, ..BatchOptions::default() });
            let mut pushed = Vec::new();
            for _ in 0..=random.below(20) {
                let (key, value) = (random.optional_bytes(20), random.optional_bytes(400));
                let timestamp = Timestamp(random.below(1 << 40) as i64);
                let headers = [Header { key: b"name", value: value.as_deref() }, Header { key: b"", value: None }];
                let before = builder.size_uncompressed();
                builder.push(timestamp, key.as_deref(), value.as_deref(), &headers).unwrap();
                let added = builder.size_uncompressed() - before;
                assert!(added <= BatchBuilder::record_size_max(key.as_deref(), value.as_deref(), &headers));
                pushed.push((timestamp, key, value));
            }
            let mut out = alloc::vec![9; random.below(3)];
            let start = out.len();
            let written = builder.finish(&mut out).unwrap();
            let (_, bytes) = out.split_at(start);
            let batch = validate(bytes, Origin::Producer).unwrap();
            assert_eq!(*batch.header(), written);
            let mut scratch = Vec::new();
            let body = batch.uncompressed_body(1 << 20, &mut scratch).unwrap();
            let summary = batch.check_records(body, Origin::Producer).unwrap();
            assert_eq!(summary.max_timestamp, batch.max_timestamp());
            let read: Vec<_> = batch
                .records_in(body)
                .map(|record| {
                    let record = record.unwrap();
                    let timestamp = batch.header().timestamp_of(&record);
                    (timestamp, record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec))
                })
                .collect();
            assert_eq!(read, pushed);
        }
    }

    /// A batch of three records: a value, a tombstone, a value; at 1000, 3000 and 2000.
    fn three(options: BatchOptions) -> Vec<u8> {
        let mut builder = BatchBuilder::new(options);
        for (key, value, time) in [(b"a", Some(&b"1"[..]), 1000), (b"b", None, 3000), (b"c", Some(b"3"), 2000)] {
            builder.push(Timestamp(time), Some(key), value, &[Header { key: b"h", value: None }]).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        out
    }

    fn compacted(bytes: &[u8], keep: &[i32], horizon: Option<Timestamp>) -> Vec<u8> {
        let batch = validate(bytes, Origin::Log).unwrap();
        let mut scratch = Vec::new();
        let body = batch.uncompressed_body(1 << 20, &mut scratch).unwrap();
        let mut builder = BatchBuilder::compact(batch.header(), horizon);
        for record in batch.records_in(body).map(Result::unwrap) {
            if keep.contains(&record.offset_delta) {
                builder.keep(&record).unwrap();
            }
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn compaction_keeps_offsets_times_codec_and_producer() {
        for codec in Compression::ALL {
            let options = BatchOptions {
                base_offset: Offset::new(40),
                compression: codec,
                producer_id: ProducerId(7),
                producer_epoch: ProducerEpoch(1),
                base_sequence: Sequence(5),
                ..BatchOptions::default()
            };
            let original = three(options);
            for horizon in [None, Some(Timestamp(90_000))] {
                let bytes = compacted(&original, &[1, 2], horizon);
                let batch = validate(&bytes, Origin::Log).unwrap();
                let header = batch.header();
                assert_eq!((header.base_offset.get(), header.last_offset().get()), (40, 42));
                assert_eq!((header.base_sequence, header.last_sequence()), (Sequence(5), Sequence(7)));
                assert_eq!((batch.compression(), header.record_count), (Some(codec), 2));
                assert_eq!(header.attributes.has_delete_horizon(), horizon.is_some());
                assert_eq!(header.base_timestamp, horizon.unwrap_or(Timestamp(3000)));
                assert_eq!(header.max_timestamp, Timestamp(3000));
                let mut scratch = Vec::new();
                let body = batch.uncompressed_body(1 << 20, &mut scratch).unwrap();
                let kept: Vec<_> = batch
                    .records_in(body)
                    .map(Result::unwrap)
                    .map(|record| {
                        (header.offset_of(&record).get(), header.timestamp_of(&record).get(), record.headers.len())
                    })
                    .collect();
                assert_eq!(kept, [(41, 3000, 1), (42, 2000, 1)]);
                // Again, under the horizon that it has: the times are still the records' own.
                let again = compacted(&bytes, &[2], horizon);
                let batch = validate(&again, Origin::Log).unwrap();
                assert_eq!(batch.max_timestamp(), Timestamp(2000));
                assert_eq!(batch.base_timestamp(), horizon.unwrap_or(Timestamp(2000)));
            }
        }
    }

    #[test]
    fn a_log_append_time_stays_the_time_of_all_records() {
        let append_time = Some(Timestamp(5000));
        let original = three(BatchOptions { log_append_time: append_time, ..BatchOptions::default() });
        let bytes = compacted(&original, &[2], Some(Timestamp(9000)));
        let batch = validate(&bytes, Origin::Log).unwrap();
        let record = batch.records().next().unwrap().unwrap();
        assert_eq!((batch.max_timestamp(), batch.header().timestamp_of(&record)), (Timestamp(5000), Timestamp(5000)));
        assert_eq!(batch.base_timestamp(), Timestamp(9000));
    }

    #[test]
    fn an_emptied_batch_says_what_was_there() {
        let options = BatchOptions {
            base_offset: Offset::new(9),
            compression: Compression::Zstd,
            producer_id: ProducerId(7),
            producer_epoch: ProducerEpoch(1),
            base_sequence: Sequence(5),
            ..BatchOptions::default()
        };
        let original = three(options);
        let empty = BatchBuilder::emptied(validate(&original, Origin::Log).unwrap().header());
        let batch = validate(&empty, Origin::Log).unwrap();
        let header = batch.header();
        assert_eq!((batch.len(), header.batch_length, header.record_count), (HEADER_LEN, 49, 0));
        assert_eq!((header.last_offset().get(), header.last_sequence()), (11, Sequence(7)));
        assert_eq!((header.base_timestamp, header.max_timestamp), (Timestamp::NONE, Timestamp(3000)));
        assert_eq!((batch.compression(), batch.records().count()), (Some(Compression::None), 0));
    }

    #[test]
    #[should_panic(expected = "a new batch has records")]
    fn a_new_batch_is_not_empty() {
        let _ = BatchBuilder::new(BatchOptions::default()).finish(&mut Vec::new());
    }

    #[test]
    #[should_panic(expected = "compressed records must be decompressed")]
    fn compressed_records_are_not_read_as_they_are() {
        let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::Gzip, ..BatchOptions::default() });
        builder.push(Timestamp(0), None, None, &[]).unwrap();
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        let _ = validate(&out, Origin::Producer).unwrap().records();
    }
}
