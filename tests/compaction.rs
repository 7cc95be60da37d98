//! Compaction as users meet it: the binary in a process of its own, over loopback. Of each key the last record is left, and
//! what consumer groups have committed is the same after `__consumer_offsets` was compacted, `kill -9` or not.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use heddle_client::{
    Client, ClientConfig, ConsumerConfig, Creation, GroupOffset, Isolation, Mode, NewTopic, OffsetQuery, Position,
    ProducerConfig, ProducerRecord, Resource, SettingChange,
};
use heddle_io::{Executor, Io, IoConfig};
use heddle_record::{Offset, PartitionIndex};
use heddle_tests::process::Broker;

/// A cleaner that looks all the time.
const EAGER: [&str; 6] = [
    "--set",
    "log.cleaner.backoff.ms=20",
    "--set",
    "log.cleaner.min.cleanable.ratio=0.01",
    "--set",
    "offsets.topic.num.partitions=1",
];
const PARTITION: PartitionIndex = PartitionIndex::new(0);

fn run<F: Future<Output = ()>>(test: impl FnOnce(Io) -> F) {
    let executor = Executor::new(IoConfig::default()).expect("a core starts");
    let io = executor.io();
    executor.run(test(io));
}

async fn connect(io: &Io, broker: &Broker) -> Client {
    let config = ClientConfig { request_timeout: Duration::from_secs(30), ..ClientConfig::default() };
    Client::connect(io, &broker.address, config).await.expect("the broker answers")
}

/// Asks until the answer is yes.
async fn eventually(io: &Io, what: &str, mut question: impl AsyncFnMut() -> bool) {
    for _ in 0..1200 {
        if question().await {
            return;
        }
        io.sleep(Duration::from_millis(50)).await;
    }
    panic!("not within a minute: {what}");
}

/// The keys and values of a partition, by offset.
async fn read_all(client: &Client, topic: &str) -> BTreeMap<i64, (String, Option<String>)> {
    let question = [(topic, PARTITION, OffsetQuery::Latest)];
    let latest = client.admin().list_offsets(&question, Isolation::default()).await.expect("an answer");
    let end = latest[0].offset.expect("it has an end");
    let consumer = client.consumer(ConsumerConfig::default());
    consumer.assign(topic, PARTITION, Position::Beginning);
    let mut found = BTreeMap::new();
    let mut next = Offset::ZERO;
    while next < end {
        let batch = consumer.next().await.expect("a batch arrives");
        for record in batch.records().map(|record| record.expect("the batch is whole")) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let row = (text(record.key.expect("every record has a key")), record.value.map(text));
            assert!(found.insert(record.offset.get(), row).is_none(), "offset {} twice", record.offset);
        }
        next = batch.next_offset();
    }
    found
}

#[test]
fn of_each_key_the_last_record_is_left() {
    for device in ["direct", "buffered"] {
        run(|io| last_records(io, device));
    }
}

async fn last_records(io: Io, device: &str) {
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let device = format!("log.device={device}");
    let arguments: Vec<&str> = EAGER.iter().copied().chain(["--set", &device]).collect();
    let broker = Broker::start(data.path(), &arguments);
    let client = connect(&io, &broker).await;
    let settings = [("cleanup.policy", "compact"), ("internal.segment.bytes", "4000"), ("delete.retention.ms", "0")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let topic = NewTopic { name: "table".into(), partition_count: Some(1), replication_factor: Some(1), settings };
    client.admin().create_topic(&topic, Mode::Apply).await.expect("the topic is made");
    client.topic("table", Creation::Forbidden).await.expect("it is known");

    let producer = client.producer(ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() });
    let producer = producer.expect("the settings agree");
    let send = async |key: String, value: Option<String>| {
        let record = ProducerRecord {
            topic: "table",
            partition: Some(PARTITION),
            key: Some(key.as_bytes()),
            value: value.as_deref().map(str::as_bytes),
            ..ProducerRecord::default()
        };
        producer.send(&record).await.expect("it is taken").await.expect("it is written")
    };
    for round in 0..40 {
        for key in 0..8 {
            send(format!("key {key}"), Some(format!("{round} {}", "-".repeat(80)))).await;
        }
    }
    send("key 0".into(), None).await;
    // What seals the segment with the last of them.
    for number in 0..60 {
        send(format!("filler {number}"), Some("-".repeat(100))).await;
    }
    producer.close().await.expect("everything is written");
    let no_key = ProducerRecord { topic: "table", partition: Some(PARTITION), value: Some(b"v"), ..Default::default() };
    let producer = client.producer(ProducerConfig::default()).expect("the settings agree");
    let refused = producer.send(&no_key).await.expect("it is taken").await;
    assert!(refused.is_err(), "a record without a key: {refused:?}");

    let mut found = BTreeMap::new();
    eventually(&io, "one record of each key", async || {
        found = read_all(&client, "table").await;
        found.values().filter(|(key, _)| key.starts_with("key")).count() == 7
    })
    .await;
    for (key, value) in found.values().filter(|(key, _)| key.starts_with("key")) {
        assert!(key != "key 0" && value.as_deref().is_some_and(|value| value.starts_with("39 ")), "{key}: {value:?}");
    }
    assert_eq!(found.values().filter(|(key, _)| key.starts_with("filler")).count(), 60);
    drop((producer, client));
    broker.kill();

    let broker = Broker::start(data.path(), &arguments);
    let client = connect(&io, &broker).await;
    assert_eq!(read_all(&client, "table").await, found);
    drop(client);
    broker.stop();
}

/// Bytes of the segments of `__consumer_offsets`.
fn offsets_bytes(data: &Path) -> u64 {
    let topics = std::fs::read_dir(data).expect("the data directory").map(|entry| entry.expect("an entry").path());
    let is_offsets = |path: &std::path::PathBuf| path.to_string_lossy().contains("__consumer_offsets-0.");
    let files = topics.filter(is_offsets).flat_map(|log| std::fs::read_dir(log).expect("its directory"));
    let segments = files
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
    // A segment may go while it is looked at.
    segments.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
}

#[test]
fn committed_offsets_are_the_same_when_theirs_was_compacted() {
    run(committed_offsets);
}

async fn committed_offsets(io: Io) {
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let arguments: Vec<&str> = EAGER.iter().copied().chain(["--set", "log.device=buffered"]).collect();
    let broker = Broker::start(data.path(), &arguments);
    let client = connect(&io, &broker).await;
    let topic =
        NewTopic { name: "orders".into(), partition_count: Some(3), replication_factor: Some(1), settings: Vec::new() };
    client.admin().create_topic(&topic, Mode::Apply).await.expect("the topic is made");
    let groups = client.groups();
    let commit = async |group: &str, offset: i64| {
        let partition = PartitionIndex::new(i32::try_from(offset % 3).expect("small"));
        groups.commit(group, &[("orders", partition, Offset::new(offset))]).await.expect("it is committed");
    };
    // The first makes the topic, whose segments are small from then on.
    commit("one", 0).await;
    let small = [("internal.segment.bytes".to_owned(), SettingChange::Set("3000".to_owned()))];
    let offsets_topic = Resource::Topic("__consumer_offsets".to_owned());
    client.admin().alter_settings(&offsets_topic, &small, Mode::Apply).await.expect("the setting is taken");
    for round in 0..120 {
        for group in ["one", "two", "three"] {
            commit(group, round).await;
        }
    }
    groups.delete("two").await.expect("it is deleted");
    for round in 120..180 {
        commit("one", round).await;
    }
    let committed = async |groups: &heddle_client::Groups| -> Vec<Vec<GroupOffset>> {
        let mut all = Vec::new();
        for group in ["one", "two", "three"] {
            let mut offsets = groups.offsets(group).await.unwrap_or_default();
            offsets.sort_by_key(|offset| offset.partition);
            all.push(offsets);
        }
        all
    };
    let before = committed(&groups).await;
    let shape: Vec<Vec<i64>> =
        before.iter().map(|group| group.iter().map(|offset| offset.offset.get()).collect()).collect();
    assert_eq!(shape, [vec![177, 178, 179], vec![], vec![117, 118, 119]]);
    eventually(&io, "the log of offsets is short", async || offsets_bytes(data.path()) < 12_000).await;
    assert_eq!(committed(&groups).await, before);
    drop((groups, client));
    broker.kill();

    let broker = Broker::start(data.path(), &arguments);
    let client = connect(&io, &broker).await;
    assert_eq!(committed(&client.groups()).await, before, "what is left of the log says the same");
    drop(client);
    broker.stop();
}
