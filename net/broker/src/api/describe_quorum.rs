//! DescribeQuorum (key 55): who keeps the metadata log, and how far each is.
//!
//! Owns the answer of a broker that keeps it alone.

use heddle_protocol::messages::describe_quorum::{
    DescribeQuorumRequest, DescribeQuorumResponse, Listener, Node, PartitionResult, ReplicaState, TopicResult,
};
use heddle_protocol::{ErrorCode, Uuid};

use super::{Answer, Call, Refusal};

/// The metadata log by the name that clients know.
const METADATA_TOPIC: &str = "__cluster_metadata";
/// The first version that says where the others are.
const NODES: i16 = 2;
/// What Kafka says of every other log.
const NOT_HERE: &str = "This server does not host this topic-partition.";

/// Serves a question for the quorum.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeQuorumRequest<'_> = call.decode()?;
    call.check_count("partitions", request.topics.iter().map(|topic| 1 + topic.partitions.len()).sum())?;
    let asked: Vec<(&str, Vec<i32>)> = request
        .topics
        .iter()
        .map(|topic| (topic.topic_name, topic.partitions.iter().map(|partition| partition.partition_index).collect()))
        .collect();
    // The question for this one log, or none that can be answered.
    let is_ours = matches!(asked.as_slice(), [(METADATA_TOPIC, partitions)] if partitions == &[0]);
    let (host, port) = call.own_endpoint();
    let listener = Listener { name: &call.session.listener.name, host: &host, port };
    let node = Node { node_id: call.core.broker_id().get(), listeners: vec![listener].into() };
    let topics = asked.iter().map(|(topic_name, partitions)| TopicResult {
        topic_name,
        partitions: partitions.iter().map(|index| if is_ours { quorum(call) } else { refused(*index) }).collect(),
    });
    call.answer(&DescribeQuorumResponse {
        error_message: Some(""),
        topics: topics.collect(),
        nodes: if is_ours && call.version >= NODES { vec![node] } else { Vec::new() }.into(),
        ..DescribeQuorumResponse::default()
    })
}

/// This broker leads, and nobody follows.
fn quorum(call: &Call) -> PartitionResult<'static> {
    let own = call.core.broker_id().get();
    let end = i64::try_from(call.core.image().records()).expect("a log has fewer records");
    let now = call.core.io().wall_clock();
    let voter = ReplicaState {
        replica_id: own,
        replica_directory_id: Uuid::ZERO,
        log_end_offset: end,
        last_fetch_timestamp: now,
        last_caught_up_timestamp: now,
    };
    PartitionResult {
        error_message: Some(""),
        leader_id: own,
        high_watermark: end,
        current_voters: vec![voter].into(),
        ..PartitionResult::default()
    }
}

fn refused(partition_index: i32) -> PartitionResult<'static> {
    PartitionResult {
        partition_index,
        error_code: ErrorCode::UnknownTopicOrPartition.code(),
        error_message: Some(NOT_HERE),
        ..PartitionResult::default()
    }
}
