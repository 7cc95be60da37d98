//! The 128-bit identifiers of topics, directories and members.

use crate::base64;
use core::fmt;
use heddle_record::TopicId;

/// A UUID as Kafka writes it: 16 bytes, shown as base64url without padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// No identifier.
    pub const ZERO: Uuid = Uuid([0; 16]);

    /// Whether this is [`Uuid::ZERO`].
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Uuid::ZERO
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        base64::write(f, &self.0, base64::Alphabet::UrlUnpadded)
    }
}

impl From<TopicId> for Uuid {
    fn from(id: TopicId) -> Self {
        Uuid(id.0)
    }
}

impl From<Uuid> for TopicId {
    fn from(uuid: Uuid) -> Self {
        TopicId(uuid.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn shows_as_kafka_shows_it() {
        assert_eq!(Uuid::ZERO.to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        let uuid = Uuid(0xe488_1973_2013_6083_5ad1_1acc_3a90_72ab_u128.to_be_bytes());
        assert_eq!(uuid.to_string(), "5IgZcyATYINa0RrMOpByqw");
    }
}
