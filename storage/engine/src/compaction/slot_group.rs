//! Four slots for keys in one cache line, searched at once.
//!
//! Owns the layout of a slot: 96 of the 128 bits of a hash, and a number. Decides nothing about which group a key belongs to.
//!
//! ```text
//!  0 first halves of four hashes   32 the upper quarters of the second halves   48 four numbers
//! ```
//! Whether a key is known and whether it is the first or the fourth cannot be foreseen, so nothing branches on it: what may be
//! its slot and what is free are bits of a mask, and the lowest is taken.

use super::key_hash::KeyHash;

/// Slots of a group.
pub(super) const GROUP_SLOTS: usize = 4;
/// Bytes of a group.
pub(super) const GROUP_BYTES: usize = 64;
const _: () = assert!(size_of::<Group>() == GROUP_BYTES, "the memory of a map is counted in groups");

/// Slots that fill up from the first to the last; none becomes free again.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Group {
    /// The first half of each hash, and the upper half of the second.
    first: [u64; GROUP_SLOTS],
    second: [u32; GROUP_SLOTS],
    /// 0 marks a free slot.
    numbers: [u32; GROUP_SLOTS],
}

impl Group {
    /// A full one.
    pub(super) const OF_NOBODY: Group =
        Group { first: [u64::MAX; GROUP_SLOTS], second: [u32::MAX; GROUP_SLOTS], numbers: [u32::MAX; GROUP_SLOTS] };

    /// Gives a key a number, which is not 0. Returns the one that it had, or 0 if it is new; `None` if the group is full of
    /// others.
    #[inline(always)]
    pub(super) fn put(&mut self, hash: KeyHash, number: u32) -> Option<u32> {
        let mut candidates = self.candidates(hash);
        while candidates > 0 {
            let slot = candidates.trailing_zeros() as usize;
            let former = self.numbers[slot];
            if former == 0 || self.first[slot] == hash.first {
                self.first[slot] = hash.first;
                self.second[slot] = hash.upper();
                self.numbers[slot] = number;
                return Some(former);
            }
            candidates &= candidates - 1;
        }
        None
    }

    /// The number of a key, or 0 if it has none; `None` if the group is full of others.
    #[inline(always)]
    pub(super) fn number(&self, hash: KeyHash) -> Option<u32> {
        let mut candidates = self.candidates(hash);
        while candidates > 0 {
            let slot = candidates.trailing_zeros() as usize;
            if self.numbers[slot] == 0 || self.first[slot] == hash.first {
                return Some(self.numbers[slot]);
            }
            candidates &= candidates - 1;
        }
        None
    }

    /// What is known of the keys that are here, and their numbers.
    #[inline]
    pub(super) fn taken(&self) -> impl Iterator<Item = (KeyHash, u32)> {
        let slots = self.first.iter().zip(&self.second).zip(&self.numbers).take_while(|(_, number)| **number > 0);
        slots.map(|((first, second), number)| (KeyHash { first: *first, second: u64::from(*second) << 32 }, *number))
    }

    /// A bit for each slot that is free or may be a key's: what it has of the second half is there, and almost never is that
    /// another key's. The key's own is before those that are free.
    #[inline(always)]
    fn candidates(&self, hash: KeyHash) -> u32 {
        let upper = hash.upper();
        let bit = |slot: usize| u32::from((self.second[slot] == upper) | (self.numbers[slot] == 0)) << slot;
        bit(0) | bit(1) | bit(2) | bit(3)
    }

    /// Panics if slots are not filled from the first.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        assert!(self.numbers[self.taken().count()..].iter().all(|number| *number == 0), "{self:?}");
    }
}

impl KeyHash {
    /// What a slot has of the second half.
    #[inline(always)]
    fn upper(self) -> u32 {
        (self.second >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_share_half_of_their_bits_are_told_apart() {
        let mut group = Group::default();
        let hash = |first: u64, second: u64| KeyHash { first, second: second << 32 };
        let keys = [hash(0, 0), hash(1, 0), hash(0, 1), hash(u64::MAX, u64::from(u32::MAX))];
        for (key, number) in keys.into_iter().zip(1..) {
            assert_eq!(group.number(key), Some(0));
            assert_eq!(group.put(key, number), Some(0));
            assert_eq!(group.number(key), Some(number));
            group.check_invariants();
        }
        assert!(group.taken().map(|(key, _)| key).eq(keys));
        for (key, number) in keys.into_iter().zip(1..) {
            assert_eq!(group.put(key, number + 10), Some(number));
            assert_eq!(group.number(key), Some(number + 10));
        }
        for other in [hash(1, 1), hash(2, 0), hash(0, 2)] {
            assert_eq!((group.number(other), group.put(other, 9)), (None, None));
        }
        assert!(group.taken().map(|(_, number)| number).eq([11, 12, 13, 14]));
    }
}
