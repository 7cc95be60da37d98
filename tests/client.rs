//! Our client against a real cluster: `heddle serve`, and Apache Kafka where a JDK and Kafka's jars are present. The same
//! scenarios run against both, through a proxy that can cut connections.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use heddle_client::{
    Acks, Client, ClientConfig, ConsumerConfig, Creation, Error, Mode, NewTopic, OffsetQuery, OutOfRange, Position,
    Producer, ProducerConfig, ProducerRecord, Resource, SettingChange, SettingSource, partition_for_key,
};
use heddle_io::{Executor, IoConfig};
use heddle_record::{Compression, Offset, PartitionIndex, RecordHeader, Timestamp};
use heddle_tests::kafka::Kafka;
use heddle_tests::process::Broker;
use heddle_tests::proxy::Proxy;

/// What a scenario is given.
struct Scene<'a> {
    client: Client,
    proxy: &'a Proxy,
    /// A topic's name that no other scenario uses.
    topic: &'a str,
}

type Scenario = for<'a> fn(&'a Scene<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

const SCENARIOS: [(&str, Scenario); 12] = [
    ("topics-come-and-go", |scene| Box::pin(topics_come_and_go(scene))),
    ("settings-change", |scene| Box::pin(settings_change(scene))),
    ("every-codec", |scene| Box::pin(every_codec(scene))),
    ("keys-headers-nulls", |scene| Box::pin(keys_headers_nulls(scene))),
    ("positions", |scene| Box::pin(positions(scene))),
    ("out-of-range", |scene| Box::pin(out_of_range(scene))),
    ("acks", |scene| Box::pin(acks(scene))),
    ("too-large", |scene| Box::pin(too_large(scene))),
    ("unknown-topic", |scene| Box::pin(unknown_topic(scene))),
    ("following", |scene| Box::pin(following(scene))),
    ("many-partitions", |scene| Box::pin(many_partitions(scene))),
    ("cut-connections", |scene| Box::pin(cut_connections(scene))),
];

#[test]
fn against_heddle() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let proxy = Proxy::new();
    let broker = Broker::start(data.path(), &["--advertise", &proxy.address]);
    proxy.forward_to(&broker.address);
    run_all(&proxy);
    broker.stop();
}

#[test]
fn against_kafka() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let proxy = Proxy::new();
    match Kafka::start(&data.path().join("kafka"), Some(&proxy.address)) {
        Ok(kafka) => {
            proxy.forward_to(&kafka.address);
            run_all(&proxy);
        }
        Err(reason) => eprintln!("NOT RUN: the client against Apache Kafka: {reason}"),
    }
}

/// Runs every scenario, or those that `HEDDLE_SCENARIO` names a part of.
fn run_all(proxy: &Proxy) {
    let only = std::env::var("HEDDLE_SCENARIO").unwrap_or_default();
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| name.contains(&only)) {
        #[expect(clippy::print_stderr, reason = "a failure says which scenario it was")]
        {
            eprintln!("scenario {name}");
        }
        let executor = Executor::new(IoConfig::default()).expect("a core starts");
        let io = executor.io();
        let address = &proxy.address;
        executor.run(async {
            let config = ClientConfig { request_timeout: Duration::from_secs(10), ..ClientConfig::default() };
            let client = Client::connect(&io, address, config).await.expect("the cluster answers");
            let scene = Scene { client, proxy, topic: name };
            let ended = io.timeout(Duration::from_secs(120), scenario(&scene)).await;
            assert!(ended.is_ok(), "{name} does not end");
        });
    }
}

impl Scene<'_> {
    async fn create(&self, partition_count: i32) {
        let topic = NewTopic {
            name: self.topic.to_owned(),
            partition_count: Some(partition_count),
            replication_factor: Some(1),
            settings: Vec::new(),
        };
        let created = self.client.admin().create_topic(&topic, Mode::Apply).await.expect("the topic is made");
        assert!(!created.id.is_zero());
        self.wait_for_topic().await;
    }

    async fn wait_for_topic(&self) {
        let known = async || self.client.topic(self.topic, Creation::Forbidden).await.is_ok();
        self.eventually("the topic is known", known).await;
    }

    fn producer(&self, change: impl FnOnce(&mut ProducerConfig)) -> Producer {
        let mut config = ProducerConfig { create_topics: false, ..ProducerConfig::default() };
        change(&mut config);
        self.client.producer(config).expect("the settings agree")
    }

    async fn send(&self, producer: &Producer, partition: i32, value: &str) -> heddle_client::Delivery {
        let partition = Some(PartitionIndex::new(partition));
        let record =
            ProducerRecord { topic: self.topic, partition, value: Some(value.as_bytes()), ..Default::default() };
        producer.send(&record).await.expect("the record is taken")
    }

    /// Writes the values to a partition, in one batch each, and waits for them.
    async fn write(&self, partition: i32, values: &[&str]) {
        let producer = self.producer(|config| config.linger = Duration::ZERO);
        for value in values {
            self.send(&producer, partition, value).await.await.expect("the record is written");
        }
        producer.close().await.expect("everything is written");
    }

    /// Asks until the answer is yes: on Kafka a change is acknowledged before every broker shows it.
    async fn eventually(&self, what: &str, mut question: impl AsyncFnMut() -> bool) {
        for _ in 0..100 {
            if question().await {
                return;
            }
            self.client.io().sleep(Duration::from_millis(50)).await;
        }
        panic!("not within 5 s: {what}");
    }

    /// Reads `count` values from a partition, each with its offset.
    async fn read(&self, partition: i32, from: Position, count: usize) -> Vec<(i64, String)> {
        let consumer = self.client.consumer(ConsumerConfig::default());
        consumer.assign(self.topic, PartitionIndex::new(partition), from);
        let mut values = Vec::new();
        while values.len() < count {
            let batch = consumer.next().await.expect("a batch arrives");
            for record in batch.records() {
                let record = record.expect("the batch is whole");
                let value = String::from_utf8_lossy(record.value.unwrap_or(b"null")).into_owned();
                values.push((record.offset.get(), value));
            }
        }
        values
    }
}

async fn topics_come_and_go(scene: &Scene<'_>) {
    let admin = scene.client.admin();
    let named = |name: &str| NewTopic { name: name.to_owned(), partition_count: Some(3), ..NewTopic::default() };
    admin.create_topic(&named(scene.topic), Mode::ValidateOnly).await.expect("it would work");
    let missing = scene.client.topic(scene.topic, Creation::Forbidden).await;
    assert!(matches!(missing, Err(Error::UnknownTopic { .. })), "only asked: {missing:?}");
    scene.create(3).await;
    let again = admin.create_topic(&named(scene.topic), Mode::Apply).await.expect_err("it exists");
    assert!(again.to_string().contains("exist"), "{again}");
    let topic = scene.client.topic(scene.topic, Creation::Forbidden).await.expect("it is there");
    assert_eq!(topic.partition_count(), 3);
    assert!(topic.partitions.iter().all(|it| it.leader.is_some() && it.replicas == it.in_sync_replicas));
    assert!(scene.client.topics().await.expect("a list").iter().any(|it| it.id == topic.id));
    admin.create_partitions(scene.topic, 5, Mode::Apply).await.expect("partitions are added");
    let partition_count = async || {
        let topics = admin.describe_topics(&[scene.topic]).await.expect("it is there");
        topics[0].partition_count()
    };
    scene.eventually("five partitions", async || partition_count().await == 5).await;
    assert!(admin.create_partitions(scene.topic, 2, Mode::Apply).await.is_err(), "never fewer");
    admin.delete_topic(scene.topic).await.expect("it is deleted");
    let deleted = async || matches!(admin.delete_topic(scene.topic).await, Err(Error::UnknownTopic { .. }));
    scene.eventually("the topic is gone", deleted).await;
    let bad =
        admin.create_topic(&named("no spaces please"), Mode::Apply).await.expect_err("a name that is not allowed");
    assert!(!bad.retriable(), "{bad}");
    let cluster = admin.describe_cluster().await.expect("the cluster answers");
    assert!(cluster.id.is_some() && cluster.brokers.len() == 1, "{cluster:?}");
}

async fn settings_change(scene: &Scene<'_>) {
    scene.create(1).await;
    let admin = scene.client.admin();
    let resource = Resource::Topic(scene.topic.to_owned());
    let change = |value: SettingChange| vec![("retention.ms".to_owned(), value)];
    let retention = async || {
        let settings = admin.describe_settings(&resource).await.expect("settings are told");
        let setting = settings.into_iter().find(|it| it.name == "retention.ms").expect("every setting is told");
        (setting.value.expect("it has a value"), setting.source)
    };
    let (before, _) = retention().await;
    let set = change(SettingChange::Set("12345".to_owned()));
    admin.alter_settings(&resource, &set, Mode::ValidateOnly).await.expect("it would work");
    assert_eq!(retention().await.0, before);
    admin.alter_settings(&resource, &set, Mode::Apply).await.expect("it is set");
    let changed = ("12345".to_owned(), SettingSource::Topic);
    scene.eventually("the setting is changed", async || retention().await == changed).await;
    admin.alter_settings(&resource, &change(SettingChange::Unset), Mode::Apply).await.expect("it is unset");
    scene.eventually("the setting is as before", async || retention().await.0 == before).await;
    let wrong = change(SettingChange::Set("soon".to_owned()));
    assert!(admin.alter_settings(&resource, &wrong, Mode::Apply).await.is_err());
    let nothing = Resource::Topic("nothing-of-the-kind".to_owned());
    assert!(matches!(admin.describe_settings(&nothing).await, Err(Error::UnknownTopic { .. })));
    let broker = scene.client.brokers()[0].id;
    let settings = admin.describe_settings(&Resource::Broker(broker)).await.expect("settings are told");
    assert!(settings.iter().any(|it| it.name == "num.partitions"));
}

async fn every_codec(scene: &Scene<'_>) {
    let codecs = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    scene.create(i32::try_from(codecs.len()).expect("five")).await;
    for (partition, compression) in (0..).zip(codecs) {
        let producer = scene.producer(|config| config.compression = compression);
        let mut deliveries = Vec::new();
        for number in 0..500 {
            deliveries.push(scene.send(&producer, partition, &format!("{number} {}", "-".repeat(500))).await);
        }
        producer.close().await.expect("everything is written");
        for (number, delivery) in (0..).zip(deliveries) {
            assert_eq!(delivery.await.expect("it is written").offset, Some(Offset::new(number)));
        }
        let read = scene.read(partition, Position::Beginning, 500).await;
        for (number, (offset, value)) in (0..).zip(&read) {
            assert_eq!(*offset, number);
            assert!(value.starts_with(&format!("{number} -")), "{compression:?}: {value}");
        }
    }
}

async fn keys_headers_nulls(scene: &Scene<'_>) {
    scene.create(4).await;
    let producer = scene.producer(|_| {});
    let headers = [
        RecordHeader { key: b"a", value: Some(b"1") },
        RecordHeader { key: b"a", value: None },
        RecordHeader { key: "ü".as_bytes(), value: Some(b"") },
    ];
    let timestamp = Some(Timestamp::new(1_600_000_000_123));
    let mut sent = Vec::new();
    for key in ["one", "two", "three", ""] {
        let record = ProducerRecord {
            topic: scene.topic,
            timestamp,
            key: Some(key.as_bytes()),
            headers: &headers,
            ..ProducerRecord::default()
        };
        sent.push((key, producer.send(&record).await.expect("it is taken")));
    }
    producer.flush().await.expect("all is written");
    for (key, delivery) in sent {
        let written = delivery.await.expect("it is written");
        assert_eq!(written.partition, partition_for_key(key.as_bytes(), 4));
        assert_eq!(Some(written.timestamp), timestamp);
        let consumer = scene.client.consumer(ConsumerConfig::default());
        let at = written.offset.expect("acks=all says");
        consumer.assign(scene.topic, written.partition, Position::Offset(at));
        let batch = consumer.next().await.expect("it is read");
        let record = batch.records().next().expect("a record").expect("whole");
        assert_eq!((record.offset, record.key, record.value), (at, Some(key.as_bytes()), None));
        assert_eq!(Some(record.timestamp), timestamp);
        assert!(record.headers.iter().eq(headers));
    }
    producer.close().await.expect("it ends");
}

async fn positions(scene: &Scene<'_>) {
    scene.create(1).await;
    let producer = scene.producer(|_| {});
    for number in 0..10 {
        let record = ProducerRecord {
            topic: scene.topic,
            timestamp: Some(Timestamp::new(1_700_000_000_000 + number * 1_000)),
            value: Some(b"v"),
            ..ProducerRecord::default()
        };
        drop(producer.send(&record).await.expect("it is taken"));
    }
    producer.close().await.expect("everything is written");
    let partition = PartitionIndex::new(0);
    let admin = scene.client.admin();
    let isolation = heddle_client::Isolation::ReadUncommitted;
    let at = |ms: i64| OffsetQuery::AtTime(Timestamp::new(ms));
    let questions = [
        (OffsetQuery::Earliest, Some(0)),
        (OffsetQuery::Latest, Some(10)),
        (OffsetQuery::MaxTimestamp, Some(9)),
        (at(0), Some(0)),
        (at(1_700_000_003_000), Some(3)),
        (at(1_700_000_003_001), Some(4)),
        (at(1_800_000_000_000), None),
    ];
    let queries: Vec<_> = questions.iter().map(|(query, _)| (scene.topic, partition, *query)).collect();
    let listed = admin.list_offsets(&queries, isolation).await.expect("offsets are told");
    for ((query, expected), listed) in questions.iter().zip(listed) {
        assert_eq!(listed.offset.map(Offset::get), *expected, "{query:?}");
    }
    let first = async |from| scene.read(0, from, 1).await[0].0;
    assert_eq!(first(Position::Beginning).await, 0);
    assert_eq!(first(Position::Offset(Offset::new(7))).await, 7, "inside of a batch");
    assert_eq!(first(Position::Time(Timestamp::new(1_700_000_005_500))).await, 6);
    let low = admin.delete_records(scene.topic, partition, Some(Offset::new(4))).await.expect("records are deleted");
    assert_eq!(low.get(), 4);
    assert_eq!(first(Position::Beginning).await, 4);
    admin.delete_records(scene.topic, partition, None).await.expect("records are deleted");
    let earliest = admin.list_offsets(&[(scene.topic, partition, OffsetQuery::Earliest)], isolation).await;
    assert_eq!(earliest.expect("an offset")[0].offset, Some(Offset::new(10)));
}

async fn out_of_range(scene: &Scene<'_>) {
    scene.create(1).await;
    scene.write(0, &["a", "b", "c"]).await;
    let beyond = Position::Offset(Offset::new(99));
    let partition = PartitionIndex::new(0);
    let consumer = scene.client.consumer(ConsumerConfig::default());
    consumer.assign(scene.topic, partition, beyond);
    let error = consumer.next().await.expect_err("there is no such offset");
    assert_eq!(error.code().map(|it| it.name()), Some("OFFSET_OUT_OF_RANGE"));
    assert!(consumer.next().await.is_err(), "the partition is no longer assigned");
    let config = ConsumerConfig { out_of_range: OutOfRange::Beginning, ..ConsumerConfig::default() };
    let consumer = scene.client.consumer(config);
    consumer.assign(scene.topic, partition, beyond);
    let batch = consumer.next().await.expect("it starts over");
    assert_eq!(batch.records().next().expect("a record").expect("whole").offset, Offset::new(0));
}

async fn acks(scene: &Scene<'_>) {
    scene.create(1).await;
    for (acks, expected) in [(Acks::None, None), (Acks::Leader, Some(1)), (Acks::All, Some(2))] {
        let producer = scene.producer(|config| (config.acks, config.idempotence) = (acks, false));
        let written = scene.send(&producer, 0, "v").await.await.expect("it is written");
        assert_eq!(written.offset.map(Offset::get), expected, "{acks:?}");
        producer.close().await.expect("it ends");
        // Without an answer nobody knows when the record is there but its reader.
        scene.read(0, Position::Beginning, 1).await;
    }
    assert_eq!(scene.read(0, Position::Beginning, 3).await.len(), 3);
}

async fn too_large(scene: &Scene<'_>) {
    let settings = vec![("max.message.bytes".to_owned(), "2000".to_owned())];
    let topic = NewTopic { name: scene.topic.to_owned(), partition_count: Some(1), settings, ..NewTopic::default() };
    scene.client.admin().create_topic(&topic, Mode::Apply).await.expect("the topic is made");
    scene.wait_for_topic().await;
    let producer = scene.producer(|config| config.linger = Duration::ZERO);
    let first = scene.send(&producer, 0, "small").await;
    // Perhaps in one batch with the first: then it is cut until the one that is too large stands alone.
    let large = scene.send(&producer, 0, &"x".repeat(3_000)).await;
    producer.flush().await.expect_err("one is too large");
    let after = scene.send(&producer, 0, "small again").await;
    producer.flush().await.expect("the rest is written");
    let error = large.await.expect_err("above the topic's limit");
    assert_eq!(error.code().map(|it| it.name()), Some("MESSAGE_TOO_LARGE"));
    first.await.expect("it is written");
    after.await.expect("the producer goes on");
    let huge = vec![b'x'; 2_000_000];
    let record = ProducerRecord { topic: scene.topic, value: Some(&huge), ..ProducerRecord::default() };
    assert!(matches!(producer.send(&record).await, Err(Error::RecordTooLarge { .. })));
    producer.close().await.expect("it ends");
}

async fn unknown_topic(scene: &Scene<'_>) {
    let producer = scene.producer(|_| {});
    let record = ProducerRecord { topic: scene.topic, value: Some(b"v"), ..ProducerRecord::default() };
    let refused = producer.send(&record).await.err();
    assert!(matches!(refused, Some(Error::UnknownTopic { .. })), "{refused:?}");
    let creating = scene.producer(|config| config.create_topics = true);
    creating.send(&record).await.expect("the topic is made").await.expect("the record is written");
    let partition = Some(PartitionIndex::new(1_000));
    let wrong = creating.send(&ProducerRecord { partition, ..record }).await.err();
    assert!(matches!(wrong, Some(Error::UnknownPartition { .. })), "{wrong:?}");
}

async fn following(scene: &Scene<'_>) {
    scene.create(1).await;
    scene.write(0, &["before"]).await;
    let consumer = scene.client.consumer(ConsumerConfig::default());
    consumer.assign(scene.topic, PartitionIndex::new(0), Position::Offset(Offset::new(1)));
    let io = scene.client.io();
    let early = io.timeout(Duration::from_millis(200), consumer.next()).await;
    assert!(early.is_err(), "there is nothing yet");
    scene.write(0, &["after"]).await;
    let batch = consumer.next().await.expect("it arrives");
    assert_eq!(batch.records().next().expect("a record").expect("whole").value, Some(&b"after"[..]));
    assert_eq!(batch.next_offset(), Offset::new(2));
}

async fn many_partitions(scene: &Scene<'_>) {
    const PARTITIONS: i32 = 40;
    scene.create(PARTITIONS).await;
    let producer = scene.producer(|_| {});
    for number in 0..4_000 {
        let key = format!("key-{}", number % 97);
        let value = number.to_string();
        let record = ProducerRecord {
            topic: scene.topic,
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            ..ProducerRecord::default()
        };
        drop(producer.send(&record).await.expect("it is taken"));
    }
    producer.close().await.expect("everything is written");
    // Little room, so that reading must stop and go on.
    let config = ConsumerConfig { prefetch_bytes_max: 10_000, partition_bytes_max: 1_000, ..ConsumerConfig::default() };
    let consumer = scene.client.consumer(config);
    for partition in 0..PARTITIONS {
        consumer.assign(scene.topic, PartitionIndex::new(partition), Position::Beginning);
    }
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut count = 0;
    while count < 4_000 {
        let batch = consumer.next().await.expect("a batch arrives");
        for record in batch.records() {
            let record = record.expect("whole");
            let key = String::from_utf8_lossy(record.key.expect("a key")).into_owned();
            let number = String::from_utf8_lossy(record.value.expect("a value")).parse().expect("a number");
            let before = last.insert(key, number);
            assert!(before.is_none_or(|before| before + 97 == number), "records of a key keep their order");
            count += 1;
        }
    }
}

/// Case 54: whatever an answer's loss leaves unknown, no record is lost, doubled or moved.
async fn cut_connections(scene: &Scene<'_>) {
    const RECORDS: i64 = 6_000;
    scene.create(2).await;
    let producer = scene.producer(|config| {
        config.linger = Duration::ZERO;
        config.batch_bytes_max = 1_000;
    });
    let mut deliveries = Vec::new();
    for number in 0..RECORDS {
        let partition = i32::try_from(number % 2).expect("0 or 1");
        deliveries.push(scene.send(&producer, partition, &number.to_string()).await);
        if number % 500 == 250 {
            scene.proxy.cut();
        }
        if number % 10 == 0 {
            scene.client.io().sleep(Duration::from_micros(200)).await;
        }
    }
    producer.close().await.expect("everything is written in the end");
    for (number, delivery) in (0..).zip(deliveries) {
        let written = delivery.await.expect("it is written");
        assert!(written.offset.is_none_or(|offset| offset.get() == number / 2), "{number}: {written:?}");
    }
    for partition in 0..2 {
        let count = usize::try_from(RECORDS / 2).expect("a count");
        let read = scene.read(partition, Position::Beginning, count).await;
        assert_eq!(read.len(), count);
        for (place, (offset, value)) in (0..).zip(read) {
            assert_eq!((offset, value), (place, (place * 2 + i64::from(partition)).to_string()));
        }
    }
    let end = scene.client.admin();
    let query = [(scene.topic, PartitionIndex::new(0), OffsetQuery::Latest)];
    let listed = end.list_offsets(&query, heddle_client::Isolation::ReadUncommitted).await.expect("an offset");
    assert_eq!(listed[0].offset, Some(Offset::new(RECORDS / 2)), "nothing was written twice");
}
