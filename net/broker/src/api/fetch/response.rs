//! The answer to a fetch: what clients are told of each partition, and where its records go.
//!
//! Owns the response's shape. Never reads a log and never waits.

use std::rc::Rc;

use heddle_engine::Piece;
use heddle_io::Lease;
use heddle_protocol::messages::fetch::{
    EpochEndOffset, FetchResponse, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use heddle_protocol::{Gap, Records, Uuid, Writer, frame};
use heddle_record::{LeaderEpoch, Offset};

use super::gathering::{Slot, Topic};
use crate::api::{Answer, Call, Part, Refusal};
use crate::fetch_sessions::{Found, Live};
use crate::message::{Isolation, ReadData};

/// Takes down in a session what its client is about to be told; for each slot, whether an incremental answer names it.
pub(super) fn tell(live: &Rc<Live>, slots: &[Slot<'_>], isolation: Isolation) -> Vec<bool> {
    let mut session = live.session.borrow_mut();
    let found = |slot: &Slot<'_>| match &slot.outcome {
        Ok(data) => Found {
            has_records: data.bytes > 0,
            is_error: false,
            diverges: data.diverging.is_some(),
            high_watermark: data.limits.high_watermark.get(),
            log_start_offset: data.limits.log_start_offset.get(),
            sleeps: slot.is_at_end(isolation),
        },
        Err(_) => Found {
            has_records: false,
            is_error: true,
            diverges: false,
            high_watermark: -1,
            log_start_offset: -1,
            sleeps: false,
        },
    };
    let news = slots.iter().map(|slot| session.tell(slot.place, found(slot))).collect();
    session.told();
    news
}

/// The answer that names all these partitions: those that nobody has last, as Kafka does.
pub(super) fn all(
    call: &Call,
    mut slots: Vec<Slot<'_>>,
    isolation: Isolation,
    session_id: i32,
) -> Result<Answer, Refusal> {
    if slots.iter().any(|slot| slot.question.is_none()) {
        slots.sort_by_key(|slot| slot.question.is_none());
    }
    let mut responses: Vec<FetchableTopicResponse<'_>> = Vec::new();
    let is_same = |a: &Slot<'_>, b: &Slot<'_>| a.topic.key() == b.topic.key();
    for slots in slots.chunk_by(is_same) {
        let (topic, topic_id) = slots.first().map(|slot| slot.topic.key()).expect("a chunk is never empty");
        let partitions: Vec<PartitionData<'_>> = slots.iter().map(|slot| partition_data(slot, isolation)).collect();
        responses.push(FetchableTopicResponse { topic, topic_id, partitions: partitions.into() });
    }
    let endpoints = call.endpoints(slots.iter().filter_map(|slot| slot.leader).map(|(leader, _)| leader));
    let node_endpoints: Vec<NodeEndpoint<'_>> = endpoints
        .iter()
        .map(|(id, host, port)| NodeEndpoint { node_id: id.get(), host, port: i32::from(*port), rack: None })
        .collect();
    let response = FetchResponse {
        session_id,
        responses: responses.into(),
        node_endpoints: node_endpoints.into(),
        ..FetchResponse::default()
    };
    let mut writer = Writer::new();
    frame::encode_response(&mut writer, call.key, call.version, call.correlation_id, &response)?;
    call.note_errors(&mut writer);
    let (bytes, gaps) = writer.finish();
    let pieces = slots.into_iter().filter_map(|slot| slot.outcome.ok()).map(|data| data.pieces);
    Ok(Answer(fill(Lease::from_vec(bytes), &gaps, pieces)))
}

impl Topic<'_> {
    /// What the response calls the topic: by name or by id.
    fn key(&self) -> (&str, Uuid) {
        match self {
            Topic::Name(name) => (name, Uuid::ZERO),
            Topic::Kept(name) => (name, Uuid::ZERO),
            Topic::Id(id) => ("", *id),
        }
    }
}

/// What a consumer is told of one partition. The records, if there are any, follow from their files.
fn partition_data(slot: &Slot<'_>, isolation: Isolation) -> PartitionData<'static> {
    let mut data = PartitionData {
        partition_index: slot.partition,
        high_watermark: -1,
        last_stable_offset: -1,
        log_start_offset: -1,
        preferred_read_replica: -1,
        records: Some(Records::EMPTY),
        ..PartitionData::default()
    };
    match &slot.outcome {
        Ok(ReadData { limits, bytes, diverging, .. }) => {
            if *bytes > 0 {
                data.records = Some(Records::External { length: *bytes });
            }
            if let Some(end) = diverging {
                data.diverging_epoch = EpochEndOffset {
                    epoch: end.epoch.map_or(-1, LeaderEpoch::get),
                    end_offset: end.end.map_or(-1, Offset::get),
                };
            }
            // No transactions yet: the list of aborted ones is empty for those who ask, null for others.
            data.aborted_transactions = (isolation == Isolation::ReadCommitted).then(|| Vec::new().into());
            data.high_watermark = limits.high_watermark.get();
            data.last_stable_offset = limits.last_stable_offset.get();
            data.log_start_offset = limits.log_start_offset.get();
        }
        Err(fault) => {
            data.error_code = fault.error.code();
            data.aborted_transactions = slot.question.is_none().then(|| Vec::new().into());
        }
    }
    if let Some((leader, epoch)) = slot.leader {
        data.current_leader = LeaderIdAndEpoch { leader_id: leader.get(), leader_epoch: epoch.get() };
    }
    data
}

/// Puts the pieces of each partition into its gap.
fn fill(bytes: Lease, gaps: &[Gap], pieces: impl Iterator<Item = Vec<Piece>>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut position = 0;
    let mut filled = pieces.filter(|pieces| !pieces.is_empty());
    for gap in gaps {
        parts.push(Part::Bytes(bytes.slice(position..gap.position)));
        position = gap.position;
        let pieces = filled.next().expect("each gap was left for a partition's pieces");
        let start = parts.len();
        parts.extend(pieces.into_iter().map(|piece| match piece {
            Piece::File { file, position, len } => Part::File { file, position, length: len },
            Piece::Memory(lease) => Part::Bytes(lease),
        }));
        let length: usize = parts[start..].iter().map(Part::len).sum();
        assert_eq!(length, gap.length, "the pieces of a read are as long as it says");
    }
    parts.push(Part::Bytes(bytes.slice(position..bytes.len())));
    parts
}
