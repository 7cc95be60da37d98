//! OffsetCommit (key 8): where a group has got to.
//!
//! Owns the check that topics and partitions exist, and what each version calls them. Never decides who may commit.
//!
//! Consecutive commits of one connection overlap, as clients that commit without waiting expect: [`begin`] has the
//! coordinator decide, [`Pending::settle`] waits until the disk has it, [`Pending::respond`] says so.

use std::sync::Arc;

use heddle_cluster::TopicImage;
use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Commit, CommitEntry, Membership};
use heddle_protocol::messages::offset_commit::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitResponse, OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
};
use heddle_protocol::{ErrorCode, Writer, frame};
use heddle_record::{LeaderEpoch, PartitionIndex};

use super::{Call, Refusal, groups};

/// From this version on a group that is not there is called so.
const KNOWS_GROUPS: i16 = 9;
/// From this version on topics are named by id.
const BY_ID: i16 = 10;

/// A commit that was decided on, and is not answered yet.
pub(crate) struct Pending {
    call: Call,
    /// Why a partition is not known to the coordinator, for each of the request, in order.
    unknown: Vec<Option<ErrorCode>>,
    /// The question to the coordinator, if there is any.
    asked: Option<groups::Asked>,
    /// What the coordinator says of each of the others, in order.
    committed: Result<Vec<Result<(), ErrorCode>>, ErrorCode>,
}

/// Has the group's coordinator decide: commits that begin one after the other are decided on in that order.
///
/// # Errors
/// The bytes are no such request.
pub(crate) async fn begin(call: Call) -> Result<Pending, Refusal> {
    let request: OffsetCommitRequest<'_> = call.decode()?;
    let count = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    call.check_count("partitions", count)?;
    let image = call.core.image();
    let mut entries = Vec::with_capacity(count);
    let mut unknown = Vec::with_capacity(count);
    for topic in request.topics.iter() {
        let found = groups::topic(&image, call.version >= BY_ID, topic.name, topic.topic_id);
        for partition in topic.partitions.iter() {
            let entry = found.and_then(|found| entry(found, &partition));
            unknown.push(entry.as_ref().err().copied());
            entries.extend(entry);
        }
    }
    let asked = match entries.as_slice() {
        [] => None,
        _ => Some(groups::post(&call.core, request.group_id, command(&call, &request, entries)).await),
    };
    Ok(Pending { call, unknown, asked, committed: Ok(Vec::new()) })
}

impl Pending {
    /// Waits until it is known of every partition what became of it.
    pub(crate) async fn settle(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.committed = match asked.answer().await {
                Response::Commit(results) => results,
                Response::Gone(error) => Err(error),
                _ => unreachable!("a command is answered in kind"),
            };
        }
    }

    /// Writes what became of each partition.
    ///
    /// # Errors
    /// The response cannot be written, by our fault.
    pub(crate) fn respond(&self, writer: &mut Writer) -> Result<(), Refusal> {
        let call = &self.call;
        let request: OffsetCommitRequest<'_> = call.decode()?;
        let mut committed = self.committed.as_ref().map(|results| results.iter());
        let mut codes = self.unknown.iter().map(|unknown| match (unknown, &mut committed) {
            (Some(error), _) => error.code(),
            (None, Ok(results)) => groups::code(*results.next().expect("each entry has its result")),
            (None, Err(error)) => error.code(),
        });
        // A topic of which nothing is committed is not answered.
        let topics = request.topics.iter().filter(|topic| !topic.partitions.is_empty()).map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| OffsetCommitResponsePartition {
                partition_index: partition.partition_index,
                error_code: codes.next().expect("each partition has its result"),
            });
            OffsetCommitResponseTopic { name: topic.name, topic_id: topic.topic_id, partitions: partitions.collect() }
        });
        let topics: Vec<OffsetCommitResponseTopic<'_>> = topics.collect();
        let response = OffsetCommitResponse { topics: topics.into(), ..OffsetCommitResponse::default() };
        frame::encode_response(writer, call.key, call.version, call.correlation_id, &response)?;
        call.note_errors(writer);
        call.answered();
        Ok(())
    }
}

fn entry(found: &TopicImage, partition: &OffsetCommitRequestPartition<'_>) -> Result<CommitEntry, ErrorCode> {
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

fn command(call: &Call, request: &OffsetCommitRequest<'_>, entries: Vec<CommitEntry>) -> Command {
    Command::Commit(Commit {
        of: Membership {
            group: request.group_id.into(),
            member: request.member_id.into(),
            instance: request.group_instance_id.map(Arc::from),
            generation: request.generation_id_or_member_epoch,
        },
        no_group: if call.version >= KNOWS_GROUPS { ErrorCode::GroupIdNotFound } else { ErrorCode::IllegalGeneration },
        retention_ms: Some(request.retention_time_ms).filter(|time| *time != -1),
        entries,
    })
}
