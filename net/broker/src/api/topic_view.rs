//! What clients are told of topics and brokers, in whichever API they ask.
//!
//! Owns the words that several answers share: operations, internal topics, the state of a partition. Decides nothing.

use heddle_cluster::{MetadataImage, PartitionState};
use heddle_protocol::ErrorCode;
use heddle_record::BrokerId;

/// Every operation there is on a topic, a bit for each code of Kafka's `AclOperation`: read, write, create, delete,
/// alter, describe, describe configs, alter configs. Nobody is kept from any of them.
pub(crate) const TOPIC_OPERATIONS: i32 = operations(&[3, 4, 5, 6, 7, 8, 10, 11]);

/// The same for the cluster: create, alter, describe, cluster action, describe configs, alter configs, idempotent write.
pub(crate) const CLUSTER_OPERATIONS: i32 = operations(&[5, 7, 8, 9, 10, 11, 12]);

/// What stands for operations that nobody asked for.
pub(crate) const OPERATIONS_NOT_ASKED: i32 = i32::MIN;

const fn operations(mut codes: &[u32]) -> i32 {
    let mut bits = 0;
    while let Some((code, rest)) = codes.split_first() {
        bits |= 1 << *code;
        codes = rest;
    }
    bits
}

/// Whether the brokers keep their own state in the topic of this name.
pub(crate) fn is_internal(topic: &str) -> bool {
    matches!(topic, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

/// A partition as clients see it.
pub(crate) struct PartitionView {
    pub(crate) error: ErrorCode,
    pub(crate) leader: i32,
    pub(crate) leader_epoch: i32,
    pub(crate) replicas: Vec<i32>,
    pub(crate) in_sync_replicas: Vec<i32>,
    /// Replicas on brokers that are not there.
    pub(crate) offline_replicas: Vec<i32>,
}

impl PartitionView {
    pub(crate) fn new(image: &MetadataImage, state: &PartitionState) -> Self {
        let ids = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.get()).collect();
        let offline = |broker: &&BrokerId| image.broker(**broker).is_none();
        let has_leader = state.leader != BrokerId::NONE;
        Self {
            error: if has_leader { ErrorCode::None } else { ErrorCode::LeaderNotAvailable },
            leader: state.leader.get(),
            leader_epoch: state.leader_epoch.get(),
            replicas: ids(&state.replicas),
            in_sync_replicas: ids(&state.in_sync_replicas),
            offline_replicas: state.replicas.iter().filter(offline).map(|broker| broker.get()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_what_kafka_answers_without_an_authorizer() {
        assert_eq!(TOPIC_OPERATIONS, 3576);
        assert_eq!(CLUSTER_OPERATIONS, 8096);
    }
}
