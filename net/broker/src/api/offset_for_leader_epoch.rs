//! OffsetForLeaderEpoch (key 23): where leader epochs end, so that a reader can find where its history leaves the log's.
//!
//! Owns what a client is told. Never touches a log: its partition does.

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::offset_for_leader_epoch::{
    EpochEndOffset, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, OffsetForLeaderTopicResult,
};
use heddle_record::{LeaderEpoch, Offset};

use super::{Answer, Call, Refusal};
use crate::message::{EpochEnd, EpochEndsRequest, EpochQuestion};
use crate::routing::{self, Scatter, TopicRef};

/// Serves a question about epochs.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: OffsetForLeaderEpochRequest<'_> = call.decode()?;
    let image = call.core.image();
    let mut scatter = Scatter::new();
    let mut outcomes: Vec<Option<Result<EpochEnd, ErrorCode>>> = Vec::new();
    for topic in request.topics.iter() {
        for partition in topic.partitions.iter() {
            let own = call.core.broker_id();
            match routing::find(&image, own, TopicRef::Name(topic.topic), partition.partition) {
                Ok(log) => {
                    let current = partition.current_leader_epoch;
                    let question = EpochQuestion {
                        log,
                        current_leader_epoch: (current >= 0).then_some(LeaderEpoch::new(current)),
                        epoch: LeaderEpoch::new(partition.leader_epoch),
                    };
                    scatter.push(call.core.owner(log), outcomes.len(), question);
                    outcomes.push(None);
                }
                Err(misrouted) => outcomes.push(Some(Err(misrouted.error))),
            }
        }
    }
    let gather = scatter.post(&call.core, |entries| EpochEndsRequest { entries }).await;
    gather.collect::<EpochEndsRequest, _>(&mut outcomes).await;
    respond(call, &request, outcomes)
}

fn respond(
    call: &Call,
    request: &OffsetForLeaderEpochRequest<'_>,
    outcomes: Vec<Option<Result<EpochEnd, ErrorCode>>>,
) -> Result<Answer, Refusal> {
    let mut outcomes = outcomes.into_iter().map(|outcome| outcome.expect("every log was asked and has answered"));
    let result = |partition, outcome: Result<EpochEnd, ErrorCode>| match outcome {
        Ok(end) => EpochEndOffset {
            error_code: ErrorCode::None.code(),
            partition,
            leader_epoch: end.epoch.map_or(-1, LeaderEpoch::get),
            end_offset: end.end.map_or(-1, Offset::get),
        },
        Err(error) => EpochEndOffset { error_code: error.code(), partition, leader_epoch: -1, end_offset: -1 },
    };
    let topics: Vec<OffsetForLeaderTopicResult<'_>> = request
        .topics
        .iter()
        .map(|topic| OffsetForLeaderTopicResult {
            topic: topic.topic,
            partitions: topic
                .partitions
                .iter()
                .zip(&mut outcomes)
                .map(|(partition, outcome)| result(partition.partition, outcome))
                .collect::<Vec<_>>()
                .into(),
        })
        .collect();
    call.answer(&OffsetForLeaderEpochResponse { topics: topics.into(), ..OffsetForLeaderEpochResponse::default() })
}
