//! A walk over the records of a batch that asks no more of them than which key each has.
//!
//! Owns the quick way to read a record whose varints are short, as almost all are. What does not fit it is read by
//! [`crate::RecordIter`]'s rules, so that both take and refuse the same bytes.

use crate::record::{Headers, Record, RecordError, Walk};
use crate::varint;

/// What compaction asks of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordKey<'a> {
    /// Offset less the batch's base offset.
    pub offset_delta: i32,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// It has no value.
    pub is_tombstone: bool,
}

/// The keys of a batch's records, in order: as many as its header says, and then nothing may be left. All of each record is
/// checked.
///
/// The first error ends it.
#[derive(Debug, Clone)]
pub struct RecordKeys<'a>(Walk<'a>);

impl<'a> RecordKeys<'a> {
    /// Reads `count` records from `body`, which is not compressed.
    pub fn new(body: &'a [u8], count: i32) -> Self {
        RecordKeys(Walk::new(body, count))
    }
}

impl<'a> Iterator for RecordKeys<'a> {
    type Item = Result<RecordKey<'a>, RecordError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let Some(rest) = self.0.rest() else {
            return self.0.end().map(Err);
        };
        let record = read_any(rest);
        self.0.took(record)
    }
}

impl core::iter::FusedIterator for RecordKeys<'_> {}

/// Takes a record off the front of `input`.
#[inline(always)]
fn read_any<'a>(input: &mut &'a [u8]) -> Result<RecordKey<'a>, RecordError> {
    let Some((key, behind)) = read_short(input) else {
        return read(input);
    };
    *input = behind;
    Ok(key)
}

#[inline(never)]
fn read<'a>(input: &mut &'a [u8]) -> Result<RecordKey<'a>, RecordError> {
    let Record { offset_delta, key, value, .. } = Record::read(input)?;
    Ok(RecordKey { offset_delta, key, is_tombstone: value.is_none() })
}

/// Reads a record of short varints, and what follows it. `None` if it is anything else.
#[inline(always)]
fn read_short(input: &[u8]) -> Option<(RecordKey<'_>, &[u8])> {
    let mut body = input;
    let length = usize::try_from(varint::read_short_i32(&mut body)?).ok()?;
    let (body, rest) = body.split_at_checked(length)?;
    let (_attributes, mut body) = body.split_first()?;
    let _timestamp_delta = varint::read_i64(&mut body).ok()?;
    let offset_delta = varint::read_short_i32(&mut body)?;
    let key = bytes_short(&mut body)?;
    let value = bytes_short(&mut body)?;
    // A record without headers ends with their count.
    if body != [0] && Headers::check(body).is_err() {
        return None;
    }
    Some((RecordKey { offset_delta, key, is_tombstone: value.is_none() }, rest))
}

#[inline(always)]
#[expect(clippy::option_option, reason = "not short, null, or bytes")]
fn bytes_short<'a>(input: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let Ok(length) = usize::try_from(varint::read_short_i32(input)?) else {
        return Some(None);
    };
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    use crate::batch::RecordBatch;
    use crate::builder::{BatchBuilder, BatchOptions};
    use crate::id::Timestamp;
    use crate::random::Random;
    use crate::record::{Header, RecordIter};

    /// The records of a batch, with varints of all lengths.
    fn body_of(random: &mut Random, count: i32) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for _ in 0..count {
            let value_max = [0, 90, 20_000].into_iter().nth(random.below(3)).expect("three of them");
            let (key, value) = (random.optional_bytes(90), random.optional_bytes(value_max));
            let headers: Vec<_> = (0..random.below(3)).map(|_| (random.bytes(3), random.optional_bytes(5))).collect();
            let headers: Vec<_> = headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect();
            let timestamp = Timestamp((random.number() >> random.below(64)) as i64);
            builder.push(timestamp, key.as_deref(), value.as_deref(), &headers).unwrap();
        }
        let mut out = Vec::new();
        builder.finish(&mut out).unwrap();
        RecordBatch::peek(&out).unwrap().body().to_vec()
    }

    /// What is read of `body`, after a check that it is what the full reading gives, errors included.
    fn read(body: &[u8], count: i32) -> Vec<Result<RecordKey<'_>, RecordError>> {
        let key_of =
            |Record { offset_delta, key, value, .. }| RecordKey { offset_delta, key, is_tombstone: value.is_none() };
        let expected: Vec<_> = RecordIter::new(body, count).map(|record| record.map(key_of)).collect();
        let found: Vec<_> = RecordKeys::new(body, count).collect();
        assert_eq!(found, expected);
        found
    }

    #[test]
    fn it_reads_what_the_full_reading_does() {
        let mut random = Random::new(11);
        for _ in 0..300 {
            let body = body_of(&mut random, 7);
            assert!(read(&body, 7).iter().all(Result::is_ok));
            for count in [-1, 0, 6, 8] {
                assert!(read(&body, count).last().is_some_and(Result::is_err), "{count} records");
            }
        }
        assert!(read(&[], 0).is_empty());
    }

    #[test]
    fn it_refuses_what_the_full_reading_does() {
        let mut random = Random::new(12);
        let mut refused = 0;
        for _ in 0..3000 {
            let mut body = body_of(&mut random, 3);
            body.truncate(400);
            for _ in 0..=random.below(3) {
                let place = random.below(body.len());
                *body.get_mut(place).expect("a place within") = random.number() as u8;
            }
            refused += usize::from(read(&body, 3).iter().any(Result::is_err));
        }
        assert!(refused > 500, "{refused} of 3000");
    }
}
