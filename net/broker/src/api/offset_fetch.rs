//! OffsetFetch (key 9): where groups have got to.
//!
//! Owns what each version calls groups and topics, and what stands for an offset that is not there. Never decides.

use std::sync::Arc;

use heddle_cluster::MetadataImage;
use heddle_cluster::group::CommittedOffset;
use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Offsets, TopicOffsets};
use heddle_protocol::messages::offset_fetch::{
    OffsetFetchRequest, OffsetFetchRequestGroup, OffsetFetchResponse, OffsetFetchResponseGroup,
    OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use heddle_protocol::{ErrorCode, Uuid};

use super::{Answer, Call, Refusal, groups};
use crate::concurrently;

/// From this version on an error is the group's, not its partitions'.
const GROUP_ERROR: i16 = 2;
/// From this version on a request has many groups.
const BATCHED: i16 = 8;
/// From this version on topics are named by id.
const BY_ID: i16 = 10;

/// Serves a request for offsets.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: OffsetFetchRequest<'_> = call.decode()?;
    if call.version >= BATCHED { many(call, &request).await } else { one(call, &request).await }
}

async fn ask(
    call: &Call,
    group: &str,
    wanted: Option<Vec<(Arc<str>, Vec<i32>)>>,
) -> Result<Vec<TopicOffsets>, ErrorCode> {
    match groups::ask(call, group, Command::Offsets(Offsets { group: group.into(), wanted })).await {
        Response::Offsets(topics) => Ok(topics),
        Response::Gone(error) => Err(error),
        _ => unreachable!("a command is answered in kind"),
    }
}

/// One group, as old versions ask.
async fn one(call: &Call, request: &OffsetFetchRequest<'_>) -> Result<Answer, Refusal> {
    let topics = request.topics.as_ref();
    call.check_count("partitions", topics.iter().flat_map(|it| it.iter()).map(|it| it.partition_indexes.len()).sum())?;
    let wanted: Option<Vec<(Arc<str>, Vec<i32>)>> =
        topics.map(|topics| topics.iter().map(|it| (it.name.into(), it.partition_indexes.iter().collect())).collect());
    let (found, error) = match ask(call, request.group_id, wanted.clone()).await {
        Ok(found) => (found, ErrorCode::None),
        Err(error) if call.version >= GROUP_ERROR => (Vec::new(), error),
        Err(error) => (absent(wanted.unwrap_or_default()), error),
    };
    let partition_error = if call.version < GROUP_ERROR { error } else { ErrorCode::None };
    let topics = found.iter().map(|topic| OffsetFetchResponseTopic {
        name: &topic.topic,
        partitions: topic
            .partitions
            .iter()
            .map(|(index, offset)| {
                let shown = Shown::new(offset.as_ref());
                OffsetFetchResponsePartition {
                    partition_index: *index,
                    committed_offset: shown.offset,
                    committed_leader_epoch: shown.leader_epoch,
                    metadata: Some(shown.metadata),
                    error_code: partition_error.code(),
                }
            })
            .collect(),
    });
    let topics: Vec<OffsetFetchResponseTopic<'_>> = topics.collect();
    call.answer(&OffsetFetchResponse {
        topics: topics.into(),
        error_code: if call.version >= GROUP_ERROR { error.code() } else { 0 },
        ..OffsetFetchResponse::default()
    })
}

fn absent(wanted: Vec<(Arc<str>, Vec<i32>)>) -> Vec<TopicOffsets> {
    let nothing = |partitions: Vec<i32>| partitions.into_iter().map(|index| (index, None)).collect();
    wanted.into_iter().map(|(topic, partitions)| TopicOffsets { topic, partitions: nothing(partitions) }).collect()
}

/// A group's offsets, topics with the ids and errors that the answer has.
struct GroupOffsets {
    group: String,
    topics: Vec<(TopicOffsets, Uuid, ErrorCode)>,
    error: ErrorCode,
}

async fn many(call: &Call, request: &OffsetFetchRequest<'_>) -> Result<Answer, Refusal> {
    let topics = request.groups.iter().flat_map(|group| group.topics.into_iter().flatten());
    call.check_count("partitions", request.groups.len() + topics.map(|it| it.partition_indexes.len()).sum::<usize>())?;
    let image = call.core.image();
    let found = concurrently::all(request.groups.iter().map(|group| offsets_of(call, &image, group))).await;
    let groups = found.iter().map(|found| OffsetFetchResponseGroup {
        group_id: &found.group,
        topics: found
            .topics
            .iter()
            .map(|(topic, topic_id, error)| OffsetFetchResponseTopics {
                name: &topic.topic,
                topic_id: *topic_id,
                partitions: topic
                    .partitions
                    .iter()
                    .map(|(index, offset)| {
                        let shown = Shown::new(offset.as_ref());
                        OffsetFetchResponsePartitions {
                            partition_index: *index,
                            committed_offset: shown.offset,
                            committed_leader_epoch: shown.leader_epoch,
                            metadata: Some(shown.metadata),
                            error_code: error.code(),
                        }
                    })
                    .collect(),
            })
            .collect(),
        error_code: found.error.code(),
    });
    let groups: Vec<OffsetFetchResponseGroup<'_>> = groups.collect();
    call.answer(&OffsetFetchResponse { groups: groups.into(), ..OffsetFetchResponse::default() })
}

async fn offsets_of(call: &Call, image: &MetadataImage, group: OffsetFetchRequestGroup<'_>) -> GroupOffsets {
    let is_by_id = call.version >= BY_ID;
    let mut unknown = Vec::new();
    let wanted: Option<Vec<(Arc<str>, Vec<i32>)>> = group.topics.map(|topics| {
        let mut wanted = Vec::new();
        for topic in topics.iter() {
            let partitions: Vec<i32> = topic.partition_indexes.iter().collect();
            // By name, what was committed for a topic is told whether or not the topic is there.
            let name = if is_by_id {
                image.topic(topic.topic_id.into()).map(|it| Arc::clone(&it.name))
            } else {
                Some(topic.name.into())
            };
            match name {
                Some(name) => wanted.push((name, partitions)),
                None => unknown.push((absent(vec![(Arc::default(), partitions)]), topic.topic_id)),
            }
        }
        wanted
    });
    let group_id = group.group_id.to_owned();
    match ask(call, group.group_id, wanted).await {
        Err(error) => GroupOffsets { group: group_id, topics: Vec::new(), error },
        Ok(found) => {
            let id_of = |topic: &TopicOffsets| image.topic_named(&topic.topic).map(|it| Uuid::from(it.id));
            let known = found.into_iter().filter_map(|topic| {
                let id = if is_by_id { id_of(&topic)? } else { Uuid::ZERO };
                Some((topic, id, ErrorCode::None))
            });
            let mut topics: Vec<(TopicOffsets, Uuid, ErrorCode)> = known.collect();
            for (absent, id) in unknown {
                topics.extend(absent.into_iter().map(|topic| (topic, id, ErrorCode::UnknownTopicId)));
            }
            GroupOffsets { group: group_id, topics, error: ErrorCode::None }
        }
    }
}

/// An offset on the wire.
struct Shown<'a> {
    offset: i64,
    leader_epoch: i32,
    metadata: &'a str,
}

impl<'a> Shown<'a> {
    fn new(offset: Option<&'a CommittedOffset>) -> Self {
        match offset {
            Some(it) => Self { offset: it.offset, leader_epoch: it.leader_epoch.get(), metadata: &it.metadata },
            None => Self { offset: -1, leader_epoch: -1, metadata: "" },
        }
    }
}
