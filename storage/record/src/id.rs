//! Ids and counters: topics, partitions, brokers, producers, epochs, sequences, timestamps.
//!
//! Owns their types and their text forms. It never makes an id: randomness comes from outside.

use core::fmt;
use core::str::FromStr;

/// A number with a meaning of its own: a newtype with `new`, `get` and `Display`.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value with this number.
            pub const fn new(number: $inner) -> Self {
                Self(number)
            }

            /// The number, as the protocol writes it.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<$inner> for $name {
            fn from(number: $inner) -> Self {
                Self(number)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

number! {
    /// A partition of a topic, counted from 0.
    PartitionIndex(i32)
}
number! {
    /// A broker of the cluster; -1 is none.
    BrokerId(i32)
}
number! {
    /// Which leadership of a partition wrote a batch; -1 is unknown. It only grows.
    LeaderEpoch(i32)
}
number! {
    /// An idempotent or transactional producer; -1 is none.
    ProducerId(i64)
}
number! {
    /// The incarnation of a producer; -1 is none.
    ProducerEpoch(i16)
}
number! {
    /// The number of a record among those of its producer and partition, `0..=i32::MAX`; -1 is none.
    Sequence(i32)
}
number! {
    /// Milliseconds since 1970-01-01 UTC; -1 is none.
    Timestamp(i64)
}

impl BrokerId {
    /// No broker.
    pub const NONE: BrokerId = BrokerId(-1);
}

impl LeaderEpoch {
    /// The epoch is not known.
    pub const NONE: LeaderEpoch = LeaderEpoch(-1);
}

impl ProducerId {
    /// The producer is neither idempotent nor transactional.
    pub const NONE: ProducerId = ProducerId(-1);
}

impl ProducerEpoch {
    /// The producer is neither idempotent nor transactional.
    pub const NONE: ProducerEpoch = ProducerEpoch(-1);
}

impl Sequence {
    /// The batch has no sequence.
    pub const NONE: Sequence = Sequence(-1);

    /// The sequence `count` records after this one: after 2^31-1 comes 0. Of [`Sequence::NONE`] it is `NONE`.
    pub const fn next(self, count: u32) -> Sequence {
        if self.0 < 0 {
            return Sequence::NONE;
        }
        // Below 2^31 + 2^32, and then below 2^31.
        let sum = (self.0 as u64 + count as u64) % (1 << 31);
        Sequence(sum as i32)
    }
}

impl Timestamp {
    /// The record has no timestamp.
    pub const NONE: Timestamp = Timestamp(-1);
}

/// The identity of a topic: 16 bytes that outlive its name. Written as base64url without padding, as Kafka does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    /// What the protocol writes for "no id".
    pub const ZERO: TopicId = TopicId([0; 16]);

    /// The id with these bytes, most significant first.
    pub const fn new(bytes: [u8; 16]) -> Self {
        TopicId(bytes)
    }

    /// The bytes, most significant first.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether this is [`TopicId::ZERO`].
    pub fn is_zero(self) -> bool {
        self == TopicId::ZERO
    }
}

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// 128 bits are 21 digits of 6 bits and one of 2.
const TOPIC_ID_DIGITS: usize = 22;

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u128::from_be_bytes(self.0);
        let mut text = [0; TOPIC_ID_DIGITS];
        for (place, slot) in text.iter_mut().enumerate() {
            let bits = if place == TOPIC_ID_DIGITS - 1 { number << 4 } else { number >> (122 - 6 * place) };
            *slot = *BASE64URL.get((bits & 63) as usize).expect("six bits are below 64");
        }
        f.pad(core::str::from_utf8(&text).expect("base64 digits are ASCII"))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// The text is not 22 base64url digits that make 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseTopicIdError;

impl fmt::Display for ParseTopicIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a topic id is 22 characters of base64url")
    }
}

impl core::error::Error for ParseTopicIdError {}

impl FromStr for TopicId {
    type Err = ParseTopicIdError;

    /// Reads the form that `Display` writes; one value has one text, so stray bits in the last digit are refused.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != TOPIC_ID_DIGITS {
            return Err(ParseTopicIdError);
        }
        let mut number: u128 = 0;
        for (place, byte) in text.bytes().enumerate() {
            let digit = BASE64URL.iter().position(|known| *known == byte).ok_or(ParseTopicIdError)?;
            if place < TOPIC_ID_DIGITS - 1 {
                number = number << 6 | digit as u128;
            } else if digit & 15 == 0 {
                number = number << 2 | (digit >> 4) as u128;
            } else {
                return Err(ParseTopicIdError);
            }
        }
        Ok(TopicId(number.to_be_bytes()))
    }
}

impl From<[u8; 16]> for TopicId {
    fn from(bytes: [u8; 16]) -> Self {
        TopicId(bytes)
    }
}

impl From<TopicId> for [u8; 16] {
    fn from(id: TopicId) -> Self {
        id.0
    }
}

/// The identity of one partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The topic.
    pub topic: TopicId,
    /// The partition of that topic.
    pub partition: PartitionIndex,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    #[test]
    fn topic_ids_are_written_as_kafka_writes_them() {
        // Kafka's own reserved ids: ZERO_UUID, and METADATA_TOPIC_ID = ONE_UUID.
        assert_eq!(TopicId::ZERO.to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        let mut one = [0; 16];
        one[15] = 1;
        assert_eq!(TopicId(one).to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(TopicId([0xff; 16]).to_string(), "_____________________w");
        assert_eq!(format!("{:?}", TopicId::ZERO), "TopicId(AAAAAAAAAAAAAAAAAAAAAA)");
    }

    #[test]
    fn topic_ids_come_back_from_their_text() {
        for seed in 0..200u8 {
            let id = TopicId(core::array::from_fn(|i| seed.wrapping_mul(31).wrapping_add(i as u8 * 17)));
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn bad_topic_ids_are_refused() {
        for text in
            ["", "AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAB", "AAAAAAAAAA+AAAAAAAAAAA"]
        {
            assert_eq!(text.parse::<TopicId>(), Err(ParseTopicIdError), "{text}");
        }
    }

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(Sequence(5).next(3), Sequence(8));
        assert_eq!(Sequence(i32::MAX).next(1), Sequence(0));
        assert_eq!(Sequence(i32::MAX - 1).next(4), Sequence(2));
        assert_eq!(Sequence(i32::MAX).next(0), Sequence(i32::MAX));
        assert_eq!(Sequence::NONE.next(10), Sequence::NONE);
    }
}
