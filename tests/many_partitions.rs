//! Many partitions on a real broker and a real disk: creation, a record in each, a clean stop, restarts, deletion. Each
//! stage must keep every record; how long it took and what it left in memory is printed, never asserted.
//!
//! ```text
//! HEDDLE_PARTITIONS=10000 cargo test --release -p heddle-tests --test many_partitions -- --nocapture
//! ```
//!
//! `HEDDLE_DATA` names the folder to work in, on the disk to be measured; `HEDDLE_CORES` the number of cores.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "this program measures real time")]

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use heddle_client::{Client, ClientConfig, Isolation, Mode, NewTopic, OffsetQuery, ProducerConfig, ProducerRecord};
use heddle_io::{Executor, IoConfig};
use heddle_record::PartitionIndex;
use heddle_tests::process::Broker;

/// Partitions of one topic at most.
const TOPIC_PARTITIONS_MAX: i32 = 1_000;

/// How many partitions: few, or what the environment says.
fn wanted() -> i32 {
    std::env::var("HEDDLE_PARTITIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(60)
}

/// The topics and how many partitions each has.
fn topics() -> Vec<(String, i32)> {
    let mut left = wanted();
    let mut topics = Vec::new();
    while left > 0 {
        let partitions = left.min(TOPIC_PARTITIONS_MAX);
        topics.push((format!("wide-{}", topics.len()), partitions));
        left -= partitions;
    }
    topics
}

/// Every partition of every topic.
fn partitions() -> impl Iterator<Item = (String, PartitionIndex)> {
    topics()
        .into_iter()
        .flat_map(|(topic, count)| (0..count).map(move |index| (topic.clone(), PartitionIndex::new(index))))
}

/// Runs `job` with a client of the broker.
fn with_client<T>(broker: &Broker, job: impl AsyncFnOnce(Client) -> T) -> T {
    let executor = Executor::new(IoConfig::default()).expect("a core starts");
    let io = executor.io();
    executor.run(async {
        let config = ClientConfig { request_timeout: Duration::from_secs(120), ..ClientConfig::default() };
        job(Client::connect(&io, &broker.address, config).await.expect("the broker answers")).await
    })
}

fn create(broker: &Broker) {
    with_client(broker, async |client| {
        for (name, count) in topics() {
            let topic =
                NewTopic { name, partition_count: Some(count), replication_factor: Some(1), settings: Vec::new() };
            client.admin().create_topic(&topic, Mode::Apply).await.expect("a topic is made");
        }
    });
}

fn delete(broker: &Broker) {
    with_client(broker, async |client| {
        for (name, _) in topics() {
            client.admin().delete_topic(&name).await.expect("a topic is deleted");
        }
    });
}

/// A record in every `stride`th partition, on disk when this returns.
fn produce(broker: &Broker, stride: usize) {
    with_client(broker, async |client| {
        let producer = client.producer(ProducerConfig::default()).expect("a producer");
        for (topic, partition) in partitions().step_by(stride) {
            let record = ProducerRecord {
                topic: &topic,
                partition: Some(partition),
                value: Some(&[b'x'; 1000]),
                ..ProducerRecord::default()
            };
            // What became of it is told by `close`, of all of them.
            drop(producer.send(&record).await.expect("a record is taken"));
        }
        producer.close().await.expect("every record is written");
    });
}

/// The records of all partitions together.
fn count(broker: &Broker) -> i64 {
    with_client(broker, async |client| {
        let all: Vec<(String, PartitionIndex)> = partitions().collect();
        let mut sum = 0;
        for part in all.chunks(1_000) {
            let queries: Vec<_> =
                part.iter().map(|(topic, index)| (topic.as_str(), *index, OffsetQuery::Latest)).collect();
            let found = client.admin().list_offsets(&queries, Isolation::ReadUncommitted).await;
            let found = found.expect("every partition has an end");
            sum += found.iter().map(|found| found.offset.expect("an end").get()).sum::<i64>();
        }
        sum
    })
}

/// KiB of memory that the process has, and the processor time that it has used.
fn resident_and_busy(broker: &Broker) -> (u64, Duration) {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.id())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name in brackets").1.split_whitespace().collect();
    // User and system time, in hundredths of a second.
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    (broker.memory_kib("VmRSS"), Duration::from_millis(10 * ticks))
}

#[expect(clippy::print_stdout, reason = "what it measured is what it is run for")]
fn report(broker: &Broker, what: &str, took: Duration) {
    let (resident, busy) = resident_and_busy(broker);
    println!(
        "{what:<46} {:>9.3} s   resident {resident:>7} KiB   cpu {:>6.2} s",
        took.as_secs_f64(),
        busy.as_secs_f64()
    );
}

fn timed<T>(job: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let done = job();
    (done, begun.elapsed())
}

fn start(data: &Path) -> (Broker, Duration) {
    let cores = std::env::var("HEDDLE_CORES").unwrap_or_else(|_| "1".to_owned());
    timed(|| Broker::start(data, &["--cores", &cores]))
}

fn log_directories(data: &Path) -> usize {
    let names = std::fs::read_dir(data).expect("the data directory").map(|entry| entry.expect("an entry").file_name());
    names.filter(|name| name.to_string_lossy().contains("wide-")).count()
}

#[test]
fn many_partitions_come_and_stay_and_go() {
    let folder = match std::env::var_os("HEDDLE_DATA") {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let data = Rc::new(folder.expect("a temporary folder"));
    let data = data.path();
    let all = i64::from(wanted());
    let some = partitions().step_by(100).count() as i64;

    let (broker, took) = start(data);
    report(&broker, "first start", took);
    let ((), took) = timed(|| create(&broker));
    report(&broker, "partitions created", took);
    let ((), took) = timed(|| produce(&broker, 1));
    report(&broker, "a record in each", took);
    assert_eq!(count(&broker), all);
    broker.kill();

    let (broker, took) = start(data);
    report(&broker, "restart after kill -9, all just written", took);
    assert_eq!(count(&broker), all);
    let (_, took) = timed(|| broker.stop());
    let (broker, stopped) = (start(data), took);
    let (broker, took) = broker;
    report(&broker, "clean stop before this", stopped);
    report(&broker, "restart after a clean stop", took);
    assert_eq!(count(&broker), all);
    let ((), took) = timed(|| produce(&broker, 100));
    report(&broker, "a record in each 100th", took);
    broker.kill();

    let (broker, took) = start(data);
    report(&broker, "restart after kill -9, each 100th written", took);
    assert_eq!(count(&broker), all + some);
    if std::env::var_os("HEDDLE_PARTITIONS").is_some() {
        let (_, before) = resident_and_busy(&broker);
        std::thread::sleep(Duration::from_secs(10));
        let (_, after) = resident_and_busy(&broker);
        report(&broker, "processor time of 10 s without work", after - before);
    }
    let ((), took) = timed(|| delete(&broker));
    report(&broker, "partitions deleted", took);
    let ((), took) = timed(|| {
        while log_directories(data) > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    report(&broker, "and their files gone", took);
    broker.stop();
}
