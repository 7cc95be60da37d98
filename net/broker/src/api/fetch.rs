//! Fetch (key 1): batches out of logs, as they are stored.
//!
//! Owns min bytes, max bytes, max wait and the long poll. Never clamps what a reader may see:
//! [`crate::partition::Partition::read`] does. Records go out as pieces of files and memory; none is copied here.
//!
//! Every fetch is answered whole, with session id 0, which says that no session was made: clients then name all their
//! partitions each time.

use std::time::Duration;

use heddle_engine::{FirstBatch, Piece};
use heddle_io::{Lease, Monotonic};
use heddle_protocol::messages::fetch::{
    EpochEndOffset, FetchPartition, FetchRequest, FetchResponse, FetchableTopicResponse, LeaderIdAndEpoch,
    NodeEndpoint, PartitionData,
};
use heddle_protocol::{ErrorCode, Gap, Records, Writer, frame};
use heddle_record::{BrokerId, LeaderEpoch, Offset};

use super::{Answer, Call, Part, Refusal};
use crate::concurrently::{Either, either};
use crate::mailbox::CoreIndex;
use crate::message::{Isolation, Poll, ReadData, ReadEntry, ReadFault, ReadOutcome, ReadRequest};
use crate::routing::{self, Scatter, TopicRef};
use crate::waiters::Listed;

/// How long a poll waits at one go: a poll that nobody listens to any more stays armed no longer than this.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Partitions that one request may name.
const PARTITIONS_MAX: usize = 200_000;

/// Serves a fetch: reads, waits for more if there is not enough, and answers.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: FetchRequest<'_> = call.decode()?;
    if request.replica_id >= 0 || request.replica_state.replica_id >= 0 {
        // Case 24: only brokers replicate, and this cluster has one.
        return refuse(call, &request, ErrorCode::ClusterAuthorizationFailed);
    }
    if is_incremental(call, &request) {
        return refuse(call, &request, ErrorCode::FetchSessionIdNotFound);
    }
    let mut gathering = Gathering::new(call, &request)?;
    gathering.read_all().await;
    gathering.wait().await;
    gathering.respond(&request)
}

/// Whether the request goes on with a session. None was ever made.
fn is_incremental(call: &Call, request: &FetchRequest<'_>) -> bool {
    call.version >= 7 && !matches!(request.session_epoch, 0 | -1)
}

/// Refuses a fetch as a whole: in one code where the version has a place for it, else in each partition.
fn refuse(call: &Call, request: &FetchRequest<'_>, error: ErrorCode) -> Result<Answer, Refusal> {
    let refused = |partition: FetchPartition| PartitionData {
        partition_index: partition.partition,
        error_code: error.code(),
        high_watermark: -1,
        records: Some(Records::Bytes(&[])),
        ..PartitionData::default()
    };
    let responses: Vec<FetchableTopicResponse<'_>> = if call.version >= 7 {
        Vec::new()
    } else {
        request
            .topics
            .iter()
            .map(|topic| FetchableTopicResponse {
                topic: topic.topic,
                topic_id: topic.topic_id,
                partitions: topic.partitions.iter().map(refused).collect::<Vec<_>>().into(),
            })
            .collect()
    };
    call.answer(&FetchResponse { error_code: error.code(), responses: responses.into(), ..FetchResponse::default() })
}

/// A fetch on its way: what was asked, and what has been read so far.
struct Gathering<'a> {
    call: &'a Call,
    slots: Vec<Slot>,
    isolation: Isolation,
    bytes_min: usize,
    bytes_max: usize,
    deadline: Monotonic,
    listed: Listed,
    /// Whether reads arm the poll: only once it is known that there is not enough.
    arms: bool,
}

/// One partition of the request.
struct Slot {
    /// Which core to ask, and what; nothing where the partition cannot be reached.
    question: Option<(CoreIndex, ReadEntry)>,
    outcome: ReadOutcome,
    leader: Option<(BrokerId, LeaderEpoch)>,
}

impl Slot {
    fn bytes(&self) -> usize {
        self.outcome.as_ref().map_or(0, |data| data.bytes)
    }

    /// Whether there is something to tell at once, whatever the number of bytes.
    fn is_urgent(&self) -> bool {
        self.outcome.as_ref().map_or(true, |data| data.diverging.is_some())
    }
}

impl<'a> Gathering<'a> {
    fn new(call: &'a Call, request: &FetchRequest<'_>) -> Result<Self, Refusal> {
        let image = call.core.image();
        let mut slots = Vec::new();
        for topic in request.topics.iter() {
            let named = if call.version >= 13 { TopicRef::Id(topic.topic_id) } else { TopicRef::Name(topic.topic) };
            for partition in topic.partitions.iter() {
                if slots.len() == PARTITIONS_MAX {
                    return Err(Refusal::TooMany { what: "partitions", limit: PARTITIONS_MAX });
                }
                slots.push(slot(call, &image, named, &partition, slots.len()));
            }
        }
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        let limit = call.core.config().fetch_bytes_max;
        Ok(Self {
            call,
            slots,
            isolation: if request.isolation_level == 1 { Isolation::ReadCommitted } else { Isolation::ReadUncommitted },
            bytes_min: usize::try_from(request.min_bytes).unwrap_or(0).min(limit),
            bytes_max: usize::try_from(request.max_bytes).unwrap_or(0).min(limit),
            deadline: call.core.io().now() + wait,
            listed: Listed::new(&call.core),
            arms: false,
        })
    }

    /// Reads every partition, each core's in one question.
    async fn read_all(&mut self) {
        let all: Vec<usize> = (0..self.slots.len()).collect();
        self.read(&all).await;
    }

    /// Reads some partitions again. What the others have found stays.
    async fn read(&mut self, places: &[usize]) {
        let kept: usize = self.slots.iter().map(Slot::bytes).sum();
        let kept = kept - places.iter().map(|place| self.slots[*place].bytes()).sum::<usize>();
        let bytes_max = self.bytes_max.saturating_sub(kept);
        let first_batch = if kept == 0 { FirstBatch::AtLeastOne } else { FirstBatch::WithinLimit };
        let mut scatter = Scatter::new();
        let mut outcomes: Vec<Option<ReadOutcome>> = Vec::new();
        for place in places {
            if let Some((core, entry)) = self.slots[*place].question {
                scatter.push(core, outcomes.len(), entry);
                outcomes.push(None);
            }
        }
        let (isolation, arm) = (self.isolation, self.arm());
        let question = |entries| ReadRequest { entries, isolation, bytes_max, first_batch, arm };
        let gather = scatter.post(&self.call.core, question).await;
        gather.collect::<ReadRequest, _>(&mut outcomes).await;
        let mut outcomes = outcomes.into_iter();
        for place in places {
            if self.slots[*place].question.is_some() {
                let outcome = outcomes.next().flatten();
                self.slots[*place].outcome = outcome.expect("every log was asked and has answered");
            }
        }
        self.trim();
    }

    /// Cores read without knowing of each other: what they found together beyond the limit is left for the next fetch.
    /// The first partition that has anything keeps it.
    fn trim(&mut self) {
        let mut bytes_left = self.bytes_max;
        let mut is_first = true;
        for slot in &mut self.slots {
            let Ok(data) = &mut slot.outcome else { continue };
            if data.bytes == 0 {
                continue;
            }
            if data.bytes > bytes_left && !is_first {
                data.pieces.clear();
                data.bytes = 0;
            }
            bytes_left = bytes_left.saturating_sub(data.bytes);
            is_first = false;
        }
    }
}

impl Gathering<'_> {
    /// Waits until there is enough to answer, or the client's patience ends, or the connection does.
    async fn wait(&mut self) {
        let core = &self.call.core;
        if self.is_enough() || core.io().now() >= self.deadline {
            return;
        }
        self.arms = true;
        self.read_all().await;
        while !self.is_enough() {
            let left = self.deadline.since(self.call.core.io().now());
            if left.is_zero() || self.call.session.is_leaving() {
                return;
            }
            let news = std::rc::Rc::clone(&self.listed.news);
            let patience = self.call.core.io().timeout(left.min(WAIT_MAX), news.next());
            match either(self.call.session.left(), patience).await {
                Either::First(()) => return,
                Either::Second(Ok(changed)) => self.read(&changed).await,
                Either::Second(Err(_elapsed)) => self.read_all().await,
            }
        }
    }

    fn is_enough(&self) -> bool {
        let bytes: usize = self.slots.iter().map(Slot::bytes).sum();
        self.slots.is_empty() || bytes >= self.bytes_min || self.slots.iter().any(Slot::is_urgent)
    }

    /// The poll to wake when a partition changes, once this fetch waits for that.
    fn arm(&self) -> Option<Poll> {
        let core = &self.call.core;
        let expires = self.deadline.min(core.io().now() + WAIT_MAX);
        self.arms.then(|| Poll { core: core.index(), number: self.listed.number, expires })
    }

    fn respond(self, request: &FetchRequest<'_>) -> Result<Answer, Refusal> {
        let call = self.call;
        let mut slots = self.slots.iter();
        let responses: Vec<FetchableTopicResponse<'_>> = request
            .topics
            .iter()
            .map(|topic| FetchableTopicResponse {
                topic: topic.topic,
                topic_id: topic.topic_id,
                partitions: topic
                    .partitions
                    .iter()
                    .zip(&mut slots)
                    .map(|(partition, slot)| partition_data(partition.partition, slot, self.isolation))
                    .collect::<Vec<_>>()
                    .into(),
            })
            .collect();
        let endpoints = call.endpoints(self.slots.iter().filter_map(|slot| slot.leader).map(|(leader, _)| leader));
        let node_endpoints: Vec<NodeEndpoint<'_>> = endpoints
            .iter()
            .map(|(id, host, port)| NodeEndpoint { node_id: id.get(), host, port: i32::from(*port), rack: None })
            .collect();
        let response = FetchResponse {
            responses: responses.into(),
            node_endpoints: node_endpoints.into(),
            ..FetchResponse::default()
        };
        let mut writer = Writer::new();
        frame::encode_response(&mut writer, call.key, call.version, call.correlation_id, &response)?;
        let (bytes, gaps) = writer.finish();
        let pieces = self.slots.into_iter().filter_map(|slot| slot.outcome.ok()).map(|data| data.pieces);
        Ok(Answer(fill(Lease::from_vec(bytes), &gaps, pieces)))
    }
}

/// The slot of one partition of a request.
fn slot(
    call: &Call,
    image: &heddle_cluster::MetadataImage,
    topic: TopicRef<'_>,
    partition: &FetchPartition,
    place: usize,
) -> Slot {
    let epoch = |epoch: i32| (epoch >= 0).then_some(LeaderEpoch::new(epoch));
    match routing::find(image, call.core.broker_id(), topic, partition.partition) {
        Ok(log) => {
            let entry = ReadEntry {
                slot: place,
                log,
                from: Offset::new(partition.fetch_offset),
                bytes_max: usize::try_from(partition.partition_max_bytes).unwrap_or(0),
                current_leader_epoch: epoch(partition.current_leader_epoch),
                last_fetched_epoch: epoch(partition.last_fetched_epoch),
            };
            let unread = Err(ReadFault::from(ErrorCode::UnknownServerError));
            Slot { question: Some((call.core.owner(log), entry)), outcome: unread, leader: None }
        }
        Err(misrouted) => {
            Slot { question: None, outcome: Err(ReadFault::from(misrouted.error)), leader: misrouted.leader }
        }
    }
}

/// What a consumer is told of one partition. The records, if there are any, follow from their files.
fn partition_data(index: i32, slot: &Slot, isolation: Isolation) -> PartitionData<'static> {
    let mut data = PartitionData {
        partition_index: index,
        high_watermark: -1,
        last_stable_offset: -1,
        log_start_offset: -1,
        preferred_read_replica: -1,
        records: Some(Records::EMPTY),
        ..PartitionData::default()
    };
    let limits = match &slot.outcome {
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
            Some(*limits)
        }
        Err(fault) => {
            data.error_code = fault.error.code();
            // Kafka's list is empty where a partition is not found, and null where it cannot be read.
            if slot.question.is_some() {
                data.aborted_transactions = None;
            }
            None
        }
    };
    if let Some(limits) = limits {
        data.high_watermark = limits.high_watermark.get();
        data.last_stable_offset = limits.last_stable_offset.get();
        data.log_start_offset = limits.log_start_offset.get();
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
