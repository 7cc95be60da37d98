//! Produce (key 0): batches into logs.
//!
//! Owns the split by partition, `acks`, and what a producer is told. Never looks into a batch beyond its codec: the
//! engine validates.
//!
//! Two steps, so that consecutive requests of one connection share a flush: [`begin`] gives every batch its place in its
//! log, [`Pending::finish`] waits until the logs are as sure of them as the producer asks.

use std::time::Duration;

use heddle_protocol::messages::produce::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceData, PartitionProduceResponse,
    ProduceRequest, ProduceResponse, TopicProduceData, TopicProduceResponse,
};
use heddle_protocol::{ErrorCode, Records};
use heddle_record::{BrokerId, Compression, LeaderEpoch, RecordBatch};

use super::topic_view::is_internal;
use super::{Answer, Call, Refusal};
use crate::message::{Acks, AppendEntry, AppendFault, AppendOutcome, AppendRequest};
use crate::routing::{self, Gather, Scatter, TopicRef};

/// The first version whose clients know zstd (KIP-110).
const ZSTD_SINCE: i16 = 7;

/// A produce whose batches have their places.
pub(crate) struct Pending {
    call: Call,
    acks: Acks,
    gather: Gather,
    /// One for each partition of the request, in order; what is missing comes from the logs.
    outcomes: Vec<Option<AppendOutcome>>,
    /// Who leads the partitions that are not led here.
    leaders: Vec<(usize, (BrokerId, LeaderEpoch))>,
}

/// Hands every batch to its log, in order.
///
/// # Errors
/// The bytes are no produce request.
pub(crate) async fn begin(call: Call) -> Result<Pending, Refusal> {
    let request: ProduceRequest<'_> = call.decode()?;
    let acks = match request.acks {
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        -1 => Some(Acks::All),
        _ => None,
    };
    let mut scatter = Scatter::new();
    let mut outcomes = Vec::new();
    let mut leaders = Vec::new();
    let image = call.core.image();
    for topic in request.topic_data.iter() {
        for partition in topic.partition_data.iter() {
            let place = outcomes.len();
            let entry = match acks {
                Some(_) => entry(&call, &image, &topic, &partition),
                None => Err((AppendFault::new(ErrorCode::InvalidRequiredAcks), None)),
            };
            outcomes.push(match entry {
                Ok(entry) => {
                    scatter.push(call.core.owner(entry.log), place, entry);
                    None
                }
                Err((fault, leader)) => {
                    leaders.extend(leader.map(|leader| (place, leader)));
                    Some(Err(fault))
                }
            });
        }
    }
    let acks = acks.unwrap_or(Acks::Leader);
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let deadline = call.core.io().now() + patience;
    let gather = scatter.post(&call.core, |entries| AppendRequest { entries, acks, deadline }).await;
    Ok(Pending { call, acks, gather, outcomes, leaders })
}

type Unroutable = (AppendFault, Option<(BrokerId, LeaderEpoch)>);

/// The batch for one partition, and the log it goes to.
fn entry(
    call: &Call,
    image: &heddle_cluster::MetadataImage,
    topic: &TopicProduceData<'_>,
    partition: &PartitionProduceData<'_>,
) -> Result<AppendEntry, Unroutable> {
    let named = if call.version >= 13 { TopicRef::Id(topic.topic_id) } else { TopicRef::Name(topic.name) };
    let log = routing::find(image, call.core.broker_id(), named, partition.index)
        .map_err(|misrouted| (AppendFault::new(misrouted.error), misrouted.leader))?;
    if image.topic(log.topic).is_some_and(|topic| is_internal(&topic.name)) {
        return Err((AppendFault::with_message(ErrorCode::InvalidTopicException, "clients do not write here"), None));
    }
    let invalid = |message: &str| (AppendFault::with_message(ErrorCode::InvalidRecord, message), None);
    let Some(Records::Bytes(bytes)) = &partition.records else { return Err(invalid("there are no records")) };
    if bytes.is_empty() {
        return Err(invalid("there are no records"));
    }
    if call.version < ZSTD_SINCE
        && let Ok(batch) = RecordBatch::peek(bytes)
        && batch.compression() == Some(Compression::Zstd)
    {
        return Err((AppendFault::new(ErrorCode::UnsupportedCompressionType), None));
    }
    Ok(AppendEntry { log, batch: call.lease_of(bytes) })
}

impl Pending {
    /// Waits for the logs, and says what became of each batch.
    ///
    /// # Errors
    /// A batch failed and the producer wants no answer: it hears of it when the connection closes.
    pub(crate) async fn finish(self) -> Result<Answer, Refusal> {
        let Self { call, acks, gather, mut outcomes, leaders } = self;
        gather.collect::<AppendRequest, _>(&mut outcomes).await;
        let outcomes: Vec<AppendOutcome> =
            outcomes.into_iter().map(|outcome| outcome.expect("every log was asked and has answered")).collect();
        let faults = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        if let Some(fault) = faults().find(|fault| fault.error == ErrorCode::UnknownServerError) {
            tracing::error!(peer = %call.session.peer, "a produce failed by our fault: {fault:?}");
        }
        if acks == Acks::None {
            return match faults().next() {
                None => Ok(Answer::Silence),
                Some(fault) => Err(Refusal::UnansweredError(format!("{:?}", fault.error))),
            };
        }
        respond(&call, &outcomes, &leaders)
    }
}

fn respond(
    call: &Call,
    outcomes: &[AppendOutcome],
    leaders: &[(usize, (BrokerId, LeaderEpoch))],
) -> Result<Answer, Refusal> {
    let request: ProduceRequest<'_> = call.decode()?;
    let mut places = 0..outcomes.len();
    let responses: Vec<TopicProduceResponse<'_>> = request
        .topic_data
        .iter()
        .map(|topic| TopicProduceResponse {
            name: topic.name,
            topic_id: topic.topic_id,
            partition_responses: topic
                .partition_data
                .iter()
                .zip(&mut places)
                .map(|(partition, place)| {
                    let mut response = partition_response(partition.index, &outcomes[place]);
                    if let Some((_, (leader, epoch))) = leaders.iter().find(|(of, _)| *of == place) {
                        response.current_leader =
                            LeaderIdAndEpoch { leader_id: leader.get(), leader_epoch: epoch.get() };
                    }
                    response
                })
                .collect::<Vec<_>>()
                .into(),
        })
        .collect();
    let endpoints = call.endpoints(leaders.iter().map(|(_, (leader, _))| *leader));
    let node_endpoints: Vec<NodeEndpoint<'_>> = endpoints
        .iter()
        .map(|(id, host, port)| NodeEndpoint { node_id: id.get(), host, port: i32::from(*port), rack: None })
        .collect();
    call.answer(&ProduceResponse {
        responses: responses.into(),
        throttle_time_ms: 0,
        node_endpoints: node_endpoints.into(),
    })
}

fn partition_response(index: i32, outcome: &AppendOutcome) -> PartitionProduceResponse<'_> {
    match outcome {
        Ok(accepted) => PartitionProduceResponse {
            index,
            base_offset: accepted.base_offset.get(),
            log_append_time_ms: accepted.log_append_time.get(),
            log_start_offset: accepted.log_start_offset.get(),
            ..PartitionProduceResponse::default()
        },
        Err(fault) => PartitionProduceResponse {
            index,
            error_code: fault.error.code(),
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: fault.log_start_offset.map_or(-1, |offset| offset.get()),
            record_errors: fault
                .records
                .iter()
                .map(|(index, message)| BatchIndexAndErrorMessage {
                    batch_index: *index,
                    batch_index_error_message: Some(message),
                })
                .collect::<Vec<_>>()
                .into(),
            error_message: fault.message.as_deref(),
            ..PartitionProduceResponse::default()
        },
    }
}
