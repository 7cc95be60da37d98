//! Decoding what a broker and a consumer see most, by our codec and by the crate `kafka-protocol`.
//!
//! Both decode the same bytes (made by ours) and then look at every partition, because ours decodes an array's elements
//! when they are looked at. Produce has 10 partitions of one 16 KiB batch each, Fetch 100 partitions in 10 topics, its
//! response the same with one 1 KiB batch each; "small" is one partition with 1 KiB.
//!
//! `cargo bench -p heddle-bench --bench codec`
#![forbid(unsafe_code)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Bencher, Criterion, Throughput};
use heddle_bench::batch;
use heddle_protocol::messages::{fetch, produce};
use heddle_protocol::{Message, Reader, Records, Writer};
use heddle_record::Compression;
use kafka_protocol::messages as theirs;
use kafka_protocol::protocol::Decodable;

const PRODUCE: i16 = 9;
const FETCH: i16 = 12;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, topics, partitions, size) in [("small", 1, 1, 1 << 11), ("10 partitions", 2, 5, 16 << 10)] {
        produce_request(&mut criterion, name, &Shape::new(topics, partitions, size));
    }
    for (name, topics, partitions) in [("small", 1, 1), ("100 partitions", 10, 10)] {
        let shape = Shape::new(topics, partitions, 1 << 11);
        fetch_request(&mut criterion, name, &shape);
        fetch_response(&mut criterion, name, &shape);
    }
    criterion.final_summary();
}

/// What a message is made of.
struct Shape {
    topics: Vec<String>,
    partitions: i32,
    batch: Vec<u8>,
}

impl Shape {
    fn new(topics: usize, partitions: i32, batch_size: usize) -> Self {
        let topics = (0..topics).map(|topic| format!("orders-of-region-{topic}")).collect();
        Shape { topics, partitions, batch: batch(batch_size, Compression::None) }
    }

    fn records(&self) -> Option<Records<'_>> {
        Some(Records::Bytes(&self.batch))
    }
}

fn encoded<'a>(message: &impl Message<'a>, version: i16) -> Vec<u8> {
    let mut writer = Writer::new();
    message.encode(&mut writer, version).expect("the sample fits its version");
    writer.into_bytes()
}

fn compare(
    criterion: &mut Criterion,
    group: &str,
    name: &str,
    bytes: &[u8],
    ours: impl Fn(&[u8]) -> usize,
    theirs: impl Fn(&mut Bytes) -> usize,
) {
    let shared = Bytes::copy_from_slice(bytes);
    assert_eq!(ours(bytes), theirs(&mut shared.clone()), "both see the same");
    let mut group = criterion.benchmark_group(format!("{group}, {name}"));
    group.throughput(Throughput::Elements(1));
    group.bench_function("heddle-protocol", |bench: &mut Bencher<'_>| bench.iter(|| ours(black_box(bytes))));
    group.bench_function("kafka-protocol", |bench| bench.iter(|| theirs(&mut black_box(&shared).clone())));
    group.finish();
}

fn produce_request(criterion: &mut Criterion, name: &str, shape: &Shape) {
    let partition = |index| produce::PartitionProduceData { index, records: shape.records() };
    let topic = |name| produce::TopicProduceData {
        name,
        partition_data: (0..shape.partitions).map(partition).collect::<Vec<_>>().into(),
        ..Default::default()
    };
    let topics: Vec<_> = shape.topics.iter().map(String::as_str).map(topic).collect();
    let request =
        produce::ProduceRequest { acks: -1, timeout_ms: 30_000, topic_data: topics.into(), ..Default::default() };
    let ours = |bytes: &[u8]| {
        let request = produce::ProduceRequest::decode(&mut Reader::new(bytes), PRODUCE).expect("the sample is good");
        let partitions = request.topic_data.iter().flat_map(|topic| topic.partition_data);
        partitions.map(|partition| partition.index as usize + length(partition.records)).sum()
    };
    let theirs = |bytes: &mut Bytes| {
        let request = theirs::ProduceRequest::decode(bytes, PRODUCE).expect("the sample is good");
        let partitions = request.topic_data.iter().flat_map(|topic| &topic.partition_data);
        partitions.map(|partition| partition.index as usize + partition.records.as_ref().map_or(0, Bytes::len)).sum()
    };
    compare(criterion, "produce request", name, &encoded(&request, PRODUCE), ours, theirs);
}

fn fetch_request(criterion: &mut Criterion, name: &str, shape: &Shape) {
    let partition = |partition| fetch::FetchPartition {
        partition,
        fetch_offset: 1 << 33,
        partition_max_bytes: 1 << 20,
        ..Default::default()
    };
    let topic = |topic| fetch::FetchTopic {
        topic,
        partitions: (0..shape.partitions).map(partition).collect::<Vec<_>>().into(),
        ..Default::default()
    };
    let topics: Vec<_> = shape.topics.iter().map(String::as_str).map(topic).collect();
    let request = fetch::FetchRequest { max_wait_ms: 500, topics: topics.into(), ..Default::default() };
    let ours = |bytes: &[u8]| {
        let request = fetch::FetchRequest::decode(&mut Reader::new(bytes), FETCH).expect("the sample is good");
        let partitions = request.topics.iter().flat_map(|topic| topic.partitions);
        partitions.map(|partition| partition.partition as usize + partition.fetch_offset as usize).sum()
    };
    let theirs = |bytes: &mut Bytes| {
        let request = theirs::FetchRequest::decode(bytes, FETCH).expect("the sample is good");
        let partitions = request.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.map(|partition| partition.partition as usize + partition.fetch_offset as usize).sum()
    };
    compare(criterion, "fetch request", name, &encoded(&request, FETCH), ours, theirs);
}

fn fetch_response(criterion: &mut Criterion, name: &str, shape: &Shape) {
    let partition = |partition_index| fetch::PartitionData {
        partition_index,
        high_watermark: 1 << 33,
        records: shape.records(),
        ..Default::default()
    };
    let topic = |topic| fetch::FetchableTopicResponse {
        topic,
        partitions: (0..shape.partitions).map(partition).collect::<Vec<_>>().into(),
        ..Default::default()
    };
    let topics: Vec<_> = shape.topics.iter().map(String::as_str).map(topic).collect();
    let response = fetch::FetchResponse { responses: topics.into(), ..Default::default() };
    let ours = |bytes: &[u8]| {
        let response = fetch::FetchResponse::decode(&mut Reader::new(bytes), FETCH).expect("the sample is good");
        let partitions = response.responses.iter().flat_map(|topic| topic.partitions);
        partitions.map(|partition| partition.high_watermark as usize + length(partition.records)).sum()
    };
    let theirs = |bytes: &mut Bytes| {
        let response = theirs::FetchResponse::decode(bytes, FETCH).expect("the sample is good");
        let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
        partitions.map(|p| p.high_watermark as usize + p.records.as_ref().map_or(0, Bytes::len)).sum()
    };
    compare(criterion, "fetch response", name, &encoded(&response, FETCH), ours, theirs);
}

fn length(records: Option<Records<'_>>) -> usize {
    match records {
        Some(Records::Bytes(bytes)) => bytes.len(),
        _ => 0,
    }
}
