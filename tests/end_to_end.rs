//! The broker as users meet it: the binary in a process of its own, over loopback, with a real client that is not ours
//! (rskafka). What was acked is there after `kill -9`, at the offset that was acked.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{TimeZone, Utc};
use heddle_tests::process::Broker;
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;

const FETCH_BYTES: std::ops::Range<i32> = 1..4_000_000;

/// `true` runs longer versions of what is random here.
fn thorough() -> bool {
    std::env::var_os("HEDDLE_THOROUGH").is_some()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts")
}

async fn connect(address: &str) -> Client {
    ClientBuilder::new(vec![address.to_owned()]).build().await.expect("the broker answers")
}

async fn partition(address: &str, topic: &str, index: i32) -> PartitionClient {
    let client = connect(address).await;
    client.partition_client(topic, index, UnknownTopicHandling::Retry).await.expect("the partition has a leader")
}

async fn create(address: &str, topic: &str, partitions: i32) {
    let client = connect(address).await;
    let controller = client.controller_client().expect("every broker takes admin requests");
    controller.create_topic(topic, partitions, 1, 10_000).await.expect("the topic is created");
}

fn record(value: String) -> Record {
    let timestamp = Utc.timestamp_millis_opt(1_700_000_000_000).single().expect("a valid time");
    Record { key: None, value: Some(value.into_bytes()), headers: BTreeMap::new(), timestamp }
}

fn value(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap_or_default()).expect("the tests write text")
}

/// Every record of the partition, by offset.
async fn read_all(partition: &PartitionClient) -> BTreeMap<i64, String> {
    let mut next = partition.get_offset(OffsetAt::Earliest).await.expect("an offset");
    let end = partition.get_offset(OffsetAt::Latest).await.expect("an offset");
    let mut all = BTreeMap::new();
    while next < end {
        let (records, _) = partition.fetch_records(next, FETCH_BYTES, 1_000).await.expect("a fetch");
        all.extend(records.iter().map(|record| (record.offset, value(&record.record))));
        next = all.last_key_value().map_or(next, |(offset, _)| offset + 1);
    }
    all
}

/// Records with the offset of their ack, by partition. Written at the very moment of the ack.
type Acked = Arc<Mutex<Vec<(i32, i64, String)>>>;

/// Produces for ever.
async fn produce(address: String, topic: &str, index: i32, name: String, acked: Acked) {
    let partition = partition(&address, topic, index).await;
    for round in 0u32.. {
        let values: Vec<String> = (0..1 + round % 7).map(|n| format!("{name}-{round}-{n}")).collect();
        let records = values.iter().cloned().map(record).collect();
        let codec = if round % 3 == 0 { Compression::Gzip } else { Compression::NoCompression };
        let Ok(offsets) = partition.produce(records, codec).await else { return };
        let pairs = offsets.into_iter().zip(values).map(|(offset, value)| (index, offset, value));
        acked.lock().expect("no producer panics").extend(pairs);
    }
}

/// One life of the broker under load from three producers, ended by `kill -9`. Gives what was acked, by partition.
async fn life(data: &Path, cores: &str, device: &str, topic: &'static str, round: u32) -> Vec<(i32, i64, String)> {
    let broker = Broker::start(data, &["--cores", cores, "--set", &format!("log.device={device}")]);
    if round == 0 {
        create(&broker.address, topic, 2).await;
    }
    let acked = Acked::default();
    let producers: Vec<_> = (0..3)
        .map(|producer| {
            let (address, acked) = (broker.address.clone(), Arc::clone(&acked));
            tokio::spawn(produce(address, topic, producer % 2, format!("round{round}-producer{producer}"), acked))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(150 + u64::from(round % 5) * 60)).await;
    broker.kill();
    // The client would look for the broker for ever. An ack that it has not seen by now is none.
    producers.iter().for_each(|producer| producer.abort());
    std::mem::take(&mut *acked.lock().expect("no producer panics"))
}

#[test]
fn kill_nine_loses_nothing_and_renumbers_nothing_on_the_direct_device() {
    kill_nine(&["direct"]);
}

#[test]
fn kill_nine_loses_nothing_and_renumbers_nothing_on_the_buffered_device() {
    kill_nine(&["buffered"]);
}

#[test]
fn kill_nine_loses_nothing_and_renumbers_nothing_when_the_device_changes() {
    kill_nine(&["direct", "buffered", "direct", "auto", "buffered"]);
}

/// Cases 26, 36 and 41: what was acked survives the process, keeps its offset, and nothing is there twice. Each life has the
/// next of the devices.
fn kill_nine(devices: &[&str]) {
    // `/tmp` is often a file system that takes no O_DIRECT.
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let topic = "killed";
    // The number of cores changes from life to life: the layout does not depend on it.
    let cores = ["2", "1", "2", "2"];
    runtime().block_on(async {
        let rounds = if thorough() { 50 } else { 10 };
        let mut acked: BTreeMap<(i32, i64), String> = BTreeMap::new();
        for round in 0..rounds {
            let (cores, device) = (cores[round as usize % cores.len()], devices[round as usize % devices.len()]);
            let got = life(data.path(), cores, device, topic, round).await;
            for (index, offset, value) in got {
                let before = acked.insert((index, offset), value.clone());
                assert_eq!(before, None, "offset {offset} of partition {index} was given out twice: {value}");
            }
        }
        assert!(acked.len() > 100, "the load was no load: {} records", acked.len());
        let broker = Broker::start(data.path(), &["--cores", "1"]);
        for index in 0..2 {
            let there = read_all(&partition(&broker.address, topic, index).await).await;
            for ((_, offset), value) in acked.range((index, 0)..(index + 1, 0)) {
                assert_eq!(there.get(offset), Some(value), "partition {index}, offset {offset}");
            }
            let offsets: Vec<i64> = there.keys().copied().collect();
            let gapless: Vec<i64> = (0..offsets.len() as i64).collect();
            assert_eq!(offsets, gapless, "offsets of partition {index} have no gaps");
        }
        broker.stop();
    });
}

#[test]
fn a_clean_stop_keeps_everything_and_a_second_start_sees_it() {
    let data = tempfile::tempdir().expect("a temporary folder");
    runtime().block_on(async {
        let broker = Broker::start(data.path(), &[]);
        create(&broker.address, "kept", 3).await;
        for index in 0..3 {
            let records = (0..100).map(|n| record(format!("{index}-{n}"))).collect();
            let partition = partition(&broker.address, "kept", index).await;
            partition.produce(records, Compression::Gzip).await.expect("an ack");
        }
        broker.stop();
        let broker = Broker::start(data.path(), &[]);
        for index in 0..3 {
            let there = read_all(&partition(&broker.address, "kept", index).await).await;
            let expected: BTreeMap<i64, String> = (0..100).map(|n| (n, format!("{index}-{n}"))).collect();
            assert_eq!(there, expected);
        }
        broker.stop();
    });
}

/// rskafka, Fetch 4 only: a fetch offset inside a batch, a batch larger than the limit, a fetch that waits.
#[test]
fn a_client_that_is_not_ours_reads_what_it_wrote() {
    let data = tempfile::tempdir().expect("a temporary folder");
    runtime().block_on(async {
        let broker = Broker::start(data.path(), &[]);
        create(&broker.address, "read", 1).await;
        let writer = partition(&broker.address, "read", 0).await;
        writer.produce((0..100).map(|n| record(n.to_string())).collect(), Compression::Gzip).await.expect("an ack");
        let (whole, high_watermark) = writer.fetch_records(0, 1..10, 500).await.expect("a fetch");
        assert_eq!((whole.len(), high_watermark), (100, 100), "a first batch over the limit comes whole");
        let reader = partition(&broker.address, "read", 0).await;
        let (waited, acked) = tokio::join!(reader.fetch_records(100, FETCH_BYTES, 20_000), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            writer.produce(vec![record("late".to_owned())], Compression::NoCompression).await
        });
        assert_eq!(acked.expect("an ack"), [100]);
        let (records, _) = waited.expect("a fetch");
        assert_eq!(
            records.iter().map(|r| (r.offset, value(&r.record))).collect::<Vec<_>>(),
            [(100, "late".to_owned())]
        );
        broker.stop();
    });
}

/// The request that makes a topic is told that there is none, as on Kafka; the next one finds it.
#[test]
fn an_unknown_topic_is_reported_once_and_there_when_asked_again() {
    let data = tempfile::tempdir().expect("a temporary folder");
    runtime().block_on(async {
        let broker = Broker::start(data.path(), &[]);
        let client = connect(&broker.address).await;
        let first = client.partition_client("new", 0, UnknownTopicHandling::Error).await;
        let unknown = ProtocolError::UnknownTopicOrPartition;
        assert!(
            matches!(&first, Err(Error::ServerError { protocol_error, .. }) if *protocol_error == unknown),
            "{:?}",
            first.err()
        );
        let second = client.partition_client("new", 0, UnknownTopicHandling::Error).await.expect("it is there now");
        let acked = second.produce(vec![record("first".to_owned())], Compression::NoCompression).await;
        assert_eq!(acked.expect("an ack"), [0]);
        broker.stop();
    });
}
