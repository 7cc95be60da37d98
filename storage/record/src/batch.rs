//! The record batch of magic 2: its header, its borrowed view, a concatenation of them.
//!
//! Owns where each field is. Whether a batch may be believed is [`mod@crate::validate`]'s, the records inside are
//! [`crate::record`]'s, the fields that a broker sets [`crate::patch`]'s. It decompresses only when asked to.
//!
//! ```text
//!  0 base offset        8 batch length      12 partition leader epoch   16 magic   17 CRC-32C
//! 21 attributes        23 last offset delta 27 base timestamp           35 max timestamp
//! 43 producer id       51 producer epoch    53 base sequence            57 record count     61 records …
//! ```
//! All big-endian. The batch length counts from byte 12; the checksum covers byte 21 to the end.

use alloc::vec::Vec;
use core::fmt;

use crate::checksum::{crc32c, crc32c_append};
use crate::compression::{Compression, CompressionError, decompress};
use crate::id::{LeaderEpoch, ProducerEpoch, ProducerId, Sequence, Timestamp};
use crate::keys::RecordKeys;
use crate::offset::Offset;
use crate::record::{Record, RecordError, RecordIter, RecordsSummary};
use crate::thin::RecordSpans;
use crate::validate::{BatchError, Origin};

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
/// Bytes that the batch length does not count: base offset and the length itself.
pub const LOG_OVERHEAD: usize = 12;
/// The only record format that is spoken here.
pub const MAGIC: i8 = 2;

/// Where the bytes covered by the checksum begin.
pub(crate) const CRC_COVERS_FROM: usize = 21;
/// The smallest legal batch length: a header and no record.
pub(crate) const BATCH_LENGTH_MIN: usize = HEADER_LEN - LOG_OVERHEAD;
const _: () = assert!(BATCH_LENGTH_MIN == 49);

/// Who decides the timestamp of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer: base timestamp plus the record's delta.
    CreateTime,
    /// The broker: every record reads as the batch's max timestamp.
    LogAppendTime,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attributes(pub i16);

impl Attributes {
    const CODEC_MASK: i16 = 0x07;
    const LOG_APPEND_TIME: i16 = 0x08;
    const TRANSACTIONAL: i16 = 0x10;
    const CONTROL: i16 = 0x20;
    const DELETE_HORIZON: i16 = 0x40;

    /// The attributes with these properties and no delete horizon.
    pub(crate) fn of(compression: Compression, timestamps: TimestampType, flags: [(Flag, bool); 2]) -> Self {
        let mut bits = i16::from(compression.id());
        if timestamps == TimestampType::LogAppendTime {
            bits |= Self::LOG_APPEND_TIME;
        }
        for (flag, set) in flags {
            bits |= if set { flag as i16 } else { 0 };
        }
        Attributes(bits)
    }

    /// The same attributes, but for this codec.
    pub(crate) fn with_compression(self, compression: Compression) -> Self {
        Attributes(self.0 & !Self::CODEC_MASK | i16::from(compression.id()))
    }

    /// The same attributes, but with timestamps set by the broker.
    pub(crate) fn with_log_append_time(self) -> Self {
        Attributes(self.0 | Self::LOG_APPEND_TIME)
    }

    /// The same attributes, but with the producer's timestamps.
    pub(crate) fn with_create_time(self) -> Self {
        Attributes(self.0 & !Self::LOG_APPEND_TIME)
    }

    /// The same attributes, with or without a delete horizon.
    pub(crate) fn with_delete_horizon(self, has_horizon: bool) -> Self {
        let others = self.0 & !Self::DELETE_HORIZON;
        Attributes(if has_horizon { others | Self::DELETE_HORIZON } else { others })
    }

    /// The codec of the records, or `None` for the ids 5 to 7 that Kafka does not know.
    pub fn compression(self) -> Option<Compression> {
        Compression::from_id(self.codec_id())
    }

    /// The codec's id, 0 to 7.
    pub fn codec_id(self) -> u8 {
        (self.0 & Self::CODEC_MASK) as u8
    }

    /// Who set the timestamps.
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether the batch is a marker of the broker (end of a transaction), not data.
    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp is the time from which tombstones may go, set by compaction (KIP-534).
    pub fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }
}

/// The attribute bits that a builder may set by name.
#[derive(Clone, Copy)]
pub(crate) enum Flag {
    Transactional = Attributes::TRANSACTIONAL as isize,
    Control = Attributes::CONTROL as isize,
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes({:#06x})", self.0)
    }
}

/// Every field of a batch header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset that the batch's deltas count from. Compaction may have removed the record with delta 0.
    pub base_offset: Offset,
    /// Bytes after this field: the whole batch is [`LOG_OVERHEAD`] longer.
    pub batch_length: i32,
    /// The leadership that appended the batch; outside the checksum.
    pub partition_leader_epoch: LeaderEpoch,
    /// The format; always [`MAGIC`] in a [`RecordBatch`].
    pub magic: i8,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Codec, timestamp type, transactional, control, delete horizon.
    pub attributes: Attributes,
    /// Delta of the last offset that the batch covers, whether or not its record is still there.
    pub last_offset_delta: i32,
    /// What timestamp deltas count from; under a delete horizon, that horizon.
    pub base_timestamp: Timestamp,
    /// The largest timestamp. From a producer it is a claim and may be [`Timestamp::NONE`] (sarama never sets it): see
    /// [`RecordBatch::max_timestamp_is_plausible`].
    pub max_timestamp: Timestamp,
    /// The idempotent producer, or [`ProducerId::NONE`].
    pub producer_id: ProducerId,
    /// Its incarnation.
    pub producer_epoch: ProducerEpoch,
    /// The sequence of the record with delta 0.
    pub base_sequence: Sequence,
    /// How many records follow.
    pub record_count: i32,
}

impl BatchHeader {
    /// Decodes a header; any 61 bytes have a decoding.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        BatchHeader {
            base_offset: Offset::new(i64::from_be_bytes(fields.take())),
            batch_length: i32::from_be_bytes(fields.take()),
            partition_leader_epoch: LeaderEpoch(i32::from_be_bytes(fields.take())),
            magic: i8::from_be_bytes(fields.take()),
            crc: u32::from_be_bytes(fields.take()),
            attributes: Attributes(i16::from_be_bytes(fields.take())),
            last_offset_delta: i32::from_be_bytes(fields.take()),
            base_timestamp: Timestamp(i64::from_be_bytes(fields.take())),
            max_timestamp: Timestamp(i64::from_be_bytes(fields.take())),
            producer_id: ProducerId(i64::from_be_bytes(fields.take())),
            producer_epoch: ProducerEpoch(i16::from_be_bytes(fields.take())),
            base_sequence: Sequence(i32::from_be_bytes(fields.take())),
            record_count: i32::from_be_bytes(fields.take()),
        }
    }

    /// Encodes the header as it stands, checksum included.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            let (slot, tail) = core::mem::take(&mut rest).split_at_mut(field.len());
            slot.copy_from_slice(field);
            rest = tail;
        };
        put(&self.base_offset.get().to_be_bytes());
        put(&self.batch_length.to_be_bytes());
        put(&self.partition_leader_epoch.get().to_be_bytes());
        put(&self.magic.to_be_bytes());
        put(&self.crc.to_be_bytes());
        put(&self.attributes.0.to_be_bytes());
        put(&self.last_offset_delta.to_be_bytes());
        put(&self.base_timestamp.get().to_be_bytes());
        put(&self.max_timestamp.get().to_be_bytes());
        put(&self.producer_id.get().to_be_bytes());
        put(&self.producer_epoch.get().to_be_bytes());
        put(&self.base_sequence.get().to_be_bytes());
        put(&self.record_count.to_be_bytes());
        assert!(rest.is_empty(), "the fields fill the header");
        bytes
    }

    /// The last offset that the batch covers, inclusive. Wraps for a batch that [`crate::validate()`] refuses.
    pub fn last_offset(&self) -> Offset {
        self.offset_at(self.last_offset_delta)
    }

    /// The offset after the batch. Wraps for a batch that [`crate::validate()`] refuses.
    pub fn next_offset(&self) -> Offset {
        Offset::new(self.last_offset().get().wrapping_add(1))
    }

    /// The sequence of the last record that the batch covers, or [`Sequence::NONE`].
    pub fn last_sequence(&self) -> Sequence {
        self.base_sequence.next(u32::try_from(self.last_offset_delta).unwrap_or(0))
    }

    /// The offset of one of the batch's records.
    pub fn offset_of(&self, record: &Record<'_>) -> Offset {
        self.offset_at(record.offset_delta)
    }

    /// The offset that lies so far behind the base offset: that of a record with this delta.
    #[inline]
    pub fn offset_at(&self, delta: i32) -> Offset {
        Offset::new(self.base_offset.get().wrapping_add(i64::from(delta)))
    }

    /// The timestamp of one of the batch's records, as a consumer sees it.
    pub fn timestamp_of(&self, record: &Record<'_>) -> Timestamp {
        match self.attributes.timestamp_type() {
            TimestampType::CreateTime => Timestamp(self.base_timestamp.get().wrapping_add(record.timestamp_delta)),
            TimestampType::LogAppendTime => self.max_timestamp,
        }
    }

    /// From when on the tombstones of the batch may go, if compaction has set that (KIP-534).
    pub fn delete_horizon(&self) -> Option<Timestamp> {
        self.attributes.has_delete_horizon().then_some(self.base_timestamp)
    }

    /// Whether the batch has a sequence: it is an idempotent producer's.
    pub fn has_producer(&self) -> bool {
        self.producer_id.get() >= 0
    }

    /// Whether the max timestamp can be what the records say.
    pub fn max_timestamp_is_plausible(&self) -> bool {
        self.attributes.timestamp_type() == TimestampType::LogAppendTime
            || self.attributes.has_delete_horizon()
            || self.max_timestamp >= self.base_timestamp
    }
}

/// Reads fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields of a header add up to its length");
        self.0 = rest;
        *field
    }
}

/// The header at the start of `bytes`, of magic 2, and the size of its batch in bytes.
pub(crate) fn sized_header(bytes: &[u8]) -> Result<(BatchHeader, usize), BatchError> {
    // The magic is at the same place in all formats, so an old batch is called old, not short.
    if let Some(&magic) = bytes.get(16)
        && magic as i8 != MAGIC
    {
        return Err(BatchError::Magic { magic: magic as i8 });
    }
    let truncated = BatchError::Truncated { needed: HEADER_LEN, available: bytes.len() };
    let header = BatchHeader::decode(bytes.first_chunk::<HEADER_LEN>().ok_or(truncated)?);
    let length = usize::try_from(header.batch_length)
        .ok()
        .filter(|length| *length >= BATCH_LENGTH_MIN)
        .ok_or(BatchError::Length { length: header.batch_length })?;
    Ok((header, LOG_OVERHEAD + length))
}

/// One record batch in borrowed bytes: at least a header, of magic 2, cut to its own length. Nothing else is promised;
/// [`crate::validate()`] promises the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordBatch<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> RecordBatch<'a> {
    /// The batch at the start of `bytes`, whatever follows it. Only sizes and magic are checked.
    ///
    /// # Errors
    /// [`BatchError::Truncated`], [`BatchError::Length`], [`BatchError::Magic`].
    #[inline(always)]
    pub fn peek(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let (header, size) = sized_header(bytes)?;
        let bytes = bytes.get(..size).ok_or(BatchError::Truncated { needed: size, available: bytes.len() })?;
        Ok(RecordBatch { header, bytes })
    }

    /// The decoded header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, header included.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The header's bytes.
    pub fn header_bytes(&self) -> &'a [u8; HEADER_LEN] {
        self.bytes.first_chunk().expect("a batch has a header")
    }

    /// The bytes after the header: the records, compressed if the attributes say so.
    pub fn body(&self) -> &'a [u8] {
        let (_, body) = self.bytes.split_at(HEADER_LEN);
        body
    }

    /// The size of the whole batch in bytes, at least [`HEADER_LEN`].
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty: it has a header")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// See [`BatchHeader::base_offset`].
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// See [`BatchHeader::last_offset`].
    pub fn last_offset(&self) -> Offset {
        self.header.last_offset()
    }

    /// See [`BatchHeader::next_offset`].
    pub fn next_offset(&self) -> Offset {
        self.header.next_offset()
    }

    /// See [`BatchHeader::last_offset_delta`].
    pub fn last_offset_delta(&self) -> i32 {
        self.header.last_offset_delta
    }

    /// See [`BatchHeader::partition_leader_epoch`].
    pub fn partition_leader_epoch(&self) -> LeaderEpoch {
        self.header.partition_leader_epoch
    }

    /// See [`BatchHeader::crc`].
    pub fn crc(&self) -> u32 {
        self.header.crc
    }

    /// See [`BatchHeader::attributes`].
    pub fn attributes(&self) -> Attributes {
        self.header.attributes
    }

    /// The codec of the records, or `None` if it is not one of the five.
    pub fn compression(&self) -> Option<Compression> {
        self.header.attributes.compression()
    }

    /// See [`Attributes::timestamp_type`].
    pub fn timestamp_type(&self) -> TimestampType {
        self.header.attributes.timestamp_type()
    }

    /// See [`Attributes::is_transactional`].
    pub fn is_transactional(&self) -> bool {
        self.header.attributes.is_transactional()
    }

    /// See [`Attributes::is_control`].
    pub fn is_control(&self) -> bool {
        self.header.attributes.is_control()
    }

    /// See [`BatchHeader::base_timestamp`].
    pub fn base_timestamp(&self) -> Timestamp {
        self.header.base_timestamp
    }

    /// See [`BatchHeader::max_timestamp`].
    pub fn max_timestamp(&self) -> Timestamp {
        self.header.max_timestamp
    }

    /// See [`BatchHeader::producer_id`].
    pub fn producer_id(&self) -> ProducerId {
        self.header.producer_id
    }

    /// See [`BatchHeader::producer_epoch`].
    pub fn producer_epoch(&self) -> ProducerEpoch {
        self.header.producer_epoch
    }

    /// See [`BatchHeader::base_sequence`].
    pub fn base_sequence(&self) -> Sequence {
        self.header.base_sequence
    }

    /// See [`BatchHeader::last_sequence`].
    pub fn last_sequence(&self) -> Sequence {
        self.header.last_sequence()
    }

    /// See [`BatchHeader::record_count`].
    pub fn record_count(&self) -> i32 {
        self.header.record_count
    }

    /// As [`BatchHeader::max_timestamp_is_plausible`]. If not, a broker computes it from the records
    /// ([`RecordsSummary::max_timestamp`]) and writes it ([`crate::RawHeader::set_max_timestamp`]), as Kafka does.
    pub fn max_timestamp_is_plausible(&self) -> bool {
        self.header.max_timestamp_is_plausible()
    }

    /// The checksum of the batch as it stands.
    pub fn computed_crc(&self) -> u32 {
        let (_, covered) = self.bytes.split_at(CRC_COVERS_FROM);
        crc32c(covered)
    }

    /// The records of a batch that is not compressed; of another, use [`RecordBatch::records_in`].
    ///
    /// # Panics
    /// If the batch is compressed.
    pub fn records(&self) -> RecordIter<'a> {
        assert!(self.compression() == Some(Compression::None), "compressed records must be decompressed first");
        self.records_in(self.body())
    }

    /// The records of this batch in `body`, its body once decompressed.
    pub fn records_in<'b>(&self, body: &'b [u8]) -> RecordIter<'b> {
        RecordIter::new(body, self.header.record_count)
    }

    /// The keys of this batch's records in `body`, its body once decompressed.
    pub fn keys_in<'b>(&self, body: &'b [u8]) -> RecordKeys<'b> {
        RecordKeys::new(body, self.header.record_count)
    }

    /// The records of this batch in `body`, as they lie.
    pub fn spans_in<'b>(&self, body: &'b [u8]) -> RecordSpans<'b> {
        RecordSpans::new(body, self.header.record_count)
    }

    /// The body once decompressed, at most `output_max` bytes of it: the batch's own bytes if it is not compressed, else
    /// `scratch`, which is overwritten.
    ///
    /// # Errors
    /// [`CompressionError`], `Unsupported` for an unknown codec too.
    pub fn uncompressed_body<'b>(
        &self,
        output_max: usize,
        scratch: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], CompressionError>
    where
        'a: 'b,
    {
        let codec = self.compression().ok_or(CompressionError::Unsupported { what: "an unknown codec" })?;
        // What compaction leaves of an empty batch has a codec but nothing that it could have written.
        if codec == Compression::None || self.body().is_empty() && self.header.record_count == 0 {
            return Ok(self.body());
        }
        scratch.clear();
        decompress(codec, self.body(), output_max, scratch)?;
        Ok(scratch)
    }

    /// Reads every record in `body` (the batch's own, once decompressed) and holds them against the header.
    ///
    /// # Errors
    /// [`RecordError`] for a record that cannot be read or whose offset does not fit: from a producer the deltas are
    /// 0, 1, 2 …; in a log they grow and end within the last offset delta.
    pub fn check_records(&self, body: &[u8], origin: Origin) -> Result<RecordsSummary, RecordError> {
        RecordsSummary::read(&self.header, body, origin)
    }
}

impl fmt::Debug for RecordBatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordBatch").field("header", &self.header).field("len", &self.bytes.len()).finish()
    }
}

/// The batches of a concatenation, as a fetch returns them and a segment holds them.
///
/// A last batch that is cut short ends the iteration without an error (Kafka's brokers send such); what is left of it
/// is [`Batches::rest`]. Any other damage is returned once and ends it too.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    rest: &'a [u8],
    done: bool,
}

impl<'a> Batches<'a> {
    /// Walks the batches in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Batches { rest: bytes, done: false }
    }

    /// What has not been returned yet: after the end, the cut batch, or the damaged bytes.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<RecordBatch<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done || self.rest.is_empty() {
            return None;
        }
        match RecordBatch::peek(self.rest) {
            Ok(batch) => {
                let (_, rest) = self.rest.split_at(batch.len());
                self.rest = rest;
                Some(Ok(batch))
            }
            Err(BatchError::Truncated { .. }) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(error))
            }
        }
    }
}

impl core::iter::FusedIterator for Batches<'_> {}

/// The checksum of a batch with this header (from its attributes on) and this body.
pub(crate) fn crc_of(header: &[u8; HEADER_LEN], body: &[u8]) -> u32 {
    let (_, covered) = header.split_at(CRC_COVERS_FROM);
    crc32c_append(crc32c(covered), body)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::*;
    use crate::builder::{BatchBuilder, BatchOptions};
    use crate::random::Random;

    fn plain() -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(Timestamp(1000), Some(b"key"), Some(b"value"), &[]).unwrap();
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn a_damaged_batch_in_a_concatenation_is_told_once() {
        let mut bytes = plain();
        let len = bytes.len();
        bytes.extend_from_slice(&plain());
        bytes.extend_from_slice(&plain());
        bytes[len + 16] = 1;
        let mut batches = Batches::new(&bytes);
        assert!(batches.next().unwrap().is_ok());
        assert_eq!(batches.next(), Some(Err(BatchError::Magic { magic: 1 })));
        assert_eq!(batches.next(), None);
        assert_eq!(batches.rest().len(), 2 * len);
    }

    #[test]
    fn any_header_comes_back_from_its_bytes() {
        let mut random = Random::new(1);
        for _ in 0..500 {
            let bytes: [u8; HEADER_LEN] = random.noise(HEADER_LEN).try_into().unwrap();
            let header = BatchHeader::decode(&bytes);
            assert_eq!(header.encode(), bytes);
            // Even of nonsense these must not panic.
            let _ = (header.next_offset(), header.last_sequence(), header.attributes.compression());
        }
    }
}
