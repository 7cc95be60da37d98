//! Validation of a record batch: one pass over header and body, and the reasons to refuse it.
//!
//! Owns the rules. It looks at records only as far as the checksum does, and changes nothing.

use core::fmt;

use crate::batch::{BATCH_LENGTH_MIN, BatchHeader, HEADER_LEN, MAGIC, RecordBatch, sized_header};
use crate::id::{ProducerEpoch, ProducerId, Sequence};
use crate::offset::Offset;

/// Where a batch comes from, and so what may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A producer: every record is there, nothing is set that only a broker sets.
    Producer,
    /// A log or its leader: compaction may have removed records, even all; control batches are legal.
    Log,
}

/// Checks the one batch in `bytes`, header and body, in one pass; the records inside are checked only as far as the
/// checksum does ([`RecordBatch::check_records`] does the rest).
///
/// # Errors
/// The first rule that is broken, in this order: size, magic, nothing behind the batch, checksum, codec, counts, and
/// from a producer what only a broker may set.
pub fn validate(bytes: &[u8], origin: Origin) -> Result<RecordBatch<'_>, BatchError> {
    let batch = RecordBatch::peek(bytes)?;
    if batch.len() < bytes.len() {
        return Err(BatchError::TrailingBytes { count: bytes.len() - batch.len() });
    }
    check_crc(&batch)?;
    check_header(batch.header(), origin)?;
    Ok(batch)
}

/// Checks the header of a batch of `len` bytes whose body comes later: every rule of [`validate`] but the checksum, which
/// continues [`crate::RawHeader::checksum`].
///
/// # Errors
/// As [`validate`].
pub fn validate_header(bytes: &[u8; HEADER_LEN], len: usize, origin: Origin) -> Result<BatchHeader, BatchError> {
    let (header, size) = sized_header(bytes)?;
    match len {
        len if len < size => return Err(BatchError::Truncated { needed: size, available: len }),
        len if len > size => return Err(BatchError::TrailingBytes { count: len - size }),
        _ => {}
    }
    check_header(&header, origin)?;
    Ok(header)
}

fn check_crc(batch: &RecordBatch<'_>) -> Result<(), BatchError> {
    let computed = batch.computed_crc();
    if computed != batch.crc() {
        return Err(BatchError::Checksum { stored: batch.crc(), computed });
    }
    Ok(())
}

/// The rules that need only the header.
fn check_header(header: &BatchHeader, origin: Origin) -> Result<(), BatchError> {
    if header.attributes.compression().is_none() {
        return Err(BatchError::Codec { id: header.attributes.codec_id() });
    }
    let counts = BatchError::RecordCount { count: header.record_count, last_offset_delta: header.last_offset_delta };
    if header.record_count < 0 || header.last_offset_delta < 0 {
        return Err(counts);
    }
    // In 64 bits: a last offset delta of 2^31-1 is legal.
    let offsets = i64::from(header.last_offset_delta) + 1;
    match origin {
        Origin::Producer if i64::from(header.record_count) != offsets => Err(counts),
        Origin::Log if i64::from(header.record_count) > offsets => Err(counts),
        Origin::Producer => check_producer_fields(header),
        Origin::Log => check_offsets(header),
    }
}

fn check_producer_fields(header: &BatchHeader) -> Result<(), BatchError> {
    let attributes = header.attributes;
    if header.base_offset != Offset::ZERO {
        return Err(BatchError::BaseOffset { base_offset: header.base_offset });
    }
    if attributes.is_control() {
        return Err(BatchError::Control);
    }
    if attributes.has_delete_horizon() {
        return Err(BatchError::DeleteHorizon);
    }
    let sequenced = header.producer_epoch.get() >= 0 && header.base_sequence.get() >= 0;
    if header.has_producer() && !sequenced || attributes.is_transactional() && !header.has_producer() {
        return Err(BatchError::Producer {
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        });
    }
    Ok(())
}

fn check_offsets(header: &BatchHeader) -> Result<(), BatchError> {
    let end = header.base_offset.checked_add(i64::from(header.last_offset_delta)).and_then(|last| last.checked_add(1));
    if header.base_offset < Offset::ZERO || end.is_none() {
        return Err(BatchError::Offsets { base_offset: header.base_offset });
    }
    Ok(())
}

/// Why bytes are not a record batch that may be kept. Each variant names the Kafka error that a broker answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchError {
    /// The bytes end inside the batch. CORRUPT_MESSAGE.
    Truncated {
        /// Bytes that the batch has, or that a header has if even that is cut.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// The batch length is below that of an empty batch. CORRUPT_MESSAGE.
    Length {
        /// The length field.
        length: i32,
    },
    /// The format is not magic 2. INVALID_RECORD from a producer (0 and 1 are Kafka's old formats), else
    /// CORRUPT_MESSAGE.
    Magic {
        /// The magic byte.
        magic: i8,
    },
    /// More bytes follow the batch. INVALID_RECORD: a producer sends one batch for a partition.
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The checksum does not fit. CORRUPT_MESSAGE.
    Checksum {
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// The codec id is not one of Kafka's five. UNSUPPORTED_COMPRESSION_TYPE.
    Codec {
        /// The id, 5 to 7.
        id: u8,
    },
    /// Record count and last offset delta contradict each other. INVALID_RECORD.
    RecordCount {
        /// The record count.
        count: i32,
        /// The last offset delta; from a producer it is one less than the count.
        last_offset_delta: i32,
    },
    /// The offsets of a stored batch are negative or overflow. CORRUPT_MESSAGE.
    Offsets {
        /// The base offset.
        base_offset: Offset,
    },
    /// A producer sent a control batch. INVALID_RECORD.
    Control,
    /// A producer's base offset is not 0. INVALID_RECORD.
    BaseOffset {
        /// The base offset.
        base_offset: Offset,
    },
    /// A producer set a delete horizon. INVALID_RECORD.
    DeleteHorizon,
    /// Producer id, epoch and sequence do not go together. INVALID_RECORD.
    Producer {
        /// The producer id.
        producer_id: ProducerId,
        /// Needed once there is a producer id.
        producer_epoch: ProducerEpoch,
        /// Needed once there is a producer id.
        base_sequence: Sequence,
    },
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, available } => {
                write!(f, "record batch needs {needed} bytes, {available} are there")
            }
            Self::Length { length } => write!(f, "batch length {length} is below {BATCH_LENGTH_MIN}"),
            Self::Magic { magic } => write!(f, "record format (magic) {magic}; only {MAGIC} is supported"),
            Self::TrailingBytes { count } => write!(f, "{count} bytes follow the record batch"),
            Self::Checksum { stored, computed } => {
                write!(f, "record batch checksum is {stored:#010x}, its bytes give {computed:#010x}")
            }
            Self::Codec { id } => write!(f, "unknown compression codec {id}"),
            Self::RecordCount { count, last_offset_delta } => {
                write!(f, "record count {count} does not fit last offset delta {last_offset_delta}")
            }
            Self::Offsets { base_offset } => write!(f, "base offset {base_offset} is negative or overflows"),
            Self::Control => f.write_str("a producer may not write control batches"),
            Self::BaseOffset { base_offset } => write!(f, "base offset {base_offset}, where a producer's is 0"),
            Self::DeleteHorizon => f.write_str("a producer may not set a delete horizon"),
            Self::Producer { producer_id, producer_epoch, base_sequence } => write!(
                f,
                "producer id {producer_id}, epoch {producer_epoch} and base sequence {base_sequence} do not go together"
            ),
        }
    }
}

impl core::error::Error for BatchError {}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use core::ops::Range;

    use alloc::vec::Vec;

    use super::*;
    use crate::batch::{CRC_COVERS_FROM, HEADER_LEN, LOG_OVERHEAD};
    use crate::builder::{BatchBuilder, BatchOptions};
    use crate::checksum::crc32c;
    use crate::id::Timestamp;

    const COUNT: Range<usize> = 57..61;
    const LAST_OFFSET_DELTA: Range<usize> = 23..27;

    fn batch(options: BatchOptions) -> Vec<u8> {
        let mut builder = BatchBuilder::new(options);
        for i in 0..3 {
            builder.push(Timestamp(1000 + i), Some(b"key"), Some(b"value"), &[]).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        out
    }

    fn plain() -> Vec<u8> {
        batch(BatchOptions::default())
    }

    fn idempotent() -> BatchOptions {
        BatchOptions {
            producer_id: ProducerId(7),
            producer_epoch: ProducerEpoch(0),
            base_sequence: Sequence(5),
            ..BatchOptions::default()
        }
    }

    /// The plain batch with a field overwritten and the checksum made right again.
    fn altered(place: Range<usize>, value: &[u8]) -> Vec<u8> {
        let mut bytes = plain();
        bytes[place].copy_from_slice(value);
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let crc = crc32c(&bytes[CRC_COVERS_FROM..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }

    fn refusal(bytes: &[u8], origin: Origin) -> BatchError {
        validate(bytes, origin).expect_err("this batch is bad")
    }

    #[test]
    fn a_good_batch_is_accepted_and_read() {
        for (origin, base) in [(Origin::Producer, 0), (Origin::Log, 40)] {
            let bytes = batch(BatchOptions { base_offset: Offset::new(base), ..idempotent() });
            let batch = validate(&bytes, origin).unwrap();
            assert_eq!(
                (batch.base_offset(), batch.last_offset(), batch.next_offset()),
                (Offset::new(base), Offset::new(base + 2), Offset::new(base + 3))
            );
            assert_eq!((batch.base_sequence(), batch.last_sequence()), (Sequence(5), Sequence(7)));
            assert_eq!((batch.base_timestamp(), batch.max_timestamp()), (Timestamp(1000), Timestamp(1002)));
            assert_eq!((batch.record_count(), batch.len()), (3, bytes.len()));
            assert!(batch.max_timestamp_is_plausible());
        }
    }

    #[test]
    fn every_truncation_is_called_one() {
        let bytes = plain();
        for cut in 0..bytes.len() {
            let needed = if cut < HEADER_LEN { HEADER_LEN } else { bytes.len() };
            assert_eq!(refusal(&bytes[..cut], Origin::Log), BatchError::Truncated { needed, available: cut });
        }
    }

    #[test]
    fn every_flipped_bit_that_the_checksum_covers_is_found() {
        let bytes = plain();
        for place in 17..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[place] ^= 1 << bit;
                assert!(matches!(refusal(&bytes, Origin::Log), BatchError::Checksum { .. }), "byte {place} bit {bit}");
            }
        }
    }

    #[test]
    fn old_formats_are_called_by_their_magic_even_when_short() {
        for magic in [0, 1, 3, -1i8] {
            let mut bytes = plain();
            bytes[16] = magic as u8;
            assert_eq!(refusal(&bytes, Origin::Producer), BatchError::Magic { magic });
            assert_eq!(refusal(&bytes[..26], Origin::Producer), BatchError::Magic { magic });
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_believed() {
        for length in [48, 0, -1, i32::MIN] {
            let mut bytes = plain();
            bytes[8..12].copy_from_slice(&i32::to_be_bytes(length));
            assert_eq!(refusal(&bytes, Origin::Log), BatchError::Length { length });
        }
        let mut bytes = plain();
        bytes[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
        let needed = LOG_OVERHEAD + i32::MAX as usize;
        assert_eq!(refusal(&bytes, Origin::Log), BatchError::Truncated { needed, available: bytes.len() });
    }

    #[test]
    fn a_second_batch_is_too_much() {
        let mut bytes = plain();
        let len = bytes.len();
        bytes.extend_from_slice(&plain());
        assert_eq!(refusal(&bytes, Origin::Producer), BatchError::TrailingBytes { count: len });
    }

    #[test]
    fn unknown_codecs_are_refused() {
        for id in 5..8u8 {
            assert_eq!(refusal(&altered(22..23, &[id]), Origin::Log), BatchError::Codec { id });
        }
    }

    #[test]
    fn a_header_alone_is_held_to_the_same_rules() {
        let cases = [plain(), altered(COUNT, &7i32.to_be_bytes()), altered(22..23, &[6]), altered(22..23, &[0x20])];
        for bytes in cases {
            let header = bytes.first_chunk().unwrap();
            let alone = validate_header(header, bytes.len(), Origin::Producer);
            assert_eq!(alone, validate(&bytes, Origin::Producer).map(|batch| *batch.header()));
            let shorter = validate_header(header, bytes.len() - 1, Origin::Producer);
            assert_eq!(shorter.unwrap_err(), refusal(&bytes[..bytes.len() - 1], Origin::Producer));
            let longer = validate_header(header, bytes.len() + 3, Origin::Producer);
            assert_eq!(longer, Err(BatchError::TrailingBytes { count: 3 }));
        }
    }

    #[test]
    fn the_checksum_of_a_header_goes_on_with_the_body() {
        let bytes = batch(idempotent());
        let peeked = RecordBatch::peek(&bytes).unwrap();
        let header = crate::RawHeader::ahead_of(peeked.header_bytes(), peeked.body().len());
        assert_eq!(header, crate::RawHeader::copy_of(&peeked));
        assert_eq!(crate::checksum::crc32c_append(header.checksum(), peeked.body()), peeked.crc());
    }

    #[test]
    fn counts_must_agree_unless_compaction_removed_records() {
        let fewer = altered(COUNT, &2i32.to_be_bytes());
        let error = BatchError::RecordCount { count: 2, last_offset_delta: 2 };
        assert_eq!(refusal(&fewer, Origin::Producer), error);
        assert!(validate(&fewer, Origin::Log).is_ok());
        for (place, value) in
            [(COUNT, 4), (COUNT, -1), (COUNT, i32::MIN), (LAST_OFFSET_DELTA, -1), (LAST_OFFSET_DELTA, 1)]
        {
            for origin in [Origin::Producer, Origin::Log] {
                let bytes = altered(place.clone(), &i32::to_be_bytes(value));
                assert!(matches!(refusal(&bytes, origin), BatchError::RecordCount { .. }), "{value} at {place:?}");
            }
        }
        let most = altered(LAST_OFFSET_DELTA, &i32::MAX.to_be_bytes());
        assert!(validate(&most, Origin::Log).is_ok());
    }

    #[test]
    fn stored_offsets_must_not_overflow() {
        for base_offset in [-1, i64::MIN, i64::MAX, i64::MAX - 2] {
            let bytes = altered(0..8, &i64::to_be_bytes(base_offset));
            let error = BatchError::Offsets { base_offset: Offset::new(base_offset) };
            assert_eq!(refusal(&bytes, Origin::Log), error);
            let error = BatchError::BaseOffset { base_offset: Offset::new(base_offset) };
            assert_eq!(refusal(&bytes, Origin::Producer), error);
        }
        assert!(validate(&altered(0..8, &(i64::MAX - 3).to_be_bytes()), Origin::Log).is_ok());
    }

    #[test]
    fn what_only_a_broker_sets_is_refused_from_a_producer() {
        let control = batch(BatchOptions { control: true, ..idempotent() });
        assert_eq!(refusal(&control, Origin::Producer), BatchError::Control);
        let horizon = altered(21..23, &[0, 0x40]);
        assert_eq!(refusal(&horizon, Origin::Producer), BatchError::DeleteHorizon);
        for bytes in [control, horizon] {
            assert!(validate(&bytes, Origin::Log).is_ok());
        }
    }

    #[test]
    fn producer_id_epoch_and_sequence_go_together() {
        for options in [
            BatchOptions { base_sequence: Sequence::NONE, ..idempotent() },
            BatchOptions { producer_epoch: ProducerEpoch::NONE, ..idempotent() },
            BatchOptions { transactional: true, ..BatchOptions::default() },
        ] {
            assert!(matches!(refusal(&batch(options), Origin::Producer), BatchError::Producer { .. }));
        }
        assert!(validate(&batch(BatchOptions { transactional: true, ..idempotent() }), Origin::Producer).is_ok());
    }

    #[test]
    fn a_max_timestamp_that_nobody_set_is_not_plausible() {
        let unset = altered(35..43, &i64::to_be_bytes(-1));
        let batch = validate(&unset, Origin::Producer).expect("sarama sends such");
        assert!(!batch.max_timestamp_is_plausible());
        let summary = batch.check_records(batch.body(), Origin::Producer).unwrap();
        assert_eq!(summary.max_timestamp, Timestamp(1002));
        assert_eq!(summary.max_timestamp_offset_delta, 2);
    }
}
