//! What a consumer tells its assignor: the topics in the first bytes of a JoinGroup's metadata.
//!
//! Owns nothing but the reading of them. The rest of the metadata is between the members.

use alloc::vec::Vec;

use heddle_protocol::records::consumer_protocol_subscription::ConsumerProtocolSubscription;
use heddle_protocol::{Message, Reader, decode_prefix};

/// The topics in a consumer's metadata; nothing where it is no such thing. What newer versions add is passed over.
pub(super) fn topics(metadata: &[u8]) -> Option<Vec<&str>> {
    let mut reader = Reader::new(metadata);
    let version = decode_prefix(&mut reader).ok().filter(|version| *version >= 0)?;
    let version = version.min(ConsumerProtocolSubscription::VERSIONS.max);
    let subscription = ConsumerProtocolSubscription::decode(&mut reader, version).ok()?;
    Some(subscription.topics.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn topics_are_read_whatever_comes_after_them() {
        let old = b"\0\0\0\0\0\x02\0\x01a\0\x02bc\xff\xff\xff\xff";
        assert_eq!(topics(old), Some(vec!["a", "bc"]));
        let mut newer = b"\0\x09\0\0\0\x01\0\x01a\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\xff\xff".to_vec();
        newer.extend([7; 20]);
        assert_eq!(topics(&newer), Some(vec!["a"]));
        assert_eq!(topics(b""), None);
        assert_eq!(topics(b"\xff\xff\0\0\0\0"), None);
        assert_eq!(topics(b"\0\0\xff\xff\xff\xff"), None);
    }
}
