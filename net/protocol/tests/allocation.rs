//! Decoding allocates nothing, counted by an allocator: neither the messages of the hot path, walked to their last field, nor
//! bytes that lie about how much is to come.
#![expect(clippy::unwrap_used, reason = "what a test unwraps is its own data")]

use allocation_counter::measure;
use heddle_protocol::messages::fetch::{FetchRequest, FetchResponse};
use heddle_protocol::messages::metadata::{MetadataRequest, MetadataResponse};
use heddle_protocol::messages::produce::{PartitionProduceData, ProduceRequest, ProduceResponse, TopicProduceData};
use heddle_protocol::{Array, Message, Reader, Records, Writer, frame};
use serde_json::Value;

/// The bytes of every vector of a message and their versions.
fn vectors(file: &str, message: &str) -> Vec<(i16, Vec<u8>)> {
    let path = format!("{}/testdata/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines = lines.filter(|line| line["message"] == message);
    let bytes =
        |hex: &str| (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    lines
        .map(|line| (i16::try_from(line["version"].as_i64().unwrap()).unwrap(), bytes(line["hex"].as_str().unwrap())))
        .collect()
}

/// Decodes each vector and lets `visit` count what is in it; nothing of that may allocate.
macro_rules! decodes_without_allocating {
    ($file:literal, $kind:literal, $message:ident, $visit:expr) => {
        let mut elements = 0;
        for (version, bytes) in vectors($file, $kind) {
            let allocations = measure(|| {
                let message = $message::decode(&mut Reader::new(&bytes), version).unwrap();
                let visit: fn(&$message<'_>) -> usize = $visit;
                elements += visit(&message);
            });
            assert_eq!(allocations.count_total, 0, "{} {version}", $message::NAME);
        }
        assert!(elements > 20, "{} has only {elements} elements in all vectors", $message::NAME);
    };
}

#[test]
fn produce_decodes_without_allocating() {
    decodes_without_allocating!("00_Produce.jsonl", "request", ProduceRequest, |request| {
        let partitions = request.topic_data.iter().flat_map(|topic| topic.partition_data);
        partitions.filter(|partition| partition.records.is_some()).count()
    });
    decodes_without_allocating!("00_Produce.jsonl", "response", ProduceResponse, |response| {
        let partitions = response.responses.iter().flat_map(|topic| topic.partition_responses);
        partitions.map(|partition| 1 + partition.record_errors.iter().count()).sum()
    });
}

#[test]
fn fetch_decodes_without_allocating() {
    decodes_without_allocating!("01_Fetch.jsonl", "request", FetchRequest, |request| {
        let fetched: usize = request.topics.iter().map(|topic| topic.partitions.iter().count()).sum();
        let forgotten = request.forgotten_topics_data.iter().flat_map(|topic| topic.partitions);
        fetched + forgotten.filter(|partition| *partition != 0).count()
    });
    decodes_without_allocating!("01_Fetch.jsonl", "response", FetchResponse, |response| {
        let partitions = response.responses.iter().flat_map(|topic| topic.partitions);
        partitions.map(|partition| 1 + partition.aborted_transactions.map_or(0, |all| all.iter().count())).sum()
    });
}

#[test]
fn metadata_decodes_without_allocating() {
    decodes_without_allocating!("03_Metadata.jsonl", "request", MetadataRequest, |request| {
        request.topics.as_ref().map_or(0, |topics| topics.iter().count())
    });
    decodes_without_allocating!("03_Metadata.jsonl", "response", MetadataResponse, |response| {
        let partitions = response.topics.iter().flat_map(|topic| topic.partitions);
        partitions.flat_map(|partition| partition.replica_nodes).count()
    });
}

#[test]
fn the_header_of_a_request_decodes_without_allocating() {
    let mut writer = Writer::new();
    frame::encode_request(&mut writer, 12, 1, Some("client"), &FetchRequest::default()).unwrap();
    let bytes = writer.into_bytes();
    let allocations = measure(|| {
        let mut reader = Reader::new(&bytes[frame::LENGTH_BYTES..]);
        frame::decode_request_header(&mut reader).unwrap();
        FetchRequest::decode(&mut reader, 12).unwrap();
    });
    assert_eq!(allocations.count_total, 0);
}

/// Case 66 and its like: a count is believed only as far as bytes follow it.
#[test]
fn a_count_that_lies_costs_nothing() {
    let two_billion = [0x7f, 0xff, 0xff, 0xff];
    let compact = [0x80, 0x80, 0x80, 0x80, 0x08];
    let allocations = measure(|| {
        assert!(MetadataRequest::decode(&mut Reader::new(&two_billion), 1).is_err());
        assert!(MetadataRequest::decode(&mut Reader::new(&compact), 9).is_err());
        assert!(ProduceRequest::decode(&mut Reader::new(&[&[0; 8][..], &two_billion].concat()), 3).is_err());
    });
    // The one allocation is the `concat` above.
    assert_eq!(allocations.count_total, 1);
}

/// Twenty million tagged fields, or so it says, before anybody has said who they are.
#[test]
fn a_header_of_many_tags_costs_nothing() {
    let mut header = vec![0, 18, 0, 3, 0, 0, 0, 1, 0xff, 0xff];
    header.extend_from_slice(&[0x80, 0xda, 0xc4, 0x09]);
    header.extend_from_slice(&[7, 0].repeat(1000));
    let allocations = measure(|| assert!(frame::decode_request_header(&mut Reader::new(&header)).is_err()));
    assert_eq!(allocations.count_total, 0);
}

/// Records go out by another way: what is allocated is the frame around them.
#[test]
fn external_records_are_not_copied() {
    let partition = PartitionProduceData { index: 1, records: Some(Records::External { length: 1 << 30 }) };
    let topic = TopicProduceData { name: "t", partition_data: vec![partition].into(), ..Default::default() };
    let request = ProduceRequest { topic_data: Array::from(vec![topic]), ..Default::default() };
    let mut total = 0;
    let allocations = measure(|| {
        let mut writer = Writer::new();
        frame::encode_request(&mut writer, 9, 1, None, &request).unwrap();
        total = writer.total_length();
    });
    assert!(total > 1 << 30, "{total}");
    assert!(allocations.bytes_total < 1024, "{allocations:?}");
}
