//! Which records of the part of a log that is being compacted are the last of their keys.
//!
//! Owns what is learned in one walk over that part, so that the second walk asks a bit for each record there: neither its
//! key is hashed again nor, where all records of a batch stay or none, the batch taken apart. Below that part a record is
//! looked up by its key. All of it together stays within the memory that compaction may have.
//!
//! A look at a table of many megabytes waits for memory. Keys are gathered, a few dozen at a time, and their places brought
//! near meanwhile, so that nothing is waited for when it is their turn.

use heddle_record::Offset;

use super::key_hash::{KeyHash, KeyHasher};
use super::offset_map::{Full, OffsetMap};
use super::offset_set::{OffsetSet, PIECE_BYTES, PIECE_OFFSETS};

/// Keys that are gathered: as many as it takes for the first one's place to arrive, and few enough for the nearest cache.
const GATHERED: usize = 32;

/// What is known of the records in question.
#[derive(Debug)]
pub(crate) struct Survivors {
    hasher: KeyHasher,
    map: OffsetMap,
    /// Those that are the last of their keys.
    last: OffsetSet,
    /// Those without a value, the last of their keys or not.
    tombstones: OffsetSet,
    bytes_max: usize,
    /// The first offset that was noted: what the map counts from, beginning with 1.
    base: Option<Offset>,
    /// Keys that are known.
    keys: usize,
    waiting: Vec<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    hash: KeyHash,
    offset: Offset,
    is_tombstone: bool,
}

/// Memory is at its end: nothing from this offset on is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FullAt(pub(crate) Offset);

/// Keys of records below the part in question, to be looked up together.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    hashes: Vec<KeyHash>,
}

impl Survivors {
    /// Nothing known yet; at most `bytes_max` bytes will be taken, but always enough for a few keys. `offsets_max` is how many
    /// offsets there are from the first record that will be noted to the last.
    pub(crate) fn new(secret: [u8; 16], bytes_max: usize, offsets_max: usize) -> Survivors {
        // What a bit for each takes is not for keys.
        let bits = offsets_max.div_ceil(PIECE_OFFSETS as usize).saturating_mul(PIECE_BYTES);
        Survivors {
            hasher: KeyHasher::new(secret),
            map: OffsetMap::new(bytes_max - bits.min(bytes_max / 2), offsets_max),
            last: OffsetSet::default(),
            tombstones: OffsetSet::default(),
            bytes_max,
            base: None,
            keys: 0,
            waiting: Vec::with_capacity(GATHERED),
        }
    }

    /// Keys that are known.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// Bytes that all of this takes.
    pub(crate) fn bytes(&self) -> usize {
        self.map.bytes() + self.last.bytes() + self.tombstones.bytes()
    }

    /// Notes a record. Offsets ascend.
    ///
    /// # Errors
    /// [`FullAt`]: of this record or one of the last few, which is where to stop.
    #[inline]
    pub(crate) fn note(&mut self, key: &[u8], offset: Offset, is_tombstone: bool) -> Result<(), FullAt> {
        let hash = self.hasher.hash(key);
        self.map.prefetch(hash);
        self.waiting.push(Waiting { hash, offset, is_tombstone });
        if self.waiting.len() == GATHERED { self.settle() } else { Ok(()) }
    }

    /// Brings in what was noted last; to be called once after the last record.
    ///
    /// # Errors
    /// As [`Survivors::note`].
    #[inline(never)]
    pub(crate) fn settle(&mut self) -> Result<(), FullAt> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let brought_in = match &waiting[..] {
            [first, .., last] if last.offset.get() - first.offset.get() == waiting.len() as i64 - 1 => {
                self.bring_in(&waiting)
            }
            some => {
                some.chunk_by(|one, other| one.offset.next() == other.offset).try_for_each(|run| self.bring_in(run))
            }
        };
        waiting.clear();
        self.waiting = waiting;
        brought_in
    }

    /// Brings in records that follow each other without a gap, [`GATHERED`] at most.
    fn bring_in(&mut self, run: &[Waiting]) -> Result<(), FullAt> {
        let (first, last) = (run[0].offset, run[run.len() - 1].offset);
        let has_tombstone = run.iter().fold(false, |any, one| any | one.is_tombstone);
        let needed =
            self.last.bytes_for(first, last) + if has_tombstone { self.tombstones.bytes_for(first, last) } else { 0 };
        let base = *self.base.get_or_insert(first);
        // What the run's own numbers come after.
        let number = u32::try_from(last.get() - base.get() + 1).map_err(|_| FullAt(first))? - run.len() as u32;
        if needed > 0 {
            self.make_room(needed).map_err(|Full| FullAt(first))?;
        }
        // Those of the run that are behind where memory ends are never asked for.
        self.last.insert_all(first, last);
        if has_tombstone {
            run.iter()
                .filter(|one| one.is_tombstone)
                .for_each(|one| self.tombstones.insert_all(one.offset, one.offset));
        }
        let (mut replaced, mut count) = ([0; GATHERED], 0);
        let noted = run.iter().zip(1..).try_for_each(|(one, place)| {
            let former = self.map.note(one.hash, number + place).map_err(|Full| FullAt(one.offset))?;
            // Whether there is one cannot be foreseen, so it is counted, not asked.
            replaced[count % GATHERED] = former;
            count += usize::from(former > 0);
            self.keys += usize::from(former == 0);
            Ok(())
        });
        // Only now: a bit far away is waited for together with the others.
        let before = base.get() - 1;
        replaced[..count].iter().for_each(|former| self.last.remove(Offset::new(before + i64::from(*former))));
        noted
    }

    /// The bits get `needed` more bytes, and the keys what is left; half of all at least, where anything is known already.
    fn make_room(&mut self, needed: usize) -> Result<(), Full> {
        let bits = self.last.bytes() + self.tombstones.bytes();
        let all = self.bytes() + needed;
        if bits > 0 && (bits + needed > self.bytes_max / 2 || all > self.bytes_max) {
            return Err(Full);
        }
        self.map.limit(self.bytes_max.saturating_sub(bits + needed));
        Ok(())
    }

    /// Whether the record at `offset`, which was noted, is the last of its key.
    #[inline]
    pub(crate) fn is_last(&self, offset: Offset) -> bool {
        self.last.contains(offset)
    }

    /// The same of `first` and each offset behind it.
    pub(crate) fn are_last_from(&self, first: Offset) -> impl Iterator<Item = bool> {
        self.last.from(first)
    }

    /// How many of the records from `first` to `last` are the last of their keys.
    pub(crate) fn last_between(&self, first: Offset, last: Offset) -> u64 {
        self.last.count(first, last)
    }

    /// Whether any of the records from `first` to `last` has no value.
    pub(crate) fn tombstones_between(&self, first: Offset, last: Offset) -> bool {
        self.tombstones.count(first, last) > 0
    }

    /// Answers the questions in their order: whether the key has a later record.
    pub(crate) fn answer(&self, questions: &mut Questions, mut answer: impl FnMut(bool)) {
        questions.hashes.drain(..).for_each(|hash| answer(self.map.number(hash) > 0));
    }

    /// Asks whether `key` has a later record. True if it is time to hear the answers.
    pub(crate) fn ask(&self, questions: &mut Questions, key: &[u8]) -> bool {
        let hash = self.hasher.hash(key);
        self.map.prefetch(hash);
        questions.hashes.push(hash);
        questions.hashes.len() >= GATHERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn of_each_key_the_last_is_known() {
        for bytes_max in [0, 5_000, 60_000, 1 << 20] {
            let mut survivors = Survivors::new([3; 16], bytes_max, 30_000 * 7);
            let mut model: BTreeMap<u64, (i64, bool)> = BTreeMap::new();
            let mut seed = 1_u64;
            let mut all = Vec::new();
            let mut end = None;
            for number in 0..30_000 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // With gaps, as where compaction has been.
                let (key, offset) = ((seed >> 33) % 3_000, number * 7);
                let noted = survivors.note(&key.to_be_bytes(), Offset::new(offset), seed >> 62 == 0);
                all.push((key, offset, seed >> 62 == 0));
                if let Err(FullAt(at)) = noted {
                    end = Some(at.get());
                    break;
                }
            }
            let end = end.or_else(|| survivors.settle().err().map(|FullAt(at)| at.get())).unwrap_or(i64::MAX);
            assert_eq!(end == i64::MAX, bytes_max == 1 << 20, "{bytes_max} bytes: up to {end}");
            assert!(end > 0 && survivors.bytes() <= bytes_max.max(5_000), "{} of {bytes_max}", survivors.bytes());
            all.retain(|(_, offset, _)| *offset < end);
            for (key, offset, is_tombstone) in &all {
                model.insert(*key, (*offset, *is_tombstone));
            }
            for (key, offset, _) in &all {
                assert_eq!(survivors.is_last(Offset::new(*offset)), model[key].0 == *offset, "{offset} of {bytes_max}");
            }
            let between = |from: i64, to: i64| {
                let last = model.values().filter(|(offset, _)| (from..=to).contains(offset)).count() as u64;
                assert_eq!(survivors.last_between(Offset::new(from), Offset::new(to)), last, "{from} to {to}");
                let any = all.iter().any(|(_, offset, tombstone)| *tombstone && (from..=to).contains(offset));
                assert_eq!(survivors.tombstones_between(Offset::new(from), Offset::new(to)), any, "{from} to {to}");
            };
            let last = all.last().unwrap().1;
            between(0, last);
            (0..200).for_each(|number| between(number * 101 % (last + 1), (number * 101 % (last + 1) + 900).min(last)));
            let (mut questions, mut answers) = (Questions::default(), Vec::new());
            for key in 0..3_100_u64 {
                if survivors.ask(&mut questions, &key.to_be_bytes()) {
                    survivors.answer(&mut questions, |is_replaced| answers.push(is_replaced));
                }
            }
            survivors.answer(&mut questions, |is_replaced| answers.push(is_replaced));
            let expected: Vec<bool> = (0..3_100).map(|key| model.contains_key(&key)).collect();
            assert_eq!(answers, expected);
        }
    }

    #[test]
    fn offsets_are_taken_as_far_as_a_slot_counts() {
        let mut survivors = Survivors::new([8; 16], 1 << 20, usize::MAX);
        let first = Offset::new(1 << 50);
        let far = Offset::new(first.get() + i64::from(u32::MAX) - 1);
        assert_eq!(survivors.note(b"a", first, false), Ok(()));
        assert_eq!(survivors.note(b"b", far, false), Ok(()));
        assert_eq!(survivors.settle(), Ok(()));
        assert_eq!(survivors.note(b"a", far.next(), false), Ok(()));
        assert_eq!(survivors.settle(), Err(FullAt(far.next())));
        assert!(survivors.is_last(first) && survivors.is_last(far) && survivors.keys() == 2);
    }
}
