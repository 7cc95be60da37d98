//! What is left of a batch when some of its records go and the others stay as they lie.
//!
//! Owns the cheap way to compact a batch that is not compressed: records are found by their length fields and copied with
//! all their bytes, and of the header only length, count, largest timestamp and checksum change. Never decides which records
//! stay; where the base timestamp must change, and with it every record, [`crate::BatchBuilder::compact`] writes them anew.

use alloc::vec::Vec;

use crate::batch::{BatchHeader, HEADER_LEN, LOG_OVERHEAD, TimestampType, crc_of};
use crate::compression::Compression;
use crate::id::Timestamp;
use crate::record::{RecordError, Walk};
use crate::varint;

/// The records of a batch as they lie, each with its length field: as many as the header says, and then nothing may be left.
///
/// What is in a record is not looked at; [`crate::RecordIter`] does that. The first error ends it.
#[derive(Debug, Clone)]
pub struct RecordSpans<'a>(Walk<'a>);

impl<'a> RecordSpans<'a> {
    /// The spans of `count` records in `body`, which is not compressed.
    pub fn new(body: &'a [u8], count: i32) -> Self {
        RecordSpans(Walk::new(body, count))
    }
}

impl<'a> Iterator for RecordSpans<'a> {
    type Item = Result<&'a [u8], RecordError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let Some(rest) = self.0.rest() else {
            return self.0.end().map(Err);
        };
        let record = read_span(rest);
        self.0.took(record)
    }
}

/// Takes a record off the front of `input`.
#[inline(always)]
fn read_span<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], RecordError> {
    let mut body = *input;
    let length = usize::try_from(varint::read_i32(&mut body)?).map_err(|_| RecordError::Truncated)?;
    let prefix = input.len() - body.len();
    // Both are below 2^31.
    let (record, behind) = input.split_at_checked(prefix + length).ok_or(RecordError::Truncated)?;
    *input = behind;
    Ok(record)
}

impl core::iter::FusedIterator for RecordSpans<'_> {}

/// A batch that keeps some of its records.
#[derive(Debug)]
pub struct ThinnedBatch {
    header: BatchHeader,
    /// Room for the header, and the records that stay.
    bytes: Vec<u8>,
    count: i32,
    /// The largest timestamp of these.
    max_timestamp: Timestamp,
}

impl ThinnedBatch {
    /// Nothing is kept yet of the batch with this header. `memory` is used for it; what is in there goes.
    ///
    /// # Panics
    /// If the batch is compressed.
    pub fn new(header: &BatchHeader, mut memory: Vec<u8>) -> Self {
        assert!(
            header.attributes.compression() == Some(Compression::None),
            "what is compressed does not lie in records"
        );
        memory.clear();
        memory.extend_from_slice(&[0; HEADER_LEN]);
        ThinnedBatch { header: *header, bytes: memory, count: 0, max_timestamp: Timestamp(i64::MIN) }
    }

    /// Keeps a record, given as it lies in the batch.
    ///
    /// # Errors
    /// It ends before its timestamp does.
    #[inline]
    pub fn keep(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let mut fields = record;
        varint::read_i32(&mut fields)?;
        let (_attributes, mut fields) = fields.split_first().ok_or(RecordError::Truncated)?;
        let delta = varint::read_i64(&mut fields)?;
        let timestamp = Timestamp(self.header.base_timestamp.get().wrapping_add(delta));
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.bytes.extend_from_slice(record);
        self.count += 1;
        Ok(())
    }

    /// The batch. `None` if all that is kept is older than the base timestamp, which was the time of a record that is gone:
    /// such a batch looks as if nobody had set its largest timestamp.
    ///
    /// # Panics
    /// If nothing was kept, or more than there was.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        assert!(self.count > 0 && self.count <= self.header.record_count, "some records are kept");
        if self.header.attributes.timestamp_type() == TimestampType::CreateTime {
            self.header.max_timestamp = self.max_timestamp;
        }
        if !self.header.max_timestamp_is_plausible() {
            return None;
        }
        let length = self.bytes.len() - LOG_OVERHEAD;
        self.header.batch_length = i32::try_from(length).expect("less is kept than there was");
        self.header.record_count = self.count;
        let (slot, body) = self.bytes.split_first_chunk_mut::<HEADER_LEN>().expect("it has room for a header");
        self.header.crc = crc_of(&self.header.encode(), body);
        *slot = self.header.encode();
        Some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::batch::RecordBatch;
    use crate::builder::{BatchBuilder, BatchOptions};
    use crate::offset::Offset;
    use crate::random::Random;
    use crate::record::Header;
    use crate::validate::{Origin, validate};

    fn batch_of(random: &mut Random, options: BatchOptions, times: impl Fn(&mut Random, i64) -> i64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(options);
        for number in 0..1 + random.below(20) as i64 {
            let (key, value) = (random.optional_bytes(20), random.optional_bytes(400));
            let timestamp = Timestamp(times(random, number));
            let headers = [Header { key: b"name", value: value.as_deref() }];
            builder.push(timestamp, key.as_deref(), value.as_deref(), &headers).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        out
    }

    fn thinned(batch: &RecordBatch<'_>, stays: &[bool]) -> Option<Vec<u8>> {
        let mut thinned = ThinnedBatch::new(batch.header(), b"what was there".to_vec());
        for (record, _) in batch.spans_in(batch.body()).zip(stays).filter(|(_, stays)| **stays) {
            thinned.keep(record.unwrap()).unwrap();
        }
        thinned.finish()
    }

    /// Of each record its offset, its time and the rest, with that of the header which compaction leaves as it was.
    fn shown(batch: &RecordBatch<'_>) -> impl PartialEq + core::fmt::Debug {
        let header = *batch.header();
        let records: Vec<_> = batch.records().map(Result::unwrap).collect();
        let records: Vec<_> = records
            .iter()
            .map(|record| {
                let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                let headers: Vec<_> = record.headers.iter().map(|one| (one.key.to_vec(), owned(one.value))).collect();
                let (offset, time) = (header.offset_of(record), header.timestamp_of(record));
                (offset, time, owned(record.key), owned(record.value), headers)
            })
            .collect();
        (records, header.next_offset(), header.max_timestamp, header.attributes, header.record_count)
    }

    #[test]
    fn it_keeps_what_a_batch_written_anew_does() {
        let mut random = Random::new(21);
        let mut refused = 0;
        for round in 0..600 {
            let append_time = (round % 5 == 0).then_some(Timestamp(5_000));
            let options = BatchOptions {
                base_offset: Offset::new(1_000),
                log_append_time: append_time,
                ..BatchOptions::default()
            };
            let wild = round % 2 == 0;
            let times = |random: &mut Random, number| if wild { random.below(1 << 40) as i64 } else { 70 + number };
            let original = batch_of(&mut random, options, times);
            let mut batch = validate(&original, Origin::Log).unwrap();
            // Under a horizon, what deltas count from is no record's time.
            let mut rewritten = Vec::new();
            let horizon = (round % 3 == 0).then_some(Timestamp(9 << 40));
            if horizon.is_some() {
                let mut builder = BatchBuilder::compact(batch.header(), horizon);
                batch.records().for_each(|record| builder.keep(&record.unwrap()).unwrap());
                builder.finish(&mut rewritten).unwrap();
                batch = validate(&rewritten, Origin::Log).unwrap();
            }
            let mut stays: Vec<bool> = batch.records().map(|_| random.below(3) == 0).collect();
            if let Some(last) = stays.last_mut().filter(|_| round % 7 > 0) {
                *last = true;
            }
            if !stays.contains(&true) {
                continue;
            }
            let mut builder = BatchBuilder::compact(batch.header(), horizon);
            for (record, _) in batch.records().zip(&stays).filter(|(_, stays)| **stays) {
                builder.keep(&record.unwrap()).unwrap();
            }
            let mut expected = Vec::new();
            builder.finish(&mut expected).unwrap();
            let expected = validate(&expected, Origin::Log).unwrap();
            match thinned(&batch, &stays) {
                Some(bytes) => {
                    let found = validate(&bytes, Origin::Log).unwrap();
                    assert_eq!(shown(&found), shown(&expected));
                    assert!(found.check_records(found.body(), Origin::Log).is_ok());
                    assert!(found.max_timestamp_is_plausible());
                    assert_eq!(found.base_timestamp(), batch.base_timestamp());
                }
                None => {
                    refused += 1;
                    assert!(wild && append_time.is_none() && horizon.is_none());
                    assert!(expected.max_timestamp() < batch.base_timestamp());
                }
            }
        }
        assert!(refused > 10, "{refused}");
    }

    #[test]
    fn spans_are_the_records_as_they_lie() {
        let mut random = Random::new(22);
        for _ in 0..200 {
            let original = batch_of(&mut random, BatchOptions::default(), |random, _| random.number() as i64);
            let batch = validate(&original, Origin::Producer).unwrap();
            let spans: Vec<&[u8]> = batch.spans_in(batch.body()).map(Result::unwrap).collect();
            assert_eq!(spans.concat(), batch.body());
            assert_eq!(spans.len(), batch.records().count());
            assert!(spans.iter().all(|span| crate::RecordIter::new(span, 1).all(|record| record.is_ok())));
            let last = |count: i32, body| RecordSpans::new(body, count).last().expect("an error at least");
            let count = batch.record_count();
            assert_eq!(last(count + 1, batch.body()), Err(RecordError::Truncated));
            assert!(matches!(last(count - 1, batch.body()), Err(RecordError::TrailingBytes { .. })));
            assert_eq!(last(-1, batch.body()), Err(RecordError::RecordCount { count: -1 }));
            let cut = batch.body().split_last().expect("there is something").1;
            assert_eq!(last(count, cut), Err(RecordError::Truncated));
        }
    }

    #[test]
    fn a_span_without_a_timestamp_is_refused() {
        let header = *validate(&batch_of(&mut Random::new(23), BatchOptions::default(), |_, time| time), Origin::Log)
            .unwrap()
            .header();
        for span in [&[][..], &[2], &[2, 0], &[4, 0, 0x80]] {
            assert_eq!(ThinnedBatch::new(&header, Vec::new()).keep(span), Err(RecordError::Truncated), "{span:?}");
        }
        let endless = [&[24, 0][..], &[0xff; 11]].concat();
        assert_eq!(ThinnedBatch::new(&header, Vec::new()).keep(&endless), Err(RecordError::Varint));
    }

    #[test]
    #[should_panic(expected = "some records are kept")]
    fn a_thinned_batch_is_not_empty() {
        let original = batch_of(&mut Random::new(24), BatchOptions::default(), |_, time| time);
        let _ = ThinnedBatch::new(validate(&original, Origin::Log).unwrap().header(), Vec::new()).finish();
    }
}
