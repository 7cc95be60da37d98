//! Metrics and health as a scraper sees them: values that follow what clients did, bounded series, readiness at every stage of
//! a broker's life, and requests that are none. Against the binary. The disk that hangs and fails needs FUSE
//! (`HEDDLE_FUSE=required` in `./check`).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chrono::{TimeZone, Utc};
use heddle_tests::failing_fs::FailingFs;
use heddle_tests::hung_thread::HungThread;
use heddle_tests::process::{Broker, heddle, refused};
use heddle_tests::scrape::{Scrape, get, send};
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;

fn record(value: &str) -> Record {
    let timestamp = Utc.timestamp_millis_opt(1_700_000_000_000).single().expect("a valid time");
    Record { key: None, value: Some(value.as_bytes().to_vec()), headers: BTreeMap::new(), timestamp }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A broker with metrics, and where they are.
fn start(data: &Path, arguments: &[&str]) -> (Broker, String) {
    let mut broker = Broker::start(data, &[&["--metrics", "127.0.0.1:0"], arguments].concat());
    let address = broker.wait_for(|line| {
        let (_, rest) = line.split_once("metrics on http://")?;
        rest.split('/').next().map(str::to_owned)
    });
    (broker, address)
}

fn scrape(address: &str) -> Scrape {
    let answer = get(address, "/metrics").expect("it answers");
    assert_eq!(answer.status, 200, "{}", answer.body);
    Scrape::read(&answer.body).expect("the format is kept")
}

/// Status and words.
fn probe(address: &str, path: &str) -> (u16, String) {
    let answer = get(address, path).expect("it answers");
    (answer.status, answer.body.trim().to_owned())
}

/// Asks until `enough`: for what takes a moment.
fn probe_until(address: &str, path: &str, enough: impl Fn(u16, &str) -> bool) -> String {
    for _ in 0..600 {
        if let Ok(answer) = get(address, path)
            && enough(answer.status, &answer.body)
        {
            return answer.body;
        }
        heddle_tests::pause(Duration::from_millis(50));
    }
    panic!("{path} never said it");
}

async fn client(broker: &Broker) -> Client {
    ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers")
}

async fn partition(client: &Client, topic: &str, partition: i32) -> PartitionClient {
    client.partition_client(topic, partition, UnknownTopicHandling::Retry).await.expect("a leader")
}

async fn create(client: &Client, topic: &str, partitions: i32) {
    let controller = client.controller_client().expect("a controller");
    controller.create_topic(topic, partitions, 1, 10_000).await.expect("the topic is created");
}

#[test]
fn values_follow_what_a_client_did() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (broker, address) = start(data.path(), &["--cores", "2"]);
    runtime().block_on(async {
        let client = client(&broker).await;
        create(&client, "orders", 3).await;
        let (first, last) = (partition(&client, "orders", 0).await, partition(&client, "orders", 2).await);
        for _ in 0..5 {
            let records = vec![record("one"), record("two")];
            first.produce(records, Compression::NoCompression).await.expect("an ack");
        }
        let records = vec![record("a"), record("b"), record("c")];
        last.produce(records, Compression::NoCompression).await.expect("an ack");
        assert_eq!(first.fetch_records(0, 1..1_000_000, 1_000).await.expect("a fetch").0.len(), 10);
        last.fetch_records(1_000, 1..1_000_000, 1_000).await.expect_err("there is no such offset");
    });
    let seen = scrape(&address);
    let is = |series: &str, expected: f64| assert_eq!(seen.value(series), Some(expected), "{series}");
    let value = |series: &str| seen.value(series).unwrap_or_else(|| panic!("{series} is missing"));

    is("heddle_topic_records_in_total{topic=\"orders\"}", 13.0);
    is("heddle_records_in_total", 13.0);
    is("heddle_topic_produce_requests_total{topic=\"orders\"}", 6.0);
    is("heddle_topic_produce_requests_failed_total{topic=\"orders\"}", 0.0);
    is("heddle_topic_fetch_requests_total{topic=\"orders\"}", 2.0);
    is("heddle_topic_fetch_requests_failed_total{topic=\"orders\"}", 1.0);
    is("heddle_request_errors_total{api=\"Fetch\",error=\"OFFSET_OUT_OF_RANGE\"}", 1.0);
    is("heddle_request_duration_seconds_count{api=\"Produce\"}", 6.0);
    is("heddle_request_duration_seconds_count{api=\"Fetch\"}", 2.0);
    let produced: f64 = seen.families["heddle_requests_total"]
        .samples
        .iter()
        .filter(|(series, _)| series.contains("api=\"Produce\""))
        .map(|(_, count)| count)
        .sum();
    assert!((produced - 6.0).abs() < f64::EPSILON, "requests by version add up: {produced}");

    let part = |name: &str, index: i32| format!("heddle_partition_{name}{{topic=\"orders\",partition=\"{index}\"}}");
    is(&part("log_start_offset", 0), 0.0);
    is(&part("log_end_offset", 0), 10.0);
    is(&part("high_watermark", 0), 10.0);
    is(&part("log_end_offset", 1), 0.0);
    is(&part("log_end_offset", 2), 3.0);
    let (first, last) = (value(&part("log_size_bytes", 0)), value(&part("log_size_bytes", 2)));
    is("heddle_topic_log_size_bytes{topic=\"orders\"}", first + last);
    is("heddle_topic_bytes_in_total{topic=\"orders\"}", first + last);
    is("heddle_topic_bytes_out_total{topic=\"orders\"}", first);
    is("heddle_bytes_out_total", first);

    is("heddle_topics", 1.0);
    assert!(value("heddle_connections{listener=\"PLAINTEXT\"}") >= 0.0);
    is("heddle_partitions", 3.0);
    is("heddle_partitions_offline", 0.0);
    is("heddle_ready", 1.0);
    is("heddle_data_directory_online", 1.0);
    is("heddle_core_responding{core=\"1\"}", 1.0);
    is("heddle_flush_failures_total", 0.0);
    assert!(value("heddle_flush_duration_seconds_count") >= 1.0, "acks=all costs a flush");
    let reads = value("heddle_tail_cache_hits_total") + value("heddle_tail_cache_misses_total");
    assert!(reads >= 1.0, "the records were read from somewhere");
    assert!(value("heddle_connections_accepted_total") >= 1.0);
    assert!(value("heddle_disk_free_bytes") <= value("heddle_disk_size_bytes"));
    assert!(value("process_resident_memory_bytes") > 1e6);

    let again = scrape(&address);
    for (name, family) in again.families.iter().filter(|(_, family)| family.kind != "gauge") {
        for (series, now) in &family.samples {
            let before = seen.families[name].samples.get(series).copied().unwrap_or(0.0);
            assert!(*now >= before, "{series} went back");
        }
    }
    broker.stop();
}

#[test]
fn the_lag_of_a_group_is_what_it_has_not_read() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (broker, address) = start(data.path(), &["--cores", "2"]);
    runtime().block_on(async {
        let client = client(&broker).await;
        create(&client, "orders", 2).await;
        let records = (0..7).map(|_| record("one")).collect();
        partition(&client, "orders", 1).await.produce(records, Compression::NoCompression).await.expect("an ack");
    });
    let commit = |to: &str| {
        let words = ["group", "reset-offsets", "slow \"group\"", "--to", to, "--topic", "orders", "--execute"];
        let output = Command::new(heddle()).args(words).env("HEDDLE_BOOTSTRAP", &broker.address).output();
        let output = output.expect("heddle runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let series = |name: &str, partition: i32| {
        format!("heddle_group_{name}{{group=\"slow \\\"group\\\"\",topic=\"orders\",partition=\"{partition}\"}}")
    };
    commit("beginning");
    let seen = scrape(&address);
    assert_eq!(seen.value(&series("lag_records", 1)), Some(7.0), "{:?}", seen.series("heddle_group_lag_records"));
    assert_eq!(seen.value(&series("lag_records", 0)), Some(0.0));
    assert_eq!(seen.value(&series("committed_offset", 1)), Some(0.0));
    assert_eq!(seen.value("heddle_groups{state=\"Empty\"}"), Some(1.0));
    assert_eq!(seen.value("heddle_group_offsets"), Some(2.0));
    commit("end");
    let seen = scrape(&address);
    assert_eq!(seen.value(&series("lag_records", 1)), Some(0.0));
    assert_eq!(seen.value(&series("committed_offset", 1)), Some(7.0));
    broker.stop();
}

#[test]
fn series_are_bounded_and_nothing_is_lost_in_the_sums() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let bounds = ["--cores", "2", "--set", "metrics.topics.max=2", "--set", "metrics.partitions.max=3"];
    let (broker, address) = start(data.path(), &bounds);
    let topics = ["e", "d", "c", "b", "a"];
    let produce = |topics: &[&str]| {
        runtime().block_on(async {
            let client = client(&broker).await;
            for topic in topics {
                let one = partition(&client, topic, 1).await;
                one.produce(vec![record("one")], Compression::NoCompression).await.expect("an ack");
            }
        });
    };
    runtime().block_on(async {
        let client = client(&broker).await;
        for topic in topics {
            create(&client, topic, 2).await;
        }
    });
    produce(&topics);
    let seen = scrape(&address);
    let of = |seen: &Scrape, topic: &str| seen.value(&format!("heddle_topic_records_in_total{{topic=\"{topic}\"}}"));
    assert_eq!([of(&seen, "e"), of(&seen, "d"), of(&seen, "(other)")], [Some(1.0), Some(1.0), Some(3.0)]);
    assert_eq!(of(&seen, "a"), None);
    assert_eq!(seen.series("heddle_topic_log_size_bytes").len(), 3);
    assert_eq!(seen.series("heddle_partition_log_end_offset").len(), 3);
    let omitted = |what: &str| seen.value(&format!("heddle_metrics_omitted{{what=\"{what}\"}}"));
    assert_eq!(
        [omitted("topics"), omitted("partitions"), omitted("group_partitions")].map(Option::unwrap),
        [3.0, 7.0, 0.0]
    );

    let gone = Command::new(heddle()).args(["topic", "delete", "e"]).env("HEDDLE_BOOTSTRAP", &broker.address).output();
    assert!(gone.expect("heddle runs").status.success());
    produce(&["a"]);
    let seen = scrape(&address);
    assert_eq!([of(&seen, "e"), of(&seen, "d"), of(&seen, "(other)")], [None, Some(1.0), Some(4.0)]);
    assert_eq!(seen.value("heddle_records_in_total"), Some(6.0), "what came in came in, whatever was deleted since");
    broker.stop();
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_is_there() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (broker, address) = start(data.path(), &[]);
    let seen = scrape(&address);
    let path = heddle_tests::repository::root().join("docs/metrics.md");
    let text = fs::read_to_string(path).expect("the documentation is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")).filter(|row| !row.starts_with('/'));
    let documented: BTreeMap<&str, Vec<&str>> = rows
        .filter_map(|row| row.split_once('`'))
        .map(|(name, rest)| (name, rest.split('|').map(str::trim).collect()))
        .collect();
    let names: BTreeSet<&str> = seen.families.keys().map(String::as_str).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), names);
    for (name, columns) in documented {
        let family = &seen.families[name];
        assert_eq!((columns[1], columns[3]), (&*family.kind, &*family.help), "{name}");
    }
    broker.stop();
}

#[test]
fn probes_answer_in_words_and_requests_that_are_none_cost_nothing() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (broker, address) = start(data.path(), &["--cores", "1"]);
    assert_eq!(probe(&address, "/healthz"), (200, "ok".to_owned()));
    assert_eq!(probe(&address, "/readyz"), (200, "ready".to_owned()));
    let (status, index) = probe(&address, "/");
    assert!(status == 200 && ["/metrics", "/healthz", "/readyz"].iter().all(|path| index.contains(path)), "{index}");
    assert_eq!(get(&address, "/nothing").expect("it answers").status, 404);
    let post = send(&address, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi").expect("it answers");
    assert_eq!((post.status, post.headers["allow"].contains("GET")), (405, true));

    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nAccept-Encoding: gzip\r\n\r\n");
    let asked = send(&address, request.as_bytes()).expect("it answers");
    assert_eq!(asked.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    Scrape::read(&asked.body).expect("the format is kept");

    // Either it says that this is no request, or it hangs up.
    for garbage in [&b"\x00\x01\x02\x03 garbage\r\n\r\n"[..], b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"] {
        if let Ok(answer) = send(&address, garbage) {
            assert_eq!(answer.status, 400, "{garbage:?}");
        }
    }
    let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    if let Ok(answer) = send(&address, huge.as_bytes()) {
        assert_eq!(answer.status, 431);
    }

    // More than it serves at a time, none of which ever ends its request: they are cut, and everybody else gets a turn.
    let slow: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut socket = TcpStream::connect(&address).expect("the port is open");
            socket.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").expect("the system takes it");
            socket
        })
        .collect();
    assert_eq!(probe(&address, "/healthz"), (200, "ok".to_owned()));
    drop(slow);
    let seen = scrape(&address);
    assert!(seen.value("process_open_fds").is_some_and(|count| count < 200.0), "{:?}", seen.value("process_open_fds"));
    broker.stop();
}

#[test]
fn without_being_asked_nothing_is_served_and_what_cannot_be_had_is_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let fresh = data.path().join("fresh");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--metrics", &address], &[&address, "in use"]),
        (&["--metrics", "0.0.0.0:0"], &["--insecure"]),
        (&["--metrics", "nonsense"], &["metrics.listener", "host:port"]),
        (&["--set", "metrics.topics.max=-1"], &["metrics.topics.max"]),
    ];
    for (arguments, words) in cases {
        let output = refused(&fresh, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?} said:\n{said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?} said:\n{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?} said:\n{said}");
        assert!(!fresh.exists(), "a refused start leaves nothing behind");
    }
    let broker = Broker::start(&fresh, &[]);
    let said = broker.stop();
    assert!(!said.contains("metrics on"), "it said:\n{said}");
}

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}

#[test]
fn readiness_follows_a_broker_from_its_start_over_a_failing_disk() {
    let mountpoint = tempfile::tempdir().expect("a temporary folder");
    let mounted = FailingFs::mount(mountpoint.path());
    let Some(files) = heddle_tests::available("FUSE", "HEDDLE_FUSE", mounted) else { return };
    let (address, data) = (free_address(), mountpoint.path().join("data"));

    // A disk that hangs while the broker starts: alive, and not ready.
    files.hang("");
    let starting = {
        let (data, address) = (data.clone(), address.clone());
        heddle_tests::thread(move || Broker::start(&data, &["--cores", "1", "--metrics", &address]))
    };
    for _ in 0..600 {
        if files.waiting() > 0 {
            break;
        }
        heddle_tests::pause(Duration::from_millis(50));
    }
    assert!(files.waiting() > 0, "a start writes");
    let (status, words) = probe(&address, "/readyz");
    assert!(status == 503 && words.starts_with("not ready: starting"), "{status} {words}");
    assert_eq!(probe(&address, "/healthz"), (200, "ok".to_owned()));
    assert_eq!(scrape(&address).value("heddle_ready"), Some(0.0));
    files.go_on();
    let broker = starting.join().expect("the broker starts");
    probe_until(&address, "/readyz", |status, words| status == 200 && words == "ready\n");

    // One that fails a flush.
    runtime().block_on(async {
        let client = client(&broker).await;
        create(&client, "one", 1).await;
        let one = partition(&client, "one", 0).await;
        one.produce(vec![record("before")], Compression::NoCompression).await.expect("an ack");
        assert_eq!(scrape(&address).value("heddle_data_directory_online"), Some(1.0));
        files.fail_flushes();
        let lost = one.produce(vec![record("lost")], Compression::NoCompression);
        assert!(!matches!(tokio::time::timeout(Duration::from_secs(2), lost).await, Ok(Ok(_))), "acked");
    });
    let is_offline =
        |status, words: &str| status == 503 && words.starts_with("not ready: the data directory is offline");
    probe_until(&address, "/readyz", is_offline);
    assert_eq!(probe(&address, "/healthz"), (200, "ok".to_owned()), "restarting it would not mend the disk");
    let seen = scrape(&address);
    assert_eq!(seen.value("heddle_data_directory_online"), Some(0.0));
    assert_eq!(seen.value("heddle_ready"), Some(0.0));
    assert!(seen.value("heddle_flush_failures_total").is_some_and(|count| count >= 1.0));
    assert!(seen.value("heddle_partitions_offline").is_some_and(|count| count >= 1.0));
    broker.kill();
}

#[test]
fn a_disk_that_hangs_shows_and_so_does_a_broker_that_stops() {
    let mountpoint = tempfile::tempdir().expect("a temporary folder");
    let mounted = FailingFs::mount(mountpoint.path());
    let Some(files) = heddle_tests::available("FUSE", "HEDDLE_FUSE", mounted) else { return };
    let (broker, address) =
        start(&mountpoint.path().join("data"), &["--cores", "1", "--set", "shutdown.timeout.ms=60000"]);
    runtime().block_on(async {
        let client = client(&broker).await;
        create(&client, "hung", 1).await;
        let hung = partition(&client, "hung", 0).await;
        hung.produce(vec![record("before")], Compression::NoCompression).await.expect("an ack");
        files.hang("hung-");
        let late = hung.produce(vec![record("late")], Compression::NoCompression);
        tokio::time::timeout(Duration::from_secs(1), late).await.expect_err("acked although the disk hangs");
    });
    let seen = scrape(&address);
    let oldest = seen.value("heddle_flush_oldest_seconds").unwrap_or(0.0);
    let pending = seen.value("heddle_write_pending_bytes").unwrap_or(0.0);
    assert!(oldest > 0.0 || pending > 0.0, "what hangs shows: {oldest} s, {pending} bytes");
    assert_eq!(probe(&address, "/readyz"), (200, "ready".to_owned()), "others are served");
    broker.signal("TERM");
    let words = probe_until(&address, "/readyz", |status, _| status == 503);
    assert_eq!(words, "not ready: stopping\n");
    assert!(files.go_on() > 0, "something hung");
    assert!(broker.wait().0.success(), "a clean stop");
}

/// A core that does not go on is named, by health, readiness and metrics, and none of them waits for it for ever.
#[test]
fn a_core_that_hangs_shows_until_it_goes_on() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (broker, address) = start(data.path(), &["--cores", "2"]);
    let responding = |seen: &Scrape| {
        ["0", "1"].map(|core| seen.value(&format!("heddle_core_responding{{core=\"{core}\"}}")).unwrap_or(-1.0) as i32)
    };
    assert_eq!(probe(&address, "/healthz"), (200, "ok".to_owned()));
    assert_eq!(responding(&scrape(&address)), [1, 1]);

    let held = HungThread::hold(broker.id(), "core-1");
    let Some(held) = heddle_tests::available("holding a thread", "HEDDLE_TRACE", held) else { return };
    for path in ["/healthz", "/readyz"] {
        let (status, words) = probe(&address, path);
        assert!(status == 503 && words.contains("core 1 has not answered for"), "{path}: {status} {words}");
    }
    let seen = scrape(&address);
    assert_eq!(responding(&seen), [1, 0]);
    assert_eq!(seen.value("heddle_ready"), Some(0.0));

    drop(held);
    probe_until(&address, "/healthz", |status, words| status == 200 && words == "ok\n");
    probe_until(&address, "/readyz", |status, words| status == 200 && words == "ready\n");
    assert_eq!(responding(&scrape(&address)), [1, 1]);
    broker.stop();
}
