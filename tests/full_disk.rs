//! A disk that fills up, for real: on a small ext4 produces are refused without a lie, what is stored can be read, topics can
//! be deleted although there is not a block left, and then all goes on by itself. And one that becomes read-only: it is read,
//! and written again after its repair and a restart, with all that was acknowledged. Needs root for a loop device;
//! `HEDDLE_LOOP=required` makes its absence a failure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono::{TimeZone, Utc};
use heddle_tests::loop_disk::LoopDisk;
use heddle_tests::process::Broker;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;

const DISK_BYTES: u64 = 64 << 20;
const RECORD_BYTES: usize = 200_000;
/// How long a produce may take before it counts as refused: the client tries again for ever.
const PATIENCE: Duration = Duration::from_secs(3);

fn record(bytes: usize) -> Record {
    let timestamp = Utc.timestamp_millis_opt(1_700_000_000_000).single().expect("a valid time");
    Record { key: None, value: Some(vec![b'v'; bytes]), headers: BTreeMap::new(), timestamp }
}

/// Whether a record is acknowledged in time.
async fn is_acked(partition: &PartitionClient, bytes: usize) -> bool {
    let produced = partition.produce(vec![record(bytes)], Compression::NoCompression);
    matches!(tokio::time::timeout(PATIENCE, produced).await, Ok(Ok(_)))
}

/// A small disk in `home`, or nothing where there may be none.
fn small_disk(home: &Path) -> Option<LoopDisk> {
    heddle_tests::available("a loop device", "HEDDLE_LOOP", LoopDisk::mount(home, DISK_BYTES))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn a_full_disk_refuses_and_goes_on_on_both_devices() {
    for device in ["direct", "buffered"] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let Some(disk) = small_disk(home.path()) else { return };
        runtime().block_on(fill_and_free(&disk, device));
    }
}

#[test]
fn a_disk_that_became_read_only_is_read_on_both_devices() {
    for device in ["direct", "buffered"] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let Some(disk) = small_disk(home.path()) else { return };
        runtime().block_on(fail_and_repair(&disk, device));
    }
}

async fn connect(broker: &Broker, topic: &str) -> PartitionClient {
    let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
    client.partition_client(topic, 0, UnknownTopicHandling::Retry).await.expect("a leader")
}

async fn fail_and_repair(disk: &LoopDisk, device: &str) {
    let data = disk.path().join("data");
    let settings = ["--set", &format!("log.device={device}")];
    let mut broker = Broker::start(&data, &settings);
    let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
    client.controller_client().expect("a controller").create_topic("orders", 1, 1, 10_000).await.expect("a topic");
    let orders = connect(&broker, "orders").await;
    for _ in 0..10 {
        assert!(is_acked(&orders, 10_000).await);
    }
    disk.fail().expect("ext4 can be told to fail");
    assert!(!is_acked(&orders, RECORD_BYTES).await, "{device}: acked on a read-only disk");
    let (records, _) = orders.fetch_records(0, 1..1_000_000, 1_000).await.expect("reads go on");
    assert_eq!(records.len(), 10, "{device}");
    // It says which file, or which folder, and what to do.
    let path = data.display().to_string();
    broker.wait_for(|line| (line.contains("offline") && line.contains(&path)).then_some(()));
    broker.kill();

    disk.repair().expect("it can be repaired");
    let broker = Broker::start(&data, &settings);
    let orders = connect(&broker, "orders").await;
    let (records, _) = orders.fetch_records(0, 1..1_000_000, 1_000).await.expect("a fetch");
    assert!(records.len() >= 10, "{device}: {} of 10 are there", records.len());
    assert!(is_acked(&orders, RECORD_BYTES).await, "{device}: it goes on");
    broker.kill();
}

async fn fill_and_free(disk: &LoopDisk, device: &str) {
    let data = disk.path().join("data");
    let broker = Broker::start(&data, &["--set", &format!("log.device={device}")]);
    let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
    let controller = client.controller_client().expect("a controller");
    for topic in ["large", "small"] {
        controller.create_topic(topic, 1, 1, 10_000).await.expect("the topic is created");
    }
    let large = client.partition_client("large", 0, UnknownTopicHandling::Retry).await.expect("a leader");
    let small = client.partition_client("small", 0, UnknownTopicHandling::Retry).await.expect("a leader");
    assert!(is_acked(&small, 1000).await);
    let mut acked = 0;
    while acked < 20 && is_acked(&large, RECORD_BYTES).await {
        acked += 1;
    }
    assert_eq!(acked, 20, "{device}: four megabytes of sixty");
    assert!(data.join("heddle.reserve").exists());
    disk.fill().expect("it can be filled");
    while is_acked(&large, RECORD_BYTES).await {
        acked += 1;
        assert!(acked < 1000, "{device}: a disk of 64 MiB is full by then");
    }

    // What is stored can be read.
    let (records, end) = large.fetch_records(0, 1..1_000_000, 1_000).await.expect("reads go on");
    assert!(!records.is_empty() && end >= acked);

    // Deleting works although there is no block left, and is what makes room.
    controller.delete_topic("large", 10_000).await.expect("the topic is deleted");
    let mut tries = 0;
    while !is_acked(&small, RECORD_BYTES).await {
        tries += 1;
        assert!(tries < 100, "{device}: it does not go on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    controller.create_topic("next", 1, 1, 10_000).await.expect("topics are created again");
    broker.kill();
}
