//! The fields of a batch that are set after it is built: by a broker base offset, leader epoch, timestamps; by a producer
//! its id, epoch and sequence.
//!
//! Owns changing a header without touching the body. It never repairs: where the checksum must follow a change it is
//! computed from the old one and the change alone, so a body that was damaged before stays detectably damaged after.

use core::ops::Range;

use crate::batch::{Attributes, BatchHeader, CRC_COVERS_FROM, HEADER_LEN, RecordBatch};
use crate::checksum::{crc32c, crc32c_combine};
use crate::id::{LeaderEpoch, ProducerEpoch, ProducerId, Sequence, Timestamp};
use crate::offset::Offset;

const BASE_OFFSET: Range<usize> = 0..8;
const LEADER_EPOCH: Range<usize> = 12..16;
const CRC: Range<usize> = 17..21;
const ATTRIBUTES: Range<usize> = 21..23;
const MAX_TIMESTAMP: Range<usize> = 35..43;
const PRODUCER_ID: Range<usize> = 43..51;
const PRODUCER_EPOCH: Range<usize> = 51..53;
const BASE_SEQUENCE: Range<usize> = 53..57;
const _: () = assert!(CRC.end == CRC_COVERS_FROM && ATTRIBUTES.start == CRC_COVERS_FROM);

/// A copy of a batch's header that can be changed, to be written in its place, before the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawHeader {
    bytes: [u8; HEADER_LEN],
    /// Bytes of the body, which the checksum also covers.
    body_len: usize,
}

impl RawHeader {
    /// A copy of the header of `batch`.
    pub fn copy_of(batch: &RecordBatch<'_>) -> Self {
        RawHeader { bytes: *batch.header_bytes(), body_len: batch.body().len() }
    }

    /// The header of a batch whose body, of `body_len` bytes, comes later.
    pub fn ahead_of(bytes: &[u8; HEADER_LEN], body_len: usize) -> Self {
        RawHeader { bytes: *bytes, body_len }
    }

    /// The checksum as far as the header goes: continued over the body it is the batch's ([`crate::checksum::crc32c_append`]).
    pub fn checksum(&self) -> u32 {
        let (_, covered) = self.bytes.split_at(CRC_COVERS_FROM);
        crc32c(covered)
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        self.body_len
    }

    /// The header's bytes.
    pub fn bytes(&self) -> &[u8; HEADER_LEN] {
        &self.bytes
    }

    /// The header, decoded.
    pub fn decode(&self) -> BatchHeader {
        BatchHeader::decode(&self.bytes)
    }

    /// Sets the base offset; it is outside the checksum.
    pub fn set_base_offset(&mut self, offset: Offset) {
        put(&mut self.bytes, BASE_OFFSET, &offset.get().to_be_bytes());
    }

    /// Sets the partition leader epoch; it is outside the checksum.
    pub fn set_leader_epoch(&mut self, epoch: LeaderEpoch) {
        put(&mut self.bytes, LEADER_EPOCH, &epoch.get().to_be_bytes());
    }

    /// Makes every record read as appended at `timestamp`; the base timestamp stays the producer's. The checksum
    /// follows.
    pub fn set_log_append_time(&mut self, timestamp: Timestamp) {
        let attributes = self.decode().attributes.with_log_append_time();
        self.set_covered(attributes, timestamp);
    }

    /// Sets the max timestamp to what the records say. The checksum follows.
    pub fn set_max_timestamp(&mut self, timestamp: Timestamp) {
        self.set_covered(self.decode().attributes, timestamp);
    }

    /// Makes every record read with the producer's own time. The checksum follows.
    pub fn set_create_time(&mut self) {
        let header = self.decode();
        self.set_covered(header.attributes.with_create_time(), header.max_timestamp);
    }

    /// Makes the batch that of a producer, its first record with this sequence: a producer decides both only when it
    /// sends, and again when it starts a new epoch. The checksum follows.
    pub fn set_producer(&mut self, id: ProducerId, epoch: ProducerEpoch, base_sequence: Sequence) {
        self.change_covered(|bytes| {
            put(bytes, PRODUCER_ID, &id.get().to_be_bytes());
            put(bytes, PRODUCER_EPOCH, &epoch.get().to_be_bytes());
            put(bytes, BASE_SEQUENCE, &base_sequence.get().to_be_bytes());
        });
    }

    fn set_covered(&mut self, attributes: Attributes, max_timestamp: Timestamp) {
        self.change_covered(|bytes| {
            put(bytes, ATTRIBUTES, &attributes.0.to_be_bytes());
            put(bytes, MAX_TIMESTAMP, &max_timestamp.get().to_be_bytes());
        });
    }

    /// Changes fields that the checksum covers, and the checksum with them.
    fn change_covered(&mut self, change: impl FnOnce(&mut [u8; HEADER_LEN])) {
        let before = self.covered_crc();
        change(&mut self.bytes);
        let change = before ^ self.covered_crc();
        let crc = crc32c_combine(change, self.decode().crc, self.body_len);
        put(&mut self.bytes, CRC, &crc.to_be_bytes());
    }

    /// The checksum of that part of the header which the batch's checksum covers.
    fn covered_crc(&self) -> u32 {
        let (_, covered) = self.bytes.split_at(CRC_COVERS_FROM);
        crc32c(covered)
    }
}

fn put(bytes: &mut [u8; HEADER_LEN], place: Range<usize>, value: &[u8]) {
    bytes.get_mut(place).expect("the fields of a header lie inside it").copy_from_slice(value);
}

/// Changes the header of the batch at the start of `bytes` in place. The bytes must be a batch that [`crate::validate()`]
/// or [`RecordBatch::peek`] accepted.
///
/// # Panics
/// If `bytes` do not start with a whole batch.
pub fn patch_in_place(bytes: &mut [u8], change: impl FnOnce(&mut RawHeader)) {
    let batch = RecordBatch::peek(bytes).expect("only a batch that was accepted is patched");
    let mut header = RawHeader::copy_of(&batch);
    change(&mut header);
    let (slot, _) = bytes.split_first_chunk_mut::<HEADER_LEN>().expect("a batch has a header");
    *slot = header.bytes;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::TimestampType;
    use crate::builder::{BatchBuilder, BatchOptions};
    use crate::validate::{BatchError, Origin, validate};
    use alloc::vec::Vec;

    fn batch(records: i64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for i in 0..records {
            builder.push(Timestamp(1000 + i), None, Some(&[7; 300]), &[]).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn offset_and_epoch_leave_the_checksum_alone() {
        let mut bytes = batch(3);
        let before = *RecordBatch::peek(&bytes).unwrap().header();
        patch_in_place(&mut bytes, |header| {
            header.set_base_offset(Offset::new(1 << 40));
            header.set_leader_epoch(LeaderEpoch(9));
        });
        let after = validate(&bytes, Origin::Log).unwrap();
        let expected =
            BatchHeader { base_offset: Offset::new(1 << 40), partition_leader_epoch: LeaderEpoch(9), ..before };
        assert_eq!(*after.header(), expected);
    }

    #[test]
    fn log_append_time_keeps_the_checksum_right() {
        for records in [1, 2, 500] {
            let mut bytes = batch(records);
            patch_in_place(&mut bytes, |header| header.set_log_append_time(Timestamp(77_000)));
            let batch = validate(&bytes, Origin::Log).unwrap();
            assert_eq!(batch.timestamp_type(), TimestampType::LogAppendTime);
            assert_eq!((batch.base_timestamp(), batch.max_timestamp()), (Timestamp(1000), Timestamp(77_000)));
            let all_alike = |record: Result<crate::Record<'_>, _>| {
                batch.header().timestamp_of(&record.unwrap()) == Timestamp(77_000)
            };
            assert!(batch.records().all(all_alike));
        }
    }

    #[test]
    fn create_time_comes_back_under_a_checksum_that_fits() {
        for records in [1, 500] {
            let before = batch(records);
            let mut bytes = before.clone();
            let max = RecordBatch::peek(&bytes).unwrap().max_timestamp();
            patch_in_place(&mut bytes, |header| header.set_log_append_time(max));
            assert_ne!(bytes, before);
            patch_in_place(&mut bytes, RawHeader::set_create_time);
            assert_eq!(bytes, before);
        }
    }

    #[test]
    fn max_timestamp_keeps_the_checksum_right_and_the_type_alone() {
        let mut bytes = batch(2);
        patch_in_place(&mut bytes, |header| header.set_max_timestamp(Timestamp(5000)));
        let batch = validate(&bytes, Origin::Producer).unwrap();
        assert_eq!((batch.max_timestamp(), batch.timestamp_type()), (Timestamp(5000), TimestampType::CreateTime));
    }

    #[test]
    fn a_producer_stamps_a_built_batch() {
        let mut bytes = batch(3);
        for (epoch, sequence) in [(0, 40), (1, 0)] {
            let (epoch, sequence) = (ProducerEpoch(epoch), Sequence(sequence));
            patch_in_place(&mut bytes, |header| header.set_producer(ProducerId(9), epoch, sequence));
            let batch = validate(&bytes, Origin::Producer).unwrap();
            assert_eq!((batch.producer_id(), batch.producer_epoch()), (ProducerId(9), epoch));
            assert_eq!((batch.base_sequence(), batch.last_sequence()), (sequence, sequence.next(2)));
        }
    }

    #[test]
    fn an_empty_batch_can_be_patched() {
        let bytes = batch(1);
        let header = *RecordBatch::peek(&bytes).unwrap().header();
        let mut empty = Vec::new();
        BatchBuilder::rewrite(&header, crate::Compression::None, None).finish(&mut empty).unwrap();
        patch_in_place(&mut empty, |header| header.set_max_timestamp(Timestamp(5)));
        assert_eq!(validate(&empty, Origin::Log).unwrap().max_timestamp(), Timestamp(5));
    }

    #[test]
    fn damage_done_before_is_still_found_after() {
        let mut bytes = batch(2);
        *bytes.last_mut().unwrap() ^= 1;
        patch_in_place(&mut bytes, |header| header.set_log_append_time(Timestamp(5)));
        assert!(matches!(validate(&bytes, Origin::Log), Err(BatchError::Checksum { .. })));
    }

    #[test]
    #[should_panic(expected = "only a batch that was accepted")]
    fn only_batches_are_patched() {
        patch_in_place(&mut [0; 30], |_| {});
    }
}
