//! OffsetDelete (key 47): offsets to be forgotten.
//!
//! Owns the check that topics and partitions exist. Never decides what may be forgotten.

use std::sync::Arc;

use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, DeleteOffsets};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::offset_delete::{
    OffsetDeleteRequest, OffsetDeleteResponse, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use heddle_record::PartitionIndex;

use super::{Answer, Call, Refusal, groups};

/// Serves a request to forget offsets.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: OffsetDeleteRequest<'_> = call.decode()?;
    call.check_count("partitions", request.topics.iter().map(|topic| topic.partitions.len()).sum())?;
    if request.group_id.is_empty() {
        return refuse(call, ErrorCode::InvalidGroupId);
    }
    let image = call.core.image();
    let exists = |topic: &str, index| {
        image.topic_named(topic).is_some_and(|topic| topic.partition(PartitionIndex::new(index)).is_some())
    };
    let mut entries = Vec::new();
    for topic in request.topics.iter() {
        let name: Arc<str> = topic.name.into();
        let known = topic.partitions.iter().filter(|it| exists(topic.name, it.partition_index));
        entries.extend(known.map(|it| (Arc::clone(&name), it.partition_index)));
    }
    let delete = DeleteOffsets { group: request.group_id.into(), entries };
    let results = match groups::ask(call, request.group_id, Command::DeleteOffsets(delete)).await {
        Response::DeleteOffsets(Ok(results)) => results,
        Response::DeleteOffsets(Err(error)) | Response::Gone(error) => return refuse(call, error),
        _ => unreachable!("a command is answered in kind"),
    };
    let mut results = results.into_iter();
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let result = match exists(topic.name, partition.partition_index) {
                true => results.next().expect("each entry has its result"),
                false => Err(ErrorCode::UnknownTopicOrPartition),
            };
            let partition_index = partition.partition_index;
            OffsetDeleteResponsePartition { partition_index, error_code: groups::code(result) }
        });
        OffsetDeleteResponseTopic { name: topic.name, partitions: partitions.collect() }
    });
    let topics: Vec<OffsetDeleteResponseTopic<'_>> = topics.collect();
    call.answer(&OffsetDeleteResponse { topics: topics.into(), ..OffsetDeleteResponse::default() })
}

fn refuse(call: &Call, error: ErrorCode) -> Result<Answer, Refusal> {
    call.answer(&OffsetDeleteResponse { error_code: error.code(), ..OffsetDeleteResponse::default() })
}
