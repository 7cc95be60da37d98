//! A set of offsets that come in ascending order and go in any: a bit each.
//!
//! Owns the bits, in pieces of [`PIECE_OFFSETS`] offsets, each of which is there only while something is in it: a long log
//! of few keys, or one with wide gaps, takes little.

use heddle_record::Offset;

/// Offsets of a piece.
pub(crate) const PIECE_OFFSETS: i64 = 4096;
const WORDS: usize = PIECE_OFFSETS as usize / 64;
/// What a piece takes while something is in it, in bytes.
pub(crate) const PIECE_BYTES: usize = size_of::<Piece>() + WORDS * 8;

/// The set.
#[derive(Debug, Default)]
pub(crate) struct OffsetSet {
    /// By ascending number. Those in which nothing is left stay, without bits.
    pieces: Vec<Piece>,
    /// Pieces with bits.
    used: usize,
}

#[derive(Debug)]
struct Piece {
    /// The first offset, in pieces.
    number: i64,
    /// How many bits are set.
    count: u32,
    bits: Option<Box<[u64; WORDS]>>,
}

impl OffsetSet {
    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.len() * size_of::<Piece>() + self.used * WORDS * 8
    }

    /// Bytes that it will take more once the offsets from `first` to `last`, larger than all before, are in it.
    #[inline]
    pub(crate) fn bytes_for(&self, first: Offset, last: Offset) -> usize {
        let (first, end) = (piece_of(first), piece_of(last) + 1);
        match self.pieces.last() {
            Some(piece) if piece.number == first => {
                (end - first - 1) as usize * PIECE_BYTES + if piece.bits.is_some() { 0 } else { WORDS * 8 }
            }
            _ => (end - first) as usize * PIECE_BYTES,
        }
    }

    /// Puts the offsets from `first` to `last` in. None is smaller than the largest that ever was.
    ///
    /// # Panics
    /// If the first is smaller by a piece.
    #[inline]
    pub(crate) fn insert_all(&mut self, first: Offset, last: Offset) {
        for number in piece_of(first)..=piece_of(last) {
            let start = number * PIECE_OFFSETS;
            let (low, high) = ((first.get() - start).max(0), (last.get() - start).min(PIECE_OFFSETS - 1));
            self.insert_into(number, low as usize, high as usize);
        }
    }

    /// Puts the offsets into the last piece, or the one behind it, whose places in it are `low` to `high`.
    #[inline]
    fn insert_into(&mut self, number: i64, low: usize, high: usize) {
        if self.pieces.last().is_none_or(|last| last.number != number) {
            assert!(self.pieces.last().is_none_or(|last| last.number < number), "offsets ascend");
            self.pieces.push(Piece { number, count: 0, bits: None });
        }
        let piece = self.pieces.last_mut().expect("it was just made");
        if piece.bits.is_none() {
            self.used += 1;
        }
        let bits = piece.bits.get_or_insert_with(|| Box::new([0; WORDS]));
        for word in low / 64..=high / 64 {
            let new = between(word, low, high) & !bits[word];
            piece.count += new.count_ones();
            bits[word] |= new;
        }
    }

    /// Takes an offset out, if it is in.
    #[inline]
    pub(crate) fn remove(&mut self, offset: Offset) {
        let Some(index) = self.find(piece_of(offset)) else { return };
        let piece = &mut self.pieces[index];
        let Some(bits) = &mut piece.bits else { return };
        let (word, bit) = place(offset);
        piece.count -= u32::from(bits[word] & bit != 0);
        bits[word] &= !bit;
        if piece.count == 0 {
            piece.bits = None;
            self.used -= 1;
        }
    }

    /// Whether an offset is in.
    #[inline]
    pub(crate) fn contains(&self, offset: Offset) -> bool {
        let bits = self.find(piece_of(offset)).and_then(|index| self.pieces[index].bits.as_ref());
        let (word, bit) = place(offset);
        bits.is_some_and(|bits| bits[word] & bit != 0)
    }

    /// Which of the 64 offsets are in of which `offset` is one: a bit each, the lowest for the first.
    #[inline]
    fn word(&self, offset: Offset) -> u64 {
        let bits = self.find(piece_of(offset)).and_then(|index| self.pieces[index].bits.as_ref());
        bits.map_or(0, |bits| bits[place(offset).0])
    }

    /// Of `first` and each offset behind it, whether it is in.
    pub(crate) fn from(&self, first: Offset) -> impl Iterator<Item = bool> {
        let mut word = self.word(first);
        (first.get()..).map(move |offset| {
            if offset % 64 == 0 {
                word = self.word(Offset::new(offset));
            }
            word >> (offset % 64) & 1 != 0
        })
    }

    /// How many of the offsets from `first` to `last` are in.
    pub(crate) fn count(&self, first: Offset, last: Offset) -> u64 {
        let (first, last) = (first.get(), last.get());
        let from = self.pieces.partition_point(|piece| piece.number < first / PIECE_OFFSETS);
        let pieces = self.pieces[from..].iter().take_while(|piece| piece.number <= last / PIECE_OFFSETS);
        let counts = pieces.map(|piece| {
            let start = piece.number * PIECE_OFFSETS;
            let (low, high) = ((first - start).max(0), (last - start).min(PIECE_OFFSETS - 1));
            piece.bits.as_ref().map_or(0, |bits| count_between(bits, low as usize, high as usize))
        });
        counts.sum()
    }

    /// The index of the piece with this number.
    #[inline]
    fn find(&self, number: i64) -> Option<usize> {
        let first = self.pieces.first()?.number;
        // Where there are no gaps it is where it should be.
        let guess = usize::try_from(number - first).ok()?;
        if self.pieces.get(guess).is_some_and(|piece| piece.number == number) {
            return Some(guess);
        }
        self.pieces.binary_search_by_key(&number, |piece| piece.number).ok()
    }
}

/// The number of the piece that an offset is in.
#[inline]
fn piece_of(offset: Offset) -> i64 {
    // A shift, as none is negative.
    offset.get() >> PIECE_OFFSETS.ilog2()
}

/// The bits of a word of a piece that are for the places from `low` to `high`.
#[inline]
fn between(word: usize, low: usize, high: usize) -> u64 {
    let above = if word == low / 64 { u64::MAX << (low % 64) } else { u64::MAX };
    let below = if word == high / 64 { u64::MAX >> (63 - high % 64) } else { u64::MAX };
    above & below
}

/// The word of a piece that has an offset's bit, and the bit.
#[inline]
fn place(offset: Offset) -> (usize, u64) {
    let within = offset.get() as usize % PIECE_OFFSETS as usize;
    (within / 64, 1 << (within % 64))
}

/// How many of the bits from `low` to `high` are set.
fn count_between(bits: &[u64; WORDS], low: usize, high: usize) -> u64 {
    (low / 64..=high / 64).map(|word| u64::from((bits[word] & between(word, low, high)).count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_is_a_set() {
        let (mut set, mut model) = (OffsetSet::default(), BTreeSet::new());
        let mut seed = 7_u64;
        let mut chance = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut offset = 1_000_000_i64;
        for round in 0..20_000 {
            offset += if round % 1000 == 999 { 1 << 40 } else { 1 + chance(9) as i64 };
            let last = offset + if chance(100) == 0 { chance(9_000) as i64 } else { 0 };
            let more = set.bytes() + set.bytes_for(Offset::new(offset), Offset::new(last));
            set.insert_all(Offset::new(offset), Offset::new(last));
            assert_eq!(set.bytes(), more);
            model.extend(offset..=last);
            offset = last;
            let gone = *model.range(offset - chance(2_000) as i64..).next().unwrap();
            set.remove(Offset::new(gone));
            model.remove(&gone);
            set.remove(Offset::new(gone));
            if round % 50 == 0 {
                let (low, high) = (offset - chance(9_000) as i64, offset - chance(90) as i64);
                let expected = model.range(low.min(high)..=high).count() as u64;
                assert_eq!(set.count(Offset::new(low.min(high)), Offset::new(high)), expected, "{low} to {high}");
            }
            assert_eq!(set.contains(Offset::new(offset)), model.contains(&offset));
        }
        assert!(
            (990_000..offset)
                .step_by(offset as usize / 999)
                .all(|at| set.contains(Offset::new(at)) == model.contains(&at))
        );
        assert!(!set.contains(Offset::ZERO) && set.count(Offset::ZERO, Offset::MAX) == model.len() as u64);
        for gone in model {
            set.remove(Offset::new(gone));
        }
        assert_eq!(set.bytes(), set.pieces.len() * size_of::<Piece>(), "what is empty has no bits");
    }
}
