//! CreatePartitions (key 37): more partitions for topics that exist.
//!
//! Owns the translation between the wire and the controller, which decides.

use heddle_cluster::controller::{Command, CreatePartitions, MorePartitions, Response};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::create_partitions::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreatePartitionsTopic, CreatePartitionsTopicResult,
};
use heddle_record::BrokerId;

use super::{Answer, Call, Refusal};

/// Serves a request for partitions.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: CreatePartitionsRequest<'_> = call.decode()?;
    let size = |topic: CreatePartitionsTopic<'_>| {
        let assignments = topic.assignments.iter().flatten();
        1 + assignments.map(|assignment| 1 + assignment.broker_ids.len()).sum::<usize>()
    };
    call.check_count("topics and replicas", request.topics.iter().map(size).sum())?;
    let topics: Vec<MorePartitions> = request.topics.iter().map(|topic| more(&topic)).collect();
    let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    let command = CreatePartitions { topics, validate_only: request.validate_only };
    let outcomes = match call.control(Command::CreatePartitions(command)).await {
        Ok(Response::CreatePartitions(outcomes)) => outcomes,
        Ok(_) => unreachable!("a command is answered in kind"),
        Err(fault) => names.into_iter().map(|name| (name, Err(fault.clone()))).collect(),
    };
    let results: Vec<CreatePartitionsTopicResult<'_>> = outcomes
        .iter()
        .map(|(name, outcome)| {
            let fault = outcome.as_ref().err();
            CreatePartitionsTopicResult {
                name,
                error_code: fault.map_or(ErrorCode::None, |fault| fault.code).code(),
                error_message: fault.and_then(|fault| fault.message.as_deref()),
            }
        })
        .collect();
    call.answer(&CreatePartitionsResponse { results: results.into(), ..CreatePartitionsResponse::default() })
}

fn more(topic: &CreatePartitionsTopic<'_>) -> MorePartitions {
    let assignments = topic.assignments.as_ref().map(|assignments| {
        assignments.iter().map(|assignment| assignment.broker_ids.iter().map(BrokerId::new).collect()).collect()
    });
    MorePartitions { name: topic.name.to_owned(), count: topic.count, assignments }
}
