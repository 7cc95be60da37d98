//! OffsetCommit (key 8): where a group has got to.
//!
//! Owns the check that topics and partitions exist, and what each version calls them. Never decides who may commit.

use std::sync::Arc;

use heddle_cluster::MetadataImage;
use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Commit, CommitEntry, Membership};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::offset_commit::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic, OffsetCommitResponse,
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use heddle_record::{LeaderEpoch, PartitionIndex};

use super::{Answer, Call, Refusal, groups};

/// From this version on a group that is not there is called so.
const KNOWS_GROUPS: i16 = 9;
/// From this version on topics are named by id.
const BY_ID: i16 = 10;

/// Serves a request to remember offsets.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: OffsetCommitRequest<'_> = call.decode()?;
    call.check_count("partitions", request.topics.iter().map(|topic| topic.partitions.len()).sum())?;
    let image = call.core.image();
    let mut entries = Vec::new();
    let mut results = Vec::new();
    for topic in request.topics.iter() {
        for partition in topic.partitions.iter() {
            match entry(call, &image, &topic, &partition) {
                Ok(entry) => {
                    entries.push(entry);
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
    }
    let committed = if entries.is_empty() { Ok(Vec::new()) } else { commit(call, &request, entries).await };
    let mut committed = committed.map(Vec::into_iter);
    let mut results = results.into_iter().map(|known| {
        known.unwrap_or_else(|| match &mut committed {
            Ok(results) => results.next().expect("each entry has its result"),
            Err(error) => Err(*error),
        })
    });
    // A topic of which nothing is committed is not answered.
    let topics = request.topics.iter().filter(|topic| !topic.partitions.is_empty()).map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| OffsetCommitResponsePartition {
            partition_index: partition.partition_index,
            error_code: groups::code(results.next().expect("each partition has its result")),
        });
        OffsetCommitResponseTopic { name: topic.name, topic_id: topic.topic_id, partitions: partitions.collect() }
    });
    let topics: Vec<OffsetCommitResponseTopic<'_>> = topics.collect();
    call.answer(&OffsetCommitResponse { topics: topics.into(), ..OffsetCommitResponse::default() })
}

fn entry(
    call: &Call,
    image: &MetadataImage,
    topic: &OffsetCommitRequestTopic<'_>,
    partition: &OffsetCommitRequestPartition<'_>,
) -> Result<CommitEntry, ErrorCode> {
    let found = groups::topic(image, call.version >= BY_ID, topic.name, topic.topic_id)?;
    let index = partition.partition_index;
    found.partition(PartitionIndex::new(index)).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    Ok(CommitEntry {
        topic: Arc::clone(&found.name),
        topic_id: found.id,
        partition: index,
        offset: partition.committed_offset,
        leader_epoch: LeaderEpoch::new(partition.committed_leader_epoch),
        metadata: partition.committed_metadata.unwrap_or_default().into(),
    })
}

async fn commit(
    call: &Call,
    request: &OffsetCommitRequest<'_>,
    entries: Vec<CommitEntry>,
) -> Result<Vec<Result<(), ErrorCode>>, ErrorCode> {
    let commit = Commit {
        of: Membership {
            group: request.group_id.into(),
            member: request.member_id.into(),
            instance: request.group_instance_id.map(Arc::from),
            generation: request.generation_id_or_member_epoch,
        },
        no_group: if call.version >= KNOWS_GROUPS { ErrorCode::GroupIdNotFound } else { ErrorCode::IllegalGeneration },
        retention_ms: Some(request.retention_time_ms).filter(|time| *time != -1),
        entries,
    };
    match groups::ask(call, request.group_id, Command::Commit(commit)).await {
        Response::Commit(results) => results,
        Response::Gone(error) => Err(error),
        _ => unreachable!("a command is answered in kind"),
    }
}
