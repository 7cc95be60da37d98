//! Where replicas are and who leads: what a wish to move them comes to on the replicas that there are.
//!
//! Every partition stays where it was created, with the leader that it has, so nothing here makes records: a wish is
//! already true, or refused in Kafka's words.

use alloc::format;

use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, PartitionIndex};

use super::Fault;
use super::topics::check_brokers;
use crate::image::MetadataImage;

/// How a leader is to be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Election {
    /// The first replica, if it is in sync.
    Preferred,
    /// Any replica that lives, if there is no leader.
    Unclean,
}

impl Election {
    /// The kind that the protocol gives this number.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Preferred),
            1 => Some(Self::Unclean),
            _ => None,
        }
    }
}

/// What becomes of the wish that a partition gets a leader in this way: it has one, who is the only one it can have.
///
/// # Errors
/// Always: there is no such partition, or no election is needed.
pub fn elect(image: &MetadataImage, topic: &str, partition: i32, election: Election) -> Result<(), Fault> {
    let unknown = |message| Fault::with(ErrorCode::UnknownTopicOrPartition, message);
    let found = image.topic_named(topic).ok_or_else(|| unknown(format!("No such topic as {topic}")))?;
    let state = found.partition(PartitionIndex::new(partition));
    let state = state.ok_or_else(|| unknown(format!("No such partition as {topic}-{partition}")))?;
    let preferred = state.replicas.first().copied().unwrap_or(BrokerId::NONE);
    if state.leader == BrokerId::NONE || election == Election::Preferred && state.leader != preferred {
        let message = "The preferred leader was not available.";
        return Err(Fault::with(ErrorCode::PreferredLeaderNotAvailable, message));
    }
    Err(Fault::with(ErrorCode::ElectionNotNeeded, "Leader election not needed for topic partition."))
}

/// What becomes of the wish that a partition has these replicas; `None` ends a move under way.
///
/// # Errors
/// There is no such partition, no such broker, no move to end; or the replicas would have to move.
pub fn reassign(
    image: &MetadataImage,
    topic: &str,
    partition: i32,
    replicas: Option<&[BrokerId]>,
) -> Result<(), Fault> {
    let unknown = |message| Fault::with(ErrorCode::UnknownTopicOrPartition, message);
    let found = image.topic_named(topic).ok_or_else(|| unknown(format!("Unable to find a topic named {topic}.")))?;
    let state = found.partition(PartitionIndex::new(partition));
    let state = state.ok_or_else(|| unknown(format!("Unable to find partition {topic}:{partition}.")))?;
    let replicas = replicas.ok_or(Fault::new(ErrorCode::NoReassignmentInProgress))?;
    check_brokers(image, replicas)?;
    if replicas == state.replicas {
        return Ok(());
    }
    let message = "This broker does not move partitions to other brokers.";
    Err(Fault::with(ErrorCode::InvalidReplicaAssignment, message))
}
