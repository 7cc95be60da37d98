//! What the APIs of groups share: the way to a group's coordinator, and the names that requests use for topics.
//!
//! Owns the choice of the partition that a group lives in. Decides nothing about groups.

use std::sync::Arc;

use heddle_cluster::group::{Command, OFFSETS_TOPIC, Response, partition_of};
use heddle_cluster::{MetadataImage, TopicImage};
use heddle_io::sync::OneshotReceiver;
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::{LogId, PartitionIndex, TopicId};

use super::Call;
use crate::concurrently::{Either, either};
use crate::coordinator::Held;
use crate::core::{self, Core};
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

/// A question to the coordinator of a group.
pub(crate) enum Asked {
    /// It was answered at once.
    Answered(Response),
    /// The coordinator is on this core.
    Here(OneshotReceiver<Response>),
    /// It is on another.
    There(core::Asked, Held),
}

impl Asked {
    /// The answer.
    pub(crate) async fn answer(self) -> Response {
        match self {
            Self::Answered(response) => response,
            Self::Here(answer) => answer.await.unwrap_or(Response::Gone(ErrorCode::NotCoordinator)),
            Self::There(asked, mut held) => match asked.answer::<Box<GroupRequest>>().await {
                GroupReply::Answered(response) => response,
                GroupReply::Held => held.answer().await,
            },
        }
    }
}

/// Asks the coordinator of a group. Questions that are posted one after the other are decided on in that order.
pub(crate) async fn post(core: &Core, group: &str, command: Command) -> Asked {
    let Some((topic, partition)) = place_of(&core.image(), group) else {
        return Asked::Answered(Response::Gone(ErrorCode::NotCoordinator));
    };
    let owner = core.owner(LogId { topic: topic.id, partition });
    if owner == core.index() {
        return match core.coordinators().ask(core, partition, command) {
            Ok(answer) => Asked::Here(answer),
            Err(response) => Asked::Answered(response),
        };
    }
    let held = Held::new(core);
    let request = GroupRequest { partition, asker: held.asker, command };
    Asked::There(core.post(owner, Box::new(request)).await, held)
}

/// Asks the coordinator of a group and waits for its answer; where that waits for other members, for as long as the
/// connection does.
pub(crate) async fn ask(call: &Call, group: &str, command: Command) -> Response {
    let waits_for_others = matches!(command, Command::Join(_) | Command::Sync(_));
    let answer = post(&call.core, group, command).await.answer();
    if !waits_for_others {
        return answer.await;
    }
    match either(answer, call.session.left()).await {
        Either::First(response) => response,
        // The peer has closed its side, or the broker is stopping.
        Either::Second(()) => Response::Gone(ErrorCode::NotCoordinator),
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
