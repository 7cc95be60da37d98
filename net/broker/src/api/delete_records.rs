//! DeleteRecords (key 21): moves the start of logs.
//!
//! Owns what a client is told. Never touches a log: its partition does.

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::delete_records::{
    DeleteRecordsPartitionResult, DeleteRecordsRequest, DeleteRecordsResponse, DeleteRecordsTopicResult,
};
use heddle_record::{LogStartOffset, Offset};

use super::topic_view::is_internal;
use super::{Answer, Call, Refusal};
use crate::message::{self, DeleteBefore};
use crate::routing::{self, Scatter, TopicRef};

/// The offset that stands for the high watermark.
const HIGH_WATERMARK: i64 = -1;

/// Serves a request to delete records.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DeleteRecordsRequest<'_> = call.decode()?;
    let image = call.core.image();
    let mut scatter = Scatter::new();
    let mut outcomes: Vec<Option<Result<LogStartOffset, ErrorCode>>> = Vec::new();
    for topic in request.topics.iter() {
        for partition in topic.partitions.iter() {
            let own = call.core.broker_id();
            match routing::find(&image, own, TopicRef::Name(topic.name), partition.partition_index) {
                Ok(log) if image.topic(log.topic).is_some_and(|topic| is_internal(&topic.name)) => {
                    outcomes.push(Some(Err(ErrorCode::InvalidTopicException)));
                }
                Ok(log) => {
                    let before = match partition.offset {
                        HIGH_WATERMARK => DeleteBefore::HighWatermark,
                        offset => DeleteBefore::Offset(Offset::new(offset)),
                    };
                    scatter.push(call.core.owner(log), outcomes.len(), (log, before));
                    outcomes.push(None);
                }
                Err(misrouted) => outcomes.push(Some(Err(misrouted.error))),
            }
        }
    }
    let gather = scatter.post(&call.core, |entries| message::DeleteRecordsRequest { entries }).await;
    gather.collect::<message::DeleteRecordsRequest, _>(&mut outcomes).await;
    respond(call, &request, outcomes)
}

fn respond(
    call: &Call,
    request: &DeleteRecordsRequest<'_>,
    outcomes: Vec<Option<Result<LogStartOffset, ErrorCode>>>,
) -> Result<Answer, Refusal> {
    let mut outcomes = outcomes.into_iter().map(|outcome| outcome.expect("every log was asked and has answered"));
    let result = |partition_index, outcome| match outcome {
        Ok(log_start) => DeleteRecordsPartitionResult {
            partition_index,
            low_watermark: LogStartOffset::get(log_start),
            error_code: ErrorCode::None.code(),
        },
        Err(error) => {
            DeleteRecordsPartitionResult { partition_index, low_watermark: -1, error_code: ErrorCode::code(error) }
        }
    };
    let topics: Vec<DeleteRecordsTopicResult<'_>> = request
        .topics
        .iter()
        .map(|topic| DeleteRecordsTopicResult {
            name: topic.name,
            partitions: topic
                .partitions
                .iter()
                .zip(&mut outcomes)
                .map(|(partition, outcome)| result(partition.partition_index, outcome))
                .collect::<Vec<_>>()
                .into(),
        })
        .collect();
    call.answer(&DeleteRecordsResponse { topics: topics.into(), ..DeleteRecordsResponse::default() })
}
