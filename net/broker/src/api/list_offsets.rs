//! ListOffsets (key 2): offsets by time, and the ends of logs.
//!
//! Owns the meaning of the negative timestamps, by version. Never searches a log: its partition does.

use std::collections::BTreeSet;

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::list_offsets::{
    ListOffsetsPartition, ListOffsetsPartitionResponse, ListOffsetsRequest, ListOffsetsResponse,
    ListOffsetsTopicResponse,
};
use heddle_record::{LeaderEpoch, Offset, Timestamp};

use super::{Answer, Call, Refusal};
use crate::message::{self, FoundOffset, Isolation, OffsetQuestion, Sought};
use crate::routing::{self, Scatter, TopicRef};

/// Serves a request for offsets.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: ListOffsetsRequest<'_> = call.decode()?;
    let isolation = if request.isolation_level == 1 { Isolation::ReadCommitted } else { Isolation::ReadUncommitted };
    let mut scatter = Scatter::new();
    let mut outcomes: Vec<Option<Result<FoundOffset, ErrorCode>>> = Vec::new();
    let twice = twice(&request);
    for topic in request.topics.iter() {
        for partition in topic.partitions.iter() {
            if twice.contains(&(topic.name, partition.partition_index)) {
                outcomes.push(Some(Err(ErrorCode::InvalidRequest)));
                continue;
            }
            match question(call, topic.name, &partition, request.replica_id) {
                Ok(question) => {
                    scatter.push(call.core.owner(question.log), outcomes.len(), question);
                    outcomes.push(None);
                }
                Err(error) => outcomes.push(Some(Err(error))),
            }
        }
    }
    let gather = scatter.post(&call.core, |entries| message::ListOffsetsRequest { entries, isolation }).await;
    gather.collect::<message::ListOffsetsRequest, _>(&mut outcomes).await;
    respond(call, &request, outcomes)
}

/// The partitions that a request names more than once: they get one answer, and it is an error.
fn twice<'a>(request: &ListOffsetsRequest<'a>) -> BTreeSet<(&'a str, i32)> {
    let mut seen = BTreeSet::new();
    let topics = request.topics.iter();
    let all =
        topics.flat_map(|topic| topic.partitions.iter().map(|it| (topic.name, it.partition_index)).collect::<Vec<_>>());
    all.filter(|partition| !seen.insert(*partition)).collect()
}

fn question(
    call: &Call,
    topic: &str,
    partition: &ListOffsetsPartition,
    replica_id: i32,
) -> Result<OffsetQuestion, ErrorCode> {
    if replica_id >= 0 {
        // Case 24: only brokers see past the high watermark, and this cluster has one.
        return Err(ErrorCode::ClusterAuthorizationFailed);
    }
    let sought = sought(partition.timestamp, call.version).ok_or(ErrorCode::UnsupportedVersion)?;
    let image = call.core.image();
    let log = routing::find(&image, call.core.broker_id(), TopicRef::Name(topic), partition.partition_index)
        .map_err(|misrouted| misrouted.error)?;
    let epoch = partition.current_leader_epoch;
    let current_leader_epoch = (epoch >= 0).then_some(LeaderEpoch::new(epoch));
    Ok(OffsetQuestion { log, current_leader_epoch, sought })
}

/// What a timestamp asks for; nothing where the version does not know it.
fn sought(timestamp: i64, version: i16) -> Option<Sought> {
    match timestamp {
        0.. => Some(Sought::AtOrAfter(Timestamp::new(timestamp))),
        -1 => Some(Sought::Latest),
        -2 => Some(Sought::Earliest),
        -3 if version >= 7 => Some(Sought::MaxTimestamp),
        // All of a log is local: its earliest local offset is its earliest, and none has been tiered or waits for it.
        -4 if version >= 8 => Some(Sought::Earliest),
        -5 if version >= 9 => Some(Sought::Tiered),
        -6 if version >= 11 => Some(Sought::Tiered),
        _ => None,
    }
}

fn respond(
    call: &Call,
    request: &ListOffsetsRequest<'_>,
    outcomes: Vec<Option<Result<FoundOffset, ErrorCode>>>,
) -> Result<Answer, Refusal> {
    let mut outcomes = outcomes.into_iter().map(|outcome| outcome.expect("every log was asked and has answered"));
    let response = |partition: ListOffsetsPartition, outcome: Result<FoundOffset, ErrorCode>| {
        let unknown = FoundOffset { offset: None, timestamp: Timestamp::NONE, leader_epoch: None };
        let (error, found) = match outcome {
            Ok(found) => (ErrorCode::None, found),
            Err(error) => (error, unknown),
        };
        ListOffsetsPartitionResponse {
            partition_index: partition.partition_index,
            error_code: error.code(),
            timestamp: found.timestamp.get(),
            offset: found.offset.map_or(-1, Offset::get),
            // Versions before 4 have no place for it, and do not miss it.
            leader_epoch: if call.version >= 4 { found.leader_epoch.map_or(-1, LeaderEpoch::get) } else { -1 },
        }
    };
    let (twice, mut answered) = (twice(request), BTreeSet::new());
    let topics: Vec<ListOffsetsTopicResponse<'_>> = request
        .topics
        .iter()
        .map(|topic| ListOffsetsTopicResponse {
            name: topic.name,
            partitions: topic
                .partitions
                .iter()
                .zip(&mut outcomes)
                .filter(|(partition, _)| {
                    let place = (topic.name, partition.partition_index);
                    !twice.contains(&place) || answered.insert(place)
                })
                .map(|(partition, outcome)| response(partition, outcome))
                .collect::<Vec<_>>()
                .into(),
        })
        .collect();
    call.answer(&ListOffsetsResponse { topics: topics.into(), ..ListOffsetsResponse::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_special_timestamp_has_its_first_version() {
        let first = |timestamp| (1..=11).find(|version| sought(timestamp, *version).is_some());
        assert_eq!(first(-1), Some(1));
        assert_eq!(first(-2), Some(1));
        assert_eq!(first(-3), Some(7));
        assert_eq!(first(-4), Some(8));
        assert_eq!(first(-5), Some(9));
        assert_eq!(first(-6), Some(11));
        assert_eq!(first(-7), None);
        assert_eq!(sought(0, 1), Some(Sought::AtOrAfter(Timestamp::new(0))));
    }
}
