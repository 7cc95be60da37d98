//! Batches of a mebibyte, byte by byte over loopback, to a broker that receives them straight into its log: from senders
//! that are slow, that leave in the middle, that send what cannot be kept. What was acked is what is read, nobody waits for
//! anybody else's bytes, and nothing else is in the log.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic};
use heddle_protocol::messages::produce::{PartitionProduceData, ProduceRequest, ProduceResponse, TopicProduceData};
use heddle_protocol::{ApiKey, Message, Reader, Records, Request, ResponseHeader, Writer, frame};
use heddle_record::{BatchBuilder, BatchOptions, Batches, ProducerEpoch, ProducerId, Sequence, Timestamp};
use heddle_tests::process::Broker;

const TOPIC: &str = "large";
const RECORDS: usize = 10;
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Connection {
    stream: TcpStream,
    correlation_id: i32,
}

impl Connection {
    fn open(broker: &Broker) -> Self {
        let stream = TcpStream::connect(&broker.address).expect("the broker listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a valid time");
        stream.set_nodelay(true).expect("a connection");
        Self { stream, correlation_id: 0 }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    /// The next answer, without header.
    fn receive(&mut self, api: ApiKey, version: i16) -> Vec<u8> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).expect("an answer");
        let mut bytes = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("a length")];
        self.stream.read_exact(&mut bytes).expect("an answer");
        let mut reader = Reader::new(&bytes);
        let header = ResponseHeader::decode(&mut reader, api.response_header_version(version)).expect("a header");
        self.correlation_id += 1;
        assert_eq!(header.correlation_id, self.correlation_id, "answers come in the order of the requests");
        reader.remaining().to_vec()
    }

    /// Error and base offset of the next answer to a produce.
    fn produced(&mut self, version: i16) -> (i16, i64) {
        let bytes = self.receive(ApiKey::Produce, version);
        let response = ProduceResponse::decode(&mut Reader::new(&bytes), version).expect("an answer to a produce");
        let topic = response.responses.first().expect("one topic");
        let partition = topic.partition_responses.first().expect("one partition");
        (partition.error_code, partition.base_offset)
    }

    /// Whether the broker has ended it, after answering nothing more.
    fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

/// A batch of [`RECORDS`] records; `seed` tells batches apart, and is the sequence of `producer`.
fn batch(producer: i64, seed: i32) -> Vec<u8> {
    let options = BatchOptions {
        producer_id: ProducerId::new(producer),
        producer_epoch: ProducerEpoch::new(if producer < 0 { -1 } else { 0 }),
        base_sequence: Sequence::new(if producer < 0 { -1 } else { seed }),
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::new(options);
    for index in 0..RECORDS as u32 {
        let value: Vec<u8> = (0..100_000u32).map(|at| (at.wrapping_mul(31) ^ index ^ seed as u32) as u8).collect();
        builder.push(Timestamp::new(1_700_000_000_000), None, Some(&value), &[]).expect("it fits");
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).expect("it fits");
    bytes
}

/// A whole frame.
fn produce(version: i16, correlation_id: i32, records: &[u8]) -> Vec<u8> {
    let partitions = vec![PartitionProduceData { index: 0, records: Some(Records::Bytes(records)) }];
    let topics = vec![TopicProduceData { name: TOPIC, partition_data: partitions.into(), ..<_>::default() }];
    let request = ProduceRequest { acks: -1, timeout_ms: 30_000, topic_data: topics.into(), ..<_>::default() };
    encoded(version, correlation_id, &request)
}

fn encoded<'a, R: Request<'a>>(version: i16, correlation_id: i32, request: &R) -> Vec<u8> {
    let mut writer = Writer::new();
    frame::encode_request(&mut writer, version, correlation_id, Some("test"), request).expect("it can be written");
    writer.into_bytes()
}

/// The bodies of all batches in the partition: what lies behind offset and epoch.
fn stored(broker: &Broker) -> Vec<Vec<u8>> {
    let mut connection = Connection::open(broker);
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let partition = FetchPartition {
            partition: 0,
            current_leader_epoch: -1,
            fetch_offset: from,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes: 1 << 20,
            ..<_>::default()
        };
        let topic = FetchTopic { topic: TOPIC, partitions: vec![partition].into(), ..<_>::default() };
        let topics = vec![topic].into();
        let request = FetchRequest { replica_id: -1, max_bytes: 1 << 24, session_epoch: -1, topics, ..<_>::default() };
        connection.send(&encoded(12, connection.correlation_id + 1, &request));
        let bytes = connection.receive(ApiKey::Fetch, 12);
        let response = FetchResponse::decode(&mut Reader::new(&bytes), 12).expect("an answer to a fetch");
        let topic = response.responses.first().expect("one topic");
        let Some(Records::Bytes(records)) = topic.partitions.first().expect("one partition").records else {
            panic!("records are never null")
        };
        let before = from;
        for batch in Batches::new(records) {
            let batch = batch.expect("whole batches");
            assert_eq!((batch.base_offset().get(), batch.computed_crc()), (from, batch.crc()));
            all.push(batch.bytes()[17..].to_vec());
            from = batch.next_offset().get();
        }
        if from == before {
            return all;
        }
    }
}

/// Starts a broker with the topic, on a file system that takes O_DIRECT, with each way of IO.
fn on_every_backend(test: impl Fn(&Broker)) {
    for io in ["auto", "blocking"] {
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let broker = Broker::start(data.path(), &["--cores", "1", "--io", io]);
        let created = std::process::Command::new(heddle_tests::process::heddle())
            .args(["topic", "create", TOPIC, "--bootstrap", &broker.address])
            .output()
            .expect("heddle runs");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        test(&broker);
        broker.stop();
    }
}

fn contents(batches: &[Vec<u8>]) -> Vec<Vec<u8>> {
    batches.iter().map(|batch| batch[17..].to_vec()).collect()
}

#[test]
fn pipelined_batches_are_acked_and_read_in_their_order() {
    on_every_backend(|broker| {
        let mut connection = Connection::open(broker);
        let batches: Vec<Vec<u8>> = (0..12).map(|seed| batch(-1, seed)).collect();
        let versions = [7, 8, 9, 10, 11, 12];
        let frames = (1..).zip(&batches).map(|(id, batch)| produce(versions[id as usize % 6], id, batch));
        let all = frames.collect::<Vec<_>>().concat();
        let mut sending = connection.stream.try_clone().expect("a connection");
        std::thread::scope(|scope| {
            scope.spawn(move || sending.write_all(&all).expect("the broker reads"));
            for (id, base) in (1..=12).zip((0..).step_by(RECORDS)) {
                assert_eq!(connection.produced(versions[id % 6]), (0, base), "request {id}");
            }
        });
        assert!(stored(broker) == contents(&batches), "what was sent is what is read");
    });
}

#[test]
fn a_slow_sender_holds_nobody_up() {
    on_every_backend(|broker| {
        let (mut slow, mut fast) = (Connection::open(broker), Connection::open(broker));
        let (late, early) = (batch(-1, 1), batch(-1, 2));
        let frame = produce(9, 1, &late);
        for part in [&frame[..5], &frame[5..400], &frame[400..5000], &frame[5000..700_000]] {
            slow.send(part);
            fast.send(&produce(9, fast.correlation_id + 1, &early));
            assert_eq!(fast.produced(9).0, 0);
        }
        slow.send(&frame[700_000..]);
        assert_eq!(slow.produced(9), (0, 4 * RECORDS as i64));
        let expected = [&early, &early, &early, &early, &late].map(Clone::clone);
        assert!(stored(broker) == contents(&expected));
    });
}

#[test]
fn what_is_not_whole_leaves_nothing() {
    on_every_backend(|broker| {
        let good = batch(-1, 1);
        for cut in [100, 5000, 900_000] {
            let mut leaving = Connection::open(broker);
            leaving.send(&produce(9, 1, &good)[..cut]);
            drop(leaving);
        }
        // The frame ends in tagged fields that are not there.
        let mut malformed = Connection::open(broker);
        let mut frame = produce(9, 1, &good);
        *frame.last_mut().expect("a byte") = 5;
        malformed.send(&frame);
        assert!(malformed.is_closed());
        let mut connection = Connection::open(broker);
        let mut damaged = good.clone();
        damaged[800_000] ^= 0x10;
        connection.send(&[produce(9, 1, &damaged), produce(9, 2, &good)].concat());
        assert_eq!(connection.produced(9), (2, -1), "CORRUPT_MESSAGE");
        assert_eq!(connection.produced(9), (0, 0), "and the next request on the same connection is served");
        assert!(stored(broker) == contents(&[good]));
    });
}

#[test]
fn a_duplicate_is_answered_with_the_originals_offset() {
    on_every_backend(|broker| {
        let mut connection = Connection::open(broker);
        let (first, second) = (batch(5, 0), batch(5, RECORDS as i32));
        let records = RECORDS as i64;
        for (batch, expected) in [
            (&first, (0, 0)),
            (&second, (0, records)),
            (&first, (0, 0)),
            (&second, (0, records)),
            (&batch(5, 90), (45, -1)),
        ] {
            connection.send(&produce(9, connection.correlation_id + 1, batch));
            assert_eq!(connection.produced(9), expected);
        }
        assert!(stored(broker) == contents(&[first, second]));
    });
}
