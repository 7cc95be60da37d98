//! Which partition a record goes to when its sender names none, exactly as Java's producer decides.
//!
//! A record with a key goes where the hash of the key says, so that all clients agree. A record without one sticks to
//! a partition until a batch's worth of bytes has gone there (KIP-480, KIP-794), so that batches fill.

use heddle_record::PartitionIndex;

/// Java's `Utils.murmur2`: MurmurHash2, 32 bits, little-endian, with the seed that Kafka chose.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    // Java's lengths are 32 bits; a key above 2 GiB does not fit in a record.
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ word.wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |sum, byte| (sum << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

/// The partition of a record with this key, in a topic of `partition_count` partitions.
///
/// # Panics
/// `partition_count` is not positive.
pub fn partition_for_key(key: &[u8], partition_count: i32) -> PartitionIndex {
    assert!(partition_count > 0, "a topic has at least one partition");
    let positive = (murmur2(key) & 0x7fff_ffff) as i32;
    PartitionIndex::new(positive % partition_count)
}

/// Where one topic's records without a key go at the moment.
#[derive(Debug, Default)]
pub(crate) struct Sticky {
    current: Option<PartitionIndex>,
    /// Bytes that have gone to the current partition since it was chosen.
    bytes: u64,
}

impl Sticky {
    /// The partition for a record of `record_bytes`.
    ///
    /// `available` lists the partitions that have a leader, or all of them where none has; never empty. A partition is
    /// left once `bytes_max` have gone there, or when it is no longer available. `random` gives one number a call.
    pub(crate) fn choose(
        &mut self,
        available: &[PartitionIndex],
        record_bytes: u64,
        bytes_max: u64,
        random: impl FnOnce() -> u64,
    ) -> PartitionIndex {
        assert!(!available.is_empty(), "there is a partition to choose");
        let stays = self.current.filter(|current| self.bytes < bytes_max && available.contains(current));
        let chosen = stays.unwrap_or_else(|| {
            self.bytes = 0;
            other_than(self.current, available, random())
        });
        self.current = Some(chosen);
        self.bytes += record_bytes;
        chosen
    }
}

/// One of `available` at random, another than `current` where there is another.
fn other_than(current: Option<PartitionIndex>, available: &[PartitionIndex], random: u64) -> PartitionIndex {
    let others = available.iter().filter(|it| Some(**it) != current);
    let count = others.clone().count() as u64;
    if count == 0 {
        return available[0];
    }
    *others.clone().nth((random % count) as usize).expect("the remainder is below the count")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `org.apache.kafka.common.utils.Utils` of Kafka 4.3.1: the hash, and the partition of twelve.
    const JAVA: [(&str, i32, i32); 17] = [
        ("", 275_646_681, 9),
        ("a", -1_563_381_124, 4),
        ("ab", 316_155_434, 2),
        ("abc", 479_470_107, 3),
        ("abcd", -1_323_649_548, 8),
        ("21", -973_932_308, 0),
        ("foobar", -790_332_482, 6),
        ("a-little-bit-long-string", -985_981_536, 8),
        ("a-little-bit-longer-string", -1_486_304_829, 11),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971, 5),
        ("key-0", 29_210_041, 1),
        ("key-1", 193_331_640, 0),
        ("key-2", 852_269_702, 2),
        ("0", 971_027_396, 8),
        ("1", -1_993_445_489, 3),
        ("2", 648_968_168, 8),
        ("naïve €", -1_927_596_313, 7),
    ];

    #[test]
    fn hashes_and_partitions_are_javas() {
        for (key, hash, partition) in JAVA {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
            assert_eq!(partition_for_key(key.as_bytes(), 12), PartitionIndex::new(partition), "{key}");
        }
        assert_eq!(murmur2(&[0xff, 0x80, 0, 1, 0xfe, 0xff, 0x81]), 575_631_608, "bytes are unsigned");
    }

    #[test]
    fn a_partition_is_kept_until_it_has_had_its_bytes() {
        let all = [0, 1, 2].map(PartitionIndex::new);
        let mut sticky = Sticky::default();
        let first = sticky.choose(&all, 60, 100, || 1);
        assert_eq!(first, PartitionIndex::new(1));
        assert_eq!(sticky.choose(&all, 60, 100, || unreachable!()), first);
        let second = sticky.choose(&all, 60, 100, || 1);
        assert_eq!(second, PartitionIndex::new(2), "the second of those that are not the current one");
    }

    #[test]
    fn a_partition_without_leader_is_left_at_once() {
        let mut sticky = Sticky::default();
        let both = [PartitionIndex::new(0), PartitionIndex::new(1)];
        assert_eq!(sticky.choose(&both, 1, 100, || 0), PartitionIndex::new(0));
        assert_eq!(sticky.choose(&both[1..], 1, 100, || 0), PartitionIndex::new(1));
        assert_eq!(sticky.choose(&both[1..], 1_000, 100, || 0), PartitionIndex::new(1));
        assert_eq!(sticky.choose(&both[1..], 1, 100, || 7), PartitionIndex::new(1), "there is no other");
    }
}
