//! Which partition of `__consumer_offsets` a group lives in.

/// The partition of a group among `partitions`: the hash of Java's `String`, over UTF-16, without its sign as Kafka
/// takes it (the smallest number becomes 0), modulo their number.
///
/// # Panics
/// When `partitions` is not positive.
pub fn partition_of(group: &str, partitions: i32) -> i32 {
    assert!(partitions > 0, "a topic has at least one partition");
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    hash.checked_abs().unwrap_or(0) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_those_of_java() {
        // "polygenelubricants".hashCode() is -2^31, "hello".hashCode() is 99162322.
        assert_eq!(partition_of("polygenelubricants", 50), 0);
        assert_eq!(partition_of("hello", 50), 22);
        assert_eq!(partition_of("", 50), 0);
        // Surrogates count as two: 0xd83e * 31 + 0xdd80.
        assert_eq!(partition_of("🦀", i32::MAX), 0xd83e * 31 + 0xdd80);
        // "Aa" and "BB" share a hash, 2112.
        assert_eq!((partition_of("Aa", 50), partition_of("BB", 50)), (12, 12));
    }
}
