//! AlterPartitionReassignments (key 45): wishes for other replicas.
//!
//! Owns the translation between the wire and the decision.

use heddle_cluster::MetadataImage;
use heddle_cluster::controller::{Fault, reassign};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::alter_partition_reassignments::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ReassignablePartition,
    ReassignablePartitionResponse, ReassignableTopic, ReassignableTopicResponse,
};
use heddle_record::BrokerId;

use super::{Answer, Call, Refusal, outcome};

/// Serves a request to move replicas.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: AlterPartitionReassignmentsRequest<'_> = call.decode()?;
    let size = |topic: ReassignableTopic<'_>| {
        let replicas = |partition: ReassignablePartition<'_>| 1 + partition.replicas.map_or(0, |it| it.len());
        1 + topic.partitions.iter().map(replicas).sum::<usize>()
    };
    call.check_count("partitions and replicas", request.topics.iter().map(size).sum())?;
    if request.topics.is_empty() {
        return call.answer(&AlterPartitionReassignmentsResponse {
            allow_replication_factor_change: true,
            error_message: Some(""),
            ..AlterPartitionReassignmentsResponse::default()
        });
    }
    // No time at all is over before anything is done.
    let timed_out = request.timeout_ms <= 0;
    let image = call.core.image();
    let outcomes: Vec<Result<(), Fault>> =
        request
            .topics
            .iter()
            .flat_map(|topic| topic.partitions.into_iter().map(move |partition| (topic.name, partition)))
            .map(|(topic, partition)| {
                if timed_out { Err(Fault::new(ErrorCode::RequestTimedOut)) } else { decide(&image, topic, &partition) }
            })
            .collect();
    let mut left = outcomes.iter();
    let topics = request.topics.iter().map(|topic| ReassignableTopicResponse {
        name: topic.name,
        partitions: topic.partitions.iter().zip(left.by_ref()).map(|(partition, it)| result(&partition, it)).collect(),
    });
    let responses = topics.collect();
    call.answer(&AlterPartitionReassignmentsResponse {
        allow_replication_factor_change: timed_out || request.allow_replication_factor_change,
        error_code: if timed_out { ErrorCode::RequestTimedOut } else { ErrorCode::None }.code(),
        error_message: None,
        responses,
        ..AlterPartitionReassignmentsResponse::default()
    })
}

fn decide(image: &MetadataImage, topic: &str, partition: &ReassignablePartition<'_>) -> Result<(), Fault> {
    let replicas = partition.replicas.as_ref();
    let replicas: Option<Vec<BrokerId>> = replicas.map(|ids| ids.iter().map(BrokerId::new).collect());
    reassign(image, topic, partition.partition_index, replicas.as_deref())
}

fn result<'a>(
    partition: &ReassignablePartition<'_>,
    outcome: &'a Result<(), Fault>,
) -> ReassignablePartitionResponse<'a> {
    ReassignablePartitionResponse {
        partition_index: partition.partition_index,
        error_code: outcome::code(outcome),
        error_message: outcome::message(outcome),
    }
}
