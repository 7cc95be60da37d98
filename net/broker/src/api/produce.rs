//! Produce (key 0): batches into logs.
//!
//! Owns the split by partition, `acks`, and what a producer is told. Never looks into a batch beyond its codec: the
//! engine validates.
//!
//! The body of a large batch may still wait in the socket (`produce/opening.rs`); then it is received into its place.
//!
//! Steps, so that consecutive requests of one connection share a flush: [`begin`] gives every batch its place in its log,
//! [`Pending::settle`] waits until the logs are as sure of them as the producer asks, [`Pending::respond`] says so. Logs of
//! the connection's own core are reached by a call, not by a letter.

mod opening;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use heddle_engine::Staging;
use heddle_io::{Lease, Monotonic};
use heddle_protocol::messages::produce::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceData, PartitionProduceResponse,
    ProduceRequest, ProduceResponse, TopicProduceData, TopicProduceResponse,
};
use heddle_protocol::{ErrorCode, Records, Writer, frame};
use heddle_record::{BrokerId, Compression, HEADER_LEN, LeaderEpoch, RecordBatch};

pub(crate) use opening::{Opening, opening};

use super::topic_view::is_internal;
use super::{Call, Refusal};
use crate::connection::Rest;
use crate::guard;
use crate::message::{Acks, AppendEntry, AppendFault, AppendOutcome, AppendRequest};
use crate::partition::{Partition, Placed};
use crate::routing::{self, Gather, Scatter, TopicRef};

/// The first version whose clients know zstd (KIP-110).
const ZSTD_SINCE: i16 = 7;

/// A produce whose batches have their places.
pub(crate) struct Pending {
    call: Call,
    acks: Acks,
    /// When a producer with [`Acks::All`] gives up.
    deadline: Monotonic,
    /// One for each partition of the request, in order.
    slots: Vec<Slot>,
    /// What was asked of other cores.
    elsewhere: Gather,
}

/// The way of one batch.
enum Slot {
    /// It goes to a log of this core, and has no place yet.
    Routed(Rc<Partition>, Lease),
    /// It has its place in a log of this core.
    Placed(Placed),
    /// Another core was asked: the answer is the one with this number.
    Elsewhere(usize),
    /// What the producer is told, and who leads instead where this broker does not.
    Settled(AppendOutcome, Option<(BrokerId, LeaderEpoch)>),
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
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let deadline = call.core.io().now() + patience;
    let mut scatter = Scatter::new();
    let mut slots = Vec::with_capacity(request.topic_data.len());
    let mut elsewhere = 0..;
    let image = call.core.image();
    for topic in request.topic_data.iter() {
        for partition in topic.partition_data.iter() {
            let entry = match acks {
                Some(_) => entry(&call, &image, &topic, &partition),
                None => Err((AppendFault::new(ErrorCode::InvalidRequiredAcks), None)),
            };
            slots.push(match entry {
                Ok(entry) => match call.core.owner(entry.log) {
                    owner if owner == call.core.index() => match call.core.partition(entry.log) {
                        Ok(partition) => Slot::Routed(partition, entry.batch),
                        Err(error) => Slot::Settled(Err(AppendFault::new(error)), None),
                    },
                    owner => {
                        let place = elsewhere.next().expect("fewer than there are numbers");
                        let batch =
                            call.rest.as_ref().map_or(Ok(entry.batch.clone()), |rest| rest.whole(&entry.batch))?;
                        scatter.push(owner, place, AppendEntry { batch, ..entry });
                        Slot::Elsewhere(place)
                    }
                },
                Err((fault, leader)) => Slot::Settled(Err(fault), leader),
            });
        }
    }
    drop(image);
    let acks = acks.unwrap_or(Acks::Leader);
    let elsewhere = scatter.post(&call.core, |entries| AppendRequest { entries, acks, deadline }).await;
    for slot in &mut slots {
        slot.place(&call, acks, deadline).await?;
    }
    Ok(Pending { call, acks, deadline, slots, elsewhere })
}

impl Slot {
    /// Gives a batch for a log of this core its place there.
    async fn place(&mut self, call: &Call, acks: Acks, deadline: Monotonic) -> Result<(), Refusal> {
        if let Slot::Routed(partition, batch) = self {
            let batch = std::mem::take(batch);
            let placed = {
                // Pinned where they are made, here and below: futures of kilobytes are not to be moved for every request.
                let placing = pin!(async {
                    match &call.rest {
                        None => Ok(partition.place(call.core.io(), batch, acks, deadline).await),
                        Some(rest) => stage(call, partition, &batch, rest, acks, deadline).await,
                    }
                });
                guard::guarded(placing).await?
            };
            *self = match placed {
                Ok(placed) => Slot::Placed(placed),
                Err(fault) => Slot::Settled(Err(fault), None),
            };
        }
        Ok(())
    }
}

/// Gives a batch its place whose body waits in the socket.
///
/// # Errors
/// The connection is over, or the frame does not end as it should: nothing was appended.
async fn stage(
    call: &Call,
    partition: &Rc<Partition>,
    header: &Lease,
    rest: &Rest,
    acks: Acks,
    deadline: Monotonic,
) -> Result<Result<Placed, AppendFault>, Refusal> {
    let (io, bytes) = (call.core.io(), header.first_chunk().expect("of the batch the frame has the header"));
    let len = HEADER_LEN + rest.body_len();
    let staging = partition.stage(io, bytes, len, (acks, deadline), |buffer, count| rest.stage(buffer, count));
    let appended = match staging.await {
        Ok(Staging::Whole) => {
            let batch = rest.whole(header)?;
            return Ok(partition.place(io, batch, acks, deadline).await);
        }
        Ok(Staging::Staged(staged)) => {
            rest.check_end()?;
            staged.commit()
        }
        Ok(Staging::Duplicate(original)) => {
            rest.check_end()?;
            original
        }
        Err(fault) => return Ok(Err(fault)),
    };
    Ok(Ok(Rc::clone(partition).placed(appended, len)))
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
    /// Waits until it is known of every batch whether it is as sure as its producer asks.
    pub(crate) async fn settle(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Placed(placed) = slot {
                let outcome = {
                    let settling = pin!(placed.settle(self.call.core.io(), self.acks, self.deadline));
                    guard::guarded(settling).await
                };
                *slot = Slot::Settled(outcome, None);
            }
        }
        if self.elsewhere.is_empty() {
            return;
        }
        let asked = self.slots.iter().filter(|slot| matches!(slot, Slot::Elsewhere(_))).count();
        let mut outcomes: Vec<Option<AppendOutcome>> = (0..asked).map(|_| None).collect();
        std::mem::take(&mut self.elsewhere).collect::<AppendRequest, _>(&mut outcomes).await;
        for slot in &mut self.slots {
            if let Slot::Elsewhere(place) = slot {
                let outcome = outcomes[*place].take().expect("every log was asked and has answered");
                *slot = Slot::Settled(outcome, None);
            }
        }
    }

    /// Writes what became of each batch; nothing if the producer wants no answer.
    ///
    /// # Errors
    /// A batch failed and the producer wants no answer: it hears of it when the connection closes.
    ///
    /// # Panics
    /// Before [`Pending::settle`] is done.
    pub(crate) fn respond(&self, writer: &mut Writer) -> Result<(), Refusal> {
        let faults = || self.slots.iter().filter_map(|slot| slot.outcome().0.as_ref().err());
        if let Some(fault) = faults().find(|fault| fault.error == ErrorCode::UnknownServerError) {
            tracing::error!(peer = %self.call.session.peer, "a produce failed by our fault: {fault:?}");
        }
        self.call.answered();
        if self.acks == Acks::None {
            return match faults().next() {
                None => Ok(()),
                Some(fault) => Err(Refusal::UnansweredError(format!("{:?}", fault.error))),
            };
        }
        let request: ProduceRequest<'_> = self.call.decode()?;
        let mut slots = self.slots.iter();
        let responses: Vec<TopicProduceResponse<'_>> = request
            .topic_data
            .iter()
            .filter(|topic| !topic.partition_data.is_empty())
            .map(|topic| TopicProduceResponse {
                name: topic.name,
                topic_id: topic.topic_id,
                partition_responses: topic
                    .partition_data
                    .iter()
                    .zip(&mut slots)
                    .map(|(partition, slot)| partition_response(partition.index, slot))
                    .collect::<Vec<_>>()
                    .into(),
            })
            .collect();
        let leaders = self.slots.iter().filter_map(|slot| slot.outcome().1).map(|(leader, _)| leader);
        let endpoints = self.call.endpoints(leaders);
        let node_endpoints: Vec<NodeEndpoint<'_>> = endpoints
            .iter()
            .map(|(id, host, port)| NodeEndpoint { node_id: id.get(), host, port: i32::from(*port), rack: None })
            .collect();
        let response =
            ProduceResponse { responses: responses.into(), throttle_time_ms: 0, node_endpoints: node_endpoints.into() };
        let call = &self.call;
        frame::encode_response(writer, call.key, call.version, call.correlation_id, &response)?;
        call.note_errors(writer);
        Ok(())
    }
}

impl Slot {
    fn outcome(&self) -> (&AppendOutcome, Option<(BrokerId, LeaderEpoch)>) {
        match self {
            Slot::Settled(outcome, leader) => (outcome, *leader),
            _ => panic!("answered before it is known what became of a batch"),
        }
    }
}

fn partition_response(index: i32, slot: &Slot) -> PartitionProduceResponse<'_> {
    let (outcome, leader) = slot.outcome();
    let mut response = outcome_response(index, outcome);
    if let Some((leader, epoch)) = leader {
        response.current_leader = LeaderIdAndEpoch { leader_id: leader.get(), leader_epoch: epoch.get() };
    }
    response
}

fn outcome_response(index: i32, outcome: &AppendOutcome) -> PartitionProduceResponse<'_> {
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
