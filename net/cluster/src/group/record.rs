//! The records of `__consumer_offsets`: what groups are and what they have committed, in Kafka's own formats.
//!
//! Owns their typed form and its bytes: a key that starts with its int16 record type, a value that starts with its int16
//! version. Applies nothing: [`super::Coordinator`] does. The layouts are those of `net/protocol/schema/records`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use heddle_protocol::records::group_metadata::{GroupMetadataKey, GroupMetadataValue, MemberMetadata};
use heddle_protocol::records::legacy_offset_commit::LegacyOffsetCommitKey;
use heddle_protocol::records::offset_commit::{OffsetCommitKey, OffsetCommitValue};
use heddle_protocol::{DecodeError, DecodeErrorKind, Message, Reader, RecordKey, Writer};
use heddle_protocol::{decode_prefix, decode_versioned, encode_key, encode_versioned};
use heddle_record::{LeaderEpoch, Timestamp, TopicId};

/// The version that a group is written in: the last one without tagged fields, as Kafka does.
const GROUP_VERSION: i16 = 3;
/// The version that a committed offset is written in; it has the topic's id.
const OFFSET_VERSION: i16 = 4;
/// The only version that knows when an offset expires: written where a client of old says so.
const OFFSET_VERSION_WITH_EXPIRY: i16 = 1;

/// One change of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupRecord {
    /// What a group is from now on.
    Group {
        /// The group.
        group: Arc<str>,
        /// What it is; `None`: it is gone.
        stored: Option<StoredGroup>,
    },
    /// What a group has committed for a partition.
    Offset {
        /// The group.
        group: Arc<str>,
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: i32,
        /// The offset; `None`: there is none any more.
        committed: Option<CommittedOffset>,
    },
}

/// A group as its last rebalance left it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredGroup {
    /// What its members are, `consumer` of most groups; empty for none.
    pub protocol_type: Arc<str>,
    /// Grows with each rebalance.
    pub generation: i32,
    /// The assignor that was chosen; none without members.
    pub protocol: Option<Arc<str>>,
    /// The member that assigns; none without members.
    pub leader: Option<Arc<str>>,
    /// When the group became what it is; none in records of old.
    pub changed_at: Timestamp,
    /// Its members, by id.
    pub members: Vec<StoredMember>,
}

/// A member of a [`StoredGroup`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMember {
    /// Its id.
    pub id: Arc<str>,
    /// Its name over restarts (KIP-345), if it has one.
    pub instance: Option<Arc<str>>,
    /// What its client calls itself.
    pub client_id: Arc<str>,
    /// Where it connected from.
    pub client_host: Arc<str>,
    /// How long it may take to join again, in milliseconds; -1 in records of old.
    pub rebalance_timeout_ms: i32,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: i32,
    /// What it told the assignor.
    pub subscription: Arc<[u8]>,
    /// What the leader gave it.
    pub assignment: Arc<[u8]>,
}

/// An offset that a group has committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommittedOffset {
    /// The next record to be read; whatever the client wrote.
    pub offset: i64,
    /// The leader epoch of the last record that was read, or -1.
    pub leader_epoch: LeaderEpoch,
    /// The client's own words.
    pub metadata: Box<str>,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// When it expires, where a client of old said so; -1 otherwise.
    pub expires_at: Timestamp,
    /// The topic's id; zero in records of old.
    pub topic_id: TopicId,
}

/// A key and a value that are no record of this version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadRecord {
    /// A record type that only newer versions know, or another kind of group.
    UnknownType(i16),
    /// A version of the value that only newer versions know.
    UnknownVersion(i16),
    /// The bytes are no such record.
    Malformed(DecodeError),
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(record_type) => write!(f, "group record of unknown type {record_type}"),
            Self::UnknownVersion(version) => write!(f, "group record with a value of unknown version {version}"),
            Self::Malformed(error) => write!(f, "malformed group record: {error}"),
        }
    }
}

impl core::error::Error for BadRecord {}

impl From<DecodeError> for BadRecord {
    fn from(error: DecodeError) -> Self {
        match error.kind {
            DecodeErrorKind::Version(version) => Self::UnknownVersion(version),
            _ => Self::Malformed(error),
        }
    }
}

/// A record's key, and its value unless it is a tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` in a tombstone.
    pub value: Option<Vec<u8>>,
}

impl GroupRecord {
    /// The record in these bytes.
    ///
    /// # Errors
    /// [`BadRecord`]: whoever replays a log passes over it with a warning.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, BadRecord> {
        Ok(match Read::decode(key, value)? {
            Read::Group(record) => record,
            Read::Offset(OffsetRecord { group, topic, partition, committed }) => {
                Self::Offset { group: group.into(), topic: topic.into(), partition, committed }
            }
        })
    }

    /// The record's bytes.
    ///
    /// # Panics
    /// When a name is longer than a record can hold: requests cannot carry such names.
    pub fn encode(&self) -> KeyValue {
        let mut key = Writer::new();
        let mut value = Writer::new();
        let is_tombstone = self.encode_into(&mut key, &mut value);
        KeyValue { key: key.into_bytes(), value: (!is_tombstone).then(|| value.into_bytes()) }
    }

    /// Appends the key's bytes to `key` and the value's to `value`; whether the record is a tombstone, which has none.
    ///
    /// # Panics
    /// As [`GroupRecord::encode`].
    pub fn encode_into(&self, key: &mut Writer, value: &mut Writer) -> bool {
        let (encoded, is_tombstone) = match self {
            Self::Group { group, stored } => {
                let keyed = encode_key(&GroupMetadataKey { group }, key);
                let valued = stored.as_ref().map_or(Ok(()), |stored| encode_group(stored, value));
                (keyed.and(valued), stored.is_none())
            }
            Self::Offset { group, topic, partition, committed } => {
                let keyed = encode_key(&OffsetCommitKey { group, topic, partition: *partition }, key);
                let valued = committed.as_ref().map_or(Ok(()), |committed| encode_offset(committed, value));
                (keyed.and(valued), committed.is_none())
            }
        };
        encoded.expect("names and words in a request fit a record");
        is_tombstone
    }

    /// About how many bytes the record takes in a batch; never fewer than it does.
    pub fn size(&self) -> usize {
        // Two lengths and a timestamp of at most five and ten bytes, an attribute, two type numbers, two counts.
        const OVERHEAD: usize = 48;
        OVERHEAD
            + match self {
                Self::Group { group, stored } => group.len() + stored.as_ref().map_or(0, StoredGroup::size),
                Self::Offset { group, topic, committed, .. } => {
                    group.len() + topic.len() + committed.as_ref().map_or(0, |committed| committed.metadata.len() + 64)
                }
            }
    }
}

/// A record as it is read: an offset, of which there may be a million, keeps its names where they lie.
pub(super) enum Read<'a> {
    /// Any other record.
    Group(GroupRecord),
    /// A [`GroupRecord::Offset`].
    Offset(OffsetRecord<'a>),
}

/// [`GroupRecord::Offset`], its names borrowed.
pub(super) struct OffsetRecord<'a> {
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) committed: Option<CommittedOffset>,
}

impl<'a> Read<'a> {
    /// As [`GroupRecord::decode`].
    pub(super) fn decode(key: &'a [u8], value: Option<&[u8]>) -> Result<Self, BadRecord> {
        let mut reader = Reader::new(key);
        let (group, topic, partition) = match decode_prefix(&mut reader)? {
            LegacyOffsetCommitKey::RECORD_TYPE => {
                let key = LegacyOffsetCommitKey::decode(&mut reader, 0)?;
                (key.group, key.topic, key.partition)
            }
            OffsetCommitKey::RECORD_TYPE => {
                let key = OffsetCommitKey::decode(&mut reader, 0)?;
                (key.group, key.topic, key.partition)
            }
            GroupMetadataKey::RECORD_TYPE => {
                let key = GroupMetadataKey::decode(&mut reader, 0)?;
                let stored = value.map(decode_group).transpose()?;
                return Ok(Self::Group(GroupRecord::Group { group: key.group.into(), stored }));
            }
            unknown => return Err(BadRecord::UnknownType(unknown)),
        };
        let committed = value.map(decode_offset).transpose()?;
        Ok(Self::Offset(OffsetRecord { group, topic, partition, committed }))
    }
}

fn decode_offset(bytes: &[u8]) -> Result<CommittedOffset, BadRecord> {
    let value: OffsetCommitValue<'_> = decode_versioned(bytes)?;
    Ok(CommittedOffset {
        offset: value.offset,
        leader_epoch: LeaderEpoch::new(value.leader_epoch),
        metadata: value.metadata.into(),
        committed_at: Timestamp::new(value.commit_timestamp),
        expires_at: Timestamp::new(value.expire_timestamp),
        topic_id: value.topic_id.into(),
    })
}

impl StoredGroup {
    fn size(&self) -> usize {
        let text = |text: Option<&Arc<str>>| text.map_or(0, |text| text.len()) + 2;
        let member = |member: &StoredMember| {
            let texts = member.id.len() + member.client_id.len() + member.client_host.len() + 6;
            texts + text(member.instance.as_ref()) + 16 + member.subscription.len() + member.assignment.len()
        };
        let members: usize = self.members.iter().map(member).sum();
        24 + self.protocol_type.len() + text(self.protocol.as_ref()) + text(self.leader.as_ref()) + members
    }
}

fn decode_group(bytes: &[u8]) -> Result<StoredGroup, BadRecord> {
    let value: GroupMetadataValue<'_> = decode_versioned(bytes)?;
    let members = value.members.iter().map(|member| StoredMember {
        id: member.member_id.into(),
        instance: member.group_instance_id.map(Arc::from),
        client_id: member.client_id.into(),
        client_host: member.client_host.into(),
        rebalance_timeout_ms: member.rebalance_timeout,
        session_timeout_ms: member.session_timeout,
        subscription: member.subscription.into(),
        assignment: member.assignment.into(),
    });
    Ok(StoredGroup {
        protocol_type: value.protocol_type.into(),
        generation: value.generation,
        protocol: value.protocol.map(Arc::from),
        leader: value.leader.map(Arc::from),
        changed_at: Timestamp::new(value.current_state_timestamp),
        members: members.collect(),
    })
}

fn encode_group(stored: &StoredGroup, writer: &mut Writer) -> Result<(), heddle_protocol::EncodeError> {
    let members = stored.members.iter().map(|member| MemberMetadata {
        member_id: &member.id,
        group_instance_id: member.instance.as_deref(),
        client_id: &member.client_id,
        client_host: &member.client_host,
        rebalance_timeout: member.rebalance_timeout_ms,
        session_timeout: member.session_timeout_ms,
        subscription: &member.subscription,
        assignment: &member.assignment,
    });
    let value = GroupMetadataValue {
        protocol_type: &stored.protocol_type,
        generation: stored.generation,
        protocol: stored.protocol.as_deref(),
        leader: stored.leader.as_deref(),
        current_state_timestamp: stored.changed_at.get(),
        members: members.collect(),
    };
    encode_versioned(&value, writer, GROUP_VERSION)
}

fn encode_offset(committed: &CommittedOffset, writer: &mut Writer) -> Result<(), heddle_protocol::EncodeError> {
    let mut value = OffsetCommitValue {
        offset: committed.offset,
        leader_epoch: committed.leader_epoch.get(),
        metadata: &committed.metadata,
        commit_timestamp: committed.committed_at.get(),
        expire_timestamp: committed.expires_at.get(),
        topic_id: committed.topic_id.into(),
    };
    if committed.expires_at != Timestamp::NONE {
        // That version has no room for the rest.
        (value.leader_epoch, value.topic_id) = (-1, heddle_protocol::Uuid::ZERO);
        return encode_versioned(&value, writer, OFFSET_VERSION_WITH_EXPIRY);
    }
    encode_versioned(&value, writer, OFFSET_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn group() -> GroupRecord {
        let member = StoredMember {
            id: "c-1".into(),
            instance: Some("one".into()),
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            rebalance_timeout_ms: 300_000,
            session_timeout_ms: 45_000,
            subscription: [1, 2, 3][..].into(),
            assignment: [4, 5][..].into(),
        };
        let stored = StoredGroup {
            protocol_type: "consumer".into(),
            generation: 7,
            protocol: Some("range".into()),
            leader: Some("c-1".into()),
            changed_at: Timestamp::new(1_000),
            members: vec![member],
        };
        GroupRecord::Group { group: "weavers".into(), stored: Some(stored) }
    }

    fn offset(expires_at: i64) -> GroupRecord {
        let expires = expires_at != -1;
        let committed = CommittedOffset {
            offset: 42,
            leader_epoch: LeaderEpoch::new(if expires { -1 } else { 3 }),
            metadata: "where I was".into(),
            committed_at: Timestamp::new(2_000),
            expires_at: Timestamp::new(expires_at),
            topic_id: if expires { TopicId::ZERO } else { TopicId::new([9; 16]) },
        };
        GroupRecord::Offset { group: "weavers".into(), topic: "loom".into(), partition: 5, committed: Some(committed) }
    }

    fn samples() -> Vec<GroupRecord> {
        let (group_name, topic): (Arc<str>, Arc<str>) = ("weavers".into(), "loom".into());
        vec![
            group(),
            GroupRecord::Group { group: group_name.clone(), stored: None },
            offset(-1),
            offset(9_000),
            GroupRecord::Offset { group: group_name, topic, partition: 5, committed: None },
        ]
    }

    #[test]
    fn records_come_back_from_their_bytes_and_are_no_larger_than_announced() {
        for record in samples() {
            let KeyValue { key, value } = record.encode();
            assert_eq!(GroupRecord::decode(&key, value.as_deref()), Ok(record.clone()));
            assert!(key.len() + value.map_or(0, |value| value.len()) <= record.size(), "{record:?}");
        }
    }

    #[test]
    fn cut_bytes_are_refused() {
        for record in samples() {
            let KeyValue { key, value } = record.encode();
            for length in 0..key.len() {
                assert!(GroupRecord::decode(key.get(..length).unwrap(), value.as_deref()).is_err());
            }
            for length in 0..value.as_ref().map_or(0, Vec::len) {
                let cut = value.as_ref().and_then(|value| value.get(..length));
                assert!(GroupRecord::decode(&key, cut).is_err(), "{record:?} cut to {length}");
            }
        }
    }

    #[test]
    fn what_newer_versions_write_is_named_and_passed_over() {
        assert_eq!(GroupRecord::decode(&[0, 3, 0, 0], None), Err(BadRecord::UnknownType(3)));
        let KeyValue { key, value } = offset(-1).encode();
        let mut newer = value.unwrap();
        newer[1] = 9;
        assert_eq!(GroupRecord::decode(&key, Some(&newer)), Err(BadRecord::UnknownVersion(9)));
    }

    /// Bytes that Kafka 4.3.1 wrote: `net/protocol/testdata/vectors/internal_records.jsonl`.
    #[test]
    fn a_committed_offset_is_written_as_kafka_writes_it() {
        let GroupRecord::Offset { committed: Some(mut committed), group, topic, .. } = offset(-1) else {
            unreachable!()
        };
        committed.topic_id = TopicId::ZERO;
        let record = GroupRecord::Offset { group, topic, partition: 5, committed: Some(committed) };
        let KeyValue { key, value } = record.encode();
        assert_eq!(key, b"\x00\x01\x00\x07weavers\x00\x04loom\x00\x00\x00\x05");
        let mut wanted = vec![0, 4, 0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 3, 12];
        wanted.extend(b"where I was");
        wanted.extend([0, 0, 0, 0, 0, 0, 7, 208, 0]);
        assert_eq!(value, Some(wanted));
    }
}
