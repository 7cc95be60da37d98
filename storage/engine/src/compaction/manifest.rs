//! What compaction has done to a log: which of its segments were rewritten, and how far it has come.
//!
//! Owns the bytes of the file `compaction` in a log's directory; does no IO. The file is the truth about the length of a
//! segment that was rewritten, whatever the checkpoint says: it is replaced, durably, before the segment is.
//! `docs/format.md` draws it.

use heddle_record::checksum::crc32c;
use heddle_record::{Offset, Timestamp};

/// What the file starts with.
pub const COMPACTION_MAGIC: [u8; 8] = *b"HEDDLECM";
/// The version of what follows.
pub const COMPACTION_VERSION: u32 = 1;
/// Bytes before the first segment: magic, version, checksum of the rest, first dirty offset, generation.
pub const COMPACTION_HEADER_LEN: usize = 32;
/// Bytes of a segment.
pub const COMPACTION_SEGMENT_LEN: usize = 40;

/// A segment that compaction has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CompactedSegment {
    pub(crate) base: Offset,
    /// Where the next segment starts: it stands for all that were in between.
    pub(crate) end: Offset,
    /// Bytes of its batches.
    pub(crate) size: u64,
    /// The number in the name of the file that it was written to.
    pub(crate) generation: u64,
    /// The earliest delete horizon of its batches: from then on another pass removes tombstones. `None` without any.
    pub(crate) horizon: Option<Timestamp>,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Manifest {
    /// Below this offset no key has two records.
    pub(crate) first_dirty: Offset,
    /// Counts the segments that were ever written.
    pub(crate) generation: u64,
    /// The segments that were rewritten, ascending, without overlap.
    pub(crate) segments: Vec<CompactedSegment>,
}

impl Manifest {
    /// Below this offset there may be gaps between batches and between segments.
    pub(crate) fn gaps_end(&self) -> Offset {
        self.segments.last().map_or(Offset::ZERO, |segment| segment.end)
    }

    /// Puts a segment in the place of those that it stands for, and forgets those below `start`, which are deleted.
    pub(crate) fn put(&mut self, new: CompactedSegment, start: Offset) {
        self.segments.retain(|old| old.end > start && (old.end <= new.base || old.base >= new.end));
        let place = self.segments.partition_point(|old| old.base < new.base);
        self.segments.insert(place, new);
        self.generation = self.generation.max(new.generation);
    }

    /// The bytes of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(COMPACTION_HEADER_LEN + self.segments.len() * COMPACTION_SEGMENT_LEN);
        body.extend_from_slice(&self.first_dirty.get().to_le_bytes());
        body.extend_from_slice(&self.generation.to_le_bytes());
        for segment in &self.segments {
            body.extend_from_slice(&segment.base.get().to_le_bytes());
            body.extend_from_slice(&segment.end.get().to_le_bytes());
            body.extend_from_slice(&segment.size.to_le_bytes());
            body.extend_from_slice(&segment.generation.to_le_bytes());
            body.extend_from_slice(&segment.horizon.map_or(-1, Timestamp::get).to_le_bytes());
        }
        let mut bytes = COMPACTION_MAGIC.to_vec();
        bytes.extend_from_slice(&COMPACTION_VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// What these bytes of a file say, or why they say nothing.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, &'static str> {
        let mut fields = Fields(bytes);
        if fields.take()? != COMPACTION_MAGIC {
            return Err("not what compaction wrote");
        }
        if u32::from_le_bytes(fields.take()?) != COMPACTION_VERSION {
            return Err("another version");
        }
        if u32::from_le_bytes(fields.take()?) != crc32c(fields.0) {
            return Err("the checksum does not match");
        }
        let first_dirty = Offset::new(i64::from_le_bytes(fields.take()?));
        let generation = u64::from_le_bytes(fields.take()?);
        let mut segments = Vec::new();
        while !fields.0.is_empty() {
            let base = Offset::new(i64::from_le_bytes(fields.take()?));
            let end = Offset::new(i64::from_le_bytes(fields.take()?));
            let (size, generation) = (u64::from_le_bytes(fields.take()?), u64::from_le_bytes(fields.take()?));
            let horizon = Timestamp::new(i64::from_le_bytes(fields.take()?));
            let horizon = Some(horizon).filter(|horizon| *horizon != Timestamp::NONE);
            segments.push(CompactedSegment { base, end, size, generation, horizon });
        }
        let manifest = Manifest { first_dirty, generation, segments };
        if manifest.is_sound() { Ok(manifest) } else { Err("it contradicts itself") }
    }

    fn is_sound(&self) -> bool {
        let whole = |one: &CompactedSegment| {
            one.base >= Offset::ZERO && one.base < one.end && one.size > 0 && one.generation <= self.generation
        };
        self.first_dirty >= Offset::ZERO
            && self.segments.iter().all(whole)
            && self.segments.windows(2).all(|pair| pair[0].end <= pair[1].base)
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (field, rest) = self.0.split_first_chunk().ok_or("too short")?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(base: i64, end: i64, generation: u64) -> CompactedSegment {
        let horizon = (generation.is_multiple_of(2)).then_some(Timestamp::new(77));
        CompactedSegment { base: Offset::new(base), end: Offset::new(end), size: 100, generation, horizon }
    }

    fn manifest() -> Manifest {
        let segments = vec![segment(0, 10, 4), segment(10, 30, 2), segment(50, 60, 5)];
        Manifest { first_dirty: Offset::new(60), generation: 5, segments }
    }

    #[test]
    fn what_is_written_is_read() {
        for manifest in [manifest(), Manifest::default()] {
            assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        }
        let bytes = manifest().encode();
        assert_eq!(bytes.len(), COMPACTION_HEADER_LEN + 3 * COMPACTION_SEGMENT_LEN);
        for at in 0..bytes.len() {
            let mut harmed = bytes.clone();
            harmed[at] ^= 1;
            assert!(Manifest::decode(&harmed).is_err(), "a flipped bit at {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut to {at}");
        }
        let overlap = Manifest { segments: vec![segment(0, 10, 1), segment(9, 12, 2)], ..manifest() };
        assert!(Manifest::decode(&overlap.encode()).is_err());
    }

    #[test]
    fn a_segment_takes_the_place_of_what_it_stands_for() {
        let mut manifest = manifest();
        manifest.put(segment(10, 50, 6), Offset::ZERO);
        let bases: Vec<i64> = manifest.segments.iter().map(|segment| segment.base.get()).collect();
        assert_eq!((bases, manifest.generation, manifest.gaps_end()), (vec![0, 10, 50], 6, Offset::new(60)));
        manifest.put(segment(60, 70, 7), Offset::new(50));
        let bases: Vec<i64> = manifest.segments.iter().map(|segment| segment.base.get()).collect();
        assert_eq!(bases, [50, 60], "what is deleted is forgotten");
        assert_eq!(Manifest::default().gaps_end(), Offset::ZERO);
    }
}
