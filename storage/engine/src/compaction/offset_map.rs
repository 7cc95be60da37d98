//! The last offset of every key in the part of a log that is being compacted, in bounded memory.
//!
//! Owns the table. It keeps bits of a keyed hash in place of a key (Kafka: MD5), and never the key. Two keys with one
//! hash would make the earlier one's record disappear, so the hash is SipHash under a secret that is new for each pass:
//! nobody who writes keys can find two that collide, as anybody can for MD5. Of its 128 bits a slot has 96, and the table
//! that it lies in tells as many more as it takes to choose one among all: a slot is a quarter of a cache line, and never
//! lies in two. With 2^23 keys, which is what the default of `log.cleaner.dedupe.buffer.size` has room for, there are 11
//! of those, and two keys collide with a probability of 2^-62.
//!
//! The slots lie in many small tables, each of which doubles by itself: growing one never holds up the core for long, and
//! a log with few keys takes little memory.

use heddle_record::Offset;

/// Bytes of a slot: 96 bits of hash, an offset.
pub(crate) const SLOT_BYTES: usize = 16;
const _: () = assert!(size_of::<Slot>() == SLOT_BYTES, "the memory of a map is counted in slots");

/// Slots of a table that is not empty, at least.
const TABLE_SLOTS_MIN: usize = 8;
/// What the slots of one table take when the map is full: 96 KiB are moved when it doubles for the last time.
const TABLE_BYTES: usize = 96 << 10;
const TABLES_MAX: usize = 1 << 16;

/// Keys and the last offset of each.
#[derive(Debug)]
pub(crate) struct OffsetMap {
    secret: [u64; 2],
    /// The first offset that was noted: what slots count from.
    base: Offset,
    tables: Vec<Table>,
    /// Slots of all tables, and how many there may be.
    slots: usize,
    slots_max: usize,
    len: usize,
}

#[derive(Debug, Default)]
struct Table {
    /// A power of two of them, or none.
    slots: Vec<Slot>,
    len: usize,
}

/// The offset is one more than it is behind the base; 0 marks a free slot.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
struct Slot {
    /// The first half of the hash, and the upper half of the second.
    first: u64,
    second: u32,
    offset_and_one: u32,
}

/// 128 bits that stand for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyHash([u64; 2]);

/// There is no room for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl OffsetMap {
    /// An empty map that takes at most `bytes_max` bytes, but always a few keys.
    pub(crate) fn new(secret: [u8; 16], bytes_max: usize) -> OffsetMap {
        let (low, high) = secret.split_at(8);
        let number = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("half of sixteen bytes"));
        let count = (bytes_max / TABLE_BYTES).clamp(1, TABLES_MAX).next_power_of_two();
        let slots_max = (bytes_max / SLOT_BYTES).max(count * TABLE_SLOTS_MIN);
        let tables = std::iter::repeat_with(Table::default).take(count).collect();
        let secret = [number(low), number(high)];
        OffsetMap { secret, base: Offset::ZERO, tables, slots: 0, slots_max, len: 0 }
    }

    /// Keys that are known.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the slots.
    pub(crate) fn bytes(&self) -> usize {
        self.slots * SLOT_BYTES
    }

    /// From now on it takes at most `bytes_max` bytes, or what it takes already.
    pub(crate) fn limit(&mut self, bytes_max: usize) {
        self.slots_max = (bytes_max / SLOT_BYTES).max(self.tables.len() * TABLE_SLOTS_MIN);
    }

    /// What a key is known by.
    #[inline(always)]
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(sip_hash::<1, 3>(self.secret, key))
    }

    /// Looks where a key is or would be, so that this is near when it is needed. The number means nothing.
    #[inline]
    pub(crate) fn touch(&self, hash: KeyHash) -> u64 {
        let slots = &self.tables[self.table_of(hash)].slots;
        slots.get(hash.place() & slots.len().wrapping_sub(1)).map_or(0, |slot| slot.first)
    }

    /// Notes that a key has a record at `offset`, and gives the largest that was known of it before. The largest counts. No
    /// offset is smaller than the first.
    ///
    /// # Errors
    /// [`Full`]: the key is new and there is no room, or the offset is 2^32 - 1 or more behind the first.
    ///
    /// # Panics
    /// If the offset is smaller than the first.
    #[inline]
    pub(crate) fn note(&mut self, hash: KeyHash, offset: Offset) -> Result<Option<Offset>, Full> {
        if self.len == 0 {
            self.base = offset;
        }
        assert!(offset >= self.base, "offsets ascend from the first");
        let value = u32::try_from(offset.get() - self.base.get() + 1).map_err(|_| Full)?;
        let number = self.table_of(hash);
        if let Some(slot) = self.tables[number].find(hash) {
            let former = slot.offset_and_one;
            slot.offset_and_one = former.max(value);
            return Ok(Some(self.offset_of(former)));
        }
        self.add(number, Slot::new(hash, value)).map(|()| None)
    }

    /// The largest offset that was noted for a key.
    pub(crate) fn last(&self, hash: KeyHash) -> Option<Offset> {
        let slot = self.tables[self.table_of(hash)].peek(hash)?;
        Some(self.offset_of(slot.offset_and_one))
    }

    fn offset_of(&self, offset_and_one: u32) -> Offset {
        Offset::new(self.base.get() + i64::from(offset_and_one) - 1)
    }

    /// Puts in what no table has.
    fn add(&mut self, number: usize, slot: Slot) -> Result<(), Full> {
        let table = &mut self.tables[number];
        if table.is_crowded() {
            let more = table.slots.len().max(TABLE_SLOTS_MIN / 2) * 2 - table.slots.len();
            if self.slots + more <= self.slots_max {
                table.grow(more);
                self.slots += more;
            } else if table.is_full() {
                return Err(Full);
            }
        }
        table.insert(slot);
        self.len += 1;
        Ok(())
    }

    #[inline]
    fn table_of(&self, KeyHash([_, second]): KeyHash) -> usize {
        // Their number is a power of two, and at most 2^16.
        second as usize & (self.tables.len() - 1)
    }
}

impl KeyHash {
    /// What tells the slot in a table; the lower bits count.
    #[inline]
    fn place(self) -> usize {
        self.0[0] as usize
    }
}

impl Slot {
    #[inline]
    fn new(KeyHash([first, second]): KeyHash, offset_and_one: u32) -> Slot {
        Slot { first, second: (second >> 32) as u32, offset_and_one }
    }

    /// Whether the key of this hash is here.
    #[inline]
    fn has(&self, KeyHash([first, second]): KeyHash) -> bool {
        self.first == first && self.second == (second >> 32) as u32
    }

    #[inline]
    fn is_free(&self) -> bool {
        self.offset_and_one == 0
    }
}

impl Table {
    /// Whether it should grow before it takes another key.
    fn is_crowded(&self) -> bool {
        (self.len + 1) * 4 > self.slots.len() * 3
    }

    /// Whether it may take no other key: a search must always meet a free slot, soon.
    fn is_full(&self) -> bool {
        (self.len + 1) * 16 > self.slots.len() * 15
    }

    /// Where a hash is, or the free slot where it would be; `None` without slots.
    #[inline]
    fn place(&self, hash: KeyHash) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut place = hash.place() & mask;
        // A table is never full, so this ends.
        while !self.slots[place].has(hash) && !self.slots[place].is_free() {
            place = (place + 1) & mask;
        }
        Some(place)
    }

    /// The slot of a hash, or `None` if it has none.
    #[inline]
    fn peek(&self, hash: KeyHash) -> Option<&Slot> {
        Some(&self.slots[self.place(hash)?]).filter(|slot| !slot.is_free())
    }

    #[inline]
    fn find(&mut self, hash: KeyHash) -> Option<&mut Slot> {
        let place = self.place(hash)?;
        Some(&mut self.slots[place]).filter(|slot| !slot.is_free())
    }

    /// Puts in what is not there.
    fn insert(&mut self, new: Slot) {
        let mask = self.slots.len() - 1;
        let mut place = new.first as usize & mask;
        while !self.slots[place].is_free() {
            place = (place + 1) & mask;
        }
        self.slots[place] = new;
        self.len += 1;
    }

    fn grow(&mut self, more: usize) {
        let size = self.slots.len() + more;
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); size]);
        self.len = 0;
        old.into_iter().filter(|slot| !slot.is_free()).for_each(|slot| self.insert(slot));
    }
}

/// SipHash with 128 bits of output, `C` rounds for each word and `D` at the end (Aumasson and Bernstein, 2012).
#[inline(always)]
fn sip_hash<const C: usize, const D: usize>(secret: [u64; 2], bytes: &[u8]) -> [u64; 2] {
    let mut state = [
        secret[0] ^ 0x736f_6d65_7073_6575,
        secret[1] ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        secret[0] ^ 0x6c79_6765_6e65_7261,
        secret[1] ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        absorb::<C>(&mut state, u64::from_le_bytes(*word));
    }
    // The length takes the upper byte, what is left of the bytes the lower ones.
    let rest = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let last = (bytes.len() as u64) << 56 | rest;
    absorb::<C>(&mut state, last);
    state[2] ^= 0xee;
    let first = squeeze::<D>(&mut state);
    state[1] ^= 0xdd;
    [first, squeeze::<D>(&mut state)]
}

#[inline]
fn absorb<const C: usize>(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    (0..C).for_each(|_| sip_round(state));
    state[0] ^= word;
}

#[inline]
fn squeeze<const D: usize>(state: &mut [u64; 4]) -> u64 {
    (0..D).for_each(|_| sip_round(state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline]
fn sip_round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The first vectors that the authors published for SipHash-2-4-128, with the key 00 01 .. 0f.
    #[test]
    fn the_hash_is_siphash() {
        let secret = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let bytes = |hash: [u64; 2]| [hash[0].to_le_bytes(), hash[1].to_le_bytes()].concat();
        let expected = [
            [0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93],
            [0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45],
        ];
        assert_eq!(bytes(sip_hash::<2, 4>(secret, b"")), expected[0]);
        assert_eq!(bytes(sip_hash::<2, 4>(secret, &[0])), expected[1]);
    }

    #[test]
    fn it_is_a_map() {
        let mut map = OffsetMap::new([7; 16], 1 << 20);
        let mut model: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
        let mut seed = 1_u64;
        for offset in 0..30_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = format!("{:x}", (seed >> 33) % 9000).into_bytes();
            map.note(map.hash(&key), Offset::new(offset)).unwrap();
            model.insert(key, offset);
        }
        assert_eq!(map.len(), model.len());
        assert!(model.iter().all(|(key, offset)| map.last(map.hash(key)) == Some(Offset::new(*offset))));
        assert_eq!(map.last(map.hash(b"another")), None);
        let zero = map.hash(b"0");
        let known = model.get(&b"0"[..]).map(|offset| Offset::new(*offset));
        assert_eq!(map.note(zero, Offset::ZERO), Ok(known));
        assert_eq!(map.last(zero), known.or(Some(Offset::ZERO)), "the largest stays");
    }

    #[test]
    fn offsets_are_taken_as_far_as_a_slot_counts() {
        let mut map = OffsetMap::new([8; 16], 1 << 20);
        let first = 1 << 50;
        let far = first + i64::from(u32::MAX) - 1;
        let (known, new) = (map.hash(b"known"), map.hash(b"new"));
        assert_eq!(map.note(known, Offset::new(first)), Ok(None));
        assert_eq!(map.note(known, Offset::new(far)), Ok(Some(Offset::new(first))));
        assert_eq!(map.note(new, Offset::new(far)), Ok(None));
        assert_eq!((map.last(known), map.last(new)), (Some(Offset::new(far)), Some(Offset::new(far))));
        for hash in [known, new, map.hash(b"another")] {
            assert_eq!(map.note(hash, Offset::new(far + 1)), Err(Full));
        }
        assert_eq!((map.last(known), map.len()), (Some(Offset::new(far)), 2));
    }

    #[test]
    fn it_stays_within_its_memory_and_says_when_it_is_full() {
        for bytes_max in [0, 500, 10_000, 1 << 20] {
            let mut map = OffsetMap::new([9; 16], bytes_max);
            let mut keys = 0_i64;
            while map.note(map.hash(&keys.to_le_bytes()), Offset::new(keys)).is_ok() {
                keys += 1;
                assert!(map.bytes() <= bytes_max.max(TABLE_SLOTS_MIN * SLOT_BYTES), "{} of {bytes_max}", map.bytes());
            }
            assert_eq!(map.len() as i64, keys);
            assert!(keys >= 1 && map.bytes() * 2 >= bytes_max.min(200), "{keys} keys in {bytes_max} bytes");
            // What is known is still known, and may still move.
            let first = map.hash(&0_i64.to_le_bytes());
            assert_eq!(map.note(first, Offset::new(keys + 5)), Ok(Some(Offset::ZERO)));
            assert_eq!(map.last(first), Some(Offset::new(keys + 5)));
            assert_eq!(map.last(map.hash(&keys.to_le_bytes())), None);
        }
    }
}
