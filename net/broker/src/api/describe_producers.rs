//! DescribeProducers (key 61): the producers that a partition remembers.
//!
//! Owns what a client is told. Never touches a log: its partition does.

use heddle_cluster::controller::check_topic_name;
use heddle_engine::producer_state::Producer;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::describe_producers::{
    DescribeProducersRequest, DescribeProducersResponse, PartitionResponse, ProducerState, TopicResponse,
};
use heddle_record::ProducerId;

use super::{Answer, Call, Refusal};
use crate::message::ProducersRequest;
use crate::routing::{self, Scatter, TopicRef};

/// What Kafka says of a topic that it does not know.
const NOT_HERE: &str = "This server does not host this topic-partition.";

/// The producers of a partition, or the error and the words for it.
type Found = Result<Vec<(ProducerId, Producer)>, (ErrorCode, Option<String>)>;

/// Serves a question for producers.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeProducersRequest<'_> = call.decode()?;
    call.check_count("partitions", request.topics.iter().map(|topic| 1 + topic.partition_indexes.len()).sum())?;
    let mut asked = Vec::new();
    for topic in request.topics.iter() {
        asked.extend(topic.partition_indexes.iter().map(|partition| (topic.name, partition)));
    }
    let mut found = find(call, &asked).await.into_iter().zip(&asked);
    let mut topics: Vec<(&str, Vec<(i32, Found)>)> = Vec::new();
    for topic in request.topics.iter() {
        let partitions = found.by_ref().take(topic.partition_indexes.len());
        topics.push((topic.name, partitions.map(|(found, (_, index))| (*index, found)).collect()));
    }
    let told = topics.iter().map(|(name, partitions)| TopicResponse {
        name,
        partitions: partitions.iter().map(|(index, found)| partition(*index, found)).collect(),
    });
    call.answer(&DescribeProducersResponse { topics: told.collect(), ..DescribeProducersResponse::default() })
}

async fn find(call: &Call, asked: &[(&str, i32)]) -> Vec<Found> {
    let image = call.core.image();
    let mut scatter = Scatter::new();
    let mut refused = Vec::with_capacity(asked.len());
    for (place, (topic, partition)) in asked.iter().enumerate() {
        let outcome = match check_topic_name(topic) {
            Err(reason) => Err((ErrorCode::InvalidTopicException, Some(format!("Topic name is invalid: {reason}")))),
            Ok(()) if image.topic_named(topic).is_none() => {
                Err((ErrorCode::UnknownTopicOrPartition, Some(NOT_HERE.to_owned())))
            }
            Ok(()) => routing::find(&image, call.core.broker_id(), TopicRef::Name(topic), *partition)
                .map_err(|misrouted| (misrouted.error, None)),
        };
        refused.push(match outcome {
            Ok(log) => {
                scatter.push(call.core.owner(log), place, log);
                None
            }
            Err(error) => Some(error),
        });
    }
    let mut answers: Vec<_> = asked.iter().map(|_| None).collect();
    let gather = scatter.post(&call.core, |logs| ProducersRequest { logs }).await;
    gather.collect::<ProducersRequest, _>(&mut answers).await;
    let settle = |(refused, answer): (Option<_>, Option<Result<_, ErrorCode>>)| match refused {
        Some(error) => Err(error),
        None => answer.expect("every log that was asked has answered").map_err(|error| (error, None)),
    };
    refused.into_iter().zip(answers).map(settle).collect()
}

fn partition(partition_index: i32, found: &Found) -> PartitionResponse<'_> {
    match found {
        Ok(producers) => PartitionResponse {
            partition_index,
            active_producers: producers.iter().map(|(id, producer)| state(*id, producer)).collect(),
            ..PartitionResponse::default()
        },
        Err((error, message)) => PartitionResponse {
            partition_index,
            error_code: error.code(),
            error_message: message.as_deref(),
            ..PartitionResponse::default()
        },
    }
}

fn state(id: ProducerId, producer: &Producer) -> ProducerState {
    let last = producer.batches.last().map(|batch| batch.last_sequence.get());
    ProducerState {
        producer_id: id.get(),
        producer_epoch: i32::from(producer.epoch.get()),
        last_sequence: last.unwrap_or(-1),
        last_timestamp: producer.active_at.get(),
        // No coordinator has written here.
        coordinator_epoch: -1,
        current_txn_start_offset: -1,
    }
}
