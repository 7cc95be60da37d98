//! The records inside a batch.
//!
//! Owns their coding. It reads within the bytes it is given and never beyond: every length is held against what remains
//! before it is believed, and nothing is allocated.

use alloc::vec::Vec;
use core::fmt;

use crate::batch::BatchHeader;
use crate::id::Timestamp;
use crate::validate::Origin;
use crate::varint::{self, VarintError};

/// One record, borrowed from its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Unused by Kafka so far; kept so that a rewritten record has the same bytes.
    pub attributes: i8,
    /// Offset less the batch's base offset.
    pub offset_delta: i32,
    /// Timestamp in milliseconds less the batch's base timestamp; any 64 bits, the sum wraps.
    pub timestamp_delta: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; a record without one is a tombstone in a compacted topic.
    pub value: Option<&'a [u8]>,
    /// The headers, checked.
    pub headers: Headers<'a>,
}

/// One header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name; UTF-8 by convention, which is not checked.
    pub key: &'a [u8],
    /// The value, if there is one.
    pub value: Option<&'a [u8]>,
}

/// The headers of a record: read once to check them, again to see them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    count: i32,
}

impl<'a> Headers<'a> {
    /// No headers.
    pub const EMPTY: Headers<'static> = Headers { bytes: &[], count: 0 };

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::try_from(self.count).expect("a negative count is refused on reading")
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in order; keys may repeat.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Header<'a>> + use<'a> {
        let mut input = self.bytes;
        (0..self.len()).map(move |_| read_header(&mut input).expect("headers are checked when their record is read"))
    }

    /// Checks the rest of a record as headers.
    pub(crate) fn check(mut input: &'a [u8]) -> Result<Self, RecordError> {
        let count = varint::read_i32(&mut input)?;
        // A header has at least two length bytes: a count beyond that is a lie, refused before the loop.
        if count < 0 || count as usize > input.len() / 2 {
            return Err(RecordError::HeaderCount { count });
        }
        let bytes = input;
        for _ in 0..count {
            read_header(&mut input)?;
        }
        if !input.is_empty() {
            return Err(RecordError::Length { excess: input.len() });
        }
        Ok(Headers { bytes, count })
    }
}

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn read_header<'a>(input: &mut &'a [u8]) -> Result<Header<'a>, RecordError> {
    let key = read_bytes(input)?.ok_or(RecordError::NullHeaderKey)?;
    let value = read_bytes(input)?;
    Ok(Header { key, value })
}

/// Takes a length and so many bytes; a negative length is null, as in Kafka.
#[inline]
fn read_bytes<'a>(input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordError> {
    let length = varint::read_i32(input)?;
    let Ok(length) = usize::try_from(length) else {
        return Ok(None);
    };
    let (bytes, rest) = input.split_at_checked(length).ok_or(RecordError::Truncated)?;
    *input = rest;
    Ok(Some(bytes))
}

impl<'a> Record<'a> {
    /// Takes one record off the front of `input`.
    pub(crate) fn read(input: &mut &'a [u8]) -> Result<Self, RecordError> {
        let mut rest = *input;
        let length = varint::read_i32(&mut rest)?;
        let length = usize::try_from(length).map_err(|_| RecordError::Truncated)?;
        let (mut body, rest) = rest.split_at_checked(length).ok_or(RecordError::Truncated)?;
        let (attributes, tail) = body.split_first().ok_or(RecordError::Truncated)?;
        body = tail;
        let timestamp_delta = varint::read_i64(&mut body)?;
        let offset_delta = varint::read_i32(&mut body)?;
        let key = read_bytes(&mut body)?;
        let value = read_bytes(&mut body)?;
        let headers = Headers::check(body)?;
        *input = rest;
        Ok(Record { attributes: *attributes as i8, offset_delta, timestamp_delta, key, value, headers })
    }

    /// Appends the record as it is coded in a batch; bytes that were read come out the same if their varints were in
    /// shortest form.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        self.prefix().write(self.headers.len(), self.headers.bytes.len(), out);
        out.extend_from_slice(self.headers.bytes);
    }

    /// What [`Record::write`] appends, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.prefix().size(self.headers.len(), self.headers.bytes.len())
    }

    fn prefix(&self) -> Prefix<'a> {
        Prefix {
            attributes: self.attributes,
            timestamp_delta: self.timestamp_delta,
            offset_delta: self.offset_delta,
            key: self.key,
            value: self.value,
        }
    }
}

/// A record but for its headers, as the builder writes it.
pub(crate) struct Prefix<'a> {
    pub(crate) attributes: i8,
    pub(crate) timestamp_delta: i64,
    pub(crate) offset_delta: i32,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
}

impl Prefix<'_> {
    /// The record's length field: all that follows it, with headers of `headers_len` bytes.
    fn length(&self, header_count: usize, headers_len: usize) -> usize {
        1 + varint::len_i64(self.timestamp_delta)
            + varint::len_i64(i64::from(self.offset_delta))
            + len_bytes(self.key)
            + len_bytes(self.value)
            + varint::len_i64(header_count as i64)
            + headers_len
    }

    /// What the whole record takes in the batch.
    pub(crate) fn size(&self, header_count: usize, headers_len: usize) -> usize {
        let length = self.length(header_count, headers_len);
        varint::len_i64(length as i64) + length
    }

    /// Appends everything before the headers' own bytes.
    pub(crate) fn write(&self, header_count: usize, headers_len: usize, out: &mut Vec<u8>) {
        varint::write_i64(self.length(header_count, headers_len) as i64, out);
        out.push(self.attributes as u8);
        varint::write_i64(self.timestamp_delta, out);
        varint::write_i32(self.offset_delta, out);
        write_bytes(self.key, out);
        write_bytes(self.value, out);
        varint::write_i64(header_count as i64, out);
    }
}

/// Appends a length and the bytes; null is length -1.
pub(crate) fn write_bytes(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    varint::write_i64(bytes.map_or(-1, |bytes| bytes.len() as i64), out);
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// What [`write_bytes`] appends.
pub(crate) fn len_bytes(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint::len_i64(bytes.len() as i64) + bytes.len())
}

/// Why the records of a batch cannot be read. All are INVALID_RECORD from a producer and corruption in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// A length goes beyond what contains it, or the batch ends inside a record.
    Truncated,
    /// A varint is longer than its type allows.
    Varint,
    /// A record's length says more than its fields take.
    Length {
        /// Bytes left over.
        excess: usize,
    },
    /// The header count is negative or more than the record can hold.
    HeaderCount {
        /// The count.
        count: i32,
    },
    /// A header has no key.
    NullHeaderKey,
    /// Bytes follow the last record.
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The record count is negative.
    RecordCount {
        /// The count.
        count: i32,
    },
    /// An offset delta is not the one expected: see [`crate::RecordBatch::check_records`].
    OffsetDelta {
        /// The place of the record in the batch, from 0.
        index: i32,
        /// Its delta.
        delta: i32,
    },
}

impl From<VarintError> for RecordError {
    fn from(error: VarintError) -> Self {
        match error {
            VarintError::Truncated => RecordError::Truncated,
            VarintError::TooLong => RecordError::Varint,
        }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("a record goes beyond its batch"),
            Self::Varint => f.write_str("a varint is too long"),
            Self::Length { excess } => write!(f, "a record is {excess} bytes longer than its fields"),
            Self::HeaderCount { count } => write!(f, "a record cannot hold {count} headers"),
            Self::NullHeaderKey => f.write_str("a header has no key"),
            Self::TrailingBytes { count } => write!(f, "{count} bytes follow the last record"),
            Self::RecordCount { count } => write!(f, "negative record count {count}"),
            Self::OffsetDelta { index, delta } => write!(f, "record {index} of the batch has offset delta {delta}"),
        }
    }
}

impl core::error::Error for RecordError {}

/// The way over the records of a batch, whatever is read of each: as many as its header says, and then nothing may be left.
/// The first error ends it.
#[derive(Debug, Clone)]
pub(crate) struct Walk<'a> {
    rest: &'a [u8],
    left: i32,
    done: bool,
}

impl<'a> Walk<'a> {
    /// Over `count` records in `body`, which is not compressed.
    pub(crate) fn new(body: &'a [u8], count: i32) -> Self {
        Walk { rest: body, left: count, done: false }
    }

    /// What is left, for the next record to be taken off its front and given to [`Walk::took`]; `None` after the last.
    #[inline(always)]
    pub(crate) fn rest(&mut self) -> Option<&mut &'a [u8]> {
        if self.left <= 0 || self.done { None } else { Some(&mut self.rest) }
    }

    /// Goes beyond the next record, or ends at an error.
    #[inline(always)]
    pub(crate) fn took<T>(&mut self, record: Result<T, RecordError>) -> Option<Result<T, RecordError>> {
        self.left -= 1;
        self.done = record.is_err();
        Some(record)
    }

    /// What is wrong with the end, said once.
    #[inline(never)]
    pub(crate) fn end(&mut self) -> Option<RecordError> {
        let was_done = core::mem::replace(&mut self.done, true);
        match self.left {
            _ if was_done => None,
            0 if self.rest.is_empty() => None,
            0 => Some(RecordError::TrailingBytes { count: self.rest.len() }),
            count => Some(RecordError::RecordCount { count }),
        }
    }
}

/// The records of a batch, in order: as many as its header says, and then nothing may be left.
///
/// The first error ends it.
#[derive(Debug, Clone)]
pub struct RecordIter<'a>(Walk<'a>);

impl<'a> RecordIter<'a> {
    /// Reads `count` records from `body`, which is not compressed.
    pub fn new(body: &'a [u8], count: i32) -> Self {
        RecordIter(Walk::new(body, count))
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(rest) = self.0.rest() else {
            return self.0.end().map(Err);
        };
        let record = Record::read(rest);
        self.0.took(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A record takes at least seven bytes; one more item may be an error.
        let claimed = usize::try_from(self.0.left).unwrap_or(0);
        (0, Some(claimed.min(self.0.rest.len() / 7).saturating_add(1)))
    }
}

impl core::iter::FusedIterator for RecordIter<'_> {}

/// What reading every record of a batch tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordsSummary {
    /// The largest timestamp as consumers see it, or [`Timestamp::NONE`] without records.
    pub max_timestamp: Timestamp,
    /// Offset delta of the first record with that timestamp, or -1 without records.
    pub max_timestamp_offset_delta: i32,
}

impl RecordsSummary {
    pub(crate) fn read(header: &BatchHeader, body: &[u8], origin: Origin) -> Result<Self, RecordError> {
        let mut summary = RecordsSummary { max_timestamp: Timestamp::NONE, max_timestamp_offset_delta: -1 };
        let mut next_delta = 0;
        for (index, record) in (0..).zip(RecordIter::new(body, header.record_count)) {
            let record = record?;
            let delta = record.offset_delta;
            let fits = match origin {
                Origin::Producer => delta == index,
                Origin::Log => i64::from(delta) >= next_delta && delta <= header.last_offset_delta,
            };
            if !fits {
                return Err(RecordError::OffsetDelta { index, delta });
            }
            next_delta = i64::from(delta) + 1;
            let timestamp = header.timestamp_of(&record);
            if summary.max_timestamp_offset_delta < 0 || timestamp > summary.max_timestamp {
                summary.max_timestamp = timestamp;
                summary.max_timestamp_offset_delta = delta;
            }
        }
        Ok(summary)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::*;
    use crate::batch::RecordBatch;
    use crate::builder::{BatchBuilder, BatchOptions};
    use crate::random::Random;
    use crate::validate::validate;

    /// The records of a batch: their bytes and how many they are.
    fn body_of(random: &mut Random, count: i32) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for _ in 0..count {
            let (key, value) = (random.optional_bytes(9), random.optional_bytes(90));
            let headers: Vec<_> = (0..random.below(4)).map(|_| (random.bytes(3), random.optional_bytes(5))).collect();
            let headers: Vec<_> = headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect();
            let timestamp = Timestamp(random.number() as i64);
            builder.push(timestamp, key.as_deref(), value.as_deref(), &headers).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        RecordBatch::peek(&out).unwrap().body().to_vec()
    }

    fn read_all(body: &[u8], count: i32) -> Result<usize, RecordError> {
        RecordIter::new(body, count).try_fold(0, |read, record| record.map(|_| read + 1))
    }

    #[test]
    fn every_truncation_is_refused() {
        let mut random = Random::new(2);
        let body = body_of(&mut random, 8);
        assert_eq!(read_all(&body, 8), Ok(8));
        for cut in 0..body.len() {
            assert_eq!(read_all(&body[..cut], 8), Err(RecordError::Truncated), "cut at {cut}");
        }
    }

    #[test]
    fn the_count_must_fit_the_bytes() {
        let body = body_of(&mut Random::new(3), 4);
        assert_eq!(read_all(&body, 5), Err(RecordError::Truncated));
        assert!(matches!(read_all(&body, 3), Err(RecordError::TrailingBytes { .. })));
        assert_eq!(read_all(&body, -1), Err(RecordError::RecordCount { count: -1 }));
        assert_eq!(read_all(&[], 0), Ok(0));
        let mut records = RecordIter::new(&body, 5);
        assert_eq!(records.by_ref().filter(Result::is_err).count(), 1);
        assert_eq!(records.next(), None, "the first error ends it");
        assert_eq!(RecordIter::new(&body, i32::MAX).size_hint(), (0, Some(body.len() / 7 + 1)));
    }

    #[test]
    fn each_field_is_held_against_what_remains() {
        // length, attributes, timestamp delta, offset delta, key length, value length, header count
        let record = |length: u8, rest: &[u8]| [&[length], rest].concat();
        let whole = record(12, &[0, 0, 0, 1, 1, 0]);
        assert_eq!(read_all(&whole, 1), Ok(1));
        for (body, error) in [
            (record(10, &whole[1..]), RecordError::Truncated),
            (record(14, &whole[1..]), RecordError::Truncated),
            (record(14, &[0, 0, 0, 1, 1, 0, 9]), RecordError::Length { excess: 1 }),
            (record(1, &whole[1..]), RecordError::Truncated),
            (record(12, &[0, 0, 0, 2, 1, 0]), RecordError::Truncated),
            (record(12, &[0, 0, 0, 10, 1, 0]), RecordError::Truncated),
            (record(12, &[0, 0, 0, 1, 10, 0]), RecordError::Truncated),
            (record(12, &[0, 0, 0, 1, 1, 1]), RecordError::HeaderCount { count: -1 }),
            (record(12, &[0, 0, 0, 1, 1, 2]), RecordError::HeaderCount { count: 1 }),
            (record(16, &[0, 0, 0, 1, 1, 2, 1, 1]), RecordError::NullHeaderKey),
            (record(16, &[0, 0, 0, 1, 1, 2, 2, 1]), RecordError::Truncated),
            ([0x80, 0x80, 0x80, 0x80, 0x80, 0].to_vec(), RecordError::Varint),
        ] {
            assert_eq!(read_all(&body, 1), Err(error), "{body:?}");
        }
        // A huge header count is refused by what remains, not by trying.
        let huge = [&[22, 0, 0, 0, 1, 1][..], &[0xfe, 0xff, 0xff, 0xff, 0x0f], &[0]].concat();
        assert_eq!(read_all(&huge, 1), Err(RecordError::HeaderCount { count: i32::MAX }));
    }

    #[test]
    fn damaged_bodies_never_read_past_their_end() {
        let mut random = Random::new(4);
        for _ in 0..3000 {
            let mut body = body_of(&mut random, 5);
            for _ in 0..=random.below(3) {
                let place = random.below(body.len());
                body[place] = random.number() as u8;
            }
            for record in RecordIter::new(&body, 5).map_while(Result::ok) {
                assert_eq!(record.headers.iter().count(), record.headers.len());
            }
        }
    }

    #[test]
    fn records_are_held_against_their_header() {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for (timestamp, key) in [(5, Some(&b"a"[..])), (9, None), (9, Some(&b"b"[..])), (-1, None)] {
            builder.push(Timestamp(timestamp), key, None, &[]).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        let batch = validate(&out, Origin::Producer).unwrap();
        let summary = RecordsSummary { max_timestamp: Timestamp(9), max_timestamp_offset_delta: 1 };
        assert_eq!(batch.check_records(batch.body(), Origin::Producer), Ok(summary));

        // Without its second record it is a compacted batch: legal in a log, not from a producer.
        let mut builder = BatchBuilder::rewrite(batch.header(), crate::Compression::None, None);
        for record in batch.records().map(Result::unwrap).filter(|record| record.offset_delta != 1) {
            builder.retain(&record).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        let batch = validate(&out, Origin::Log).unwrap();
        assert_eq!(batch.record_count(), 3);
        assert!(batch.check_records(batch.body(), Origin::Log).is_ok());
        let error = RecordError::OffsetDelta { index: 1, delta: 2 };
        assert_eq!(batch.check_records(batch.body(), Origin::Producer), Err(error));

        // A record behind the last offset delta is not the batch's.
        let header = BatchHeader { last_offset_delta: 2, ..*batch.header() };
        let error = RecordError::OffsetDelta { index: 2, delta: 3 };
        assert_eq!(RecordsSummary::read(&header, batch.body(), Origin::Log), Err(error));
    }
}
