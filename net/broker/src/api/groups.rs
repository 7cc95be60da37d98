//! What the APIs of groups share: the way to a group's coordinator, and the names that requests use for topics.
//!
//! Owns the choice of the partition that a group lives in. Decides nothing about groups.

use std::sync::Arc;

use heddle_cluster::group::{Command, OFFSETS_TOPIC, Response, partition_of};
use heddle_cluster::{MetadataImage, TopicImage};
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::{LogId, PartitionIndex, TopicId};

use super::Call;
use crate::concurrently::{Either, either};
use crate::coordinator::Held;
use crate::message::{GroupReply, GroupRequest};

/// Every operation there is on a group, a bit for each code of Kafka's `AclOperation`: read, delete, describe, describe
/// configs, alter configs.
pub(crate) const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

/// The partition of the offsets topic that a group lives in; nothing while there is no such topic.
pub(crate) fn place_of(image: &MetadataImage, group: &str) -> Option<(Arc<TopicImage>, PartitionIndex)> {
    let topic = image.topic_named(OFFSETS_TOPIC)?;
    let partitions = i32::try_from(topic.partitions.len()).ok().filter(|count| *count > 0)?;
    Some((Arc::clone(topic), PartitionIndex::new(partition_of(group, partitions))))
}

/// Asks the coordinator of a group, and waits for as long as the connection does.
pub(crate) async fn ask(call: &Call, group: &str, command: Command) -> Response {
    let core = &call.core;
    let Some((topic, partition)) = place_of(&core.image(), group) else {
        return Response::Gone(ErrorCode::NotCoordinator);
    };
    let owner = core.owner(LogId { topic: topic.id, partition });
    let mut held = Held::new(core);
    let request = GroupRequest { partition, asker: held.asker, command };
    match core.ask(owner, Box::new(request)).await {
        GroupReply::Answered(response) => response,
        GroupReply::Held => match either(held.answer(), call.session.left()).await {
            Either::First(response) => response,
            // The peer has closed its side, or the broker is stopping.
            Either::Second(()) => Response::Gone(ErrorCode::NotCoordinator),
        },
    }
}

/// A topic as a request names it, by name or by id.
///
/// # Errors
/// There is no such topic.
pub(crate) fn topic<'i>(
    image: &'i MetadataImage,
    is_by_id: bool,
    name: &str,
    id: Uuid,
) -> Result<&'i Arc<TopicImage>, ErrorCode> {
    if is_by_id {
        image.topic(TopicId::from(id)).ok_or(ErrorCode::UnknownTopicId)
    } else {
        image.topic_named(name).ok_or(ErrorCode::UnknownTopicOrPartition)
    }
}

/// The code on the wire.
pub(crate) fn code(result: Result<(), ErrorCode>) -> i16 {
    result.err().map_or(0, ErrorCode::code)
}
