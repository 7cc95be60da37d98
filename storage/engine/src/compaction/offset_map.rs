//! The last offset of every key in the part of a log that is being compacted, in bounded memory.
//!
//! Owns the table. It keeps bits of a hash in place of a key (`key_hash.rs`), and never the key; two keys that it took for
//! one would cost the earlier one's record. A slot has 96 of the 128 bits. Others, which no slot has, tell a key's page, as many
//! as it takes for any two of the keys to collide with a probability of 2^-62 at most: 11 for the 2^23 slots that the default
//! of `log.cleaner.dedupe.buffer.size` has room for, none for 2^17.
//!
//! Four slots are a group, a cache line (`slot_group.rs`). A key that finds its group full is in the next one of its page.
//!
//! A page splits in two by one more bit of its keys' hashes when a key has no room near its home, seven tenths full as a
//! rule, and a directory tells the page of a key (extendible hashing: Fagin and others, 1979). So growing never holds up the
//! core for long, and a log with few keys takes little memory. Where memory has ended, pages fill up.

use heddle_io::{prefer_huge_pages, prefetch};

use super::key_hash::KeyHash;
use super::slot_group::{GROUP_BYTES, GROUP_SLOTS, Group};

/// A page has so many groups that a power of two of pages takes all memory: all fill at the same rate, so if some could not
/// split as often as the others, they would be full when the others are half full.
const PAGE_GROUPS_MIN: usize = 2;
const PAGE_GROUPS_MAX: usize = 128;
const PAGES_MAX: usize = 1 << 20;
/// Groups where a key is, from its home on, as long as its page can split; in small pages all.
const REACH_MAX: usize = 8;
/// Where keys lead that have no page yet: a full one, of no key.
const NOWHERE: usize = 0;

/// Any two of 2 to the power of this many keys have the same bits in a slot with a probability below 2^-62.
const KEYS_BY_SLOTS_ALONE_LOG2: u32 = 17;
/// Behind so much memory all is reserved at once, and behind so much of that the rest is asked for in large pieces.
const RESERVED_FROM_BYTES: usize = 64 << 10;
const SMALL_BYTES: usize = 1 << 20;

/// Keys and the number that was noted last of each.
#[derive(Debug)]
pub(crate) struct OffsetMap {
    /// The groups of the first page, of the second, and so on.
    groups: Vec<Group>,
    /// Of each page, how many of the upper bits of `first` all of its keys have in common.
    depths: Vec<u8>,
    pages_max: usize,
    page_groups: usize,
    reach: usize,
    /// Keys of a page that is being split.
    moving: Vec<Group>,
    /// The page of each key, by the bits of `second` in the mask followed by the upper ones of `first`, as many as it takes.
    directory: Vec<u32>,
    second_mask: u64,
    /// How many of the upper 32 bits of `first` do not count, and how few that may be.
    shift: u32,
    shift_min: u32,
}

/// There is no room for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl OffsetMap {
    /// An empty map that takes at most `bytes_max` bytes, but always a few keys. No more than `keys_max` different ones will
    /// come.
    pub(crate) fn new(bytes_max: usize, keys_max: usize) -> OffsetMap {
        let groups_max = (bytes_max / GROUP_BYTES).max(2 * PAGE_GROUPS_MIN);
        let pages_max = groups_max.div_ceil(PAGE_GROUPS_MAX).next_power_of_two().min(PAGES_MAX);
        // One more that is nobody's.
        let page_groups = (groups_max / (pages_max + 1)).min(PAGE_GROUPS_MAX);
        let keys_max = keys_max.min(groups_max * GROUP_SLOTS).next_power_of_two().ilog2();
        let (pages_log2, pages_max) = (pages_max.ilog2(), pages_max + 1);
        // Twice as many keys are four times as many pairs.
        let bits = (keys_max.saturating_sub(KEYS_BY_SLOTS_ALONE_LOG2) * 2).saturating_sub(1);
        // Memory that has a few keys on each page would be wasted.
        let bits = bits.min(pages_log2.saturating_sub(3));
        OffsetMap {
            groups: vec![Group::OF_NOBODY; page_groups],
            depths: vec![0],
            pages_max,
            page_groups,
            reach: page_groups.min(REACH_MAX),
            moving: vec![Group::OF_NOBODY; page_groups],
            directory: vec![NOWHERE as u32; 1 << bits],
            second_mask: (1 << bits) - 1,
            shift: u32::BITS,
            // Pages are filled evenly; if not, then a directory without end would be of no use.
            shift_min: u32::BITS - (pages_log2 + 4 - bits),
        }
    }

    /// Bytes of the slots.
    pub(crate) fn bytes(&self) -> usize {
        self.groups.len() * GROUP_BYTES
    }

    /// From now on it takes at most `bytes_max` bytes, or what it takes already; never more than it was made for.
    pub(crate) fn limit(&mut self, bytes_max: usize) {
        self.pages_max = (bytes_max / GROUP_BYTES / self.page_groups).clamp(2, self.pages_max);
    }

    /// Has the place brought near where a key is or would be, for when it is needed.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: KeyHash) {
        if let Some(group) = self.groups.get(self.page_of(hash) * self.page_groups + self.home(hash)) {
            prefetch(group);
        }
    }

    /// Notes the number of a key, which is not 0. Returns the one before, or 0 if the key is new.
    ///
    /// # Errors
    /// [`Full`]: the key is new and there is no room.
    #[inline(always)]
    pub(crate) fn note(&mut self, hash: KeyHash, number: u32) -> Result<u32, Full> {
        match self.put(self.page_of(hash), hash, number, self.reach) {
            Some(former) => Ok(former),
            None => self.make_room(hash, number),
        }
    }

    /// The number that was noted last for a key, or 0.
    #[inline]
    pub(crate) fn number(&self, hash: KeyHash) -> u32 {
        let page = self.page_of(hash);
        if page == NOWHERE {
            return 0;
        }
        let groups = &self.groups[page * self.page_groups..][..self.page_groups];
        groups[self.home(hash)..].iter().find_map(|group| group.number(hash)).unwrap_or(0)
    }

    #[inline(always)]
    fn page_of(&self, hash: KeyHash) -> usize {
        self.directory[self.place_of(hash)] as usize
    }

    /// Where in the directory a key's page is.
    #[inline(always)]
    fn place_of(&self, hash: KeyHash) -> usize {
        ((hash.second & self.second_mask) << 32 >> self.shift | hash.first >> 32 >> self.shift) as usize
    }

    /// The group of its page where a key is if there is room.
    #[inline(always)]
    fn home(&self, hash: KeyHash) -> usize {
        // The lower half of the first half is a fraction, of the groups from where the reach stays within the page.
        let homes = (self.page_groups - self.reach + 1) as u64;
        (((hash.first & u64::from(u32::MAX)) * homes) >> 32) as usize
    }

    /// Puts a key into one of so many groups of a page, from its home on. Returns the number that it had, or 0 if it is new;
    /// `None` if these are full of others.
    #[inline(always)]
    fn put(&mut self, page: usize, hash: KeyHash, number: u32, reach: usize) -> Option<u32> {
        let home = page * self.page_groups + self.home(hash);
        self.groups[home..][..reach].iter_mut().find_map(|group| group.put(hash, number))
    }

    /// The same of all groups up to the end of the page.
    fn put_anywhere(&mut self, page: usize, hash: KeyHash, number: u32) -> Option<u32> {
        self.put(page, hash, number, self.page_groups - self.home(hash))
    }

    /// Makes room for a key, which may have a place beyond the reach, and puts it in. Returns its former number, or 0.
    #[inline(never)]
    fn make_room(&mut self, hash: KeyHash, number: u32) -> Result<u32, Full> {
        loop {
            let page = self.page_of(hash);
            if let Some(former) = self.put(page, hash, number, self.reach) {
                return Ok(former);
            }
            let is_at_end = self.depths.len() >= self.pages_max || self.depth_of(page) == u32::BITS - self.shift_min;
            if is_at_end {
                return self.put_anywhere(page, hash, number).ok_or(Full);
            } else if page == NOWHERE {
                let new = self.add_page(0);
                self.lead(hash, new);
            } else {
                self.split(page, hash);
            }
        }
    }

    fn depth_of(&self, page: usize) -> u32 {
        u32::from(self.depths[page])
    }

    /// Makes two pages of one, of which the key is.
    fn split(&mut self, page: usize, hash: KeyHash) {
        let depth = self.depths[page] + 1;
        if u32::from(depth) > u32::BITS - self.shift {
            self.directory = self.directory.iter().flat_map(|page| [*page; 2]).collect();
            self.shift -= 1;
        }
        let bit = u64::BITS - u32::from(depth);
        let new = self.add_page(depth);
        self.depths[page] = depth;
        self.lead(KeyHash { first: hash.first | 1 << bit, ..hash }, new);
        let place = page * self.page_groups..(page + 1) * self.page_groups;
        let mut moving = std::mem::take(&mut self.moving);
        moving.clone_from_slice(&self.groups[place.clone()]);
        self.groups[place].fill(Group::default());
        for group in &moving {
            for (part, number) in group.taken() {
                let page = if part.first >> bit & 1 == 0 { page } else { new };
                let put = self.put_anywhere(page, part, number);
                assert_eq!(put, Some(0), "keys that come in the order of their groups have places that are no worse");
            }
        }
        self.moving = moving;
    }

    /// Has all keys lead to a page that have in common with this one what its keys must have.
    fn lead(&mut self, hash: KeyHash, page: usize) {
        let places = 1 << (u32::BITS - self.shift - self.depth_of(page));
        let first = self.place_of(hash) & !(places - 1);
        let number = u32::try_from(page).expect("there are at most 2^20");
        self.directory[first..][..places].fill(number);
    }

    /// Adds an empty page. Memory for all is reserved before there are many, so that they never move; what is not used is not
    /// there.
    fn add_page(&mut self, depth: u8) -> usize {
        let used = self.bytes();
        if used >= RESERVED_FROM_BYTES && self.groups.len() == self.groups.capacity() {
            self.groups.reserve_exact((self.pages_max - self.depths.len()) * self.page_groups);
            let small = SMALL_BYTES.saturating_sub(used) / GROUP_BYTES;
            if let Some(spare) = self.groups.spare_capacity_mut().get_mut(small..) {
                prefer_huge_pages(spare);
            }
        }
        self.groups.resize(self.groups.len() + self.page_groups, Group::default());
        self.depths.push(depth);
        self.depths.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_hash::KeyHasher;
    use super::*;
    use std::collections::BTreeMap;

    fn hash(key: &[u8]) -> KeyHash {
        KeyHasher::new([7; 16]).hash(key)
    }

    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *seed
    }

    fn used(group: &Group) -> usize {
        group.taken().count()
    }

    fn len(map: &OffsetMap) -> usize {
        map.groups[map.page_groups..].iter().map(used).sum()
    }

    /// Every key is on the page that it leads to, where a search that begins at its home finds it.
    fn check_invariants(map: &OffsetMap) {
        assert_eq!(map.groups.len(), map.depths.len() * map.page_groups);
        assert!(
            map.groups[..map.page_groups].iter().all(|group| used(group) == GROUP_SLOTS),
            "nobody is to be put there"
        );
        let extensions = 1 << (u32::BITS - map.shift);
        for (number, depth) in map.depths.iter().enumerate().skip(1) {
            let places: Vec<usize> =
                (0..map.directory.len()).filter(|at| map.directory[*at] as usize == number).collect();
            let (first, count) = (places[0], 1 << (u32::BITS - map.shift - u32::from(*depth)));
            assert!(places.iter().copied().eq(first..first + count) && first % count == 0, "page {number}");
            let groups = &map.groups[number * map.page_groups..][..map.page_groups];
            for (at, group) in groups.iter().enumerate() {
                group.check_invariants();
                for (part, _) in group.taken() {
                    let extension = (part.first >> 32 >> map.shift) as usize;
                    assert!(places.contains(&(first / extensions * extensions + extension)), "a key of page {number}");
                    assert!(
                        groups[map.home(part)..at].iter().all(|group| used(group) == GROUP_SLOTS),
                        "a search ends at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn it_is_a_map() {
        for keys_max in [0, 1 << 19, 1 << 23] {
            let mut map = OffsetMap::new(2 << 20, keys_max);
            let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            let mut seed = 1_u64;
            for number in 1..60_000 {
                let key = format!("{:x}", (random(&mut seed) >> 33) % 20_000).into_bytes();
                let former = map.note(hash(&key), number).unwrap();
                assert_eq!(former, model.insert(key, number).unwrap_or(0));
                if number.is_power_of_two() || number % 5_000 == 0 {
                    check_invariants(&map);
                }
            }
            check_invariants(&map);
            assert!(map.depths.len() > 40, "{} pages", map.depths.len());
            assert_eq!(len(&map), model.len());
            assert!(model.iter().all(|(key, number)| map.number(hash(key)) == *number));
            assert_eq!(map.number(hash(b"another")), 0);
        }
    }

    /// What the head of this file promises.
    #[test]
    fn two_keys_collide_with_a_probability_of_2_to_the_minus_62() {
        for (bytes_max, keys_max, expected) in [
            (128 << 20, 1 << 17, 0),
            (128 << 20, (1 << 17) + 1, 1),
            (128 << 20, 1 << 20, 5),
            (128 << 20, 1 << 23, 11),
            (128 << 20, usize::MAX, 11),
            (1 << 20, usize::MAX, 0),
            (16 << 20, usize::MAX, 5),
        ] {
            let map = OffsetMap::new(bytes_max, keys_max);
            assert_eq!(map.second_mask.count_ones(), expected, "{keys_max} keys in {bytes_max} bytes");
            let keys = keys_max.min(bytes_max / GROUP_BYTES * GROUP_SLOTS).next_power_of_two().ilog2();
            assert!(2 * keys - 1 + 62 <= 96 + expected, "{keys_max} keys in {bytes_max} bytes");
        }
    }

    #[test]
    fn keys_that_share_all_but_a_few_bits_are_told_apart() {
        let mut map = OffsetMap::new(16 << 20, usize::MAX);
        let mut model: BTreeMap<(u64, u64), u32> = BTreeMap::new();
        let mut seed = 3_u64;
        for number in 1..20_000 {
            let bits = random(&mut seed);
            let first = bits >> 59 << 59 | (bits >> 33 & 1) << 20 | (bits >> 40 & 0x3f) << 26;
            // Bits of the second half in the slot, and such as choose a page.
            let second = (bits >> 30 & 3) << 32 | bits >> 53 & 0x1f;
            let former = map.note(KeyHash { first, second }, number).unwrap();
            assert_eq!(former, model.insert((first, second), number).unwrap_or(0));
        }
        check_invariants(&map);
        let number = |(first, second): (u64, u64)| map.number(KeyHash { first, second });
        assert!(model.iter().all(|(hash, known)| number(*hash) == *known));
        assert!(model.keys().all(|(first, second)| number((first ^ 1 << 10, *second)) == 0));
        assert!(model.keys().all(|(first, second)| number((*first, second ^ 1 << 50)) == 0));
        let missing = model.keys().map(|(first, second)| (*first, second ^ 1)).filter(|hash| !model.contains_key(hash));
        assert!(missing.into_iter().all(|hash| number(hash) == 0));
    }

    #[test]
    fn hashes_that_belong_on_one_page_fill_it_and_do_no_harm() {
        let mut map = OffsetMap::new(64 << 20, 1 << 20);
        let hash = |number: u32| KeyHash { first: u64::from(number), second: 5 << 32 };
        let mut keys = 1;
        while map.note(hash(keys), keys).is_ok() {
            keys += 1;
        }
        check_invariants(&map);
        assert!(keys as usize > GROUP_SLOTS * map.reach && map.directory.len() <= 1 << 17, "{keys} keys");
        assert!((1..keys).all(|number| map.number(hash(number)) == number));
        assert_eq!(map.number(hash(keys)), 0);
    }

    #[test]
    fn it_stays_within_its_memory_and_says_when_it_is_full() {
        for bytes_max in [0, 500, 10_000, 100_000, 1 << 20, 1_300_000, 9 << 20] {
            let mut map = OffsetMap::new(bytes_max, usize::MAX);
            let mut keys = 0_u32;
            while map.note(hash(&keys.to_le_bytes()), keys + 1).is_ok() {
                keys += 1;
                assert!(
                    map.bytes() <= bytes_max.max(2 * PAGE_GROUPS_MIN * GROUP_BYTES),
                    "{} of {bytes_max}",
                    map.bytes()
                );
            }
            check_invariants(&map);
            assert_eq!(len(&map) as u32, keys);
            let slots = (bytes_max / GROUP_BYTES * GROUP_SLOTS) as u32;
            assert!(keys >= 8 && (bytes_max < 100_000 || keys > slots * 3 / 4), "{keys} keys in {slots} slots");
            // What is known is still known, and may still move.
            let first = hash(&0_u32.to_le_bytes());
            assert_eq!(map.note(first, keys + 5), Ok(1));
            assert_eq!(map.number(first), keys + 5);
            assert_eq!(map.number(hash(&keys.to_le_bytes())), 0);
            assert!((1..keys).all(|key| map.number(hash(&key.to_le_bytes())) == key + 1));
        }
    }
}
