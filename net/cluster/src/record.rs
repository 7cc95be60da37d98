//! The records of the metadata log: what a decision changes, in a form that outlives the process.
//!
//! Owns their typed form and its bytes, the value of a log record: int16 record type, int16 version, then the message of
//! `net/protocol/schema/metadata`. The batch around them carries the checksum. Applies nothing: [`crate::image`] does.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use heddle_protocol::metadata::broker_config::BrokerConfigRecord;
use heddle_protocol::metadata::feature_level::FeatureLevelRecord;
use heddle_protocol::metadata::partition::PartitionRecord;
use heddle_protocol::metadata::producer_ids::ProducerIdsRecord;
use heddle_protocol::metadata::register_broker::{BrokerEndpoint, RegisterBrokerRecord};
use heddle_protocol::metadata::remove_topic::RemoveTopicRecord;
use heddle_protocol::metadata::resource_config::ResourceConfigRecord;
use heddle_protocol::metadata::topic::TopicRecord;
use heddle_protocol::metadata::topic_config::TopicConfigRecord;
use heddle_protocol::{DecodeError, Message, Reader, Uuid, Writer};
use heddle_record::{BrokerId, LeaderEpoch, PartitionIndex, ProducerId, TopicId};

/// The version that every record is written in.
const VERSION: i16 = 0;

const TOPIC: i16 = 1;
const PARTITION: i16 = 2;
const REMOVE_TOPIC: i16 = 3;
const TOPIC_CONFIG: i16 = 4;
const BROKER_CONFIG: i16 = 5;
const PRODUCER_IDS: i16 = 6;
const REGISTER_BROKER: i16 = 7;
const FEATURE_LEVEL: i16 = 8;
const RESOURCE_CONFIG: i16 = 9;

/// One change of the cluster's metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetadataRecord {
    /// A topic exists; its partitions follow.
    Topic {
        /// Its name.
        name: String,
        /// Its id, never used before.
        id: TopicId,
    },
    /// What a partition is from now on; the first one of a partition creates it.
    Partition {
        /// The topic.
        topic: TopicId,
        /// Its place in the topic, at most the number of partitions before.
        partition: PartitionIndex,
        /// Who has it, and who leads.
        state: PartitionState,
    },
    /// A topic and its partitions are gone.
    RemoveTopic {
        /// The topic.
        id: TopicId,
    },
    /// One of a topic's own settings.
    TopicConfig {
        /// The topic.
        topic: TopicId,
        /// The setting.
        name: String,
        /// Its value; `None` removes it.
        value: Option<String>,
    },
    /// A setting of one broker or of all.
    BrokerConfig {
        /// The broker; `None`: all.
        broker: Option<BrokerId>,
        /// The setting.
        name: String,
        /// Its value; `None` removes it.
        value: Option<String>,
    },
    /// A setting of a group, or of a subscription to clients' metrics.
    ResourceConfig {
        /// What has the setting.
        resource: Resource,
        /// The setting.
        name: String,
        /// Its value; `None` removes it.
        value: Option<String>,
    },
    /// Producer ids were given to a broker.
    ProducerIds {
        /// The broker.
        broker: BrokerId,
        /// The first id that nobody has.
        next: ProducerId,
    },
    /// A broker is part of the cluster.
    RegisterBroker {
        /// The broker.
        id: BrokerId,
        /// How it can be reached.
        registration: BrokerRegistration,
    },
    /// A feature has this level from now on.
    FeatureLevel {
        /// The feature.
        name: String,
        /// Its level; 0 removes it.
        level: i16,
    },
}

/// What has settings besides topics and brokers, by name. It need not exist otherwise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Resource {
    /// A group.
    Group(String),
    /// A subscription to clients' metrics.
    ClientMetrics(String),
}

impl Resource {
    /// Its name.
    pub fn name(&self) -> &str {
        let (Self::Group(name) | Self::ClientMetrics(name)) = self;
        name
    }

    /// The number that the protocol has for its kind.
    pub const fn code(&self) -> i8 {
        match self {
            Self::ClientMetrics(_) => 16,
            Self::Group(_) => 32,
        }
    }

    fn from_code(code: i8, name: &str) -> Option<Self> {
        match code {
            16 => Some(Self::ClientMetrics(name.into())),
            32 => Some(Self::Group(name.into())),
            _ => None,
        }
    }
}

/// Who has a partition, and who leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionState {
    /// The brokers that have a copy, the preferred leader first. Never empty.
    pub replicas: Vec<BrokerId>,
    /// Those of them that are in sync.
    pub in_sync_replicas: Vec<BrokerId>,
    /// Who takes writes.
    pub leader: BrokerId,
    /// Grows whenever the leader changes.
    pub leader_epoch: LeaderEpoch,
    /// Grows whenever anything here changes.
    pub partition_epoch: i32,
}

/// How a broker can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerRegistration {
    /// Grows with each registration of this broker.
    pub epoch: i64,
    /// This run of the broker's process.
    pub incarnation: [u8; 16],
    /// Its addresses.
    pub endpoints: Vec<Endpoint>,
    /// Its rack.
    pub rack: Option<String>,
}

/// An address of a broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The listener's name.
    pub listener: String,
    /// Host name or address that clients are told.
    pub host: String,
    /// Port that clients are told.
    pub port: u16,
}

/// Bytes that are no record of the metadata log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadRecord {
    /// A record type of a newer version.
    UnknownType(i16),
    /// A kind of resource of a newer version.
    UnknownResource(i8),
    /// A version of a newer version, or malformed bytes.
    Malformed(DecodeError),
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(record_type) => write!(f, "metadata record of unknown type {record_type}"),
            Self::UnknownResource(kind) => write!(f, "metadata record of an unknown kind of resource {kind}"),
            Self::Malformed(error) => write!(f, "malformed metadata record: {error}"),
        }
    }
}

impl core::error::Error for BadRecord {}

impl From<DecodeError> for BadRecord {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl MetadataRecord {
    /// The value of the log record.
    ///
    /// # Panics
    /// When a text is longer than an `i32` can count: limits on requests lie far below.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Topic { name, id } => write(TOPIC, &TopicRecord { name, topic_id: uuid(*id) }),
            Self::Partition { topic, partition, state } => {
                write(PARTITION, &partition_record(*topic, *partition, state))
            }
            Self::RemoveTopic { id } => write(REMOVE_TOPIC, &RemoveTopicRecord { topic_id: uuid(*id) }),
            Self::TopicConfig { topic, name, value } => {
                write(TOPIC_CONFIG, &TopicConfigRecord { topic_id: uuid(*topic), name, value: value.as_deref() })
            }
            Self::BrokerConfig { broker, name, value } => {
                let broker_id = broker.unwrap_or(BrokerId::NONE).get();
                write(BROKER_CONFIG, &BrokerConfigRecord { broker_id, name, value: value.as_deref() })
            }
            Self::ResourceConfig { resource, name, value } => {
                let (resource_type, resource_name) = (resource.code(), resource.name());
                let value = value.as_deref();
                write(RESOURCE_CONFIG, &ResourceConfigRecord { resource_type, resource_name, name, value })
            }
            Self::ProducerIds { broker, next } => {
                let record = ProducerIdsRecord { broker_id: broker.get(), next_producer_id: next.get() };
                write(PRODUCER_IDS, &record)
            }
            Self::RegisterBroker { id, registration } => write(REGISTER_BROKER, &register_record(*id, registration)),
            Self::FeatureLevel { name, level } => {
                write(FEATURE_LEVEL, &FeatureLevelRecord { name, feature_level: *level })
            }
        }
    }

    /// Reads the value of a log record.
    ///
    /// # Errors
    /// The bytes are no metadata record that this version knows.
    pub fn decode(value: &[u8]) -> Result<Self, BadRecord> {
        let mut reader = Reader::new(value);
        let record_type = heddle_protocol::decode_prefix(&mut reader)?;
        let version = heddle_protocol::decode_prefix(&mut reader)?;
        let reader = &mut reader;
        Ok(match record_type {
            TOPIC => {
                let record = TopicRecord::decode(reader, version)?;
                Self::Topic { name: record.name.to_string(), id: topic_id(record.topic_id) }
            }
            PARTITION => partition_from(&PartitionRecord::decode(reader, version)?),
            REMOVE_TOPIC => Self::RemoveTopic { id: topic_id(RemoveTopicRecord::decode(reader, version)?.topic_id) },
            TOPIC_CONFIG => {
                let record = TopicConfigRecord::decode(reader, version)?;
                let (name, value) = (record.name.to_string(), record.value.map(ToString::to_string));
                Self::TopicConfig { topic: topic_id(record.topic_id), name, value }
            }
            BROKER_CONFIG => {
                let record = BrokerConfigRecord::decode(reader, version)?;
                let broker = Some(BrokerId::new(record.broker_id)).filter(|&broker| broker != BrokerId::NONE);
                let (name, value) = (record.name.to_string(), record.value.map(ToString::to_string));
                Self::BrokerConfig { broker, name, value }
            }
            RESOURCE_CONFIG => {
                let record = ResourceConfigRecord::decode(reader, version)?;
                let resource = Resource::from_code(record.resource_type, record.resource_name)
                    .ok_or(BadRecord::UnknownResource(record.resource_type))?;
                let (name, value) = (record.name.to_string(), record.value.map(ToString::to_string));
                Self::ResourceConfig { resource, name, value }
            }
            PRODUCER_IDS => {
                let record = ProducerIdsRecord::decode(reader, version)?;
                let next = ProducerId::new(record.next_producer_id);
                Self::ProducerIds { broker: BrokerId::new(record.broker_id), next }
            }
            REGISTER_BROKER => register_from(&RegisterBrokerRecord::decode(reader, version)?),
            FEATURE_LEVEL => {
                let record = FeatureLevelRecord::decode(reader, version)?;
                Self::FeatureLevel { name: record.name.to_string(), level: record.feature_level }
            }
            unknown => return Err(BadRecord::UnknownType(unknown)),
        })
    }
}

fn write<'a>(record_type: i16, message: &impl Message<'a>) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.slice(&record_type.to_be_bytes());
    heddle_protocol::encode_versioned(message, &mut writer, VERSION)
        .expect("a record holds only what its newest version can express");
    writer.into_bytes()
}

fn uuid(id: TopicId) -> Uuid {
    Uuid(id.bytes())
}

fn topic_id(uuid: Uuid) -> TopicId {
    TopicId::new(uuid.0)
}

fn brokers(ids: &[BrokerId]) -> Vec<i32> {
    ids.iter().map(|id| id.get()).collect()
}

fn partition_record(topic: TopicId, partition: PartitionIndex, state: &PartitionState) -> PartitionRecord<'static> {
    PartitionRecord {
        topic_id: uuid(topic),
        partition_index: partition.get(),
        replicas: brokers(&state.replicas).into(),
        in_sync_replicas: brokers(&state.in_sync_replicas).into(),
        leader: state.leader.get(),
        leader_epoch: state.leader_epoch.get(),
        partition_epoch: state.partition_epoch,
    }
}

fn partition_from(record: &PartitionRecord<'_>) -> MetadataRecord {
    MetadataRecord::Partition {
        topic: topic_id(record.topic_id),
        partition: PartitionIndex::new(record.partition_index),
        state: PartitionState {
            replicas: record.replicas.iter().map(BrokerId::new).collect(),
            in_sync_replicas: record.in_sync_replicas.iter().map(BrokerId::new).collect(),
            leader: BrokerId::new(record.leader),
            leader_epoch: LeaderEpoch::new(record.leader_epoch),
            partition_epoch: record.partition_epoch,
        },
    }
}

fn register_record(id: BrokerId, registration: &BrokerRegistration) -> RegisterBrokerRecord<'_> {
    let endpoints = registration.endpoints.iter();
    RegisterBrokerRecord {
        broker_id: id.get(),
        broker_epoch: registration.epoch,
        incarnation_id: Uuid(registration.incarnation),
        endpoints: endpoints.map(|e| BrokerEndpoint { name: &e.listener, host: &e.host, port: e.port }).collect(),
        rack: registration.rack.as_deref(),
    }
}

fn register_from(record: &RegisterBrokerRecord<'_>) -> MetadataRecord {
    let endpoints = record.endpoints.iter().map(|endpoint| Endpoint {
        listener: endpoint.name.to_string(),
        host: endpoint.host.to_string(),
        port: endpoint.port,
    });
    MetadataRecord::RegisterBroker {
        id: BrokerId::new(record.broker_id),
        registration: BrokerRegistration {
            epoch: record.broker_epoch,
            incarnation: record.incarnation_id.0,
            endpoints: endpoints.collect(),
            rack: record.rack.map(ToString::to_string),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn samples() -> Vec<MetadataRecord> {
        let id = TopicId::new([7; 16]);
        let state = PartitionState {
            replicas: vec![BrokerId::new(1), BrokerId::new(2)],
            in_sync_replicas: vec![BrokerId::new(1)],
            leader: BrokerId::new(1),
            leader_epoch: LeaderEpoch::new(3),
            partition_epoch: 4,
        };
        let endpoints = vec![Endpoint { listener: "PLAINTEXT".into(), host: "::1".into(), port: 9092 }];
        let registration = BrokerRegistration { epoch: 5, incarnation: [9; 16], endpoints, rack: Some("r".into()) };
        vec![
            MetadataRecord::Topic { name: "loom".into(), id },
            MetadataRecord::Partition { topic: id, partition: PartitionIndex::new(2), state },
            MetadataRecord::RemoveTopic { id },
            MetadataRecord::TopicConfig { topic: id, name: "retention.ms".into(), value: Some("1".into()) },
            MetadataRecord::TopicConfig { topic: id, name: "retention.ms".into(), value: None },
            MetadataRecord::BrokerConfig { broker: None, name: "a".into(), value: Some(String::new()) },
            MetadataRecord::BrokerConfig { broker: Some(BrokerId::new(0)), name: "a".into(), value: None },
            MetadataRecord::ResourceConfig {
                resource: Resource::Group("g".into()),
                name: "a".into(),
                value: Some("1".into()),
            },
            MetadataRecord::ResourceConfig {
                resource: Resource::ClientMetrics("m".into()),
                name: "a".into(),
                value: None,
            },
            MetadataRecord::ProducerIds { broker: BrokerId::new(1), next: ProducerId::new(1000) },
            MetadataRecord::RegisterBroker { id: BrokerId::new(1), registration },
            MetadataRecord::FeatureLevel { name: "metadata".into(), level: 1 },
        ]
    }

    #[test]
    fn records_come_back_from_their_bytes() {
        for record in samples() {
            assert_eq!(MetadataRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn cut_bytes_are_refused() {
        for record in samples() {
            let bytes = record.encode();
            for length in 0..bytes.len() {
                assert!(MetadataRecord::decode(bytes.get(..length).unwrap()).is_err(), "{record:?} cut to {length}");
            }
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_refused() {
        assert_eq!(MetadataRecord::decode(&[0, 99, 0, 0]), Err(BadRecord::UnknownType(99)));
        let mut newer = MetadataRecord::RemoveTopic { id: TopicId::ZERO }.encode();
        newer[3] = 1;
        assert!(matches!(MetadataRecord::decode(&newer), Err(BadRecord::Malformed(_))));
    }
}
