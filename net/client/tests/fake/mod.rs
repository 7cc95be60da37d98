//! Brokers that live in the simulator and keep one partition in memory: enough of the protocol for a client, Kafka's rules
//! for idempotent producers, and trouble on request.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use heddle_io::sim::{Host, Simulator};
use heddle_io::{Buffer, Io, Lease, ListenOptions, Socket};
use heddle_protocol::messages::api_versions::{ApiVersion, ApiVersionsResponse};
use heddle_protocol::messages::fetch::{FetchRequest, FetchResponse, FetchableTopicResponse, PartitionData};
use heddle_protocol::messages::init_producer_id::InitProducerIdResponse;
use heddle_protocol::messages::list_offsets::{
    ListOffsetsPartitionResponse, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use heddle_protocol::messages::metadata::{
    MetadataRequest, MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use heddle_protocol::messages::produce::{
    PartitionProduceResponse, ProduceRequest, ProduceResponse, TopicProduceResponse,
};
use heddle_protocol::{ApiKey, ErrorCode, Message, Reader, Records, Uuid, Writer, frame};
use heddle_record::patch::patch_in_place;
use heddle_record::{Offset, Origin, RecordBatch, validate};

/// The one topic, with one partition.
pub(crate) const TOPIC: &str = "t";
pub(crate) const PORT: u16 = 9092;
const TOPIC_ID: Uuid = Uuid([7; 16]);
/// Batches that a broker remembers of a producer.
const REMEMBERED: usize = 5;

/// What goes wrong, each out of a thousand produce requests.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trouble {
    /// The leadership moves to the other broker, before the request.
    pub(crate) leader_moves: u64,
    /// A retriable error, nothing written.
    pub(crate) refused: u64,
    /// Written, but the answer is an error or the connection ends before it.
    pub(crate) answer_lost: u64,
    /// The connection ends, nothing written.
    pub(crate) request_lost: u64,
}

/// The cluster's state, as all its brokers agree on it.
pub(crate) struct Cluster {
    pub(crate) api_versions_max: i16,
    /// Newest versions of Produce, Fetch and Metadata.
    pub(crate) versions_max: [i16; 3],
    pub(crate) trouble: Trouble,
    addresses: Vec<SocketAddr>,
    leader: usize,
    leader_epoch: i32,
    batches: Vec<Vec<u8>>,
    producers: BTreeMap<i64, Remembered>,
    next_producer_id: i64,
    random: u64,
}

struct Remembered {
    epoch: i16,
    /// First sequence, last sequence, base offset.
    batches: VecDeque<(i32, i32, i64)>,
}

/// What a request gets.
enum Answer {
    Bytes(Vec<u8>),
    /// The connection ends.
    Nothing,
}

impl Cluster {
    /// Starts `count` brokers, each on a host of its own.
    pub(crate) fn start(simulator: &Simulator, count: usize) -> (Rc<RefCell<Cluster>>, Vec<Host>) {
        let hosts: Vec<Host> = (0..count).map(|id| simulator.host(&format!("broker-{id}"))).collect();
        let cluster = Cluster {
            api_versions_max: 4,
            versions_max: [13, 18, 13],
            trouble: Trouble::default(),
            addresses: hosts.iter().map(|host| SocketAddr::new(host.address(), PORT)).collect(),
            leader: 0,
            leader_epoch: 0,
            batches: Vec::new(),
            producers: BTreeMap::new(),
            next_producer_id: 1000,
            random: simulator.seed() | 1,
        };
        let cluster = Rc::new(RefCell::new(cluster));
        for (id, host) in hosts.iter().enumerate() {
            let io = host.start_core();
            io.spawn(accept(io.clone(), Rc::clone(&cluster), id)).detach();
        }
        (cluster, hosts)
    }

    /// Where the first broker listens.
    pub(crate) fn bootstrap(&self) -> String {
        self.addresses[0].to_string()
    }

    /// Every record's value, in order.
    pub(crate) fn values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for bytes in &self.batches {
            let batch = RecordBatch::peek(bytes).expect("a batch was checked");
            for record in batch.records() {
                let value = record.expect("a record").value.expect("a value");
                values.push(String::from_utf8(value.to_vec()).expect("text"));
            }
        }
        values
    }

    fn end_offset(&self) -> i64 {
        self.batches.last().map_or(0, |bytes| RecordBatch::peek(bytes).expect("checked").next_offset().get())
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        // xorshift64: the simulator's own dice are for the simulator.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < per_mille
    }

    /// Appends as a leader of Kafka does: the offset, or why not.
    fn append(&mut self, bytes: &[u8]) -> Result<i64, ErrorCode> {
        let batch = validate(bytes, Origin::Producer).map_err(|_| ErrorCode::CorruptMessage)?;
        let base_offset = self.end_offset();
        if batch.header().has_producer() {
            let first = batch.base_sequence().get();
            let epoch = batch.producer_epoch().get();
            let (id, last) = (batch.producer_id().get(), batch.last_sequence().get());
            let state = self.producers.entry(id).or_insert_with(|| Remembered { epoch, batches: VecDeque::new() });
            if epoch < state.epoch {
                return Err(ErrorCode::InvalidProducerEpoch);
            }
            if epoch > state.epoch {
                if first != 0 {
                    return Err(ErrorCode::OutOfOrderSequenceNumber);
                }
                *state = Remembered { epoch, batches: VecDeque::new() };
            }
            if let Some((.., at)) = state.batches.iter().find(|it| (it.0, it.1) == (first, last)) {
                return Ok(*at);
            }
            if state.batches.back().is_some_and(|it| it.1 + 1 != first) {
                return Err(ErrorCode::OutOfOrderSequenceNumber);
            }
            state.batches.push_back((first, last, base_offset));
            if state.batches.len() > REMEMBERED {
                state.batches.pop_front();
            }
        }
        let mut stored = bytes.to_vec();
        patch_in_place(&mut stored, |header| header.set_base_offset(Offset::new(base_offset)));
        self.batches.push(stored);
        Ok(base_offset)
    }

    fn answer(&mut self, broker: usize, request: &[u8]) -> Answer {
        let start = frame::RequestStart::peek(request).expect("a request has a start");
        let api = ApiKey::from_i16(start.api_key).expect("the client asks what was offered");
        if api == ApiKey::ApiVersions {
            return Answer::Bytes(self.api_versions(start.api_version, start.correlation_id));
        }
        let mut reader = Reader::new(request);
        let (_, header) = frame::decode_request_header(&mut reader).expect("the client's headers are right");
        let (version, id) = (header.request_api_version, header.correlation_id);
        match api {
            ApiKey::Metadata => Answer::Bytes(self.metadata(&mut reader, version, id)),
            ApiKey::InitProducerId => {
                let producer_id = self.next_producer_id;
                self.next_producer_id += 1;
                let response = InitProducerIdResponse { producer_id, ..InitProducerIdResponse::default() };
                Answer::Bytes(encode(api, version, id, &response))
            }
            ApiKey::Produce => self.produce(broker, &mut reader, version, id),
            ApiKey::Fetch => Answer::Bytes(self.fetch(broker, &mut reader, version, id)),
            ApiKey::ListOffsets => Answer::Bytes(self.list_offsets(&mut reader, version, id)),
            other => panic!("the client asked for {other}, which was not offered"),
        }
    }

    fn api_versions(&self, version: i16, id: i32) -> Vec<u8> {
        let [produce, fetch, metadata] = self.versions_max;
        let offered = [
            (ApiKey::Produce, 0, produce),
            (ApiKey::Fetch, 4, fetch),
            (ApiKey::ListOffsets, 1, 6),
            (ApiKey::Metadata, 1, metadata),
            (ApiKey::ApiVersions, 0, self.api_versions_max),
            (ApiKey::InitProducerId, 0, 5),
        ];
        let api_keys =
            offered.map(|(api, min_version, max_version)| ApiVersion { api_key: api.code(), min_version, max_version });
        let known = version <= self.api_versions_max;
        let error_code = if known { 0 } else { ErrorCode::UnsupportedVersion.code() };
        let response =
            ApiVersionsResponse { error_code, api_keys: api_keys.to_vec().into(), ..ApiVersionsResponse::default() };
        encode(ApiKey::ApiVersions, if known { version } else { 0 }, id, &response)
    }

    fn metadata(&self, reader: &mut Reader<'_>, version: i16, id: i32) -> Vec<u8> {
        let request = MetadataRequest::decode(reader, version).expect("the client's requests are right");
        let hosts: Vec<String> = self.addresses.iter().map(|it| it.ip().to_string()).collect();
        let brokers = (0..).zip(&hosts).map(|(node_id, host)| MetadataResponseBroker {
            node_id,
            host,
            port: i32::from(PORT),
            ..MetadataResponseBroker::default()
        });
        let wanted = request.topics.iter().flatten().filter_map(|it| it.name);
        let topics = wanted.map(|name| {
            let partition = MetadataResponsePartition {
                leader_id: i32::try_from(self.leader).expect("few brokers"),
                leader_epoch: self.leader_epoch,
                ..MetadataResponsePartition::default()
            };
            let known = name == TOPIC;
            MetadataResponseTopic {
                error_code: if known { 0 } else { ErrorCode::UnknownTopicOrPartition.code() },
                name: Some(name),
                topic_id: TOPIC_ID,
                partitions: if known { vec![partition].into() } else { vec![].into() },
                ..MetadataResponseTopic::default()
            }
        });
        let (brokers, topics) = (brokers.collect(), topics.collect());
        let response = MetadataResponse { brokers, topics, cluster_id: Some("fake"), ..MetadataResponse::default() };
        encode(ApiKey::Metadata, version, id, &response)
    }

    fn produce(&mut self, broker: usize, reader: &mut Reader<'_>, version: i16, id: i32) -> Answer {
        let request = ProduceRequest::decode(reader, version).expect("the client's requests are right");
        let topic = request.topic_data.first().expect("one topic");
        let partition = topic.partition_data.first().expect("one partition");
        let bytes = partition.records.and_then(|it| it.bytes()).expect("records");
        let trouble = self.trouble;
        if self.addresses.len() > 1 && self.chance(trouble.leader_moves) {
            self.leader = (self.leader + 1) % self.addresses.len();
            self.leader_epoch += 1;
        }
        if self.chance(trouble.request_lost) {
            return Answer::Nothing;
        }
        let result = if broker != self.leader {
            Err(ErrorCode::NotLeaderOrFollower)
        } else if self.chance(trouble.refused) {
            Err(ErrorCode::NotEnoughReplicas)
        } else {
            self.append(bytes)
        };
        let result = match result {
            Ok(_) if self.chance(trouble.answer_lost) => match self.chance(500) {
                true => return Answer::Nothing,
                false => Err(ErrorCode::NotEnoughReplicasAfterAppend),
            },
            result => result,
        };
        if request.acks == 0 {
            return Answer::Bytes(Vec::new());
        }
        let response = PartitionProduceResponse {
            error_code: result.err().map_or(0, ErrorCode::code),
            base_offset: result.unwrap_or(-1),
            ..PartitionProduceResponse::default()
        };
        let response = TopicProduceResponse {
            name: topic.name,
            topic_id: topic.topic_id,
            partition_responses: vec![response].into(),
        };
        let response = ProduceResponse { responses: vec![response].into(), ..ProduceResponse::default() };
        Answer::Bytes(encode(ApiKey::Produce, version, id, &response))
    }

    /// Whole batches and a piece of the next, as much as was asked for; the first whole whatever its size.
    fn fetch(&mut self, broker: usize, reader: &mut Reader<'_>, version: i16, id: i32) -> Vec<u8> {
        let request = FetchRequest::decode(reader, version).expect("the client's requests are right");
        let topic = request.topics.first().expect("one topic");
        let partition = topic.partitions.first().expect("one partition");
        let mut records = Vec::new();
        for bytes in &self.batches {
            let batch = RecordBatch::peek(bytes).expect("checked");
            if batch.last_offset().get() >= partition.fetch_offset {
                records.extend(bytes);
            }
        }
        let first = RecordBatch::peek(&records).map_or(0, |batch| batch.len());
        let bytes_max = usize::try_from(partition.partition_max_bytes).expect("a limit").max(first);
        records.truncate(bytes_max);
        let beyond = partition.fetch_offset > self.end_offset();
        let error = match (broker == self.leader, beyond) {
            (false, _) => ErrorCode::NotLeaderOrFollower,
            (true, true) => ErrorCode::OffsetOutOfRange,
            (true, false) => ErrorCode::None,
        };
        let response = PartitionData {
            error_code: error.code(),
            high_watermark: self.end_offset(),
            records: Some(Records::Bytes(if error == ErrorCode::None { &records } else { &[] })),
            ..PartitionData::default()
        };
        let (topic, topic_id) = (topic.topic, topic.topic_id);
        let response = FetchableTopicResponse { topic, topic_id, partitions: vec![response].into() };
        let response = FetchResponse { responses: vec![response].into(), ..FetchResponse::default() };
        encode(ApiKey::Fetch, version, id, &response)
    }

    fn list_offsets(&self, reader: &mut Reader<'_>, version: i16, id: i32) -> Vec<u8> {
        let request = ListOffsetsRequest::decode(reader, version).expect("the client's requests are right");
        let asked = request.topics.first().and_then(|it| it.partitions.first()).expect("one partition");
        let offset = if asked.timestamp == -1 { self.end_offset() } else { 0 };
        let partition = ListOffsetsPartitionResponse { offset, ..ListOffsetsPartitionResponse::default() };
        let topic = ListOffsetsTopicResponse { name: TOPIC, partitions: vec![partition].into() };
        let response = ListOffsetsResponse { topics: vec![topic].into(), ..ListOffsetsResponse::default() };
        encode(ApiKey::ListOffsets, version, id, &response)
    }
}

fn encode<'a, M: Message<'a>>(api: ApiKey, version: i16, correlation_id: i32, response: &M) -> Vec<u8> {
    let mut writer = Writer::new();
    frame::encode_response(&mut writer, api, version, correlation_id, response).expect("the versions are right");
    writer.into_bytes()
}

async fn accept(io: Io, cluster: Rc<RefCell<Cluster>>, broker: usize) {
    let address = cluster.borrow().addresses[broker];
    let listener = io.listen(address, ListenOptions::default()).expect("the port is free");
    while let Ok((socket, _)) = io.accept(&listener).await {
        io.spawn(serve(io.clone(), Rc::clone(&cluster), broker, socket)).detach();
    }
}

async fn serve(io: Io, cluster: Rc<RefCell<Cluster>>, broker: usize, socket: Socket) {
    while let Some(request) = read_frame(&io, &socket).await {
        let answer = cluster.borrow_mut().answer(broker, &request);
        match answer {
            Answer::Bytes(bytes) if bytes.is_empty() => {}
            Answer::Bytes(bytes) => {
                if io.send(&socket, vec![Lease::from_vec(bytes)]).await.is_err() {
                    return;
                }
            }
            Answer::Nothing => return socket.shutdown(),
        }
    }
}

/// The next frame without its length; `None` when the connection has ended.
pub(crate) async fn read_frame(io: &Io, socket: &Socket) -> Option<Vec<u8>> {
    let length = read_exactly(io, socket, 4).await?;
    let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
    read_exactly(io, socket, length as usize).await
}

async fn read_exactly(io: &Io, socket: &Socket, count: usize) -> Option<Vec<u8>> {
    let mut buffer = Buffer::with_capacity(count);
    while buffer.len() < count {
        let (received, filled) = io.recv(socket, buffer).await;
        buffer = filled;
        if !received.is_ok_and(|count| count > 0) {
            return None;
        }
    }
    Some(buffer.to_vec())
}
