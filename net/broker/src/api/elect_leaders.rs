//! ElectLeaders (key 43): wishes for an election.
//!
//! Owns the translation between the wire and the decision.

use heddle_cluster::controller::{Election, Fault, elect};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::elect_leaders::{
    ElectLeadersRequest, ElectLeadersResponse, PartitionResult, ReplicaElectionResult, TopicPartitions,
};

use super::{Answer, Call, Refusal, outcome};

/// The first version with an error for the whole request.
const WHOLE_ERROR: i16 = 1;

/// Serves a request for elections.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: ElectLeadersRequest<'_> = call.decode()?;
    let image = call.core.image();
    let election = Election::from_code(request.election_type);
    let whole = match election {
        None => Err(Fault::with(ErrorCode::InvalidRequest, format!("Unknown election type {}", request.election_type))),
        // No time at all is over before anything is done.
        Some(_) if request.timeout_ms <= 0 => Err(Fault::new(ErrorCode::RequestTimedOut)),
        Some(election) => Ok(election),
    };
    let Some(topics) = &request.topic_partitions else {
        // Every partition has the leader that it should have: what needs no election is not told.
        let told = image.topics_by_name("").filter(|_| whole.is_ok());
        let told = told.map(|topic| ReplicaElectionResult { topic: &topic.name, ..Default::default() });
        return answer(call, &whole, told.collect());
    };
    call.check_count("partitions", topics.iter().map(|topic| 1 + topic.partitions.len()).sum())?;
    let decide = |topic: &TopicPartitions<'_>, partition: i32| match &whole {
        Ok(election) => elect(&image, topic.topic, partition, *election),
        Err(fault) => Err(fault.clone()),
    };
    let outcomes: Vec<Vec<(i32, Result<(), Fault>)>> = topics
        .iter()
        .map(|topic| topic.partitions.iter().map(|partition| (partition, decide(&topic, partition))).collect())
        .collect();
    let told = topics.iter().zip(&outcomes).map(|(topic, outcomes)| ReplicaElectionResult {
        topic: topic.topic,
        partition_result: outcomes.iter().map(|(partition, outcome)| result(*partition, outcome)).collect(),
    });
    answer(call, &whole, told.collect())
}

fn answer(
    call: &Call,
    whole: &Result<Election, Fault>,
    results: Vec<ReplicaElectionResult<'_>>,
) -> Result<Answer, Refusal> {
    call.answer(&ElectLeadersResponse {
        error_code: if call.version >= WHOLE_ERROR { outcome::code(whole) } else { ErrorCode::None.code() },
        replica_election_results: results.into(),
        ..ElectLeadersResponse::default()
    })
}

fn result(partition_id: i32, outcome: &Result<(), Fault>) -> PartitionResult<'_> {
    PartitionResult { partition_id, error_code: outcome::code(outcome), error_message: outcome::message(outcome) }
}
